/* Speed of the linear products against what this machine can do: bytes read per second, and fused
 * multiply-adds.
 *
 * Usage: bench-kernels_cpu-linear [threads [isa|best [cpu]]]. With "cpu", time is the processor time of all
 * threads divided by their number instead of the clock on the wall: for machines whose processors others use
 * too. Shapes are those of the 0.8B model (H 1024, I 3584). Decode reads every weight once for one row: its
 * roofline is a loop that only reads. Prefill multiplies 128 rows: its roofline is a loop of fma on
 * registers. Roofs and products take turns and the median of
 * their ratios is printed, so that a busy machine gives nearly the same. The megabytes are what one row has to read. */
#include "kernels/cpu/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RUNS 9

static clockid_t clock_used = CLOCK_MONOTONIC;
static double clock_share = 1; /* of the clock's advance that counts */

static double now(void) {
    struct timespec t;
    clock_gettime(clock_used, &t);
    return ((double)t.tv_sec + (double)t.tv_nsec * 1e-9) * clock_share;
}

/* --- rooflines --- */

#define READ_BYTES (128u << 20)
#define READ_PART  (1u << 20)

struct reading {
    const uint8_t *data;
    _Atomic uint64_t sink;
};
__attribute__((target("avx2"))) static void read_part(void *arg, uint32_t task) {
    typedef long long v4 __attribute__((vector_size(32)));
    struct reading *r = arg;
    const v4 *p = (const v4 *)(r->data + (size_t)task * READ_PART);
    v4 a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i < READ_PART / sizeof *p; i += 4) {
        a ^= p[i];
        b ^= p[i + 1];
        c ^= p[i + 2];
        d ^= p[i + 3];
    }
    a ^= b ^ c ^ d;
    atomic_fetch_xor(&r->sink, (uint64_t)(a[0] ^ a[1] ^ a[2] ^ a[3]));
}
static double read_rate(struct k_context *c, struct reading *r) {
    double t = now();
    team_run(c->team, read_part, r, READ_BYTES / READ_PART);
    return READ_BYTES / (now() - t);
}

#define FMA_LOOPS 400000u
struct spinning {
    bool wide;
    float sink[64];
};
#define FMA_LOOP(type)                                                                                       \
    type acc[12], x, y;                                                                                      \
    for (uint32_t i = 0; i < sizeof x / 4; i++)                                                              \
        x[i] = 0.999f, y[i] = 0.001f;                                                                        \
    for (int i = 0; i < 12; i++)                                                                             \
        acc[i] = y;                                                                                          \
    for (uint32_t n = 0; n < FMA_LOOPS; n++) {                                                               \
        _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) acc[i] = acc[i] * x + y;                       \
        __asm__ volatile("");                                                                                \
    }                                                                                                        \
    float sum = 0;                                                                                           \
    for (int i = 0; i < 12; i++)                                                                             \
        sum += acc[i][0];                                                                                    \
    return sum;
typedef float f16v __attribute__((vector_size(64)));
typedef float f8v __attribute__((vector_size(32)));
__attribute__((target("avx512f"), optimize("fp-contract=fast"))) static float fma_512(void) {
    FMA_LOOP(f16v)
}
__attribute__((target("avx2,fma"), optimize("fp-contract=fast"))) static float fma_256(void) {
    FMA_LOOP(f8v)
}
static void fma_part(void *arg, uint32_t task) {
    struct spinning *s = arg;
    s->sink[task % 64] = s->wide ? fma_512() : fma_256();
}
/* fused multiply-adds per second over all threads */
static double fma_rate(struct k_context *c) {
    struct spinning s = {.wide = strcmp(c->isa->name, "avx512") == 0};
    uint32_t n = team_threads(c->team) * 8;
    double t = now();
    team_run(c->team, fma_part, &s, n);
    return (double)FMA_LOOPS * 12 * (s.wide ? 16 : 8) * n / (now() - t);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *x) {
    qsort(x, RUNS, sizeof *x, by_size);
    return x[RUNS / 2];
}

/* --- products --- */

struct shape {
    const char *name;
    uint32_t rows, columns;
    bool gate_up;
};
static const struct shape shapes[] = {
        {"gdn in_proj  8224 x 1024", 8224, 1024, false},
        {"attn qkv     5120 x 1024", 5120, 1024, false},
        {"gate_up      7168 x 1024", 7168, 1024, true},
        {"down         1024 x 3584", 1024, 3584, false},
        {"lm_head    248320 x 1024", 248320, 1024, false},
};

static const struct dtype {
    const char *name;
    enum k_dtype dense;
    bool quantised; /* in groups of 128 with BF16 scales */
    enum quant_format format;
} dtypes[] = {{"bf16", K_BF16, false, QUANT_INT8}, {"int8", K_BF16, true, QUANT_INT8},
        {"int4", K_BF16, true, QUANT_INT4}, {"fp8 ", K_BF16, true, QUANT_FP8}};

