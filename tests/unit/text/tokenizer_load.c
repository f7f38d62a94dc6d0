/* Which tokenizer.json files are taken, and the sentence for each that is not. The files are made from one
 * that is good, with one part exchanged. */
#include "text_test.h"

#include "base/buffer.h"
#include "base/limits.h"

/* Parts of the file; NULL = that of the good one. */
struct parts {
    const char *top, *added, *normalizer, *pre_tokenizer, *post_processor, *decoder, *model, *vocab, *merges;
};

static const struct parts good = {
        .top = "\"version\":\"1.0\",\"truncation\":null,\"padding\":null",
        .added =
                "[{\"id\":300,\"content\":\"<|end|>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                "\"normalized\":false,\"special\":true}]",
        .normalizer = "{\"type\":\"NFC\"}",
        .pre_tokenizer =
                "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\"
                "\\p{L}+|\\\\s+\"},"
                "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\""
                ":false,"
                "\"trim_offsets\":false,\"use_regex\":false}]}",
        .post_processor = "null",
        .decoder =
                "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}",
        .model = "\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":\"\","
                 "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\""
                 ":false",
        .vocab = ",\"ab\":256,\"abc\":257,\"\xc4\xa0"
                 "a\":258",
        .merges = "[\"a b\",[\"ab\",\"c\"],\"\xc4\xa0 a\"]",
};

static void add_byte_entries(struct byte_buffer *out, int but) {
    unsigned other = 0x100;
    const char *comma = "";
    for (unsigned byte = 0; byte < 256; byte++) {
        bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        unsigned c = printable ? byte : other++;
        char text[48];
        snprintf(text, sizeof(text), "%s\"\\u%04x\":%u", comma, c, byte);
        if ((int)byte != but)
            byte_buffer_text(out, text);
        comma = ",";
    }
}

#define PART(name) (p->name ? p->name : good.name)

static void make_file(struct byte_buffer *out, const struct parts *p, int but_byte) {
    const char *const items[] = {"{", PART(top), ",\"added_tokens\":", PART(added),
            ",\"normalizer\":", PART(normalizer), ",\"pre_tokenizer\":", PART(pre_tokenizer),
            ",\"post_processor\":", PART(post_processor), ",\"decoder\":", PART(decoder), ",\"model\":{",
            PART(model), ",\"vocab\":{", NULL, PART(vocab), "},\"merges\":", PART(merges), "}}"};
    out->n = 0;
    for (size_t i = 0; i < sizeof(items) / sizeof(items[0]); i++)
        if (items[i])
            byte_buffer_text(out, items[i]);
        else
            add_byte_entries(out, but_byte);
}

static char path[] = "/tmp/shardd-test-XXXXXX";

static int load_bytes(const char *data, size_t bytes, struct tokenizer **ret, struct error *e) {
    memcpy(path + sizeof(path) - 7, "XXXXXX", 6);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(file_write_all(fd, data, bytes), 0);
    close(fd);
    int r = tokenizer_load(path, ret, e);
    unlink(path);
    return r;
}

static int load_parts(const struct parts *p, int but_byte, struct tokenizer **ret, struct error *e) {
    struct byte_buffer file = {0};
    make_file(&file, p, but_byte);
    int r = load_bytes(file.data, file.n, ret, e);
    free(file.data);
    return r;
}

static const struct parts unchanged;

static void expect_ids(
        const struct tokenizer *t, const char *text, bool special, size_t n, const uint32_t *expected) {
    uint32_t *ids;
    size_t got;
    assert_int_equal(tokenizer_encode(t, text, strlen(text), special, 100, &ids, &got, NULL), 0);
    assert_int_equal(got, n);
    assert_memory_equal(ids, expected, n * sizeof(*ids));
    free(ids);
}

