/* The ways of merging a word (short, heap, queues) against the sentence in bpe.h done literally. */
#include "text_test.h"

#include "daemon/text/tokenizer_tables.h"

/* The pair of lowest rank is merged first, the leftmost of equals. */
static void merge_slowly(const struct bpe *b, const char *word, size_t n, struct id_buffer *out) {
    out->n = 0;
    for (size_t i = 0; i < n; i++)
        id_buffer_add(out, b->byte_ids[(unsigned char)word[i]]);
    for (;;) {
        uint32_t best = BPE_RANK_NONE, id = 0, merged;
        size_t at = 0;
        for (size_t i = 0; i + 1 < out->n; i++) {
            uint32_t rank = bpe_rank(b, out->data[i], out->data[i + 1], &merged);
            if (rank < best) {
                best = rank;
                at = i;
                id = merged;
            }
        }
        if (best == BPE_RANK_NONE)
            return;
        out->data[at] = id;
        out->n--;
        memmove(out->data + at + 1, out->data + at + 2, (out->n - at - 1) * sizeof(*out->data));
    }
}

static void make_word(char *word, size_t n, uint64_t *seed) {
    static const char *const alphabets[] = {"a", "ab", "the ing", "etaoin shrdlu", "=-_*", " \n"};
    const char *letters = alphabets[random_below(seed, sizeof(alphabets) / sizeof(alphabets[0]))];
    size_t n_letters = strlen(letters);
    for (size_t i = 0; i < n; i++)
        word[i] = random_below(seed, 50) ? letters[random_below(seed, n_letters)]
                                         : (char)random_below(seed, 256);
}

static void expect_same(const struct id_buffer *a, const struct id_buffer *b) {
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->data, b->data, a->n * sizeof(*a->data));
}

static void test_short_and_heap(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    struct bpe_scratch scratch = {0};
    struct id_buffer slow = {0}, got = {0};
    uint64_t seed = 12;
    for (size_t i = 0; i < 4000; i++) {
        char word[160];
        size_t n = 1 + random_below(&seed, i % 2 ? 50 : sizeof(word));
        make_word(word, n, &seed);
        merge_slowly(&t->bpe, word, n, &slow);
        got.n = 0;
        assert_int_equal(bpe_encode(&t->bpe, &scratch, word, n, &got), 0);
        expect_same(&slow, &got);
        got.n = 0;
        assert_int_equal(bpe_encode_long(&t->bpe, &scratch, word, n, &got), 0);
        expect_same(&slow, &got);
    }
    bpe_scratch_done(&scratch);
    free(slow.data);
    free(got.data);
    tokenizer_free(t);
}

static void test_queues(void **state) {
    (void)state;
    struct tokenizer *t = load_own();
    struct bpe_scratch scratch = {0};
    struct id_buffer by_heap = {0}, by_queues = {0};
    struct bpe no_queues = t->bpe;
    uint64_t seed = 13;
    char *word = malloc(100000);
    assert_true(t->bpe.rising);
    no_queues.rising = false;
    for (size_t i = 0; i < 30; i++) {
        size_t n = 32768 + random_below(&seed, 60000);
        make_word(word, n, &seed);
        by_heap.n = by_queues.n = 0;
        assert_int_equal(bpe_encode_long(&no_queues, &scratch, word, n, &by_heap), 0);
        assert_int_equal(bpe_encode_long(&t->bpe, &scratch, word, n, &by_queues), 0);
        expect_same(&by_heap, &by_queues);
    }
    free(word);
    bpe_scratch_done(&scratch);
    free(by_heap.data);
    free(by_queues.data);
    tokenizer_free(t);
}

/* A table in which a merge makes a pair of lower rank: seen, and merged right. */
static void test_falling(void **state) {
    (void)state;
    struct vocab vocab = {0};
    struct bpe b = {.vocab = &vocab};
    struct bpe_scratch scratch = {0};
    struct id_buffer ids = {0};
    for (unsigned byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        assert_int_equal(vocab_add(&vocab, byte, &c, 1, 0), 0);
        assert_int_equal(vocab_index(&vocab, byte), 0);
        b.byte_ids[byte] = byte;
    }
    assert_int_equal(vocab_add(&vocab, 256, "ab", 2, 0), 0);
    assert_int_equal(vocab_add(&vocab, 257, "abc", 3, 0), 0);
    assert_int_equal(bpe_add_merge(&b, 256, 'c', 0, 257), 0);
    assert_int_equal(bpe_finish(&b), 0);
    assert_true(b.rising);
    assert_int_equal(bpe_add_merge(&b, 'a', 'b', 1, 256), 0);
    assert_int_equal(bpe_finish(&b), 0);
    assert_false(b.rising);
    char word[40000];
    for (size_t i = 0; i < sizeof(word); i++)
        word[i] = "abc"[i % 3];
    assert_int_equal(bpe_encode(&b, &scratch, word, sizeof(word) - 1, &ids), 0);
    assert_int_equal(ids.n, (sizeof(word) - 1) / 3);
    for (size_t i = 0; i < ids.n; i++)
        assert_int_equal(ids.data[i], 257);
    bpe_scratch_done(&scratch);
    free(ids.data);
    bpe_done(&b);
    vocab_done(&vocab);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_short_and_heap),
            cmocka_unit_test(test_queues),
            cmocka_unit_test(test_falling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
