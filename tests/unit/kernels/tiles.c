/* Whole matrices in tiles: any part of them, wherever they lie, gives the bits of a packed copy; what does not fit is
 * refused by name. */
#include "kernels/layout/layout.h"
#include "tests/unit/kernels/quantised.h"

#include <sys/mman.h>

/* Tiles in memory that cannot be written any more, as in a mapped file. */
struct mapped {
    struct k_tiles tiles;
    size_t bytes;
};
static struct mapped tiles_in(const struct k_layout *layout, uint32_t threads,
        const struct k_matrix_view *whole, uint32_t columns, const uint32_t *order) {
    struct mapped m = {.bytes = 0};
    k_tiles_describe(whole, columns, &m.tiles);
    m.bytes = layout->bytes(&m.tiles);
    assert_true(m.bytes > 0 && m.bytes % 64 == 0);
    void *to = mmap(NULL, m.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(to != MAP_FAILED);
    memset(to, 0x5a, m.bytes); /* packing defines every byte */
    OK(k_layout_pack(layout, whole, columns, order, threads, to, e));
    assert_int_equal(mprotect(to, m.bytes, PROT_READ), 0);
    m.tiles.data = to;
    return m;
}
static struct mapped tiles_of(
        uint32_t threads, const struct k_matrix_view *whole, uint32_t columns, const uint32_t *order) {
    return tiles_in(k_layout_native(), threads, whole, columns, order);
}
static void unmap(struct mapped *m) {
    munmap((void *)m->tiles.data, m->bytes);
}

static const struct fake_kind kinds[] = {
        {QUANT_INT4, QUANT_SCALE_BF16, 128, false, false},
        {QUANT_INT4, QUANT_SCALE_F16, 32, true, true},
        {QUANT_INT8, QUANT_SCALE_F32, 0, true, false},
        {QUANT_INT8, QUANT_SCALE_BF16, 64, false, true},
        {QUANT_FP8, QUANT_SCALE_BF16, 128, false, false},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds, K = 448, ROWS = 331, X = 14 };

struct matrix { /* quantised in one of the kinds, or dense */
    struct fake *f;
    uint16_t *dense;
    struct k_matrix_view whole;
};
static struct matrix matrix_make(uint32_t kind) {
    struct matrix m = {.whole = {.rows = ROWS, .dtype = K_BF16}};
    if (kind < N_KINDS) {
        m.f = fake_make(kind, kinds[kind], ROWS, K);
        m.whole.quant = &m.f->q;
        return m;
    }
    struct rng r = {kind};
    m.dense = malloc(ROWS * K * sizeof *m.dense);
    for (uint32_t i = 0; i < ROWS * K; i++)
        m.dense[i] = to_bf16(rng_float(&r, 1));
    m.whole.data = m.dense;
    m.whole.row_stride = K;
    return m;
}
static void matrix_free(struct matrix *m) {
    fake_free(m->f);
    free(m->dense);
}

/* Rows row.. and leaves leaf.. of tp ranks: a copy and the tiles, few rows and many. */
static void compare_part(struct world *w, const struct matrix *m, const struct k_tiles *tiles, uint32_t row,
        uint32_t rows, uint32_t tp, uint32_t rank) {
    const uint32_t columns = K / tp;
    struct k_matrix_view copy = m->whole, view = {.tiles = tiles, .rows = rows, .first_row = row};
    float *x = random_floats(1, X * K, 1.0f), *y = random_floats(0, X * ROWS, 1.0f),
          *expected = random_floats(0, X * ROWS, 1.0f);
    copy.rows = rows;
    copy.first_row = row;
    copy.first_column = view.first_column = rank * columns;
    if (m->dense)
        copy.data = m->dense + (size_t)row * K + rank * columns;
    struct k_linear *a = linear_of(w, &copy, 1, columns, 8 / tp, NULL),
                    *b = linear_of(w, &view, 1, columns, 8 / tp, NULL);
    for (uint32_t n = 1; n <= X; n += X - 1) {
        rows_only(w, n);
        project(w, a, columns, x, expected);
        project(w, b, columns, x, y);
        assert_same_floats(y, expected, n * rows, "tiles");
    }
    k_linear_free(a);
    k_linear_free(b);
    free(x);
    free(y);
    free(expected);
}

static void test_any_part_equals_a_copy(void **state) {
    (void)state;
    for (uint32_t i = 0; i < (N_KINDS + 1) * 2; i++) {
        struct world w;
        struct matrix m = matrix_make(i / 2);
        assert_true(kernels_open(&w, 2, 2, i % 2) || kernels_open(&w, 0, 2, i % 2));
        struct mapped t = tiles_of(2, &m.whole, K, NULL);
        compare_part(&w, &m, &t.tiles, 0, ROWS, 1, 0);
        compare_part(&w, &m, &t.tiles, 16, 48, 1, 0);
        compare_part(&w, &m, &t.tiles, 32, 5, 1, 0);
        compare_part(&w, &m, &t.tiles, 240, 91, 1, 0);
        for (uint32_t tp = 2; tp <= 8; tp *= 2)
            for (uint32_t rank = 0; rank < tp; rank++)
                compare_part(&w, &m, &t.tiles, 0, ROWS, tp, rank);
        unmap(&t);
        matrix_free(&m);
        world_close(&w);
    }
}

static void test_any_number_of_threads_packs_the_same_bytes(void **state) {
    (void)state;
    for (uint32_t i = 0; i <= N_KINDS; i++) {
        struct matrix m = matrix_make(i);
        struct mapped s = tiles_of(1, &m.whole, K, NULL), t = tiles_of(5, &m.whole, K, NULL);
        assert_int_equal(s.bytes, t.bytes);
        assert_memory_equal(s.tiles.data, t.tiles.data, s.bytes);
        unmap(&s);
        unmap(&t);
        matrix_free(&m);
    }
}

/* Groups of strips lie one after another in a CPU's layout, so a matrix can be packed in parts. (In a GPU's, all strips
 * of a leaf do: there parts are ranges of units, tests/unit/layout.) */
static void test_parts_make_the_whole(void **state) {
    const struct k_layout *layout = &k_layout_cpu;
    const uint32_t rows = 256; /* whole groups of strips */
    (void)state;
    assert_true(rows < ROWS);
    for (uint32_t i = 0; i <= N_KINDS; i++) {
        struct matrix m = matrix_make(i);
        struct k_matrix_view first = m.whole, rest = m.whole;
        first.rows = rows;
        rest.rows = ROWS - rows;
        if (m.dense)
            rest.data = m.dense + (size_t)rows * K;
        else
            rest.first_row = rows;
        struct mapped all = tiles_in(layout, 2, &m.whole, K, NULL), a = tiles_in(layout, 2, &first, K, NULL),
                      b = tiles_in(layout, 2, &rest, K, NULL);
        assert_int_equal(a.bytes + b.bytes, all.bytes);
        assert_memory_equal(all.tiles.data, a.tiles.data, a.bytes);
        assert_memory_equal((const uint8_t *)all.tiles.data + a.bytes, b.tiles.data, b.bytes);
        unmap(&all);
        unmap(&a);
        unmap(&b);
        matrix_free(&m);
    }
}

/* The stretches of the ranks' parts are ascending, inside, and together the whole. */
static void test_stretches_of_parts(void **state) {
    struct matrix m = matrix_make(0);
    struct world w;
    (void)state;
    assert_true(kernels_open(&w, 0, 2, false));
    struct mapped t = tiles_of(2, &m.whole, K, NULL);
    for (uint32_t tp = 1; tp <= 8; tp *= 2) {
        uint8_t *seen = calloc(1, t.bytes);
        size_t total = 0;
        assert_non_null(seen);
        for (uint32_t rank = 0; rank < tp; rank++) {
            const struct k_matrix_view v = {.tiles = &t.tiles, .rows = ROWS, .first_column = rank * (K / tp)};
            const uint8_t *end = t.tiles.data;
            const void *from;
            size_t bytes;
            for (uint32_t i = 0; k_layout_native()->part(&v, K / tp, 8 / tp, i, &from, &bytes); i++) {
                const uint8_t *at = from;
                assert_true(at >= end);
                end = at + bytes;
                assert_true(end <= (const uint8_t *)t.tiles.data + t.bytes);
                memset(seen + (at - (const uint8_t *)t.tiles.data), 1, bytes);
                total += bytes;
            }
        }
        assert_int_equal(total, t.bytes);
        assert_null(memchr(seen, 0, t.bytes));
        free(seen);
    }
    unmap(&t);
    matrix_free(&m);
    world_close(&w);
}

static void test_dense_tiles_take_an_order(void **state) {
    struct matrix m = matrix_make(N_KINDS);
    uint32_t order[K];
    float *x = random_floats(1, 5 * K, 1.0f), y[5 * ROWS], expected[5 * ROWS];
    struct world w;
    (void)state;
    for (uint32_t k = 0; k < K; k++)
        order[k] = (k * 5 + 3) % K;
    assert_true(kernels_open(&w, 0, 2, false));
    struct mapped t = tiles_of(2, &m.whole, K, order);
    const struct k_matrix_view view = {.tiles = &t.tiles, .rows = ROWS};
    struct k_linear *a = linear_of(&w, &m.whole, 1, K, 8, order), *b = linear_of(&w, &view, 1, K, 8, order);
    rows_only(&w, 5);
    project(&w, a, K, x, expected);
    project(&w, b, K, x, y);
    assert_same_floats(y, expected, 5 * ROWS, "tiles in an order");
    k_linear_free(a);
    k_linear_free(b);
    unmap(&t);
    matrix_free(&m);
    free(x);
    world_close(&w);
}

static void refused(struct world *w, const struct k_matrix_view *views, uint32_t n, uint32_t columns,
        uint32_t leaves, const uint32_t *order, const char *why) {
    const struct k_linear_spec spec = {.pieces = views,
            .n_pieces = n,
            .columns = columns,
            .leaves = leaves,
            .order = order,
            .name = "mlp.down"};
    struct k_linear *l = NULL;
    struct error e = {0};
    assert_int_equal(k_linear_pack(w->c, &spec, &l, &e), -EINVAL);
    if (!strstr(e.text, "mlp.down") || !strstr(e.text, why))
        fail_msg("expected '%s', got: %s", why, e.text);
    assert_null(l);
}

static void test_what_does_not_fit_is_refused(void **state) {
    struct matrix m = matrix_make(0);
    struct world w;
    uint32_t order[K], rows[ROWS];
    (void)state;
    for (uint32_t k = 0; k < K; k++)
        order[k] = (k + 1) % K;
    for (uint32_t r = 0; r < ROWS; r++)
        rows[r] = r;
    assert_true(kernels_open(&w, 0, 2, false));
    struct mapped t = tiles_of(2, &m.whole, K, NULL);
    const struct quant_matrix *q = m.whole.quant;
    struct quant_matrix odd = *q, reordered = *q;
    odd.group = 24;
    reordered.order = rows; /* differs from the linear's at once */
    struct k_tiles crooked = t.tiles;
    crooked.data = (const uint8_t *)t.tiles.data + 16;
    const struct {
        struct k_matrix_view v;
        uint32_t columns, leaves;
        const uint32_t *order;
        const char *why;
    } bad[] = {
            {{.tiles = &t.tiles, .rows = 16, .first_row = 8}, K, 8, NULL, "multiple of 16"},
            {{.tiles = &t.tiles, .rows = ROWS, .first_row = 16}, K, 8, NULL, "rows 16 to 347 of 331"},
            {{.tiles = &t.tiles, .rows = 16, .first_column = K / 16}, K / 8, 1, NULL, "not the start"},
            {{.tiles = &t.tiles, .rows = 16, .first_column = K / 2}, K, 8, NULL, "not the start"},
            {{.tiles = &t.tiles, .rows = 16}, K, 4, NULL, "do not fit"},
            {{.tiles = &t.tiles, .rows = ROWS, .row_order = rows}, K, 8, NULL, "reordered"},
            {{.tiles = &crooked, .rows = 16}, K, 8, NULL, "64 bytes"},
            {{.quant = q, .rows = ROWS + 1}, K, 8, NULL, "rows 0 to 332"},
            {{.quant = q, .rows = 16, .first_row = UINT32_MAX}, K, 8, NULL, "rows"},
            {{.quant = q, .rows = 16, .first_column = K}, K, 8, NULL, "columns"},
            {{.quant = q, .rows = 16, .first_column = 28}, K / 2, 4, NULL, "not the start"},
            {{.quant = &odd, .rows = 16}, K, 8, NULL, "groups of 24"},
            {{.quant = q, .tiles = &t.tiles, .rows = 16}, K, 8, NULL, "more than one"},
            {{.rows = 16}, K, 8, NULL, "no weights"},
            {{.quant = q, .rows = 16}, K, 8, order, "another order"},
            {{.quant = &reordered, .rows = 16}, K, 8, order, "another order"},
            {{.quant = q, .rows = 16}, K / 8, 1, order, "names column 56"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(&w, &bad[i].v, 1, bad[i].columns, bad[i].leaves, bad[i].order, bad[i].why);

    static const uint32_t groups[] = {16, 32, 64, 128, 0};
    struct fake *f[5];
    struct k_matrix_view five[5];
    for (uint32_t i = 0; i < 5; i++) {
        f[i] = fake_make(i, (struct fake_kind){QUANT_INT4, QUANT_SCALE_F32, groups[i], false, false}, 16, K);
        five[i] = (struct k_matrix_view){.quant = &f[i]->q, .rows = 16};
    }
    if (on_cpu(&w)) /* a GPU has room for as many as there are pieces */
        refused(&w, five, 5, K, 8, NULL, "group sizes");
    else
        k_linear_free(linear_of(&w, five, 5, K, 8, NULL));
    for (uint32_t i = 0; i < 5; i++)
        fake_free(f[i]);
    unmap(&t);
    matrix_free(&m);
    world_close(&w);
}

/* A linear is the layout's bytes; on a GPU, and where the outputs of its strips go. */
static void test_sizes_are_known_without_weights(void **state) {
    struct world w;
    (void)state;
    assert_true(kernels_open(&w, 0, 2, false));
    for (uint32_t i = 0; i <= N_KINDS; i++) {
        struct matrix m = matrix_make(i);
        struct k_tiles t = {0};
        k_tiles_describe(&m.whole, K, &t);
        struct k_matrix_view view = {.tiles = &t, .rows = ROWS};
        struct k_linear_spec spec = {
                .pieces = &m.whole, .n_pieces = 1, .columns = K, .leaves = 8, .name = "sizes"};
        const size_t bytes = k_linear_bytes(&spec), of_strips = on_cpu(&w) ? 0 : 1024;
        assert_in_range(bytes, k_layout_native()->bytes(&t), k_layout_native()->bytes(&t) + of_strips);
        spec.pieces = &view;
        assert_int_equal(k_linear_bytes(&spec), bytes);
        assert_true(bytes >= (size_t)K * 80 / (i < 2 ? 2 : 1));
        matrix_free(&m);
    }
    world_close(&w);
}

/* Made-up codes: seeded, and inside the scale that was asked for. */
static void test_dummies_of_every_format(void **state) {
    struct world w;
    (void)state;
    assert_true(kernels_open(&w, 0, 2, true));
    for (uint32_t i = 0; i < N_KINDS; i++) {
        struct matrix m = matrix_make(i);
        struct quant_matrix q = *m.whole.quant;
        q.codes = NULL;
        q.groups = NULL;
        const struct k_matrix_view v = {.quant = &q, .rows = ROWS};
        const struct k_linear_spec spec = {
                .pieces = &v, .n_pieces = 1, .columns = K, .leaves = 8, .name = "dummy"};
        float x[K] = {0}, y[3][ROWS], high = 0;
        for (uint32_t seed = 0; seed < 3; seed++) {
            struct k_linear *l = NULL;
            OK(k_linear_dummy(w.c, &spec, seed / 2, 0.5f, &l, e));
            rows_only(&w, 1);
            for (uint32_t k = 0; k < K; k += 7) {
                memset(x, 0, sizeof x);
                x[k] = 1;
                project(&w, l, K, x, y[seed]);
                for (uint32_t o = 0; o < ROWS; o++)
                    high = fabsf(y[seed][o]) > high ? fabsf(y[seed][o]) : high;
            }
            k_linear_free(l);
        }
        assert_memory_equal(y[0], y[1], sizeof y[0]);
        assert_memory_not_equal(y[0], y[2], sizeof y[0]);
        assert_true(high > 0.45f && high <= 0.501f);
        matrix_free(&m);
    }
    world_close(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_any_part_equals_a_copy),
            cmocka_unit_test(test_any_number_of_threads_packs_the_same_bytes),
            cmocka_unit_test(test_parts_make_the_whole),
            cmocka_unit_test(test_stretches_of_parts),
            cmocka_unit_test(test_dense_tiles_take_an_order),
            cmocka_unit_test(test_what_does_not_fit_is_refused),
            cmocka_unit_test(test_sizes_are_known_without_weights),
            cmocka_unit_test(test_dummies_of_every_format),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
