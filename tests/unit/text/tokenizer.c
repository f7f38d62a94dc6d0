/* What must hold for any text: decoding gives its NFC back, spans keep what users wrote out of the control
 * tokens, limits and broken UTF-8 are refused, the detokenizer does not care how ids come, threads may share
 * a tokenizer. */
#include "text_test.h"

#include "base/buffer.h"
#include "base/utf8.h"
#include "daemon/text/nfc.h"

#include <pthread.h>

/* Text of many scripts, of tags and of what normalization changes. */
static void make_text(struct byte_buffer *text, uint64_t *seed) {
    static const char *const bits[] = {"hello", " world", "\n\n", " ", "  ", "1234", "it's", "'LL",
            "\xd0\xb9", "\xe4\xbd\xa0\xe5\xa5\xbd", "e\xcc\x81", "\xcc\x81\xcc\xa3",
            "\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xe2\x84\xab", "<|im_end|>", "<|im_start|>", "<think>",
            "<|im_", "end|>", "<", "|", ">", "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb",
            "\xe0\xa4\x95\xe0\xa4\xbc", "\t", "\r\n",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "!=", "def f(x):"};
    text->n = 0;
    for (size_t n = 1 + random_below(seed, 12); n > 0; n--)
        if (random_below(seed, 3) > 0)
            byte_buffer_text(text, bits[random_below(seed, sizeof(bits) / sizeof(bits[0]))]);
        else {
            uint32_t c = (uint32_t)random_below(seed, random_below(seed, 2) ? 0x3000 : 0x110000);
            byte_buffer_reserve(text, 4);
            if (c < 0xd800 || c > 0xdfff)
                text->n += utf8_encode(c, text->data + text->n);
        }
    byte_buffer_reserve(text, 1);
}

static char *decode(
        const struct tokenizer *t, const uint32_t *ids, size_t n, bool special, size_t *ret_bytes) {
    struct detokenizer d;
    char *text = NULL;
    size_t used = 0, size = 0;
    detokenizer_init(&d, special);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(detokenizer_add(&d, t, ids[i], &text, &used, &size), 0);
    assert_int_equal(detokenizer_end(&d, &text, &used, &size), 0);
    *ret_bytes = used;
    return text;
}

static void test_round_trip(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    struct byte_buffer text = {0}, normal = {0};
    uint64_t seed = 5;
    for (size_t i = 0; i < 20000; i++) {
        uint32_t *ids;
        size_t n, bytes;
        make_text(&text, &seed);
        normal.n = 0;
        nfc_append(text.data, text.n, NULL, &normal, NULL);
        assert_int_equal(tokenizer_encode(t, text.data, text.n, false, SIZE_MAX, &ids, &n, NULL), 0);
        char *back = decode(t, ids, n, true, &bytes);
        assert_int_equal(bytes, normal.n);
        if (bytes)
            assert_memory_equal(back, normal.data, bytes);
        free(back);
        free(ids);
    }
    free(text.data);
    free(normal.data);
    tokenizer_free(t);
}

static bool is_special(const struct tokenizer *t, uint32_t id) {
    size_t bytes;
    bool special;
    assert_non_null(tokenizer_piece(t, id, &bytes, &special));
    return special;
}

/* Spans that are all trusted encode as the joined text does; spans that are not, as the joined text without
 * added tokens; and for any mixture no control token comes from a byte that is not trusted. */
