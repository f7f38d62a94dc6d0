/* gguf_text.c - a tokenizer out of GGUF metadata is the one of the tokenizer.json that they were made from. */
#include "text_test.h"

#include "daemon/text/gguf_text.h"

struct file {
    char *data;
    size_t bytes;
    struct gguf g;
};

static void open_golden(struct file *f) {
    struct error e = {0};
    f->data = read_all(GOLDEN_DIR "gguf/tokenizer.gguf", &f->bytes);
    if (gguf_parse(f->data, f->bytes, "t.gguf", &f->g, &e) < 0)
        fail_msg("%s", e.text);
}

static void close_file(struct file *f) {
    gguf_done(&f->g);
    free(f->data);
}

static struct tokenizer *load_gguf(void) {
    struct file f;
    struct tokenizer *t = NULL;
    struct error e = {0};
    open_golden(&f);
    if (gguf_tokenizer_load(&f.g, &t, &e) < 0)
        fail_msg("%s", e.text);
    close_file(&f); /* the tokenizer owns what it needs */
    return t;
}

static uint64_t varint(const unsigned char **at) {
    uint64_t value = 0;
    unsigned shift = 0;
    unsigned char c;
    do {
        c = *(*at)++;
        value |= (uint64_t)(c & 0x7f) << shift;
        shift += 7;
    } while (c & 0x80);
    return value;
}

static void same_ids(const struct tokenizer *a, const struct tokenizer *b, const char *text, size_t bytes) {
    for (int special = 0; special < 2; special++) {
        uint32_t *x = NULL, *y = NULL;
        size_t n = 0, m = 0;
        assert_int_equal(tokenizer_encode(a, text, bytes, special, SIZE_MAX, &x, &n, NULL), 0);
        assert_int_equal(tokenizer_encode(b, text, bytes, special, SIZE_MAX, &y, &m, NULL), 0);
        assert_int_equal(n, m);
        assert_memory_equal(x, y, n * sizeof(*x));
        free(x);
        free(y);
    }
}

/* All strings of cases.bin (tests/golden/README.md): magic, count, then flags, text, ids, and ids again if flagged. */
static void test_same_ids(void **state) {
    (void)state;
    struct tokenizer *own = load_own(), *t = load_gguf();
    size_t bytes;
    char *data = read_all(GOLDEN_DIR "tokenizer/cases.bin", &bytes);
    const unsigned char *at = (const unsigned char *)data + 8;
    uint64_t n = varint(&at);
    assert_true(n > 5000);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t flags = varint(&at);
        size_t length = varint(&at);
        same_ids(t, own, (const char *)at, length);
        at += length;
        for (uint64_t list = 0; list <= (flags & 1); list++)
            for (uint64_t ids = varint(&at); ids > 0; ids--)
                varint(&at);
    }
    assert_ptr_equal(at, data + bytes);
    free(data);
    tokenizer_free(own);
    tokenizer_free(t);
}

static void test_same_pieces(void **state) {
    (void)state;
    struct tokenizer *own = load_own(), *t = load_gguf();
    assert_int_equal(tokenizer_vocab_size(t), tokenizer_vocab_size(own));
    for (uint32_t id = 0; id < tokenizer_vocab_size(own); id++) {
        size_t n = 0, m = 0;
        bool special = false, expected = false;
        const char *x = tokenizer_piece(t, id, &n, &special), *y = tokenizer_piece(own, id, &m, &expected);
        assert_int_equal(!x, !y);
        if (!y)
            continue;
        assert_int_equal(n, m);
        assert_memory_equal(x, y, n);
        assert_int_equal(special, expected);
    }
    tokenizer_free(own);
    tokenizer_free(t);
}

