/* The bytes of the layout cpu-2. */
#include "kernels/layout/layout.h"
#include "tests/unit/kernels/quantised.h"

/* A packed file says only "cpu-2": these bytes are what that means. */
static void test_the_layout_of_a_small_matrix(void **state) {
    static const uint8_t low_first[] = {0x40, 0x51, 0x62, 0x73}; /* k 0..7 of row 0: 0 1 2 3, 4 5 6 7 */
    struct fake *f = fake_make(1, (struct fake_kind){QUANT_INT4, QUANT_SCALE_BF16, 16, true, false}, 3, 64);
    (void)state;
    for (uint32_t i = 0; i < 3 * 64; i++)
        f->codes[i] = (uint8_t)((i % 64 + i / 64) % 16);
    const struct k_matrix_view whole = {.quant = &f->q, .rows = 3};
    struct k_tiles t;
    k_tiles_describe(&whole, 64, &t);
    assert_string_equal(k_layout_native()->name, "cpu-2");
    assert_int_equal(
            k_layout_native()->bytes(&t), 8 * 128); /* 64 of codes, 16 scales, 16 zeros, up to the next 64 */
    uint8_t *block = aligned_alloc(64, 8 * 128);
    OK(k_layout_pack(k_layout_native(), &whole, 64, NULL, 1, block, e));
    assert_memory_equal(block, low_first, 4);
    assert_int_equal(block[4], 0x51);   /* row 1 */
    assert_int_equal(block[128], 0xc8); /* leaf 1 begins with k 8 */
    uint16_t scale;
    memcpy(&scale, block + 64 + 2, sizeof scale);
    assert_true(of_bf16(scale) == f->groups[4].scale);       /* row 1, group 0 */
    assert_int_equal(block[64 + 32 + 2], f->groups[8].zero); /* row 2 */
    memcpy(&scale, block + 2 * 128 + 64, sizeof scale);
    assert_true(of_bf16(scale) == f->groups[1].scale); /* leaf 2 is of the second group of 16 */
    free(block);
    fake_free(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_the_layout_of_a_small_matrix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