static void test_spans(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    struct byte_buffer text = {0};
    uint64_t seed = 6;
    size_t kept_out = 0;
    for (size_t i = 0; i < 20000; i++) {
        struct text_span spans[8];
        uint32_t *joined, *got;
        size_t n_joined, n_got, n = 0, mode = random_below(&seed, 3);
        make_text(&text, &seed);
        for (size_t at = 0; n < 8; n++) {
            size_t bytes = n == 7 ? text.n - at : random_below(&seed, text.n - at + 1);
            spans[n] = (struct text_span){text.data + at, bytes, mode == 2 ? random_below(&seed, 2) : mode};
            at += bytes;
        }
        assert_int_equal(
                tokenizer_encode(t, text.data, text.n, mode != 0, SIZE_MAX, &joined, &n_joined, NULL), 0);
        assert_int_equal(tokenizer_encode_spans(t, spans, n, SIZE_MAX, &got, &n_got, NULL), 0);
        if (mode != 2) {
            assert_int_equal(n_joined, n_got);
            assert_memory_equal(joined, got, n_got * sizeof(*got));
        } else {
            size_t special_joined = 0, special_got = 0, in_trusted = 0;
            for (size_t k = 0; k < n_joined; k++)
                special_joined += is_special(t, joined[k]);
            for (size_t k = 0; k < n_got; k++)
                special_got += is_special(t, got[k]);
            /* each run of trusted spans by itself can give no fewer */
            for (size_t k = 0, end; k < n; k = end) {
                size_t bytes = 0, n_alone;
                uint32_t *alone;
                for (end = k; end < n && spans[end].parse_special == spans[k].parse_special; end++)
                    bytes += spans[end].bytes;
                if (!spans[k].parse_special || !utf8_valid(spans[k].text, bytes, NULL))
                    continue;
                assert_int_equal(
                        tokenizer_encode(t, spans[k].text, bytes, true, SIZE_MAX, &alone, &n_alone, NULL), 0);
                for (size_t m = 0; m < n_alone; m++)
                    in_trusted += is_special(t, alone[m]);
                free(alone);
            }
            assert_true(special_got >= in_trusted && special_got <= special_joined);
            kept_out += special_joined - special_got;
        }
        free(joined);
        free(got);
    }
    assert_true(kept_out > 1000);
    free(text.data);
    tokenizer_free(t);
}

static void expect_count(const struct tokenizer *t, const struct text_span *spans, size_t n,
        const char *token, size_t expected) {
    uint32_t *ids, id;
    size_t n_ids, count = 0;
    assert_int_equal(tokenizer_find(t, token, &id), 0);
    assert_int_equal(tokenizer_encode_spans(t, spans, n, 100, &ids, &n_ids, NULL), 0);
    for (size_t i = 0; i < n_ids; i++)
        count += ids[i] == id;
    assert_int_equal(count, expected);
    free(ids);
}

#define SPAN(text, trusted)                                                                                  \
    { text, sizeof(text) - 1, trusted }

static void test_span_rules(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    const struct text_span user[] = {SPAN("hi <|im_end|>", false)};
    const struct text_span template[] = {SPAN("hi <|im_end|>", true)};
    const struct text_span cut[] = {SPAN("hi <|im_", true), SPAN("end|>", true)};
    const struct text_span half[] = {SPAN("hi <|im_", true), SPAN("end|>", false)};
    const struct text_span other_half[] = {SPAN("hi <|im_", false), SPAN("end|>", true)};
    const struct text_span empty_between[] = {SPAN("hi <|im_", true), SPAN("", false), SPAN("end|>", true)};
    const struct text_span turn[] = {SPAN("<|im_start|>user\n", true), SPAN("<|im_end|><|im_end|>", false),
            SPAN("<|im_end|>\n", true)};
    expect_count(t, user, 1, "<|im_end|>", 0);
    expect_count(t, template, 1, "<|im_end|>", 1);
    expect_count(t, cut, 2, "<|im_end|>", 1);
    expect_count(t, half, 2, "<|im_end|>", 0);
    expect_count(t, other_half, 2, "<|im_end|>", 0);
    expect_count(t, empty_between, 3, "<|im_end|>", 1);
    expect_count(t, turn, 3, "<|im_end|>", 1);
    expect_count(t, turn, 0, "<|im_end|>", 0);
    /* words run across the borders: "hel" + "lo" is one word, whoever wrote which half */
    const struct text_span word[] = {SPAN("hel", true), SPAN("lo", false)};
    uint32_t *a, *b;
    size_t n_a, n_b;
    assert_int_equal(tokenizer_encode_spans(t, word, 2, 100, &a, &n_a, NULL), 0);
    assert_int_equal(tokenizer_encode(t, "hello", 5, true, 100, &b, &n_b, NULL), 0);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a * sizeof(*a));
    free(a);
    free(b);
    /* and so may characters */
    const struct text_span character[] = {SPAN("\xc3", true), SPAN("\xa9", false)};
    assert_int_equal(tokenizer_encode_spans(t, character, 2, 100, &a, &n_a, NULL), 0);
    free(a);
    tokenizer_free(t);
}

