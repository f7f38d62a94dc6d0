/* checkpoint_quant_test.h - for the tests of quantised checkpoints: what a matrix is worth, read through struct
 * quant_matrix, and safetensors files made of a few tensors. */
#pragma once

#include "base/file.h"
#include "tp/checkpoint/quant_matrix.h"
#include "tp/checkpoint/quant_tensor.h"
#include "tp/checkpoint/tensor_names.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static inline float test_e4m3(uint8_t code) {
    int exponent = code >> 3 & 15, mantissa = code & 7;
    float size = exponent ? ldexpf(8.0f + (float)mantissa, exponent - 10) : ldexpf((float)mantissa, -9);
    return code & 0x80 ? -size : size;
}

/* All values, in the order of the file's inputs, rounded once. */
static inline float *test_values(const struct quant_matrix *q) {
    float *values = malloc((size_t)q->rows * q->columns * sizeof(*values));
    uint8_t *codes = malloc(q->columns);
    struct quant_group *groups = malloc(quant_groups(q) * sizeof(*groups));
    assert_true(values && codes && groups);
    for (uint32_t row = 0; row < q->rows; row++) {
        q->codes(q, row, 1, 0, q->columns, codes);
        q->groups(q, row, 0, quant_groups(q), groups);
        for (uint32_t k = 0; k < q->columns; k++) {
            const struct quant_group *g = &groups[k / q->group];
            float code = q->format == QUANT_FP8 ? test_e4m3(codes[k]) : (float)(codes[k] - g->zero);
            values[(size_t)row * q->columns + (q->order ? q->order[k] : k)] = g->scale * code;
            assert_true(g->minimum == 0);
        }
    }
    free(codes);
    free(groups);
    return values;
}

struct test_piece {
    char name[160];
    enum tensor_dtype dtype;
    uint32_t n_dims;
    uint64_t dims[3];
    const void *data; /* as many bytes as the shape has */
};

static inline uint64_t test_bytes(const struct test_piece *p) {
    uint64_t bytes = tensor_dtype_bytes(p->dtype);
    for (uint32_t i = 0; i < p->n_dims; i++)
        bytes *= p->dims[i];
    return bytes;
}

/* Writes the pieces whose name is not empty, and opens the file. */
static inline struct checkpoint *test_open(const struct test_piece *pieces, size_t n) {
    char path[] = "/tmp/shardd-quant-XXXXXX", *header = NULL;
    size_t bytes = 0;
    uint64_t at = 0, length;
    struct checkpoint *c = NULL;
    struct error e = {0};
    int fd = mkstemp(path);
    FILE *text = open_memstream(&header, &bytes);
    assert_true(fd >= 0 && text);
    fputc('{', text);
    for (size_t i = 0; i < n; i++) {
        const struct test_piece *p = &pieces[i];
        if (!p->name[0])
            continue;
        fprintf(text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", at ? "," : "", p->name,
                tensor_dtype_name(p->dtype));
        for (uint32_t d = 0; d < p->n_dims; d++)
            fprintf(text, "%s%llu", d ? "," : "", (unsigned long long)p->dims[d]);
        fprintf(text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                (unsigned long long)(at + test_bytes(p)));
        at += test_bytes(p);
    }
    fputc('}', text);
    while (ftell(text) % 8 != 0)
        fputc(' ', text);
    fclose(text);
    length = bytes;
    assert_int_equal(file_write_all(fd, &length, 8), 0);
    assert_int_equal(file_write_all(fd, header, bytes), 0);
    for (size_t i = 0; i < n; i++)
        if (pieces[i].name[0])
            assert_int_equal(file_write_all(fd, pieces[i].data, test_bytes(&pieces[i])), 0);
    close(fd);
    if (checkpoint_open_file(path, &c, &e) < 0)
        fail_msg("%s", e.text);
    unlink(path);
    free(header);
    return c;
}
