/* gguf_matrix.c - the block formats of GGUF behind the readers of base/quant.h. See gguf_model.h.
 *
 * A block is one row's 32 elements (or 256, in eight runs of 32) with its scales. Codes are shifted where that saves
 * the zeros: five- and six-bit codes are 8-bit ones whose zero is 128, as for Q8_0.
 *
 *   type   code         zero  scale         minimum   group
 *   Q8_0   q + 128      128   d             -         32
 *   Q4_0   q            8     d             -         32
 *   Q4_1   q            0     d             -m        32
 *   Q5_0   q - 16 + 128 128   d             -         32
 *   Q5_1   q + 128      128   d             -m        32
 *   Q4_K   q            0     d * sc        dmin * m  32
 *   Q5_K   q + 128      128   d * sc        dmin * m  32
 *   Q6_K   q - 32 + 128 128   d * sc        -         16
 *
 * d, dmin and m of the 32-blocks are F16; sc and m of the 256-blocks have six bits (eight, signed, in Q6_K), so that
 * the products are exact in F32. */
#include "tp/checkpoint/gguf_model.h"

#include "base/half.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#define RUN 32u /* elements that are unpacked at once */

_Static_assert(RUN == 32, "the block formats are made of runs of 32");

static float half_at(const unsigned char *p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof(bits));
    return float_of_f16(bits);
}

/* --- runs of 32 codes --- */

static void nibbles(const unsigned char *qs, unsigned char *to) {
    for (unsigned j = 0; j < 16; j++) {
        to[j] = qs[j] & 0xF;
        to[j + 16] = qs[j] >> 4;
    }
}

static void five_bits(
        const unsigned char *high, const unsigned char *qs, unsigned offset, unsigned char *to) {
    uint32_t bits;
    memcpy(&bits, high, sizeof(bits));
    for (unsigned j = 0; j < 16; j++) {
        to[j] = (unsigned char)(((qs[j] & 0xFu) | (bits >> j & 1) << 4) + offset);
        to[j + 16] = (unsigned char)((qs[j] >> 4 | (bits >> (j + 16) & 1) << 4) + offset);
    }
}

/* Run `run` of the block. */
static void unpack(enum gguf_tensor_type type, const unsigned char *block, unsigned run, unsigned char *to) {
    const unsigned half = run / 4, quarter = run % 4, shift = run % 2 * 4;
    const unsigned char *qs, *high;
    switch (type) {
    case GGUF_TENSOR_Q8_0:
        for (unsigned j = 0; j < RUN; j++)
            to[j] = block[2 + j] ^ 0x80;
        return;
    case GGUF_TENSOR_Q4_0:
        nibbles(block + 2, to);
        return;
    case GGUF_TENSOR_Q4_1:
        nibbles(block + 4, to);
        return;
    case GGUF_TENSOR_Q5_0:
        five_bits(block + 2, block + 6, 128 - 16, to);
        return;
    case GGUF_TENSOR_Q5_1:
        five_bits(block + 4, block + 8, 128, to);
        return;
    case GGUF_TENSOR_Q4_K: /* d, dmin, 12 bytes of scales, nibbles: two runs share 32 bytes */
        qs = block + 16 + run / 2 * RUN;
        for (unsigned j = 0; j < RUN; j++)
            to[j] = qs[j] >> shift & 0xF;
        return;
    case GGUF_TENSOR_Q5_K: /* ... with 32 bytes of fifth bits before the nibbles */
        qs = block + 48 + run / 2 * RUN;
        high = block + 16;
        for (unsigned j = 0; j < RUN; j++)
            to[j] = (unsigned char)(128u + ((qs[j] >> shift & 0xFu) | (high[j] >> run & 1u) << 4));
        return;
    case GGUF_TENSOR_Q6_K: /* nibbles, pairs of upper bits, 16 scales, d; halves of 128 elements */
        qs = block + half * 64 + quarter % 2 * RUN;
        high = block + 128 + half * RUN;
        for (unsigned j = 0; j < RUN; j++)
            to[j] = (unsigned char)(128u - 32u +
                                    ((qs[j] >> quarter / 2 * 4 & 0xFu) | (high[j] >> quarter * 2 & 3u) << 4));
        return;
    default:
        assert(!"a dense type has no codes");
    }
}

