/* model_head.c - which matrix a model's head is: the file's own where it has one, whatever tie_word_embeddings says;
 * else the embedding of a tied model. Logits tell. */
#include "checkpoint_test.h"
#include "model_test.h"

#define LENGTH 9u

enum head { OWN, NONE, COPY }; /* the file's head: another matrix, not there, the embedding again */

static char base[256], folder[TEST_FOLDER_SIZE];

static int make_folder(void **state) {
    (void)state;
    snprintf(base, sizeof(base), "%s/golden/models/tp8", TESTS_DIR);
    test_folder_make(folder);
    return 0;
}
static int remove_folder(void **state) {
    (void)state;
    test_folder_remove(folder);
    return 0;
}

/* The text from its `{` at "text_config" to the matching brace, as a configuration of its own. */
static char *only_text(const char *config) {
    char *text = strdup(strchr(strstr(config, "\"text_config\""), '{')), *end = strrchr(text, '}');
    assert_non_null(end);
    *end = '\0';
    return text;
}

/* outer: the value beside text_config, "" = not there, NULL = there is no text_config; inner: the one in it. */
static void make_model(enum head head, const char *outer, const char *inner) {
    struct checkpoint *c = NULL;
    struct error e = {0};
    size_t bytes = 0;
    test_folder_empty(folder);
    must(checkpoint_open(base, &c, &e), &e);
    const size_t n = checkpoint_count(c);
    struct test_piece *pieces = test_pieces(c, 0), *p = test_piece_named(pieces, n, "lm_head.weight");
    if (head == NONE)
        p->name[0] = '\0';
    if (head == COPY)
        p->data = test_piece_named(pieces, n, "embed_tokens.weight")->data;
    test_write_file(folder, "model.safetensors", pieces, n);
    char *old = test_get(base, "config.json", &bytes);
    char *one = test_changed(old, "\"tie_word_embeddings\": false,\n  \"text_config\"",
            outer && outer[0] ? "\"tie_word_embeddings\": OUTER,\n  \"text_config\"" : "\"text_config\"");
    char *two = outer && outer[0] ? test_changed(one, "OUTER", outer) : strdup(one);
    char *three = test_changed(two, "\"tie_word_embeddings\": false\n", "\"tie_word_embeddings\": INNER\n");
    char *four = test_changed(three, "INNER", inner);
    char *five = outer ? strdup(four) : only_text(four);
    test_put_text(folder, "config.json", five);
    free(pieces), free(old), free(one), free(two), free(three), free(four), free(five);
    checkpoint_free(c);
}

static void run(const char *dir, uint32_t tp, struct one_run *ret) {
    static uint32_t prompt[LENGTH];
    struct rank_options options = test_options(dir, tp);
    struct error e = {0};
    options.logits_rows = ROWS_MAX;
    for (uint32_t i = 0; i < LENGTH; i++)
        prompt[i] = (i * 29 + 3) % 1000;
    struct offline *o = NULL;
    must(offline_create(&options, &o, &e), &e);
    run_start(ret, o, prompt, LENGTH, 1, true);
    must(offline_run(o, &ret->s, 1, &e), &e);
    offline_free(o);
}

static void same(const struct one_run *a, const struct one_run *b, bool equal) {
    const size_t bytes = (size_t)LENGTH * a->vocab * sizeof(float);
    assert_int_equal(memcmp(a->s.logits, b->s.logits, bytes) == 0, equal);
}

static void file_has_a_head(void **state) {
    (void)state;
    static const struct {
        const char *outer, *inner;
    } ways[] = {{NULL, "true"}, {NULL, "false"}, {"true", "false"}, {"true", "true"}, {"", "true"},
            {"", "false"}, {"false", "true"}};
    struct one_run original, got;
    run(base, 1, &original);
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
        for (uint32_t tp = 1; tp <= 2; tp++) {
            make_model(OWN, ways[i].outer, ways[i].inner);
            run(folder, tp, &got);
            same(&got, &original, true);
            run_done(&got);
        }
    run_done(&original);
}

/* Tied without a head in the file is what a head equal to the embedding gives, and not what the original's gives. */
static void file_has_none(void **state) {
    (void)state;
    static const struct {
        const char *outer, *inner;
    } tied[] = {{NULL, "true"}, {"true", "false"}, {"true", "true"}};
    static const struct {
        const char *outer, *inner;
    } untied[] = {{NULL, "false"}, {"", "true"}, {"false", "true"}};
    struct one_run original, copied, got;
    run(base, 1, &original);
    make_model(COPY, "true", "true");
    run(folder, 1, &copied);
    same(&copied, &original, false);
    for (size_t i = 0; i < sizeof(tied) / sizeof(tied[0]); i++) {
        make_model(NONE, tied[i].outer, tied[i].inner);
        run(folder, 1, &got);
        same(&got, &copied, true);
        run_done(&got);
    }
    for (size_t i = 0; i < sizeof(untied) / sizeof(untied[0]); i++) {
        make_model(NONE, untied[i].outer, untied[i].inner);
        test_model_refused(folder, -ENOENT, "lm_head.weight: this tensor is not in the checkpoint");
    }
    run_done(&original);
    run_done(&copied);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(file_has_a_head),
            cmocka_unit_test(file_has_none),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
