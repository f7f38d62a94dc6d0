/* threads.c - the threads of one rank: fork, join, and waits that spin briefly and then sleep on a futex.
 *
 * Used by context.c (creation) and by every operation through team_run(). A run publishes (fn, arg, n) and
 * raises `generation`; each helper takes tasks until none is left, and the caller, who works too, waits for the
 * last helper to leave. Tasks are taken in any order: no result may depend on it. A thread that waits may be given
 * something to do meanwhile, in short pieces. */
#include "kernels/cpu/internal.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#define SPINS       4000u /* about 50 us: longer than the gap between two operations of a step */
#define THREADS_MAX 1024u
#define STACK_BYTES (2u << 20)

struct part { /* tasks of one thread */
    _Alignas(64) atomic_uint next;
    uint32_t end;
};
struct meanwhile { /* what a thread that waits has to do, and how far it is */
    struct team_idle idle;
    uint64_t at;
};
struct helper {
    struct team *team;
    uint32_t self; /* 1..; the caller is 0 */
    pthread_t thread;
};
struct team {
    _Alignas(64) atomic_uint generation; /* a new value = a new run; helpers sleep on it */
    atomic_uint sleepers;                /* helpers that sleep or are about to */
    _Alignas(64) atomic_uint busy;       /* helpers that have not left this run; the caller sleeps on it */
    atomic_uint caller_sleeps;
    team_fn fn;
    void *arg;
    struct team_idle idle; /* of the last run that had one */
    struct meanwhile of_caller;
    atomic_bool quit;
    uint32_t threads, started; /* with the caller; helpers created */
    struct part *parts;        /* [threads] */
    struct helper *helpers;
};

/* Thread `self` does its own part of the tasks first, then what others have left: the same tasks fall to the same
 * thread, and its cache, run after run. */
static void take_tasks(struct team *t, uint32_t self) {
    for (uint32_t k = 0; k < t->threads; k++) {
        struct part *p = &t->parts[(self + k) % t->threads];
        for (uint32_t i; (i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->end;)
            t->fn(t->arg, i);
    }
}

/* One short piece of what can be done while waiting; with nothing to do, a pause. */
static void wait_a_little(struct team *t, uint32_t self, struct meanwhile *m) {
    if (m->idle.fn && m->at != TEAM_IDLE_DONE)
        m->at = m->idle.fn(m->idle.arg, self, t->threads, m->at);
    else
        spin_pause();
}
/* A run that has something for threads which wait begins that anew; after others they go on with what they had. */
static void take_idle(const struct team *t, struct meanwhile *m) {
    if (t->idle.fn != m->idle.fn || t->idle.arg != m->idle.arg)
        *m = (struct meanwhile){.idle = t->idle};
}

static uint32_t next_generation(struct team *t, uint32_t seen, uint32_t self, struct meanwhile *m) {
    uint32_t now;
    for (uint32_t i = 0; i < SPINS; i++) {
        now = atomic_load_explicit(&t->generation, memory_order_acquire);
        if (now != seen)
            return now;
        wait_a_little(t, self, m);
    }
    atomic_fetch_add(&t->sleepers, 1);
    while ((now = atomic_load(&t->generation)) == seen)
        futex_wait(&t->generation, seen, 0, /* shared= */ false);
    atomic_fetch_sub(&t->sleepers, 1);
    return now;
}

static void *helper_main(void *arg) {
    const struct helper *h = arg;
    struct team *t = h->team;
    struct meanwhile m = {0};
    uint32_t seen = 0;
    for (;;) {
        seen = next_generation(t, seen, h->self, &m);
        if (atomic_load(&t->quit))
            return NULL;
        take_idle(t, &m);
        take_tasks(t, h->self);
        if (atomic_fetch_sub(&t->busy, 1) == 1 && atomic_load(&t->caller_sleeps))
            futex_wake_all(&t->busy, /* shared= */ false);
    }
}

static void raise_generation(struct team *t) {
    atomic_fetch_add(&t->generation, 1);
    if (atomic_load(&t->sleepers))
        futex_wake_all(&t->generation, /* shared= */ false);
}

/* Publishes a run of n tasks, works too, and waits until all helpers have left it. */
static void run_all(struct team *t, team_fn fn, void *arg, uint32_t n) {
    t->fn = fn;
    t->arg = arg;
    for (uint32_t i = 0; i < t->threads; i++) {
        atomic_store_explicit(
                &t->parts[i].next, (uint32_t)((uint64_t)n * i / t->threads), memory_order_relaxed);
        t->parts[i].end = (uint32_t)((uint64_t)n * (i + 1) / t->threads);
    }
    atomic_store_explicit(&t->busy, t->started, memory_order_relaxed);
    raise_generation(t);
    take_idle(t, &t->of_caller);
    take_tasks(t, 0);
    for (uint32_t i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&t->busy, memory_order_acquire) == 0)
            return;
        wait_a_little(t, 0, &t->of_caller);
    }
    atomic_store(&t->caller_sleeps, 1);
    for (uint32_t left; (left = atomic_load(&t->busy)) != 0;)
        futex_wait(&t->busy, left, 0, /* shared= */ false);
    atomic_store(&t->caller_sleeps, 0);
}

void team_run(struct team *t, team_fn fn, void *arg, uint32_t n) {
    if (n > 1 && t->started > 0) {
        run_all(t, fn, arg, n);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        fn(arg, i);
}

void team_run_idle(struct team *t, team_fn fn, void *arg, uint32_t n, const struct team_idle *idle) {
    t->idle = *idle;
    team_run(t, fn, arg, n);
}
void team_forget_idle(struct team *t) {
    if (!t->idle.fn)
        return;
    t->idle = (struct team_idle){.fn = NULL};
    run_all(t, NULL, NULL, 0);
}

uint32_t team_threads(const struct team *t) {
    return t->threads;
}

static uint32_t usable_cpus(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) < 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? (uint32_t)n : 1;
}

int team_create(uint32_t threads, struct team **ret, struct error *e) {
    struct team *t = NULL;
    pthread_attr_t attr;
    int r;

    if (threads == 0)
        threads = usable_cpus();
    if (threads > THREADS_MAX)
        return error_set(
                e, -EINVAL, "%u threads were asked for; at most %u are possible", threads, THREADS_MAX);
    t = aligned_alloc(64, sizeof *t);
    if (!t)
        return error_set(e, -ENOMEM, "no memory for the thread pool");
    *t = (struct team){.threads = threads};
    t->helpers = calloc(threads, sizeof *t->helpers);
    t->parts = aligned_alloc(64, threads * sizeof *t->parts);
    r = pthread_attr_init(&attr);
    if (!t->helpers || !t->parts || r != 0) {
        team_free(t);
        return error_set(e, -ENOMEM, "no memory for the thread pool");
    }
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    while (t->started < threads - 1) {
        struct helper *h = &t->helpers[t->started];
        *h = (struct helper){.team = t, .self = t->started + 1};
        r = pthread_create(&h->thread, &attr, helper_main, h);
        if (r != 0)
            break;
        t->started++;
    }
    pthread_attr_destroy(&attr);
    if (r != 0) {
        team_free(t);
        return error_set(
                e, -r, "cannot start %u threads; lower --threads or raise the limit on processes", threads);
    }
    *ret = t;
    return 0;
}

struct team *team_free(struct team *t) {
    if (!t)
        return NULL;
    atomic_store(&t->quit, true);
    raise_generation(t);
    for (uint32_t i = 0; i < t->started; i++)
        pthread_join(t->helpers[i].thread, NULL);
    free(t->helpers);
    free(t->parts);
    free(t);
    return NULL;
}
