/* Every layout: what is packed is read back by a reader that knows only what the layout's header says, on odd shapes
 * and every format, by any number of threads and in any ranges of units; the parts of every tp hold what their rank
 * reads. */
#include "kernels/layout/cpu_tiles.h"
#include "kernels/layout/cuda_mma.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct random { /* xorshift, seeded: every run tests the same shapes */
    uint64_t state;
};
static uint32_t next(struct random *r, uint32_t below) {
    r->state ^= r->state << 13;
    r->state ^= r->state >> 7;
    r->state ^= r->state << 17;
    return (uint32_t)((r->state >> 32) % below);
}

/* A matrix in plain arrays: quantised, or dense where codes is NULL. */
struct source {
    struct quant_matrix q;
    uint8_t *codes;
    struct quant_group *groups;
    uint8_t *dense; /* of view.dtype */
    uint32_t *row_order, *order;
    struct k_matrix_view view;
    uint32_t rows, columns;
};

static void read_codes(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n_columns, uint8_t *ret) {
    const struct source *s = q->file;
    assert_in_range(n_rows, 1, QUANT_ROWS_MAX);
    assert_true(row + n_rows <= q->rows && column + n_columns <= q->columns);
    for (uint32_t r = 0; r < n_rows; r++)
        memcpy(ret + (size_t)r * n_columns, s->codes + (size_t)(row + r) * q->columns + column, n_columns);
}
static void read_groups(
        const struct quant_matrix *q, uint32_t row, uint32_t first, uint32_t n, struct quant_group *ret) {
    const struct source *s = q->file;
    assert_true(row < q->rows && first + n <= quant_groups(q));
    memcpy(ret, s->groups + (size_t)row * quant_groups(q) + first, n * sizeof(*ret));
}

static uint32_t *permutation(struct random *r, uint32_t n) {
    uint32_t *p = malloc(n * sizeof(*p));
    assert_non_null(p);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = next(r, i + 1);
        p[i] = p[j];
        p[j] = i;
    }
    return p;
}

