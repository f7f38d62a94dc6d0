/* Time of sampling on a GPU, beside the product that makes the logits.
 *
 * Usage: bench-cuda-sample [device [launches]]. A line per way to sample: microseconds of k_head_sample() less those of
 * its product alone, for several numbers of samples. The vocabulary is Qwen3.5's, the head has few columns, so that
 * little is subtracted; its logits are about normal, the highest near 4.5 times their deviation of 2.5. Operations are
 * nodes of a graph, back to back. Median of ROUNDS. */
#include "kernels/kernels.h"
#include "tests/bench/cuda/timing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOGETHER    16u /* operations of one graph */
#define VOCAB       248320u
#define COLUMNS     128u
#define SAMPLES_MAX 64u
#define NO_LOGPROBS UINT32_MAX

static const uint32_t counts[] = {1, 4, 16, SAMPLES_MAX};
#define COUNTS (sizeof counts / sizeof *counts)

static const struct way {
    const char *name;
    struct k_sampling sampling;
    uint32_t top_logprobs;
} ways[] = {
        {"greedy                      ", {.top_p = 1, .repetition_penalty = 1}, NO_LOGPROBS},
        {"greedy, 0 top logprobs      ", {.top_p = 1, .repetition_penalty = 1}, 0},
        {"greedy, 20 top logprobs     ", {.top_p = 1, .repetition_penalty = 1}, 20},
        {"greedy, repetition penalty  ", {.top_p = 1, .repetition_penalty = 1.1f}, NO_LOGPROBS},
        {"temperature 1               ", {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
                NO_LOGPROBS},
        {"min p 0.05                  ",
                {.temperature = 1, .top_p = 1, .min_p = 0.05f, .repetition_penalty = 1}, NO_LOGPROBS},
        {"top p 0.9                   ", {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1},
                NO_LOGPROBS},
        {"top k 50, top p 0.9         ",
                {.temperature = 1, .top_k = 50, .top_p = 0.9f, .repetition_penalty = 1}, NO_LOGPROBS},
        {"top k 20, p 0.95, penalties ",
                {.temperature = 0.6f, .top_k = 20, .top_p = 0.95f, .repetition_penalty = 1.1f}, NO_LOGPROBS},
        {"top k 50, p 0.9, 20 logprobs",
                {.temperature = 1, .top_k = 50, .top_p = 0.9f, .repetition_penalty = 1}, 20},
        /* too many ids stay for a list: one block looks at the whole vocabulary */
        {"top p 0.95 at temperature 4 ", {.temperature = 4, .top_p = 0.95f, .repetition_penalty = 1},
                NO_LOGPROBS},
        {"top k 20000                 ",
                {.temperature = 1, .top_k = 20000, .top_p = 1, .repetition_penalty = 1}, NO_LOGPROBS},
};

struct bench {
    struct k_context *c;
    struct k_stream *s;
    struct k_pool *p;
    struct k_comm *m;
    struct k_batch *b;
    struct k_linear *head;
    float *d_hidden, *d_logits;
    struct k_result *d_results;
    struct k_outcome *d_outcomes;
    uint32_t launches;
};

static void samples_are(struct bench *b, const struct way *way, uint32_t n) {
    static uint32_t ids[SAMPLES_MAX];
    static struct k_entry entries[SAMPLES_MAX];
    const struct k_plan plan = {.n_entries = n, .n_rows = n, .n_samples = n, .n_outcomes = n};
    const struct k_bounds bounds = {.rows = n, .entries = n, .context = UINT32_MAX};
    struct error e;
    for (uint32_t i = 0; i < n; i++) {
        struct k_sampling p = way->sampling;
        p.seed = i;
        k_slot_open(b->s, b->p, 1 + i, &p);
        ids[i] = i;
        entries[i] = (struct k_entry){.slot = 1 + i,
                .flags = K_ENTRY_SAMPLE,
                .n_rows = 1,
                .row_begin = i,
                .ids_at = i,
                .id_after = UINT32_MAX,
                .rope_at = UINT32_MAX,
                .top_logprobs = way->top_logprobs,
                .drafts_at = UINT32_MAX,
                .sample_at = i,
                .outcome_at = i};
    }
    k_batch_bounds(b->b, &bounds);
    k_batch_upload(b->s, b->b, &plan, entries, ids, n, NULL, 0);
    k_begin_step(b->s, b->p, b->b);
    must(k_stream_wait(b->s, 0, &e), &e);
}

/* Seconds of one operation: the head with its samples, or its product alone. */
static double seconds_of(struct bench *b, bool samples) {
    struct k_graph *g = NULL;
    struct error e;
    double seconds[ROUNDS];
    must(k_capture_begin(b->s, &e), &e);
    for (uint32_t i = 0; i < TOGETHER; i++) {
        if (samples)
            k_head_sample(b->s, b->p, b->m, b->b, b->head, b->d_hidden, b->d_results, b->d_outcomes, NULL, 0);
        else
            k_project(b->s, b->b, b->d_hidden, b->head, b->d_logits);
    }
    must(k_capture_end(b->s, &g, &e), &e);
    for (int i = -1; i < ROUNDS; i++) {
        const uint64_t t = clock_ns();
        for (uint32_t k = 0; k < b->launches; k++)
            k_graph_launch(b->s, g);
        must(k_stream_wait(b->s, 0, &e), &e);
        if (i >= 0)
            seconds[i] = (double)(clock_ns() - t) * 1e-9 / b->launches / TOGETHER;
    }
    k_graph_free(g);
    qsort(seconds, ROUNDS, sizeof *seconds, by_size);
    return seconds[ROUNDS / 2];
}

static void head_make(struct bench *b) {
    const struct quant_matrix q = {.format = QUANT_INT8,
            .scale = QUANT_SCALE_BF16,
            .group = COLUMNS,
            .rows = VOCAB,
            .columns = COLUMNS,
            .label = "int8"};
    const struct k_matrix_view v = {.rows = VOCAB, .quant = &q};
    const struct k_linear_spec spec = {
            .pieces = &v, .n_pieces = 1, .columns = COLUMNS, .leaves = 8, .name = "head"};
    struct error e;
    must(k_linear_dummy(b->c, &spec, 1, 0.66f, &b->head, &e), &e);
}
static void hidden_make(struct bench *b) {
    static float x[SAMPLES_MAX * COLUMNS];
    struct error e;
    for (uint32_t i = 0; i < SAMPLES_MAX * COLUMNS; i++)
        x[i] = (float)(i * 7919 % 1009) / 504.5f - 1;
    k_upload(b->s, b->d_hidden, x, sizeof x);
    must(k_stream_wait(b->s, 0, &e), &e);
}

int main(int argc, char **argv) {
    const struct k_context_options o = {.device = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0};
    const struct k_shape shape = {
            .tp = 1, .hidden_size = COLUMNS, .vocab_size = VOCAB, .vocab_rows = VOCAB, .rope_theta = 1e4};
    const struct k_pool_options pool = {.slots = SAMPLES_MAX + 1, .pages = 1, .pages_per_slot = 1};
    const size_t workspace_bytes = k_workspace_bytes(&shape, SAMPLES_MAX, SAMPLES_MAX);
    struct bench b = {.launches = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 20};
    struct error e;
    must(k_context_create(&o, &b.c, &e), &e);
    must(k_stream_create(b.c, &b.s, &e), &e);
    must(k_pool_create(b.c, &shape, &pool, &b.p, &e), &e);
    must(k_comm_create(b.c, &shape, SAMPLES_MAX, NULL, 0, &b.m, &e), &e);
    must(k_batch_create(b.c, SAMPLES_MAX, SAMPLES_MAX, &b.b, &e), &e);
    head_make(&b);
    void *workspace = k_alloc(b.c, workspace_bytes);
    b.d_hidden = k_alloc(b.c, SAMPLES_MAX * COLUMNS * sizeof(float));
    b.d_logits = k_alloc(b.c, (size_t)SAMPLES_MAX * VOCAB * sizeof(float));
    b.d_results = k_alloc(b.c, SAMPLES_MAX * sizeof *b.d_results);
    b.d_outcomes = k_alloc(b.c, SAMPLES_MAX * sizeof *b.d_outcomes);
    if (!workspace || !b.d_hidden || !b.d_logits || !b.d_results || !b.d_outcomes)
        return 1;
    k_stream_set_workspace(b.s, workspace, workspace_bytes);
    hidden_make(&b);
    printf("%s; vocabulary %u; samples: microseconds beside the product\n", k_context_describe(b.c), VOCAB);
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        printf("%s", ways[w].name);
        for (size_t i = 0; i < COUNTS; i++) {
            samples_are(&b, &ways[w], counts[i]);
            const double product = seconds_of(&b, false), all = seconds_of(&b, true);
            printf("  %2u: %6.1f (+ %5.1f)", counts[i], (all - product) * 1e6, product * 1e6);
            fflush(stdout);
        }
        printf("\n");
    }
    return 0;
}
