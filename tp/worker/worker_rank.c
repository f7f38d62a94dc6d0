/* worker_rank.c - see worker_rank.h. */
#include "tp/worker/worker_rank.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/sizes.h"
#include "tp/worker/step_exec.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define WAIT_NS 500000000ull /* kicks wake it; this is only so that a lost one costs no more */
#define LOOK_NS 50000ull     /* while a step runs the ring is looked into this often */

static void report(struct worker_rank *w, enum worker_rank_state state) {
    atomic_store(&w->state, state);
    uint64_t one = 1;
    ssize_t n = write(w->event_fd, &one, sizeof(one));
    (void)n; /* an eventfd that is full wakes its reader just as well */
}

static void on_progress(void *user, uint64_t done, uint64_t total, const char *what) {
    struct worker_rank *w = user;
    (void)what;
    atomic_store(&w->bytes_total, total);
    atomic_store(&w->bytes_done, done);
}

static void on_note(void *user, const char *text) {
    const struct worker_rank *w = user;
    log_notice("rank %u: %s", w->options.rank, text);
}

struct at_work { /* what the step's marks publish */
    struct step_ring *ring;
    uint64_t step;
};

static void on_mark(void *user, uint32_t layer, uint32_t operation) {
    const struct at_work *a = user;
    step_ring_progress(a->ring, a->step, layer, operation, true);
}

static bool replaced(struct worker_rank *w) {
    pthread_mutex_lock(&w->lock);
    bool r = w->next_ring != NULL;
    pthread_mutex_unlock(&w->lock);
    return r;
}

/* Takes the next ring over, waiting for one if there is none at all; false when told to stop instead. */
static bool take_ring(struct worker_rank *w) {
    pthread_mutex_lock(&w->lock);
    while (!w->next_ring && !atomic_load(&w->stop))
        pthread_cond_wait(&w->changed, &w->lock);
    struct step_ring *old = w->ring;
    bool taken = w->next_ring != NULL;
    if (taken) {
        w->ring = w->next_ring;
        w->next_ring = NULL;
        step_ring_free(old);
    }
    pthread_mutex_unlock(&w->lock);
    return taken;
}

/* Hands an answer to the coordinator. One that is gone does not read any more: its answers are dropped. */
static void complete(struct worker_rank *w, const struct step_answer *a) {
    for (;;) {
        int r = step_ring_complete(w->ring, &a->completion, a->body, a->body_bytes);
        if (r != -EAGAIN || replaced(w) || atomic_load(&w->stop))
            return;
        step_ring_wait(w->ring, WAIT_NS);
    }
}

/* Publishes where the device is, when it has moved. While a record was submitted that one counted as begun, since who
 * dies then dies of it. */
static void publish_place(struct worker_rank *w, const struct step_exec *x) {
    uint64_t step;
    uint32_t layer;
    if (!step_exec_place(x, &step, &layer) || (step == w->at_step && layer == w->at_layer))
        return;
    w->at_step = step;
    w->at_layer = layer;
    step_ring_progress(w->ring, step, layer, FORWARD_LAYER, /* busy= */ true);
}

/* Queues one record; those of other epochs are dropped. */
static void begin(struct worker_rank *w, struct step_exec *x, const void *record, uint32_t bytes) {
    struct step_header h = {0};
    memcpy(&h, record, bytes < sizeof(h) ? bytes : sizeof(h));
    if (h.group_epoch != step_ring_group_epoch(w->ring) || h.coord_epoch != step_ring_coord_epoch(w->ring)) {
        atomic_fetch_add(&w->dropped, 1);
        log_warning("rank %u: dropped a record of epochs %llu/%llu, these are %llu/%llu", w->options.rank,
                (unsigned long long)h.group_epoch, (unsigned long long)h.coord_epoch,
                (unsigned long long)step_ring_group_epoch(w->ring),
                (unsigned long long)step_ring_coord_epoch(w->ring));
        return;
    }
    struct at_work at = {.ring = w->ring, .step = h.step};
    const struct forward_hooks hooks = {.mark = on_mark, .user = &at};
    step_exec_hooks(x, &hooks);
    step_ring_progress(w->ring, h.step, 0, 0, true);
    step_exec_submit(x, record, bytes);
    step_exec_hooks(x, NULL);
    w->begun = h.step;
    w->at_step = UINT64_MAX;
}

