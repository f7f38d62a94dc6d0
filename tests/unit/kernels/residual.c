/* A product that is added where it belongs gives the bits of the product and the sum one after the other, for few and
 * many rows, of weights in every form that products have. */
#include "tests/unit/kernels/quantised.h"

static const struct form {
    uint32_t rows, columns;
    struct fake_kind kind;
} forms[] = {
        {40, 1024, {QUANT_INT4, QUANT_SCALE_BF16, 128, false, false}},
        {64, 768, {QUANT_INT4, QUANT_SCALE_F16, 32, true, false}},
        {17, 256, {QUANT_INT8, QUANT_SCALE_F32, 64, false, false}},
        {33, 208, {QUANT_INT8, QUANT_SCALE_BF16, 16, true, true}}, /* leaves of 26 */
        {30, 512, {QUANT_FP8, QUANT_SCALE_BF16, 128, false, false}},
};
static const uint32_t row_counts[] = {1, 7, 16, 17, 70};

static void compare(struct world *w, const struct k_linear *l, const struct form *f, uint32_t rows) {
    const size_t n = (size_t)rows * f->rows;
    float *in = random_floats(rows, (size_t)rows * f->columns, 2.0f), *x = random_floats(rows + 1, n, 3.0f);
    float *d_in = dev(w, in, (size_t)rows * f->columns), *d_part = room(w, n), *d_two = dev(w, x, n),
          *d_one = dev(w, x, n);
    rows_only(w, rows);
    k_project_partial(w->s, w->b, l, d_in, d_part);
    k_reduce_residual(w->s, w->m, w->b, d_part, d_two, f->rows);
    k_project_residual(w->s, w->m, w->b, l, d_in, room(w, n), d_one);
    assert_same_floats(host(w, d_one, n), host(w, d_two, n), n, "added where it belongs");
    assert_true(memcmp(host(w, d_one, n), x, n * sizeof *x) != 0);
    free(in);
    free(x);
}

static void test_added_where_it_belongs(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        const struct form *f = &forms[i];
        struct world w;
        struct fake *fake = fake_make(i, f->kind, f->rows, f->columns);
        const struct k_matrix_view view = {.quant = &fake->q, .rows = f->rows};
        assert_true(kernels_open(&w, 0, 2, false));
        struct k_linear *l = linear_of(&w, &view, 1, f->columns, 8, NULL);
        for (size_t n = 0; n < sizeof row_counts / sizeof *row_counts; n++)
            compare(&w, l, f, row_counts[n]);
        k_linear_free(l);
        world_close(&w);
        fake_free(fake);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_added_where_it_belongs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
