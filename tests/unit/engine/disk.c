/* disk.c - the prefix cache's third tier over null ranks whose stores outlive them: what is found after a restart, and
 * that the answers are those of an engine without a cache, whatever the stores lose, damage or refuse. */
#include "tests/unit/engine/harness.h"

#define RANKS  2u
#define PLACES 60u
#define ANSWER 20u

static uint32_t ids[1024];
static struct null_store stores[RANKS];

static void make_stores(uint32_t pages, uint32_t states) {
    for (uint32_t i = 0; i < RANKS; i++) {
        const uint32_t n[STEP_STORED_KINDS] = {pages, states};
        for (uint32_t k = 0; k < STEP_STORED_KINDS; k++) {
            free(stores[i].places[k]);
            stores[i].n[k] = n[k];
            stores[i].places[k] = calloc(n[k] + 1, sizeof(struct null_stored));
        }
        stores[i].failing = 0;
    }
}

static void free_stores(void) {
    for (uint32_t i = 0; i < RANKS; i++)
        for (uint32_t k = 0; k < STEP_STORED_KINDS; k++) {
            free(stores[i].places[k]);
            stores[i].places[k] = NULL;
        }
}

struct world {
    struct engine *engine;
    struct harness_group group;
};

#define DAMAGED_ID 999u /* which no prompt has otherwise */

static void open_world(struct world *w, uint32_t page_units, uint32_t pages) {
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    o.max_num_batched_tokens = 100;
    o.prefix_cache = page_units > 0;
    r.tp = RANKS;
    r.pages = pages;
    r.slot_units = page_units > 0 ? 8 : 0;
    r.page_units = page_units;
    r.damaged_id = DAMAGED_ID;
    r.stores = page_units > 0 ? stores : NULL;
    w->engine = harness_engine(&o);
    harness_group_start(&w->group, w->engine, &r, 1);
    assert_int_equal(engine_wait_ready(w->engine, LONG_NS), 0);
}

static void close_world(struct world *w) {
    struct engine_stats s;
    harness_expect_quiet(w->engine, &s);
    assert_int_equal(s.step_errors_total, 0);
    engine_free(w->engine);
    harness_group_stop(&w->group);
}

