/* offline.c - see offline.h: the ranks' threads and the records they execute. offline_run.c makes the
 * records. */
#include "tp/worker/offline.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct offline_thread {
    struct offline *group;
    struct rank_options options;
    pthread_t thread;
    bool started;
    struct rank *rank;
    struct step_exec *exec;
    struct step_answer answer;
    int status; /* of creation */
    struct error e;
};

struct offline {
    uint32_t tp;
    struct offline_thread threads[RANKS_MAX];
    struct step_geometry geometry;
    void *comm;
    size_t comm_bytes;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t job;       /* number of the record that is to be executed */
    uint32_t n_done;    /* threads that have finished the job (0 = creation) */
    const void *record; /* of the job */
    uint32_t record_bytes;
    bool stop;
};

static void *thread_main(void *argument) {
    struct offline_thread *t = argument;
    struct offline *o = t->group;
    t->status = rank_create(&t->options, &t->rank, &t->e);
    if (t->status == 0)
        t->status = step_exec_create(t->rank, &t->exec, &t->e);
    pthread_mutex_lock(&o->lock);
    for (uint64_t seen = 0;;) {
        o->n_done++;
        pthread_cond_broadcast(&o->changed);
        while (!o->stop && o->job == seen)
            pthread_cond_wait(&o->changed, &o->lock);
        if (o->stop)
            break;
        seen = o->job;
        pthread_mutex_unlock(&o->lock);
        step_exec_record(t->exec, o->record, o->record_bytes, &t->answer);
        pthread_mutex_lock(&o->lock);
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

static void wait_all(struct offline *o) {
    pthread_mutex_lock(&o->lock);
    while (o->n_done < o->tp)
        pthread_cond_wait(&o->changed, &o->lock);
    pthread_mutex_unlock(&o->lock);
}

static int start_threads(struct offline *o, const struct rank_options *options, struct error *e) {
    for (uint32_t i = 0; i < o->tp; i++) {
        struct offline_thread *t = &o->threads[i];
        t->group = o;
        t->options = *options;
        t->options.rank = i;
        t->options.comm_region = o->comm;
        t->options.comm_bytes = o->comm_bytes;
        if (i > 0)
            t->options.progress = NULL;
        int r = pthread_create(&t->thread, NULL, thread_main, t);
        if (r != 0) {
            o->tp = i; /* only these can be waited for and joined */
            return error_set(e, -r, "cannot start a thread for rank %u: %s", i, strerror(r));
        }
        t->started = true;
    }
    wait_all(o);
    const struct offline_thread *failed = NULL; /* by itself, rather than because another one did */
    for (uint32_t i = 0; i < o->tp; i++)
        if (o->threads[i].status < 0 && (!failed || failed->status == -ECANCELED))
            failed = &o->threads[i];
    if (failed && e)
        *e = failed->e;
    return failed ? failed->status : 0;
}

/* Every rank answers RESET with its geometry; what all of them can do is the least of each. */
static int read_geometry(struct offline *o, struct error *e) {
    for (uint32_t i = 0; i < o->tp; i++) {
        struct step_geometry g;
        memcpy(&g, o->threads[i].answer.body, sizeof(g));
        if (i == 0)
            o->geometry = g;
        if (g.fingerprint != o->geometry.fingerprint)
            return error_set(e, -EINVAL, "rank %u holds other weights than rank 0", i);
        o->geometry.slots = g.slots < o->geometry.slots ? g.slots : o->geometry.slots;
        o->geometry.pages = g.pages < o->geometry.pages ? g.pages : o->geometry.pages;
        if (g.max_model_len < o->geometry.max_model_len) {
            o->geometry.max_model_len = g.max_model_len;
            o->geometry.pages_per_slot = g.pages_per_slot;
        }
    }
    return 0;
}

int offline_create(const struct rank_options *options, struct offline **ret, struct error *e) {
    struct offline *o = calloc(1, sizeof(*o));
    if (!o)
        return error_set(e, -ENOMEM, "out of memory for the ranks");
    pthread_mutex_init(&o->lock, NULL);
    pthread_cond_init(&o->changed, NULL);
    int r = rank_comm_bytes(options, &o->comm_bytes, e);
    if (r < 0)
        goto fail;
    if (o->comm_bytes) {
        o->comm = mmap(NULL, o->comm_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (o->comm == MAP_FAILED) {
            o->comm = NULL;
            r = error_set(e, -errno, "cannot map %zu bytes for the ranks to exchange data", o->comm_bytes);
            goto fail;
        }
    }
    o->tp = options->tp;
    r = start_threads(o, options, e);
    if (r == 0)
        r = offline_reset(o, e);
    if (r == 0)
        r = read_geometry(o, e);
    if (r < 0)
        goto fail;
    *ret = o;
    return 0;
fail:
    offline_free(o);
    return r;
}

struct offline *offline_free(struct offline *o) {
    if (!o)
        return NULL;
    pthread_mutex_lock(&o->lock);
    o->stop = true;
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
    for (uint32_t i = 0; i < RANKS_MAX; i++)
        if (o->threads[i].started)
            pthread_join(o->threads[i].thread, NULL);
    for (uint32_t i = 0; i < RANKS_MAX; i++) {
        step_exec_free(o->threads[i].exec);
        rank_free(o->threads[i].rank);
    }
    if (o->comm)
        munmap(o->comm, o->comm_bytes);
    pthread_cond_destroy(&o->changed);
    pthread_mutex_destroy(&o->lock);
    free(o);
    return NULL;
}

/* The rank to blame: one that was only stopped because another failed is not it. */
static const struct offline_thread *first_fault(const struct offline *o) {
    const struct offline_thread *found = NULL;
    for (uint32_t i = 0; i < o->tp; i++) {
        const struct offline_thread *t = &o->threads[i];
        struct error e = {0};
        if (t->answer.completion.status == STEP_STATUS_OK)
            continue;
        if (!step_exec_failed(t->exec, &e) || e.code != -ECANCELED)
            return t;
        if (!found)
            found = t;
    }
    return found;
}

static int check_answers(const struct offline *o, struct error *e) {
    const struct offline_thread *bad = first_fault(o);
    if (bad)
        return error_set(e, -EIO, "rank %u: %.*s", bad->options.rank, (int)bad->answer.body_bytes,
                (const char *)bad->answer.body);
    for (uint32_t i = 1; i < o->tp; i++)
        if (o->threads[i].answer.completion.checksum != o->threads[0].answer.completion.checksum)
            return error_set(e, -EIO, "rank %u sampled other ids than rank 0", i);
    return 0;
}

int offline_record(struct offline *o, const void *record, uint32_t bytes, struct error *e) {
    pthread_mutex_lock(&o->lock);
    o->record = record;
    o->record_bytes = bytes;
    o->n_done = 0;
    o->job++;
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
    wait_all(o);
    return check_answers(o, e);
}

int offline_reset(struct offline *o, struct error *e) {
    const struct step_header reset = {.magic = STEP_MAGIC,
            .protocol = STEP_PROTOCOL,
            .type = STEP_TYPE_RESET,
            .record_bytes = sizeof(reset)};
    return offline_record(o, &reset, sizeof(reset), e);
}

const struct step_answer *offline_answer(const struct offline *o, uint32_t rank) {
    return &o->threads[rank].answer;
}

const struct step_geometry *offline_geometry(const struct offline *o) {
    return &o->geometry;
}

struct rank *offline_rank(struct offline *o, uint32_t rank) {
    return o->threads[rank].rank;
}

struct step_exec *offline_exec(struct offline *o, uint32_t rank) {
    return o->threads[rank].exec;
}
