/* parallel.c - see parallel.h. */
#include "kernels/shared/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define THREADS_MAX 64u

struct job {
    void (*fn)(void *arg, uint32_t i);
    void *arg;
    uint32_t n;
    atomic_uint next;
};
static void *work(void *arg) {
    struct job *j = arg;
    for (;;) {
        const uint32_t i = atomic_fetch_add(&j->next, 1);
        if (i >= j->n)
            return NULL;
        j->fn(j->arg, i);
    }
}

void parallel_run(uint32_t threads, uint32_t n, void (*fn)(void *arg, uint32_t i), void *arg) {
    struct job job = {.fn = fn, .arg = arg, .n = n};
    pthread_t others[THREADS_MAX];
    uint32_t started = 0;
    cpu_set_t set;
    if (threads == 0)
        threads = sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
    while (started + 1 < threads && started < THREADS_MAX && started + 1 < n &&
            pthread_create(&others[started], NULL, work, &job) == 0)
        started++; /* where no more can be had those that there are do the work */
    work(&job);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(others[i], NULL);
}
