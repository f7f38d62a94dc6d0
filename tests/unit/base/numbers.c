/* 16-bit floats and hashes against what they are defined as: every half, both ways, and every boundary of rounding. */
#include "base/half.h"
#include "base/hash.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

/* sign, exponent and fraction as IEEE 754 has them, by ldexp. */
static double half_value(uint32_t h, int exponent_bits, int fraction_bits) {
    int bias = (1 << (exponent_bits - 1)) - 1,
        exponent = (int)(h >> fraction_bits) & ((1 << exponent_bits) - 1);
    double fraction = h & ((1u << fraction_bits) - 1), sign = h >> 15 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1)
        return fraction != 0 ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0)
        return sign * ldexp(fraction, 1 - bias - fraction_bits);
    return sign * ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

static void check_format(
        int exponent_bits, int fraction_bits, float (*widen)(uint16_t), uint16_t (*narrow)(float)) {
    const uint32_t infinity = ((1u << exponent_bits) - 1) << fraction_bits;
    for (uint32_t h = 0; h < 0x10000u; h++) {
        double want = half_value(h, exponent_bits, fraction_bits);
        float got = widen((uint16_t)h);
        if (isnan(want)) {
            assert_true(isnan(got));
            uint16_t back = narrow(got);
            assert_true((back & 0x7fffu) > infinity);
            continue;
        }
        assert_true((double)got == want && !signbit(got) == !signbit(want));
        assert_int_equal(narrow(got), h);
        if ((h & 0x7fffu) >= infinity)
            continue;
        /* Up to the middle of this one and the next it is this one where that is even, the next otherwise. */
        double next = half_value(h + 1, exponent_bits, fraction_bits);
        if (isinf(next)) /* what would come next if there were no infinity */
            next = want + (want - half_value(h - 1, exponent_bits, fraction_bits));
        float middle = (float)((want + next) / 2), toward = (float)want;
        assert_true((double)middle == (want + next) / 2);
        assert_int_equal(narrow(middle), h % 2 ? h + 1 : h);
        assert_int_equal(narrow(nextafterf(middle, toward)), h);
        assert_int_equal(narrow(nextafterf(middle, (float)next)), h + 1);
    }
}

static void test_f16(void **state) {
    (void)state;
    check_format(5, 10, float_of_f16, f16_of);
    assert_int_equal(f16_of(65519.996f), 0x7bff);
    assert_int_equal(f16_of(65520.0f), 0x7c00);
    assert_int_equal(f16_of(-1e30f), 0xfc00);
    assert_int_equal(f16_of(0x1p-25f), 0);
}

static void test_bf16(void **state) {
    (void)state;
    check_format(8, 7, float_of_bf16, bf16_of);
    assert_int_equal(bf16_of(float_of_bits(0x7f800001u)), 0x7fc0); /* a NaN whose upper half says infinity */
}

static void test_hashes(void **state) {
    uint64_t seed = 1234567;
    (void)state;
    /* Published vectors: of FNV-1a on the authors' page, of splitmix64 in Rosetta Code. */
    assert_true(fnv1a(FNV1A_START, "", 0) == 0xcbf29ce484222325ull);
    assert_true(fnv1a_text(FNV1A_START, "a") == 0xaf63dc4c8601ec8cull);
    assert_true(fnv1a(FNV1A_START, "foobar", 6) == 0x85944171f73967e8ull);
    assert_true(splitmix64(seed) == 6457827717110365317ull);
    assert_true(splitmix64_next(&seed) == 6457827717110365317ull);
    assert_true(splitmix64_next(&seed) == 3203168211198807973ull);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_f16),
            cmocka_unit_test(test_bf16),
            cmocka_unit_test(test_hashes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
