/* Products with float activations of the CUDA library: dense and FP8 weights, and INT4 and INT8 ones with float or bf16
 * activations. Against the CPU library within the bound that kernels.h states, and a row's bits whatever other rows
 * there are. */
#include "tests/unit/kernels_cuda/sides.h"

static struct side cpu, cuda, floats[2]; /* floats: the same two with float activations */
static struct side rounded;              /* the device with all that rounds to bf16 */
static double worst, worst_of_cpu;       /* error and difference, as parts of the sum of |w x| */

static int open_sides(void **state) {
    (void)state;
    side_open(&cpu, linked_library());
    side_open(&cuda, opened_library());
    side_open_with(&floats[0], cpu.k, K_ACTIVATIONS_FLOAT, /* fast= */ false);
    side_open_with(&floats[1], cuda.k, K_ACTIVATIONS_FLOAT, /* fast= */ false);
    side_open_with(&rounded, cuda.k, K_ACTIVATIONS_BF16, /* fast= */ true);
    return 0;
}
static int close_sides(void **state) {
    (void)state;
    side_close(&cpu);
    side_close(&cuda);
    side_close(&floats[0]);
    side_close(&floats[1]);
    side_close(&rounded);
    print_message(
            "largest error %.2g, difference to the CPU %.2g of the sum of |w x|\n", worst, worst_of_cpu);
    return 0;
}

/* --- pieces --- */

struct matrix { /* a piece */
    struct k_matrix_view view;
    struct fake *fake;
    void *data;
    bool codes;           /* INT8 activations: to the bit */
    double *value, *size; /* [rows][columns] of w, and of |w|, with minimums |w + minimum| + |minimum| */
};
static struct matrix matrix_new(uint32_t rows, uint32_t columns) {
    const size_t n = (size_t)rows * columns;
    return (struct matrix){.value = calloc(n, sizeof(double)), .size = calloc(n, sizeof(double))};
}
static struct matrix dense(uint64_t seed, enum k_dtype dtype, uint32_t rows, uint32_t columns) {
    const size_t n = (size_t)rows * columns, bytes = k_dtype_bytes(dtype);
    struct matrix m = matrix_new(rows, columns);
    float *w = random_floats(seed + 1000, n, 1.0f);
    m.data = malloc(n * bytes);
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = dtype == K_BF16 ? bf16_of(w[i]) : f16_of(w[i]);
        m.value[i] = dtype == K_F32 ? w[i] : dtype == K_BF16 ? float_of_bf16(half) : float_of_f16(half);
        m.size[i] = fabs(m.value[i]);
        memcpy((uint8_t *)m.data + i * bytes, bytes == 4 ? (void *)&w[i] : (void *)&half, bytes);
    }
    m.view = (struct k_matrix_view){.data = m.data, .row_stride = columns, .rows = rows, .dtype = dtype};
    free(w);
    return m;
}
static struct matrix quantised(uint64_t seed, struct fake_kind kind, uint32_t rows, uint32_t columns) {
    struct matrix m = matrix_new(rows, columns);
    m.fake = fake_make(seed, kind, rows, columns);
    for (uint32_t i = 0; i < rows * columns; i++) {
        const double minimum = (double)fake_group(m.fake, i / columns, i % columns)->minimum;
        m.value[i] = fake_value(m.fake, i / columns, i % columns);
        m.size[i] = fabs(m.value[i] + minimum) + fabs(minimum);
    }
    m.view = (struct k_matrix_view){.quant = &m.fake->q, .rows = rows};
    return m;
}
static void matrix_free(struct matrix *m) {
    fake_free(m->fake);
    free(m->data);
    free(m->value);
    free(m->size);
}

/* --- one comparison --- */

struct problem {
    struct matrix pieces[4];
    uint32_t n_pieces, columns, leaves;
    const uint32_t *order;
    uint64_t seed;
};
static struct k_linear *linear_on(struct side *d, const struct problem *p) {
    struct k_matrix_view views[4];
    struct k_linear *l = NULL;
    for (uint32_t i = 0; i < p->n_pieces; i++)
        views[i] = p->pieces[i].view;
    const struct k_linear_spec spec = {.pieces = views,
            .n_pieces = p->n_pieces,
            .columns = p->columns,
            .leaves = p->leaves,
            .order = p->order,
            .name = "test"};
    OK(d->k.k_linear_pack(d->c, &spec, &l, e));
    return l;
}
/* What the device has, against the exact sums, and against what the CPU has, whose chain of a leaf's k rounds each
 * time; in parts of the sum of |w x|. */
