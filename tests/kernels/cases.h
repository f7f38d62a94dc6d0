/* cases.h - operations of kernels.h as a table: how each is run, what it must give, what it has to move. One list
 * judges every kernels library (unit/kernels/cases.c, at ragged sizes) and times it (bench/kernels/cases.c).
 *
 * A run owns what it made but the context and stream, which are the caller's. Values are seeded: the same run twice
 * has the same inputs and must give the same bits. */
#pragma once

#include "kernels/kernels.h"

struct case_size {
    uint32_t rows;     /* of the step, all of one sequence */
    uint32_t columns;  /* K or H; attention: head_dim */
    uint32_t outputs;  /* N; embed: rows of the table; attention: query heads; norms: unused */
    uint32_t position; /* of the first row */
};

struct case_run {
    const struct kernel_case *operation;
    struct case_size size;
    struct k_context *c;
    struct k_stream *s;
    struct k_pool *p;
    struct k_batch *b;
    struct k_linear *linear;
    struct k_table *table;
    void *workspace;
    size_t workspace_bytes;
    uint32_t n_in, n_norm, n_out; /* floats; per row but for n_norm */
    float *in, *norm, *weights;   /* host; weights [outputs][columns] as the operation sees them, or NULL */
    float *d_in, *d_norm, *out;   /* device */
    struct k_plan plan;
    struct k_entry entry;
    uint32_t *ids;
    struct quant_matrix quant;
};

struct kernel_case {
    const char *name;
    double tolerance; /* |got - want| <= tolerance * (1 + |want|) */
    int (*make)(struct case_run *r, struct error *e);
    void (*queue)(struct case_run *r);
    void (*want)(const struct case_run *r, uint32_t row, double *ret); /* [n_out], in double precision */
    uint64_t (*bytes)(const struct case_run *r); /* read and written at least, once each */
    struct case_size most;                       /* ragged sizes lie within this */
    struct case_size timed[3];                   /* rows 0 = no more */
};
extern const struct kernel_case kernel_cases[];
extern const uint32_t n_kernel_cases;

int case_open(struct case_run *r, const struct kernel_case *operation, const struct case_size *size,
        struct k_context *c, struct k_stream *s, struct error *e);
void case_queue(struct case_run *r); /* the operation alone, ready to be timed */
void case_close(struct case_run *r);