static void test_good(void **state) {
    (void)state;
    struct tokenizer *t = NULL;
    struct error e = {0};
    if (load_parts(&unchanged, -1, &t, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(tokenizer_vocab_size(t), 301);
    uint32_t id;
    assert_int_equal(tokenizer_find(t, "<|end|>", &id), 0);
    assert_int_equal(id, 300);
    assert_int_equal(tokenizer_find(t, " a", &id), 0);
    assert_int_equal(id, 258);
    assert_int_equal(tokenizer_find(t, "nothing", &id), -ENOENT);
    size_t bytes;
    bool special;
    assert_memory_equal(tokenizer_piece(t, 258, &bytes, &special), " a", 2);
    assert_int_equal(bytes, 2);
    assert_false(special);
    assert_memory_equal(tokenizer_piece(t, 300, &bytes, &special), "<|end|>", 7);
    assert_true(special);
    assert_null(tokenizer_piece(t, 299, &bytes, &special)); /* a hole */
    assert_null(tokenizer_piece(t, 301, &bytes, &special));
    assert_null(tokenizer_piece(t, UINT32_MAX, &bytes, &special));
    expect_ids(t, "abcab<|end|>", true, 3, (const uint32_t[]){257, 256, 300});
    expect_ids(t, "c<", false, 2, (const uint32_t[]){'c', '<'});
    tokenizer_free(t);
}

/* Other files that are good, and what "ab a" then becomes. */
static void test_good_others(void **state) {
    (void)state;
    static const struct {
        struct parts parts;
        size_t n;
        uint32_t ids[4];
    } cases[] = {
            {{.normalizer = "null"}, 3, {256, ' ', 'a'}},
            {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}"}, 3,
                    {256, ' ', 'a'}},
            {{.pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"}, 2,
                    {256, 258}},
            {{.pre_tokenizer = "{\"add_prefix_space\":false,\"type\":\"ByteLevel\"}"}, 2, {256, 258}},
            {{.pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"}, 2,
                    {256, 258}},
            {{.post_processor = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":false}"},
                    3, {256, ' ', 'a'}},
            {{.post_processor = "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\",\""
                                "type_id\":0}}],"
                                "\"pair\":[],\"special_tokens\":{}}"},
                    3, {256, ' ', 'a'}},
            {{.merges = "[]"}, 4, {'a', 'b', ' ', 'a'}},
            {{.added = "[]"}, 3, {256, ' ', 'a'}},
            {{.added = "[{\"id\":256,\"content\":\"ab\",\"special\":false}]"}, 3, {256, ' ', 'a'}},
            {{.added = "[{\"id\":400,\"content\":\"b a\",\"normalized\":true}]"}, 2, {'a', 400}},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tokenizer *t = NULL;
        struct error e = {0};
        if (load_parts(&cases[i].parts, -1, &t, &e) < 0)
            fail_msg("case %zu: %s", i, e.text);
        expect_ids(t, "ab a", true, cases[i].n, cases[i].ids);
        tokenizer_free(t);
    }
}

static void test_ignore_merges(void **state) {
    (void)state;
    struct parts p = {.model = "\"type\":\"BPE\",\"ignore_merges\":true", .merges = "[]"};
    struct tokenizer *t = NULL;
    assert_int_equal(load_parts(&p, -1, &t, NULL), 0);
    expect_ids(t, "abc ab abcd", false, 8, (const uint32_t[]){257, ' ', 256, ' ', 'a', 'b', 'c', 'd'});
    tokenizer_free(t);
}

#define SPLIT(rest)                                                                                          \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\"," rest                                    \
    "},{\"type\":\"ByteLevel\",\"use_regex\":false}]}"
#define DROPOUT(value) "\"type\":\"BPE\",\"dropout\":" value

/* What tools for training and batches left in the file changes no prompt: the same ids, and it is told. */
static void test_settings_passed_over(void **state) {
    (void)state;
    static const struct {
        struct parts parts;
        const char *ignored;
    } cases[] = {
            {{.top = "\"truncation\":null,\"padding\":null"}, NULL},
            {{.top = "\"truncation\":{\"direction\":\"Right\",\"max_length\":1,\"strategy\":\"LongestFirst\","
                     "\"stride\":0}"},
                    "truncation"},
            {{.top = "\"padding\":{\"strategy\":{\"Fixed\":16},\"pad_id\":0,\"x\":[1,[2]]}"}, "padding"},
            {{.top = "\"padding\":{},\"truncation\":[{}]"}, "truncation and padding"},
            {{.top = "\"padding\":7,\"truncation\":true"}, "truncation and padding"},
            {{.model = DROPOUT("0")}, NULL},
            {{.model = DROPOUT("0.0")}, NULL},
            {{.model = DROPOUT("-0e5")}, NULL},
            {{.model = DROPOUT("null")}, NULL},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tokenizer *t = NULL;
        struct error e = {0};
        if (load_parts(&cases[i].parts, -1, &t, &e) < 0)
            fail_msg("case %zu: %s", i, e.text);
        if (cases[i].ignored)
            assert_string_equal(tokenizer_ignored(t), cases[i].ignored);
        else
            assert_null(tokenizer_ignored(t));
        expect_ids(t, "abc abc<|end|>", true, 4, (const uint32_t[]){257, ' ', 257, 300});
        tokenizer_free(t);
    }
}

#define ADDED(rest) "[{\"id\":300,\"content\":\"<|end|>\"," rest "}]"

static const struct {
    struct parts parts;
    int code;
    const char *says;
} refused[] = {
        {{.top = "\"version\":\"2.0\""}, -ENOTSUP, "version is '2.0'"},
        {{.top = "\"version\":1"}, -EBADMSG, "version"},
        {{.top = "\"truncation\":{\"max_length\":"}, -EBADMSG, ""},
        {{.top = "\"surprise\":1"}, -ENOTSUP, "'surprise'"},
        {{.top = "\"model\":{\"vocab\":{}}"}, -ENOTSUP, "byte 0x00"},
        {{.normalizer = "{\"type\":\"NFKC\"}"}, -ENOTSUP, "normalizer 'NFKC'"},
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Lowercase\""
                        "}]}"},
                -ENOTSUP, "'Lowercase'"},
        {{.normalizer = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"b\"}"}, -ENOTSUP,
                "'pattern'"},
        {{.normalizer = "7"}, -EBADMSG, "normalizer is a number"},
        {{.normalizer = "{}"}, -ENOTSUP, "normalizer ''"},
        {{.pre_tokenizer = "null"}, -ENOTSUP, "no ByteLevel pre_tokenizer"},
        {{.pre_tokenizer = "{\"type\":\"Metaspace\"}"}, -ENOTSUP, "'Metaspace'"},
        {{.pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"}, -ENOTSUP,
                "add_prefix_space"},
        {{.pre_tokenizer = SPLIT("\"pattern\":{\"Regex\":\"a(\"},\"behavior\":\"Isolated\"")}, -EBADMSG,
                "regular expression"},
        {{.pre_tokenizer = SPLIT("\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Removed\"")}, -ENOTSUP,
                "'Removed'"},
        {{.pre_tokenizer = SPLIT("\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Isolated\",\"invert\":true")},
                -ENOTSUP, "invert"},
        {{.pre_tokenizer = SPLIT("\"pattern\":{\"String\":\"a\"},\"behavior\":\"Isolated\"")}, -ENOTSUP,
                "'String'"},
        {{.pre_tokenizer = SPLIT("\"behavior\":\"Isolated\"")}, -ENOTSUP, "needs a Regex"},
        {{.pre_tokenizer = SPLIT("\"pattern\":\"a\",\"behavior\":\"Isolated\"")}, -EBADMSG, ""},
        {{.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[7]}"}, -EBADMSG,
                "pre_tokenizer is a number"},
        {{.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":\""
                           "ByteLevel\"}]}"},
                -ENOTSUP, "second ByteLevel"},
        {{.post_processor =
                         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\""
                         "type_id\":0}},"
                         "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{}}"},
                -ENOTSUP, "adds tokens"},
        {{.post_processor = "{\"type\":\"BertProcessing\"}"}, -ENOTSUP, "'BertProcessing'"},
        {{.decoder = "null"}, -ENOTSUP, "no ByteLevel decoder"},
        {{.decoder = "{\"type\":\"WordPiece\"}"}, -ENOTSUP, "decoder 'WordPiece'"},
        {{.model = "\"type\":\"Unigram\""}, -ENOTSUP, "'Unigram'"},
        {{.model = "\"dropout\":0.1"}, -ENOTSUP, "dropout"},
        {{.model = "\"dropout\":-1"}, -ENOTSUP, "dropout"},
        {{.model = "\"dropout\":true"}, -ENOTSUP, "dropout"},
        {{.model = "\"dropout\":\"0\""}, -ENOTSUP, "dropout"},
        {{.model = "\"dropout\":{}"}, -ENOTSUP, "dropout"},
        {{.model = "\"unk_token\":\"<unk>\""}, -ENOTSUP, "unk_token"},
        {{.model = "\"continuing_subword_prefix\":\"##\""}, -ENOTSUP, "continuing_subword_prefix"},
        {{.model = "\"byte_fallback\":true"}, -ENOTSUP, "byte_fallback"},
        {{.model = "\"fuse_unk\":1"}, -EBADMSG, "fuse_unk"},
        {{.model = "\"merges\":[]"}, -ENOTSUP, "before the vocabulary"},
        {{.model = "\"max_input_chars_per_word\":5"}, -ENOTSUP, "'max_input_chars_per_word'"},
        {{.vocab = ",\"ab\":256,\"abc\":256"}, -EBADMSG, "id 256 is given twice"},
        {{.vocab = ",\"ab\":256,\"ab\":257"}, -EBADMSG, "twice"},
        {{.vocab = ",\"ab\":-1"}, -E2BIG, "-1"},
        {{.vocab = ",\"ab\":1048576"}, -E2BIG, "1048576"},
        {{.vocab = ",\"ab\":99999999999999999999"}, -E2BIG, "99999999999999999999"},
        {{.vocab = ",\"ab\":1.5"}, -EBADMSG, "1.5"},
        {{.vocab = ",\"ab\":\"256\""}, -EBADMSG, "must be a number"},
        {{.merges = "[\"a q\"]"}, -EBADMSG, "makes an entry"},
        {{.merges = "[\"a zz\"]"}, -EBADMSG, "'zz'"},
        {{.merges = "[\"ab\"]"}, -EBADMSG, "merge 0"},
        {{.merges = "[\"a b\",\"a b\"]"}, -EBADMSG, "merge 1 is there twice"},
        {{.merges = "[\"a b c\"]"}, -EBADMSG, "merge 0"},
        {{.merges = "[\"a \"]"}, -EBADMSG, "merge 0"},
        {{.merges = "[[\"a\"]]"}, -EBADMSG, ""},
        {{.merges = "[[\"a\",\"b\",\"c\"]]"}, -EBADMSG, ""},
        {{.merges = "[7]"}, -EBADMSG, "merge 0"},
        {{.merges = "{\"a\":\"b\"}"}, -EBADMSG, ""},
        {{.merges = "[\"\xe4\xbd\xa0 a\"]"}, -EBADMSG, "merge 0"},
        {{.added = "{}"}, -EBADMSG, ""},
        {{.added = "[7]"}, -EBADMSG, "added token is a number"},
        {{.added = "[{\"id\":300}]"}, -EBADMSG, "no content"},
        {{.added = "[{\"content\":\"x\"}]"}, -EBADMSG, "no id"},
        {{.added = "[{\"id\":300,\"content\":\"\"}]"}, -EBADMSG, "empty"},
        {{.added = "[{\"id\":3000000,\"content\":\"xx\"}]"}, -E2BIG, "3000000"},
        {{.added = "[{\"id\":255,\"content\":\"xx\"}]"}, -EBADMSG, "'xx' belongs to another"},
        {{.added = "[{\"id\":300,\"content\":\"ab\"}]"}, -EBADMSG, "with id 256"},
        {{.added = "[{\"id\":300,\"content\":\"xx\"},{\"id\":300,\"content\":\"yy\"}]"}, -EBADMSG, "id 300"},
        {{.added = "[{\"id\":300,\"content\":\"xx\"},{\"id\":301,\"content\":\"xx\"}]"}, -EBADMSG, "twice"},
        {{.added = ADDED("\"lstrip\":true")}, -ENOTSUP, "lstrip"},
        {{.added = ADDED("\"rstrip\":true")}, -ENOTSUP, "rstrip"},
        {{.added = ADDED("\"single_word\":true")}, -ENOTSUP, "single_word"},
        {{.added = ADDED("\"special\":null")}, -EBADMSG, "special"},
        {{.added = ADDED("\"colour\":1")}, -ENOTSUP, "'colour'"},
};

static void test_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct tokenizer *t = NULL;
        struct error e = {0};
        int r = load_parts(&refused[i].parts, -1, &t, &e);
        if (r != refused[i].code || !strstr(e.text, refused[i].says) ||
                strncmp(e.text, path, strlen(path)) != 0)
            fail_msg("case %zu ('%s'): got %d '%s'", i, refused[i].says, r, e.text);
        assert_null(t);
    }
}