static float random_scale(struct random *r, enum quant_scale kind) {
    uint32_t sign = next(r, 2) << 31, bits;
    float value;
    if (kind == QUANT_SCALE_F16) { /* 11 bits, some of them subnormal as F16 */
        value = (float)next(r, 2048) / (float)(1u << (10 + next(r, 15)));
        return sign ? -value : value;
    }
    bits = sign | (100 + next(r, 40)) << 23 | next(r, 1u << 23);
    if (kind == QUANT_SCALE_BF16)
        bits &= 0xffff0000u;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static void source_quantised(struct source *s, struct random *r, enum quant_format format, uint32_t rows,
        uint32_t columns, uint32_t group, bool zeros, bool minimums) {
    *s = (struct source){.rows = rows, .columns = columns};
    s->q = (struct quant_matrix){.format = format,
            .scale = (enum quant_scale)next(r, 3),
            .rows = rows,
            .columns = columns,
            .group = group && group < columns ? group : columns,
            .zeros = zeros,
            .minimums = minimums,
            .codes = read_codes,
            .groups = read_groups,
            .label = "test",
            .file = s};
    size_t n = (size_t)rows * columns, n_groups = (size_t)rows * quant_groups(&s->q);
    s->codes = malloc(n);
    s->groups = calloc(n_groups, sizeof(*s->groups));
    assert_non_null(s->codes);
    assert_non_null(s->groups);
    for (size_t i = 0; i < n; i++)
        s->codes[i] = (uint8_t)next(r, format == QUANT_INT4 ? 16 : 256);
    for (size_t i = 0; i < n_groups; i++) {
        s->groups[i].scale = random_scale(r, s->q.scale);
        s->groups[i].zero = (uint8_t)(format == QUANT_INT4 ? 8 : 128);
        if (zeros)
            s->groups[i].zero = (uint8_t)next(r, format == QUANT_INT4 ? 16 : 256);
        if (minimums)
            s->groups[i].minimum = random_scale(r, QUANT_SCALE_F32);
    }
    s->row_order = next(r, 2) ? permutation(r, rows) : NULL;
    s->view = (struct k_matrix_view){.quant = &s->q, .rows = rows, .row_order = s->row_order};
}
static void source_dense(struct source *s, struct random *r, uint32_t rows, uint32_t columns) {
    *s = (struct source){.rows = rows, .columns = columns};
    const enum k_dtype dtype = (enum k_dtype)next(r, 3);
    const size_t bytes = (size_t)rows * columns * k_dtype_bytes(dtype);
    s->dense = malloc(bytes);
    assert_non_null(s->dense);
    for (size_t i = 0; i < bytes; i++)
        s->dense[i] = (uint8_t)next(r, 256);
    s->row_order = next(r, 2) ? permutation(r, rows) : NULL;
    s->order = next(r, 2) ? permutation(r, columns) : NULL;
    s->view = (struct k_matrix_view){
            .data = s->dense, .row_stride = columns, .rows = rows, .row_order = s->row_order, .dtype = dtype};
}
static void source_done(struct source *s) {
    free(s->codes);
    free(s->groups);
    free(s->dense);
    free(s->row_order);
    free(s->order);
}

/* --- the readers: where an element is, from the words of the headers --- */

struct reader {
    struct k_tiles t;
    uint32_t strips, leaf_columns;
    uint32_t segments; /* of the leaf that has most */
    size_t bytes;
};
struct place { /* a code or a value of two bytes */
    size_t at;
    uint32_t shift;
};

/* The segments of a leaf before column k of the matrix, and where the one of k begins. */
static uint32_t segment_of(const struct reader *r, uint32_t k, uint32_t *ret_begin) {
    const uint32_t first = k / r->leaf_columns * r->leaf_columns;
    uint32_t n = 0;
    *ret_begin = first;
    for (uint32_t c = first + 1; c <= k; c++) {
        if (c % r->t.group == 0 || (c - first) % 128 == 0) {
            n++;
            *ret_begin = c;
        }
    }
    return n;
}

static size_t up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}
static size_t scale_bytes(const struct reader *r) {
    return r->t.scale == QUANT_SCALE_F32 ? 4 : 2;
}

/* cpu-2 */
static size_t cpu_codes_of(const struct reader *r, uint32_t n) { /* of a segment */
    return r->t.format == QUANT_INT4   ? up(n, 8) / 8 * 64
           : r->t.format == QUANT_INT8 ? up(n, 4) / 4 * 64
                                       : n * 16u;
}
static size_t cpu_codes_before(const struct reader *r, uint32_t first, uint32_t begin) {
    size_t bytes = 0;
    for (uint32_t c = first, at = first; c < begin; c++) {
        if (c + 1 == begin || (c + 1) % r->t.group == 0 || (c + 1 - first) % 128 == 0) {
            bytes += cpu_codes_of(r, c + 1 - at);
            at = c + 1;
        }
    }
    return bytes;
}
static size_t cpu_block(const struct reader *r, uint32_t row, uint32_t leaf) {
    const size_t block = r->bytes / r->strips / 8;
    const uint32_t strip = row / 16, group = strip / 16 * 16,
                   of_group = r->strips - group < 16 ? r->strips - group : 16;
    return (group * 8 + leaf * of_group + strip % 16) * block;
}
static struct place cpu_code(const struct reader *r, uint32_t row, uint32_t k) {
    const uint32_t leaf = k / r->leaf_columns, first = leaf * r->leaf_columns;
    const size_t block = cpu_block(r, row, leaf);
    uint32_t begin;
    if (!r->t.quantised)
        return (struct place){block + ((size_t)(k - first) * 16 + row % 16) * k_dtype_bytes(r->t.dtype), 0};
    segment_of(r, k, &begin);
    const size_t codes = block + cpu_codes_before(r, first, begin);
    const uint32_t i = k - begin;
    if (r->t.format == QUANT_INT4)
        return (struct place){codes + i / 8 * 64 + row % 16 * 4 + i % 4, i % 8 / 4 * 4};
    if (r->t.format == QUANT_INT8)
        return (struct place){codes + i / 4 * 64 + row % 16 * 4 + i % 4, 0};
    return (struct place){codes + (size_t)i * 16 + row % 16, 0};
}
static size_t cpu_scales(
        const struct reader *r) { /* where they begin in a block: after the codes of the longest leaf */
    size_t most = 0;
    for (uint32_t leaf = 0; leaf < 8; leaf++) {
        const uint32_t first = leaf * r->leaf_columns;
        size_t n = cpu_codes_before(r, first, first + r->leaf_columns);
        most = n > most ? n : most;
    }
    return most;
}
static void cpu_group(const struct reader *r, uint32_t row, uint32_t k, size_t ret[3]) {
    uint32_t begin;
    const size_t i = segment_of(r, k, &begin) * 16 + row % 16, all = r->segments * 16u;
    const size_t at = cpu_block(r, row, k / r->leaf_columns) + cpu_scales(r);
    ret[0] = at + i * scale_bytes(r);
    ret[1] = at + all * scale_bytes(r) + i;
    ret[2] = at + all * scale_bytes(r) + (r->t.zeros ? all : 0) + i * 4;
}

