/* fake_engine.h - the engine's interface without an engine, for tests of what sits on it.
 *
 * Streams are scripted: each submitted request gives the tokens of fake_script in pieces of fake_piece, then
 * fake_finish. A thread of its own pushes and pokes, as the real one does. Include in one file of a program
 * only. */
#pragma once

#include "daemon/engine/engine.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FAKE_TOKENS_MAX 4096u
#define FAKE_STREAMS    4096u

struct engine_stream {
    pthread_mutex_t mutex;
    int refs;
    struct engine_request request;
    uint32_t prompt_n;
    struct engine_token ring[STREAM_RING_TOKENS];
    uint64_t head, tail;
    enum engine_finish finish;
    bool cancelled, finished, aborted;
};

struct engine {
    pthread_t thread;
    pthread_mutex_t mutex;
    bool stop, draining;
    struct engine_stream *streams[FAKE_STREAMS];
    uint32_t n;
};

static uint32_t fake_script[FAKE_TOKENS_MAX];
static _Atomic uint32_t fake_script_n;
static _Atomic uint32_t fake_piece = 1; /* tokens of a stream per step */
static _Atomic int fake_finish = ENGINE_FINISH_LENGTH;
static _Atomic int fake_submit_code;   /* what engine_submit returns */
static _Atomic uint32_t fake_takes;    /* ... after it took so many */
static _Atomic uint64_t fake_seeds[8]; /* of the last requests, by their order modulo 8 */
static _Atomic uint32_t fake_submits;
static _Atomic bool fake_hold; /* no tokens while set */
static _Atomic uint32_t fake_step_us = 200;
static _Atomic uint32_t fake_cancels, fake_finishes, fake_finish_tokens;
static const char *_Atomic fake_state = "serving";
static _Atomic uint32_t fake_live;
static _Atomic uint32_t fake_pages = 64;

static struct histogram fake_histograms[ENGINE_HISTOGRAMS];
static uint64_t fake_finished[ENGINE_FINISHES];

static struct engine fake_engine = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static uint64_t fake_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

struct engine_stream *engine_stream_unref(struct engine_stream *s) {
    if (!s)
        return NULL;
    pthread_mutex_lock(&s->mutex);
    int refs = --s->refs;
    pthread_mutex_unlock(&s->mutex);
    if (refs == 0) {
        atomic_fetch_sub(&fake_live, 1);
        pthread_mutex_destroy(&s->mutex);
        free(s);
    }
    return NULL;
}

/* Pushes what fits; true when the stream is done with. */
static bool fake_step_stream(struct engine_stream *s, bool *ret_poke) {
    pthread_mutex_lock(&s->mutex);
    *ret_poke = false;
    uint32_t n_script = atomic_load(&fake_script_n);
    if (s->cancelled || s->finished || s->aborted) {
        s->finish = s->cancelled  ? ENGINE_FINISH_CANCELLED
                    : s->finished ? ENGINE_FINISH_REQUESTED
                                  : ENGINE_FINISH_ABORTED;
        *ret_poke = true;
    } else if (!atomic_load(&fake_hold)) {
        for (uint32_t i = 0; i < atomic_load(&fake_piece) && s->tail < n_script &&
                             s->tail < s->request.max_tokens && s->tail - s->head < STREAM_RING_TOKENS;
                i++) {
            struct engine_token *t = &s->ring[s->tail % STREAM_RING_TOKENS];
            t->id = fake_script[s->tail];
            t->logprob = -0.5f;
            t->n_top = s->request.top_logprobs;
            for (uint32_t k = 0; k < t->n_top; k++) {
                t->top_ids[k] = k;
                t->top_logprobs[k] = -1.0f - (float)k;
            }
            *ret_poke |= s->tail == s->head;
            s->tail++;
        }
        if (s->tail == n_script || s->tail == s->request.max_tokens) {
            s->finish = (enum engine_finish)atomic_load(&fake_finish);
            *ret_poke = true;
        }
    }
    bool done = s->finish != ENGINE_RUNNING;
    pthread_mutex_unlock(&s->mutex);
    return done;
}

static void fake_step(struct engine *g) {
    pthread_mutex_lock(&g->mutex);
    for (uint32_t i = 0; i < g->n;) {
        struct engine_stream *s = g->streams[i];
        bool poke = false, done = fake_step_stream(s, &poke);
        struct engine_poke p = s->request.poke;
        if (done) {
            g->streams[i] = g->streams[--g->n];
            engine_stream_unref(s);
        } else {
            i++;
        }
        if (poke)
            p.fn(p.user);
    }
    pthread_mutex_unlock(&g->mutex);
}

static void *fake_main(void *arg) {
    struct engine *g = arg;
    for (bool stop = false; !stop;) {
        struct timespec pause = {.tv_nsec = (long)atomic_load(&fake_step_us) * 1000};
        fake_step(g);
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&g->mutex);
        stop = g->stop;
        pthread_mutex_unlock(&g->mutex);
    }
    return NULL;
}

static void fake_engine_start(void) {
    fake_engine.stop = fake_engine.draining = false;
    pthread_create(&fake_engine.thread, NULL, fake_main, &fake_engine);
}

static void fake_engine_stop(void) {
    pthread_mutex_lock(&fake_engine.mutex);
    fake_engine.stop = true;
    pthread_mutex_unlock(&fake_engine.mutex);
    pthread_join(fake_engine.thread, NULL);
    for (uint32_t i = 0; i < fake_engine.n; i++)
        engine_stream_unref(fake_engine.streams[i]);
    fake_engine.n = 0;
}

