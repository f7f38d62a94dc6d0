/* Fast products of many rows by a library of the machine, where a GPU asks one: near those of our own kernels, in every
 * shape, and nothing written behind the rows of the bounds. */
#include "base/half.h"
#include "tests/unit/kernels/quantised.h"

#define PIECES     4u
#define HEAVY_WORK (1ull << 28) /* multiply-adds; more of them take minutes where no GPU makes them */

static const struct k_shape wide_shape = {.tp = 1,
        .hidden_size = 64,
        .intermediate_size = 7008,
        .vocab_size = 64,
        .vocab_rows = 64,
        .rms_eps = 1e-6f,
        .rope_theta = 1e4};

/* OWN: our own kernels' in any case; HALF: the first piece is F16. */
enum how { PLAIN, ORDER, OWN, OWN_HALF };
static const struct shape {
    uint32_t rows, bound, leaf_columns, leaves, outputs[PIECES];
    enum how how;
} shapes[] = {
        {512, 512, 32, 8, {256}, PLAIN},
        {513, 520, 37, 4, {292}, ORDER},
        {517, 517, 130, 1, {16, 272, 20}, PLAIN},
        {1, 600, 1, 2, {144, 144}, PLAIN},
        /* too few rows or outputs, at no multiple of four, half a strip, another form */
        {511, 511, 20, 8, {256}, OWN},
        {512, 512, 20, 8, {252}, OWN},
        {512, 512, 20, 8, {257}, OWN},
        {512, 512, 20, 8, {264, 56}, OWN},
        {512, 512, 20, 8, {16, 256}, OWN_HALF},
        /* more outputs than there is room for at once */
        {1000, 1024, 640, 8, {7008, 7008}, PLAIN},
};

struct problem {
    const struct shape *shape;
    uint32_t n, columns, outputs;
    struct k_matrix_view pieces[PIECES];
    uint32_t *order;
    float *x, *norm;
};
static uint64_t work_of(const struct shape *s) {
    uint64_t outputs = 0;
    for (uint32_t i = 0; i < PIECES; i++)
        outputs += s->outputs[i];
    return outputs * s->leaf_columns * s->leaves * s->bound;
}
static void problem_make(struct problem *p, const struct shape *s) {
    struct rng r = {7};
    *p = (struct problem){.shape = s, .columns = s->leaf_columns * s->leaves};
    for (uint32_t i = 0; i < PIECES && s->outputs[i]; i++, p->n++) {
        const size_t n = (size_t)s->outputs[i] * p->columns;
        const bool half = s->how == OWN_HALF && i == 0;
        uint16_t *w = malloc(n * sizeof *w);
        for (size_t k = 0; k < n; k++) {
            const float x = rng_float(&r, 1.0f);
            w[k] = half ? f16_of(x) : bf16_of(x);
        }
        p->pieces[i] = (struct k_matrix_view){
                .data = w, .row_stride = p->columns, .rows = s->outputs[i], .dtype = half ? K_F16 : K_BF16};
        p->outputs += s->outputs[i];
    }
    for (uint32_t k = 0; k < p->columns && s->how == ORDER; k++) {
        const uint32_t j = rng_u32(&r) % (k + 1);
        p->order = p->order ? p->order : malloc(p->columns * sizeof *p->order);
        p->order[k] = p->order[j];
        p->order[j] = k;
    }
    p->x = random_floats(1, (size_t)s->bound * p->columns, 2.0f);
    p->norm = random_floats(2, p->columns, 1.0f);
}
static void problem_free(struct problem *p) {
    for (uint32_t i = 0; i < p->n; i++)
        free((void *)p->pieces[i].data);
    free(p->order);
    free(p->x);
    free(p->norm);
}

static double worst; /* of a bound */

enum operation { PROJECT, NORM_PROJECT, NORM_GATE_UP, RESIDUAL, OPERATIONS };

