/* states.c - states that the prefix cache keeps on the way: of long prompts and long answers, and of those that are put
 * back. Every answer is that of an engine without a cache. */
#include "tests/unit/engine/harness.h"

#define PROMPT_MAX 70000u
#define ANSWER     1900u

static uint32_t ids[PROMPT_MAX];

static void fill(uint32_t first, uint32_t end, uint32_t salt) {
    for (uint32_t i = first; i < end; i++)
        ids[i] = (i * 7919 + salt * 31 + i / 1000 + 5) % 1000;
}

struct world {
    struct engine *g;
    struct harness_group group;
    struct engine_stats stats; /* at its end */
};

static void open_world(struct world *w, const struct null_rank_options *r, uint32_t max_num_seqs) {
    struct engine_options o = harness_engine_options();
    o.max_num_seqs = max_num_seqs;
    o.slow_reader_ms = 3600000;
    o.prefix_cache = true;
    o.speculative_tokens = r->drafts_max;
    o.drafters = ENGINE_DRAFTS_OF_MODEL;
    w->g = harness_engine(&o);
    harness_group_start(&w->group, w->g, r, 1);
    assert_int_equal(engine_wait_ready(w->g, LONG_NS), 0);
}

static void close_world(struct world *w) {
    harness_expect_quiet(w->g, &w->stats);
    assert_int_equal(w->stats.step_errors_total, 0);
    engine_free(w->g);
    harness_group_stop(&w->group);
}

static struct null_rank_options ranks_for(uint32_t max_model_len, uint32_t units) {
    struct null_rank_options r = harness_rank_options();
    r.max_model_len = max_model_len;
    r.pages = 4 * max_model_len / PAGE_TOKENS;
    r.slot_units = units;
    return r;
}

/* Tokens of the prompt that came from the cache. */
static uint32_t ask(struct world *w, const struct engine_request *q, struct reading *ret) {
    harness_submit(w->g, q, ret);
    harness_read(ret, 1, 0);
    uint32_t n = engine_stream_cached_tokens(ret->stream);
    harness_unref(ret, 1);
    return n;
}

static void expect_equal(const struct reading *a, const struct reading *b) {
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof(a->ids[0]));
}

/* The answers to n requests, one after another, of an engine that keeps nothing. */
static void ask_alone(
        const struct engine_request *q, uint32_t n, uint32_t max_model_len, struct reading *ret) {
    struct null_rank_options r = ranks_for(max_model_len, 0);
    struct world w;
    open_world(&w, &r, 1);
    for (uint32_t i = 0; i < n; i++)
        ask(&w, &q[i], &ret[i]);
    close_world(&w);
}

/* One that gives its slot up because nobody reads comes back to where it was: one row is computed again. */
static void test_set_back(void **state) {
    (void)state;
    static struct reading alone[2], slow, other;
    const float penalties[] = {0, 0.5f}; /* with the second what was generated is not taken from the cache */
    fill(0, 300, 1);
    struct engine_request q[2] = {harness_request(ids, 300, 500, 1), harness_request(ids + 20, 100, 5, 2)};
    for (uint32_t i = 0; i < 2; i++) {
        struct null_rank_options r = ranks_for(1024, 8);
        struct world w;
        q[0].sampling.presence_penalty = penalties[i];
        ask_alone(q, 2, 1024, alone);
        open_world(&w, &r, 1);
        harness_submit(w.g, &q[0], &slow);
        ask(&w, &q[1], &other);
        harness_read(&slow, 1, 0);
        harness_unref(&slow, 1);
        expect_equal(&slow, &alone[0]);
        expect_equal(&other, &alone[1]);
        close_world(&w);
        assert_int_equal(w.stats.preemptions_total, 1);
        if (i == 0)
            assert_int_equal(w.stats.prompt_rows_total, 300 + 100 + 1);
        else
            assert_in_range(
                    w.stats.prompt_rows_total, 400 + STREAM_RING_TOKENS / 2, 400 + STREAM_RING_TOKENS + 12);
    }
}

/* Pages run out: whoever is put back goes on from what nobody needed meanwhile. Where a few are missing that is all but
 * the end of what it had computed; where the host has room for what leaves the device, all of it. */
