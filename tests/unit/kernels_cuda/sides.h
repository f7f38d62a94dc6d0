/* sides.h - the CPU's kernels library, which the program is linked with, beside the CUDA one, which it opens: the same
 * names, called through tables. Included by the programs of this folder.
 *
 * SHARDD_CUDA_LIBRARY names the library to open; otherwise it is kernels/cuda over the emulation (tests/cuda_emu),
 * whose threads and blocks each test runs in several orders. */
#pragma once

#include "base/half.h"
#include "tests/unit/kernels/quantised.h"

#include <dlfcn.h>

/* clang-format off */
#define KERNELS(X) \
    X(k_context_create) X(k_context_free) X(k_context_describe) X(k_stream_create) X(k_stream_free) \
    X(k_stream_wait) X(k_stream_error) X(k_event_create) X(k_event_free) X(k_event_record) \
    X(k_event_done) X(k_event_wait) X(k_capture_begin) X(k_capture_end) X(k_graph_launch) \
    X(k_graph_free) X(k_alloc) X(k_free) X(k_upload) X(k_download) X(k_linear_bytes) \
    X(k_linear_pack) X(k_linear_dummy) X(k_linear_free) X(k_linear_rows) X(k_linear_then) X(k_layout_native) \
    X(k_batch_create) X(k_batch_free) X(k_batch_bounds) X(k_batch_upload) \
    X(k_batch_create_masks) X(k_batch_upload_masks) \
    X(k_norm_project) X(k_norm_gate_up) \
    X(k_project_partial) X(k_project) X(k_workspace_bytes) X(k_stream_set_workspace) \
    X(k_vector_load) X(k_taps_load) X(k_keep_begin) X(k_keep_adopt) X(k_keep_end) \
    X(k_pool_create) X(k_pool_free) X(k_pool_slot_unit) X(k_slot_open) X(k_slot_close) X(k_slot_grant) \
    X(k_memory) X(k_begin_step) \
    X(k_end_step) X(k_table_load) X(k_table_free) X(k_embed) X(k_final_norm) X(k_mtp_input) X(k_pool_read_gdn) \
    X(k_comm_region_bytes) X(k_comm_create) X(k_comm_meet) X(k_comm_describe) X(k_comm_free) \
    X(k_draft_begin) X(k_draft_take) X(k_head_sample) X(k_reduce_residual) X(k_gdn_step) X(k_attention_step)
/* clang-format on */
#define POINTER(f) __typeof__(&f) f;
struct library {
    KERNELS(POINTER)
    void (*emu_seed)(uint64_t seed);     /* NULL: not the emulation */
    void (*emu_eager)(uint32_t streams); /* the same */
};

#define SIDE_ROWS    1040u
#define SIDE_COLUMNS 4096u
#define SIDE_OUTPUTS 4096u

struct side {
    struct library k;
    struct k_context *c;
    struct k_stream *s;
    struct k_batch *b;
    void *workspace;
    void *d_x, *d_norm, *d_y;
};

