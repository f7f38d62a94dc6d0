/* Time of what is not a linear product, for the shapes of the 0.8B model: both mixers, and sampling.
 *
 * Usage: bench-kernels-mixers [threads [isa|best [cpu]]], as bench-kernels_cpu-linear. Microseconds per row and
 * layer (or per sample), the best of several runs; attention over pages of bf16 and of int8. */
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RUNS 5

static clockid_t clock_used = CLOCK_MONOTONIC;
static double clock_share = 1;

static double now(void) {
    struct timespec t;
    clock_gettime(clock_used, &t);
    return ((double)t.tv_sec + (double)t.tv_nsec * 1e-9) * clock_share;
}

static const struct k_shape shape = {.tp = 1,
        .hidden_size = 1024,
        .vocab_size = 248320,
        .vocab_rows = 248320,
        .q_heads = 8,
        .kv_heads = 2,
        .head_dim = 256,
        .rotary_dim = 64,
        .gdn_k_heads = 16,
        .gdn_v_heads = 16,
        .gdn_k_dim = 128,
        .gdn_v_dim = 128,
        .conv_kernel = 4,
        .intermediate_size = 3584,
        .n_attention_layers = 1,
        .n_gdn_layers = 1,
        .rms_eps = 1e-6f,
        .rope_theta = 1e7};

struct bench {
    struct k_context *c;
    struct k_stream *s;
    struct k_pool *p, *p_int8;
    struct k_batch *b;
    struct k_comm *m;
    struct k_linear *head;
    float *in, *out, *weights;
    struct k_result *results;
    struct k_plan plan;
    struct k_entry entry;
    uint32_t ids[4096];
};

static float *filled(struct bench *b, size_t n) {
    float *x = k_host_alloc(b->c, n * sizeof *x), *d_x = k_alloc(b->c, n * sizeof *x);
    if (!x || !d_x)
        exit(1);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((i * 2654435761u >> 8) % 1000) / 500 - 1;
    k_upload(b->s, d_x, x, n * sizeof *x);
    k_stream_wait(b->s, 0, NULL);
    k_host_free(b->c, x);
    return d_x;
}
/* Seconds since `begin`, once all that was queued has run. */
static double since(struct bench *b, double begin) {
    k_stream_wait(b->s, 0, NULL);
    return now() - begin;
}

static void begin(struct bench *b, uint32_t pos, uint32_t rows) {
    b->plan = (struct k_plan){.n_entries = 1, .n_rows = rows};
    b->entry = (struct k_entry){.slot = 1,
            .n_rows = rows,
            .first_pos = pos,
            .id_after = UINT32_MAX,
            .rope_at = UINT32_MAX,
            .top_logprobs = UINT32_MAX};
    k_batch_upload(b->s, b->b, &b->plan, &b->entry, b->ids, rows, NULL, 0);
    k_begin_step(b->s, b->p, b->b);
}

static void bench_mixers(struct bench *b, uint32_t pos, uint32_t rows) {
    const struct k_attention_weights aw = {b->weights, b->weights};
    const struct k_gdn_weights gw = {b->weights, b->weights, b->weights, b->weights};
    double attention = 1e9, int8 = 1e9, gdn = 1e9;
    begin(b, pos, rows);
    k_end_step(b->s, b->p, b->b, NULL,
            NULL); /* the slot is as far as these rows: what is before them is folded */
    since(b, 0);
    for (int i = 0; i < RUNS; i++) {
        double t = now();
        k_attention_step(b->s, b->p, b->b, 0, 0, &aw, b->in, b->out);
        t = since(b, t);
        attention = t < attention ? t : attention;
        t = now();
        k_attention_step(b->s, b->p_int8, b->b, 0, 0, &aw, b->in, b->out);
        t = since(b, t);
        int8 = t < int8 ? t : int8;
        t = now();
        k_gdn_step(b->s, b->p, b->b, 0, &gw, b->in, b->out);
        t = since(b, t);
        gdn = t < gdn ? t : gdn;
    }
    printf("position %6u, %3u rows: attention %8.1f us/row, of int8 %8.1f, gdn %6.1f us/row\n", pos, rows,
            attention * 1e6 / rows, int8 * 1e6 / rows, gdn * 1e6 / rows);
}