/* cuda-mma-2 */
static uint32_t cuda_runs(const struct reader *r) {
    return (r->leaf_columns + 127) / 128;
}
static size_t cuda_block(const struct reader *r, uint32_t row, uint32_t leaf) { /* [leaf][strip] */
    return (size_t)leaf * r->strips + row / 16;
}
static uint32_t cuda_slots(const struct reader *r) {
    const uint32_t g = r->t.group;
    const uint32_t even = 128 % g == 0 && r->leaf_columns % g == 0 ? cuda_runs(r) * (128 / g) : 0;
    return even > r->segments ? even : r->segments;
}
static struct place cuda_code(const struct reader *r, uint32_t row, uint32_t k) {
    const uint32_t leaf = k / r->leaf_columns, in = k % r->leaf_columns % 128,
                   run = k % r->leaf_columns / 128;
    const uint32_t format = r->t.quantised        ? (uint32_t)r->t.format
                            : r->t.dtype == K_F32 ? 4
                                                  : 3,
                   sizes[] = {1024, 2048, 2048, 4096, 8192};
    const size_t at = (cuda_block(r, row, leaf) * cuda_runs(r) + run) * sizes[format];
    for (uint32_t lane = 0; lane < 32; lane++) {
        const uint32_t g = lane >> 2, i = lane & 3, high = row % 16 == g + 8;
        if (row % 8 != g)
            continue;
        if (format == QUANT_INT4 || format == QUANT_INT8) {
            const uint32_t j = in / 32, owned = 8 * i;
            if (in % 32 < owned || in % 32 >= owned + 8)
                continue;
            const uint32_t e = in % 32 - owned;
            if (format == QUANT_INT4)
                return (struct place){
                        at + j / 2 * 512 + lane * 16 + (j % 2 * 2 + high) * 4 + e % 4, e < 4 ? 0 : 4};
            return (struct place){at + j * 512 + lane * 16 + (e / 4 * 2 + high) * 4 + e % 4, 0};
        }
        for (uint32_t a = 0; a < 8; a++) { /* the table of m16n8k16 */
            const uint32_t of_row = a % 4 < 2 ? g : g + 8, of_k = 2 * i + a % 2 + (a < 4 ? 0 : 8),
                           step = in / 16;
            if (of_row != row % 16 || of_k != in % 16)
                continue;
            if (format == 3)
                return (struct place){at + step * 512 + lane * 16 + a * 2, 0};
            if (format == 4)
                return (struct place){at + step * 1024 + a / 4 * 512 + lane * 16 + a % 4 * 4, 0};
            const uint32_t v = a / 4, q = a % 4 / 2, h = a % 2;
            return (struct place){at + step / 2 * 512 + lane * 16 + step % 2 * 8 + v * 4 + q + 2 * h, 0};
        }
    }
    fail_msg("no lane has row %u, k %u", row, k);
    return (struct place){0, 0};
}
static void cuda_group(const struct reader *r, uint32_t row, uint32_t k, size_t ret[3]) {
    uint32_t begin;
    const size_t sizes[] = {1024, 2048, 2048}, all = (size_t)8 * r->strips * cuda_slots(r) * 16;
    const size_t i =
            (cuda_block(r, row, k / r->leaf_columns) * cuda_slots(r) + segment_of(r, k, &begin)) * 16 +
            row % 8 * 2 + row % 16 / 8;
    const size_t scales = up((size_t)8 * r->strips * cuda_runs(r) * sizes[r->t.format], 256),
                 zeros = up(scales + all * scale_bytes(r), 256),
                 minimums = up(zeros + (r->t.zeros ? all : 0), 256);
    ret[0] = scales + i * scale_bytes(r);
    ret[1] = zeros + i;
    ret[2] = minimums + i * 4;
}