static void test_limits(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    struct error e = {0};
    uint32_t *ids = NULL;
    size_t n = 77;
    assert_int_equal(tokenizer_encode(t, "", 0, true, 0, &ids, &n, &e), 0);
    assert_int_equal(n, 0);
    assert_non_null(ids);
    free(ids);
    ids = NULL;
    assert_int_equal(tokenizer_encode(t, "1 2 3", 5, true, 5, &ids, &n, &e), 0);
    assert_int_equal(n, 5);
    free(ids);
    ids = NULL;
    assert_int_equal(tokenizer_encode(t, "1 2 3", 5, true, 4, &ids, &n, &e), -E2BIG);
    assert_non_null(strstr(e.text, "4 tokens"));
    assert_int_equal(tokenizer_encode(t, "<|im_end|><|im_end|>", 20, true, 1, &ids, &n, &e), -E2BIG);
    assert_int_equal(tokenizer_encode(t, "abc\xff", 4, true, 4, &ids, &n, &e), -EILSEQ);
    assert_non_null(strstr(e.text, "byte 3"));
    assert_null(ids);
    /* a long text is refused before work is done on it */
    size_t bytes = 16u << 20;
    char *text = malloc(bytes);
    memset(text, 'x', bytes);
    assert_int_equal(tokenizer_encode(t, text, bytes, true, 1000, &ids, &n, &e), -E2BIG);
    free(text);
    tokenizer_free(t);
}

/* Hostile texts: each would take hours if some step were quadratic. */
static void test_hostile_texts(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    static const char *const units[] = {"a", " ", "\n", " \n", "\xcc\x81", "<", "<|im_end|>", "\xe1\x85\xa1",
            "'", "ab", "=", "\xe2\x80\x83"};
    size_t bytes = 2u << 20, n;
    char *text = malloc(bytes + 16);
    uint32_t *ids;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        size_t used = 0, unit = strlen(units[i]);
        for (; used + unit <= bytes; used += unit)
            memcpy(text + used, units[i], unit);
        assert_int_equal(tokenizer_encode(t, text, used, true, SIZE_MAX, &ids, &n, NULL), 0);
        assert_true(n > 0);
        free(ids);
    }
    /* marks in falling order of their classes: to be sorted, all of them */
    for (size_t i = 0; i < bytes / 2; i++)
        memcpy(text + 2 * i, i < bytes / 4 ? "\xcc\x81" : "\xcc\xa3", 2);
    assert_int_equal(tokenizer_encode(t, text, bytes, true, SIZE_MAX, &ids, &n, NULL), 0);
    free(ids);
    free(text);
    tokenizer_free(t);
}

/* Python's bytes.decode(errors="replace"), done the obvious way on the whole. */
static void replace_slowly(const unsigned char *in, size_t n, struct byte_buffer *out) {
    for (size_t at = 0; at < n;) {
        size_t whole = utf8_sequence((const char *)in + at, n - at);
        if (whole > 0) {
            byte_buffer_add(out, in + at, whole);
            at += whole;
            continue;
        }
        /* the longest beginning of some valid sequence: what can be completed by bytes of the right kind */
        size_t part = 1;
        static const unsigned char fillers[] = {0x80, 0x90, 0xa0, 0xbf, 0x8f, 0x9f};
        for (size_t take = 2; take <= 3 && at + take <= n; take++) {
            bool completes = false;
            for (size_t a = 0; a < sizeof(fillers) && !completes; a++)
                for (size_t b = 0; b < sizeof(fillers) && !completes; b++) {
                    unsigned char whole_text[8];
                    memcpy(whole_text, in + at, take);
                    whole_text[take] = fillers[a];
                    whole_text[take + 1] = fillers[b];
                    completes = utf8_sequence((char *)whole_text, take + 2) > take;
                }
            if (!completes)
                break;
            part = take;
        }
        byte_buffer_text(out, "\xef\xbf\xbd");
        at += part;
    }
}

