/* Linears of the CUDA library against those of the CPU library, to the bit: random ragged shapes and forms, ranks,
 * several pieces, tiles, orders, rows that are no numbers, and graphs. */
#include "kernels/layout/layout.h"
#include "tests/unit/kernels_cuda/sides.h"

#include <errno.h>

static struct side cpu, cuda;
static size_t compared;

static int open_sides(void **state) {
    (void)state;
    side_open(&cpu, linked_library());
    side_open(&cuda, opened_library());
    return 0;
}
static int close_sides(void **state) {
    (void)state;
    side_close(&cpu);
    side_close(&cuda);
    print_message("%zu values compared\n", compared);
    return 0;
}

/* --- one comparison --- */

struct problem {
    struct k_matrix_view pieces[4];
    uint32_t n_pieces, columns, leaves;
    const uint32_t *order;
    uint64_t seed;
};
static struct k_linear *linear_on(struct side *d, const struct problem *p) {
    struct k_linear *l = NULL;
    const struct k_linear_spec spec = {.pieces = p->pieces,
            .n_pieces = p->n_pieces,
            .columns = p->columns,
            .leaves = p->leaves,
            .order = p->order,
            .name = "test"};
    OK(d->k.k_linear_pack(d->c, &spec, &l, e));
    return l;
}
static uint32_t outputs_of(const struct problem *p) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_pieces; i++)
        n += p->pieces[i].rows;
    return n;
}
/* Every operation of a set on both sides, `rows` rows under that bound. */
static void compare(const struct problem *p, unsigned operations, uint32_t rows, uint32_t bound) {
    const size_t outputs = outputs_of(p);
    float *x = random_floats(p->seed, (size_t)rows * p->columns, 2.0f),
          *norm = random_floats(p->seed + 1, p->columns, 1.0f),
          *want = random_floats(0, (rows + 1) * outputs, 1.0f),
          *got = random_floats(0, (rows + 1) * outputs, 1.0f);
    struct k_linear *on_cpu = linear_on(&cpu, p), *on_cuda = linear_on(&cuda, p);
    if (cuda.k.emu_seed)
        cuda.k.emu_seed(p->seed % 4);
    side_rows(&cpu, rows, bound);
    side_rows(&cuda, rows, bound);
    for (enum operation op = PROJECT; op < OPERATIONS; op++) {
        char what[160];
        if (!(operations >> op & 1))
            continue;
        snprintf(what, sizeof what, "operation %d, seed %llu, %u rows, %u x %zu in %u leaves", (int)op,
                (unsigned long long)p->seed, rows, p->columns, outputs, p->leaves);
        side_product(&cpu, op, on_cpu, rows, p->columns, x, norm, want);
        side_product(&cuda, op, on_cuda, rows, p->columns, x, norm, got);
        compared += assert_equal_floats(got, want, (rows + 1) * outputs / (op == NORM_GATE_UP ? 2 : 1), what);
    }
    cpu.k.k_linear_free(on_cpu);
    cuda.k.k_linear_free(on_cuda);
    free(x);
    free(norm);
    free(want);
    free(got);
}
#define EACH_BUT_PAIRS (1u << PROJECT | 1u << PROJECT_PARTIAL | 1u << NORM_PROJECT)

static struct fake_kind random_kind(struct rng *r, bool simple) {
    static const uint32_t groups[] = {32, 64, 128, 0, 256, 16, 48};
    const struct fake_kind k = {rng_u32(r) % 2 ? QUANT_INT4 : QUANT_INT8, (enum quant_scale)(rng_u32(r) % 3),
            groups[rng_u32(r) % (simple ? 3 : 7)], rng_u32(r) % 2, !simple && rng_u32(r) % 3 == 0};
    return k;
}
/* K of a leaf: any, or one that groups divide. */
static uint32_t random_leaf(struct rng *r, bool simple) {
    return simple ? 32 * (1 + rng_u32(r) % 12) : 1 + rng_u32(r) % 300;
}