static void bench_sampling(
        struct bench *b, const char *name, const struct k_sampling *sampling, uint32_t logprobs) {
    double with = 1e9, without = 1e9;
    k_slot_open(b->s, b->p, 1, sampling);
    for (int sample = 0; sample < 2; sample++) {
        for (int i = 0; i < RUNS; i++) {
            begin(b, 0, 1);
            b->entry.flags = sample ? K_ENTRY_SAMPLE : K_ENTRY_LOGITS;
            b->entry.top_logprobs = logprobs;
            k_batch_upload(b->s, b->b, &b->plan, &b->entry, b->ids, 1, NULL, 0);
            since(b, 0);
            double t = now();
            k_head_sample(b->s, b->p, b->m, b->b, b->head, b->in, b->results, NULL, NULL, 0);
            t = since(b, t);
            if (sample)
                with = t < with ? t : with;
            else
                without = t < without ? t : without;
        }
    }
    printf("sampling, %-28s %8.0f us beside the head's %.0f us\n", name, (with - without) * 1e6,
            without * 1e6);
}

static int setup(struct bench *b, const struct k_context_options *o, struct error *e) {
    const struct k_pool_options pool = {.slots = 1, .pages = 600, .pages_per_slot = 600, .kv_dtype = K_BF16};
    const struct k_pool_options of_int8 = {
            .slots = 1, .pages = 600, .pages_per_slot = 600, .kv_dtype = K_INT8};
    struct k_matrix_view v = {.data = NULL, .row_stride = 0, .rows = shape.vocab_size, .dtype = K_BF16};
    struct k_linear_spec spec = {
            .pieces = &v, .n_pieces = 1, .columns = shape.hidden_size, .leaves = 8, .name = "head"};
    uint32_t pages[600];
    if (k_context_create(o, &b->c, e) < 0 || k_stream_create(b->c, &b->s, e) < 0 ||
            k_pool_create(b->c, &shape, &pool, &b->p, e) < 0 ||
            k_pool_create(b->c, &shape, &of_int8, &b->p_int8, e) < 0 ||
            k_batch_create(b->c, 1, 512, &b->b, e) < 0 ||
            k_comm_create(b->c, &shape, 512, NULL, 0, &b->m, e) < 0 ||
            k_linear_dummy(b->c, &spec, 1, 0.3f, &b->head, e) < 0)
        return -1;
    size_t bytes = k_workspace_bytes(&shape, 512, 1);
    k_stream_set_workspace(b->s, k_alloc(b->c, bytes), bytes);
    b->in = filled(b, 512 * 10000);
    b->out = filled(b, 512 * 10000);
    b->weights = filled(b, 100000);
    b->results = k_alloc(b->c, sizeof *b->results);
    for (uint32_t i = 0; i < 600; i++)
        pages[i] = i + 1;
    struct k_pool *const pools[] = {b->p, b->p_int8};
    for (size_t i = 0; i < 2; i++) {
        k_slot_open(b->s, pools[i], 1, &(struct k_sampling){.top_p = 1, .repetition_penalty = 1});
        k_slot_grant(b->s, pools[i], 1, 0, 600, pages);
    }
    return 0;
}

int main(int argc, char **argv) {
    struct k_context_options o = {.threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0,
            .isa = argc > 2 && strcmp(argv[2], "best") != 0 ? argv[2] : NULL};
    static struct bench b;
    struct error e;
    if (setup(&b, &o, &e) < 0) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    if (argc > 3 && strcmp(argv[3], "cpu") == 0) {
        clock_used = CLOCK_PROCESS_CPUTIME_ID;
        clock_share = 1.0 / (double)(o.threads ? o.threads : 1);
    }
    printf("%s\n", k_context_describe(b.c));
    static const uint32_t positions[] = {0, 1000, 8000, 32000}, rows[] = {1, 4, 128};
    for (size_t i = 0; i < 4; i++)
        for (size_t j = 0; j < 3; j++)
            bench_mixers(&b, positions[i], rows[j]);
    struct k_sampling s = {.top_p = 1, .repetition_penalty = 1};
    bench_sampling(&b, "greedy", &s, UINT32_MAX);
    bench_sampling(&b, "greedy, 20 logprobs", &s, 20);
    s.temperature = 1;
    bench_sampling(&b, "temperature", &s, UINT32_MAX);
    s.top_k = 20;
    bench_sampling(&b, "top k", &s, UINT32_MAX);
    s.top_p = 0.95f;
    bench_sampling(&b, "top k, top p", &s, UINT32_MAX);
    s.top_k = 0;
    bench_sampling(&b, "top p", &s, UINT32_MAX);
    s.min_p = 0.05f;
    s.repetition_penalty = 1.1f;
    bench_sampling(&b, "top p, min p, penalty", &s, UINT32_MAX);
    return k_stream_wait(b.s, 0, &e) < 0;
}
