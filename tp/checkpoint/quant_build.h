/* quant_build.h - what the makers of the file formats share. Between quant_tensor.c, which finds out what a module is,
 * and quant_gptq.c, quant_compressed.c and quant_fp8.c, which read it; nobody else includes this. */
#pragma once

#include "tp/checkpoint/quant_tensor.h"

struct quant_build {
    const struct quant_request *q;
    struct quant_scheme scheme; /* what the configuration says; zeros where it says nothing */
    struct quant_tensor *t;     /* being made; zeroed at first, layout and matrix are the maker's to fill */
    struct error *e;
};

/* --- makers: codes is the tensor that made out what the module is --- */
int quant_make_gptq(struct quant_build *b, const struct tensor *codes); /* and AWQ */
int quant_make_packed(struct quant_build *b, const struct tensor *codes);
int quant_make_int8(struct quant_build *b, const struct tensor *codes);
int quant_make_fp8(struct quant_build *b, const struct tensor *codes);

/* --- parts --- */
const struct tensor *quant_part(
        const struct quant_build *b, const char *suffix); /* "scales"; NULL if absent */
/* The same; refuses an absent one. */
int quant_need(const struct quant_build *b, const char *suffix, const struct tensor **ret);
void quant_use(struct quant_build *b, const struct tensor *part); /* counts it as a part */
/* [rows][columns] of this dtype? */
int quant_expect(const struct quant_build *b, const struct tensor *t, enum tensor_dtype dtype, uint64_t rows,
        uint64_t columns);
int quant_expect_method(const struct quant_build *b, const struct tensor *codes, enum quant_method method,
        enum quant_method other);
int quant_expect_type(const struct quant_build *b, const struct tensor *codes, bool is_float);
int quant_expect_bits(const struct quant_build *b, const struct tensor *codes, uint32_t bits);

/* --- contents --- */
int quant_set_scales(struct quant_build *b, const struct tensor *t); /* pointer and dtype */
/* Columns of a group where t has `found` of them in a row; into the matrix. */
int quant_set_group(struct quant_build *b, const struct tensor *t, uint64_t found);
/* The zeros in t, whose shape is checked; none where all of them are the middle. */
void quant_set_zeros(struct quant_build *b, const struct tensor *t);
/* Columns sorted by the group that t, [columns] of I32, gives each; nothing where they are sorted. */
int quant_set_order(struct quant_build *b, const struct tensor *t);
/* "gptq int4", then group, zeros and order. */
void quant_set_label(struct quant_build *b, const char *format);