static inline struct library linked_library(void) {
#define LINKED(f) .f = f,
    return (struct library){KERNELS(LINKED)};
}
static inline struct library opened_library(void) {
    const char *path = getenv("SHARDD_CUDA_LIBRARY");
    struct library l = {0};
    void *so = dlopen(path ? path : CUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!so)
        fail_msg("%s", dlerror());
#define OPENED(f)                                                                                            \
    *(void **)&l.f = dlsym(so, #f);                                                                          \
    if (!l.f)                                                                                                \
        fail_msg("%s", dlerror());
    KERNELS(OPENED)
    *(void **)&l.emu_seed = dlsym(so, "emu_seed");
    *(void **)&l.emu_eager = dlsym(so, "emu_eager");
    return l;
}

static inline void side_open_with(
        struct side *d, struct library k, enum k_activations activations, bool fast) {
    const struct k_context_options o = {.threads = 2, .activations = activations, .fast = fast};
    const struct k_shape shape = {.tp = 1,
            .hidden_size = SIDE_COLUMNS / 2,
            .intermediate_size = SIDE_OUTPUTS / 2,
            .vocab_size = 64,
            .vocab_rows = 64,
            .q_heads = 1,
            .kv_heads = 1,
            .head_dim = 64,
            .gdn_k_heads = 1,
            .gdn_v_heads = 1,
            .gdn_k_dim = 64,
            .gdn_v_dim = 64,
            .conv_kernel = 4};
    *d = (struct side){.k = k};
    OK(k.k_context_create(&o, &d->c, e));
    OK(k.k_stream_create(d->c, &d->s, e));
    OK(k.k_batch_create(d->c, 4, SIDE_ROWS, &d->b, e));
    const size_t bytes = k.k_workspace_bytes(&shape, SIDE_ROWS, 1);
    d->workspace = k.k_alloc(d->c, bytes);
    k.k_stream_set_workspace(d->s, d->workspace, bytes);
    d->d_x = k.k_alloc(d->c, (size_t)SIDE_ROWS * SIDE_COLUMNS * sizeof(float));
    d->d_norm = k.k_alloc(d->c, SIDE_COLUMNS * sizeof(float));
    d->d_y = k.k_alloc(d->c, (size_t)SIDE_ROWS * SIDE_OUTPUTS * sizeof(float));
    assert_true(d->workspace && d->d_x && d->d_norm && d->d_y);
}
static inline void side_open(struct side *d, struct library k) {
    side_open_with(d, k, K_ACTIVATIONS_INT8, /* fast= */ false);
}
static inline void side_close(struct side *d) {
    void *const blocks[] = {d->workspace, d->d_x, d->d_norm, d->d_y};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        d->k.k_free(d->c, blocks[i]);
    d->k.k_batch_free(d->b);
    d->k.k_stream_free(d->s);
    d->k.k_context_free(d->c);
}

/* A step of n rows; bound: what operations are told (0 = all that the batch holds). */
static inline void side_rows(struct side *d, uint32_t n, uint32_t bound) {
    static const uint32_t ids[SIDE_ROWS];
    const struct k_bounds bounds = {.rows = bound, .entries = 1, .context = UINT32_MAX};
    const struct k_plan plan = {.n_entries = 1, .n_rows = n};
    const struct k_entry entry = {.n_rows = n, .rope_at = UINT32_MAX, .id_after = UINT32_MAX};
    d->k.k_batch_bounds(d->b, bound ? &bounds : NULL);
    d->k.k_batch_upload(d->s, d->b, &plan, &entry, ids, n, NULL, 0);
    OK(d->k.k_stream_wait(d->s, 0, e));
}

enum operation { PROJECT, PROJECT_PARTIAL, NORM_PROJECT, NORM_GATE_UP, OPERATIONS };

/* y[rows][outputs] and one row more, which nobody may touch: all 0xff before. */
static inline void side_product(struct side *d, enum operation op, const struct k_linear *w, uint32_t rows,
        uint32_t columns, const float *x, const float *norm, float *y) {
    const uint32_t outputs = d->k.k_linear_rows(w) / (op == NORM_GATE_UP ? 2 : 1);
    const size_t bytes = (size_t)(rows + 1) * outputs * sizeof *y;
    assert_true(rows < SIDE_ROWS && columns <= SIDE_COLUMNS && outputs <= SIDE_OUTPUTS);
    memset(y, 0xff, bytes);
    d->k.k_upload(d->s, d->d_y, y, bytes);
    d->k.k_upload(d->s, d->d_x, x, (size_t)rows * columns * sizeof *x);
    d->k.k_upload(d->s, d->d_norm, norm, columns * sizeof *norm);
    if (op == PROJECT)
        d->k.k_project(d->s, d->b, d->d_x, w, d->d_y);
    else if (op == PROJECT_PARTIAL)
        d->k.k_project_partial(d->s, d->b, w, d->d_x, d->d_y);
    else if (op == NORM_PROJECT)
        d->k.k_norm_project(d->s, d->b, d->d_x, d->d_norm, 1e-6f, w, d->d_y);
    else
        d->k.k_norm_gate_up(d->s, d->b, d->d_x, d->d_norm, 1e-6f, w, d->d_y);
    OK(d->k.k_stream_wait(d->s, 0, e));
    d->k.k_download(d->s, y, d->d_y, bytes);
    OK(d->k.k_stream_wait(d->s, 0, e));
}

/* To the bit; where one is no number, so is the other. Returns how many were compared. */
static inline size_t assert_equal_floats(const float *got, const float *want, size_t n, const char *what) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0 && !(isnan(got[i]) && isnan(want[i])))
            fail_msg("%s: element %zu of %zu: %.9g, expected %.9g", what, i, n, (double)got[i],
                    (double)want[i]);
    return n;
}