static void test_random_ragged_shapes(void **state) {
    struct rng r = {77};
    (void)state;
    for (uint32_t t = 0; t < 80; t++) {
        const bool simple = t % 2;
        const uint32_t leaves = 1u << rng_u32(&r) % 4, columns = leaves * random_leaf(&r, simple);
        struct fake *f = fake_make(t, random_kind(&r, simple), 1 + rng_u32(&r) % 90, columns);
        const struct problem p = {.pieces = {{.quant = &f->q, .rows = f->q.rows}},
                .n_pieces = 1,
                .columns = columns,
                .leaves = leaves,
                .seed = t};
        const uint32_t rows = 1 + rng_u32(&r) % 16;
        compare(&p, 1u << PROJECT | 1u << NORM_PROJECT, rows, t % 3 ? rows : 0);
        fake_free(f);
    }
}

/* More rows than a stream takes: tiles of one and of several blocks of rows, and where tiles have no form. */
static void test_many_rows(void **state) {
    static const struct fake_kind kinds[] = {{QUANT_INT4, QUANT_SCALE_BF16, 128, false, false},
            {QUANT_INT4, QUANT_SCALE_F16, 32, true, false}, {QUANT_INT8, QUANT_SCALE_F32, 0, false, false},
            {QUANT_INT8, QUANT_SCALE_BF16, 64, true, false}, {QUANT_INT4, QUANT_SCALE_F32, 48, true, true},
            {QUANT_INT4, QUANT_SCALE_BF16, 64, false, false}, {QUANT_INT4, QUANT_SCALE_F16, 32, false, false},
            {QUANT_INT8, QUANT_SCALE_F32, 64, false, false}};
    static const uint32_t counts[] = {17, 33, 31, 64, 32, 65, 129, 159};
    struct rng r = {55};
    (void)state;
    for (uint32_t t = 0; t < 24; t++) { /* every kind with three counts and three numbers of leaves */
        const uint32_t leaves = 1u << (t + t / 8) % 4, columns = leaves * 32 * (1 + rng_u32(&r) % 9),
                       outputs = 1 + rng_u32(&r) % 150, rows = counts[(t + 3 * (t / 8)) % 8];
        const struct fake_kind kind = kinds[t % 8];
        struct fake *f[2] = {fake_make(t, kind, outputs, columns), fake_make(t + 50, kind, outputs, columns)};
        const struct problem p = {
                .pieces = {{.quant = &f[0]->q, .rows = outputs}, {.quant = &f[1]->q, .rows = outputs}},
                .n_pieces = 2,
                .columns = columns,
                .leaves = leaves,
                .seed = t};
        compare(&p, t % 2 ? 1u << NORM_GATE_UP : 1u << PROJECT, rows, t % 3 ? rows : 0);
        fake_free(f[0]);
        fake_free(f[1]);
    }
}

/* The first and the last rank of every tp: whole leaves of one matrix. */
static void test_ranks(void **state) {
    struct rng r = {3};
    (void)state;
    for (uint32_t t = 0; t < 12; t++) {
        const uint32_t leaf = random_leaf(&r, t % 2), whole = leaf * 8;
        struct fake *f = fake_make(t, random_kind(&r, t % 2), 50, whole);
        for (uint32_t tp = 2; tp <= 8; tp *= 2) {
            for (uint32_t rank = 0; rank < tp; rank += tp - 1) {
                const struct problem p = {.pieces = {{.quant = &f->q,
                                                  .rows = 35,
                                                  .first_row = 7,
                                                  .first_column = rank * whole / tp}},
                        .n_pieces = 1,
                        .columns = whole / tp,
                        .leaves = 8 / tp,
                        .seed = t};
                compare(&p, 1u << PROJECT_PARTIAL, 1 + (t + tp) % 9, 0);
            }
        }
        fake_free(f);
    }
}

