/* Time of the attention mixer of Qwen3.5-27B on a GPU (24 query and 4 kv heads of 256, pages of bf16 or int8), against
 * a plain copy on the same card.
 *
 * Usage: bench-cuda-attention [device [launches [bf16|int8]]]. A line per step: microseconds of one layer, and of
 * decoding the bytes of K and V per second as a part of what a copy moves, read and written both counted; of a prompt
 * 10^12 operations per second, those of exact fp32 products (tensor cores do twice as many: q and p are two terms
 * each). A graph has the layers one after another, so that the L2 cache does not help. Median of ROUNDS. */
#include "kernels/kernels.h"
#include "tests/bench/cuda/timing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYERS   16u
#define SLOTS    64u
#define PAGES    (SLOTS * 8192u / 64) /* without the dummy */
#define ROWS_MAX 8192u
#define FILLED   2048u /* positions that are computed; other pages are copies of theirs */

static const struct k_shape shape = {.tp = 1,
        .hidden_size = 5120,
        .vocab_size = 64,
        .vocab_rows = 64,
        .q_heads = 24,
        .kv_heads = 4,
        .head_dim = 256,
        .rotary_dim = 64,
        .n_attention_layers = LAYERS,
        .rms_eps = 1e-6f,
        .rope_theta = 1e7};
#define WIDTH (2 * (24 + 4) * 256u)
#define OUT   (24 * 256u)

static const struct one_step {
    uint32_t sequences, context, rows; /* rows of each, the last ones of its context */
} steps[] = {{1, 1024, 1}, {1, 8192, 1}, {1, 32768, 1}, {8, 1024, 1}, {8, 8192, 1}, {64, 1024, 1},
        {64, 8192, 1}, {1, 32768, 4}, {64, 8192, 4}, {1, 32768, 64}, {1, 512, 512}, {1, 2048, 2048},
        {1, 8192, 2048}, {1, 8192, 8192}, {1, 32768, 2048}};

struct bench {
    struct k_context *c;
    struct k_stream *s;
    struct k_pool *p;
    struct k_batch *b;
    struct k_attention_weights w;
    float *d_in, *d_out;
    double position_bytes; /* of K and V of a position in a layer */
    uint32_t launches;
    double copy; /* bytes per second */
};

static void wait_for(struct bench *b) {
    struct error e;
    must(k_stream_wait(b->s, 0, &e), &e);
}

/* The plan of a step in the batch, its sequences in slots 1.. with the pages one after another. */
static void plan(struct bench *b, const struct one_step *step) {
    static struct k_entry entries[SLOTS];
    static uint32_t ids[ROWS_MAX], pages[PAGES];
    const struct k_sampling greedy = {.top_p = 1, .repetition_penalty = 1};
    const struct k_plan plan = {.n_entries = step->sequences, .n_rows = step->sequences * step->rows};
    const struct k_bounds bounds = {plan.n_rows, plan.n_entries, step->context};
    const uint32_t n_pages = (step->context + 63) / 64;
    for (uint32_t i = 0; i < step->sequences; i++) {
        entries[i] = (struct k_entry){.slot = i + 1,
                .n_rows = step->rows,
                .row_begin = i * step->rows,
                .first_pos = step->context - step->rows,
                .ids_at = i * step->rows,
                .id_after = UINT32_MAX,
                .rope_at = UINT32_MAX,
                .top_logprobs = UINT32_MAX};
        for (uint32_t k = 0; k < n_pages; k++)
            pages[k] =
                    1 + (i * n_pages + k) * 37 % PAGES; /* 37 does not divide it: each page once, scattered */
        k_slot_open(b->s, b->p, i + 1, &greedy);
        k_slot_grant(b->s, b->p, i + 1, 0, n_pages, pages);
        wait_for(b);
    }
    k_batch_bounds(b->b, &bounds);
    k_batch_upload(b->s, b->b, &plan, entries, ids, plan.n_rows, NULL, 0);
    k_begin_step(b->s, b->p, b->b);
    wait_for(b);
}
static void queue(struct bench *b) {
    for (uint32_t l = 0; l < LAYERS; l++)
        k_attention_step(b->s, b->p, b->b, l, 0, &b->w, b->d_in, b->d_out);
}

