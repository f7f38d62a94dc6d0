/* poison.c - one request kills the group whenever it is computed, and meanwhile groups are killed at random points
 * by somebody else, also while they recover from a death: the poison is always ended, and nobody else ever is.
 *
 * A kill from outside looks like SIGKILL, the poison's like a crash. The only thing that a killer must not do here
 * is to hit the trial of one innocent twice in a row: from the engine's place that is what a guilty one looks like. */
#include "tests/unit/engine/harness.h"

#include <signal.h>

#define INNOCENTS   24u
#define POISON_SEED 1000u
#define KILLS_MAX   30u

enum poison { POISON_ANY_ROW, POISON_GENERATED_ROW, POISON_LATE_TOKEN };
enum point { POINT_UNREAD, POINT_BEGUN, POINT_ANSWERED, POINTS };

struct killer {
    pthread_mutex_t lock; /* ranks of one group take turns in it */
    uint64_t random;
    uint32_t kills;
    uint32_t one_in; /* records */
    enum poison poison;
    bool hit_alone[INNOCENTS]; /* in its present trial, or ever: it is not hit alone again */
};
static struct killer killer = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct victim { /* a rank on a thread that may die */
    struct null_rank *rank;
    struct step_ring *ring;
    pthread_t thread;
    uint64_t seeds[SEQS_MAX + 1]; /* of the open slots */
    bool may_die;                 /* the last rank of a group: the others go on until they are stopped */
    _Atomic bool stop, dead;
    uint32_t end_signal;
};
struct victims {
    uint32_t n;
    struct victim v[2];
};

static uint32_t prompt[1024];
static struct reading expected[INNOCENTS], readings[INNOCENTS + 1];

static uint32_t random_below(uint32_t n) {
    killer.random ^= killer.random << 13;
    killer.random ^= killer.random >> 7;
    killer.random ^= killer.random << 17;
    return (uint32_t)(killer.random >> 20) % n;
}

static struct engine_request request(uint32_t i) {
    struct engine_request q = harness_request(prompt + i, 10 + i * 7, 20 + i * 5, i);
    return q;
}

static bool kills(const struct victim *v, const struct step_plan *p) {
    for (uint32_t i = 0; i < p->n_entries; i++) {
        const struct step_entry *t = &p->entries[i];
        if (v->seeds[t->slot] != POISON_SEED)
            continue;
        if (killer.poison == POISON_ANY_ROW ||
                (killer.poison == POISON_GENERATED_ROW && t->kind == STEP_ENTRY_CONTINUE) ||
                (t->kind == STEP_ENTRY_CONTINUE && t->first_pos % 8 == 7))
            return true;
    }
    return false;
}

/* Whether somebody kills the rank at this record, and where. */
static bool is_killed(const struct victim *v, const struct step_plan *p, enum point *ret) {
    if (killer.kills >= KILLS_MAX || random_below(killer.one_in) != 0)
        return false;
    *ret = (enum point)random_below(POINTS);
    if (p->n_entries == 1 && *ret == POINT_BEGUN) {
        uint64_t seed = v->seeds[p->entries[0].slot];
        if (seed >= INNOCENTS || killer.hit_alone[seed])
            return false;
        killer.hit_alone[seed] = true;
    }
    killer.kills++;
    return true;
}

/* Looks at the next record and does what is to be done with it. False: dead. */
static bool serve_one(struct victim *v) {
    const void *record;
    uint32_t bytes;
    struct step_plan p;
    enum point point = POINT_BEGUN;
    if (step_ring_next(v->ring, &record, &bytes) == -EAGAIN) {
        step_ring_wait(v->ring, 20000000u);
        return true;
    }
    if (step_ring_next(v->ring, &record, &bytes) < 0 || step_decode(record, bytes, &p, NULL) < 0)
        return false;
    for (uint32_t i = 0; i < p.n_opens; i++)
        v->seeds[p.opens[i].slot] = p.opens[i].seed;
    bool guilty = false, killed = false;
    if (v->may_die) {
        pthread_mutex_lock(&killer.lock);
        guilty = kills(v, &p);
        killed = !guilty && is_killed(v, &p, &point);
        pthread_mutex_unlock(&killer.lock);
    }
    v->end_signal = killed ? SIGKILL : SIGSEGV;
    if ((guilty || killed) && point == POINT_BEGUN)
        step_ring_progress(v->ring, p.header->step, 0, 0, /* busy= */ true);
    if ((guilty || killed) && point != POINT_ANSWERED)
        return false;
    return null_rank_serve(v->rank, v->ring, 0, NULL) == 0 && !killed;
}

static void *victim_main(void *arg) {
    struct victim *v = arg;
    while (!atomic_load(&v->stop)) {
        if (!serve_one(v)) {
            atomic_store(&v->dead, true);
            break;
        }
    }
    return NULL;
}

static void group_start(struct victims *g, struct engine *e, uint32_t tp, uint64_t epoch) {
    int fd;
    memset(g, 0, sizeof(*g));
    g->n = tp;
    assert_int_equal(step_ring_create(tp, epoch, 1, &fd, NULL), 0);
    for (uint32_t i = 0; i < tp; i++) {
        struct null_rank_options o = harness_rank_options();
        o.tp = tp;
        o.rank = i;
        g->v[i].may_die = i + 1 == tp;
        assert_int_equal(null_rank_create(&o, &g->v[i].rank, NULL), 0);
        assert_int_equal(step_ring_attach(fd, i, &g->v[i].ring, NULL), 0);
        assert_int_equal(pthread_create(&g->v[i].thread, NULL, victim_main, &g->v[i]), 0);
    }
    struct control_message m = {
            .kind = CONTROL_CHANNEL, .n_fds = 1, .group_epoch = epoch, .coord_epoch = 1, .fds = {fd}};
    assert_int_equal(engine_control(e, &m), 0);
    close(fd);
}

