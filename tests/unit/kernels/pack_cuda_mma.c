/* pack_cuda_mma.c - the layout cuda-mma-1: what is packed is read back, on odd shapes and every format, and a lane
 * finds in its bytes the fragments that the mma instruction wants. */
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

/* A quantised matrix in plain arrays. */
struct source {
    struct quant_matrix q;
    uint8_t *codes;
    struct quant_group *groups;
};

static void read_codes(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n_columns, uint8_t *ret) {
    const struct source *s = q->file;
    for (uint32_t r = 0; r < n_rows; r++)
        memcpy(ret + (size_t)r * n_columns, s->codes + (size_t)(row + r) * q->columns + column, n_columns);
}
static void read_groups(
        const struct quant_matrix *q, uint32_t row, uint32_t first, uint32_t n, struct quant_group *ret) {
    const struct source *s = q->file;
    memcpy(ret, s->groups + (size_t)row * quant_groups(q) + first, n * sizeof(*ret));
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

static void source_make(struct source *s, struct random *r, enum quant_format format, uint32_t rows,
        uint32_t columns, uint32_t group, bool zeros, bool minimums) {
    *s = (struct source){.q = {.format = format,
                                 .scale = (enum quant_scale)next(r, 3),
                                 .rows = rows,
                                 .columns = columns,
                                 .group = group < columns ? group : columns,
                                 .zeros = zeros,
                                 .minimums = minimums,
                                 .codes = read_codes,
                                 .groups = read_groups,
                                 .label = "test"}};
    s->q.file = s;
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
}
static void source_done(struct source *s) {
    free(s->codes);
    free(s->groups);
}

struct packed {
    struct k_tiles t;
    struct cuda_mma_plan plan;
    uint8_t *data;
};

/* In three ranges of strips, as threads would. */
static void packed_make(
        struct packed *p, const struct k_matrix_view *whole, uint32_t columns, const uint32_t *order) {
    struct error e = {0};
    k_tiles_describe(whole, columns, &p->t);
    if (cuda_mma_plan(&p->t, &p->plan, &e) < 0)
        fail_msg("%s", e.text);
    p->data = calloc(1, p->plan.bytes);
    assert_non_null(p->data);
    p->t.data = p->data;
    uint32_t third = p->plan.strips / 3;
    cuda_mma_pack(&p->plan, &p->t, whole, order, 0, third, p->data);
    cuda_mma_pack(&p->plan, &p->t, whole, order, third, third, p->data);
    cuda_mma_pack(&p->plan, &p->t, whole, order, 2 * third, p->plan.strips - 2 * third, p->data);
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

static void check_quantised(struct random *r, enum quant_format format, uint32_t rows, uint32_t columns,
        uint32_t group, bool zeros, bool minimums) {
    struct source s;
    struct packed p;
    source_make(&s, r, format, rows, columns, group, zeros, minimums);
    uint32_t *order = next(r, 2) ? permutation(r, rows) : NULL;
    const struct k_matrix_view whole = {.quant = &s.q, .rows = rows, .row_order = order};
    packed_make(&p, &whole, columns, NULL);
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t from = order ? order[row] : row;
        for (uint32_t k = 0; k < columns; k++) {
            struct quant_group got = cuda_mma_group(&p.plan, &p.t, row, k),
                               want = s.groups[(size_t)from * quant_groups(&s.q) + k / s.q.group];
            assert_int_equal(cuda_mma_code(&p.plan, &p.t, row, k), s.codes[(size_t)from * columns + k]);
            assert_memory_equal(&got.scale, &want.scale, sizeof(float));
            assert_int_equal(got.zero, want.zero);
            assert_memory_equal(&got.minimum, &want.minimum, sizeof(float));
        }
    }
    free(p.data);
    free(order);
    source_done(&s);
}

static void quantised_round_trips(void **state) {
    (void)state;
    struct random r = {88172645463325252u};
    static const uint32_t groups[] = {16, 32, 64, 128, 1u << 20};
    for (int i = 0; i < 60; i++) {
        enum quant_format format = (enum quant_format)(i % 3);
        bool integer = format != QUANT_FP8;
        check_quantised(&r, format, 1 + next(&r, 70), 8 * (1 + next(&r, 100)), groups[next(&r, 5)],
                integer && next(&r, 2), integer && next(&r, 2));
    }
    check_quantised(&r, QUANT_INT4, 16, 512, 128, false, false); /* nothing to pad */
}

static void dense_round_trips(void **state) {
    (void)state;
    struct random r = {362436069u};
    for (int i = 0; i < 20; i++) {
        uint32_t rows = 1 + next(&r, 70), columns = 8 * (1 + next(&r, 60));
        uint16_t *data = malloc((size_t)rows * columns * 2);
        assert_non_null(data);
        for (size_t k = 0; k < (size_t)rows * columns; k++)
            data[k] = (uint16_t)next(&r, 65536);
        uint32_t *order = next(&r, 2) ? permutation(&r, columns) : NULL;
        uint32_t *row_order = next(&r, 2) ? permutation(&r, rows) : NULL;
        const struct k_matrix_view whole = {.data = data,
                .row_stride = columns,
                .rows = rows,
                .row_order = row_order,
                .dtype = next(&r, 2) ? K_BF16 : K_F16};
        struct packed p;
        packed_make(&p, &whole, columns, order);
        for (uint32_t row = 0; row < rows; row++)
            for (uint32_t k = 0; k < columns; k++)
                assert_int_equal(cuda_mma_dense(&p.plan, &p.t, row, k),
                        data[(size_t)(row_order ? row_order[row] : row) * columns + (order ? order[k] : k)]);
        free(p.data);
        free(order);
        free(row_order);
        free(data);
    }
}

static uint32_t word_at(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* One tile, read as a warp does: by the PTX table, with the masks that the header promises. */
static void lanes_find_their_fragments(void **state) {
    (void)state;
    struct random r = {521288629u};
    for (int format = QUANT_INT4; format <= QUANT_INT8; format++) {
        struct source s;
        struct packed p;
        source_make(&s, &r, (enum quant_format)format, 16, 512, 64, false, false);
        const struct k_matrix_view whole = {.quant = &s.q, .rows = 16};
        packed_make(&p, &whole, 512, NULL);
        for (uint32_t lane = 0; lane < 32; lane++) {
            const uint32_t g = lane >> 2, tid = lane & 3;
            for (uint32_t step = 0; step < 4; step++) {
                for (uint32_t pair = 0; pair < 4; pair++) {
                    uint32_t two;
                    if (format == QUANT_INT4)
                        two = word_at(p.data + lane * 16 + step * 4) >> 4 * pair & 0x000f000f;
                    else
                        two = word_at(p.data + step / 2 * 512 + lane * 16 + step % 2 * 8 + pair / 2 * 4) >>
                                      8 * (pair % 2) &
                              0x00ff00ff;
                    const uint32_t row = pair % 2 ? g + 8 : g, k = step * 16 + 2 * tid + (pair >= 2 ? 8 : 0);
                    assert_int_equal(two & 0xffff, s.codes[row * 512 + k]);
                    assert_int_equal(two >> 16, s.codes[row * 512 + k + 1]);
                }
            }
        }
        free(p.data);
        source_done(&s);
    }
}

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
        uint64_t hash;
    } cases[] = {{QUANT_INT4, 128, false, false, 0x7a01f70917d6e532u},
            {QUANT_INT4, 32, true, true, 0x5b46b524b02ed9f9u},
            {QUANT_INT8, 1u << 20, false, false, 0x059a44972913e3a4u},
            {QUANT_FP8, 64, false, false, 0x760ef2c2d8351359u}};
    struct random r = {123456789u};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct source s;
        struct packed p;
        source_make(&s, &r, cases[i].format, 37, 1200, cases[i].group, cases[i].zeros, cases[i].minimums);
        const struct k_matrix_view whole = {.quant = &s.q, .rows = 37};
        packed_make(&p, &whole, 1200, NULL);
        if (hash(p.data, p.plan.bytes) != cases[i].hash)
            fail_msg("case %zu hashes to 0x%016llx, not to 0x%016llx", i,
                    (unsigned long long)hash(p.data, p.plan.bytes), (unsigned long long)cases[i].hash);
        free(p.data);
        source_done(&s);
    }
    assert_string_equal(CUDA_MMA_LAYOUT, "cuda-mma-1");
}

