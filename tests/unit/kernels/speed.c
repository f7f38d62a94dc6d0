/* k_memory_speed(): a rate that can be, for every size, and none where there is nothing to read. */
#include "kernels/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void test_a_rate_comes_out(void **state) {
    const struct k_context_options options = {.threads = 2};
    const size_t sizes[] = {1 << 10, (1 << 16) + 7, 1 << 22};
    struct k_context *c = NULL;
    struct k_stream *s = NULL;
    (void)state;
    assert_int_equal(k_context_create(&options, &c, NULL), 0);
    assert_int_equal(k_stream_create(c, &s, NULL), 0);
    void *memory = k_alloc(c, sizes[2]);
    assert_non_null(memory);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        const double rate = k_memory_speed(s, memory, sizes[i]);
        assert_true(isfinite(rate) && rate > 1e3);
    }
    assert_true(k_memory_speed(s, memory, 0) == 0);
    assert_int_equal(k_stream_error(s, NULL), 0);
    k_free(c, memory);
    k_stream_free(s);
    k_context_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_a_rate_comes_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