static void assert_within(const struct problem *p, const float *got, const float *want, uint32_t rows,
        const float *x, const char *what) {
    const double bound = 0x1p-20, bound_of_cpu = p->columns / p->leaves * 0x1p-24;
    for (uint32_t r = 0; r < rows; r++, x += p->columns) {
        for (uint32_t i = 0; i < p->n_pieces; i++) {
            const struct matrix *m = &p->pieces[i];
            for (uint32_t o = 0; o < m->view.rows; o++, got++, want++) {
                double sum = 0, exact = 0;
                for (uint32_t k = 0; k < p->columns; k++) {
                    sum += fabs(m->size[(size_t)o * p->columns + k] * x[k]);
                    exact += m->value[(size_t)o * p->columns + k] * x[k];
                }
                const double error = fabs(*got - exact) / (sum + 1e-30),
                             difference = fabs((double)*got - *want) / (sum + 1e-30);
                if (m->codes && *got == *want)
                    continue;
                if (!(error <= bound && difference <= bound + bound_of_cpu))
                    fail_msg(
                            "%s: row %u, piece %u, output %u: %.9g, the CPU %.9g, exact %.9g; sum of |w x| %.4g",
                            what, r, i, o, (double)*got, (double)*want, exact, sum);
                worst = error > worst ? error : worst;
                worst_of_cpu = difference > worst_of_cpu ? difference : worst_of_cpu;
            }
        }
    }
}
static uint32_t outputs_of(const struct problem *p) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_pieces; i++)
        n += p->pieces[i].view.rows;
    return n;
}
/* `rows` rows on both sides; and the last of them alone on the device: the same bits. */
static void compare(const struct problem *p, struct side *on_host, struct side *on_device, uint32_t rows) {
    const size_t outputs = outputs_of(p), n = (rows + 1) * outputs;
    float *x = random_floats(p->seed, (size_t)rows * p->columns, 2.0f), *want = random_floats(0, n, 1.0f),
          *got = random_floats(0, n, 1.0f), *alone = random_floats(0, 2 * outputs, 1.0f);
    struct k_linear *a = linear_on(on_host, p), *b = linear_on(on_device, p);
    char what[160];
    snprintf(what, sizeof what, "seed %llu, %u rows, %u x %zu in %u leaves", (unsigned long long)p->seed,
            rows, p->columns, outputs, p->leaves);
    for (uint32_t k = 0; k < p->columns && !p->pieces[0].fake; k++) /* a row whose sum only grows */
        x[k] = fabsf(x[k]) * (p->pieces[0].value[k] < 0 ? -1.0f : 1.0f);
    if (cuda.k.emu_seed)
        cuda.k.emu_seed(p->seed % 4);
    side_rows(on_host, rows, 0);
    side_product(on_host, PROJECT, a, rows, p->columns, x, x, want);
    side_rows(on_device, rows, p->seed % 3 ? rows : 0);
    side_product(on_device, PROJECT, b, rows, p->columns, x, x, got);
    assert_equal_floats(got + rows * outputs, want + rows * outputs, outputs, "behind the last row");
    assert_within(p, got, want, rows, x, what);
    side_rows(on_device, 1, 1);
    side_product(on_device, PROJECT, b, 1, p->columns, x + (size_t)(rows - 1) * p->columns, x, alone);
    assert_same_floats(alone, got + (rows - 1) * outputs, outputs, what);
    on_host->k.k_linear_free(a);
    on_device->k.k_linear_free(b);
    free(x);
    free(want);
    free(got);
    free(alone);
}

static void test_dense_weights(void **state) {
    static const uint32_t counts[] = {1, 2, 7, 8, 9, 16, 17, 31, 40};
    struct rng r = {5};
    (void)state;
    for (uint32_t t = 0; t < 36; t++) {
        const uint32_t leaves = 1u << rng_u32(&r) % 4, columns = leaves * (1 + rng_u32(&r) % 300);
        struct problem p = {.pieces = {dense(t, (enum k_dtype)(t % 3), 1 + rng_u32(&r) % 90, columns)},
                .n_pieces = 1,
                .columns = columns,
                .leaves = leaves,
                .seed = t};
        compare(&p, &cpu, &cuda, counts[rng_u32(&r) % 9]);
        matrix_free(&p.pieces[0]);
    }
}