/* All that is kept is on the disk. */
static void wait_saved(struct world *w, uint32_t states) {
    struct engine_stats s;
    for (int i = 0;; i++) {
        engine_stats(w->engine, &s);
        if (s.disk_states >= states && s.disk_writes_total >= s.disk_states + s.disk_pages)
            return;
        if (i == 20000)
            fail_msg("%u states and %u pages are on the disk, %llu were written", s.disk_states, s.disk_pages,
                    (unsigned long long)s.disk_writes_total);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

static void fill(uint32_t first, uint32_t end, uint32_t salt) {
    for (uint32_t i = first; i < end; i++)
        ids[i] = (i * 7919 + salt * 31 + 5) % DAMAGED_ID;
}

static uint32_t ask(struct world *w, const struct engine_request *q, struct reading *ret) {
    harness_submit(w->engine, q, ret);
    harness_read(ret, 1, 0);
    uint32_t n = engine_stream_cached_tokens(ret->stream);
    harness_unref(ret, 1);
    return n;
}

/* Prompts of several lengths, with a salt and without: after a restart each is found as far as it was before, and says
 * the same; another salt finds nothing. */
static void test_restart(void **state) {
    (void)state;
    const uint32_t lengths[] = {65, 129, 200, 333, 640};
    static struct reading plain[10], a;
    struct world w;
    make_stores(PLACES, 20);
    open_world(&w, 0, 256);
    for (uint32_t i = 0; i < 10; i++) {
        fill(0, 700, i / 2);
        struct engine_request q = harness_request(ids, lengths[i / 2], ANSWER, i);
        ask(&w, &q, &plain[i]);
    }
    close_world(&w);
    for (uint32_t turn = 0; turn < 3; turn++) {
        open_world(&w, 40, 256);
        for (uint32_t i = 0; i < 10; i++) {
            fill(0, 700, i / 2);
            struct engine_request q = harness_request(ids, lengths[i / 2], ANSWER, i);
            q.cache_salt = i % 2 == 0 ? "salt" : "pepper";
            q.n_cache_salt = i % 2 == 0 ? 4 : turn == 2 ? 5 : 6;
            uint32_t cached = ask(&w, &q, &a), all = (lengths[i / 2] - 1) / GDN_BLOCK * GDN_BLOCK;
            assert_int_equal(cached, turn == 0 || (turn == 2 && i % 2 == 1) ? 0 : all);
            assert_memory_equal(a.ids, plain[i].ids, ANSWER * sizeof(a.ids[0]));
        }
        if (turn == 0)
            wait_saved(&w, 10);
        close_world(&w);
    }
    free_stores();
}

/* Turn after turn of two that talk, with restarts between all of them, in stores that hold little more than one, with
 * copies that fail, and ranks that lose what others have. */
static void test_random(void **state) {
    (void)state;
    static uint32_t told[3][1024];
    static struct reading a, b;
    uint32_t found = 0;
    for (uint32_t seed = 0; seed < 6; seed++) {
        uint32_t n[3] = {90, 70, 150};
        make_stores(seed % 2 == 0 ? PLACES : 9, seed % 2 == 0 ? 20 : 3);
        for (uint32_t i = 0; i < RANKS; i++)
            stores[i].failing = seed < 2 ? 0 : 10 * seed;
        for (uint32_t i = 0; i < 3; i++)
            for (uint32_t k = 0; k < 1024; k++)
                told[i][k] = (k * 7919 + i * 77 + seed) % DAMAGED_ID;
        for (uint32_t turn = 0; turn < 9; turn++) {
            struct world w, plain;
            struct engine_stats s;
            open_world(&w, seed % 3 == 0 ? 40 : 12, seed % 3 == 2 ? 16 : 256);
            open_world(&plain, 0, 256);
            for (uint32_t i = 0; i < 3; i++) {
                struct engine_request q = harness_request(told[i], n[i], ANSWER, turn);
                found += ask(&w, &q, &a) > 0;
                ask(&plain, &q, &b);
                assert_int_equal(a.n, b.n);
                assert_memory_equal(a.ids, b.ids, a.n * sizeof(a.ids[0]));
                memcpy(told[i] + n[i], a.ids, a.n * sizeof(a.ids[0]));
                n[i] += a.n + 70;
            }
            nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* some is written, or not */
            engine_stats(w.engine, &s);
            assert_true(s.disk_pages <= stores[0].n[0] && s.disk_states <= stores[0].n[1]);
            close_world(&plain);
            close_world(&w);
            for (uint32_t k = 0; k < 2; k++) /* one of the ranks loses something */
                stores[turn % RANKS].places[k][turn % stores[0].n[k]].used = false;
        }
    }
    assert_true(found > 10);
    free_stores();
}

/* Fewer units than a prompt has pages: what is written makes room for itself, and what was written cannot come back at
 * once. */
static void test_few_units(void **state) {
    (void)state;
    static struct reading a, b;
    for (uint32_t units = 2; units <= 8; units += 3) {
        make_stores(PLACES, 20);
        for (uint32_t turn = 0; turn < 4; turn++) {
            struct world w, plain;
            open_world(&w, units, 64);
            open_world(&plain, 0, 256);
            for (uint32_t i = 0; i < 12; i++) {
                fill(0, 1000, i % 3);
                struct engine_request q = harness_request(ids, 300 + 130 * (i % 5), ANSWER, i);
                ask(&w, &q, &a);
                ask(&plain, &q, &b);
                assert_memory_equal(a.ids, b.ids, ANSWER * sizeof(a.ids[0]));
                if (i % 4 == 3)
                    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL); /* some is written, or not */
            }
            close_world(&plain);
            close_world(&w);
        }
    }
    free_stores();
}

/* What a sequence without numbers has read is not read from the disk either. */
static void test_distrusted(void **state) {
    (void)state;
    static struct reading a;
    struct world w;
    make_stores(PLACES, 20);
    open_world(&w, 40, 256);
    fill(0, 700, 1);
    struct engine_request q = harness_request(ids, 400, ANSWER, 1);
    ask(&w, &q, &a);
    wait_saved(&w, 1);
    ids[500] = DAMAGED_ID;
    struct engine_request damaged = harness_request(ids, 640, ANSWER, 2);
    assert_true(ask(&w, &damaged, &a) >= 384);
    assert_int_equal(a.finish, ENGINE_FINISH_FAULT);
    assert_int_equal(ask(&w, &q, &a), 0);
    assert_int_equal(a.finish, ENGINE_FINISH_LENGTH);
    close_world(&w);
    free_stores();
}

/* Bytes of another model, or torn ones: the place fails when it is read, and is not tried again. */
static void test_damaged(void **state) {
    (void)state;
    static struct reading a, b;
    struct engine_stats s;
    struct world w;
    make_stores(PLACES, 20);
    fill(0, 700, 50);
    struct engine_request q = harness_request(ids, 500, ANSWER, 1);
    open_world(&w, 40, 256);
    assert_int_equal(ask(&w, &q, &a), 0);
    wait_saved(&w, 1);
    close_world(&w);
    stores[0].failing = 100;
    open_world(&w, 40, 256);
    assert_int_equal(ask(&w, &q, &b), 0);
    assert_memory_equal(a.ids, b.ids, ANSWER * sizeof(a.ids[0]));
    harness_expect_quiet(w.engine, &s);
    assert_true(s.disk_failures_total > 0);
    assert_int_equal(s.disk_hits_total, 0);
    close_world(&w);
    free_stores();
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_restart),
            cmocka_unit_test(test_random),
            cmocka_unit_test(test_few_units),
            cmocka_unit_test(test_distrusted),
            cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