/* Numbers in every page of every layer. */
static void fill(struct bench *b) {
    static struct k_memory_op ops[PAGES];
    const struct one_step step = {1, FILLED, FILLED};
    plan(b, &step);
    queue(b);
    for (uint32_t k = FILLED / 64; k < PAGES; k++)
        ops[k] =
                (struct k_memory_op){K_MEM_COPY_PAGE, 1 + k % (FILLED / 64) * 37 % PAGES, 1 + k * 37 % PAGES};
    k_memory(b->s, b->p, ops + FILLED / 64, PAGES - FILLED / 64);
    wait_for(b);
}

/* Seconds of one layer. */
static double seconds_of(struct bench *b) {
    struct k_graph *g = NULL;
    struct error e;
    double seconds[ROUNDS];
    must(k_capture_begin(b->s, &e), &e);
    queue(b);
    must(k_capture_end(b->s, &g, &e), &e);
    for (int i = -1; i < ROUNDS; i++) {
        const uint64_t t = clock_ns();
        for (uint32_t k = 0; k < b->launches; k++)
            k_graph_launch(b->s, g);
        wait_for(b);
        if (i >= 0)
            seconds[i] = (double)(clock_ns() - t) * 1e-9 / b->launches / LAYERS;
    }
    k_graph_free(g);
    return median(seconds);
}
static void bench_step(struct bench *b, const struct one_step *step) {
    plan(b, step);
    const double t = seconds_of(b), pairs = step->rows * (step->context - (step->rows - 1) / 2.0),
                 bytes = step->sequences * step->context * b->position_bytes,
                 work = step->sequences * pairs * 4.0 * shape.q_heads * shape.head_dim;
    printf("%2u x %5u positions, %4u rows: %9.1f us  %6.0f MB  %5.0f GB/s (%2.0f %%)  %6.1f T\n",
            step->sequences, step->context, step->rows, t * 1e6, bytes * 1e-6, bytes / t * 1e-9,
            bytes / t / b->copy * 100, work / t * 1e-12);
    fflush(stdout);
}

int main(int argc, char **argv) {
    const struct k_context_options o = {.device = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0};
    const bool int8 = argc > 3 && strcmp(argv[3], "int8") == 0;
    const struct k_pool_options pool = {
            .slots = SLOTS, .pages = PAGES, .pages_per_slot = 32768 / 64, .kv_dtype = int8 ? K_INT8 : K_BF16};
    struct k_pool_cost cost;
    struct bench b = {.launches = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 10};
    const size_t floats = (size_t)ROWS_MAX * WIDTH, bytes = k_workspace_bytes(&shape, ROWS_MAX, 1);
    struct error e;
    must(k_context_create(&o, &b.c, &e), &e);
    must(k_stream_create(b.c, &b.s, &e), &e);
    must(k_batch_create(b.c, SLOTS, ROWS_MAX, &b.b, &e), &e);
    k_pool_cost(&shape, &pool, &cost);
    b.position_bytes = (double)cost.page_bytes / 64 / LAYERS;
    b.copy = copy_rate();
    must(k_pool_create(b.c, &shape, &pool, &b.p, &e), &e);
    void *workspace = k_alloc(b.c, bytes);
    float *x = malloc(floats * sizeof *x), *d_norm = k_alloc(b.c, shape.head_dim * sizeof *x);
    b.d_in = k_alloc(b.c, floats * sizeof *x);
    b.d_out = k_alloc(b.c, (size_t)ROWS_MAX * OUT * sizeof *x);
    if (!workspace || !x || !d_norm || !b.d_in || !b.d_out)
        return 1;
    k_stream_set_workspace(b.s, workspace, bytes);
    for (size_t i = 0; i < floats; i++)
        x[i] = (float)((i * 2654435761u >> 8) % 2003) / 1000 - 1;
    k_upload(b.s, b.d_in, x, floats * sizeof *x);
    k_upload(b.s, d_norm, x, shape.head_dim * sizeof *x);
    b.w = (struct k_attention_weights){d_norm, d_norm};
    fill(&b);
    printf("%s; copy %.0f GB/s; one layer, pages of %s\n", k_context_describe(b.c), b.copy * 1e-9,
            int8 ? "int8" : "bf16");
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        bench_step(&b, &steps[i]);
    free(x);
    return 0;
}