static void test_missing_byte(void **state) {
    (void)state;
    struct tokenizer *t = NULL;
    struct error e = {0};
    assert_int_equal(load_parts(&unchanged, 0xad, &t, &e), -ENOTSUP);
    assert_non_null(strstr(e.text, "byte 0xad"));
}

static void test_long_entries(void **state) {
    (void)state;
    char *vocab = malloc(TOKEN_BYTES_MAX + 64), *added = malloc(TOKEN_BYTES_MAX + 64),
         xs[TOKEN_BYTES_MAX + 2];
    struct tokenizer *t = NULL;
    memset(xs, 'x', sizeof(xs));
    for (int extra = 0; extra <= 1; extra++) {
        xs[TOKEN_BYTES_MAX + extra] = 0;
        snprintf(vocab, TOKEN_BYTES_MAX + 64, ",\"%s\":400", xs);
        snprintf(added, TOKEN_BYTES_MAX + 64, "[{\"id\":400,\"content\":\"%s\"}]", xs);
        struct parts with_entry = {.vocab = vocab, .merges = "[]"}, with_added = {.added = added};
        assert_int_equal(load_parts(&with_entry, -1, &t, NULL), extra ? -E2BIG : 0);
        if (!extra)
            t = tokenizer_free(t);
        assert_int_equal(load_parts(&with_added, -1, &t, NULL), extra ? -EBADMSG : 0);
        if (!extra)
            t = tokenizer_free(t);
        xs[TOKEN_BYTES_MAX + extra] = 'x';
    }
    free(vocab);
    free(added);
}

