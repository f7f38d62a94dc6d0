/* Time of the linears of Qwen3.5-27B on a GPU, against a plain copy on the same card.
 *
 * Usage: bench-cuda-linear [device [launches [form [int8|bf16|float [exact|fast|own [tp]]]]]]; form: those alone whose
 * name begins with it; then as --activations and --numerics of the worker, own: fast without cuBLASLt; tp: the part of
 * each that a rank of so many has, without what they exchange and without the ceiling. A line per shape and form:
 * microseconds of the whole operation (norm, activations, product) at several row counts, and in brackets the weights'
 * bytes per second as a part of what a copy moves, read and written both counted; of many rows, 10^12 operations per
 * second. Operations are nodes of a graph, back to back; copies of the weights are used in turn so that the L2 cache
 * does not help. At the end, all 257 linears of a token, the head with HEAD_ROWS rows at most. Median of ROUNDS. Then
 * the ceiling: the same shapes by cuBLASLt, weights row by row and activations in bf16 or INT8 already; norm, rounding
 * and scales are not in its time. */
#include "kernels/cuda/blas.h"
#include "kernels/kernels.h"
#include "tests/bench/cuda/timing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOGETHER   (400ull << 20) /* bytes of weights of one graph, at least */
#define COPIES_MAX 64u
#define ROWS_MAX   2048u
#define HEAD_ROWS  64u /* a step multiplies the head for those rows alone that somebody wants logits of */

static const uint32_t row_counts[] = {1, 4, 8, 16, 32, 64, 256, 512, ROWS_MAX};
static const struct k_shape model = {.tp = 1, /* what the workspace depends on */
        .hidden_size = 5120,
        .intermediate_size = 17408,
        .vocab_size = 248320,
        .vocab_rows = 248320,
        .q_heads = 24,
        .kv_heads = 4,
        .head_dim = 256,
        .gdn_k_heads = 16,
        .gdn_v_heads = 48,
        .gdn_k_dim = 128,
        .gdn_v_dim = 128,
        .conv_kernel = 4};
#define COUNTS (sizeof row_counts / sizeof *row_counts)

static const struct shape {
    const char *name;
    uint32_t rows, columns;
    enum { PLAIN, NORM, GATE_UP } operation;
    uint32_t layers;
    uint32_t leaves; /* fewer of a row-parallel linear that several ranks have */
} shapes[] = {
        {"gate_up  34816 x  5120", 34816, 5120, GATE_UP, 64, 8},
        {"down      5120 x 17408", 5120, 17408, PLAIN, 64, 8},
        {"gdn in   16480 x  5120", 16480, 5120, NORM, 48, 8},
        {"qkv      14336 x  5120", 14336, 5120, NORM, 16, 8},
        {"out, o    5120 x  6144", 5120, 6144, PLAIN, 64, 8},
        {"lm_head 248320 x  5120", 248320, 5120, PLAIN, 1, 8},
};
static const struct form {
    const char *name;
    bool dense; /* bf16 */
    enum quant_format format;
    uint32_t group;
    bool zeros;
} forms[] = {{"int4 g128   ", false, QUANT_INT4, 128, false}, {"int4 g32 zp ", false, QUANT_INT4, 32, true},
        {"int8 g128   ", false, QUANT_INT8, 128, false}, {"fp8 g128    ", false, QUANT_FP8, 128, false},
        {"bf16        ", true, QUANT_INT4, 0, false}};
#define FORMS (sizeof forms / sizeof *forms)

struct bench {
    struct k_context *c;
    struct k_stream *s;
    struct k_batch *b;
    float *d_x, *d_norm, *d_y;
    uint32_t launches;
    double copy; /* bytes per second */
};

static void rows_are(struct bench *b, uint32_t n) {
    static const uint32_t ids[ROWS_MAX];
    const struct k_bounds bounds = {.rows = n, .entries = 1, .context = UINT32_MAX};
    const struct k_plan plan = {.n_entries = 1, .n_rows = n};
    const struct k_entry entry = {.n_rows = n};
    struct error e;
    k_batch_bounds(b->b, &bounds);
    k_batch_upload(b->s, b->b, &plan, &entry, ids, n, NULL, 0);
    must(k_stream_wait(b->s, 0, &e), &e);
}
static void queue(struct bench *b, const struct shape *shape, const struct k_linear *w) {
    if (shape->operation == GATE_UP)
        k_norm_gate_up(b->s, b->b, b->d_x, b->d_norm, 1e-6f, w, b->d_y);
    else if (shape->operation == NORM)
        k_norm_project(b->s, b->b, b->d_x, b->d_norm, 1e-6f, w, b->d_y);
    else
        k_project_partial(b->s, b->b, w, b->d_x, b->d_y);
}