/* What the operation makes of y that was `before`, [bound + 1][outputs]. */
static float *result(struct world *w, const struct problem *p, enum operation op, const float *before) {
    const struct shape *s = p->shape;
    const size_t n = (size_t)(s->bound + 1) * p->outputs;
    struct k_linear *l = linear_of(w, p->pieces, p->n, p->columns, s->leaves, p->order);
    float *d_x = dev(w, p->x, (size_t)s->bound * p->columns), *d_norm = dev(w, p->norm, p->columns),
          *d_y = dev(w, before, n);
    step_new(w);
    step_prompt(w, 1, 0, s->rows, 1);
    k_batch_bounds(w->b, &(struct k_bounds){.rows = s->bound, .entries = 1, .context = s->rows});
    step_begin_now(w);
    if (op == PROJECT)
        k_project(w->s, w->b, d_x, l, d_y);
    else if (op == NORM_PROJECT)
        k_norm_project(w->s, w->b, d_x, d_norm, 1e-6f, l, d_y);
    else if (op == NORM_GATE_UP)
        k_norm_gate_up(w->s, w->b, d_x, d_norm, 1e-6f, l, d_y);
    else
        k_project_residual(w->s, w->m, w->b, l, d_x, room(w, n), d_y);
    float *y = host(w, d_y, n);
    k_linear_free(l);
    return y;
}

/* An operation in both worlds. Outputs are sums of `columns` products of up to 2, or of 3 where a norm made them; gate
 * times up is as many times further off as the other is large. */
static void compare(const struct problem *p, enum operation op, struct world *own, struct world *library) {
    const struct shape *s = p->shape;
    const uint32_t outputs = op == NORM_GATE_UP ? p->outputs / 2 : p->outputs;
    const size_t n = (size_t)(s->bound + 1) * p->outputs;
    float *before = random_floats(3, n, 1.0f);
    const float *want = result(own, p, op, before), *got = result(library, p, op, before);
    const double bound = 0x1p-18 * 3 * p->columns * (op == NORM_GATE_UP ? 4 * sqrt(p->columns) : 1);
    for (uint32_t r = 0; r < s->rows; r++)
        for (uint32_t o = 0; o < outputs; o++) {
            const size_t at = (size_t)r * outputs + o;
            worst = fmax(worst, fabs((double)got[at] - want[at]) / bound);
            if (!(fabs((double)got[at] - want[at]) <= bound))
                fail_msg(
                        "operation %d, %u columns in %u leaves, row %u of %u, output %u of %u: %.9g, by our own %.9g",
                        (int)op, p->columns, s->leaves, r, s->rows, o, outputs, (double)got[at],
                        (double)want[at]);
        }
    assert_same_floats(got + (size_t)s->bound * outputs, before + (size_t)s->bound * outputs, outputs,
            "behind the rows of the bounds");
    free(before);
}

static bool open_world(struct world *w, bool own) {
    const struct k_context_options o = {.threads = 2, .fast = true, .own_products = own};
    return world_open_in(w, &wide_shape, &pool_1, context_of(o), NULL);
}
/* An emulation, or a CPU, which asks no library and is compared with itself. */
static bool is_no_gpu(const struct world *w) {
    const char *device = k_context_describe(w->c);
    return strstr(device, "emulat") || strncmp(device, "cpu", 3) == 0;
}
static void test_products_of_many_rows(void **state) {
    struct world own, library;
    (void)state;
    assert_true(open_world(&own, true) && open_world(&library, false));
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct problem p;
        if (work_of(&shapes[i]) > HEAVY_WORK && is_no_gpu(&library))
            continue;
        problem_make(&p, &shapes[i]);
        const bool halves = p.n == 2 && p.pieces[0].rows == p.pieces[1].rows;
        for (enum operation op = PROJECT; op < (p.shape->how >= OWN ? NORM_PROJECT : OPERATIONS); op++)
            if (op != NORM_GATE_UP || halves)
                compare(&p, op, &own, &library);
        problem_free(&p);
    }
    print_message("%s; worst: %.2g of its bound\n", k_context_describe(library.c), worst);
    world_close(&own);
    world_close(&library);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_products_of_many_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
