/* harness.h - an engine over null ranks on threads, and readers that collect what streams say. For tests
 * only. */
#pragma once

#include "daemon/engine/engine.h"
#include "proto/step/control.h"
#include "proto/step/null_rank.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define LONG_NS    60000000000ull /* only a failing test waits this long */
#define PATIENCE_S 300            /* and for news of the engine this long */

static struct null_rank_options harness_rank_options(void) __attribute__((unused));
static struct null_rank_options harness_rank_options(void) {
    return (struct null_rank_options){.tp = 1,
            .slots = 64,
            .pages = 256,
            .max_model_len = 1024,
            .rows_max = 512,
            .vocab_size = 1000,
            .fingerprint = 0xabc};
}

static struct engine_options harness_engine_options(void) __attribute__((unused));
static struct engine_options harness_engine_options(void) {
    return (struct engine_options){.max_num_seqs = 64, .max_num_batched_tokens = 256, .max_queue = 256};
}

/* --- ranks on threads --- */

struct harness_rank {
    struct null_rank *rank;
    struct step_ring *ring;
    pthread_t thread;
    _Atomic bool *stop;
    _Atomic int result; /* what null_rank_serve ended with; 0 = runs */
};
struct harness_group {
    uint32_t n;
    struct harness_rank ranks[RANKS_MAX];
    int fd;
    _Atomic bool stop;
};

static void *harness_rank_main(void *arg) {
    struct harness_rank *r = arg;
    struct error e = {0};
    while (!atomic_load(r->stop)) {
        int err = null_rank_serve(r->rank, r->ring, 20000000u, &e);
        if (err < 0 && err != -ETIMEDOUT) {
            atomic_store(&r->result, err);
            break;
        }
    }
    return NULL;
}

static void harness_group_start(struct harness_group *p, struct engine *g, const struct null_rank_options *o,
        uint64_t group_epoch) __attribute__((unused));
static void harness_group_start(
        struct harness_group *p, struct engine *g, const struct null_rank_options *o, uint64_t group_epoch) {
    memset(p, 0, sizeof(*p));
    p->n = o->tp;
    assert_int_equal(step_ring_create(p->n, group_epoch, 1, &p->fd, NULL), 0);
    for (uint32_t i = 0; i < p->n; i++) {
        struct null_rank_options mine = *o;
        struct harness_rank *r = &p->ranks[i];
        mine.rank = i;
        if (i + 1 < p->n) /* asked-for faults are the last rank's */
            mine.fault_epochs = 0;
        r->stop = &p->stop;
        assert_int_equal(null_rank_create(&mine, &r->rank, NULL), 0);
        assert_int_equal(step_ring_attach(p->fd, i, &r->ring, NULL), 0);
        assert_int_equal(pthread_create(&r->thread, NULL, harness_rank_main, r), 0);
    }
    struct control_message m = {.kind = CONTROL_CHANNEL,
            .n_fds = 1,
            .group_epoch = group_epoch,
            .coord_epoch = 1,
            .fds = {p->fd}};
    assert_int_equal(engine_control(g, &m), 0);
}

static void harness_group_stop(struct harness_group *p) __attribute__((unused));
static void harness_group_stop(struct harness_group *p) {
    atomic_store(&p->stop, true);
    for (uint32_t i = 0; i < p->n; i++) {
        pthread_join(p->ranks[i].thread, NULL);
        null_rank_free(p->ranks[i].rank);
        step_ring_free(p->ranks[i].ring);
    }
    close(p->fd);
    p->n = 0;
}

/* --- what the engine says --- */

struct harness_ear {
    pthread_mutex_t lock;
    pthread_cond_t news;
    uint32_t n_pokes, n_messages;
    struct control_message messages[16];
};
static struct harness_ear ear = {.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};

static void harness_poke(void *user) __attribute__((unused));
static void harness_poke(void *user) {
    (void)user;
    pthread_mutex_lock(&ear.lock);
    ear.n_pokes++;
    pthread_cond_broadcast(&ear.news);
    pthread_mutex_unlock(&ear.lock);
}

static void harness_message(void *user, const struct control_message *m) __attribute__((unused));
static void harness_message(void *user, const struct control_message *m) {
    (void)user;
    pthread_mutex_lock(&ear.lock);
    if (ear.n_messages < 16)
        ear.messages[ear.n_messages++] = *m;
    pthread_cond_broadcast(&ear.news);
    pthread_mutex_unlock(&ear.lock);
}

/* Waits for news, with the lock held. False: none came for PATIENCE_S. */
static bool harness_wait_news(void) __attribute__((unused));
static bool harness_wait_news(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_S;
    return pthread_cond_timedwait(&ear.news, &ear.lock, &until) != ETIMEDOUT;
}

/* The i-th message to the launcher, waited for. */
static struct control_message harness_wait_message(uint32_t i) __attribute__((unused));
static struct control_message harness_wait_message(uint32_t i) {
    pthread_mutex_lock(&ear.lock);
    bool news = true;
    while (ear.n_messages <= i && news)
        news = harness_wait_news();
    struct control_message m = ear.messages[i];
    pthread_mutex_unlock(&ear.lock);
    if (!news)
        fail_msg("message %u to the launcher did not come within %d s", i, PATIENCE_S);
    return m;
}

