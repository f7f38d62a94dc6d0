/* masks.c - what a request allows and what it calls bad words, at every speed: alone, among others, with drafts of
 * everybody who makes some, and again after a death. And logprobs of prompts, each one once. */
#include "base/mask.h"
#include "tests/unit/engine/harness.h"

#define VOCAB  1000u
#define TOKENS 120u
#define MANY   100u
/* Steps are said to take long, and as long whatever their rows: drafts are worth it, and so is any wait for tokens. */
#define STEP_NS 1000000000u

static uint32_t prompt[1000], allowed[VOCAB / 32 + 1];

enum source { NOBODY, MODEL, LOOKUP, EXTERNAL, SOURCES };

struct world {
    struct engine *g;
    struct harness_group group;
    struct null_rank_options rank;
};

/* A drafter from outside that proposes what may not come, too. */
static uint32_t propose(void *user, uint64_t sequence, const uint32_t *tokens, uint32_t n_tokens,
        uint32_t most, uint32_t *ret) {
    (void)user;
    for (uint32_t i = 0; i < most; i++)
        ret[i] = (uint32_t)(sequence + tokens[n_tokens - 1] + i) % 3;
    return most;
}

static void start(struct world *w, enum source source, uint32_t ids) {
    struct engine_options o = harness_engine_options();
    w->rank = harness_rank_options();
    o.max_num_seqs = MANY;
    o.speculative_tokens = source != NOBODY ? 5 : 0;
    o.drafters = source == MODEL ? ENGINE_DRAFTS_OF_MODEL : source == LOOKUP ? ENGINE_DRAFTS_OF_LOOKUP : 0;
    o.prefix_cache = true;
    if (source == EXTERNAL)
        o.drafter = (struct engine_drafter){.propose = propose};
    w->rank.slots = MANY;
    w->rank.pages = 1000;
    w->rank.slot_units = 8;
    w->rank.drafts_max = 5;
    w->rank.has_mtp = 1;
    w->rank.draft_odds = 80;
    w->rank.claimed_ns = STEP_NS;
    w->rank.id_count = ids;
    w->g = harness_engine(&o);
    harness_group_start(&w->group, w->g, &w->rank, 1);
    assert_int_equal(engine_wait_ready(w->g, LONG_NS), 0);
}

static void stop(struct world *w) {
    engine_free(w->g);
    harness_group_stop(&w->group);
}

static void run(struct world *w, const struct engine_request *q, struct reading *r) {
    harness_submit(w->g, q, r);
    harness_read(r, 1, 0);
    harness_unref(r, 1);
}

/* --- allowed ids --- */

/* More than a step has masks for: they take turns. Each says what it says alone. */
static void test_allowed_ids(void **state) {
    static struct reading alone[MANY], all[MANY];
    (void)state;
    memset(allowed, 0, sizeof(allowed));
    for (uint32_t id = 3; id < VOCAB; id += 97)
        mask_add(allowed, id);
    for (enum source source = NOBODY; source < SOURCES; source++) {
        struct world w;
        start(&w, source, 0);
        for (uint32_t i = 0; i < MANY; i++) {
            struct engine_request q = harness_request(prompt + i, 5, 20, i);
            q.mask = allowed;
            q.n_mask_words = mask_words(VOCAB);
            if (source == NOBODY)
                run(&w, &q, &alone[i]);
            harness_submit(w.g, &q, &all[i]);
        }
        harness_read(all, MANY, 0);
        harness_unref(all, MANY);
        for (uint32_t i = 0; i < MANY; i++) {
            assert_int_equal(all[i].finish, ENGINE_FINISH_LENGTH);
            assert_int_equal(all[i].n, 20);
            assert_memory_equal(all[i].ids, alone[i].ids, 20 * sizeof(alone[i].ids[0]));
            for (uint32_t k = 0; k < 20; k++)
                assert_true(mask_has(allowed, all[i].ids[k]));
        }
        stop(&w);
    }
}

/* More of them than there are masks, who take all that they get: who comes then has its turn before they end. */
static void test_a_newcomer_gets_a_mask(void **state) {
    enum { RUNNING = 80, LONG = 600 };
    static struct reading all[RUNNING + 1];
    struct world w;
    (void)state;
    memset(allowed, 0x55, sizeof(allowed));
    start(&w, NOBODY, 0);
    for (uint32_t i = 0; i <= RUNNING; i++) {
        struct engine_request q = harness_request(prompt + i, 5, i < RUNNING ? LONG : 1, i);
        q.mask = allowed;
        q.n_mask_words = mask_words(VOCAB);
        harness_submit(w.g, &q, &all[i]);
        if (i + 1 == RUNNING)
            harness_read(all, RUNNING, 3);
    }
    while (all[RUNNING].finish == ENGINE_RUNNING)
        for (uint32_t i = 0; i <= RUNNING; i++)
            if (all[i].finish == ENGINE_RUNNING)
                harness_take(&all[i]);
    for (uint32_t i = 0; i < RUNNING; i++) {
        assert_int_equal(all[i].finish, ENGINE_RUNNING);
        engine_cancel(w.g, all[i].stream);
    }
    assert_int_equal(all[RUNNING].n, 1);
    harness_unref(all, RUNNING + 1);
    stop(&w);
}