/* Hands out the answer to the oldest record. False when the rank can not or shall not go on. */
static bool finish(struct worker_rank *w, struct step_exec *x, const struct step_answer *answer) {
    struct error e = {0};
    if (step_exec_failed(x, &e) && e.code == -ECANCELED)
        return false; /* the rank that failed answers; "it was stopped" would only hide its sentence */
    atomic_store(&w->host_ns, step_exec_host_ns(x));
    atomic_store(&w->graph_nodes, step_exec_graph_nodes(x));
    complete(w, answer);
    step_ring_progress(w->ring, w->begun, 0, 0, step_exec_in_flight(x) > 0);
    if (answer->completion.status == STEP_STATUS_FAULT &&
            e.code == 0) /* refused; a failure is logged by worker.c */
        log_error("rank %u: step %llu: %.*s", w->options.rank, (unsigned long long)answer->completion.step,
                (int)answer->body_bytes, (const char *)answer->body);
    if (answer->completion.status == STEP_STATUS_OK && answer->completion.type == STEP_TYPE_STOP) {
        atomic_store(&w->end_of_service, true);
        return false;
    }
    return !step_exec_failed(x, NULL) || step_exec_in_flight(x) > 0; /* all in flight get the sentence */
}

/* Begins the next record of the ring, if there is room behind the ones in flight. 0, -EAGAIN, or a damaged ring. */
static int begin_next(struct worker_rank *w, struct step_exec *x) {
    const void *record;
    uint32_t bytes;
    if (step_exec_in_flight(x) == STEP_EXEC_IN_FLIGHT || step_exec_failed(x, NULL))
        return -EAGAIN;
    int r = step_ring_next(w->ring, &record, &bytes);
    if (r < 0)
        return r;
    begin(w, x, record, bytes);
    step_ring_release(w->ring);
    return 0;
}

/* Until stop, a STOP record, or a failure. An answer is handed out as soon as it is there: it is looked for before the
 * next record is begun, which on a CPU takes as long as the step. */
static int serve(struct worker_rank *w, struct step_exec *x, struct error *e) {
    uint64_t patience_ns = 0; /* for the oldest in flight; 0: look into the ring first */
    if (!take_ring(w))
        return 0;
    for (;;) {
        struct step_answer answer;
        publish_place(w, x);
        if (step_exec_in_flight(x) > 0 && step_exec_collect(x, patience_ns, &answer) == 0) {
            if (!finish(w, x, &answer))
                return step_exec_failed(x, e) ? e->code : 0;
            continue;
        }
        /* Asked before looking into the ring: whatever the old coordinator committed is there by then. */
        bool switch_over = replaced(w), stop = atomic_load(&w->stop);
        int r = begin_next(w, x);
        patience_ns = r == 0 ? 0 : LOOK_NS;
        if (r != 0 && r != -EAGAIN)
            return error_set(
                    e, r, "the step ring holds nonsense: coordinator and worker are not of the same build");
        if (r == 0 || step_exec_in_flight(x) > 0)
            continue;
        if (stop)
            return 0;
        if (switch_over)
            take_ring(w);
        else
            step_ring_wait(w->ring, WAIT_NS);
    }
}

/* Near the GPU before anything is made there: memory that the driver takes for the host lies where this thread runs,
 * and threads that are started here stay where it does. */
static void go_near(struct worker_rank *w) {
    char place[32], text[160];
    cpu_set_t cores;
    k_device_place(w->options.devices[w->options.rank], place, sizeof(place));
    if (w->options.bind == CORES_OFF || !place[0])
        return;
    cores_go_near(place, text, sizeof(text));
    if (!text[0] || sched_getaffinity(0, sizeof(cores), &cores) < 0)
        return;
    log_info("rank %u %s", w->options.rank, text);
    if (w->options.threads > (uint32_t)CPU_COUNT(&cores))
        w->options.threads = (uint32_t)CPU_COUNT(&cores);
}

/* Loaded, so that the threads which did it are gone: the caches of one core have what a step needs. */
static void stay(const struct worker_rank *w, const struct rank *rank) {
    char text[160];
    if (w->options.bind != CORES_CORE || !k_runs_behind(rank->context))
        return;
    cores_stay(w->options.rank, w->options.tp, text, sizeof(text));
    if (text[0])
        log_info("rank %u %s", w->options.rank, text);
}