/* --- scales --- */

/* Six-bit scale and minimum of run j of a 256-block. */
static void six_bits(const unsigned char *s, unsigned j, unsigned *ret_scale, unsigned *ret_minimum) {
    if (j < 4) {
        *ret_scale = s[j] & 63;
        *ret_minimum = s[j + 4] & 63;
        return;
    }
    *ret_scale = (s[j + 4] & 0xFu) | (unsigned)(s[j - 4] >> 6) << 4;
    *ret_minimum = (unsigned)(s[j + 4] >> 4) | (unsigned)(s[j] >> 6) << 4;
}

/* Group `group` of the block. */
static struct quant_group group_of(enum gguf_tensor_type type, const unsigned char *block, unsigned group) {
    struct quant_group g = {.zero = 128};
    unsigned scale, minimum;
    switch (type) {
    case GGUF_TENSOR_Q4_K:
    case GGUF_TENSOR_Q5_K:
        six_bits(block + 4, group, &scale, &minimum);
        g.scale = half_at(block) * (float)scale;
        g.minimum = half_at(block + 2) * (float)minimum;
        break;
    case GGUF_TENSOR_Q6_K:
        g.scale = half_at(block + 208) * (float)(int8_t)block[192 + group];
        break;
    case GGUF_TENSOR_Q4_1:
    case GGUF_TENSOR_Q5_1:
        g.scale = half_at(block);
        g.minimum = -half_at(block + 2);
        break;
    default:
        g.scale = half_at(block);
    }
    if (type == GGUF_TENSOR_Q4_0)
        g.zero = 8;
    else if (type == GGUF_TENSOR_Q4_1 || type == GGUF_TENSOR_Q4_K)
        g.zero = 0;
    return g;
}

/* --- readers --- */

static const unsigned char *row_at(const struct gguf_matrix *m, uint32_t row) {
    return m->data + gguf_order_at(&m->rows, row) * m->row_bytes;
}

static void read_row(
        const struct gguf_matrix *m, uint32_t row, uint32_t column, uint32_t n, unsigned char *to) {
    const unsigned char *data = row_at(m, row);
    uint32_t block_elements, block_bytes;
    gguf_tensor_block(m->type, &block_elements, &block_bytes);
    while (n > 0) {
        const uint32_t at = gguf_order_at(&m->columns, column), within = at % RUN;
        uint32_t take = RUN - within;
        if (m->columns.ratio >= 2 && take > m->columns.unit - at % m->columns.unit)
            take = m->columns.unit - at % m->columns.unit;
        if (take > n)
            take = n;
        const unsigned char *block = data + (uint64_t)(at / block_elements) * block_bytes;
        const unsigned run = at % block_elements / RUN;
        if (take == RUN) {
            unpack(m->type, block, run, to);
        } else {
            unsigned char whole[RUN];
            unpack(m->type, block, run, whole);
            memcpy(to, whole + within, take);
        }
        to += take;
        column += take;
        n -= take;
    }
}

static void read_codes(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n_columns, uint8_t *ret) {
    for (uint32_t r = 0; r < n_rows; r++)
        read_row(q->file, row + r, column, n_columns, ret + (size_t)r * n_columns);
}

static void read_groups(
        const struct quant_matrix *q, uint32_t row, uint32_t first, uint32_t n, struct quant_group *ret) {
    const struct gguf_matrix *m = q->file;
    const unsigned char *data = row_at(m, row);
    uint32_t block_elements, block_bytes;
    gguf_tensor_block(m->type, &block_elements, &block_bytes);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = gguf_order_at(&m->columns, (first + i) * q->group);
        const unsigned char *block = data + (uint64_t)(at / block_elements) * block_bytes;
        ret[i] = group_of(m->type, block, at % block_elements / q->group);
    }
}

