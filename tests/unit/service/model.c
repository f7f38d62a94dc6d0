/* model.c - what the coordinator takes out of a GGUF model: names, ids that end a text, tokenizer, chat template, and
 * which files beside it win. */
#include "daemon/service/model.h"

#include "base/file.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define GOLDEN TESTS_DIR "/golden/"

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/shardd-model-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return rmdir(folder);
}

static const char *in_folder(const char *name) {
    static char path[PATH_MAX];
    assert_int_equal(file_path(folder, name, path, NULL), 0);
    return path;
}

static void copy(const char *from, const char *name) {
    char *data = NULL;
    size_t bytes = 0;
    assert_int_equal(file_read(from, 64u << 20, &data, &bytes, NULL), 0);
    assert_int_equal(file_replace(in_folder(name), data, bytes, 0600, NULL), 0);
    free(data);
}

static void write_text(const char *name, const char *text) {
    assert_int_equal(file_replace(in_folder(name), text, strlen(text), 0600, NULL), 0);
}

static void drop(const char *name) {
    assert_int_equal(unlink(in_folder(name)), 0);
}

static struct model *load(const char *path) {
    struct model *m = NULL;
    struct error e = {0};
    if (model_load(path, NULL, 0, &m, &e) < 0)
        fail_msg("%s", e.text);
    return m;
}

static bool stops_at(const struct model *m, const char *text) {
    uint32_t id = 0;
    assert_int_equal(tokenizer_find(m->tokenizer, text, &id), 0);
    for (size_t i = 0; i < m->generation.n_stop_ids; i++)
        if (m->generation.stop_ids[i] == id)
            return true;
    return false;
}

static void test_file_alone(void **state) {
    (void)state;
    copy(GOLDEN "gguf/tokenizer.gguf", "Small-Q8_0.gguf");
    for (int by_folder = 0; by_folder < 2; by_folder++) {
        struct model *m = load(by_folder ? folder : in_folder("Small-Q8_0.gguf"));
        assert_string_equal(m->names[0], by_folder ? strrchr(folder, '/') + 1 : "Small-Q8_0");
        assert_string_equal(m->architecture, "qwen35");
        assert_int_equal(m->template.kind, CHAT_TEMPLATE_QWEN35);
        assert_true(stops_at(m, "<|im_end|>"));
        assert_true(stops_at(m, "<|endoftext|>"));
        model_free(m);
    }
    drop("Small-Q8_0.gguf");
}

static void test_files_beside_it_win(void **state) {
    (void)state;
    struct model *m;
    struct error e = {0};
    copy(GOLDEN "gguf/tokenizer.gguf", "m.gguf");
    write_text("chat_template.jinja", "another");
    write_text("generation_config.json", "{\"top_k\": 7, \"eos_token_id\": 5}");
    m = load(in_folder("m.gguf"));
    assert_int_equal(m->template.kind, CHAT_TEMPLATE_NONE);
    assert_non_null(strstr(m->template_error.text, "chat_template.jinja"));
    assert_int_equal(m->generation.sampling.top_k, 7);
    assert_int_equal(m->generation.stop_ids[0], 5);
    assert_true(stops_at(m, "<|im_end|>"));
    model_free(m);
    write_text("tokenizer.json", "{}");
    m = NULL;
    assert_int_equal(model_load(in_folder("m.gguf"), NULL, 0, &m, &e), -EBADMSG);
    assert_non_null(strstr(e.text, "tokenizer.json"));
    assert_null(m);
    drop("tokenizer.json");
    drop("generation_config.json");
    drop("chat_template.jinja");
    drop("m.gguf");
}

/* One id, a list or nothing, beside text_config and in it; numbers of Python's in fields that nobody reads. */
static void test_stop_ids_of_config(void **state) {
    (void)state;
    static const struct {
        const char *config;
        uint32_t n, ids[3];
    } cases[] = {
            {"{\"model_type\":\"qwen3_5\",\"eos_token_id\":[7,9],\"text_config\":{\"eos_token_id\":[9,8]}}",
                    3, {7, 9, 8}},
            {"{\"eos_token_id\":7,\"text_config\":{\"eos_token_id\":null}}", 1, {7}},
            {"{\"eos_token_id\":null,\"text_config\":{\"eos_token_id\":[8]}}", 1, {8}},
            {"{\"eos_token_id\":[],\"x\":NaN,\"text_config\":{\"y\":-Infinity,\"eos_token_id\":8}}", 1, {8}},
            {"{\"eos_token_id\":[9,8,9]}", 2, {9, 8}},
    };
    copy(GOLDEN "tokenizer/tokenizer.json", "tokenizer.json");
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        for (int with_generation = 0; with_generation < 2; with_generation++) {
            write_text("config.json", cases[i].config);
            if (with_generation)
                write_text("generation_config.json",
                        "{\"eos_token_id\":7,\"top_k\":3,\"penalty_alpha\":Infinity}");
            struct model *m = load(folder);
            for (uint32_t k = 0; k < cases[i].n; k++) {
                bool found = false;
                for (uint32_t n = 0; n < m->generation.n_stop_ids; n++)
                    found = found || m->generation.stop_ids[n] == cases[i].ids[k];
                assert_true(found);
            }
            assert_int_equal(m->generation.sampling.top_k, with_generation ? 3 : 0);
            if (with_generation)
                drop("generation_config.json");
            else /* and the two that the tokenizer has */
                assert_int_equal(m->generation.n_stop_ids, cases[i].n + 2);
            model_free(m);
        }
    struct model *m = NULL;
    struct error e = {0};
    write_text("config.json", "{\"eos_token_id\":[7,\"x\"]}");
    assert_int_equal(model_load(folder, NULL, 0, &m, &e), -EINVAL);
    assert_non_null(strstr(e.text, "config.json: eos_token_id must be a token id or a list of them"));
    drop("config.json");
    drop("tokenizer.json");
}