/* What a layout is, for the tests. */
static const struct subject {
    const struct k_layout *layout;
    struct place (*code)(const struct reader *r, uint32_t row, uint32_t k);
    void (*group)(const struct reader *r, uint32_t row, uint32_t k, size_t ret[3]); /* scale, zero, minimum */
    uint8_t flip[3];                                                                /* by format */
} subjects[] = {{&k_layout_cpu, cpu_code, cpu_group, {0, 0, 0}},
        {&k_layout_cuda_mma, cuda_code, cuda_group, {8, 128, 0}}};
enum { SUBJECTS = sizeof(subjects) / sizeof(subjects[0]) };

/* --- packing --- */

struct packed {
    struct reader r;
    uint8_t *data;
};
static void packed_make(struct packed *p, const struct subject *x, const struct source *s, uint32_t threads) {
    struct error e = {0};
    uint32_t begin;
    *p = (struct packed){.r = {.strips = (s->rows + 15) / 16, .leaf_columns = s->columns / 8}};
    k_tiles_describe(&s->view, s->columns, &p->r.t);
    p->r.bytes = x->layout->bytes(&p->r.t);
    for (uint32_t leaf = 0; leaf < 8 && s->codes; leaf++) {
        const uint32_t n = segment_of(&p->r, (leaf + 1) * p->r.leaf_columns - 1, &begin) + 1;
        p->r.segments = n > p->r.segments ? n : p->r.segments;
    }
    p->data = malloc(p->r.bytes);
    assert_non_null(p->data);
    memset(p->data, 0x5a, p->r.bytes); /* packing defines every byte */
    if (k_layout_pack(x->layout, &s->view, s->columns, s->order, threads, p->data, &e) < 0)
        fail_msg("%s", e.text);
    p->r.t.data = p->data;
}