/* --- requests and readers --- */

#define READ_MAX 2048u
struct reading {
    struct engine_stream *stream;
    uint32_t n;
    uint32_t ids[READ_MAX];
    float logprobs[READ_MAX];
    enum engine_finish finish;
};

static struct engine_request harness_request(
        const uint32_t *ids, uint32_t n, uint32_t max_tokens, uint64_t seed) __attribute__((unused));
static struct engine_request harness_request(
        const uint32_t *ids, uint32_t n, uint32_t max_tokens, uint64_t seed) {
    return (struct engine_request){.prompt_ids = ids,
            .n_prompt = n,
            .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = seed},
            .max_tokens = max_tokens,
            .poke = {.fn = harness_poke}};
}

static void harness_submit(struct engine *g, const struct engine_request *q, struct reading *r)
        __attribute__((unused));
static void harness_submit(struct engine *g, const struct engine_request *q, struct reading *r) {
    struct error e = {0};
    r->n = 0;
    r->finish = ENGINE_RUNNING;
    if (engine_submit(g, q, &r->stream, &e) < 0)
        fail_msg("%s", e.text);
}

static uint32_t harness_take(struct reading *r) __attribute__((unused));
static uint32_t harness_take(struct reading *r) {
    struct engine_token t[16];
    uint32_t n, total = 0;
    while ((n = engine_stream_take(r->stream, t, 16, &r->finish)) > 0) {
        for (uint32_t i = 0; i < n; i++) {
            assert_true(r->n < READ_MAX);
            r->ids[r->n] = t[i].id;
            r->logprobs[r->n++] = t[i].logprob;
        }
        total += n;
    }
    return total;
}

static void harness_fail_reading(const struct reading *all, uint32_t n_all) __attribute__((unused));
static void harness_fail_reading(const struct reading *all, uint32_t n_all) {
    for (uint32_t i = 0; i < n_all; i++)
        print_error("stream %u: %u tokens taken, finish %d\n", i, all[i].n, (int)all[i].finish);
    fail_msg("nobody was poked for %d s: a wake-up was lost, or what is waited for cannot come", PATIENCE_S);
}

/* Reads all until every one of them has ended or (tokens > 0) has that many tokens. Waits for pokes only, so that
 * one that is missing shows. Only for groups that live, or whose death somebody else tells: a dead one brings no
 * poke. */
static void harness_read(struct reading *all, uint32_t n_all, uint32_t tokens) __attribute__((unused));
static void harness_read(struct reading *all, uint32_t n_all, uint32_t tokens) {
    for (;;) {
        pthread_mutex_lock(&ear.lock);
        uint32_t pokes = ear.n_pokes;
        pthread_mutex_unlock(&ear.lock);
        bool done = true;
        for (uint32_t i = 0; i < n_all; i++) {
            if (all[i].finish == ENGINE_RUNNING)
                harness_take(&all[i]);
            done &= all[i].finish != ENGINE_RUNNING || (tokens > 0 && all[i].n >= tokens);
        }
        if (done)
            return;
        bool news = true;
        pthread_mutex_lock(&ear.lock);
        while (ear.n_pokes == pokes && news)
            news = harness_wait_news();
        pthread_mutex_unlock(&ear.lock);
        if (!news)
            harness_fail_reading(all, n_all);
    }
}

static void harness_unref(struct reading *all, uint32_t n_all) __attribute__((unused));
static void harness_unref(struct reading *all, uint32_t n_all) {
    for (uint32_t i = 0; i < n_all; i++)
        all[i].stream = engine_stream_unref(all[i].stream);
}

static struct engine *harness_engine(const struct engine_options *o) __attribute__((unused));
static struct engine *harness_engine(const struct engine_options *o) {
    struct engine *g;
    struct engine_options mine = *o;
    mine.launcher.fn = harness_message;
    ear.n_messages = 0;
    assert_int_equal(engine_create(&mine, &g, NULL), 0);
    assert_int_equal(engine_start(g, NULL), 0);
    return g;
}

static bool harness_is_quiet(struct engine *g, struct engine_stats *s) __attribute__((unused));
static bool harness_is_quiet(struct engine *g, struct engine_stats *s) {
    engine_stats(g, s);
    return s->running == 0 && s->waiting == 0 && s->pages_free == s->pages_total &&
           s->slots_free == s->slots_total;
}

/* Nothing leaked: in the end every page and every slot is free and nobody runs or waits. */
static void harness_expect_quiet(struct engine *g, struct engine_stats *s) __attribute__((unused));
static void harness_expect_quiet(struct engine *g, struct engine_stats *s) {
    for (int i = 0; !harness_is_quiet(g, s); i++) {
        if (i == 20000)
            fail_msg("%u running, %u waiting, %u of %u pages and %u of %u slots free", s->running, s->waiting,
                    s->pages_free, s->pages_total, s->slots_free, s->slots_total);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}