/* Converters differ in the type that they give the tags of tools and thinking; they are tokens all the same. */
static void test_tags_of_any_type(void **state) {
    static const char text[] = "<think>\nx\n</think>\n\n<tool_call>y</tool_call>";
    (void)state;
    static const char *const tags[] = {"<think>", "</think>", "<tool_call>", "</tool_call>"};
    static const char key[] = "tokenizer.ggml.token_type";
    struct tokenizer *own = load_own();
    for (int32_t type = 1; type <= 5; type += type == 1 ? 2 : 1) {
        struct file f;
        struct tokenizer *t = NULL;
        struct error e = {0};
        uint32_t id;
        open_golden(&f);
        char *types = memmem(f.data, f.bytes, key, sizeof(key) - 1);
        assert_non_null(types);
        types += sizeof(key) - 1 + 4 + 4 + 8; /* kind of value, kind of its entries, how many */
        for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
            assert_int_equal(tokenizer_find(own, tags[i], &id), 0);
            memcpy(types + id * sizeof(type), &type, sizeof(type));
        }
        if (gguf_tokenizer_load(&f.g, &t, &e) < 0)
            fail_msg("%s", e.text);
        same_ids(t, own, text, sizeof(text) - 1);
        tokenizer_free(t);
        close_file(&f);
    }
    tokenizer_free(own);
}

static void test_template(void **state) {
    (void)state;
    struct file f;
    struct chat_template t = {0};
    struct error e = {0};
    open_golden(&f);
    assert_int_equal(gguf_chat_template_load(&f.g, &t, &e), 0);
    assert_int_equal(t.kind, CHAT_TEMPLATE_QWEN35);
    char *at = memmem(f.data, f.bytes, "<|im_start|>' ", 12);
    assert_non_null(at);
    at = memmem(at, f.bytes - (size_t)(at - f.data), "{%", 2);
    at[0] = '[';
    assert_int_equal(gguf_chat_template_load(&f.g, &t, &e), 0);
    assert_int_equal(t.kind, CHAT_TEMPLATE_NONE);
    assert_memory_equal(e.text, "t.gguf: tokenizer.chat_template: ", 33);
    close_file(&f);
}

/* The file with `from` replaced by `to`, as long. */
static void refused(const char *from, const char *to, size_t n, int code, const char *sentence) {
    struct file f;
    struct tokenizer *t = NULL;
    struct error e = {0};
    size_t bytes;
    char *data = read_all(GOLDEN_DIR "gguf/tokenizer.gguf", &bytes), *at = memmem(data, bytes, from, n);
    assert_non_null(at);
    memcpy(at, to, n);
    f = (struct file){.data = data, .bytes = bytes};
    assert_int_equal(gguf_parse(data, bytes, "t.gguf", &f.g, &e), 0);
    int r = gguf_tokenizer_load(&f.g, &t, &e);
    assert_null(t);
    assert_string_equal(e.text, sentence);
    assert_int_equal(r, code);
    close_file(&f);
}

#define REFUSED(from, to, code, sentence) refused(from, to, sizeof(from) - 1, code, sentence)

static void test_refusals(void **state) {
    (void)state;
    REFUSED("\4\0\0\0\0\0\0\0gpt2", "\4\0\0\0\0\0\0\0bert", -ENOTSUP,
            "t.gguf: tokenizer.ggml.model is 'bert': only gpt2 is supported");
    REFUSED("\6\0\0\0\0\0\0\0qwen35\25", "\6\0\0\0\0\0\0\0llama3\25", -ENOTSUP,
            "t.gguf: tokenizer.ggml.pre is 'llama3': only qwen35 and qwen2 are supported; put the model's "
            "tokenizer.json beside the file");
    REFUSED("tokenizer.ggml.merges", "tokenizer.ggml.merge_", -ENOENT,
            "t.gguf: the key tokenizer.ggml.merges is missing");
    REFUSED("tokenizer.ggml.token_type\11\0\0\0\5", "tokenizer.ggml.token_type\11\0\0\0\4", -EINVAL,
            "t.gguf: the key tokenizer.ggml.token_type is not a list of 32-bit numbers");
    REFUSED("tokenizer.ggml.add_bos_token\7\0\0\0\0", "tokenizer.ggml.add_bos_token\7\0\0\0\1", -ENOTSUP,
            "t.gguf: tokenizer.ggml.add_bos_token is true; only false is supported");
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_same_ids),
            cmocka_unit_test(test_same_pieces),
            cmocka_unit_test(test_tags_of_any_type),
            cmocka_unit_test(test_template),
            cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
