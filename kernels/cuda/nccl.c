/* nccl.c - see nccl.h. The few types of NCCL are declared here, from its documentation ("NCCL API"), so that no header
 * of it is needed.
 *
 * The communicator does not block: a call may return before it is done, and is asked until it is, with a limit. What
 * aborts it waits for graphs that have its kernels; so that happens on a thread of its own, which is left behind where
 * it does not end. */
#include "kernels/cuda/nccl.h"

#include "base/clock.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAUSE_NS        200000
#define CALL_SECONDS    30 /* of a call that is queued: it connects ranks when it is the first of its kind */
#define ABORT_SECONDS   5
#define LEAST_VERSION   21400 /* the first whose communicators need not block */
#define CONFIG_MAGIC    0xcafebeefu
#define TYPE_FLOAT      7 /* ncclFloat32 */
#define OPERATION_SUM   0 /* ncclSum */
#define RESULT_PROGRESS 7 /* ncclInProgress */

struct id {
    uint8_t bytes[NCCL_ID_BYTES];
};
struct config { /* the begin of ncclConfig_t, which says how long it is */
    size_t size;
    unsigned magic, version;
    int blocking;
};
struct nccl {
    void *library;
    pthread_mutex_t lock; /* of communicator */
    void *communicator;   /* NULL: not joined yet, or aborted */
    const atomic_uint *stopped;
    uint32_t tp, rank;
    char text[64];

    int (*get_version)(int *ret);
    int (*get_id)(struct id *ret);
    int (*init)(void **communicator, int ranks, struct id id, int rank, struct config *config);
    int (*state)(void *communicator, int *ret);
    int (*abort)(void *communicator);
    int (*all_reduce)(const void *from, void *to, size_t count, int type, int operation, void *communicator,
            cudaStream_t s);
    int (*all_gather)(const void *from, void *to, size_t count, int type, void *communicator, cudaStream_t s);
    const char *(*error_text)(int result);
};

/* --- waits --- */

/* The result of a call that has begun, once it is done. */
static int finish(struct nccl *n, int result, uint64_t limit_ns, const char *what, struct error *e) {
    const uint64_t begin = clock_ns();
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    while (result == RESULT_PROGRESS) {
        if (atomic_load(n->stopped))
            return error_set(
                    e, -ECANCELED, "rank %u: the group was stopped during %s of %s", n->rank, what, n->text);
        if (clock_ns() - begin > limit_ns)
            return error_set(e, -ETIMEDOUT, "rank %u: %s of %s was not done in %.0f s", n->rank, what,
                    n->text, (double)limit_ns * 1e-9);
        nanosleep(&pause, NULL);
        int asked = n->communicator ? n->state(n->communicator, &result) : 0;
        result = asked ? asked : result;
    }
    if (result != 0)
        return error_set(
                e, -EIO, "rank %u: %s of %s failed: %s", n->rank, what, n->text, n->error_text(result));
    return 0;
}

/* --- the library --- */