static void test_nothing_is_allowed(void **state) {
    static struct reading r;
    struct world w;
    (void)state;
    memset(allowed, 0, sizeof(allowed));
    start(&w, NOBODY, 0);
    struct engine_request q = harness_request(prompt, 5, 20, 1);
    q.mask = allowed;
    q.n_mask_words = mask_words(VOCAB);
    run(&w, &q, &r);
    assert_int_equal(r.finish, ENGINE_FINISH_NO_TOKEN);
    assert_int_equal(r.n, 0);
    q.n_mask_words--;
    struct error e = {0};
    assert_int_equal(engine_submit(w.g, &q, &r.stream, &e), -EINVAL);
    assert_string_equal(e.text, "a mask of 31 words, the vocabulary of 1000 has 32");
    stop(&w);
}

/* --- bad words --- */

static bool says(const struct reading *r, const uint32_t *word, uint32_t n) {
    for (uint32_t i = 0; i + n <= r->n; i++)
        if (memcmp(r->ids + i, word, n * sizeof(word[0])) == 0)
            return true;
    return false;
}

/* Of three ids, so that words would come all the time; whoever makes the drafts, the tokens are the same. */
static void test_bad_words(void **state) {
    static const uint32_t words[] = {2, 0, 1, 3, 1, 1, 1, 4, 2, 0, 2, 0};
    static struct reading free_one, expected, r;
    (void)state;
    for (uint32_t seed = 0; seed < 4; seed++) {
        for (enum source source = NOBODY; source < SOURCES; source++) {
            struct world w;
            struct engine_request q = harness_request(prompt, 9, TOKENS, seed);
            start(&w, source, 3);
            run(&w, &q, &free_one);
            q.bad_words = words;
            q.n_bad_words = sizeof(words) / sizeof(words[0]);
            run(&w, &q, source == NOBODY ? &expected : &r);
            if (source != NOBODY) {
                assert_int_equal(r.n, TOKENS);
                assert_memory_equal(r.ids, expected.ids, TOKENS * sizeof(r.ids[0]));
            }
            stop(&w);
        }
        assert_int_equal(expected.n, TOKENS);
        for (uint32_t at = 0; at < sizeof(words) / sizeof(words[0]); at += 1 + words[at]) {
            assert_false(says(&expected, words + at + 1, words[at]));
            assert_true(says(&free_one, words + at + 1, words[at]) || words[at] > 3);
        }
    }
}

/* Words end where an id is allowed and not banned: then there is nothing to say. */
static void test_bad_words_leave_nothing(void **state) {
    static const uint32_t words[] = {2, 5, 5};
    static struct reading r;
    struct world w;
    (void)state;
    memset(allowed, 0, sizeof(allowed));
    mask_add(allowed, 5);
    start(&w, NOBODY, 0);
    struct engine_request q = harness_request(prompt, 5, 20, 1);
    q.mask = allowed;
    q.n_mask_words = mask_words(VOCAB);
    q.bad_words = words;
    q.n_bad_words = 3;
    run(&w, &q, &r);
    assert_int_equal(r.finish, ENGINE_FINISH_NO_TOKEN);
    assert_int_equal(r.n, 1);
    static const uint32_t wrong[3][3] = {{0, 1, 1}, {3, 1, 1}, {2, 1, VOCAB}};
    for (uint32_t i = 0; i < 3; i++) {
        struct error e = {0};
        q.bad_words = wrong[i];
        assert_int_equal(engine_submit(w.g, &q, &r.stream, &e), -EINVAL);
    }
    stop(&w);
}

/* --- logprobs of the prompt --- */

struct scores {
    uint32_t n, n_tokens;
    float logprobs[1000];
};

/* Takes all that is there, and checks that it is the prompt's, in order, and before the answer. */
static bool take_scores(struct engine_stream *stream, uint32_t top, struct scores *ret) {
    struct engine_token t[8];
    enum engine_finish finish = ENGINE_RUNNING;
    uint32_t n;
    while ((n = engine_stream_take(stream, t, 8, &finish)) > 0) {
        for (uint32_t i = 0; i < n; i++) {
            if (!t[i].of_prompt) {
                assert_int_equal(t[i].n_top, 0);
                ret->n_tokens++;
                continue;
            }
            assert_int_equal(ret->n_tokens, 0);
            assert_int_equal(t[i].id, prompt[ret->n + 1]);
            assert_int_equal(t[i].n_top, top);
            ret->logprobs[ret->n++] = t[i].logprob;
        }
    }
    return finish != ENGINE_RUNNING;
}