static void test_pieces(void **state) {
    struct rng r = {9};
    (void)state;
    for (uint32_t t = 0; t < 10; t++) {
        const uint32_t columns = 8 * random_leaf(&r, t % 2);
        struct problem p = {.n_pieces = 2 + t % 3, .columns = columns, .leaves = 8, .seed = t};
        struct fake *f[4] = {NULL};
        struct fake_kind kind = random_kind(&r, t % 2);
        for (uint32_t i = 0; i < p.n_pieces; i++) {
            kind = rng_u32(&r) % 2 ? kind : random_kind(&r, t % 2);
            f[i] = fake_make(t * 10 + i, kind, 1 + rng_u32(&r) % 40, columns);
            p.pieces[i] = (struct k_matrix_view){.quant = &f[i]->q, .rows = f[i]->q.rows};
        }
        compare(&p, EACH_BUT_PAIRS, 1 + rng_u32(&r) % 16, 0);
        for (uint32_t i = 0; i < p.n_pieces; i++)
            fake_free(f[i]);
    }
}

/* Gate and up of one form, which one kernel multiplies, and of two. */
static void test_gate_and_up(void **state) {
    struct rng r = {11};
    (void)state;
    for (uint32_t t = 0; t < 16; t++) {
        const uint32_t columns = 8 * random_leaf(&r, t % 2), rows = 1 + rng_u32(&r) % 60;
        const struct fake_kind gate = random_kind(&r, t % 2), up = t % 4 == 3 ? random_kind(&r, true) : gate;
        struct fake *f[2] = {fake_make(t, gate, rows, columns), fake_make(t + 100, up, rows, columns)};
        const struct problem p = {
                .pieces = {{.quant = &f[0]->q, .rows = rows}, {.quant = &f[1]->q, .rows = rows}},
                .n_pieces = 2,
                .columns = columns,
                .leaves = 8,
                .seed = t};
        const uint32_t n = 1 + rng_u32(&r) % 20;
        compare(&p, 1u << NORM_GATE_UP, n, t % 3 ? n : 0);
        fake_free(f[0]);
        fake_free(f[1]);
    }
}

/* Gate and up, and at once what is multiplied next: mid[rows][between] and y[rows][outputs]. other: NULL, or what
 * takes the place of mid before. */
