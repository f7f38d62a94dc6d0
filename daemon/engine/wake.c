/* wake.c - see wake.h. */
#include "daemon/engine/wake.h"

#include "base/clock.h"

#include <time.h>

void engine_wake(struct engine *g) {
    pthread_mutex_lock(&g->wake_lock);
    g->wake_pending = true;
    if (g->ring != NULL)
        step_ring_kick(g->ring);
    else
        pthread_cond_signal(&g->wake_cond);
    pthread_mutex_unlock(&g->wake_lock);
}

struct timespec wake_timespec(uint64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

void wake_wait(struct engine *g, uint64_t ns) {
    struct timespec until = wake_timespec(clock_ns() + ns);
    pthread_mutex_lock(&g->wake_lock);
    while (g->ring == NULL && !g->wake_pending && ns > 0) {
        if (pthread_cond_timedwait(&g->wake_cond, &g->wake_lock, &until) != 0)
            break;
    }
    bool pending = g->wake_pending;
    g->wake_pending = false;
    pthread_mutex_unlock(&g->wake_lock);
    /* Only this thread replaces the ring. A kick after the unlock is in the ring's wake word and is not
     * missed. */
    if (g->ring != NULL && !pending)
        step_ring_wait(g->ring, ns);
}

void wake_set_ring(struct engine *g, struct step_ring *ring) {
    pthread_mutex_lock(&g->wake_lock);
    struct step_ring *old = g->ring;
    g->ring = ring;
    g->wake_pending = true; /* a kick may have gone to the old one */
    pthread_mutex_unlock(&g->wake_lock);
    step_ring_free(old);
}
