/* vocabulary.c - vocabularies of any size, as resize_token_embeddings leaves them: logits are those of the model that
 * was cut or grown, and the same bits and tokens come at every tp, from the checkpoint and from a packed file. */
#include "checkpoint_test.h"
#include "model_test.h"
#include "tp/load/shard.h"

#define BASE      1024u /* ids of the model that is cut and grown */
#define LENGTH    70u
#define NEW       6u
#define RUNS      3u
#define VOCAB_MAX 1100u

static const uint32_t sizes[] = {
        1, 2, 15, 63, 64, 65, 100, 127, 129, 193, 1000, 1003, 1023, 1025, 1087, 1100};

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

/* The rows of a matrix for another vocabulary: the first ones, and new ones where there are more. malloc'ed. */
static void *resized(struct test_piece *p, uint32_t vocab) {
    const uint64_t row = p->dims[1] * tensor_dtype_bytes(p->dtype);
    char *data = malloc(vocab * row);
    assert_non_null(data);
    assert_int_equal(p->dims[0], BASE);
    for (uint32_t i = 0; i < vocab; i++) {
        const uint32_t from = i % BASE, turn = i < BASE ? 0 : 8; /* a new row is an old one, turned */
        memcpy(data + i * row, (const char *)p->data + from * row + turn, row - turn);
        memcpy(data + (i + 1) * row - turn, (const char *)p->data + from * row, turn);
    }
    p->dims[0] = vocab;
    p->data = data;
    return data;
}

static void make_model(uint32_t vocab) {
    struct checkpoint *c = NULL;
    struct error e = {0};
    char number[32];
    size_t bytes = 0;
    test_folder_empty(folder);
    must(checkpoint_open(base, &c, &e), &e);
    const size_t n = checkpoint_count(c);
    struct test_piece *pieces = test_pieces(c, 0);
    void *embed = resized(test_piece_named(pieces, n, "embed_tokens.weight"), vocab),
         *head = resized(test_piece_named(pieces, n, "lm_head.weight"), vocab);
    test_write_file(folder, "model.safetensors", pieces, n);
    snprintf(number, sizeof(number), "\"vocab_size\": %u", vocab);
    char *old = test_get(base, "config.json", &bytes),
         *text = test_changed(old, "\"vocab_size\": 1024", number),
         *config = test_changed(text, "\"eos_token_id\": 1023,", "");
    test_put_text(folder, "config.json", config);
    free(embed), free(head), free(pieces), free(old), free(text), free(config);
    checkpoint_free(c);
}

struct result {
    struct offline_sequence s[RUNS];
    struct step_sample samples[RUNS][NEW];
    float *logits, *mtp_logits; /* of the first: [LENGTH + NEW][vocab] */
};

static void result_done(struct result *r) {
    free(r->logits);
    free(r->mtp_logits);
}

/* Prompts have ids below `ids` only. */
static void run(const char *dir, uint32_t ids, uint32_t tp, enum rank_packed packed, struct result *ret) {
    static uint32_t prompt[LENGTH];
    struct rank_options options = test_options(dir, tp);
    struct offline *o = NULL;
    struct error e = {0};
    options.logits_rows = ROWS_MAX;
    options.mtp = true;
    options.packed = packed;
    must(offline_create(&options, &o, &e), &e);
    const size_t v = offline_geometry(o)->vocab_size;
    *ret = (struct result){.logits = calloc((LENGTH + NEW) * v, sizeof(float)),
            .mtp_logits = calloc((LENGTH + NEW) * v, sizeof(float))};
    assert_true(ret->logits && ret->mtp_logits);
    for (uint32_t i = 0; i < LENGTH; i++)
        prompt[i] = (i * 29 + 3) % ids;
    for (uint32_t i = 0; i < RUNS; i++) {
        ret->s[i] = (struct offline_sequence){.prompt = prompt,
                .n_prompt = LENGTH - i,
                .max_tokens = NEW,
                .stop_id = STEP_NONE,
                .sampling = offline_greedy(),
                .logprobs = true,
                .top_logprobs = 5,
                .samples = ret->samples[i]};
        ret->s[i].sampling.seed = 5 + i;
    }
    ret->s[1].sampling.temperature = 0.9f;
    ret->s[1].sampling.top_p = 0.9f;
    ret->s[1].sampling.repetition_penalty = 1.2f;
    ret->s[2].sampling.temperature = 1.3f;
    ret->s[2].sampling.top_k = 7;
    ret->s[2].sampling.min_p = 0.01f;
    ret->s[0].logits = ret->logits;
    ret->s[0].mtp_logits = ret->mtp_logits;
    must(offline_run(o, ret->s, RUNS, &e), &e);
    assert_int_equal(offline_rank(o, 0)->packed != NULL, packed == RANK_PACKED_MAKE);
    offline_free(o);
}