/* --- making --- */

bool gguf_is_quantised(enum gguf_tensor_type t) {
    return t != GGUF_TENSOR_F32 && t != GGUF_TENSOR_F16 && t != GGUF_TENSOR_BF16;
}

static const char *label_of(enum gguf_tensor_type t) {
    switch (t) {
    case GGUF_TENSOR_Q8_0:
        return "gguf q8_0";
    case GGUF_TENSOR_Q4_0:
        return "gguf q4_0";
    case GGUF_TENSOR_Q4_1:
        return "gguf q4_1";
    case GGUF_TENSOR_Q5_0:
        return "gguf q5_0";
    case GGUF_TENSOR_Q5_1:
        return "gguf q5_1";
    case GGUF_TENSOR_Q4_K:
        return "gguf q4_k";
    case GGUF_TENSOR_Q5_K:
        return "gguf q5_k";
    default:
        return "gguf q6_k";
    }
}

int gguf_matrix_make(const struct gguf_tensor *t, const struct gguf_order *rows,
        const struct gguf_order *columns, struct gguf_matrix *ret, struct error *e) {
    const bool four =
            t->type == GGUF_TENSOR_Q4_0 || t->type == GGUF_TENSOR_Q4_1 || t->type == GGUF_TENSOR_Q4_K;
    const bool wide =
            t->type == GGUF_TENSOR_Q4_K || t->type == GGUF_TENSOR_Q5_K || t->type == GGUF_TENSOR_Q6_K;
    const uint32_t group = t->type == GGUF_TENSOR_Q6_K ? 16 : 32;
    assert(gguf_is_quantised(t->type) && t->n_dims == 2);
    if (columns->ratio >= 2 && columns->unit % group != 0)
        return error_set(e, -ENOTSUP,
                "%.*s: heads of %u columns are not whole groups of %u of %s, so that they cannot be put back in "
                "order",
                (int)t->name.bytes, t->name.data, columns->unit, group, gguf_tensor_type_name(t->type));
    *ret = (struct gguf_matrix){.type = t->type,
            .data = t->data,
            .row_bytes = t->bytes / t->dims[1],
            .rows = *rows,
            .columns = *columns,
            .q = {.format = four ? QUANT_INT4 : QUANT_INT8,
                    .scale = wide ? QUANT_SCALE_F32 : QUANT_SCALE_F16,
                    .rows = (uint32_t)t->dims[1],
                    .columns = (uint32_t)t->dims[0],
                    .group = group,
                    .zeros = t->type == GGUF_TENSOR_Q4_1 || t->type == GGUF_TENSOR_Q4_K,
                    .minimums = t->type == GGUF_TENSOR_Q4_1 || t->type == GGUF_TENSOR_Q5_1 ||
                                t->type == GGUF_TENSOR_Q4_K || t->type == GGUF_TENSOR_Q5_K,
                    .codes = read_codes,
                    .groups = read_groups,
                    .label = label_of(t->type)}};
    ret->q.file = ret;
    return 0;
}

int gguf_matrix_row_f16(const struct gguf_matrix *m, uint32_t row, uint16_t *ret) {
    unsigned char codes[RUN];
    struct quant_group g[2];
    const uint32_t group = m->q.group;
    uint32_t infinite = 0;
    for (uint32_t at = 0; at < m->q.columns; at += RUN, ret += RUN) {
        float values[RUN];
        read_row(m, row, at, RUN, codes);
        read_groups(&m->q, row, at / group, RUN / group, g);
        for (uint32_t half = 0; half < 2; half++) {
            const struct quant_group own = g[half * 16 / group];
            for (uint32_t i = half * 16; i < half * 16 + 16; i++)
                values[i] = own.scale * (float)(codes[i] - own.zero) - own.minimum;
        }
        for (uint32_t i = 0; i < RUN; i++) {
            ret[i] = f16_of(values[i]);
            infinite |= (ret[i] & 0x7C00u) == 0x7C00u;
        }
    }
    return infinite ? -ERANGE : 0;
}
