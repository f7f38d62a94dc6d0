/* synth_parts.h - what the files of synth share: the list of tensors, their values, the output file. Included
 * by synth*.c only. */
#pragma once

#include "tp/synth/synth.h"

#include <stddef.h>

#define SYNTH_NAME_SIZE 80u

/* How values are drawn (mean and spread below). */
enum synth_draw {
    DRAW_NORMAL,      /* mean, standard deviation */
    DRAW_UNIFORM,     /* from mean - spread to mean + spread */
    DRAW_LOG_UNIFORM, /* the log of a uniform between 0.01 and 16 (A_log) */
    DRAW_BITS,        /* all 32 bits of an I32: packed codes */
    DRAW_SHAPE,       /* shape, as I64 */
};

/* What llama.cpp's converter changes on the way to GGUF. */
enum synth_change {
    CHANGE_NONE,
    CHANGE_PLUS_ONE,  /* zero-centred norms are stored as plain ones */
    CHANGE_MINUS_EXP, /* A_log becomes -exp(A_log) */
};

/* Which V heads are moved on the way to GGUF: head j = k * r + i of Hugging Face is number i * Hk + k
 * there. */
enum synth_tile {
    TILE_NONE,
    TILE_ROWS,    /* rows from tile_first on, tile_unit rows per head */
    TILE_COLUMNS, /* all columns, tile_unit columns per head */
};

struct synth_tensor {
    char name[SYNTH_NAME_SIZE];      /* Hugging Face's; also what the values depend on */
    char gguf_name[SYNTH_NAME_SIZE]; /* llama.cpp's */
    uint64_t rows, columns;          /* columns = 1 for a vector */
    bool is_vector, is_conv;         /* conv: written as [rows, 1, columns] in safetensors */
    enum synth_draw draw;
    float mean, spread;
    enum tensor_dtype dtype;      /* in safetensors; values are rounded to it in GGUF too */
    enum tensor_dtype gguf_dtype; /* F32 for vectors, norms and the convolution, as the converter does */
    uint32_t gguf_bits;           /* 4: Q4_0; 8: Q8_0; 0: gguf_dtype */
    enum synth_change change;
    enum synth_tile tile;
    uint64_t tile_first, tile_unit;
    uint64_t parameters; /* that it stands for, where that is not rows * columns */
    uint64_t shape[2];
};

struct synth_plan {
    struct synth_tensor *tensors;
    uint32_t n, size;
    uint32_t v_heads, k_heads; /* for tiles */
};
int synth_plan_make(
        const struct model_config *m, enum tensor_dtype dtype, struct synth_plan *ret, struct error *e);
void synth_plan_done(struct synth_plan *plan);
#define SYNTH_BLOCK 32u /* columns of a block of Q4_0 and Q8_0: a F16 scale, then the codes */

/* Puts quantised matrices in the place of the dense ones; head_bits 0: not of the head's. On failure the plan is as it
 * was. Of a GGUF file a matrix stays one tensor, and group is SYNTH_BLOCK. */
int synth_plan_quantise_gguf(struct synth_plan *plan, uint32_t bits, uint32_t head_bits, struct error *e);
int synth_plan_quantise(
        struct synth_plan *plan, uint32_t bits, uint32_t head_bits, uint32_t group, struct error *e);
uint64_t synth_tensor_bytes(const struct synth_tensor *t, enum synth_format format);

/* An output file in the folder, written under a temporary name and renamed when it is whole. */
struct synth_file {
    const struct synth_options *options;
    char name[64];
    int dir_fd, fd;
    char *buffer;
    size_t buffered;
    uint64_t *done, total; /* tensor bytes written over all files, for progress */
};
int synth_file_open(struct synth_file *f, const struct synth_options *options, int dir_fd, const char *name,
        uint64_t *done, uint64_t total, struct error *e);
int synth_file_write(struct synth_file *f, const void *data, size_t bytes, struct error *e);
int synth_file_close(struct synth_file *f, struct error *e); /* flush, sync, rename */
void synth_file_abandon(struct synth_file *f); /* removes what was written; after close: nothing */

/* The scale of codes of so many bits that gives matrix t its deviation. */
float synth_scale(const struct synth_tensor *t, uint32_t bits);

/* Writes a tensor's values in the form of that format. */
int synth_write_tensor(
        struct synth_file *f, const struct synth_plan *plan, const struct synth_tensor *t, struct error *e);

/* The tokenizer of the folder, read back from its tokenizer.json. */
enum synth_token_type {
    TOKEN_NORMAL = 1,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5
}; /* GGUF's */
struct synth_tokens {
    char **text;   /* [n], NULL where no token has this id; not for people: may hold any byte but NUL */
    uint8_t *type; /* [n] enum synth_token_type */
    uint32_t n;    /* the vocabulary of the model */
    char **merges; /* [n_merges] "left right" */
    size_t n_merges, merges_size;
    uint32_t eos[2]; /* ids that end a text: <|im_end|>, <|endoftext|> */
};
int synth_tokens_read(const struct synth_options *o, struct synth_tokens *ret, struct error *e);
void synth_tokens_done(struct synth_tokens *t);

/* The files of a folder; each returns 0 or an error. */
int synth_write_safetensors(const struct synth_options *o, const struct synth_plan *plan, int dir_fd,
        struct synth_report *report, struct error *e);
int synth_write_gguf(const struct synth_options *o, const struct synth_plan *plan,
        const struct synth_tokens *tokens, int dir_fd, struct synth_report *report, struct error *e);
int synth_write_tokenizer(const struct synth_options *o, struct error *e); /* copied or made */
int synth_write_configs(const struct synth_options *o, const uint32_t eos[2], struct error *e);

/* A growing text or byte buffer: appends are ignored after one failed, `failed` is looked at once at the
 * end. */
struct synth_buffer {
    char *data;
    size_t n, size;
    bool failed;
};
void synth_append(struct synth_buffer *b, const void *data, size_t bytes);
void synth_print(struct synth_buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

float synth_round(float value, enum tensor_dtype dtype); /* to the nearest value of dtype, ties to even */
