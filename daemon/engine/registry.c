/* registry.c - the streams that have not ended, by caller and request id: refuses a second one and finds what to abort.
 *
 * Everything here is under registry_lock. A stream leaves when it ends, before its reader is told, so an id
 * can be used again as soon as its reader has seen the end. */
#include "daemon/engine/registry.h"

#include "daemon/engine/inbox.h"
#include "daemon/engine/queue.h"
#include "daemon/engine/wake.h"

#include "base/hash.h"

#include <errno.h>
#include <string.h>

static uint32_t bucket_of(const char *id) {
    uint64_t h = fnv1a_text(FNV1A_START, id);
    return (uint32_t)((h ^ h >> 32) % REGISTRY_BUCKETS);
}

/* The next stream of this id in a bucket's list that begins with s. An id belongs to its caller: the same id of another
 * one is another request. */
static struct engine_stream *next_of(struct engine_stream *s, const char *caller, const char *id) {
    while (s != NULL && (strcmp(s->request_id, id) != 0 || strcmp(s->caller, caller) != 0))
        s = s->hash_next;
    return s;
}

int registry_add(struct engine *g, struct engine_stream *s, uint32_t n_answers, struct error *e) {
    int r = 0;
    pthread_mutex_lock(&g->registry_lock);
    uint64_t most = (uint64_t)g->o.max_num_seqs + g->o.max_queue;
    if (g->draining)
        r = error_set(e, -ESHUTDOWN, "the server is shutting down: send the request to another one");
    else if (g->n_live >= LIVE_REQUESTS_MAX || (n_answers > 0 && g->n_live + n_answers > most))
        r = error_set(e, -EAGAIN,
                "%u requests are running or waiting, and with %u more they were over the limit of %llu: "
                "try again later",
                g->n_live, n_answers, (unsigned long long)most);
    else if (s->request_id[0] != 0 && !s->sibling &&
             next_of(g->buckets[bucket_of(s->request_id)], s->caller, s->request_id) != NULL)
        r = error_set(e, -EEXIST, "a request with the id \"%s\" is running: use another id", s->request_id);
    else
        r = queue_enter(g, s->sequence, n_answers, e);
    if (r == 0) {
        if (s->request_id[0] != 0) {
            uint32_t b = bucket_of(s->request_id);
            s->hash_next = g->buckets[b];
            g->buckets[b] = s;
        }
        s->list_next = g->streams;
        if (g->streams != NULL)
            g->streams->list_prev = s;
        g->streams = s;
        s->registered = true;
        g->n_live++;
        s->sequence->arrival = s->sequence->number = ++g->n_submitted;
        /* Under the lock, so that nobody aborts a stream that the engine has not been told of. */
        inbox_post(g, s, EVENT_SUBMIT);
    }
    pthread_mutex_unlock(&g->registry_lock);
    return r;
}

void registry_remove(struct engine *g, struct engine_stream *s) {
    pthread_mutex_lock(&g->registry_lock);
    if (s->registered) {
        struct engine_stream **at = &g->buckets[bucket_of(s->request_id)];
        while (*at != NULL && *at != s)
            at = &(*at)->hash_next;
        if (*at == s)
            *at = s->hash_next;
        if (s->list_prev != NULL)
            s->list_prev->list_next = s->list_next;
        else
            g->streams = s->list_next;
        if (s->list_next != NULL)
            s->list_next->list_prev = s->list_prev;
        s->registered = false;
        g->n_live--;
    }
    pthread_mutex_unlock(&g->registry_lock);
}

bool engine_abort(struct engine *g, const char *caller, const char *request_id) {
    pthread_mutex_lock(&g->registry_lock);
    struct engine_stream *s = request_id[0] != 0 ? g->buckets[bucket_of(request_id)] : NULL;
    bool found = false;
    while ((s = next_of(s, caller, request_id)) != NULL) {
        inbox_post(g, s, EVENT_ABORT);
        found = true;
        s = s->hash_next;
    }
    pthread_mutex_unlock(&g->registry_lock);
    if (found)
        engine_wake(g);
    return found;
}

uint32_t engine_abort_all(struct engine *g) {
    uint32_t n = 0;
    pthread_mutex_lock(&g->registry_lock);
    for (struct engine_stream *s = g->streams; s != NULL; s = s->list_next, n++)
        inbox_post(g, s, EVENT_ABORT);
    pthread_mutex_unlock(&g->registry_lock);
    if (n > 0)
        engine_wake(g);
    return n;
}
