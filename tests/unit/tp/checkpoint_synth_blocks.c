/* checkpoint_synth_blocks.c - quantised synthetic models as GGUF files: which tensors are Q4_0 and Q8_0, and values of
 * the deviation that the dense model has. */
#include "base/gguf.h"
#include "base/half.h"
#include "checkpoint_test.h"
#include "tp/synth/synth.h"

#include <math.h>

static char folder[TEST_FOLDER_SIZE];

static int make_folder(void **state) {
    (void)state;
    test_folder_make(folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    test_folder_remove(folder);
    return 0;
}

static char *write_model(uint32_t bits, uint32_t head_bits, uint64_t seed, size_t *ret_bytes) {
    char dir[PATH_MAX], name[32];
    struct synth_options o = {.name = "unit",
            .dtype = TENSOR_BF16,
            .seed = seed,
            .format = SYNTH_GGUF,
            .weight_bits = bits,
            .head_bits = head_bits,
            .group_size = 32};
    struct synth_report report;
    struct error e;
    static uint32_t n;
    snprintf(name, sizeof(name), "model%u", n++);
    assert_int_equal(file_path(folder, name, dir, NULL), 0);
    o.dir = dir;
    assert_int_equal(synth_config("tiny", &o.config), 0);
    o.config.tie_word_embeddings = false;
    if (synth_write(&o, &report, &e) < 0)
        fail_msg("%s", e.text);
    char *image = test_get(dir, "model.gguf", ret_bytes);
    assert_true(report.bytes < *ret_bytes && report.bytes > *ret_bytes / 2);
    return image;
}

/* The deviation of a tensor of Q4_0 or Q8_0, whose blocks are a scale and 32 codes. */
static double deviation(const struct gguf_tensor *t) {
    const uint32_t bytes = t->type == GGUF_TENSOR_Q4_0 ? 18 : 34;
    const uint8_t *block = t->data;
    double sum = 0, n = 0;
    for (uint64_t at = 0; at < t->bytes; at += bytes, block += bytes) {
        uint16_t half;
        memcpy(&half, block, sizeof(half));
        const double d = float_of_f16(half);
        for (uint32_t i = 0; i < 32; i++, n++) {
            const int code = t->type == GGUF_TENSOR_Q4_0 ? (block[2 + i % 16] >> (i / 16 * 4) & 15) - 8
                                                         : (int8_t)block[2 + i];
            sum += d * d * code * code;
        }
    }
    return sqrt(sum / n);
}

static void check(const struct gguf *g, const char *name, enum gguf_tensor_type type, double expected) {
    const struct gguf_tensor *t = gguf_find_tensor(g, name);
    assert_non_null(t);
    assert_int_equal(t->type, type);
    if (expected > 0)
        assert_true(fabs(deviation(t) / expected - 1) < 0.1);
}

static void test_blocks(void **state) {
    struct model_config m;
    struct error e;
    (void)state;
    assert_int_equal(synth_config("tiny", &m), 0);
    for (uint32_t bits = 4; bits <= 8; bits += 4) {
        const enum gguf_tensor_type type = bits == 4 ? GGUF_TENSOR_Q4_0 : GGUF_TENSOR_Q8_0;
        const double linear = 1 / sqrt(m.hidden_size), additions = sqrt(2.0 * m.n_layers);
        struct gguf g;
        size_t bytes;
        char *image = write_model(bits, 8, 5, &bytes);
        if (gguf_parse(image, bytes, "model.gguf", &g, &e) < 0)
            fail_msg("%s", e.text);
        check(&g, "blk.0.attn_qkv.weight", type, linear);
        check(&g, "blk.1.ffn_up.weight", type, linear);
        check(&g, "blk.1.ffn_down.weight", type, 1 / sqrt(m.intermediate_size) / additions);
        check(&g, "blk.3.attn_output.weight", type, 1 / sqrt((double)m.q_heads * m.head_dim) / additions);
        check(&g, "output.weight", GGUF_TENSOR_Q8_0, linear);
        check(&g, "token_embd.weight", GGUF_TENSOR_BF16, 0);
        check(&g, "blk.0.ssm_alpha.weight", GGUF_TENSOR_BF16, 0);
        check(&g, "blk.0.ssm_conv1d.weight", GGUF_TENSOR_F32, 0);
        check(&g, "blk.0.attn_norm.weight", GGUF_TENSOR_F32, 0);
        gguf_done(&g);
        free(image);
    }
}

static void test_same_seed_same_bytes(void **state) {
    size_t n[3];
    (void)state;
    char *a = write_model(4, 0, 5, &n[0]), *b = write_model(4, 0, 5, &n[1]), *c = write_model(4, 0, 6, &n[2]);
    assert_true(n[0] == n[1] && n[0] == n[2]);
    assert_memory_equal(a, b, n[0]);
    assert_true(memcmp(a, c, n[0]) != 0);
    free(a);
    free(b);
    free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_blocks), cmocka_unit_test(test_same_seed_same_bytes)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