struct two {
    struct problem gate_up, down;
    struct k_linear *first, *second;
};
static void two_products(struct side *d, const struct two *t, uint32_t rows, const float *x,
        const float *norm, const float *other, float *mid, float *y) {
    const size_t between = t->down.columns, outputs = outputs_of(&t->down),
                 mid_bytes = rows * between * sizeof *mid, y_bytes = (rows + 1) * outputs * sizeof *y;
    float *d_mid = d->d_y, *d_out = d_mid + rows * between;
    memset(y, 0xff, y_bytes);
    d->k.k_upload(d->s, d_out, y, y_bytes);
    d->k.k_upload(d->s, d->d_x, x, (size_t)rows * t->gate_up.columns * sizeof *x);
    d->k.k_upload(d->s, d->d_norm, norm, t->gate_up.columns * sizeof *norm);
    d->k.k_norm_gate_up(d->s, d->b, d->d_x, d->d_norm, 1e-6f, t->first, d_mid);
    if (other)
        d->k.k_upload(d->s, d_mid, other, mid_bytes);
    d->k.k_project_partial(d->s, d->b, t->second, d_mid, d_out);
    OK(d->k.k_stream_wait(d->s, 0, e));
    d->k.k_download(d->s, mid, d_mid, mid_bytes);
    d->k.k_download(d->s, y, d_out, y_bytes);
    OK(d->k.k_stream_wait(d->s, 0, e));
}
static void compare_two(struct two *t, uint32_t rows, uint32_t bound) {
    const size_t between = t->down.columns, n = (rows + 1) * outputs_of(&t->down);
    float *norm = random_floats(9, t->gate_up.columns, 1.0f), *other = random_floats(8, rows * between, 1.0f),
          *mid[2] = {random_floats(0, rows * between, 1.0f), random_floats(0, rows * between, 1.0f)},
          *y[2] = {random_floats(0, n, 1.0f), random_floats(0, n, 1.0f)};
    struct side *const sides[2] = {&cpu, &cuda};
    struct k_linear *made[2][2];
    for (uint32_t s = 0; s < 2; s++) {
        made[s][0] = linear_on(sides[s], &t->gate_up);
        made[s][1] = linear_on(sides[s], &t->down);
        sides[s]->k.k_linear_then(made[s][0], made[s][1], NULL, true);
        side_rows(sides[s], rows, bound);
    }
    for (uint32_t i = 0; i < 3; i++) { /* what one leaves behind is not in the way of the next */
        float *x = random_floats(t->gate_up.seed + i, rows * t->gate_up.columns, 2.0f);
        char what[160];
        snprintf(what, sizeof what, "seed %llu, %u rows, time %u, %u to %zu in %u leaves",
                (unsigned long long)t->gate_up.seed, rows, i, t->gate_up.columns, between, t->down.leaves);
        if (cuda.k.emu_seed)
            cuda.k.emu_seed(t->gate_up.seed + i);
        if (i == 0 && rows > 2)
            x[2 * t->gate_up.columns] = NAN;
        for (uint32_t s = 0; s < 2; s++) {
            t->first = made[s][0];
            t->second = made[s][1];
            two_products(sides[s], t, rows, x, norm, i == 1 ? other : NULL, mid[s], y[s]);
        }
        compared += assert_equal_floats(mid[1], mid[0], rows * between, what);
        compared += assert_equal_floats(y[1], y[0], n, what);
        free(x);
    }
    for (uint32_t s = 0; s < 2; s++) {
        sides[s]->k.k_linear_free(made[s][0]);
        sides[s]->k.k_linear_free(made[s][1]);
        free(mid[s]);
        free(y[s]);
    }
    free(norm);
    free(other);
}
/* Also where a strip is of two runs, and where a rank has few of the leaves; a leaf that is short is rounded by who
 * multiplies it. */
static void test_what_gate_and_up_leave_for_the_next(void **state) {
    static const struct {
        uint32_t leaf_columns, leaves;
    } between[] = {{2000, 1}, {1008, 2}, {144, 8}, {1040, 1}, {1012, 2}, {16, 8}, {272, 4}, {896, 1}};
    static const uint32_t counts[] = {1, 3, 1, 8, 13, 16, 1, 9, 2, 17};
    struct rng r = {13};
    (void)state;
    for (uint32_t i = 0; i < 20; i++) {
        const uint32_t columns = 8 * 32 * (1 + i % 3), leaves = between[i % 8].leaves,
                       middle = leaves * between[i % 8].leaf_columns, rows = counts[i % 10];
        const struct fake_kind gate = random_kind(&r, true), down = random_kind(&r, i % 2);
        struct fake *f[3] = {fake_make(i, gate, middle, columns), fake_make(i + 100, gate, middle, columns),
                fake_make(i + 200, down, 1 + rng_u32(&r) % 40, middle)};
        struct two t = {.gate_up = {.pieces = {{.quant = &f[0]->q, .rows = middle},
                                            {.quant = &f[1]->q, .rows = middle}},
                                .n_pieces = 2,
                                .columns = columns,
                                .leaves = 8,
                                .seed = i},
                .down = {.pieces = {{.quant = &f[2]->q, .rows = f[2]->q.rows}},
                        .n_pieces = 1,
                        .columns = middle,
                        .leaves = leaves}};
        compare_two(&t, rows, i % 4 == 3 && rows < 16 ? 16 : rows);
        for (uint32_t k = 0; k < 3; k++)
            fake_free(f[k]);
    }
}

