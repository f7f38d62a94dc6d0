/* Linears of the CUDA library against those of the CPU library, to the bit: random ragged shapes and forms, ranks,
 * several pieces, tiles, orders, rows that are no numbers, and graphs. */
#include "kernels/layout/layout.h"
#include "tests/unit/kernels_cuda/sides.h"

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

static void test_more_rows_than_a_stream_takes(void **state) {
    struct fake *f =
            fake_make(5, (struct fake_kind){QUANT_INT4, QUANT_SCALE_BF16, 128, false, false}, 37, 1024);
    const struct problem p = {
            .pieces = {{.quant = &f->q, .rows = 37}}, .n_pieces = 1, .columns = 1024, .leaves = 8, .seed = 1};
    (void)state;
    for (uint32_t rows = 15; rows <= 50; rows += 5)
        compare(&p, EACH_BUT_PAIRS, rows, rows % 2 ? 0 : rows);
    fake_free(f);
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

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_random_ragged_shapes),
            cmocka_unit_test(test_more_rows_than_a_stream_takes),
            cmocka_unit_test(test_ranks),
            cmocka_unit_test(test_pieces),
            cmocka_unit_test(test_gate_and_up),
    };
    return cmocka_run_group_tests(tests, open_sides, close_sides);
}
