/* parts.h - what the parts of quantize share: groups of weights, algebra, a matrix, the output folder,
 * the model's layers. Included by quantize*.c and their tests only.
 *
 * Arithmetic is written so that every machine makes the same bytes: one order of operations, no fused
 * multiply-adds, whatever the instruction set and the number of threads. */
#pragma once

#include "tp/quantize/quantize.h"

#include "base/quant.h"
#include "tp/checkpoint/model_config.h"
#include "tp/checkpoint/tensor_names.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- threads --- */

/* Calls fn(arg, i) for i in 0..n-1 on up to `threads` threads, in any order; returns when all are done. */
void quantize_parallel(uint32_t threads, uint32_t n, void (*fn)(void *arg, uint32_t i), void *arg);

/* --- one group of weights (group.c) --- */

struct quantize_scheme {
    uint32_t bits;  /* 4 or 8; 16 = left as it is */
    uint32_t group; /* 32, 64 or 128 columns */
    bool asymmetric;
    enum tensor_dtype scale; /* F32, BF16 or F16: scales are rounded to it */
};

struct quantize_params {
    float scale;
    uint8_t zero;
};

float quantize_round_scale(
        float value, enum tensor_dtype dtype); /* to nearest, ties to even; > 0 stays > 0 */
/* The scale (and zero, where the scheme has them) that makes sum of importance * (w - value)^2 smallest, of a set
 * of candidates that has plain rounding's among them. importance NULL: all 1. n is a multiple of 16. */
struct quantize_params quantize_search(
        const float *w, const float *importance, uint32_t n, const struct quantize_scheme *s);

/* A number of small size, rounded to a whole one, ties to even: adding 1.5 * 2^23 leaves no room for a fraction. */
static inline float quantize_whole(float x) {
    return (x + 12582912.0f) - 12582912.0f;
}

static inline uint8_t quantize_code(float w, struct quantize_params p, uint32_t bits) {
    float zero = (float)p.zero, high = (float)((1u << bits) - 1) - zero;
    float t = w * (1.0f / p.scale);
    t = t < -zero ? -zero : t > high ? high : t;
    return (uint8_t)(quantize_whole(t) + zero);
}

static inline float quantize_value(uint8_t code, struct quantize_params p) {
    return p.scale * (float)((int)code - (int)p.zero);
}

/* --- algebra (algebra.c): row-major fp32 --- */

/* C[m][n] += sign * A B, A[i][p] at a[i * a_row + p * a_column], B[p][n] with row stride ldb. sign is 1 or -1. */
void quantize_multiply(float *c, size_t ldc, const float *a, size_t a_row, size_t a_column, const float *b,
        size_t ldb, uint32_t m, uint32_t n, uint32_t k, float sign);
/* h[n][n], its upper triangle filled, becomes the upper triangular U with inverse(h) = U^T U. -EDOM: h is not
 * positive definite. */
int quantize_inverse_factor(float *h, uint32_t n, uint32_t threads);

/* --- what a linear's input looks like (stats.c) --- */

struct quantize_stats {
    uint32_t columns;
    uint64_t rows;     /* seen */
    double *squares;   /* [columns] sum of x^2 */
    float *hessian;    /* [columns][columns] upper triangle of the sum of x x^T, or NULL: diagonal only */
    float *importance; /* [columns], after prepare */
    bool factored;     /* after prepare: hessian is U, and error feedback is possible */
};
int quantize_stats_init(struct quantize_stats *s, uint32_t columns, bool hessian, struct error *e);
void quantize_stats_done(struct quantize_stats *s);
void quantize_stats_add(struct quantize_stats *s, const float *x, uint32_t rows, uint32_t threads);
/* After the last row: importance, and U from the damped hessian. */
void quantize_stats_prepare(struct quantize_stats *s, uint32_t threads);

/* --- some rows of a matrix (matrix.c) --- */

