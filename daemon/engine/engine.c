/* engine.c - the engine thread's loop, and the way in for other threads. */
#include "daemon/engine/disk.h"
#include "daemon/engine/draft.h"
#include "daemon/engine/flight.h"
#include "daemon/engine/inbox.h"
#include "daemon/engine/poke.h"
#include "daemon/engine/queue.h"
#include "daemon/engine/recovery.h"
#include "daemon/engine/scheduler.h"
#include "daemon/engine/sequence.h"
#include "daemon/engine/timing.h"
#include "daemon/engine/wake.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_TIMEOUT_MS 30000u
#define PING_NS            1000000000ull
#define DISK_PING_NS       2000000ull /* while ranks read and write what else nobody would hear of */
#define STALL_POLL_NS      5000000ull /* a reader that catches up does not tell: looked at this often */
#define PREFILL_ROWS_FIRST 64u        /* until a step has been measured */

static uint64_t sooner(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* How long nothing has to be done unless somebody calls. */
static uint64_t idle_ns(struct engine *g, uint64_t now) {
    uint64_t ns = PING_NS;
    if (g->n_stalled > 0)
        ns = STALL_POLL_NS;
    else if (g->n_flights > 0)
        ns = sooner(ns, (uint64_t)g->o.step_timeout_ms * 1000000u / 4 + 1);
    else if (disk_waits(g) || disk_has_work(g))
        ns = DISK_PING_NS;
    else if (g->state == STATE_SERVING)
        ns = now - g->last_record_ns < PING_NS ? PING_NS - (now - g->last_record_ns) : 1;
    if (g->deadlines.n > 0) {
        uint64_t first = g->deadlines.items[0]->due_ns;
        ns = first > now ? sooner(ns, first - now) : 0;
    }
    return ns;
}

/* --- one turn of the loop --- */

/* Signals that a process does not get for what it computes. */
static bool is_from_outside(uint64_t signal_number) {
    return signal_number == SIGKILL || signal_number == SIGTERM || signal_number == SIGINT ||
           signal_number == SIGHUP;
}

static void take_controls(struct engine *g, uint64_t now) {
    struct control_message all[CONTROLS_MAX];
    pthread_mutex_lock(&g->control_lock);
    uint32_t n = g->n_controls;
    memcpy(all, g->controls, n * sizeof(all[0]));
    g->n_controls = 0;
    pthread_mutex_unlock(&g->control_lock);
    for (uint32_t i = 0; i < n; i++) {
        /* A loss that was sent before the channel we have is old news. */
        bool old = g->ring != NULL && all[i].group_epoch != 0 &&
                   all[i].group_epoch < step_ring_group_epoch(g->ring);
        if (all[i].kind == CONTROL_CHANNEL)
            recovery_channel(g, &all[i], now);
        else if (!old)
            recovery_lost(g, &(struct death){.blame = BLAME_EXECUTING,
                                     .rank = all[i].a < RANKS_MAX ? (uint32_t)all[i].a : RANKS_MAX,
                                     .from_outside = is_from_outside(all[i].b)});
        control_close_fds(&all[i]);
    }
}

static void take_submitted(struct engine *g, struct sequence *s) {
    g->now.requests_total++;
    if (g->state == STATE_FAILED) {
        sequence_finish(g, s, ENGINE_FINISH_FAULT, "the workers cannot serve this model any more");
        return;
    }
    if (g->geometry_known && !recovery_fits(g, s)) { /* the group changed since submit looked */
        sequence_finish(
                g, s, ENGINE_FINISH_FAULT, "the workers came back with less memory: send the request again");
        return;
    }
    if (s->due_ns > 0)
        heap_push(&g->deadlines, s);
    sequence_enter(s, SEQUENCE_WAITING);
    queue_hold(g, s);
    heap_push(&g->waiting, s);
}

static void take_finish(struct engine *g, struct sequence *s, uint32_t n_tokens) {
    uint32_t generated = s->n_tokens - s->n_prompt;
    if (s->state != SEQUENCE_ENDING && generated > n_tokens)
        s->unseen = generated - n_tokens;
    sequence_finish(g, s, ENGINE_FINISH_REQUESTED, NULL);
}

static void take_inbox(struct engine *g) {
    struct engine_stream *next, *stream = inbox_take_all(g);
    for (; stream != NULL; stream = next) {
        next = stream->inbox_next; /* from here on the stream may be posted again */
        uint32_t events = atomic_exchange(&stream->events, 0);
        if ((events & EVENT_SUBMIT) && stream->sequence != NULL)
            take_submitted(g, stream->sequence);
        if ((events & EVENT_FINISH) && stream->sequence != NULL)
            take_finish(g, stream->sequence, atomic_load(&stream->finish_tokens));
        if ((events & EVENT_CANCEL) && stream->sequence != NULL)
            sequence_finish(g, stream->sequence, ENGINE_FINISH_CANCELLED, NULL);
        if ((events & EVENT_ABORT) && stream->sequence != NULL)
            sequence_finish(g, stream->sequence, ENGINE_FINISH_ABORTED, NULL);
        engine_stream_unref(stream);
    }
}

static void end_if_slow(struct engine *g, struct sequence *s, uint64_t now) {
    if (s->state != SEQUENCE_ENDING && s->stalled_since_ns > 0 &&
            now - s->stalled_since_ns >= (uint64_t)g->o.slow_reader_ms * 1000000u)
        sequence_finish(g, s, ENGINE_FINISH_SLOW, NULL);
}

static void end_late_and_slow(struct engine *g, uint64_t now) {
    while (g->deadlines.n > 0 && g->deadlines.items[0]->due_ns <= now) {
        struct sequence *s = g->deadlines.items[0];
        sequence_finish(g, s, queue_lateness(s, now), NULL);
    }
    for (uint32_t i = g->n_stalled > 0 ? g->n_running : 0; i > 0; i--)
        end_if_slow(g, g->running[i - 1], now);
    for (uint32_t i = g->n_set_back > 0 ? g->waiting.n : 0; i > 0; i--)
        if (i <= g->waiting.n && g->waiting.items[i - 1]->set_back)
            end_if_slow(g, g->waiting.items[i - 1], now);
}

static void publish_stats(struct engine *g) {
    g->now.pages_free = pools_available(&g->pools);
    g->now.pages_cached = g->now.pages_free - g->pools.n_free_pages;
    g->now.host_pages = g->prefix.n_page_units - g->prefix.n_free_page_units;
    g->now.disk_pages = g->disk.places[STEP_STORED_PAGE].n_used;
    g->now.disk_states = g->disk.places[STEP_STORED_STATE].n_used;
    g->now.snapshots = g->prefix.n_kept;
    g->now.snapshot_evictions_total = g->evictions_before + g->prefix.evictions;
    g->now.slots_free = g->pools.n_free_slots;
    g->now.running = g->n_running;
    g->now.waiting = g->waiting.n;
    g->now.suspects = g->n_suspects;
    g->now.queue_tokens = atomic_load(&g->queue.tokens);
    draft_publish(g);
    pthread_mutex_lock(&g->registry_lock);
    g->public_state = g->state;
    bool draining = g->draining;
    pthread_mutex_unlock(&g->registry_lock);
    g->now.state = draining ? "draining" : engine_state_name(g->state);
    pthread_mutex_lock(&g->stats_lock);
    bool news = !g->ready && (g->geometry_known || g->state == STATE_FAILED);
    g->ready |= news;
    g->stats = g->now;
    if (news)
        pthread_cond_broadcast(&g->ready_cond);
    pthread_mutex_unlock(&g->stats_lock);
}

/* What came back from the ranks, and what follows from it. */
static void take_answers(struct engine *g, uint64_t now) {
    for (;;) {
        struct flight_report r;
        switch (flight_next(g, now, &r)) {
        case FLIGHT_NONE:
            return;
        case FLIGHT_RETIRED:
            scheduler_measured(g, r.n_prompt_rows, r.compute_ns);
            break;
        case FLIGHT_PONG:
            break;
        case FLIGHT_READY:
            recovery_ready(g, r.geometries);
            break;
        case FLIGHT_FAULT:
            recovery_fault(g, &r.death, r.text);
            break;
        }
    }
}

/* Plans while there is room, and pings a group that has nothing to do. */
static void send_records(struct engine *g, uint64_t now) {
    int r = 1;
    if (g->ring != NULL && g->state == STATE_SERVING && disk_is_learning(g)) {
        r = g->n_flights == 0 ? flight_send_bare(g, STEP_TYPE_INDEX, now) : 0;
        if (r < 0)
            recovery_fault(g, &(struct death){.blame = BLAME_NOBODY}, "the step ring takes no more records");
        return;
    }
    while (r > 0 && g->ring != NULL && g->state == STATE_SERVING) {
        r = scheduler_plan(g, now);
        g->work_done |= r > 0;
    }
    if (r == 0 && g->ring != NULL && g->state == STATE_SERVING && g->n_flights == 0 &&
            now - g->last_record_ns >= (disk_waits(g) ? DISK_PING_NS : PING_NS))
        r = flight_send_bare(g, STEP_TYPE_PING, now);
    if (r < 0)
        recovery_fault(g, &(struct death){.blame = BLAME_NOBODY}, "the step ring takes no more records");
}

static void *engine_main(void *arg) {
    struct engine *g = arg;
    pthread_setname_np(pthread_self(), "engine");
    while (!atomic_load(&g->stop)) {
        uint64_t now = clock_ns();
        struct flight_report stuck;
        g->work_done = false;
        g->turn_ns = now;
        take_inbox(g);
        take_answers(g, now); /* before a loss is looked at: what was answered is nobody's death */
        take_controls(g, now);
        end_late_and_slow(g, now);
        send_records(g, now);
        if (flight_watch(g, now, &stuck) == FLIGHT_FAULT)
            recovery_fault(g, &stuck.death, stuck.text);
        if (g->work_done)
            g->now.step_plan_ns_total += clock_ns() - now;
        publish_stats(g); /* before the pokes: who sees an end may ask at once */
        poke_all(g);
        now = clock_ns();
        wake_wait(g, idle_ns(g, now));
    }
    return NULL;
}

/* --- create and free --- */

static int init_locks(struct engine *g) {
    pthread_condattr_t monotonic;
    pthread_mutex_init(&g->wake_lock, NULL);
    pthread_mutex_init(&g->control_lock, NULL);
    pthread_mutex_init(&g->registry_lock, NULL);
    pthread_mutex_init(&g->stats_lock, NULL);
    int r = pthread_condattr_init(&monotonic);
    if (r == 0) {
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        r = pthread_cond_init(&g->wake_cond, &monotonic);
        if (r == 0)
            r = pthread_cond_init(&g->ready_cond, &monotonic);
        pthread_condattr_destroy(&monotonic);
    }
    return -r;
}

static int check_options(const struct engine_options *o, struct error *e) {
    if (o->max_num_seqs == 0 || o->max_num_seqs > SEQS_MAX)
        return error_set(e, -EINVAL, "max-num-seqs is %u: 1 to %u are possible", o->max_num_seqs, SEQS_MAX);
    if (o->max_num_batched_tokens == 0 || o->max_num_batched_tokens > STEP_ROWS_MAX)
        return error_set(e, -EINVAL, "max-num-batched-tokens is %u: 1 to %u are possible",
                o->max_num_batched_tokens, STEP_ROWS_MAX);
    if (o->speculative_tokens > DRAFT_MAX)
        return error_set(e, -EINVAL, "speculative-tokens is %u: at most %u are possible",
                o->speculative_tokens, DRAFT_MAX);
    if (o->max_model_len > CONTEXT_MAX)
        return error_set(
                e, -EINVAL, "max-model-len is %u: at most %u is possible", o->max_model_len, CONTEXT_MAX);
    return 0;
}

int engine_create(const struct engine_options *options, struct engine **ret, struct error *e) {
    int r = check_options(options, e);
    if (r < 0)
        return r;
    struct engine *g = aligned_alloc(64, (sizeof(*g) + 63) & ~(size_t)63);
    if (g == NULL)
        return error_set(e, -ENOMEM, "no memory for the engine");
    memset(g, 0, sizeof(*g));
    g->o = *options;
    g->o.step_timeout_ms = options->step_timeout_ms > 0 ? options->step_timeout_ms : DEFAULT_TIMEOUT_MS;
    g->o.slow_reader_ms = options->slow_reader_ms > 0 ? options->slow_reader_ms : DEFAULT_TIMEOUT_MS;
    g->prefill_rows = PREFILL_ROWS_FIRST;
    speculation_init(&g->speculation);
    g->stats.state = g->now.state = "loading";
    g->stats.max_queue = g->now.max_queue = options->max_queue;
    timing_init(g);
    r = init_locks(g);
    g->buckets = calloc(REGISTRY_BUCKETS, sizeof(g->buckets[0]));
    g->writer = aligned_alloc(64, step_writer_bytes());
    if (r == 0)
        r = heap_init(&g->waiting, LIVE_REQUESTS_MAX, /* by_deadline= */ false);
    if (r == 0)
        r = heap_init(&g->deadlines, LIVE_REQUESTS_MAX, /* by_deadline= */ true);
    if (r < 0 || g->buckets == NULL || g->writer == NULL) {
        engine_free(g);
        return error_set(e, -ENOMEM, "no memory for the engine");
    }
    *ret = g;
    return 0;
}

int engine_start(struct engine *g, struct error *e) {
    int r = pthread_create(&g->thread, NULL, engine_main, g);
    if (r != 0)
        return error_set(e, -r, "cannot start the engine thread: %s", strerror(r));
    g->started = true;
    return 0;
}

void engine_drain(struct engine *g) {
    pthread_mutex_lock(&g->registry_lock);
    g->draining = true;
    pthread_mutex_unlock(&g->registry_lock);
    engine_wake(g);
}

struct engine *engine_free(struct engine *g) {
    if (g == NULL)
        return NULL;
    if (g->started) {
        engine_drain(g);
        atomic_store(&g->stop, true);
        engine_wake(g);
        pthread_join(g->thread, NULL);
    }
    take_inbox(g);
    while (g->waiting.n > 0)
        sequence_finish(g, g->waiting.items[0], ENGINE_FINISH_ABORTED, NULL);
    while (g->n_running > 0) {
        g->running[0]->in_flight = 0; /* nobody will handle the answers */
        sequence_finish(g, g->running[0], ENGINE_FINISH_ABORTED, NULL);
    }
    poke_all(g);
    for (uint32_t i = 0; i < g->n_controls; i++)
        control_close_fds(&g->controls[i]);
    step_ring_free(g->ring);
    pools_done(&g->pools);
    disk_end(g);
    prefix_done(&g->prefix);
    heap_done(&g->waiting);
    heap_done(&g->deadlines);
    free(g->buckets);
    free(g->writer);
    pthread_cond_destroy(&g->wake_cond);
    pthread_cond_destroy(&g->ready_cond);
    pthread_mutex_destroy(&g->wake_lock);
    pthread_mutex_destroy(&g->control_lock);
    pthread_mutex_destroy(&g->registry_lock);
    pthread_mutex_destroy(&g->stats_lock);
    free(g);
    return NULL;
}

/* --- from other threads --- */

int engine_control(struct engine *g, const struct control_message *m) {
    struct control_message copy = *m;
    copy.n_fds = 0;
    if (m->kind != CONTROL_GROUP_LOST && m->kind != CONTROL_CHANNEL)
        return -EINVAL;
    if (m->kind == CONTROL_CHANNEL) {
        if (m->n_fds != 1)
            return -EINVAL;
        copy.fds[0] = fcntl(m->fds[0], F_DUPFD_CLOEXEC, 3);
        if (copy.fds[0] < 0)
            return -errno;
        copy.n_fds = 1;
    }
    pthread_mutex_lock(&g->control_lock);
    bool room = g->n_controls < CONTROLS_MAX;
    if (room)
        g->controls[g->n_controls++] = copy;
    pthread_mutex_unlock(&g->control_lock);
    if (!room) {
        control_close_fds(&copy);
        return -ENOBUFS;
    }
    engine_wake(g);
    return 0;
}

void engine_cancel(struct engine *g, struct engine_stream *s) {
    inbox_post(g, s, EVENT_CANCEL);
    engine_wake(g);
}

void engine_finish(struct engine *g, struct engine_stream *s, uint32_t n_tokens) {
    atomic_store(&s->finish_tokens, n_tokens);
    inbox_post(g, s, EVENT_FINISH);
    engine_wake(g);
}

void engine_stats(struct engine *g, struct engine_stats *ret) {
    pthread_mutex_lock(&g->stats_lock);
    *ret = g->stats;
    pthread_mutex_unlock(&g->stats_lock);
}

int engine_wait_ready(struct engine *g, uint64_t timeout_ns) {
    struct timespec until = wake_timespec(clock_ns() + timeout_ns);
    int r = 0;
    pthread_mutex_lock(&g->stats_lock);
    while (!g->ready && r == 0)
        r = pthread_cond_timedwait(&g->ready_cond, &g->stats_lock, &until);
    if (g->ready)
        r = strcmp(g->stats.state, "failed") == 0 ? EPROTO : 0;
    pthread_mutex_unlock(&g->stats_lock);
    return -r;
}
