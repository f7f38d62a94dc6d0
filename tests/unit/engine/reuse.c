/* reuse.c - what comes from the prefix cache: how many tokens of which prompt, that the answers are those of an engine
 * without it, and that nobody has to wait or is put back for what it keeps. */
#include "tests/unit/engine/harness.h"

#define LENGTH_MAX 215u /* three pages and more, at every place of a block */
#define ANSWER     90u

static uint32_t ids[1024];

struct world {
    struct engine *cached, *plain; /* the second has no cache, and no speculation */
    struct harness_group of_cached, of_plain;
};

static void open_world(struct world *w, const struct null_rank_options *r) {
    struct engine_options o = harness_engine_options();
    o.max_num_batched_tokens = 100;
    w->plain = harness_engine(&o);
    o.prefix_cache = true;
    o.speculative_tokens = r->drafts_max;
    o.drafters = ENGINE_DRAFTS_OF_MODEL;
    w->cached = harness_engine(&o);
    harness_group_start(&w->of_plain, w->plain, r, 1);
    harness_group_start(&w->of_cached, w->cached, r, 1);
    assert_int_equal(engine_wait_ready(w->plain, LONG_NS), 0);
    assert_int_equal(engine_wait_ready(w->cached, LONG_NS), 0);
}

static void close_world(struct world *w) {
    struct engine_stats s;
    harness_expect_quiet(w->cached, &s);
    assert_int_equal(s.step_errors_total, 0);
    engine_free(w->cached);
    engine_free(w->plain);
    harness_group_stop(&w->of_cached);
    harness_group_stop(&w->of_plain);
}

static struct null_rank_options with_units(uint32_t units) {
    struct null_rank_options r = harness_rank_options();
    r.slot_units = units;
    return r;
}

/* The answer of both engines, which is the same; returns the tokens that came from the cache. */
static uint32_t ask(struct world *w, const struct engine_request *q, struct reading *ret) {
    static struct reading plain;
    harness_submit(w->plain, q, &plain);
    harness_read(&plain, 1, 0);
    harness_submit(w->cached, q, ret);
    harness_read(ret, 1, 0);
    assert_int_equal(ret->finish, plain.finish);
    assert_int_equal(ret->n, plain.n);
    assert_memory_equal(ret->ids, plain.ids, plain.n * sizeof(plain.ids[0]));
    uint32_t n = engine_stream_cached_tokens(ret->stream);
    assert_int_equal(engine_stream_cached_tokens(plain.stream), 0);
    harness_unref(ret, 1);
    harness_unref(&plain, 1);
    return n;
}

static void fill(uint32_t first, uint32_t end, uint32_t salt) {
    for (uint32_t i = first; i < end; i++)
        ids[i] = (i * 7919 + salt * 31 + 5) % 1000;
}

/* Every length of a prompt, the same one twice: all is reused but the last rows, at most a block of them. */
static void test_lengths(void **state) {
    (void)state;
    struct null_rank_options r = with_units(8);
    struct world w;
    static struct reading a;
    open_world(&w, &r);
    for (uint32_t n = 1; n <= LENGTH_MAX; n++) {
        fill(0, n, n);
        struct engine_request q = harness_request(ids, n, 3, n);
        uint32_t expected = (n - 1) / GDN_BLOCK * GDN_BLOCK;
        assert_int_equal(ask(&w, &q, &a), 0);
        q.sampling.seed++;
        assert_int_equal(ask(&w, &q, &a), expected < PAGE_TOKENS ? 0 : expected);
    }
    close_world(&w);
}

/* Turn after turn, each the one before, its answer and something new: only that is computed, and the answer's last
 * token, which is no row before the next turn. */
static void test_turns(void **state) {
    (void)state;
    struct null_rank_options r = with_units(8);
    struct world w;
    static struct reading a;
    struct engine_stats s;
    open_world(&w, &r);
    fill(0, 1024, 1);
    uint32_t n = 101, before = 0, all = 0;
    for (uint32_t turn = 0; turn < 7; turn++) {
        struct engine_request q = harness_request(ids, n, ANSWER, turn);
        assert_int_equal(ask(&w, &q, &a), before);
        all += before;
        memcpy(ids + n, a.ids, a.n * sizeof(ids[0]));
        before = n + a.n - 1;
        n += a.n + 17;
    }
    harness_expect_quiet(w.cached, &s);
    assert_int_equal(s.prefix_hits_total, 6);
    assert_int_equal(s.prompt_rows_total, 101 + 6 * 18);
    assert_int_equal(s.cached_tokens_total, all);
    close_world(&w);
}