struct quantize_matrix {
    struct quant_matrix view; /* readers over the arrays below; view.file is this struct: do not move it */
    uint32_t bits;
    enum tensor_dtype scale_dtype;
    uint8_t *codes;      /* [rows][columns] */
    float *scales;       /* [rows][groups] */
    uint8_t *zeros;      /* [rows][groups] */
    double error, total; /* sum of (w - value)^2, of w^2 */
    double weighted_error,
            weighted_total; /* the same, each column times its mean x^2; 0 without statistics */
};
/* Rows [first, first + n) of t. stats NULL: every column counts the same; prepared otherwise. -EBADMSG: a weight
 * that is not finite; -ECANCELED: *stop was set. Release with quantize_matrix_free(). */
int quantize_matrix_make(const struct tensor *t, uint32_t first, uint32_t n, const struct quantize_scheme *s,
        const struct quantize_stats *stats, uint32_t threads, const volatile int *stop,
        struct quantize_matrix **ret, struct error *e);
struct quantize_matrix *quantize_matrix_free(struct quantize_matrix *q);
/* Row r of t as fp32. */
void quantize_read_row(const struct tensor *t, uint64_t row, float *ret);
/* The matrix that is meant, as fp32 [rows][columns]. */
void quantize_matrix_values(const struct quantize_matrix *q, uint32_t first, uint32_t n, float *ret);
/* Tells the kernel that these bytes of a mapped file are not needed again. */
void quantize_forget(const void *data, uint64_t bytes);

/* --- the output folder (output.c) --- */

struct quantize_output_tensor {
    char name[192];
    enum tensor_dtype dtype;
    uint32_t n_dims;
    uint64_t dims[TENSOR_DIMS_MAX];
    uint64_t bytes;
    /* after quantize_output_open */
    uint32_t file;
    uint64_t offset; /* in the file */
};

struct quantize_output {
    const char *target;
    char part[4096]; /* the folder while it is made */
    int dir_fd;      /* of part; -1 = not made */
    struct quantize_output_tensor *tensors;
    uint32_t n, size;
    int *files; /* [n_files] */
    uint32_t n_files;
    uint64_t bytes; /* of the tensors */
};
void quantize_output_init(struct quantize_output *o, const char *target);
/* Plans a tensor; its number is *ret. Tensors of one matrix are planned one after another and stay in one file. */
int quantize_output_add(struct quantize_output *o, const char *name, enum tensor_dtype dtype,
        const uint64_t *dims, uint32_t n_dims, uint32_t *ret, struct error *e);
/* Makes the folder and its safetensors files, at their full size and with headers: from here on the room is ours. */
int quantize_output_open(struct quantize_output *o, uint64_t shard_bytes, struct error *e);
int quantize_output_write(struct quantize_output *o, uint32_t tensor, uint64_t at, const void *data,
        uint64_t bytes, struct error *e);
/* A small file beside them. */
int quantize_output_file(
        struct quantize_output *o, const char *name, const void *data, size_t bytes, struct error *e);
/* Everything in the source folder but weights and config.json. */
int quantize_output_copy(struct quantize_output *o, const char *source, struct error *e);
/* Everything to the disk, then the folder gets its name. */
int quantize_output_finish(struct quantize_output *o, struct error *e);
/* Takes away what was not finished. */
void quantize_output_done(struct quantize_output *o);

