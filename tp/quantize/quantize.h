/* quantize.h - makes a quantised checkpoint (compressed-tensors, pack-quantized) from a 16 or 32 bit one.
 *
 * Called by `shardd quantize` (quantize_main.c) and by tests; one run per process. Matrices are streamed from the
 * mapped source into the output files, so memory holds some rows of one matrix; with calibration or evaluation the
 * model runs layer by layer beside it, and memory holds one layer and the sequences' activations. The target folder
 * appears as a whole, by rename, when everything is on disk: while it is made it is called TARGET.part, and after a
 * failure or an interruption nothing is left. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define QUANTIZE_SEQUENCE_MAX 2048u  /* tokens of a sequence that are used */
#define QUANTIZE_TOKENS_MAX   65536u /* of all sequences of a file together */

struct quantize_sequences {
    uint32_t *ids;   /* all sequences, one after another */
    uint32_t *begin; /* [n + 1] */
    uint32_t n;
};
/* A file of JSON lines, each with "ids", or "prompt_ids" and maybe "reply_ids". Longer sequences are cut, and
 * sequences beyond tokens_max tokens in all are left out. -EINVAL names the line. Release with ..._done(). */
int quantize_sequences_read(const char *path, uint32_t vocab_size, uint32_t tokens_max,
        struct quantize_sequences *ret, struct error *e);
void quantize_sequences_done(struct quantize_sequences *s);

/* What quantised linears are multiplied with where the model runs, for calibration and evaluation. */
enum quantize_activations { QUANTIZE_FLOAT, QUANTIZE_BF16, QUANTIZE_INT8 };

struct quantize_options {
    const char *source, *target;
    uint32_t weight_bits;         /* 4 or 8 */
    uint32_t head_bits, mtp_bits; /* 4, 8, or 16: as they are */
    uint32_t group;               /* 32, 64 or 128 */
    bool asymmetric;
    const char *const *ignore; /* fnmatch(3) patterns of module names that stay as they are */
    uint32_t n_ignore;
    const char *calibration, *evaluation; /* files of sequences, or NULL */
    enum quantize_activations activations;
    uint32_t threads;             /* 0 = all that this process may use */
    uint32_t hessian_columns_max; /* error feedback for linears with at most so many inputs */
    uint64_t shard_bytes;         /* of an output file */
    const volatile int *stop;     /* set by a signal handler: give up with -ECANCELED */
    /* Called for every matrix and now and then inside large ones; bytes of the source. May be NULL. */
    void (*progress)(void *context, const char *what, uint64_t done, uint64_t total);
    void *progress_context;
};

struct quantize_matrix_report {
    char name[160];
    uint32_t rows, columns, bits;
    double error;          /* |W - Q| / |W| */
    double weighted_error; /* the same with columns weighted by their inputs' mean square; -1 without calibration */
    bool feedback;         /* error feedback was used */
};

struct quantize_report {
    struct quantize_matrix_report *matrices;
    uint32_t n_matrices;
    double *layer_errors; /* [n_layers] |x - x'| / |x| after each layer, with evaluation; else NULL */
    uint32_t n_layers;
    uint64_t source_bytes, target_bytes; /* of the tensors */
    uint32_t files;
    double seconds;
    uint32_t calibration_sequences, calibration_tokens;
    uint32_t evaluation_sequences, evaluation_tokens;
    double kl;                /* mean over tokens of sum p log(p / q), natural log; p the original's */
    double kl_max;            /* of one token */
    double top_1;             /* part of tokens with the same likeliest next token */
    double nll, original_nll; /* mean -log probability of the token that follows in the file */
    /* MTP's head, where there is one: the same */
    bool has_mtp;
    double mtp_kl, mtp_top_1;
};

/* 0; -EEXIST: the target has something in it; -ENOSPC: too little room; -EDOM: the options do not fit the
 * model; -EINVAL: the source cannot be quantised; -ECANCELED: stopped. Release with quantize_report_done(). */
int quantize_run(const struct quantize_options *o, struct quantize_report *ret, struct error *e);
void quantize_report_done(struct quantize_report *r);
void quantize_report_print(const struct quantize_report *r, const struct quantize_options *o, FILE *to);
void quantize_report_print_json(const struct quantize_report *r, const struct quantize_options *o, FILE *to);