/* Says what the start was made of, until the first step can be taken. */
static void tell_stages(const struct worker_rank *w, const struct rank *r) {
    static const char *const names[RANK_STAGES] = {"files", "context", "weights", "memory", "other ranks"};
    uint64_t total_ns = clock_ns() - r->stage_began_ns;
    char text[160] = "";
    size_t n = 0;
    for (int i = 0; i < RANK_STAGES && n < sizeof(text); i++) {
        n += (size_t)snprintf(
                text + n, sizeof(text) - n, "%s %.2f, ", names[i], (double)r->stage_ns[i] / 1e9);
        total_ns += r->stage_ns[i];
    }
    log_info("rank %u: started in %.2f s: %sgraphs %.2f", w->options.rank, (double)total_ns / 1e9, text,
            (double)(clock_ns() - r->stage_began_ns) / 1e9);
}

static int load_and_serve(struct worker_rank *w) {
    struct rank *rank = NULL;
    struct step_exec *x = NULL;
    go_near(w);
    int r = rank_create(&w->options, &rank, &w->e);
    if (r < 0)
        return r;
    pthread_mutex_lock(&w->lock);
    w->rank = rank;
    pthread_mutex_unlock(&w->lock);
    r = step_exec_create(rank, &x, &w->e);
    if (r == 0) {
        snprintf(w->ready_text, sizeof(w->ready_text), "rank %u: %s; %s", w->options.rank,
                k_context_describe(rank->context), rank->budget.text);
        if (step_exec_graph_bytes(x))
            log_info("rank %u: graphs take %s of the device, of which %s are free now", w->options.rank,
                    SIZE_TEXT(step_exec_graph_bytes(x)), SIZE_TEXT(k_memory_free(rank->context)));
        if (rank->budget.pool_clamped && w->options.rank == 0)
            log_warning("--kv-cache-memory is clamped to %s: there is no more memory for a rank",
                    SIZE_TEXT(rank->budget.pool_clamped));
        if (rank->weights_from[0])
            log_info("rank %u: %s", w->options.rank, rank->weights_from);
        tell_stages(w, rank);
        rank_keep(rank);
        stay(w, rank);
        report(w, WORKER_RANK_READY);
        r = serve(w, x, &w->e);
    }
    pthread_mutex_lock(&w->lock);
    w->rank = NULL;
    pthread_mutex_unlock(&w->lock);
    step_exec_free(x);
    rank_free(rank);
    return r;
}

static void *thread_main(void *argument) {
    struct worker_rank *w = argument;
    char name[16];
    snprintf(name, sizeof(name), "rank %u", w->options.rank);
    pthread_setname_np(pthread_self(), name);
    report(w, load_and_serve(w) < 0 ? WORKER_RANK_FAILED : WORKER_RANK_STOPPED);
    return NULL;
}

int worker_rank_start(
        struct worker_rank *w, const struct rank_options *options, int event_fd, struct error *e) {
    *w = (struct worker_rank){.options = *options, .event_fd = event_fd};
    w->options.progress = on_progress;
    w->options.note = on_note;
    w->options.user = w;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    int r = pthread_create(&w->thread, NULL, thread_main, w);
    w->started = r == 0;
    return r == 0 ? 0
                  : error_set(e, -r, "cannot start the thread of rank %u: %s", options->rank, strerror(r));
}

void worker_rank_channel(struct worker_rank *w, struct step_ring *ring) {
    pthread_mutex_lock(&w->lock);
    step_ring_free(w->next_ring);
    w->next_ring = ring;
    pthread_cond_broadcast(&w->changed);
    if (w->ring)
        step_ring_kick_all(w->ring);
    pthread_mutex_unlock(&w->lock);
}

void worker_rank_stop(struct worker_rank *w) {
    atomic_store(&w->stop, true);
    pthread_mutex_lock(&w->lock);
    pthread_cond_broadcast(&w->changed);
    if (w->ring)
        step_ring_kick_all(w->ring);
    pthread_mutex_unlock(&w->lock);
}

void worker_rank_abort(struct worker_rank *w) {
    rank_stop_meeting(&w->options);
    pthread_mutex_lock(&w->lock);
    if (w->rank)
        rank_abort(w->rank);
    pthread_mutex_unlock(&w->lock);
}

void worker_rank_done(struct worker_rank *w) {
    if (w->started)
        pthread_join(w->thread, NULL);
    step_ring_free(w->ring);
    step_ring_free(w->next_ring);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
}