/* FP8 as it is, INT4 and INT8 with float activations: groups that divide a run, that do not, rows, minimums. */
static void test_quantised_weights(void **state) {
    static const uint32_t groups[] = {32, 64, 128, 0, 256, 16, 48};
    static const uint32_t counts[] = {1, 2, 3, 8, 16, 17, 25};
    struct rng r = {6};
    (void)state;
    for (uint32_t t = 0; t < 48; t++) {
        const enum quant_format format = (enum quant_format)(t % 3);
        const bool simple = t % 2, fp8 = format == QUANT_FP8;
        const struct fake_kind kind = {format, (enum quant_scale)(rng_u32(&r) % 3),
                groups[rng_u32(&r) % (simple ? 3 : 7)], !fp8 && rng_u32(&r) % 2,
                !fp8 && !simple && rng_u32(&r) % 3 == 0};
        const uint32_t leaves = 1u << rng_u32(&r) % 4,
                       columns = leaves * (simple ? 32 * (1 + rng_u32(&r) % 9) : 1 + rng_u32(&r) % 300);
        struct problem p = {.pieces = {quantised(t, kind, 1 + rng_u32(&r) % 70, columns)},
                .n_pieces = 1,
                .columns = columns,
                .leaves = leaves,
                .seed = t};
        compare(&p, fp8 ? &cpu : &floats[0], fp8 ? &cuda : &floats[1], counts[rng_u32(&r) % 7]);
        matrix_free(&p.pieces[0]);
    }
}

/* Tiles of many rows, in every form and shape, have the bits of streams of 16: all of a problem's rows, and then 16 of
 * them after another. Few leaves and outputs: groups of leaves are blocks of their own; several: blocks of rows share
 * outputs; a bound far above the rows leaves blocks idle. */
static void assert_tiles_are_streams(const struct problem *p, struct side *d, uint32_t rows, uint32_t bound) {
    const size_t outputs = outputs_of(p);
    float *x = random_floats(p->seed, (size_t)rows * p->columns, 2.0f),
          *all = random_floats(0, (rows + 1) * outputs, 1.0f), *some = random_floats(0, 17 * outputs, 1.0f);
    struct k_linear *l = linear_on(d, p);
    char what[160];
    if (d->k.emu_seed)
        d->k.emu_seed(p->seed % 4);
    side_rows(d, rows, bound);
    side_product(d, PROJECT, l, rows, p->columns, x, x, all);
    for (uint32_t first = 0; first < rows; first += 16) {
        const uint32_t n = rows - first < 16 ? rows - first : 16;
        snprintf(what, sizeof what, "seed %llu, rows %u .. of %u, %u x %zu in %u leaves",
                (unsigned long long)p->seed, first, rows, p->columns, outputs, p->leaves);
        side_rows(d, n, n);
        side_product(d, PROJECT, l, n, p->columns, x + (size_t)first * p->columns, x, some);
        assert_same_floats(some, all + first * outputs, n * outputs, what);
    }
    d->k.k_linear_free(l);
    free(x);
    free(all);
    free(some);
}
static void test_tiles_are_streams(void **state) {
    static const struct {
        uint32_t rows, bound, outputs, leaf_columns, leaves;
    } shapes[] = {{17, 17, 1, 32, 8}, {32, 0, 129, 96, 4}, {33, 33, 255, 160, 2}, {64, 64, 40, 256, 8},
            {65, 65, 257, 32, 1}, {100, 300, 530, 64, 1}, {131, 131, 300, 96, 2}};
    static const uint32_t groups[] = {128, 64, 32};
    (void)state;
    for (uint32_t t = 0; t < 6 * sizeof shapes / sizeof *shapes; t++) {
        const uint32_t i = t / 6, form = t % 6, columns = shapes[i].leaf_columns * shapes[i].leaves;
        if ((i + form) % 2)
            continue; /* every shape has half of the forms, every form half of the shapes */
        const struct fake_kind kind = {(enum quant_format)(form % 3), (enum quant_scale)(t % 3),
                shapes[i].leaf_columns % 64 ? 32 : groups[i % 3], form != QUANT_FP8 && i % 2, false};
        struct problem p = {
                .pieces = {form < 3 ? quantised(t, kind, shapes[i].outputs, columns)
                                    : dense(t, (enum k_dtype)(form - 3), shapes[i].outputs, columns)},
                .n_pieces = 1,
                .columns = columns,
                .leaves = shapes[i].leaves,
                .seed = t};
        assert_tiles_are_streams(&p, form < QUANT_FP8 ? &floats[1] : &cuda, shapes[i].rows, shapes[i].bound);
        if (form < 3 || form == 3 + K_BF16)
            assert_tiles_are_streams(&p, &rounded, shapes[i].rows, shapes[i].bound);
        matrix_free(&p.pieces[0]);
    }
}

