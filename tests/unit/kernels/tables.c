/* Embedding tables: rows of every dtype, used where they lie or taken over; what is not a table is refused. */
#include "tests/unit/kernels/fixture.h"

enum { V = 131, H = 37, N = 9 };

static const struct k_shape shape = {
        .tp = 1, .hidden_size = H, .vocab_size = V, .vocab_rows = V, .rms_eps = 1e-6f, .rope_theta = 1e4};
static const struct k_pool_options options = {.slots = 2, .pages = 1, .pages_per_slot = 1};

/* Values that every dtype holds exactly, in that dtype; values[] = the same as floats. */
static void *stored(enum k_dtype dtype, struct k_context *c, float *values) {
    struct rng r = {dtype + 1};
    uint8_t *data = k_host_alloc(c, (size_t)V * H * k_dtype_bytes(dtype));
    assert_non_null(data);
    for (uint32_t i = 0; i < V * H; i++) {
        const uint32_t sign = rng_u32(&r) & 1, eighths = rng_u32(&r) % 8;
        values[i] = (sign ? -1.0f : 1.0f) * (1 + (float)eighths / 8);
        const uint16_t bf16 = to_bf16(values[i]), f16 = (uint16_t)(sign << 15 | 15u << 10 | eighths << 7);
        const void *from = dtype == K_F32 ? (const void *)&values[i] : dtype == K_BF16 ? &bf16 : &f16;
        memcpy(data + i * k_dtype_bytes(dtype), from, k_dtype_bytes(dtype));
    }
    return data;
}

static void test_rows_of_every_dtype(void **state) {
    (void)state;
    for (int i = 0; i < 6; i++) {
        const enum k_dtype dtype = (enum k_dtype)(i / 2);
        const bool mapped = i % 2;
        struct world w;
        struct k_table *t = NULL;
        float values[V * H];
        assert_true(world_open(&w, &shape, &options, NULL, 1, NULL));
        void *data = stored(dtype, w.c, values);
        OK(k_table_load(w.c, data, dtype, V, H, mapped, &t, e));
        slot_new(&w, 1, NULL, 0, 0);
        step_new(&w);
        step_prompt(&w, 1, 0, N, V - 4); /* the last rows and the first */
        step_begin_now(&w);
        float *x = room(&w, N * H);
        k_embed(w.s, w.b, t, x);
        const float *got = host(&w, x, N * H);
        for (uint32_t r = 0; r < N; r++)
            assert_same_floats(got + r * H, values + (size_t)w.ids[r] * H, H, "a row of the table");
        k_table_free(t);
        if (mapped) /* otherwise it was the table's */
            k_host_free(w.c, data);
        world_close(&w);
    }
}

static void test_sizes_and_refusals(void **state) {
    struct k_context *c = context(NULL, 1);
    struct k_table *t = NULL;
    struct error e = {0};
    float one = 1;
    (void)state;
    /* memory that the table takes over counts as the table's; the caller's never less than it takes */
    assert_int_equal(k_table_bytes(K_BF16, V, H, false), (uint64_t)V * H * 2);
    assert_int_equal(k_table_bytes(K_F32, UINT32_MAX, 4, false), 16ull * UINT32_MAX);
    assert_true(k_table_bytes(K_BF16, V, H, true) <= (uint64_t)V * H * 2);
    assert_int_equal(k_table_load(c, NULL, K_F32, 1, 1, true, &t, &e), -EINVAL);
    assert_int_equal(k_table_load(c, &one, K_F32, 0, 1, true, &t, &e), -EINVAL);
    assert_int_equal(k_table_load(c, &one, K_F32, 1, 0, true, &t, &e), -EINVAL);
    assert_non_null(strstr(e.text, "1 x 0"));
    assert_null(t);
    assert_null(k_table_free(NULL));
    k_context_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_rows_of_every_dtype),
            cmocka_unit_test(test_sizes_and_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
