/* The scalar functions of kernels/shared, which a GPU calls, give the bits of the sixteen-lane ones, which the CPU
 * worker computes with: on floats of every exponent, and on keys and ids. What is pinned may not change, since seeds in
 * people's hands and other backends depend on it. */
#include "kernels/cpu/isa/lanes_plain.h"

#include "kernels/cpu/isa/body.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include "kernels/shared/dummy.h"

#include <cmocka.h>

static const struct isa table = ISA_TABLE; /* every body is used */

static void same(float scalar, v16 lanes, float of) {
    if (isnan(scalar) && isnan(lanes.f[5]))
        return;
    if (bits_of_float(scalar) != bits_of_float(lanes.f[5]))
        fail_msg("%a: %a by itself, %a in lanes", of, scalar, lanes.f[5]);
}

static void functions_have_the_bits_of_lanes(void **state) {
    (void)state;
    assert_string_equal(table.name, "plain");
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += 40961) {
        const float x = float_of_bits((uint32_t)bits);
        same(f32_exp(x), v_exp(v_set1(x)), x);
        same(f32_sigmoid(x), v_sigmoid(v_set1(x)), x);
        same(f32_silu(x), v_silu(v_set1(x)), x);
        same(f32_softplus(x), v_softplus(v_set1(x)), x);
        if (isnormal(x) && x > 0)
            same(f32_log(x), v_log(v_set1(x)), x);
        if (isfinite(x) && x > -1.0f)
            same(f32_log1p(x), v_log1p(v_set1(x)), x);
    }
}

static void every_instruction_set_has_the_same_exp(void **state) {
    const struct isa *const isas[] = {&isa_plain, &isa_avx2, &isa_avx512, &isa_avx512_vnni};
    float x[37], y[37];
    (void)state;
    __builtin_cpu_init();
    const bool there[] = {true, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"),
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")};
    for (uint32_t i = 0; i < 37; i++)
        x[i] = -(float)i * 3.1f + 1.0f;
    for (uint32_t k = 0; k < 4; k++) {
        if (!there[k])
            continue;
        isas[k]->exp_minus(x, 37, 0.0f, y);
        for (uint32_t i = 0; i < 37; i++)
            assert_int_equal(bits_of_float(y[i]), bits_of_float(f32_exp(x[i] - 0.0f)));
    }
}

static void noise_has_the_bits_of_lanes(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 2000; i++) {
        const struct gumbel_key key = gumbel_key_of(i * 977, i % 7, i);
        for (uint32_t id = i; id < 300000; id += 30011)
            same(gumbel_noise(id, key), gumbel(vi_set1(id), key), (float)id);
    }
}

static void what_is_pinned_stays(void **state) {
    const struct gumbel_key key = gumbel_key_of(42, 3, 17);
    (void)state;
    assert_int_equal(splitmix64(0), 0xe220a8397b1dcdafu); /* splitmix64's own first number */
    assert_int_equal(key.a, 0x716f79beu);
    assert_int_equal(key.b, 0xd222fed4u);
    assert_int_equal(gumbel_hash(248319, key), 0xf078049eu);
    assert_int_equal(bits_of_float(gumbel_noise(248319, key)), 0xbf83e5ceu);
    assert_int_equal(dummy_eight(dummy_piece_seed(dummy_seed(7), 2), 100, 640), 0x826373756d194b17u);
    assert_int_equal(bits_of_float(dummy_dense(dummy_seed(7), 5, 3, 100, 15, 0.5f)), 0x3e69c3e8u);
    assert_int_equal(dummy_code(QUANT_FP8, 0xff, 0), 0);
    assert_int_equal(dummy_code(QUANT_INT4, 0xf100, 1), 15);
    assert_int_equal(dummy_code(QUANT_INT8, 0xf100, 1), 0xf1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(functions_have_the_bits_of_lanes),
            cmocka_unit_test(every_instruction_set_has_the_same_exp),
            cmocka_unit_test(noise_has_the_bits_of_lanes),
            cmocka_unit_test(what_is_pinned_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