/* A copy of the golden file with more metadata in front: key, type (4 u32, 5 i32, 6 f32, 12 f64) and value. */
struct metadata {
    const char *key;
    uint32_t type;
    double value;
};

static size_t put_metadata(char *to, const struct metadata *m) {
    uint64_t bytes = strlen(m->key);
    int32_t whole = (int32_t)m->value;
    float narrow = (float)m->value;
    const size_t width = m->type == 12 ? 8 : 4;
    memcpy(to, &bytes, 8);
    memcpy(to + 8, m->key, bytes);
    memcpy(to + 8 + bytes, &m->type, 4);
    memcpy(to + 12 + bytes,
            m->type == 12  ? (const void *)&m->value
            : m->type == 6 ? (const void *)&narrow
                           : &whole,
            width);
    return 12 + bytes + width;
}

static void write_gguf(const struct metadata *m, size_t n) {
    enum { HEADER = 24, COUNT_AT = 16 };
    char *data = NULL;
    size_t bytes = 0, more = 0;
    assert_int_equal(file_read(GOLDEN "gguf/tokenizer.gguf", 1u << 20, &data, &bytes, NULL), 0);
    char *file = malloc(bytes + 4096);
    memcpy(file, data, HEADER);
    for (size_t i = 0; i < n; i++)
        more += put_metadata(file + HEADER + more, &m[i]);
    memcpy(file + HEADER + more, data + HEADER, bytes - HEADER);
    uint64_t count;
    memcpy(&count, file + COUNT_AT, 8);
    count += n;
    memcpy(file + COUNT_AT, &count, 8);
    assert_int_equal(file_replace(in_folder("m.gguf"), file, bytes + more, 0600, NULL), 0);
    free(file);
    free(data);
}

#define SAMPLING "general.sampling."

static void test_sampling_of_gguf(void **state) {
    (void)state;
    static const struct metadata all[] = {{SAMPLING "temp", 6, 0.6}, {SAMPLING "top_k", 5, 20},
            {SAMPLING "top_p", 6, 0.95}, {SAMPLING "min_p", 12, 0.05}, {SAMPLING "penalty_repeat", 6, 1.25},
            {SAMPLING "penalty_last_n", 5, 64}, {SAMPLING "mirostat_tau", 6, 5},
            {SAMPLING "unheard_of", 4, 1}};
    write_gguf(all, sizeof(all) / sizeof(*all));
    struct model *m = load(folder);
    const struct sampling_defaults *s = &m->generation.sampling;
    assert_true(s->temperature == 0.6f && s->top_p == 0.95f && s->min_p == 0.05f);
    assert_true(s->top_k == 20 && s->repetition_penalty == 1.25f);
    model_free(m);
    write_text("generation_config.json", "{\"temperature\": 0.3, \"top_k\": 7}"); /* wins in what it has */
    m = load(folder);
    s = &m->generation.sampling;
    assert_true(s->temperature == 0.3f && s->top_k == 7 && s->top_p == 0.95f);
    model_free(m);
    drop("generation_config.json");
    /* off, as llama.cpp writes it; a penalty over no tokens is none */
    static const struct metadata off[] = {{SAMPLING "temp", 6, -1}, {SAMPLING "top_k", 5, -1},
            {SAMPLING "min_p", 6, -1}, {SAMPLING "penalty_repeat", 6, 1.5},
            {SAMPLING "penalty_last_n", 5, 0}};
    write_gguf(off, sizeof(off) / sizeof(*off));
    m = load(folder);
    s = &m->generation.sampling;
    assert_true(s->temperature == 0 && s->top_k == 0 && s->min_p == 0 && s->repetition_penalty == 1);
    model_free(m);
    static const struct metadata wrong[] = {{SAMPLING "temp", 6, 101}, {SAMPLING "top_p", 6, 0},
            {SAMPLING "top_p", 6, 1.5}, {SAMPLING "min_p", 6, 2}, {SAMPLING "penalty_repeat", 6, 0},
            {SAMPLING "top_k", 6, 1.5}, {SAMPLING "top_k", 12, 1e10}, {SAMPLING "temp", 12, NAN},
            {SAMPLING "top_k", 12, NAN}};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        struct error e = {0};
        m = NULL;
        write_gguf(&wrong[i], 1);
        assert_int_equal(model_load(folder, NULL, 0, &m, &e), -EINVAL);
        assert_non_null(strstr(e.text, wrong[i].key));
    }
    drop("m.gguf");
}

static void test_broken_file(void **state) {
    (void)state;
    struct model *m = NULL;
    struct error e = {0};
    write_text("m.gguf", "GGUF\3");
    assert_int_equal(model_load(folder, NULL, 0, &m, &e), -EBADMSG);
    assert_string_equal(e.text, "m.gguf: ends inside its header: it is truncated, fetch it again");
    assert_null(m);
    drop("m.gguf");
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_file_alone),
            cmocka_unit_test(test_files_beside_it_win),
            cmocka_unit_test(test_stop_ids_of_config),
            cmocka_unit_test(test_sampling_of_gguf),
            cmocka_unit_test(test_broken_file),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
