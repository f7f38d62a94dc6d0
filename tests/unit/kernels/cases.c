/* Every case of the table at sizes that are no multiple of anything, against double precision; twice the same bits. */
#include "tests/kernels/cases.h"
#include "tests/unit/kernels/fixture.h"

static uint32_t ragged(struct rng *r, uint32_t most) {
    static const uint32_t odd[] = {1, 2, 3, 7, 12, 13, 16, 17, 31, 61, 64, 65};
    const uint32_t n = rng_u32(r) % 3 ? odd[rng_u32(r) % 12] : 1 + rng_u32(r) % most;
    return n < most ? n : most;
}

static void check(const struct kernel_case *k, const struct case_size *size, struct k_context *c) {
    struct k_stream *s = NULL;
    struct case_run r;
    char what[128];
    OK(k_stream_create(c, &s, e));
    OK(case_open(&r, k, size, c, s, e));
    const size_t n = (size_t)r.size.rows * r.n_out;
    float *got = malloc(n * sizeof *got), *again = malloc(n * sizeof *again);
    double *want = malloc(r.n_out * sizeof *want);
    snprintf(what, sizeof what, "%s, %u rows of %u to %u at %u", k->name, r.size.rows, r.size.columns,
            r.size.outputs, r.size.position);
    case_queue(&r);
    k_download(s, got, r.out, n * sizeof *got);
    case_queue(&r);
    k_download(s, again, r.out, n * sizeof *again);
    OK(k_stream_wait(s, 0, e));
    assert_same_floats(again, got, n, what);
    for (uint32_t row = 0; row < r.size.rows; row++) {
        k->want(&r, row, want);
        assert_near(got + (size_t)row * r.n_out, want, r.n_out, k->tolerance, what);
    }
    free(got), free(again), free(want);
    case_close(&r);
    k_stream_free(s);
}

static void test_every_case_at_ragged_sizes(void **state) {
    (void)state;
    for (uint32_t i = 0; i < N_ISAS * 2; i++) {
        struct k_context *c = context_with(all_isas[i / 2], 1 + i % 2 * 2, true);
        struct rng r = {i + 1};
        for (uint32_t k = 0; c && k < n_kernel_cases; k++) {
            const struct case_size *most = &kernel_cases[k].most;
            for (int round = 0; round < 12; round++) {
                const bool product = most->outputs > 1 && !most->position; /* K in 8 leaves */
                const uint32_t columns = ragged(&r, most->columns) * (product ? 8 : 1);
                const struct case_size size = {ragged(&r, most->rows),
                        most->position ? columns + columns % 2 : columns, ragged(&r, most->outputs),
                        most->position ? rng_u32(&r) % most->position : 0};
                check(&kernel_cases[k], &size, c);
            }
        }
        k_context_free(c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_every_case_at_ragged_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