/* Inputs in another order than the matrix' columns, after a norm too. */
static void test_orders(void **state) {
    enum { LEAF = 56, K = LEAF * 8 };
    struct rng r = {21};
    uint32_t order[K];
    (void)state;
    for (uint32_t k = 0; k < K; k++) {
        const uint32_t j = rng_u32(&r) % (k + 1);
        order[k] = order[j];
        order[j] = k;
    }
    struct fake *f = fake_make(4, (struct fake_kind){QUANT_INT4, QUANT_SCALE_F16, 64, true, false}, 45, K);
    f->q.order = memcpy(malloc(sizeof order), order, sizeof order);
    const struct problem p = {.pieces = {{.quant = &f->q, .rows = 45}},
            .n_pieces = 1,
            .columns = K,
            .leaves = 8,
            .order = order,
            .seed = 2};
    compare(&p, EACH_BUT_PAIRS, 7, 0);
    fake_free(f);
}

/* Rows of zeros, no numbers, infinities, and numbers whose 127th part is none: on the device's own input. */
static void test_odd_rows(void **state) {
    enum { ROWS = 11, K = 1280, N = 40 };
    (void)state;
    for (uint32_t t = 0; t < 4; t++) {
        const struct fake_kind kind = {
                t % 2 ? QUANT_INT8 : QUANT_INT4, QUANT_SCALE_F32, t < 2 ? 32 : 128, true, t == 3};
        struct fake *f = fake_make(t, kind, N, K);
        const struct problem p = {
                .pieces = {{.quant = &f->q, .rows = N}}, .n_pieces = 1, .columns = K, .leaves = 8};
        float *x = random_floats(t, ROWS * K, 3.0f), *norm = random_floats(9, K, 1.0f), want[(ROWS + 1) * N],
              got[(ROWS + 1) * N];
        for (uint32_t k = 0; k < K; k++) {
            x[k] = k % 2 ? -0.0f : 0.0f;
            x[3 * K + k] *= 1e-30f;
            x[4 * K + k] = k < 256 ? 1e-44f : x[4 * K + k];
            x[5 * K + k] *= 1e30f; /* squares overflow */
        }
        x[1 * K + 5] = NAN;
        x[2 * K + 300] = -INFINITY;
        struct k_linear *on_cpu = linear_on(&cpu, &p), *on_cuda = linear_on(&cuda, &p);
        side_rows(&cpu, ROWS, 0);
        side_rows(&cuda, ROWS, 0);
        for (enum operation op = PROJECT; op <= NORM_PROJECT; op++) {
            side_product(&cpu, op, on_cpu, ROWS, K, x, norm, want);
            side_product(&cuda, op, on_cuda, ROWS, K, x, norm, got);
            compared += assert_equal_floats(got, want, (ROWS + 1) * N, "odd rows");
            assert_true(isnan(want[N]) && isnan(want[2 * N]));
        }
        cpu.k.k_linear_free(on_cpu);
        cuda.k.k_linear_free(on_cuda);
        free(x);
        free(norm);
        fake_free(f);
    }
}

/* --- tiles: any part of a packed matrix is what a copy of that part is --- */