static void group_stop(struct victims *g) {
    for (uint32_t i = 0; i < g->n; i++) {
        atomic_store(&g->v[i].stop, true);
        pthread_join(g->v[i].thread, NULL);
        null_rank_free(g->v[i].rank);
        step_ring_free(g->v[i].ring);
    }
}

/* The launcher's part: a death is told, the others are stopped, the next group comes. */
static void restart(struct victims *g, struct engine *e, uint64_t *epoch) {
    struct control_message m = {.kind = CONTROL_GROUP_LOST,
            .group_epoch = *epoch,
            .coord_epoch = 1,
            .a = g->n - 1,
            .b = g->v[g->n - 1].end_signal == SIGKILL ? SIGKILL : SIGSEGV};
    uint32_t tp = g->n;
    assert_int_equal(engine_control(e, &m), 0);
    group_stop(g);
    group_start(g, e, tp, ++*epoch);
}

static void run(uint64_t seed, uint32_t tp, enum poison poison, uint32_t one_in) {
    struct victims group;
    struct engine_options o = harness_engine_options();
    struct engine_stats s;
    uint64_t epoch = 1;
    killer.random = seed * 0x9e3779b97f4a7c15ull + 1;
    killer.kills = 0;
    killer.one_in = one_in;
    killer.poison = poison;
    memset(killer.hit_alone, 0, sizeof(killer.hit_alone));
    struct engine *e = harness_engine(&o);
    group_start(&group, e, tp, epoch);
    while (engine_wait_ready(e, 10000000u) < 0) {
        if (atomic_load(&group.v[tp - 1].dead))
            restart(&group, e, &epoch);
    }
    uint32_t at = (uint32_t)seed % INNOCENTS; /* the poison comes in the middle of the others */
    for (uint32_t i = 0; i <= INNOCENTS; i++) {
        struct engine_request q = request(i < at ? i : i == at ? 5 : i - 1);
        if (i == at)
            q.sampling.seed = POISON_SEED;
        harness_submit(e, &q, &readings[i]);
    }
    for (uint32_t left = 1; left > 0;) {
        left = 0;
        for (uint32_t i = 0; i <= INNOCENTS; i++) {
            if (readings[i].finish == ENGINE_RUNNING)
                harness_take(&readings[i]);
            left += readings[i].finish == ENGINE_RUNNING;
        }
        if (atomic_load(&group.v[tp - 1].dead))
            restart(&group, e, &epoch);
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
    for (uint32_t i = 0; i <= INNOCENTS; i++) {
        const struct reading *x = &expected[i < at ? i : i - 1];
        if (i == at) {
            assert_int_equal(readings[i].finish, ENGINE_FINISH_FAULT);
            continue;
        }
        if (readings[i].finish != ENGINE_FINISH_LENGTH)
            fail_msg("seed %llu: innocent %u ended with %d: %s", (unsigned long long)seed, i,
                    readings[i].finish, engine_stream_error(readings[i].stream));
        assert_int_equal(readings[i].n, x->n);
        assert_memory_equal(readings[i].ids, x->ids, x->n * sizeof(uint32_t));
    }
    harness_unref(readings, INNOCENTS + 1);
    engine_stats(e, &s);
    assert_int_equal(s.suspects, 0);
    assert_int_equal(s.step_errors_total, 0);
    engine_free(e);
    group_stop(&group);
}

static int group_setup(void **state) {
    (void)state;
    struct harness_group group;
    struct engine_options o = harness_engine_options();
    struct null_rank_options r = harness_rank_options();
    for (uint32_t i = 0; i < 1024; i++)
        prompt[i] = (i * 7919 + 13) % 1000;
    struct engine *e = harness_engine(&o);
    harness_group_start(&group, e, &r, 1);
    assert_int_equal(engine_wait_ready(e, LONG_NS), 0);
    for (uint32_t i = 0; i < INNOCENTS; i++) {
        struct engine_request q = request(i);
        harness_submit(e, &q, &expected[i]);
        harness_read(&expected[i], 1, 0);
    }
    harness_unref(expected, INNOCENTS);
    engine_free(e);
    harness_group_stop(&group);
    return 0;
}

static void test_poison_alone(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++)
        run(seed, 1 + seed % 2, POISON_ANY_ROW, 1u << 30);
}

/* What kills only when it generates is not seen in its replay; what kills at some tokens only, not always. */
static void test_poison_in_generated_rows(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        run(seed, 1 + seed % 2, POISON_GENERATED_ROW, 1u << 30);
        run(seed, 1 + seed % 2, POISON_LATE_TOKEN, 1u << 30);
    }
}

/* From one kill in 3 records to one in 48. */
static void test_poison_among_kills(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++)
        run(seed, 1 + seed % 2, seed % 3 == 0 ? POISON_GENERATED_ROW : POISON_ANY_ROW, 3u << seed % 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_poison_alone),
            cmocka_unit_test(test_poison_in_generated_rows),
            cmocka_unit_test(test_poison_among_kills),
    };
    return cmocka_run_group_tests(tests, group_setup, NULL);
}