static void same_result(const struct result *a, const struct result *b, uint32_t vocab, uint32_t tp) {
    const size_t bytes = (size_t)(LENGTH + NEW - 1) * vocab * sizeof(float);
    if (memcmp(a->logits, b->logits, bytes) != 0 || memcmp(a->mtp_logits, b->mtp_logits, bytes) != 0)
        fail_msg("vocabulary of %u, tp %u: other logits than at tp 1", vocab, tp);
    for (uint32_t i = 0; i < RUNS; i++)
        for (uint32_t k = 0; k < NEW; k++) {
            const struct step_sample *x = &a->samples[i][k], *y = &b->samples[i][k];
            if (x->id != y->id || memcmp(&x->logprob, &y->logprob, sizeof(float)) != 0 ||
                    x->n_top != y->n_top ||
                    memcmp(x->top_ids, y->top_ids, x->n_top * sizeof(uint32_t)) != 0 ||
                    memcmp(x->top_logprobs, y->top_logprobs, x->n_top * sizeof(float)) != 0)
                fail_msg("vocabulary of %u, tp %u: another token %u of sequence %u", vocab, tp, k, i);
        }
}

/* Logits of the ids that both have are the original's, bit by bit, and log probabilities add up over what is there. */
static void is_the_reference(const struct result *r, uint32_t vocab) {
    static double expected[VOCAB_MAX];
    struct result whole;
    const uint32_t both = vocab < BASE ? vocab : BASE;
    run(base, both, 1, RANK_PACKED_NEVER, &whole);
    for (uint32_t i = 0; i < LENGTH; i++)
        assert_memory_equal(
                r->logits + (size_t)i * vocab, whole.logits + (size_t)i * BASE, both * sizeof(float));
    for (uint32_t k = 0; k < NEW; k++) {
        const float *logits = r->logits + (size_t)(LENGTH + k - 1) * vocab;
        const struct step_sample *s = &r->samples[0][k];
        log_softmax(logits, vocab, expected);
        assert_int_equal(s->id, argmax(logits, vocab));
        assert_true(fabs((double)s->logprob - expected[s->id]) < 1e-4);
        assert_int_equal(s->n_top, vocab < 5 ? vocab : 5);
    }
    result_done(&whole);
}

static void any_size_at_every_tp(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        const uint32_t v = sizes[i], ids = v < BASE ? v : BASE;
        struct result one, other;
        make_model(v);
        run(folder, ids, 1, RANK_PACKED_NEVER, &one);
        is_the_reference(&one, v);
        for (uint32_t tp = 2; tp <= 8; tp *= 2) {
            run(folder, ids, tp, RANK_PACKED_NEVER, &other);
            same_result(&other, &one, v, tp);
            result_done(&other);
        }
        result_done(&one);
    }
}

static void packed_at_every_tp(void **state) {
    (void)state;
    static const uint32_t some[] = {65, 1003};
    for (size_t i = 0; i < sizeof(some) / sizeof(some[0]); i++) {
        struct result one, other;
        make_model(some[i]);
        run(folder, some[i], 1, RANK_PACKED_NEVER, &one);
        for (uint32_t tp = 1; tp <= 8; tp *= 2) {
            run(folder, some[i], tp, RANK_PACKED_MAKE, &other);
            same_result(&other, &one, some[i], tp);
            result_done(&other);
        }
        result_done(&one);
    }
}

/* Ranks have whole segments, in order and each once; segments of 64 parts where 64 divides. */
static void every_row_is_somebodys(void **state) {
    (void)state;
    struct model_config m;
    struct error e = {0};
    must(model_config_load(base, &m, &e), &e);
    for (uint32_t v = 1; v <= 700; v++)
        for (uint32_t tp = 1; tp <= 8; tp *= 2) {
            uint32_t next = 0;
            m.vocab_size = v;
            for (uint32_t rank = 0; rank < tp; rank++) {
                struct shard s;
                must(shard_make(&m, tp, rank, false, &s, &e), &e);
                assert_int_equal(s.shape.vocab_size, v);
                assert_int_equal(s.vocab.first, next);
                assert_true(s.vocab.count == 0 || s.vocab.first % k_vocab_segment(v) == 0);
                assert_true(v % 64 || s.vocab.count == v / tp);
                assert_true(v % 64 == 0 || s.vocab.count == 0 || s.vocab.first % 16 == 0);
                next += s.vocab.count;
            }
            assert_int_equal(next, v);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(any_size_at_every_tp),
            cmocka_unit_test(packed_at_every_tp),
            cmocka_unit_test(every_row_is_somebodys),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
