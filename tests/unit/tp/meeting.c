/* meeting.c - ranks of a group that have unlike amounts of memory: they serve as much as the smallest, say so, and let
 * each other go when one of them fails. */
#include "model_test.h"

#include "tp/worker/meeting.h"

#include <pthread.h>

enum { TP = 2 };

struct member {
    struct rank_options options;
    struct rank *rank;
    struct error e;
    int status;
};

static void *load(void *argument) {
    struct member *m = argument;
    m->status = rank_create(&m->options, &m->rank, &m->e);
    return NULL;
}

/* Creates the ranks of a group with so much memory each, a thread for each. */
static void load_group(const struct rank_options *common, const uint64_t memory[TP], struct member m[TP]) {
    struct rank_options o = *common;
    struct error e = {0};
    pthread_t threads[TP];
    must(rank_comm_bytes(&o, &o.comm_bytes, &e), &e);
    o.comm_region = aligned_alloc(64, (o.comm_bytes + 63) / 64 * 64);
    assert_non_null(o.comm_region);
    memset(o.comm_region, 0, o.comm_bytes);
    for (uint32_t i = 0; i < TP; i++) {
        m[i] = (struct member){.options = o};
        m[i].options.rank = i;
        m[i].options.memory_bytes = memory[i];
        assert_int_equal(pthread_create(&threads[i], NULL, load, &m[i]), 0);
    }
    for (uint32_t i = 0; i < TP; i++)
        pthread_join(threads[i], NULL);
}

static void free_group(struct member m[TP]) {
    for (uint32_t i = 0; i < TP; i++)
        rank_free(m[i].rank);
    free(m[0].options.comm_region);
}

static void ranks_serve_what_the_smallest_has_room_for(void **state) {
    (void)state;
    char path[512];
    struct rank_plan plan;
    struct member m[TP];
    struct error e = {0};
    model_path(path, sizeof(path), "small", NULL);
    struct rank_options options = test_options(path, TP);
    options.kv_cache_bytes = 0;
    options.memory_bytes = 1ull << 40;
    must(rank_plan(&options, &plan, &e), &e);
    load_group(&options, (const uint64_t[TP]){plan.wanted_bytes, plan.wanted_bytes}, m);
    for (uint32_t i = 0; i < TP; i++) {
        must(m[i].status, &m[i].e);
        assert_null(strstr(m[i].rank->budget.text, "room"));
    }
    free_group(m);

    const uint64_t few = plan.least_bytes + 40 * plan.pool.page_bytes;
    options.memory_bytes = few;
    must(rank_plan(&options, &plan, &e), &e);
    load_group(&options, (const uint64_t[TP]){1ull << 40, few}, m);
    for (uint32_t i = 0; i < TP; i++) {
        must(m[i].status, &m[i].e);
        assert_memory_equal(&m[i].rank->budget.pool, &plan.budget.pool, sizeof(plan.budget.pool));
        assert_int_equal(m[i].rank->budget.max_model_len, plan.budget.max_model_len);
        assert_int_equal(m[i].rank->budget.pool_bytes, plan.budget.pool_bytes);
    }
    assert_non_null(strstr(m[0].rank->budget.text, "; no more than rank 1 has room for"));
    assert_string_equal(m[1].rank->budget.text, plan.budget.text);
    free_group(m);
}

static void one_that_fails_lets_the_others_go(void **state) {
    (void)state;
    char path[512];
    struct member m[TP];
    model_path(path, sizeof(path), "small", NULL);
    const struct rank_options options = test_options(path, TP);
    load_group(&options, (const uint64_t[TP]){1ull << 40, 100000}, m);
    assert_int_equal(m[1].status, -ENOMEM);
    assert_non_null(strstr(m[1].e.text, "does not fit"));
    assert_int_equal(m[0].status, -ECANCELED);
    free_group(m);
}

static void numbers_become_the_least(void **state) {
    (void)state;
    struct meeting *m = calloc(1, meeting_bytes());
    uint64_t first[] = {7, 5, 2}, second[] = {3, 8, 2};
    uint32_t who = 9;
    struct error e = {0};
    assert_non_null(m);
    meeting_end(m);
    assert_int_equal(meeting_least(m, MEETING_POOL, 2, 0, first, 3, &who, &e), -ECANCELED);
    assert_int_equal(meeting_least(m, MEETING_POOL, 2, 1, second, 3, &who, &e), 0); /* all are there */
    assert_int_equal(who, 1);
    assert_true(second[0] == 3 && second[1] == 5 && second[2] == 2);
    assert_int_equal(meeting_least(m, MEETING_LOADED, 2, 1, NULL, 0, NULL, &e), -ECANCELED);
    free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(ranks_serve_what_the_smallest_has_room_for),
            cmocka_unit_test(one_that_fails_lets_the_others_go),
            cmocka_unit_test(numbers_become_the_least),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