static void read_scores(struct engine_stream *stream, uint32_t top, struct scores *ret) {
    while (!take_scores(stream, top, ret))
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

static struct engine_stream *ask_scores(struct engine *g, uint32_t n, uint32_t top) {
    struct engine_stream *stream;
    struct error e = {0};
    struct engine_request q = harness_request(prompt, n, 10, 1);
    q.prompt_logprobs = true;
    q.prompt_top_logprobs = top;
    if (engine_submit(g, &q, &stream, &e) < 0)
        fail_msg("%s", e.text);
    return stream;
}

/* Every token of the prompt but the first, whatever the cache has of it; prompts of one token have none. */
static void test_prompt_logprobs(void **state) {
    static const uint32_t lengths[] = {1, 2, 63, 64, 65, 500};
    static struct scores all, got;
    struct world w;
    (void)state;
    start(&w, MODEL, 0);
    memset(&all, 0, sizeof(all));
    struct engine_stream *first = ask_scores(w.g, 900, 0);
    read_scores(first, 0, &all);
    engine_stream_unref(first);
    assert_int_equal(all.n, 899);
    assert_int_equal(all.n_tokens, 10);
    for (uint32_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        memset(&got, 0, sizeof(got));
        struct engine_stream *stream = ask_scores(w.g, lengths[i], i);
        read_scores(stream, i, &got);
        assert_int_equal(engine_stream_cached_tokens(stream), 0);
        engine_stream_unref(stream);
        assert_int_equal(got.n, lengths[i] - 1);
        assert_memory_equal(got.logprobs, all.logprobs, got.n * sizeof(float));
        assert_int_equal(got.n_tokens, 10);
    }
    stop(&w);
}

/* A reader that does not read gets no further than its ring has room. Others do, also those whose prompts begin like
 * its own: nobody waits for the state that it would leave. */
static void test_nobody_reads_the_scores(void **state) {
    static struct reading other;
    static struct scores got;
    struct world w;
    (void)state;
    start(&w, NOBODY, 0);
    memset(&got, 0, sizeof(got));
    struct engine_stream *stream = ask_scores(w.g, 500, 2);
    for (uint32_t n = 9; n <= 900; n += 297) {
        struct engine_request q = harness_request(prompt, n, TOKENS, 1);
        run(&w, &q, &other);
        assert_int_equal(other.n, TOKENS);
    }
    read_scores(stream, 2, &got);
    engine_stream_unref(stream);
    assert_int_equal(got.n, 499);
    stop(&w);
}

/* The group dies in the middle: what was told is not told again. */
static void test_scores_after_a_death(void **state) {
    static struct scores all, got;
    struct world w;
    (void)state;
    start(&w, NOBODY, 0);
    memset(&all, 0, sizeof(all));
    struct engine_stream *first = ask_scores(w.g, 500, 0);
    read_scores(first, 0, &all);
    engine_stream_unref(first);
    for (uint32_t after = 1; after < 400; after += 150) {
        memset(&got, 0, sizeof(got));
        struct engine_stream *stream = ask_scores(w.g, 500, 0);
        while (got.n < after)
            take_scores(stream, 0, &got);
        harness_group_stop(&w.group);
        struct control_message m = {
                .kind = CONTROL_GROUP_LOST, .group_epoch = 1 + after / 150, .coord_epoch = 1};
        assert_int_equal(engine_control(w.g, &m), 0);
        harness_group_start(&w.group, w.g, &w.rank, 2 + after / 150);
        read_scores(stream, 0, &got);
        engine_stream_unref(stream);
        assert_int_equal(got.n, 499);
        assert_int_equal(got.n_tokens, 10);
        assert_memory_equal(got.logprobs, all.logprobs, 499 * sizeof(float));
    }
    stop(&w);
}

static int fill(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 1000; i++)
        prompt[i] = (i * 37 + i / 10) % VOCAB;
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_allowed_ids),
            cmocka_unit_test(test_a_newcomer_gets_a_mask),
            cmocka_unit_test(test_nothing_is_allowed),
            cmocka_unit_test(test_bad_words),
            cmocka_unit_test(test_bad_words_leave_nothing),
            cmocka_unit_test(test_prompt_logprobs),
            cmocka_unit_test(test_nobody_reads_the_scores),
            cmocka_unit_test(test_scores_after_a_death),
    };
    return cmocka_run_group_tests(tests, fill, NULL);
}