/* A stop id ends an answer after its row is under way, or before. */
static void test_turns_that_stop(void **state) {
    (void)state;
    struct null_rank_options r = with_units(8);
    struct world w;
    static struct reading a;
    open_world(&w, &r);
    fill(0, 1024, 2);
    uint32_t stop[100], n = 80, end = 0, stopped = 0;
    for (uint32_t i = 0; i < 100; i++)
        stop[i] = i * 10;
    for (uint32_t turn = 0; turn < 6; turn++) {
        struct engine_request q = harness_request(ids, n, ANSWER, turn);
        q.stop_ids = stop;
        q.n_stop_ids = 100 < STEP_SUPPRESS_MAX ? 100 : STEP_SUPPRESS_MAX;
        q.min_tokens = 70;
        uint32_t cached = ask(&w, &q, &a);
        assert_true(end == 0 || cached == end || cached + 1 == end);
        stopped += a.finish == ENGINE_FINISH_STOP_ID;
        memcpy(ids + n, a.ids, a.n * sizeof(ids[0]));
        end = n + a.n;
        n = end + 11;
    }
    assert_true(stopped >= 3);
    close_world(&w);
}

/* With drafts, all of them right or most: an answer leaves its end, also one that ends by a stop id, behind which no
 * draft is accepted. */
static void test_turns_with_speculation(void **state) {
    (void)state;
    uint32_t stop[50], stopped = 0;
    for (uint32_t i = 0; i < 50; i++)
        stop[i] = i * 20;
    for (uint32_t odds = 60; odds <= 100; odds += 20) {
        struct null_rank_options r = with_units(8);
        struct world w;
        static struct reading a;
        struct engine_stats s;
        r.has_mtp = 1;
        r.drafts_max = 7;
        r.draft_odds = odds;
        r.claimed_ns = 1000000000u; /* so that drafts are worth it */
        open_world(&w, &r);
        fill(0, 1024, 3);
        uint32_t n = 101, least = 0, most = 0;
        for (uint32_t turn = 0; turn < 5; turn++) {
            struct engine_request q = harness_request(ids, n, ANSWER, turn);
            q.stop_ids = stop;
            q.n_stop_ids = turn % 2 == 0 ? 0 : 50;
            q.min_tokens = turn % 2 == 0 ? 0 : 66;
            uint32_t cached = ask(&w, &q, &a);
            assert_in_range(cached, least, most);
            stopped += a.finish == ENGINE_FINISH_STOP_ID;
            memcpy(ids + n, a.ids, a.n * sizeof(ids[0]));
            most = n + a.n;
            least = most - 1;
            n += a.n + 90;
        }
        harness_expect_quiet(w.cached, &s);
        assert_true(s.drafters[0].accepted[0] > 0);
        assert_int_equal(s.prefix_hits_total, 4);
        close_world(&w);
    }
    assert_true(stopped >= 3);
}

/* Two go on from where a third was; what they have in common is kept once they showed that they have. */
static void test_branches(void **state) {
    (void)state;
    struct null_rank_options r = with_units(16);
    struct world w;
    static struct reading a;
    open_world(&w, &r);
    fill(0, 500, 3);
    struct engine_request q = harness_request(ids, 400, 5, 1);
    assert_int_equal(ask(&w, &q, &a), 0);
    fill(200, 400, 4); /* pages for 192 are there, but no state */
    assert_int_equal(ask(&w, &q, &a), 0);
    fill(200, 400, 5);
    assert_int_equal(ask(&w, &q, &a), 192);
    fill(100, 400, 6);
    q.shared_end = 100;
    q.turn_end = 371;
    assert_int_equal(ask(&w, &q, &a), 0);
    fill(371, 400, 7);
    assert_int_equal(ask(&w, &q, &a), 371);
    fill(100, 400, 8);
    assert_int_equal(ask(&w, &q, &a), 100);
    close_world(&w);
}

/* Equal salts share, others do not, even where one begins like another. */
static void test_salts(void **state) {
    (void)state;
    struct null_rank_options r = with_units(16);
    struct world w;
    static struct reading a;
    char long_salt[CACHE_SALT_BYTES_MAX + 1];
    struct engine_stream *none;
    struct error e;
    memset(long_salt, 'x', sizeof(long_salt));
    open_world(&w, &r);
    fill(0, 200, 9);
    struct engine_request q = harness_request(ids, 200, 5, 1);
    assert_int_equal(ask(&w, &q, &a), 0);
    q.cache_salt = long_salt;
    const uint32_t lengths[] = {1, 2, CACHE_SALT_BYTES_MAX};
    for (uint32_t i = 0; i < 3; i++) {
        q.n_cache_salt = lengths[i];
        assert_int_equal(ask(&w, &q, &a), 0);
        assert_int_equal(ask(&w, &q, &a), 192);
    }
    q.n_cache_salt = CACHE_SALT_BYTES_MAX + 1;
    assert_int_equal(engine_submit(w.cached, &q, &none, &e), -EINVAL);
    assert_non_null(strstr(e.text, "salt"));
    q.n_cache_salt = 0;
    assert_int_equal(ask(&w, &q, &a), 192);
    close_world(&w);
}