static void compare_tiles(const struct fake *f, const struct k_tiles *tiles, uint32_t row, uint32_t rows,
        uint32_t tp, uint32_t rank) {
    const uint32_t columns = f->q.columns / tp;
    struct problem p = {.n_pieces = 1, .columns = columns, .leaves = 8 / tp, .seed = row + rank};
    struct k_matrix_view v = {.rows = rows, .first_row = row, .first_column = rank * columns};
    float *x = random_floats(1, 5 * columns, 1.0f), *want = random_floats(0, 6 * rows, 1.0f),
          *got = random_floats(0, 6 * rows, 1.0f);
    p.pieces[0] = v;
    p.pieces[0].quant = &f->q;
    struct k_linear *copy = linear_on(&cpu, &p);
    p.pieces[0] = v;
    p.pieces[0].tiles = tiles;
    struct k_linear *of_tiles = linear_on(&cuda, &p);
    side_rows(&cpu, 5, 0);
    side_rows(&cuda, 5, 0);
    side_product(&cpu, PROJECT_PARTIAL, copy, 5, columns, x, x, want);
    side_product(&cuda, PROJECT_PARTIAL, of_tiles, 5, columns, x, x, got);
    compared += assert_equal_floats(got, want, 6 * rows, "tiles");
    cpu.k.k_linear_free(copy);
    cuda.k.k_linear_free(of_tiles);
    free(x);
    free(want);
    free(got);
}
static void test_tiles(void **state) {
    static const struct fake_kind kinds[] = {{QUANT_INT4, QUANT_SCALE_BF16, 128, false, false},
            {QUANT_INT4, QUANT_SCALE_F16, 32, true, true}, {QUANT_INT8, QUANT_SCALE_F32, 0, true, false},
            {QUANT_INT8, QUANT_SCALE_BF16, 64, false, true}};
    enum { K = 448, ROWS = 107 };
    (void)state;
    for (uint32_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct fake *f = fake_make(i, kinds[i], ROWS, K);
        const struct k_matrix_view whole = {.quant = &f->q, .rows = ROWS};
        const struct k_layout *layout = cuda.k.k_layout_native();
        struct k_tiles t = {0};
        k_tiles_describe(&whole, K, &t);
        void *data = aligned_alloc(256, layout->bytes(&t));
        OK(k_layout_pack(layout, &whole, K, NULL, 2, data, e));
        t.data = data;
        compare_tiles(f, &t, 0, ROWS, 1, 0);
        compare_tiles(f, &t, 32, 5, 1, 0);
        compare_tiles(f, &t, 80, 27, 1, 0);
        for (uint32_t tp = 2; tp <= 8; tp *= 2)
            for (uint32_t rank = 0; rank < tp; rank += tp - 1)
                compare_tiles(f, &t, 16, 48, tp, rank);
        free(data);
        fake_free(f);
    }
}

/* The same seed makes the same weights. */
static void test_dummies(void **state) {
    struct rng r = {31};
    (void)state;
    for (uint32_t t = 0; t < 12; t++) {
        const uint32_t columns = 8 * random_leaf(&r, t % 2);
        struct fake *f = fake_make(t, random_kind(&r, t % 2), 50, columns);
        float *x = random_floats(t, 3 * columns, 1.0f), want[4 * 33], got[4 * 33];
        const struct k_matrix_view v = {
                .quant = &f->q, .rows = 33, .first_row = 9, .first_column = t % 3 == 0 ? columns / 2 : 0};
        const uint32_t parts = t % 3 == 0 ? 2 : 1;
        const struct k_linear_spec spec = {
                .pieces = &v, .n_pieces = 1, .columns = columns / parts, .leaves = 8 / parts, .name = "test"};
        struct k_linear *on_cpu = NULL, *on_cuda = NULL;
        OK(cpu.k.k_linear_dummy(cpu.c, &spec, t, 0.5f, &on_cpu, e));
        OK(cuda.k.k_linear_dummy(cuda.c, &spec, t, 0.5f, &on_cuda, e));
        side_rows(&cpu, 3, 0);
        side_rows(&cuda, 3, 0);
        side_product(&cpu, PROJECT, on_cpu, 3, spec.columns, x, x, want);
        side_product(&cuda, PROJECT, on_cuda, 3, spec.columns, x, x, got);
        compared += assert_equal_floats(got, want, 4 * 33, "dummy weights");
        cpu.k.k_linear_free(on_cpu);
        cuda.k.k_linear_free(on_cuda);
        free(x);
        fake_free(f);
    }
}

/* --- what is around the products --- */