/* A growing text. Appends after a failure do nothing; `failed` is looked at once, at the end. */
struct quantize_text {
    char *data;
    size_t n, size;
    bool failed;
};
void quantize_print(struct quantize_text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* --- config.json (config.c) --- */

struct quantize_config {
    const struct quantize_options *options;
    bool head, mtp;       /* there are matrices quantised with head_bits or mtp_bits */
    bool tied;            /* the source's head is its embedding */
    const char **ignored; /* [n_ignored] modules that stay as they are */
    uint32_t n_ignored;
};
/* The source's config.json, changed in nothing but what it must. -EINVAL: it is quantised already. */
int quantize_config_write(
        const char *source, const struct quantize_config *c, struct quantize_text *ret, struct error *e);

/* --- the model, a layer at a time (model.c) --- */

struct quantize_model;
int quantize_model_create(const struct model_config *m, uint32_t threads,
        enum quantize_activations activations, struct quantize_model **ret, struct error *e);
struct quantize_model *quantize_model_free(struct quantize_model *model);
/* Loads a layer in place of the one before. Matrices may be dense or stand for quantised ones. */
int quantize_model_load(
        struct quantize_model *model, const struct layer_tensors *t, const char *name, struct error *e);
void quantize_model_unload(struct quantize_model *model);
/* What a linear of the layer gets as its input: input is LINEAR_MIXER_IN.. of tp/load/linears.h, x [rows][columns]. */
typedef void (*quantize_tap)(void *user, uint32_t input, const float *x, uint32_t rows, uint32_t columns);
/* One whole sequence through the layer: x[n][H], in and out. mtp: the layer is MTP's. tap may be NULL. */
int quantize_model_run(struct quantize_model *model, const uint32_t *ids, uint32_t n, bool mtp, float *x,
        quantize_tap tap, void *user, struct error *e);
/* y[n][rows of w] = W x for a linear outside the layers. */
struct k_linear;
struct linear;
int quantize_model_pack(
        struct quantize_model *model, const struct linear *w, struct k_linear **ret, struct error *e);
int quantize_model_project(struct quantize_model *model, struct k_linear *w, const float *x, uint32_t n,
        uint32_t columns, float *y, struct error *e);
/* ret[n][H] = norm(x[n][H]) with a zero-centred weight; ret may be x. */
void quantize_norm(const struct tensor *w, float eps, const float *x, uint32_t n, float *ret);

/* --- two distributions compared (eval.c) --- */

struct quantize_token { /* one position; the vocabulary comes in bands. [0]: the original's, [1]: the other's */
    double max[2], sum[2]; /* of exp(logit - max) */
    double cross;          /* sum of exp(l0 - max0) (l0 - l1) */
    uint32_t best[2];
    float best_logit[2], target_logit[2];
    uint32_t target; /* the id that follows in the file; UINT32_MAX: none */
};
void quantize_token_init(struct quantize_token *t, uint32_t target);
/* Logits [n][columns] of both models for ids first.. */
void quantize_tokens_add(struct quantize_token *t, const float *original, const float *other, uint32_t n,
        uint32_t first, uint32_t columns, uint32_t threads);
double quantize_token_kl(const struct quantize_token *t);             /* after the last band; natural log */
double quantize_token_nll(const struct quantize_token *t, int which); /* of target */

/* --- the run (quantize.c) and its walk over the layers (layers.c) --- */

/* Inputs of a layer's linears, as in tp/load/linears.h, and after them those outside layers. */
enum { QUANTIZE_INPUT_FC = 4, QUANTIZE_INPUT_HEAD, QUANTIZE_INPUTS };

struct quantize_item { /* a matrix that is quantised */
    const struct tensor *t;
    struct quantize_scheme scheme;
    uint32_t layer; /* n_layers: MTP's; UINT32_MAX: the head */
    uint32_t input;
    uint32_t packed, scale, shape, zero; /* numbers in the output */
    double sums[4];                      /* error, total, weighted error, weighted total */
    struct quantize_matrix_report report;
};

struct quantize_run {
    const struct quantize_options *o;
    struct model_config m;
    struct checkpoint *checkpoint;
    struct model_tensors *t;
    struct quantize_output output;
    struct quantize_item *items;
    uint32_t n_items;
    uint32_t threads;
    uint64_t done, total; /* bytes of the source, for progress */
    struct quantize_sequences calibration, evaluation;
    struct quantize_report *report;
};
bool quantize_stopped(const struct quantize_run *r);
/* Makes and writes rows [first, first + n) of an item. The caller may keep the matrix: ret NULL = freed here. */
int quantize_item_rows(struct quantize_run *r, struct quantize_item *item, const struct quantize_stats *stats,
        uint32_t first, uint32_t n, struct quantize_matrix **ret, struct error *e);
uint32_t quantize_band_rows(
        const struct tensor *t); /* rows that are handled at once where nothing asks for all */
/* All items, with what the calibration and evaluation sequences show. */
int quantize_layers(struct quantize_run *r, struct error *e);