/* Seconds of one operation. */
static double seconds_of(
        struct bench *b, const struct shape *shape, struct k_linear *const *w, uint32_t n, uint32_t rows) {
    struct k_graph *g = NULL;
    struct error e;
    double seconds[ROUNDS];
    rows_are(b, rows);
    must(k_capture_begin(b->s, &e), &e);
    for (uint32_t i = 0; i < n; i++)
        queue(b, shape, w[i]);
    must(k_capture_end(b->s, &g, &e), &e);
    for (int i = -1; i < ROUNDS; i++) {
        const uint64_t t = clock_ns();
        for (uint32_t k = 0; k < b->launches; k++)
            k_graph_launch(b->s, g);
        must(k_stream_wait(b->s, 0, &e), &e);
        if (i >= 0)
            seconds[i] = (double)(clock_ns() - t) * 1e-9 / b->launches / n;
    }
    k_graph_free(g);
    return median(seconds);
}

/* What one of tp ranks has of it. */
static struct shape part_of(const struct shape *whole, uint32_t tp) {
    struct shape s = *whole;
    if (s.operation == PLAIN && s.layers > 1) { /* row-parallel */
        s.columns /= tp;
        s.leaves = 8 / tp;
    } else {
        s.rows /= tp;
    }
    return s;
}
static void bench_shape(struct bench *b, const struct shape *shape, const struct form *form, double *total) {
    const struct quant_matrix q = {.format = form->format,
            .scale = QUANT_SCALE_BF16,
            .group = form->group,
            .zeros = form->zeros,
            .rows = shape->rows,
            .columns = shape->columns,
            .label = form->name};
    const uint32_t pieces = shape->operation == GATE_UP ? 2 : 1;
    struct k_matrix_view views[2] = {
            {.rows = shape->rows / pieces, .quant = form->dense ? NULL : &q, .dtype = K_BF16}};
    const struct k_linear_spec spec = {.pieces = views,
            .n_pieces = pieces,
            .columns = shape->columns,
            .leaves = shape->leaves,
            .name = shape->name};
    struct k_linear *w[COPIES_MAX];
    struct error e;
    uint32_t n = 0;
    views[1] = views[0];
    const size_t bytes = k_linear_bytes(&spec);
    for (; n < COPIES_MAX && n * bytes < TOGETHER; n++)
        must(k_linear_dummy(b->c, &spec, n, 0.03f, &w[n], &e), &e);
    printf("%s  %s %6.1f MB ", shape->name, form->name, (double)bytes * 1e-6);
    for (size_t i = 0; i < COUNTS; i++) {
        const uint32_t rows = shape->layers == 1 && row_counts[i] > HEAD_ROWS ? HEAD_ROWS : row_counts[i];
        const double t = seconds_of(b, shape, w, n, rows);
        total[i] += t * shape->layers;
        const double work = 2.0 * shape->rows * shape->columns * rows;
        if (rows < 64)
            printf(" %3u: %6.1f (%2.0f)", rows, t * 1e6, (double)bytes / t / b->copy * 100);
        else if (rows == row_counts[i])
            printf(" %3u: %6.1f (%3.0f T)", rows, t * 1e6, work / t * 1e-12);
        fflush(stdout);
    }
    printf("\n");
    for (uint32_t i = 0; i < n; i++)
        k_linear_free(w[i]);
}

