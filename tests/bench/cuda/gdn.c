/* Time of the Gated DeltaNet mixer of one layer of Qwen3.5-27B on a GPU, against a plain copy on the same card.
 *
 * Usage: bench-cuda-gdn [device [launches [fp16]]]; fp16: what S0 is kept as. A line per step: microseconds of
 * k_gdn_step(); of few rows an entry, the bytes that it has to move (S0, the ring's earlier rows and the new ones, the
 * window, in and out) per second as a part of what a copy moves, read and written both counted; of many, rows per
 * second and 10^12 fused operations on the state per second. Layers are nodes of a graph, back to back, with states of
 * their own beyond the L2 cache. "fold": a step whose row begins a block, so that S0 is written as well; one of 16 is.
 * Median of ROUNDS. */
#include "kernels/kernels.h"
#include "tests/bench/cuda/timing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYERS_MAX 48u
#define STATE      (1200ull << 20) /* bytes of states of one graph, at most */
#define ROWS_MAX   2048u
#define SLOTS_MAX  64u

static struct k_shape shape = {.tp = 1,
        .hidden_size = 16,
        .vocab_size = 100,
        .vocab_rows = 100,
        .gdn_k_heads = 16,
        .gdn_v_heads = 48,
        .gdn_k_dim = 128,
        .gdn_v_dim = 128,
        .conv_kernel = 4,
        .rms_eps = 1e-6f,
        .rope_theta = 1e7};
enum {
    CHANNELS = 2 * 16 * 128 + 48 * 128,
    OUT = 48 * 128,
    WIDTH = CHANNELS + OUT + 2 * 48,
    HEAD = 128 * 128
};

static const struct step {
    const char *name;
    uint32_t entries, rows, pos; /* rows of an entry, position of its first */
} steps[] = {{"B  1", 1, 1, 27}, {"B  1, fold", 1, 1, 32}, {"B  1, 4 rows", 1, 4, 27}, {"B  8", 8, 1, 27},
        {"B  8, 4 rows", 8, 4, 27}, {"B 16", 16, 1, 27}, {"B 64", 64, 1, 27}, {"B 64, fold", 64, 1, 32},
        {"B 64, 4 rows", 64, 4, 27}, {"prefill 64", 1, 64, 0}, {"prefill 128", 1, 128, 0},
        {"prefill 512", 1, 512, 0}, {"prefill 2048", 1, 2048, 0}, {"prefill 4 x 512", 4, 512, 0}};

struct bench {
    struct k_context *c;
    struct k_stream *s;
    struct k_gdn_weights w;
    float *d_in, *d_out;
    void *workspace;
    size_t workspace_bytes;
    uint32_t launches;
    enum k_dtype state_dtype;
    double copy; /* bytes per second */
};

static float *filled(struct bench *b, size_t n, float scale) {
    float *x = malloc(n * sizeof *x), *d_x = k_alloc(b->c, n * sizeof *x);
    struct error e;
    if (!x || !d_x)
        exit(1);
    for (size_t i = 0; i < n; i++)
        x[i] = ((float)(i * 7919 % 1009) / 500 - 1) * scale;
    k_upload(b->s, d_x, x, n * sizeof *x);
    must(k_stream_wait(b->s, 0, &e), &e);
    free(x);
    return d_x;
}

/* A pool whose slots are at the step's position, and the step begun in a batch. */
static void open_step(struct bench *b, const struct step *t, struct k_pool **pool, struct k_batch **batch) {
    const struct k_pool_options o = {.slots = t->entries,
            .pages = 1,
            .pages_per_slot = 1,
            .kv_dtype = K_BF16,
            .state_dtype = b->state_dtype};
    const struct k_sampling greedy = {.top_p = 1, .repetition_penalty = 1};
    const struct k_plan plan = {.n_entries = t->entries, .n_rows = t->entries * t->rows};
    static const uint32_t ids[ROWS_MAX];
    struct k_entry entries[SLOTS_MAX];
    struct error e;
    must(k_pool_create(b->c, &shape, &o, pool, &e), &e);
    must(k_batch_create(b->c, t->entries, plan.n_rows, batch, &e), &e);
    for (uint32_t i = 0; i < t->entries; i++) {
        k_slot_open(b->s, *pool, i + 1, &greedy);
        entries[i] = (struct k_entry){.slot = i + 1,
                .n_rows = t->rows,
                .row_begin = i * t->rows,
                .ids_at = i * t->rows,
                .first_pos = t->pos,
                .id_after = UINT32_MAX,
                .rope_at = UINT32_MAX,
                .top_logprobs = UINT32_MAX};
    }
    k_batch_upload(b->s, *batch, &plan, entries, ids, plan.n_rows, NULL, 0);
    k_begin_step(b->s, *pool, *batch);
    must(k_stream_wait(b->s, 0, &e), &e);
}