/* A row of FP8 weights that is alone, with more columns than a block has room for: it comes through the ring. */
static void test_long_rows(void **state) {
    static const struct {
        uint32_t leaf_columns, leaves, group, outputs;
        enum quant_scale scale;
    } shapes[] = {{896, 4, 128, 20, QUANT_SCALE_F32}, {928, 4, 32, 35, QUANT_SCALE_BF16},
            {2048, 2, 64, 17, QUANT_SCALE_F16}, {4000, 1, 0, 5, QUANT_SCALE_F32}};
    (void)state;
    for (uint32_t t = 0; t < sizeof shapes / sizeof *shapes; t++) {
        const uint32_t columns = shapes[t].leaf_columns * shapes[t].leaves;
        const struct fake_kind kind = {QUANT_FP8, shapes[t].scale, shapes[t].group, false, false};
        struct problem p = {.pieces = {quantised(t, kind, shapes[t].outputs, columns)},
                .n_pieces = 1,
                .columns = columns,
                .leaves = shapes[t].leaves,
                .seed = t};
        compare(&p, &cpu, &cuda, 2);
        assert_tiles_are_streams(&p, &cuda, 17, 17); /* the last by itself */
        assert_tiles_are_streams(&p, &rounded, 17, 17);
        matrix_free(&p.pieces[0]);
    }
}

/* More rows than are brought into terms at once; the last two are by themselves. */
static void test_many_rows(void **state) {
    (void)state;
    struct problem p = {
            .pieces = {dense(1, K_BF16, 20, 64)}, .n_pieces = 1, .columns = 64, .leaves = 8, .seed = 1};
    compare(&p, &cpu, &cuda, 1026);
    matrix_free(&p.pieces[0]);
}

/* Every form in one linear, as quantised checkpoints leave small projections dense: INT8's bits stay the CPU's. */
static void test_mixed_linears(void **state) {
    enum { K = 8 * 96, ROWS = 11 };
    (void)state;
    struct problem p = {.n_pieces = 4, .columns = K, .leaves = 8, .seed = 3};
    const uint32_t rows[4] = {40, 9, 33, 20};
    float *x = random_floats(1, ROWS * K, 1.0f), want[(ROWS + 1) * 102], got[(ROWS + 1) * 102];
    p.pieces[0] = dense(1, K_BF16, rows[0], K);
    p.pieces[1] = quantised(2, (struct fake_kind){QUANT_INT8, QUANT_SCALE_F32, 32, true, false}, rows[1], K);
    p.pieces[1].codes = true;
    p.pieces[2] =
            quantised(3, (struct fake_kind){QUANT_FP8, QUANT_SCALE_BF16, 128, false, false}, rows[2], K);
    p.pieces[3] = dense(4, K_F32, rows[3], K);
    struct k_linear *a = linear_on(&cpu, &p), *b = linear_on(&cuda, &p);
    side_rows(&cpu, ROWS, 0);
    side_rows(&cuda, ROWS, 0);
    side_product(&cpu, PROJECT, a, ROWS, K, x, x, want);
    side_product(&cuda, PROJECT, b, ROWS, K, x, x, got);
    assert_within(&p, got, want, ROWS, x, "mixed forms");
    cpu.k.k_linear_free(a);
    cuda.k.k_linear_free(b);
    for (uint32_t i = 0; i < 4; i++)
        matrix_free(&p.pieces[i]);
    free(x);
}

/* The small dense part of a linear, wherever it is multiplied, has the bits of a linear of its own, and so has the
 * large part. */