/* Seconds of one product by cuBLASLt; 0 = it has none of this shape. d_w: TOGETHER bytes and one matrix more. */
static double seconds_by_library(struct blas *l, const struct blas_product *p, const uint8_t *d_w,
        const void *d_x, void *d_y, void *d_workspace) {
    const size_t bytes = (size_t)p->outputs * p->columns * (p->floats ? 2 : 1);
    const uint32_t copies = (uint32_t)(TOGETHER / bytes) + 1, calls = 4 * copies;
    double seconds[ROUNDS];
    struct error e;
    bool well = true;
    for (int i = -1; i < ROUNDS && well; i++) {
        const uint64_t t = clock_ns();
        for (uint32_t k = 0; k < calls && well; k++)
            well = blas_multiply(l, NULL, p, d_w + k % copies * bytes, d_x, d_y, d_workspace, &e) == 0;
        well = cudaStreamSynchronize(NULL) == cudaSuccess && well;
        if (i >= 0)
            seconds[i] = (double)(clock_ns() - t) * 1e-9 / calls;
    }
    return well ? median(seconds) : 0;
}
static void ceiling(const struct bench *b, void *d_workspace) {
    const size_t bytes = TOGETHER + (size_t)2 * 34816 * 5120, x_bytes = (size_t)ROWS_MAX * 17408 * 2;
    uint16_t *some = malloc(bytes);
    struct blas *l = NULL;
    struct error e;
    uint8_t *d_w;
    if (!some || blas_open(&l, &e) < 0) {
        printf("no ceiling: %s; the folder of libcublasLt (of the toolkit, or of the Python package nvidia-cublas) "
               "belongs in LD_LIBRARY_PATH\n",
                some ? e.text : "no memory");
        free(some);
        return;
    }
    if (cudaMalloc((void **)&d_w, bytes) != cudaSuccess)
        exit(1);
    for (size_t i = 0; i < bytes / 2; i++) /* bf16 of both signs, up to 1: what changes takes power */
        some[i] = (uint16_t)(0x3c00 | (i * 2654435761u >> 7 & 0x837f));
    cudaMemcpy(d_w, some, bytes, cudaMemcpyHostToDevice);
    cudaMemcpy(b->d_x, some, x_bytes, cudaMemcpyHostToDevice);
    free(some);
    for (int floats = 1; floats >= 0; floats--) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const struct shape *s = &shapes[i];
            if (s->layers == 1)
                continue;
            printf("%s  %s %s", s->name, blas_describe(l), floats ? "bf16" : "int8");
            for (size_t k = 0; k < COUNTS; k++) {
                const struct blas_product p = {.outputs = s->rows,
                        .columns = s->columns,
                        .rows = row_counts[k],
                        .ldy = s->rows,
                        .floats = floats};
                const double t = seconds_by_library(l, &p, d_w, b->d_x, b->d_y, d_workspace);
                if (t > 0)
                    printf(" %3u: %6.1f (%3.0f T)", row_counts[k], t * 1e6,
                            2e-12 * s->rows * s->columns * row_counts[k] / t);
            }
            printf("\n");
        }
    }
    cudaFree(d_w);
    blas_close(l);
}

static enum k_activations activations_of(const char *text) {
    return strcmp(text, "float") == 0  ? K_ACTIVATIONS_FLOAT
           : strcmp(text, "bf16") == 0 ? K_ACTIVATIONS_BF16
                                       : K_ACTIVATIONS_INT8;
}

int main(int argc, char **argv) {
    const struct k_context_options o = {.device = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0,
            .activations = argc > 4 ? activations_of(argv[4]) : K_ACTIVATIONS_INT8,
            .fast = argc > 5 && strcmp(argv[5], "exact") != 0,
            .own_products = argc > 5 && strcmp(argv[5], "own") == 0};
    const uint32_t tp = argc > 6 ? (uint32_t)strtoul(argv[6], NULL, 10) : 1;
    struct bench b = {.launches = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 20};
    const size_t floats = (size_t)ROWS_MAX * 17408, outputs = (size_t)ROWS_MAX * 34816;
    const size_t workspace_bytes = k_workspace_bytes(&model, ROWS_MAX, 1);
    struct error e;
    if (tp == 0 || tp > 8 || 8 % tp)
        return 1;
    must(k_context_create(&o, &b.c, &e), &e);
    must(k_stream_create(b.c, &b.s, &e), &e);
    must(k_batch_create(b.c, 1, ROWS_MAX, &b.b, &e), &e);
    void *workspace = k_alloc(b.c, workspace_bytes);
    float *x = malloc(floats * sizeof *x);
    b.d_x = k_alloc(b.c, floats * sizeof *x);
    b.d_norm = k_alloc(b.c, floats * sizeof *x);
    b.d_y = k_alloc(b.c, outputs * sizeof *x);
    if (!workspace || !x || !b.d_x || !b.d_norm || !b.d_y)
        return 1;
    k_stream_set_workspace(b.s, workspace, workspace_bytes);
    for (size_t i = 0; i < floats; i++)
        x[i] = (float)(i * 7919 % 1009) / 500 - 1;
    k_upload(b.s, b.d_x, x, floats * sizeof *x);
    k_upload(b.s, b.d_norm, x, floats * sizeof *x);
    must(k_stream_wait(b.s, 0, &e), &e);
    b.copy = copy_rate();
    printf("%s; copy %.0f GB/s; rows: microseconds (%% of copy, or Tops)\n", k_context_describe(b.c),
            b.copy * 1e-9);
    for (size_t f = 0; f < FORMS; f++) {
        double total[COUNTS] = {0};
        if (argc > 3 && strncmp(forms[f].name, argv[3], strlen(argv[3])) != 0)
            continue;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const struct shape part = part_of(&shapes[i], tp);
            bench_shape(&b, &part, &forms[f], total);
        }
        printf("all linears of a token%s, %s ms:", tp > 1 ? " on a rank" : "", forms[f].name);
        for (size_t i = 0; i < COUNTS; i++)
            printf("  %u: %.2f", row_counts[i], total[i] * 1e3);
        printf("\n");
    }
    if (tp == 1)
        ceiling(&b, workspace);
    free(x);
    return 0;
}