/* The sizes that the kernels count on: 512 bytes of INT4 per tile, [slot][16] scales. */
static void sizes_are_as_written(void **state) {
    (void)state;
    struct k_tiles t = {.rows = 17408,
            .columns = 5120,
            .quantised = true,
            .format = QUANT_INT4,
            .scale = QUANT_SCALE_BF16,
            .group = 128};
    struct cuda_mma_plan p;
    assert_int_equal(cuda_mma_plan(&t, &p, NULL), 0);
    assert_int_equal(p.tile_bytes, 512);
    assert_int_equal(p.tiles, 10);
    assert_int_equal(p.slots, 5);
    assert_int_equal(p.scales_at, 17408u / 16 * 80 * 512);
    assert_int_equal(p.bytes, p.scales_at + 17408u * 40 * 2);
    t.columns = 3584; /* leaves of 448: three groups and a half */
    assert_int_equal(cuda_mma_plan(&t, &p, NULL), 0);
    assert_int_equal(p.slots, 4);
}

static void what_has_no_form_is_refused(void **state) {
    (void)state;
    struct k_tiles t = {.rows = 16, .columns = 64, .dtype = K_F32};
    struct cuda_mma_plan p;
    struct error e = {0};
    assert_int_equal(cuda_mma_plan(&t, &p, &e), -ENOTSUP);
    assert_non_null(strstr(e.text, "FP32"));
    t.dtype = K_BF16;
    t.columns = 60;
    assert_int_equal(cuda_mma_plan(&t, &p, &e), -EINVAL);
    assert_non_null(strstr(e.text, "60 columns"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(quantised_round_trips),
            cmocka_unit_test(dense_round_trips),
            cmocka_unit_test(lanes_find_their_fragments),
            cmocka_unit_test(bytes_are_what_the_name_says),
            cmocka_unit_test(sizes_are_as_written),
            cmocka_unit_test(what_has_no_form_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
