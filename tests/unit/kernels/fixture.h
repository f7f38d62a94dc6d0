/* fixture.h - a small world for the tests of the kernels: one rank with its context, stream, pool, batch and
 * workspace, seeded numbers, and steps made of (slot, rows) entries. Included by every program of this folder, which
 * runs on every kernels library: it knows kernels.h only, and touches device memory through dev(), room(), host() and
 * fetch(), all of which the world frees when it is closed.
 *
 * SHARDD_TEST_DEVICE chooses the device. A library without instruction sets runs what is for the first of them. */
#pragma once

#include "kernels/kernels.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const all_isas[] = {"plain", "avx2", "avx512"};
#define N_ISAS 3
/* Those whose products differ: with and without VNNI. */
static const char *const all_kernels[] = {"plain", "avx2", "avx512", "avx512-base"};
#define N_KERNELS 4

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

/* NULL when this machine or library lacks the instruction set. */
static inline struct k_context *context_of(struct k_context_options o) {
    const char *device = getenv("SHARDD_TEST_DEVICE");
    struct k_context *c = NULL;
    struct error e = {0};
    o.device = device ? (uint32_t)strtoul(device, NULL, 10) : 0;
    int r = k_context_create(&o, &c, &e);
    if (r == -ENOTSUP)
        return NULL;
    if (r < 0)
        fail_msg("context: %s", e.text);
    if (o.isa && strcmp(o.isa, all_isas[0]) != 0 && strncmp(k_context_describe(c), "cpu ", 4) != 0)
        return k_context_free(c);
    return c;
}
static inline struct k_context *context_as(
        const char *isa, uint32_t threads, enum k_activations activations, bool fast) {
    return context_of((struct k_context_options){
            .threads = threads, .isa = isa, .activations = activations, .fast = fast});
}
static inline struct k_context *context_with(const char *isa, uint32_t threads, bool float_activations) {
    return context_as(
            isa, threads, float_activations ? K_ACTIVATIONS_FLOAT : K_ACTIVATIONS_INT8, /* fast= */ false);
}
static inline struct k_context *context(const char *isa, uint32_t threads) {
    return context_with(isa, threads, false);
}
#define OK(call)                                                                                             \
    do {                                                                                                     \
        struct error e_ = {0}, *e = &e_;                                                                     \
        if ((call) < 0)                                                                                      \
            fail_msg("%s:%d: %s: %s", __FILE__, __LINE__, #call, e->text);                                   \
    } while (0)

/* --- a rank --- */

struct taken { /* device memory, or the host's copy of some */
    void *p;
    bool device;
};
struct world {
    struct taken *taken;
    uint32_t n_taken, taken_max;
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

/* c: a context that the world takes over, or NULL. */
static inline bool world_open_in(struct world *w, const struct k_shape *shape, const struct k_pool_options *o,
        struct k_context *c, void *region) {
    const uint32_t rows_max = 1024;
    memset(w, 0, sizeof *w);
    w->shape = *shape;
    w->c = c;
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
static inline bool world_open_with(struct world *w, const struct k_shape *shape,
        const struct k_pool_options *o, const char *isa, uint32_t threads, bool float_activations,
        void *region) {
    return world_open_in(w, shape, o, context_with(isa, threads, float_activations), region);
}
static inline bool world_open(struct world *w, const struct k_shape *shape, const struct k_pool_options *o,
        const char *isa, uint32_t threads, void *region) {
    return world_open_with(w, shape, o, isa, threads, false, region);
}
static inline void world_close(struct world *w) {
    if (!w->c)
        return;
    k_stream_wait(w->s, 0, NULL);
    for (uint32_t i = 0; i < w->n_taken; i++)
        if (w->taken[i].device)
            k_free(w->c, w->taken[i].p);
        else
            k_host_free(w->c, w->taken[i].p);
    free(w->taken);
    k_free(w->c, w->workspace);
    k_comm_free(w->m);
    k_batch_free(w->b);
    k_pool_free(w->p);
    k_stream_free(w->s);
    k_context_free(w->c);
}

/* --- device memory --- */

static inline void *keep(struct world *w, void *p, bool device) {
    assert_non_null(p);
    if (w->n_taken == w->taken_max) {
        w->taken_max = w->taken_max * 2 + 64;
        w->taken = realloc(w->taken, w->taken_max * sizeof *w->taken);
        assert_non_null(w->taken);
    }
    w->taken[w->n_taken++] = (struct taken){p, device};
    return p;
}
static inline void *dev_bytes(struct world *w, const void *from, size_t bytes) {
    void *to = keep(w, k_alloc(w->c, bytes ? bytes : 1), true);
    k_upload(w->s, to, from, bytes);
    k_stream_wait(w->s, 0, NULL); /* a fault of what ran before is found by whoever looks for it */
    return to;
}
/* n floats of the host, on the device. */
static inline float *dev(struct world *w, const float *from, size_t n) {
    return dev_bytes(w, from, n * sizeof *from);
}
/* n floats on the device that are no numbers, for an operation to write. */
static inline float *room(struct world *w, size_t n) {
    float *none = malloc(n * sizeof *none + 1), *to;
    memset(none, 0xff, n * sizeof *none);
    to = dev(w, none, n);
    free(none);
    return to;
}
/* What the device has, once all that was queued has run; a fault fails the test. */
static inline void fetch(struct world *w, void *to, const void *from, size_t bytes) {
    k_download(w->s, to, from, bytes);
    OK(k_stream_wait(w->s, 0, e));
}
static inline float *host(struct world *w, const float *from, size_t n) {
    float *to = keep(w, k_host_alloc(w->c, n * sizeof *to + 1), false);
    fetch(w, to, from, n * sizeof *to);
    return to;
}

/* --- products, from host memory to host memory, for all rows of the step --- */

static inline void project(
        struct world *w, const struct k_linear *l, uint32_t columns, const float *x, float *y) {
    const size_t n = (size_t)w->plan.n_rows * k_linear_rows(l);
    float *to = room(w, n);
    k_project(w->s, w->b, dev(w, x, (size_t)w->plan.n_rows * columns), l, to);
    fetch(w, y, to, n * sizeof *y);
}
static inline void project_partial(
        struct world *w, const struct k_linear *l, uint32_t columns, const float *x, float *y) {
    const size_t n = (size_t)w->plan.n_rows * k_linear_rows(l);
    float *to = room(w, n);
    k_project_partial(w->s, w->b, l, dev(w, x, (size_t)w->plan.n_rows * columns), to);
    fetch(w, y, to, n * sizeof *y);
}
static inline void norm_project(struct world *w, const struct k_linear *l, uint32_t columns, const float *x,
        const float *norm, float *y) {
    const size_t n = (size_t)w->plan.n_rows * k_linear_rows(l);
    float *to = room(w, n);
    k_norm_project(
            w->s, w->b, dev(w, x, (size_t)w->plan.n_rows * columns), dev(w, norm, columns), 1e-6f, l, to);
    fetch(w, y, to, n * sizeof *y);
}
static inline void norm_gate_up(struct world *w, const struct k_linear *l, uint32_t columns, const float *x,
        const float *norm, float *y) {
    const size_t n = (size_t)w->plan.n_rows * k_linear_rows(l) / 2;
    float *to = room(w, n);
    k_norm_gate_up(
            w->s, w->b, dev(w, x, (size_t)w->plan.n_rows * columns), dev(w, norm, columns), 1e-6f, l, to);
    fetch(w, y, to, n * sizeof *y);
}

/* --- steps --- */

static inline void step_new(struct world *w) {
    k_stream_wait(w->s, 0, NULL); /* the plan before is read until the stream has passed its upload */
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
static inline bool on_cpu(const struct world *w) {
    return strncmp(k_context_describe(w->c), "cpu ", 4) == 0;
}
/* What an output is in real arithmetic, and its sum of |w x|, which the bounds of kernels.h are told in. */
struct sum {
    double exact, size;
};
/* A product against the rule: its bits, or, where a GPU adds up float activations in an order of its own, within what
 * kernels.h ("Numbers") allows of the exact sum and of the rule. */
static inline void assert_product(const struct world *w, bool float_activations, uint32_t leaf_columns,
        const float *a, const float *b, const struct sum *sums, size_t n, const char *what) {
    if (!float_activations || on_cpu(w)) {
        assert_same_floats(a, b, n, what);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const double size = sums[i].size;
        if (!(fabs(a[i] - sums[i].exact) <= 0x1p-20 * size &&
                    fabs((double)a[i] - b[i]) <= (16 + leaf_columns) * 0x1p-24 * size))
            fail_msg("%s: element %zu of %zu: %.9g, by the rule %.9g, exact %.9g; sum of |w x| %.4g", what, i,
                    n, (double)a[i], (double)b[i], sums[i].exact, size);
    }
}
/* |a - b| <= tol * (1 + |b|) */
static inline void assert_near(const float *a, const double *b, size_t n, double tol, const char *what) {
    for (size_t i = 0; i < n; i++)
        if (!(fabs(a[i] - b[i]) <= tol * (1 + fabs(b[i]))))
            fail_msg("%s: element %zu of %zu: %.9g, expected %.9g", what, i, n, (double)a[i], b[i]);
}