/* One graph for up to 12 rows replays with other rows, of other numbers. */
static void test_a_graph_replays_with_new_contents(void **state) {
    enum { K = 768, N = 50 };
    struct fake *f = fake_make(8, (struct fake_kind){QUANT_INT4, QUANT_SCALE_BF16, 32, true, false}, N, K);
    const struct problem p = {
            .pieces = {{.quant = &f->q, .rows = N}}, .n_pieces = 1, .columns = K, .leaves = 8};
    struct k_linear *on_cpu = linear_on(&cpu, &p), *on_cuda = linear_on(&cuda, &p);
    struct k_graph *g = NULL;
    float *norm = random_floats(1, K, 1.0f), want[13 * N], got[13 * N];
    (void)state;
    side_rows(&cuda, 12, 12);
    OK(cuda.k.k_capture_begin(cuda.s, e));
    assert_int_equal(cuda.k.k_capture_begin(cuda.s, NULL), -EBUSY);
    cuda.k.k_norm_project(cuda.s, cuda.b, cuda.d_x, cuda.d_norm, 1e-6f, on_cuda, cuda.d_y);
    OK(cuda.k.k_capture_end(cuda.s, &g, e));
    assert_int_equal(cuda.k.k_capture_end(cuda.s, &g, NULL), -EINVAL);
    for (uint32_t rows = 12; rows > 0; rows -= 4) {
        float *x = random_floats(rows, rows * K, 1.0f);
        side_rows(&cpu, rows, 0);
        side_rows(&cuda, rows, 12);
        side_product(&cpu, NORM_PROJECT, on_cpu, rows, K, x, norm, want);
        memset(got, 0xff, sizeof got);
        cuda.k.k_upload(cuda.s, cuda.d_y, got, sizeof got);
        cuda.k.k_upload(cuda.s, cuda.d_x, x, rows * K * sizeof *x);
        cuda.k.k_upload(cuda.s, cuda.d_norm, norm, K * sizeof *norm);
        cuda.k.k_graph_launch(cuda.s, g);
        cuda.k.k_download(cuda.s, got, cuda.d_y, sizeof got);
        OK(cuda.k.k_stream_wait(cuda.s, 0, e));
        compared += assert_equal_floats(got, want, (rows + 1) * N, "a graph");
        free(x);
    }
    cuda.k.k_graph_free(g);
    cpu.k.k_linear_free(on_cpu);
    cuda.k.k_linear_free(on_cuda);
    free(norm);
    fake_free(f);
}

/* A step beyond its bounds is a fault, and empty. */
static void test_a_step_beyond_its_bounds(void **state) {
    struct fake *f =
            fake_make(8, (struct fake_kind){QUANT_INT8, QUANT_SCALE_BF16, 128, false, false}, 20, 256);
    const struct problem p = {
            .pieces = {{.quant = &f->q, .rows = 20}}, .n_pieces = 1, .columns = 256, .leaves = 8};
    const struct k_bounds bounds = {.rows = 2, .entries = 1, .context = 100};
    const struct k_plan plan = {.n_entries = 1, .n_rows = 3};
    const struct k_entry entry = {.n_rows = 3}, deep = {.n_rows = 2, .first_pos = 99};
    const struct k_plan two = {.n_entries = 1, .n_rows = 2};
    struct side own;
    struct error e = {0};
    uint32_t got[60];
    (void)state;
    for (uint32_t i = 0; i < 2; i++) {
        side_open(&own, cuda.k);
        struct k_linear *l = linear_on(&own, &p);
        memset(got, 0x5a, sizeof got);
        own.k.k_upload(own.s, own.d_y, got, sizeof got);
        own.k.k_batch_bounds(own.b, &bounds);
        own.k.k_batch_upload(own.s, own.b, i ? &two : &plan, i ? &deep : &entry, NULL, 0, NULL, 0);
        own.k.k_project(own.s, own.b, own.d_x, l, own.d_y);
        own.k.k_download(own.s, got, own.d_y, sizeof got);
        assert_int_equal(own.k.k_stream_wait(own.s, 0, &e), -EINVAL);
        assert_non_null(strstr(e.text, i ? "as deep as 101 positions; it was bounded to 100"
                                         : "1 entries and 3 rows; it was bounded to 1 and 2"));
        assert_int_equal(own.k.k_stream_error(own.s, NULL), -EINVAL);
        for (uint32_t n = 0; n < 60; n++)
            assert_int_equal(got[n], 0x5a5a5a5a);
        own.k.k_linear_free(l);
        side_close(&own);
    }
    fake_free(f);
}