/* A request that needs every page gets them, whatever is kept; and one that would need one more for the copy of a page
 * computes instead. */
static void test_all_pages(void **state) {
    (void)state;
    struct null_rank_options r = with_units(16);
    struct world w;
    static struct reading a;
    struct engine_stats s;
    r.pages = 5;
    open_world(&w, &r);
    fill(0, 1024, 10);
    struct engine_request q = harness_request(ids, 310, 11, 1); /* 320 rows */
    assert_int_equal(ask(&w, &q, &a), 0);
    assert_int_equal(
            ask(&w, &q, &a), 0); /* 304 rows are there, and their last page would have to be copied */
    q.n_prompt = 250;
    q.max_tokens = 7;
    assert_int_equal(ask(&w, &q, &a), 0);
    assert_int_equal(ask(&w, &q, &a), 240);
    fill(0, 1024, 11);
    for (uint32_t i = 0; i < 20; i++) {
        fill(0, 320, 20 + i);
        assert_int_equal(ask(&w, &q, &a), 0);
    }
    harness_expect_quiet(w.cached, &s);
    assert_int_equal(s.preemptions_total, 0);
    assert_true(s.snapshot_evictions_total > 20);
    assert_int_equal(s.pages_free, 5);
    assert_true(s.pages_cached > 0 && s.snapshots > 0);
    close_world(&w);
}

/* Many at once that begin alike, twice over: the second time all of them find what the first left. */
static void test_many(void **state) {
    (void)state;
    struct null_rank_options r = with_units(64);
    struct world w;
    struct engine_stats s;
    static struct reading first[12], again[12];
    uint32_t cached = 0;
    open_world(&w, &r);
    for (uint32_t round = 0; round < 2; round++) {
        struct reading *all = round == 0 ? first : again;
        for (uint32_t i = 0; i < 12; i++) {
            fill(0, 130, 1);
            fill(130, 200, 100 + i);
            struct engine_request q = harness_request(ids, 200, 30, i);
            harness_submit(w.cached, &q, &all[i]);
        }
        harness_read(all, 12, 0);
    }
    for (uint32_t i = 0; i < 12; i++) {
        assert_int_equal(first[i].n, 30);
        assert_memory_equal(first[i].ids, again[i].ids, 30 * sizeof(uint32_t));
        cached += engine_stream_cached_tokens(again[i].stream) == 192;
    }
    assert_int_equal(cached, 12);
    harness_unref(first, 12);
    harness_unref(again, 12);
    harness_expect_quiet(w.cached, &s);
    assert_true(s.pages_cached <= 2 + 12 * 2 + 12); /* the beginning once, and of each its own */
    close_world(&w);
}

/* Many that come at once: what they have in common is computed by the first, and the others wait for its state. */
static void test_at_once(void **state) {
    (void)state;
    const struct {
        uint32_t common, shared_end, rows; /* rows: of each that is not the first */
    } cases[] = {{500, 0, 500 - 496}, {300, 300, 200}};
    for (uint32_t k = 0; k < 2; k++) {
        struct null_rank_options r = with_units(64);
        struct world w;
        struct engine_stats s;
        static struct reading all[8];
        open_world(&w, &r);
        for (uint32_t i = 0; i < 8; i++) {
            fill(0, cases[k].common, 1);
            fill(cases[k].common, 500, 2 + i);
            struct engine_request q = harness_request(ids, 500, 3, i);
            q.shared_end = cases[k].shared_end;
            harness_submit(w.cached, &q, &all[i]);
        }
        harness_read(all, 8, 0);
        harness_unref(all, 8);
        harness_expect_quiet(w.cached, &s);
        assert_int_equal(s.prompt_rows_total, 500 + 7 * cases[k].rows);
        close_world(&w);
    }
}

/* What a sequence left whose logits were no numbers is not gone on from. */
static void test_damaged(void **state) {
    (void)state;
    struct null_rank_options r = with_units(16);
    struct world w;
    static struct reading a;
    r.damaged_id = 777;
    open_world(&w, &r);
    fill(0, 300, 12);
    for (uint32_t i = 0; i < 300; i++)
        ids[i] = ids[i] == 777 ? 1 : ids[i];
    struct engine_request q = harness_request(ids, 200, 5, 1);
    assert_int_equal(ask(&w, &q, &a), 0);
    q.n_prompt = 290;
    ids[200] = 777;
    assert_int_equal(ask(&w, &q, &a), 192);
    assert_int_equal(a.finish, ENGINE_FINISH_FAULT);
    ids[200] = 1;
    assert_int_equal(ask(&w, &q, &a), 0);
    assert_int_equal(ask(&w, &q, &a), 288);
    close_world(&w);
}