/* Every beginning of a good file, and every file with one byte changed, is taken or refused; nothing else
 * happens. */
static void test_broken(void **state) {
    (void)state;
    struct byte_buffer file = {0};
    uint64_t seed = 1;
    make_file(&file, &unchanged, -1);
    for (size_t n = 0; n < file.n; n += n < file.n - 200 ? 97 : 1) {
        struct tokenizer *t = NULL;
        assert_true(load_bytes(file.data, n, &t, NULL) < 0);
        assert_null(t);
    }
    for (size_t i = 0; i < 600; i++) {
        struct tokenizer *t = NULL;
        size_t at = random_below(&seed, file.n);
        char before = file.data[at];
        file.data[at] = (char)random_below(&seed, 256);
        load_bytes(file.data, file.n, &t, NULL);
        tokenizer_free(t);
        file.data[at] = before;
    }
    free(file.data);
    struct tokenizer *t = NULL;
    struct error e = {0};
    assert_int_equal(load_bytes("[]", 2, &t, &e), -EBADMSG);
    assert_int_equal(load_bytes("{}", 2, &t, &e), -EBADMSG);
    assert_non_null(strstr(e.text, "no model"));
    static const char empty_entry[] = "{\"model\":{\"vocab\":{\"\":0}}}";
    assert_int_equal(load_bytes(empty_entry, sizeof(empty_entry) - 1, &t, &e), -ENOTSUP);
    assert_non_null(strstr(e.text, "byte 0x00"));
    assert_int_equal(tokenizer_load("/nowhere/tokenizer.json", &t, &e), -ENOENT);
    assert_non_null(strstr(e.text, "/nowhere/tokenizer.json"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_good),
            cmocka_unit_test(test_settings_passed_over),
            cmocka_unit_test(test_good_others),
            cmocka_unit_test(test_ignore_merges),
            cmocka_unit_test(test_refused),
            cmocka_unit_test(test_missing_byte),
            cmocka_unit_test(test_long_entries),
            cmocka_unit_test(test_broken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