static bool resolve(struct nccl *n) {
    const struct {
        void *to;
        const char *name;
    } names[] = {{&n->get_version, "ncclGetVersion"}, {&n->get_id, "ncclGetUniqueId"},
            {&n->init, "ncclCommInitRankConfig"}, {&n->state, "ncclCommGetAsyncError"},
            {&n->abort, "ncclCommAbort"}, {&n->all_reduce, "ncclAllReduce"},
            {&n->all_gather, "ncclAllGather"}, {&n->error_text, "ncclGetErrorString"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *f = dlsym(n->library, names[i].name);
        if (!f)
            return false;
        memcpy(names[i].to, &f, sizeof f);
    }
    return true;
}
int nccl_open(struct nccl **ret, struct error *e) {
    int version = 0;
    struct nccl *n = calloc(1, sizeof *n);
    if (!n)
        return error_set(e, -ENOMEM, "no memory for a communicator of NCCL");
    pthread_mutex_init(&n->lock, NULL);
    n->library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!n->library) {
        nccl_close(n);
        return error_set(e, -ENOENT,
                "no libnccl.so.2 is found; install libnccl2, or set LD_LIBRARY_PATH to its folder");
    }
    if (!resolve(n) || n->get_version(&version) != 0 || version < LEAST_VERSION) {
        nccl_close(n);
        return error_set(e, -ENOTSUP, "libnccl.so.2 is older than 2.14, or lacks a function");
    }
    snprintf(n->text, sizeof n->text, "NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    *ret = n;
    return 0;
}
const char *nccl_describe(const struct nccl *n) {
    return n->text;
}

int nccl_new_id(struct nccl *n, uint8_t ret[NCCL_ID_BYTES], struct error *e) {
    struct id id;
    const int result = n->get_id(&id);
    if (result != 0)
        return error_set(e, -EIO, "%s makes no id: %s", n->text, n->error_text(result));
    memcpy(ret, id.bytes, sizeof id.bytes);
    return 0;
}
int nccl_join(struct nccl *n, const uint8_t id[NCCL_ID_BYTES], uint32_t tp, uint32_t rank,
        const atomic_uint *stopped, uint64_t limit_ns, struct error *e) {
    struct config config = {.size = sizeof config, .magic = CONFIG_MAGIC, .version = LEAST_VERSION};
    struct id same;
    void *communicator = NULL;
    memcpy(same.bytes, id, sizeof same.bytes);
    n->stopped = stopped;
    n->tp = tp;
    n->rank = rank;
    const int result = n->init(&communicator, (int)tp, same, (int)rank, &config);
    pthread_mutex_lock(&n->lock);
    n->communicator = communicator;
    const int r = finish(n, result, limit_ns, "the start", e);
    pthread_mutex_unlock(&n->lock);
    return r;
}

/* --- sums --- */

static int queue(struct nccl *n, bool gather, cudaStream_t s, const float *d_from, float *d_to, size_t count,
        struct error *e) {
    int r;
    pthread_mutex_lock(&n->lock);
    if (n->communicator) {
        const int result =
                gather ? n->all_gather(d_from, d_to, count, TYPE_FLOAT, n->communicator, s)
                       : n->all_reduce(d_from, d_to, count, TYPE_FLOAT, OPERATION_SUM, n->communicator, s);
        r = finish(n, result, CALL_SECONDS * UINT64_C(1000000000), gather ? "a gather" : "a sum", e);
    } else
        r = error_set(e, -ECANCELED, "rank %u: the group was stopped", n->rank);
    pthread_mutex_unlock(&n->lock);
    return r;
}
int nccl_sum(
        struct nccl *n, cudaStream_t s, const float *d_from, float *d_to, size_t count, struct error *e) {
    return queue(n, /* gather= */ false, s, d_from, d_to, count, e);
}
int nccl_gather(
        struct nccl *n, cudaStream_t s, const float *d_from, float *d_to, size_t count, struct error *e) {
    return queue(n, /* gather= */ true, s, d_from, d_to, count, e);
}

/* --- its end --- */

bool nccl_failed(struct nccl *n) {
    int result = 0;
    if (pthread_mutex_trylock(&n->lock) != 0)
        return false; /* somebody is with it, and finds that for itself */
    if (n->communicator && n->state(n->communicator, &result) != 0)
        result = -1;
    pthread_mutex_unlock(&n->lock);
    return result != 0 && result != RESULT_PROGRESS;
}

struct ending {
    int (*abort)(void *communicator);
    void *communicator;
};
static void *end_main(void *arg) {
    struct ending *end = arg;
    end->abort(end->communicator);
    free(end);
    return NULL;
}
/* Whether the library is done with it. */
static bool end(struct nccl *n, void *communicator) {
    struct ending *what = malloc(sizeof *what);
    struct timespec until;
    pthread_t t;
    if (!what)
        return false;
    *what = (struct ending){.abort = n->abort, .communicator = communicator};
    if (pthread_create(&t, NULL, end_main, what) != 0) {
        free(what);
        return false;
    }
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ABORT_SECONDS;
    if (pthread_timedjoin_np(t, NULL, &until) == 0)
        return true;
    pthread_detach(t);
    return false;
}
void nccl_abort(struct nccl *n) {
    pthread_mutex_lock(&n->lock);
    void *communicator = n->communicator;
    n->communicator = NULL;
    pthread_mutex_unlock(&n->lock);
    if (communicator && !end(n, communicator))
        n->library = NULL; /* it goes on running there: the library stays */
}
struct nccl *nccl_close(struct nccl *n) {
    if (!n)
        return NULL;
    nccl_abort(n);
    if (n->library)
        dlclose(n->library);
    pthread_mutex_destroy(&n->lock);
    free(n);
    return NULL;
}