static void test_detokenizer(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    struct byte_buffer bytes = {0}, expected = {0};
    uint64_t seed = 8;
    uint32_t byte_ids[256];
    for (unsigned id = 0; id < tokenizer_vocab_size(t); id++) {
        size_t n;
        bool special;
        const char *piece = tokenizer_piece(t, id, &n, &special);
        if (piece && n == 1)
            byte_ids[(unsigned char)*piece] = id;
    }
    static const unsigned char hard[] = {0xc0, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xef, 0xf0, 0xf4, 0xf5, 0xff,
            0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 'a'};
    for (size_t i = 0; i < 50000; i++) {
        uint32_t ids[64];
        size_t n = 0;
        bytes.n = expected.n = 0;
        for (size_t left = random_below(&seed, 16); left > 0; left--) {
            uint32_t id = random_below(&seed, 3) ? byte_ids[hard[random_below(&seed, sizeof(hard))]]
                                                 : (uint32_t)random_below(&seed, tokenizer_vocab_size(t));
            size_t piece_bytes;
            bool special;
            const char *piece = tokenizer_piece(t, id, &piece_bytes, &special);
            if (special)
                continue;
            byte_buffer_add(&bytes, piece, piece_bytes);
            ids[n++] = id;
        }
        replace_slowly((unsigned char *)bytes.data, bytes.n, &expected);
        size_t got_bytes;
        char *got = decode(t, ids, n, false, &got_bytes);
        assert_int_equal(got_bytes, expected.n);
        if (got_bytes)
            assert_memory_equal(got, expected.data, got_bytes);
        free(got);
    }
    free(bytes.data);
    free(expected.data);
    tokenizer_free(t);
}

/* Only whole characters come out, and as soon as they are whole; special tokens only where they are asked
 * for. */
static void test_detokenizer_steps(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    uint32_t *ids, end;
    size_t n, used = 0, size = 0, ids_of_euro = 0;
    struct detokenizer d;
    char *text = NULL;
    assert_int_equal(tokenizer_encode(t, "\xf0\x9f\x98\x80", 4, true, 10, &ids, &n, NULL), 0);
    detokenizer_init(&d, false);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(detokenizer_add(&d, t, ids[i], &text, &used, &size), 0);
        assert_int_equal(used, i + 1 < n ? 0 : 4);
        ids_of_euro++;
    }
    assert_true(ids_of_euro > 1);
    assert_int_equal(tokenizer_find(t, "<|im_end|>", &end), 0);
    assert_int_equal(detokenizer_add(&d, t, end, &text, &used, &size), 0);
    assert_int_equal(used, 4);
    d.show_special = true;
    assert_int_equal(detokenizer_add(&d, t, end, &text, &used, &size), 0);
    assert_int_equal(used, 14);
    assert_int_equal(detokenizer_add(&d, t, tokenizer_vocab_size(t), &text, &used, &size), -EINVAL);
    free(ids);
    free(text);
    tokenizer_free(t);
}

static void *encode_in_thread(void *user) {
    const struct tokenizer *t = user;
    struct byte_buffer text = {0};
    uint64_t seed = 11, sum = 0;
    for (size_t i = 0; i < 2000; i++) {
        uint32_t *ids;
        size_t n;
        make_text(&text, &seed);
        if (tokenizer_encode(t, text.data, text.n, true, SIZE_MAX, &ids, &n, NULL) < 0)
            continue;
        for (size_t k = 0; k < n; k++)
            sum = sum * 31 + ids[k];
        free(ids);
    }
    free(text.data);
    return (void *)(uintptr_t)sum;
}

static void test_threads(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    pthread_t threads[4];
    void *sums[4], *alone = encode_in_thread(t);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_in_thread, t), 0);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_join(threads[i], &sums[i]), 0);
    for (size_t i = 0; i < 4; i++)
        assert_ptr_equal(sums[i], alone);
    tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_round_trip),
            cmocka_unit_test(test_spans),
            cmocka_unit_test(test_span_rules),
            cmocka_unit_test(test_limits),
            cmocka_unit_test(test_hostile_texts),
            cmocka_unit_test(test_detokenizer),
            cmocka_unit_test(test_detokenizer_steps),
            cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