static double seconds_of(struct bench *b, const struct step *t) {
    const uint64_t state = (uint64_t)t->entries * 48 * HEAD * k_dtype_bytes(b->state_dtype),
                   layers = STATE / state;
    struct k_graph *g = NULL;
    struct k_pool *p = NULL;
    struct k_batch *batch = NULL;
    struct error e;
    double seconds[ROUNDS];
    shape.n_gdn_layers = layers < 1 ? 1 : layers < LAYERS_MAX ? (uint32_t)layers : LAYERS_MAX;
    open_step(b, t, &p, &batch);
    must(k_capture_begin(b->s, &e), &e);
    for (uint32_t i = 0; i < shape.n_gdn_layers; i++)
        k_gdn_step(b->s, p, batch, i, &b->w, b->d_in, b->d_out);
    must(k_capture_end(b->s, &g, &e), &e);
    for (int i = -1; i < ROUNDS; i++) {
        const uint64_t begin = clock_ns();
        for (uint32_t k = 0; k < b->launches; k++)
            k_graph_launch(b->s, g);
        must(k_stream_wait(b->s, 0, &e), &e);
        if (i >= 0)
            seconds[i] = (double)(clock_ns() - begin) * 1e-9 / b->launches / shape.n_gdn_layers;
    }
    k_graph_free(g);
    k_batch_free(batch);
    k_pool_free(p);
    return median(seconds);
}

static double bytes_of(const struct bench *b, const struct step *t) {
    const double first = t->pos % 16, row = 16 * 128 + 48 * 128, rows = t->rows;
    const bool fold = t->pos % 16 + t->rows > 16 || (t->pos > 0 && t->pos % 16 == 0);
    const double ring = (fold && t->pos % 16 == 0 ? 16 : first) * row + rows * row;
    return t->entries * (48.0 * HEAD * (fold ? 2 : 1) * (double)k_dtype_bytes(b->state_dtype) +
                                4.0 * (ring + 6.0 * CHANNELS + rows * (WIDTH + OUT)));
}

int main(int argc, char **argv) {
    const struct k_context_options o = {.device = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0};
    struct bench b = {.launches = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 20,
            .state_dtype = argc > 3 && strcmp(argv[3], "fp16") == 0 ? K_F16 : K_F32};
    struct error e;
    must(k_context_create(&o, &b.c, &e), &e);
    must(k_stream_create(b.c, &b.s, &e), &e);
    b.workspace_bytes = k_workspace_bytes(&shape, ROWS_MAX, SLOTS_MAX);
    b.workspace = k_alloc(b.c, b.workspace_bytes);
    if (!b.workspace)
        return 1;
    k_stream_set_workspace(b.s, b.workspace, b.workspace_bytes);
    b.w = (struct k_gdn_weights){
            filled(&b, 4 * CHANNELS, 0.5f), filled(&b, 48, 1), filled(&b, 48, 1), filled(&b, 128, 1)};
    b.d_in = filled(&b, (size_t)ROWS_MAX * WIDTH, 1);
    b.d_out = filled(&b, (size_t)ROWS_MAX * OUT, 1);
    b.copy = copy_rate();
    printf("%s; copy %.0f GB/s\n", k_context_describe(b.c), b.copy * 1e-9);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        const struct step *t = &steps[i];
        const double s = seconds_of(&b, t), rows = (double)t->entries * t->rows;
        printf("%-16s %8.1f us  ", t->name, s * 1e6);
        if (t->rows < 64)
            printf("%7.1f MB %5.0f %% of copy\n", bytes_of(&b, t) * 1e-6, 100 * bytes_of(&b, t) / s / b.copy);
        else
            printf("%7.0f rows per ms, %.1f T fma/s\n", rows / s * 1e-3, 3.0 * 48 * HEAD * rows / s * 1e-12);
        fflush(stdout);
    }
    return 0;
}