static void test_events_and_vectors(void **state) {
    struct k_event *ev = NULL;
    const uint16_t taps[6] = {to_bf16(1), to_bf16(2), to_bf16(3), to_bf16(4), to_bf16(5), to_bf16(6)};
    static const float turned[6] = {1, 3, 5, 2, 4, 6};
    float *d_v = NULL, *d_taps = NULL, got[6];
    (void)state;
    OK(cuda.k.k_event_create(cuda.c, &ev, e));
    assert_false(cuda.k.k_event_done(ev));
    assert_int_equal(cuda.k.k_event_wait(ev, 1), -ETIMEDOUT);
    OK(cuda.k.k_vector_load(cuda.c, taps, K_BF16, 6, 1.0f, &d_v, e));
    OK(cuda.k.k_taps_load(cuda.c, taps, K_BF16, 3, 2, &d_taps, e));
    cuda.k.k_download(cuda.s, got, d_v, sizeof got);
    cuda.k.k_event_record(cuda.s, ev);
    assert_int_equal(cuda.k.k_event_wait(ev, 0), 0);
    assert_true(cuda.k.k_event_done(ev));
    for (uint32_t i = 0; i < 6; i++)
        assert_true(got[i] == (float)(i + 2));
    cuda.k.k_download(cuda.s, got, d_taps, sizeof got);
    OK(cuda.k.k_stream_wait(cuda.s, 0, e));
    assert_same_floats(got, turned, 6, "taps");
    cuda.k.k_free(cuda.c, d_v);
    cuda.k.k_free(cuda.c, d_taps);
    cuda.k.k_event_free(ev);
}

static void assert_refused(struct side *d, const struct k_linear_spec *spec, int code, const char *said) {
    struct k_linear *l = NULL;
    struct error e = {0};
    assert_int_equal(d->k.k_linear_pack(d->c, spec, &l, &e), code);
    if (!strstr(e.text, said))
        fail_msg("\"%s\" does not say \"%s\"", e.text, said);
}
static void test_refusals_name_what_is_wrong(void **state) {
    struct fake *g =
            fake_make(1, (struct fake_kind){QUANT_INT4, QUANT_SCALE_BF16, 16, false, false}, 16, 288);
    const struct k_matrix_view ninth = {.quant = &g->q, .rows = 16, .first_column = 256};
    const struct k_linear_spec spec = {
            .pieces = &ninth, .n_pieces = 1, .columns = 32, .leaves = 1, .name = "layer.w"};
    const struct k_context_options o = {.device = 99};
    struct k_context *c = NULL;
    struct error e = {0};
    (void)state;
    assert_refused(&cuda, &spec, -EINVAL, "a matrix has 8 leaves");
    assert_int_equal(cuda.k.k_context_create(&o, &c, &e), -ENODEV);
    assert_non_null(strstr(e.text, "there is no CUDA device 99"));
    fake_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_random_ragged_shapes),
            cmocka_unit_test(test_many_rows),
            cmocka_unit_test(test_ranks),
            cmocka_unit_test(test_pieces),
            cmocka_unit_test(test_gate_and_up),
            cmocka_unit_test(test_what_gate_and_up_leave_for_the_next),
            cmocka_unit_test(test_orders),
            cmocka_unit_test(test_odd_rows),
            cmocka_unit_test(test_tiles),
            cmocka_unit_test(test_dummies),
            cmocka_unit_test(test_a_graph_replays_with_new_contents),
            cmocka_unit_test(test_a_step_beyond_its_bounds),
            cmocka_unit_test(test_events_and_vectors),
            cmocka_unit_test(test_refusals_name_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, open_sides, close_sides);
}