static inline void fake_script_set(const uint32_t *ids, uint32_t n, enum engine_finish finish) {
    memcpy(fake_script, ids, n * sizeof(*ids));
    atomic_store(&fake_script_n, n);
    atomic_store(&fake_finish, (int)finish);
}

int engine_submit(
        struct engine *g, const struct engine_request *request, struct engine_stream **ret, struct error *e) {
    if (atomic_load(&fake_submit_code) < 0 && atomic_load(&fake_submits) >= atomic_load(&fake_takes))
        return error_set(
                e, atomic_load(&fake_submit_code), "the fake engine says %d", atomic_load(&fake_submit_code));
    struct engine_stream *s = calloc(1, sizeof(*s));
    if (!s)
        return error_set(e, -ENOMEM, "no memory");
    pthread_mutex_init(&s->mutex, NULL);
    s->refs = 2;
    s->request = *request;
    atomic_store(&fake_seeds[atomic_fetch_add(&fake_submits, 1) % 8], request->sampling.seed);
    atomic_fetch_add(&fake_live, 1);
    int r = 0;
    pthread_mutex_lock(&g->mutex);
    for (uint32_t i = 0; i < g->n; i++)
        if (!request->lead && strcmp(g->streams[i]->request.request_id, request->request_id) == 0)
            r = error_set(e, -EEXIST, "request '%s' is running", request->request_id);
    if (g->draining)
        r = error_set(e, -ESHUTDOWN, "shutting down");
    if (r == 0 && g->n < FAKE_STREAMS)
        g->streams[g->n++] = s;
    else if (r == 0)
        r = error_set(e, -EAGAIN, "queue full");
    pthread_mutex_unlock(&g->mutex);
    if (r < 0) {
        engine_stream_unref(s);
        engine_stream_unref(s);
        return r;
    }
    *ret = s;
    return 0;
}

void engine_cancel(struct engine *g, struct engine_stream *s) {
    (void)g;
    pthread_mutex_lock(&s->mutex);
    s->cancelled = true;
    pthread_mutex_unlock(&s->mutex);
    atomic_fetch_add(&fake_cancels, 1);
}

void engine_finish(struct engine *g, struct engine_stream *s, uint32_t n_tokens) {
    (void)g;
    pthread_mutex_lock(&s->mutex);
    s->finished = true;
    pthread_mutex_unlock(&s->mutex);
    atomic_store(&fake_finish_tokens, n_tokens);
    atomic_fetch_add(&fake_finishes, 1);
}

static uint32_t fake_abort(struct engine *g, const char *caller, const char *id) {
    uint32_t found = 0;
    pthread_mutex_lock(&g->mutex);
    for (uint32_t i = 0; i < g->n; i++) {
        struct engine_stream *s = g->streams[i];
        pthread_mutex_lock(&s->mutex);
        if (!id || (strcmp(s->request.request_id, id) == 0 && strcmp(s->request.caller, caller) == 0)) {
            s->aborted = true;
            found++;
        }
        pthread_mutex_unlock(&s->mutex);
    }
    pthread_mutex_unlock(&g->mutex);
    return found;
}

bool engine_abort(struct engine *g, const char *caller, const char *request_id) {
    return fake_abort(g, caller, request_id) > 0;
}

uint32_t engine_abort_all(struct engine *g) {
    return fake_abort(g, NULL, NULL);
}

void engine_drain(struct engine *g) {
    pthread_mutex_lock(&g->mutex);
    g->draining = true;
    pthread_mutex_unlock(&g->mutex);
}

uint32_t engine_stream_take(
        struct engine_stream *s, struct engine_token *tokens, uint32_t max, enum engine_finish *ret_finish) {
    uint32_t n = 0;
    pthread_mutex_lock(&s->mutex);
    while (n < max && s->head < s->tail)
        tokens[n++] = s->ring[s->head++ % STREAM_RING_TOKENS];
    *ret_finish = s->head == s->tail ? s->finish : ENGINE_RUNNING;
    pthread_mutex_unlock(&s->mutex);
    return n;
}

const char *engine_stream_error(const struct engine_stream *s) {
    (void)s;
    return "the fake engine failed";
}

uint32_t engine_stream_cached_tokens(const struct engine_stream *s) {
    return s->prompt_n / 2;
}

void engine_stream_timing(const struct engine_stream *s, struct engine_timing *ret) {
    (void)s;
    *ret = (struct engine_timing){.first_step_ns = fake_now(), .first_token_ns = fake_now()};
}

uint32_t engine_retry_ms(struct engine *g, uint32_t n_prompt) {
    (void)g;
    return 1000 + n_prompt;
}

const struct histogram *engine_histogram(const struct engine *g, enum engine_histogram which) {
    (void)g;
    return &fake_histograms[which];
}

void engine_stats(struct engine *g, struct engine_stats *ret) {
    *ret = (struct engine_stats){.state = fake_state,
            .tp = 2,
            .max_num_seqs = 64,
            .max_model_len = 4096,
            .max_queue = 128,
            .vocab_size = 100000,
            .pages_total = fake_pages,
            .pages_free = 64,
            .weight_fingerprint = 0x0123456789abcdefull,
            .devices = {"fake 0", "fake 1"}};
    memcpy(ret->finished_total, fake_finished, sizeof(fake_finished));
    pthread_mutex_lock(&g->mutex);
    ret->running = g->n;
    if (g->draining)
        ret->state = "draining";
    pthread_mutex_unlock(&g->mutex);
}