/* Seconds per product; copies of the weights are used in turn so that caches do not help. */
static double seconds(struct k_stream *s, struct k_linear **w, uint32_t copies, const struct shape *shape,
        uint32_t n, const float *x, const float *norm, float *y, float *scratch) {
    double t = now();
    for (uint32_t i = 0; i < copies; i++) {
        struct product p = {.w = w[i],
                .x = x,
                .norm = norm,
                .eps = 1e-6f,
                .n = n,
                .gate_up = shape->gate_up,
                .y = y,
                .ldy = shape->gate_up ? shape->rows / 2 : shape->rows};
        product_run(s, &p, scratch);
    }
    return (now() - t) / copies;
}

static void bench_shape(struct k_context *c, struct k_stream *s, const struct shape *shape,
        const struct dtype *dtype, struct reading *reading) {
    struct quant_matrix quant = {.format = dtype->format,
            .scale = QUANT_SCALE_BF16,
            .group = 128,
            .rows = shape->rows,
            .columns = shape->columns,
            .label = dtype->name};
    const struct quant_matrix *q = dtype->quantised ? &quant : NULL;
    const uint32_t half = shape->rows / 2, most = 128;
    struct k_matrix_view views[2] = {
            {.rows = shape->gate_up ? half : shape->rows, .dtype = dtype->dense, .quant = q},
            {.rows = half, .dtype = dtype->dense, .quant = q}};
    struct k_linear_spec spec = {.pieces = views,
            .n_pieces = shape->gate_up ? 2 : 1,
            .columns = shape->columns,
            .leaves = 8,
            .name = shape->name};
    const size_t bytes = k_linear_bytes(&spec);
    uint32_t copies = (uint32_t)((128u << 20) / bytes) + 1;
    struct k_linear *w[64] = {NULL};
    copies = copies > 64 ? 64 : copies;
    for (uint32_t i = 0; i < copies; i++)
        if (k_linear_dummy(c, &spec, i, 0.03f, &w[i], NULL) < 0)
            exit(1);
    float *x = k_alloc(c, (size_t)most * shape->columns * 4), *y = k_alloc(c, (size_t)most * shape->rows * 4);
    float *norm = k_alloc(c, shape->columns * 4),
          *scratch = k_alloc(c, product_scratch_bytes(shape->columns, most));
    for (uint32_t i = 0; i < most * shape->columns; i++)
        x[i] = (float)(i % 97) / 50 - 1;
    for (uint32_t i = 0; i < shape->columns; i++)
        norm[i] = 1;
    static const uint32_t counts[] = {1, 2, 3, 4, 8, 16, 32, 128};
    printf("%s %s %5.1f MB", shape->name, dtype->name, (double)bytes * 1e-6);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        double reads[RUNS], fmas[RUNS];
        for (int run = 0; run < RUNS; run++) {
            double read = read_rate(c, reading),
                   t = seconds(s, w, copies, shape, counts[i], x, norm, y, scratch);
            reads[run] = (double)bytes / t / read;
            fmas[run] = (double)shape->rows * shape->columns * counts[i] / t / fma_rate(c);
        }
        printf("  %u:%3.0f%%/%3.0f%%", counts[i], median(reads) * 100, median(fmas) * 100);
        fflush(stdout);
    }
    printf("\n");
    for (uint32_t i = 0; i < copies; i++)
        k_linear_free(w[i]);
    k_free(c, x), k_free(c, y), k_free(c, norm), k_free(c, scratch);
}

int main(int argc, char **argv) {
    struct k_context_options o = {.threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0,
            .isa = argc > 2 && strcmp(argv[2], "best") != 0 ? argv[2] : NULL};
    struct k_context *c = NULL;
    struct k_stream *s = NULL;
    struct error e;
    if (k_context_create(&o, &c, &e) < 0 || k_stream_create(c, &s, &e) < 0) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    if (argc > 3 && strcmp(argv[3], "cpu") == 0) {
        clock_used = CLOCK_PROCESS_CPUTIME_ID;
        clock_share = 1.0 / team_threads(c->team);
    }
    struct reading reading = {.data = k_alloc(c, READ_BYTES)};
    memset((void *)reading.data, 1, READ_BYTES);
    double reads[RUNS], fmas[RUNS];
    for (int i = 0; i < RUNS; i++) {
        reads[i] = read_rate(c, &reading);
        fmas[i] = fma_rate(c);
    }
    printf("%s: reads %.1f GB/s, %.1f G fma/s; rows: %% of read rate / %% of fma rate\n",
            k_context_describe(c), median(reads) * 1e-9, median(fmas) * 1e-9);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
            bench_shape(c, s, &shapes[i], &dtypes[d], &reading);
    }
    k_free(c, (void *)reading.data);
    k_stream_free(s);
    k_context_free(c);
    return 0;
}
