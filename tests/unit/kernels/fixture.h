/* fixture.h - a small world for the tests of the kernels: one rank with its context, stream, pool, batch and
 * workspace, seeded numbers, and steps made of (slot, rows) entries. Included by every program of this
 * folder. */
#pragma once

#include "kernels/kernels.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const all_isas[] = {"plain", "avx2", "avx512"};
#define N_ISAS 3

/* --- seeded numbers --- */

struct rng {
    uint64_t s;
};
static inline uint32_t rng_u32(struct rng *r) {
    r->s = r->s * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(r->s >> 33);
}
/* uniform in [-scale, scale) */
static inline float rng_float(struct rng *r, float scale) {
    return ((float)rng_u32(r) / 1073741824.0f - 1.0f) * scale;
}
static inline float *random_floats(uint64_t seed, size_t n, float scale) {
    struct rng r = {seed * 77 + 1};
    float *x = aligned_alloc(64, (n * sizeof *x + 63) / 64 * 64 + 64);
    for (size_t i = 0; i < n; i++)
        x[i] = rng_float(&r, scale);
    return x;
}
static inline uint16_t to_bf16(float x) {
    uint32_t b;
    memcpy(&b, &x, 4);
    return (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
static inline float of_bf16(uint16_t h) {
    uint32_t b = (uint32_t)h << 16;
    float x;
    memcpy(&x, &b, 4);
    return x;
}

/* --- contexts --- */

/* NULL when this machine lacks the instruction set. */
static inline struct k_context *context(const char *isa, uint32_t threads) {
    struct k_context_options o = {.threads = threads, .isa = isa};
    struct k_context *c = NULL;
    struct error e = {0};
    int r = k_context_create(&o, &c, &e);
    if (r == -ENOTSUP)
        return NULL;
    if (r < 0)
        fail_msg("context: %s", e.text);
    return c;
}
#define OK(call)                                                                                             \
    do {                                                                                                     \
        struct error e_ = {0}, *e = &e_;                                                                     \
        if ((call) < 0)                                                                                      \
            fail_msg("%s:%d: %s: %s", __FILE__, __LINE__, #call, e->text);                                   \
    } while (0)

/* --- a rank --- */

struct world {
    struct k_shape shape;
    struct k_context *c;
    struct k_stream *s;
    struct k_pool *p;
    struct k_batch *b;
    struct k_comm *m;
    void *workspace;
    struct k_plan plan;
    struct k_entry entries[64];
    uint32_t ids[4096], rope[3 * 4096], n_ids, n_rope;
};

static inline bool world_open(struct world *w, const struct k_shape *shape, const struct k_pool_options *o,
        const char *isa, uint32_t threads, void *region) {
    const uint32_t rows_max = 1024;
    memset(w, 0, sizeof *w);
    w->shape = *shape;
    w->c = context(isa, threads);
    if (!w->c)
        return false;
    OK(k_stream_create(w->c, &w->s, e));
    OK(k_pool_create(w->c, shape, o, &w->p, e));
    OK(k_batch_create(w->c, 64, rows_max, &w->b, e));
    OK(k_comm_create(w->c, shape, rows_max, region, k_comm_region_bytes(shape, rows_max), &w->m, e));
    size_t bytes = k_workspace_bytes(shape, rows_max, 64);
    w->workspace = k_alloc(w->c, bytes);
    k_stream_set_workspace(w->s, w->workspace, bytes);
    return true;
}
static inline void world_close(struct world *w) {
    if (!w->c)
        return;
    k_free(w->c, w->workspace);
    k_comm_free(w->m);
    k_batch_free(w->b);
    k_pool_free(w->p);
    k_stream_free(w->s);
    k_context_free(w->c);
}

/* --- steps --- */

static inline void step_new(struct world *w) {
    memset(&w->plan, 0, sizeof w->plan);
    w->n_ids = w->n_rope = 0;
}
/* Adds PROMPT rows of a slot from first_pos; ids are filled with `id` + i. */
static inline struct k_entry *step_prompt(
        struct world *w, uint32_t slot, uint32_t first_pos, uint32_t n, uint32_t id) {
    struct k_entry *e = &w->entries[w->plan.n_entries++];
    *e = (struct k_entry){.slot = slot,
            .kind = K_ENTRY_PROMPT,
            .n_rows = n,
            .row_begin = w->plan.n_rows,
            .first_pos = first_pos,
            .ids_at = w->n_ids,
            .id_after = UINT32_MAX,
            .rope_at = UINT32_MAX,
            .top_logprobs = UINT32_MAX};
    for (uint32_t i = 0; i < n; i++)
        w->ids[w->n_ids++] = (id + i) % w->shape.vocab_size;
    w->plan.n_rows += n;
    return e;
}
static inline struct k_entry *step_continue(struct world *w, uint32_t slot) {
    struct k_entry *e = &w->entries[w->plan.n_entries++];
    *e = (struct k_entry){.slot = slot,
            .kind = K_ENTRY_CONTINUE,
            .n_rows = 1,
            .row_begin = w->plan.n_rows++,
            .id_after = UINT32_MAX,
            .rope_at = UINT32_MAX,
            .top_logprobs = UINT32_MAX};
    return e;
}
static inline void step_begin_now(struct world *w) {
    k_batch_upload(w->s, w->b, &w->plan, w->entries, w->ids, w->n_ids, w->rope, w->n_rope);
    k_begin_step(w->s, w->p, w->b);
}
static const struct k_sampling greedy = {.top_p = 1, .repetition_penalty = 1};
static inline void slot_new(struct world *w, uint32_t slot, const struct k_sampling *sampling,
        uint32_t first_page, uint32_t n_pages) {
    uint32_t pages[64];
    for (uint32_t i = 0; i < n_pages; i++)
        pages[i] = first_page + i;
    k_slot_open(w->s, w->p, slot, sampling ? sampling : &greedy);
    k_memory(w->s, w->p, &(struct k_memory_op){K_MEM_ZERO_SLOT, slot, 0}, 1);
    k_slot_grant(w->s, w->p, slot, 0, n_pages, pages);
}

/* --- comparisons --- */

static inline void assert_same_floats(const float *a, const float *b, size_t n, const char *what) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            fail_msg("%s: element %zu of %zu differs: %.9g and %.9g", what, i, n, (double)a[i], (double)b[i]);
}
/* |a - b| <= tol * (1 + |b|) */
static inline void assert_near(const float *a, const double *b, size_t n, double tol, const char *what) {
    for (size_t i = 0; i < n; i++)
        if (!(fabs(a[i] - b[i]) <= tol * (1 + fabs(b[i]))))
            fail_msg("%s: element %zu of %zu: %.9g, expected %.9g", what, i, n, (double)a[i], b[i]);
}