static void test_put_back(void **state) {
    (void)state;
    static struct reading alone[5], all[5];
    struct engine_request q[5];
    const struct {
        uint32_t pages, page_units; /* all of them need 230 pages in the end */
        uint32_t again;             /* rows that one preemption costs at most */
    } cases[] = {{120, 0, ANSWER + 1200}, {225, 0, 2048}, {120, 400, 1}};
    uint64_t given = 0;
    fill(0, 4000, 2);
    for (uint32_t i = 0; i < 5; i++) {
        q[i] = harness_request(ids + i, 1000 + 50 * i, ANSWER, i);
        given += q[i].n_prompt;
    }
    ask_alone(q, 5, 4096, alone);
    for (uint32_t i = 0; i < 9; i++) {
        struct null_rank_options r = ranks_for(4096, 64);
        struct world w;
        uint32_t odds = i % 3 * 40;
        r.pages = cases[i / 3].pages;
        r.page_units = cases[i / 3].page_units;
        r.has_mtp = odds > 0;
        r.drafts_max = odds > 0 ? 3 : 0;
        r.draft_odds = odds;
        r.claimed_ns = 1000000000u;
        open_world(&w, &r, 64);
        for (uint32_t k = 0; k < 5; k++)
            harness_submit(w.g, &q[k], &all[k]);
        harness_read(all, 5, 0);
        harness_unref(all, 5);
        for (uint32_t k = 0; k < 5; k++)
            expect_equal(&all[k], &alone[k]);
        close_world(&w);
        assert_true(w.stats.preemptions_total > 0);
        assert_in_range(w.stats.prompt_rows_total - given, 1, w.stats.preemptions_total * cases[i / 3].again);
    }
}

/* A long answer leaves states on its way: one that does not end by itself can be gone on from nearly where it was left,
 * with drafts and without. */
static void test_long_answer(void **state) {
    (void)state;
    static struct reading first, next, alone;
    for (uint32_t odds = 0; odds <= 100; odds += 50) {
        struct null_rank_options r = ranks_for(4096, 8);
        struct world w;
        r.has_mtp = odds > 0;
        r.drafts_max = odds > 0 ? 3 : 0;
        r.draft_odds = odds;
        r.claimed_ns = 1000000000u;
        fill(0, 4096, 3);
        open_world(&w, &r, 64);
        struct engine_request q = harness_request(ids, 300, 3000, 1);
        harness_submit(w.g, &q, &first);
        harness_read(&first, 1, 1800);
        engine_cancel(w.g, first.stream);
        harness_read(&first, 1, 0);
        harness_unref(&first, 1);
        memcpy(ids + 300, first.ids, 1800 * sizeof(ids[0]));
        q = harness_request(ids, 2100, 20, 2);
        assert_in_range(ask(&w, &q, &next), 1024, 2099);
        close_world(&w);
        ask_alone(&q, 1, 4096, &alone);
        expect_equal(&next, &alone);
    }
}

/* Whoever goes on from the end of a message in the middle finds a state there. */
static void test_ends_of_messages(void **state) {
    (void)state;
    static struct reading a;
    const uint32_t ends[] = {700, 1517, 3000, 4000};
    struct null_rank_options r = ranks_for(5000, 32);
    struct world w;
    open_world(&w, &r, 64);
    fill(0, 4600, 7);
    struct engine_request q = harness_request(ids, 4600, 5, 1);
    memcpy(q.message_ends, ends, sizeof(ends));
    q.n_message_ends = 4;
    assert_int_equal(ask(&w, &q, &a), 0);
    for (uint32_t i = 4; i > 0; i--) {
        fill(ends[i - 1], 4600, 8 + i);
        q.n_prompt = ends[i - 1] + 90;
        assert_int_equal(ask(&w, &q, &a), ends[i - 1]);
        q.n_message_ends = i - 1;
    }
    close_world(&w);
}

/* What many have left is still there after one very long prompt, but for what was not used for the longest time. */
static void test_one_long_prompt(void **state) {
    (void)state;
    static struct reading a;
    struct null_rank_options r = ranks_for(PROMPT_MAX + 100, 8);
    struct world w;
    open_world(&w, &r, 64);
    for (uint32_t i = 0; i < 7; i++) {
        fill(0, 200, i);
        struct engine_request q = harness_request(ids, 200, 5, i);
        assert_int_equal(ask(&w, &q, &a), 0);
    }
    fill(0, PROMPT_MAX, 100);
    struct engine_request q = harness_request(ids, PROMPT_MAX, 5, 100);
    assert_int_equal(ask(&w, &q, &a), 0);
    ids[PROMPT_MAX - 1]++;
    assert_int_equal(ask(&w, &q, &a), (PROMPT_MAX - 1) / GDN_BLOCK * GDN_BLOCK);
    for (uint32_t i = 1; i < 7; i++) {
        fill(0, 200, i);
        q = harness_request(ids, 200, 5, i);
        assert_int_equal(ask(&w, &q, &a), 192);
    }
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_set_back),
            cmocka_unit_test(test_put_back),
            cmocka_unit_test(test_long_answer),
            cmocka_unit_test(test_ends_of_messages),
            cmocka_unit_test(test_one_long_prompt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