static void assert_parts_are_alone(const struct problem *p, uint32_t rows, enum operation op) {
    const size_t outputs = outputs_of(p);
    float *x = random_floats(p->seed, (size_t)rows * p->columns, 2.0f),
          *norm = random_floats(p->seed + 1, p->columns, 1.0f),
          *all = random_floats(0, (rows + 1) * outputs, 1.0f),
          *some = random_floats(0, (rows + 1) * outputs, 1.0f);
    struct k_linear *l = linear_on(&cuda, p);
    char what[160];
    if (cuda.k.emu_seed)
        cuda.k.emu_seed(p->seed % 4);
    side_rows(&cuda, rows, p->seed % 3 || rows > 16 ? rows : 16);
    side_product(&cuda, op, l, rows, p->columns, x, norm, all);
    cuda.k.k_linear_free(l);
    for (uint32_t i = 0, column = 0; i < p->n_pieces; i++) {
        struct problem of_one = *p;
        const uint32_t n = p->pieces[i].view.rows;
        of_one.pieces[0] = p->pieces[i];
        of_one.n_pieces = 1;
        l = linear_on(&cuda, &of_one);
        side_product(&cuda, op, l, rows, p->columns, x, norm, some);
        for (uint32_t r = 0; r < rows; r++) {
            snprintf(what, sizeof what, "seed %llu, row %u of %u, piece %u, %u x %u in %u leaves",
                    (unsigned long long)p->seed, r, rows, i, p->columns, n, p->leaves);
            assert_same_floats(all + r * outputs + column, some + r * n, n, what);
        }
        cuda.k.k_linear_free(l);
        column += n;
    }
    free(x);
    free(norm);
    free(all);
    free(some);
}
static void test_parts_are_alone(void **state) {
    static const uint32_t counts[] = {1, 2, 8, 9, 16, 1, 17, 1}, small[] = {96, 1, 17, 31, 40},
                          leaf_columns[] = {128, 36, 500, 77, 132, 64, 20}, groups[] = {128, 64, 32};
    (void)state;
    for (uint32_t t = 0; t < 24; t++) { /* every number of rows with three of columns */
        const uint32_t leaves = t % 4 ? 8 : 4, columns = leaves * leaf_columns[t % 7];
        const struct fake_kind kind = {t % 2 ? QUANT_INT4 : QUANT_INT8, (enum quant_scale)(t % 3),
                leaf_columns[t % 7] % 32 ? 16 : groups[t % 3], t % 5 == 1, false};
        struct problem p = {.n_pieces = 2, .columns = columns, .leaves = leaves, .seed = t};
        p.pieces[t / 2 % 2] = quantised(t, kind, 1 + t * 13 % 90, columns);
        p.pieces[1 - t / 2 % 2] = dense(t, t % 9 == 8 ? K_F16 : K_BF16, small[t % 5], columns);
        assert_parts_are_alone(&p, counts[t % 8], t % 3 ? NORM_PROJECT : PROJECT);
        matrix_free(&p.pieces[0]);
        matrix_free(&p.pieces[1]);
    }
}

/* Norm, order, gate and up; rank by rank. */
static void test_norm_order_and_gate_up(void **state) {
    enum { K = 8 * 40, N = 37, ROWS = 9 };
    uint32_t order[K];
    struct rng r = {4};
    float *x = random_floats(1, ROWS * K, 2.0f), *norm = random_floats(2, K, 1.0f), want[(ROWS + 1) * N * 2],
          got[(ROWS + 1) * N * 2];
    (void)state;
    for (uint32_t k = 0; k < K; k++) {
        const uint32_t j = rng_u32(&r) % (k + 1);
        order[k] = order[j];
        order[j] = k;
    }
    struct problem p = {.pieces = {dense(1, K_BF16, N, K), dense(2, K_F16, N, K)},
            .n_pieces = 2,
            .columns = K,
            .leaves = 8,
            .order = order};
    struct k_linear *a = linear_on(&cpu, &p), *b = linear_on(&cuda, &p);
    side_rows(&cpu, ROWS, 0);
    side_rows(&cuda, ROWS, 0);
    for (enum operation op = NORM_PROJECT; op <= NORM_GATE_UP; op++) {
        side_product(&cpu, op, a, ROWS, K, x, norm, want);
        side_product(&cuda, op, b, ROWS, K, x, norm, got);
        for (uint32_t i = 0; i < ROWS * N * (op == NORM_GATE_UP ? 1 : 2); i++)
            if (!(fabsf(got[i] - want[i]) <= 1e-4f))
                fail_msg("operation %d, output %u: %.9g, expected %.9g", (int)op, i, (double)got[i],
                        (double)want[i]);
    }
    cpu.k.k_linear_free(a);
    cuda.k.k_linear_free(b);
    matrix_free(&p.pieces[0]);
    matrix_free(&p.pieces[1]);
    free(x);
    free(norm);
}