static float float_at(const struct reader *r, const uint8_t *p) {
    uint32_t bits = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 24;
    float value;
    if (r->t.scale == QUANT_SCALE_F16) {
        const int exponent = p[1] >> 2 & 31, mantissa = (p[1] & 3) << 8 | p[0];
        value = exponent ? (float)(1024 + mantissa) * (float)(1u << exponent) * 0x1p-25f
                         : (float)mantissa * 0x1p-24f;
        return p[1] & 0x80 ? -value : value;
    }
    if (r->t.scale == QUANT_SCALE_F32)
        memcpy(&bits, p, sizeof(bits));
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static void check_element(
        const struct subject *x, const struct source *s, const struct packed *p, uint32_t row, uint32_t k) {
    const uint32_t from = s->row_order ? s->row_order[row] : row;
    const struct place at = x->code(&p->r, row, k);
    size_t of[3];
    assert_true(at.at < p->r.bytes);
    if (!s->codes) {
        const size_t size = k_dtype_bytes(s->view.dtype);
        assert_memory_equal(p->data + at.at,
                s->dense + ((size_t)from * s->columns + (s->order ? s->order[k] : k)) * size, size);
        return;
    }
    const uint8_t mask = s->q.format == QUANT_INT4 ? 15 : 255,
                  code = (uint8_t)((p->data[at.at] >> at.shift & mask) ^ x->flip[s->q.format]);
    const struct quant_group *want = &s->groups[(size_t)from * quant_groups(&s->q) + k / s->q.group];
    if (code != s->codes[(size_t)from * s->columns + k])
        fail_msg("%s: row %u, k %u: code %u, packed from %u", x->layout->name, row, k, code,
                s->codes[(size_t)from * s->columns + k]);
    x->group(&p->r, row, k, of);
    const float scale = float_at(&p->r, p->data + of[0]);
    assert_true(scale == want->scale);
    if (s->q.zeros)
        assert_int_equal(p->data[of[1]], want->zero);
    if (s->q.minimums)
        assert_memory_equal(p->data + of[2], &want->minimum, 4);
}

static void check_source(const struct source *s) {
    for (uint32_t i = 0; i < SUBJECTS; i++) {
        struct packed p;
        packed_make(&p, &subjects[i], s, 1 + i * 2);
        for (uint32_t row = 0; row < s->rows; row++)
            for (uint32_t k = 0; k < s->columns; k++)
                check_element(&subjects[i], s, &p, row, k);
        free(p.data);
    }
}

static void quantised_matrices_are_read_back(void **state) {
    (void)state;
    struct random r = {88172645463325252u};
    static const uint32_t groups[] = {16, 32, 64, 128, 256, 0};
    for (int i = 0; i < 54; i++) {
        const enum quant_format format = (enum quant_format)(i % 3);
        const bool integer = format != QUANT_FP8;
        struct source s;
        source_quantised(&s, &r, format, 1 + next(&r, 40), 8 * (1 + next(&r, 140)), groups[i / 3 % 6],
                integer && next(&r, 2), integer && next(&r, 2));
        check_source(&s);
        source_done(&s);
    }
    for (int format = 0; format < 3; format++) { /* whole runs; more than one group of strips */
        struct source s;
        source_quantised(&s, &r, (enum quant_format)format, format ? 16 : 300, 2048, 128, false, false);
        check_source(&s);
        source_done(&s);
    }
}

static void dense_matrices_are_read_back(void **state) {
    (void)state;
    struct random r = {362436069u};
    for (int i = 0; i < 12; i++) {
        struct source s;
        source_dense(&s, &r, 1 + next(&r, 70), 8 * (1 + next(&r, 60)));
        check_source(&s);
        source_done(&s);
    }
}

/* --- units and parts --- */

static void any_ranges_of_units_are_the_whole(void **state) {
    (void)state;
    struct random r = {2463534242u};
    for (uint32_t i = 0; i < SUBJECTS * 8; i++) {
        const struct subject *x = &subjects[i % SUBJECTS];
        struct source s;
        struct packed p, q;
        source_quantised(
                &s, &r, (enum quant_format)(i / 2 % 2), 290, 8 * (20 + next(&r, 30)), 32, i & 1, i & 2);
        packed_make(&p, x, &s, 4);
        packed_make(&q, x, &s, 1);
        assert_memory_equal(p.data, q.data, p.r.bytes);
        const struct k_layout_source source = {.tiles = &p.r.t, .view = &s.view};
        const uint32_t all = x->layout->units(&p.r.t);
        assert_int_equal(x->layout->unit_at(&p.r.t, 0), 0);
        assert_int_equal(x->layout->unit_at(&p.r.t, all), p.r.bytes);
        for (uint32_t first = 0, n; first < all; first += n) {
            n = 1 + next(&r, 70);
            n = n < all - first ? n : all - first;
            const size_t at = x->layout->unit_at(&p.r.t, first), end = x->layout->unit_at(&p.r.t, first + n);
            uint8_t *to = malloc(end - at); /* the sanitizers see what goes beyond it */
            assert_non_null(to);
            x->layout->pack(&source, first, n, to);
            assert_memory_equal(to, p.data + at, end - at);
            free(to);
        }
        free(p.data);
        free(q.data);
        source_done(&s);
    }
}

static bool inside(const struct subject *x, const struct k_matrix_view *v, uint32_t columns, uint32_t leaves,
        size_t at, size_t n) {
    const void *from;
    size_t bytes;
    for (uint32_t i = 0; x->layout->part(v, columns, leaves, i, &from, &bytes); i++) {
        const size_t begin = (size_t)((const uint8_t *)from - (const uint8_t *)v->tiles->data);
        if (at >= begin && at + n <= begin + bytes)
            return true;
    }
    return false;
}

/* A rank's rows and leaves: all that it reads lies in its stretches, which are ascending and inside the matrix. */
static void check_part(const struct subject *x, const struct source *s, const struct packed *p, uint32_t row,
        uint32_t rows, uint32_t tp, uint32_t rank) {
    const uint32_t columns = s->columns / tp;
    const struct k_matrix_view v = {
            .tiles = &p->r.t, .rows = rows, .first_row = row, .first_column = rank * columns};
    const uint8_t *end = p->data;
    const void *from;
    size_t bytes, of[3];
    for (uint32_t i = 0; x->layout->part(&v, columns, 8 / tp, i, &from, &bytes); i++) {
        assert_true((const uint8_t *)from >= end && bytes > 0);
        end = (const uint8_t *)from + bytes;
        assert_true(end <= p->data + p->r.bytes);
    }
    for (uint32_t r = row; r < row + rows; r += 3)
        for (uint32_t k = rank * columns; k < (rank + 1) * columns; k += 5) {
            x->group(&p->r, r, k, of);
            assert_true(inside(x, &v, columns, 8 / tp, x->code(&p->r, r, k).at, 1));
            assert_true(inside(x, &v, columns, 8 / tp, of[0], scale_bytes(&p->r)));
            assert_true(inside(x, &v, columns, 8 / tp, of[1], 1));
            assert_true(inside(x, &v, columns, 8 / tp, of[2], 4));
        }
}

static void parts_hold_what_a_rank_reads(void **state) {
    (void)state;
    struct random r = {521288629u};
    for (uint32_t i = 0; i < SUBJECTS; i++) {
        struct source s;
        struct packed p;
        source_quantised(&s, &r, QUANT_INT4, 300, 448, 32, true, true);
        packed_make(&p, &subjects[i], &s, 2);
        for (uint32_t tp = 1; tp <= 8; tp *= 2)
            for (uint32_t rank = 0; rank < tp; rank++)
                check_part(&subjects[i], &s, &p, 0, 300, tp, rank);
        check_part(&subjects[i], &s, &p, 16, 48, 1, 0);
        check_part(&subjects[i], &s, &p, 240, 60, 1, 0);
        check_part(&subjects[i], &s, &p, 288, 5, 2, 1);
        free(p.data);
        source_done(&s);
    }
}

/* --- names --- */

static uint64_t hash(const uint8_t *p, size_t n) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

/* Packed files outlive the program that made them: whoever changes the bytes must give the layout another name. */
static void bytes_are_what_the_name_says(void **state) {
    (void)state;
    static const struct {
        enum quant_format format;
        uint32_t group;
        bool zeros, minimums;
        uint64_t hashes[SUBJECTS];
    } cases[] = {{QUANT_INT4, 128, false, false, {0xf53ae58f19e2197au, 0x006cb2c5cd8696b6u}},
            {QUANT_INT4, 32, true, true, {0x9753df1fc0f3b89fu, 0x0bb993d749a737d8u}},
            {QUANT_INT8, 0, false, false, {0xe8e7cb4e6e1262c2u, 0x3493bfd5ee99279au}},
            {QUANT_FP8, 64, false, false, {0x23445b69e6afb735u, 0xfa3f9b5c8f5844afu}}};
    struct random r = {123456789u};
    bool same = true;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct source s;
        source_quantised(
                &s, &r, cases[i].format, 37, 1200, cases[i].group, cases[i].zeros, cases[i].minimums);
        for (uint32_t k = 0; k < SUBJECTS; k++) {
            struct packed p;
            packed_make(&p, &subjects[k], &s, 1);
            if (hash(p.data, p.r.bytes) != cases[i].hashes[k]) {
                print_message("case %zu in %s hashes to 0x%016llxu\n", i, subjects[k].layout->name,
                        (unsigned long long)hash(p.data, p.r.bytes));
                same = false;
            }
            free(p.data);
        }
        source_done(&s);
    }
    assert_true(same);
    assert_string_equal(k_layout_cpu.name, "cpu-2");
    assert_string_equal(k_layout_cuda_mma.name, "cuda-mma-2");
}