/* Long prompts leave states on their way, for those that turn off. */
static void test_long_prompt(void **state) {
    (void)state;
    struct null_rank_options r = with_units(16);
    struct world w;
    static struct reading a;
    static uint32_t prompt[9000];
    r.max_model_len = 9100;
    r.pages = 500;
    open_world(&w, &r);
    for (uint32_t i = 0; i < 9000; i++)
        prompt[i] = (i * 7919 + 3) % 1000;
    struct engine_request q = harness_request(prompt, 9000, 5, 1);
    assert_int_equal(ask(&w, &q, &a), 0);
    prompt[8191]++;
    assert_int_equal(ask(&w, &q, &a), 4096);
    close_world(&w);
}

/* Pages that a large prompt takes from the cache come back from the host: all of them, the partial last one, too. Where
 * the host has room for some only, what was not used for the longest time is lost. */
static void test_host_pages(void **state) {
    (void)state;
    const uint32_t page_units[] = {40, 7};
    for (uint32_t k = 0; k < 2; k++) {
        struct null_rank_options r = with_units(16);
        struct world w;
        static struct reading a;
        struct engine_stats s;
        r.pages = 16;
        r.page_units = page_units[k];
        open_world(&w, &r);
        fill(0, 1024, 30);
        struct engine_request first = harness_request(ids, 350, 5, 1);
        first.turn_end = 333;
        assert_int_equal(ask(&w, &first, &a), 0);
        for (uint32_t i = 0; i < 2; i++) {
            fill(0, 1024, 31 + i);
            struct engine_request large = harness_request(ids, 900, 5, 1);
            assert_int_equal(ask(&w, &large, &a), 0);
        }
        fill(0, 1024, 30);
        fill(333, 1024, 33);
        assert_int_equal(ask(&w, &first, &a), k == 0 ? 333 : 0);
        if (k == 0)
            assert_int_equal(ask(&w, &first, &a), 333);
        harness_expect_quiet(w.cached, &s);
        assert_true(s.host_pages_out_total > 16 && s.host_pages <= r.page_units);
        assert_int_equal(s.host_pages_in_total, k == 0 ? 7 : 0); /* the last one both times */
        close_world(&w);
    }
}

/* A prefix of more pages than one step moves, while others generate; and cancelled while it is on its way. */
static void test_many_host_pages(void **state) {
    (void)state;
    struct null_rank_options r = with_units(16);
    struct world w;
    static struct reading a, other, gone;
    static uint32_t prompt[16000];
    struct engine_stats s;
    r.max_model_len = 16100;
    r.pages = 270;
    r.page_units = 600;
    open_world(&w, &r);
    struct engine_request q = harness_request(prompt, 15000, 3, 1), o = harness_request(ids, 50, 900, 2);
    for (uint32_t turn = 0; turn < 4; turn++) {
        for (uint32_t i = 0; i < 16000; i++)
            prompt[i] = (i * 7919 + turn % 2) % 1000;
        harness_submit(w.cached, &o, &other);
        if (turn >= 2) { /* before, it would compute, and leave what it had */
            harness_submit(w.cached, &q, &gone);
            engine_cancel(w.cached, gone.stream);
        }
        assert_int_equal(ask(&w, &q, &a), turn < 2 ? 0 : 14992);
        harness_read(&other, 1, 0);
        harness_unref(&other, 1);
        if (turn >= 2) {
            harness_read(&gone, 1, 0);
            harness_unref(&gone, 1);
        }
        o.prompt_ids = ids + turn; /* nothing to be found */
    }
    harness_expect_quiet(w.cached, &s);
    assert_true(s.host_pages_in_total > 300);
    assert_int_equal(s.preemptions_total, 0);
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_lengths),
            cmocka_unit_test(test_turns),
            cmocka_unit_test(test_turns_that_stop),
            cmocka_unit_test(test_turns_with_speculation),
            cmocka_unit_test(test_branches),
            cmocka_unit_test(test_salts),
            cmocka_unit_test(test_all_pages),
            cmocka_unit_test(test_host_pages),
            cmocka_unit_test(test_many_host_pages),
            cmocka_unit_test(test_many),
            cmocka_unit_test(test_at_once),
            cmocka_unit_test(test_damaged),
            cmocka_unit_test(test_long_prompt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