/* Infinite and subnormal inputs, and what is no number, stay in their rows. */
static void test_odd_rows(void **state) {
    enum { K = 8 * 32, N = 20, ROWS = 5 };
    float *x = random_floats(1, ROWS * K, 1.0f), got[(ROWS + 1) * N], want[(ROWS + 1) * N];
    uint32_t bits = 0x7f800001u; /* a NaN of low bits only */
    (void)state;
    struct problem p = {.pieces = {dense(1, K_BF16, N, K)}, .n_pieces = 1, .columns = K, .leaves = 8};
    memcpy(&x[K + 7], &bits, sizeof bits);
    x[2 * K + 9] = -INFINITY;
    for (uint32_t k = 0; k < K; k++) {
        x[3 * K + k] *= 1e-42f;
        x[4 * K + k] *= 1e36f;
    }
    struct k_linear *a = linear_on(&cpu, &p), *b = linear_on(&cuda, &p);
    side_rows(&cpu, ROWS, 0);
    side_rows(&cuda, ROWS, 0);
    side_product(&cpu, PROJECT, a, ROWS, K, x, x, want);
    side_product(&cuda, PROJECT, b, ROWS, K, x, x, got);
    for (uint32_t o = 0; o < N; o++) {
        assert_true(isnan(got[N + o]) && isnan(want[N + o]));
        assert_true(isinf(got[2 * N + o]) && got[2 * N + o] == want[2 * N + o]);
    }
    assert_within(&p, got, want, 1, x, "the row before");
    assert_within(&p, got + 3 * N, want + 3 * N, 2, x + 3 * K, "small and large rows");
    cpu.k.k_linear_free(a);
    cuda.k.k_linear_free(b);
    matrix_free(&p.pieces[0]);
    free(x);
}

/* The same seed makes the same weights, in every form. */
static void test_dummies(void **state) {
    enum { K = 8 * 44, N = 37 };
    (void)state;
    for (uint32_t t = 0; t < 8; t++) {
        const enum k_dtype dtype = (enum k_dtype)(t % 3);
        const uint32_t parts = t % 2 + 1;
        struct fake *f =
                fake_make(1, (struct fake_kind){QUANT_FP8, QUANT_SCALE_F32, 128, false, false}, N, K);
        const struct k_matrix_view v[3] = {
                {.rows = N, .dtype = dtype}, {.quant = &f->q, .rows = N}, {.rows = 5, .dtype = K_BF16}};
        const struct k_linear_spec spec = {
                .pieces = v, .n_pieces = 3, .columns = K / parts, .leaves = 8 / parts, .name = "test"};
        float *x = random_floats(t, K, 1.0f), want[2 * (2 * N + 5)], got[2 * (2 * N + 5)];
        struct k_linear *a = NULL, *b = NULL;
        OK(cpu.k.k_linear_dummy(cpu.c, &spec, t, 0.5f, &a, e));
        OK(cuda.k.k_linear_dummy(cuda.c, &spec, t, 0.5f, &b, e));
        side_rows(&cpu, 1, 0);
        side_rows(&cuda, 1, 0);
        side_product(&cpu, PROJECT, a, 1, spec.columns, x, x, want);
        side_product(&cuda, PROJECT, b, 1, spec.columns, x, x, got);
        for (uint32_t o = 0; o < 2 * N + 5; o++)
            if (!(fabsf(got[o] - want[o]) <= 3e-5f))
                fail_msg("test %u, output %u: %.9g, expected %.9g", t, o, (double)got[o], (double)want[o]);
        cpu.k.k_linear_free(a);
        cuda.k.k_linear_free(b);
        free(x);
        fake_free(f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_dense_weights),
            cmocka_unit_test(test_quantised_weights),
            cmocka_unit_test(test_tiles_are_streams),
            cmocka_unit_test(test_long_rows),
            cmocka_unit_test(test_many_rows),
            cmocka_unit_test(test_mixed_linears),
            cmocka_unit_test(test_parts_are_alone),
            cmocka_unit_test(test_norm_order_and_gate_up),
            cmocka_unit_test(test_odd_rows),
            cmocka_unit_test(test_dummies),
    };
    return cmocka_run_group_tests(tests, open_sides, close_sides);
}