static void layouts_are_found_by_name(void **state) {
    (void)state;
    assert_ptr_equal(k_layout_find("cpu-2"), &k_layout_cpu);
    assert_ptr_equal(k_layout_find("cuda-mma-2"), &k_layout_cuda_mma);
    assert_null(k_layout_find("cpu-1"));
    assert_null(k_layout_find(""));
}

/* The sizes that kernels count on. */
static void sizes_are_as_written(void **state) {
    (void)state;
    struct k_tiles t = {.rows = 17408,
            .columns = 5120,
            .quantised = true,
            .format = QUANT_INT4,
            .scale = QUANT_SCALE_BF16,
            .group = 128};
    struct cuda_mma_plan p = cuda_mma_plan(&t);
    assert_int_equal(p.run_bytes, 1024);
    assert_int_equal(p.runs, 5);
    assert_int_equal(p.slots, 5);
    assert_int_equal(p.scales_at, 17408u / 16 * 40 * 1024);
    assert_int_equal(p.bytes, p.scales_at + 17408u * 40 * 2);
    t.group = 32;
    assert_int_equal(cuda_mma_plan(&t).slots, 20);
    t.group = t.columns; /* repeated in every run */
    assert_int_equal(cuda_mma_plan(&t).slots, 5);
    t.columns = 3584; /* leaves of 448: three runs and a half; groups of 128 begin anywhere */
    t.group = 128;
    p = cuda_mma_plan(&t);
    assert_int_equal(p.runs, 4);
    assert_int_equal(p.slots, 7);
    t.group = 64;
    assert_int_equal(cuda_mma_plan(&t).slots, 8); /* the half run has room for two */
}

static void what_is_no_whole_matrix_is_refused(void **state) {
    (void)state;
    static const float data[64 * 16];
    static uint8_t to[1 << 16];
    const struct k_matrix_view v = {.data = data, .row_stride = 64, .rows = 16, .dtype = K_F32};
    struct error e = {0};
    for (uint32_t i = 0; i < SUBJECTS; i++) {
        assert_int_equal(k_layout_pack(subjects[i].layout, &v, 60, NULL, 1, to, &e), -EINVAL);
        assert_non_null(strstr(e.text, "60 columns"));
        assert_int_equal(
                k_layout_pack(subjects[i].layout, &(struct k_matrix_view){.rows = 16}, 64, NULL, 1, to, &e),
                -22);
        assert_non_null(strstr(e.text, "neither"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(quantised_matrices_are_read_back),
            cmocka_unit_test(dense_matrices_are_read_back),
            cmocka_unit_test(any_ranges_of_units_are_the_whole),
            cmocka_unit_test(parts_hold_what_a_rank_reads),
            cmocka_unit_test(bytes_are_what_the_name_says),
            cmocka_unit_test(layouts_are_found_by_name),
            cmocka_unit_test(sizes_are_as_written),
            cmocka_unit_test(what_is_no_whole_matrix_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
