/* context.c - contexts, streams, events and graphs of the CUDA library.
 *
 * Called by tp/. A context is one device as one rank sees it, a stream a CUDA stream of its own, a graph what CUDA
 * captured. The caller owns every object and frees streams, events and graphs before their context. Calls enter the
 * context's device first, so that threads may serve different ones. */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/exchange.h"
#include "kernels/cuda/internal.h"

#include "base/clock.h"
#include "kernels/shared/bounds.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPIN_NS  (50 * 1000ull) /* of a wait: then the thread sleeps between two looks */
#define SLEEP_NS (20 * 1000ull)

/* --- failed calls --- */

static int errno_of(cudaError_t r) {
    return r == cudaErrorMemoryAllocation ? -ENOMEM : -EIO;
}
static const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}
int cuda_failed(const struct k_context *c, cudaError_t r, const char *call, const char *file, int line,
        struct error *e) {
    cudaGetLastError(); /* it is told here, and is not the next call's */
    return error_set(e, errno_of(r), "device %d: %s (%s:%d): %s", c->device, call, file_name(file), line,
            cudaGetErrorString(r));
}
bool stream_queued(struct k_stream *s, cudaError_t r, const char *call, const char *file, int line) {
    struct error e;
    s->made = (struct made){.d_from = NULL};
    if (r == cudaSuccess)
        return true;
    cuda_failed(s->context, r, call, file, line, &e);
    stream_fault(s, e.code, "%s", e.text);
    return false;
}

/* --- context --- */

int context_enter(const struct k_context *c, struct error *e) {
    CUDA_TRY(c, cudaSetDevice(c->device), e);
    return 0;
}

static int context_fill(struct k_context *c, struct error *e) {
    struct cudaDeviceProp p;
    int r = device_open(c->device, &p, e);
    if (r < 0)
        return r;
    c->size = (struct device_size){.sms = (uint32_t)p.multiProcessorCount,
            .shared_of_sm = p.sharedMemPerMultiprocessor,
            .shared_of_block = p.sharedMemPerBlockOptin,
            .l2 = (size_t)p.l2CacheSize,
            .once_most = (size_t)p.accessPolicyMaxWindowSize};
    snprintf(c->text, sizeof c->text, "cuda %s (sm_%d%d), device %d", p.name, p.major, p.minor, c->device);
    CUDA_TRY(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), e);
    return 0;
}

int k_context_create(const struct k_context_options *options, struct k_context **ret, struct error *e) {
    struct k_context *c;
    int r;
    c = calloc(1, sizeof *c);
    if (!c)
        return error_set(e, -ENOMEM, "no memory for a context");
    c->device = (int)options->device;
    c->kept.fd = -1;
    c->threads = options->threads;
    c->activations = options->activations;
    c->fast = options->fast;
    c->all_reduce = options->all_reduce;
    c->blas_known = options->own_products || !options->fast;
    r = context_fill(c, e);
    if (r < 0)
        c = k_context_free(c);
    else
        *ret = c;
    return r;
}
struct k_context *k_context_free(struct k_context *c) {
    if (c && c->stream) {
        staging_free(c);
        kept_done(c);
        cudaStreamDestroy(c->stream);
    }
    if (c)
        blas_close(c->blas);
    free(c);
    return NULL;
}
bool context_library(struct k_context *c) {
    const size_t n = strlen(c->text);
    struct error e;
    if (c->blas_known)
        return c->blas != NULL;
    c->blas_known = true;
    if (context_enter(c, &e) == 0 && blas_open(&c->blas, &e) == 0)
        snprintf(c->text + n, sizeof c->text - n, ", BF16 prompts by %s", blas_describe(c->blas));
    else
        snprintf(c->text + n, sizeof c->text - n, ", BF16 prompts by own kernels (%s)", e.text);
    return c->blas != NULL;
}
const char *k_context_describe(const struct k_context *c) {
    return c->text;
}
bool k_runs_behind(const struct k_context *c) {
    (void)c;
    return true;
}

/* --- streams --- */

static int stream_open(struct k_stream *s, struct error *e) {
    struct branch *b = &s->branch;
    CUDA_TRY(s->context, cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), e);
    CUDA_TRY(s->context, cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking), e);
    CUDA_TRY(s->context, cudaEventCreateWithFlags(&b->forked, cudaEventDisableTiming), e);
    CUDA_TRY(s->context, cudaEventCreateWithFlags(&b->joined, cudaEventDisableTiming), e);
    return 0;
}
int k_stream_create(struct k_context *c, struct k_stream **ret, struct error *e) {
    struct k_stream *s;
    int r = context_enter(c, e);
    if (r < 0)
        return r;
    s = calloc(1, sizeof *s);
    if (!s)
        return error_set(e, -ENOMEM, "no memory for a stream");
    s->context = c;
    s->found.d_claimed = k_alloc(c, sizeof *s->found.d_claimed);
    s->found.told = k_host_alloc(c, sizeof *s->found.told);
    s->d_counters =
            k_alloc(c, (2 * SPLIT_BLOCKS_MAX + NEXT_RUNS_MAX * (1 + ACTIVATION_RUN)) * sizeof *s->d_counters);
    s->d_arrivals = k_alloc(c, ARRIVALS_MAX * sizeof *s->d_arrivals);
    if (!s->found.d_claimed || !s->found.told || !s->d_counters || !s->d_arrivals) {
        k_stream_free(s);
        return error_set(e, -ENOMEM, "device %d: no memory for a stream", c->device);
    }
    r = stream_open(s, e);
    if (r < 0)
        k_stream_free(s);
    else
        *ret = s;
    return r;
}
struct k_stream *k_stream_free(struct k_stream *s) {
    cudaGraph_t graph;
    if (!s)
        return NULL;
    context_enter(s->context, NULL);
    if (s->capturing && cudaStreamEndCapture(s->stream, &graph) == cudaSuccess)
        cudaGraphDestroy(graph);
    if (s->branch.forked)
        cudaEventDestroy(s->branch.forked);
    if (s->branch.joined)
        cudaEventDestroy(s->branch.joined);
    if (s->branch.stream)
        cudaStreamDestroy(s->branch.stream);
    if (s->stream)
        cudaStreamDestroy(s->stream);
    k_free(s->context, s->found.d_claimed);
    k_host_free(s->context, s->found.told);
    k_free(s->context, s->d_counters);
    k_free(s->context, s->d_arrivals);
    free(s);
    return NULL;
}

bool stream_fork(struct k_stream *s) {
    return CUDA_QUEUED(s, cudaEventRecord(s->branch.forked, s->stream)) &&
           CUDA_QUEUED(s, cudaStreamWaitEvent(s->branch.stream, s->branch.forked, 0));
}
bool stream_join(struct k_stream *s) {
    return CUDA_QUEUED(s, cudaEventRecord(s->branch.joined, s->branch.stream)) &&
           CUDA_QUEUED(s, cudaStreamWaitEvent(s->stream, s->branch.joined, 0));
}

void stream_fault(struct k_stream *s, int code, const char *format, ...) {
    va_list ap;
    if (s->fault.code)
        return;
    va_start(ap, format);
    error_setv(&s->fault, code, format, ap);
    va_end(ap);
}
void stream_refused(struct k_stream *s, const struct error *e) {
    if (!s->fault.code)
        s->fault = *e;
}
/* Says what a kernel has found, with the words of kernels/cpu. */
static void stream_hear(struct k_stream *s) {
    const struct device_fault *f = s->found.told;
    struct error e;
    switch (__atomic_load_n(&f->kind, __ATOMIC_ACQUIRE)) {
    case DEVICE_FAULT_ID:
        refuse_id((uint32_t)f->c, (uint32_t)f->a, (uint32_t)f->b, &e);
        break;
    case DEVICE_FAULT_DEPTH:
        refuse_depth(f->a, (uint32_t)f->b, &e);
        break;
    case DEVICE_FAULT_ROWS:
        refuse_rows((uint32_t)f->a, (uint32_t)f->b, (uint32_t)f->c, (uint32_t)f->d, &e);
        break;
    case DEVICE_FAULT_DRAFTS:
        drafts_check(&(struct k_plan){.n_entries = 1},
                &(struct k_entry){
                        .slot = (uint32_t)f->a, .kind = K_ENTRY_CONTINUE, .n_rows = 1 + (uint32_t)f->b},
                (uint32_t)f->c, &e);
        break;
    case DEVICE_FAULT_LEFT:
        refuse_drafts((uint32_t)f->a, (uint32_t)f->b, (uint32_t)f->c, &e);
        break;
    case DEVICE_FAULT_EXCHANGE:
        if (f->a == EXCHANGE_ABORTED)
            error_set(&e, -ECANCELED, "the group of ranks was stopped while rank %u took part in a step",
                    (uint32_t)f->b);
        else
            error_set(&e, -ETIMEDOUT, "rank %u waited in vain for rank %u, in exchange %u of the group",
                    (uint32_t)f->b, (uint32_t)f->c, (uint32_t)f->d);
        break;
    default:
        return;
    }
    stream_refused(s, &e);
}
int k_stream_error(struct k_stream *s, struct error *e) {
    if (!s->fault.code && !s->capturing) {
        const cudaError_t r = cudaStreamQuery(s->stream);
        if (r != cudaErrorNotReady)
            stream_queued(s, r, "what was queued", __FILE__, __LINE__);
    }
    stream_hear(s);
    if (s->fault.code && e)
        *e = s->fault;
    return s->fault.code;
}

/* Looks until it is done: first all the time, since a step's end is near, then with pauses. */
static cudaError_t wait_until(cudaError_t (*look)(void *), void *arg, uint64_t timeout_ns) {
    const uint64_t begin = clock_ns();
    const struct timespec pause = {.tv_nsec = SLEEP_NS};
    for (;;) {
        const cudaError_t r = look(arg);
        const uint64_t passed = clock_ns() - begin;
        if (r != cudaErrorNotReady || (timeout_ns && passed >= timeout_ns))
            return r;
        if (passed < SPIN_NS)
            sched_yield();
        else
            nanosleep(&pause, NULL);
    }
}
static cudaError_t look_at_stream(void *arg) {
    return cudaStreamQuery(((struct k_stream *)arg)->stream);
}
int k_stream_wait(struct k_stream *s, uint64_t timeout_ns, struct error *e) {
    if (!s->capturing) {
        words_send(s);
        const cudaError_t r = wait_until(look_at_stream, s, timeout_ns);
        if (r == cudaErrorNotReady)
            return error_set(e, -ETIMEDOUT, "device %d did not finish in %.1f s", s->context->device,
                    (double)timeout_ns / 1e9);
        stream_queued(s, r, "what was queued", __FILE__, __LINE__);
    }
    stream_hear(s);
    if (s->fault.code && e)
        *e = s->fault;
    return s->fault.code;
}

bool stream_enter(struct k_stream *s) { /* queues nothing */
    const cudaError_t r = cudaSetDevice(s->context->device);
    return r == cudaSuccess || stream_queued(s, r, "cudaSetDevice", __FILE__, __LINE__);
}

void k_stream_set_workspace(struct k_stream *s, void *device_memory, size_t bytes) {
    s->d_workspace = device_memory;
    s->workspace_bytes = bytes;
}
void *stream_scratch(struct k_stream *s, size_t bytes) {
    struct error e;
    if (scratch_check(s->workspace_bytes, bytes, &e) == 0)
        return s->d_workspace;
    stream_refused(s, &e);
    return NULL;
}

void k_mark(struct k_stream *s, uint32_t *word, uint32_t value) {
    const struct made made = s->made; /* which a mark leaves as it is */
    if (!s->capturing)                /* with what comes beside it */
        words_put(s, word, &value, 1);
    else if (!CUDA_QUEUED(s, queue_mark(s->stream, word, value)))
        return;
    s->made = made;
}

/* --- events --- */

struct k_event {
    struct k_context *context;
    cudaEvent_t event;
    bool recorded; /* CUDA calls one that never was done */
};
int k_event_create(struct k_context *c, struct k_event **ret, struct error *e) {
    struct k_event *ev;
    int r = context_enter(c, e);
    if (r < 0)
        return r;
    ev = calloc(1, sizeof *ev);
    if (!ev)
        return error_set(e, -ENOMEM, "no memory for an event");
    ev->context = c;
    const cudaError_t made = cudaEventCreateWithFlags(&ev->event, cudaEventDisableTiming);
    if (made != cudaSuccess) {
        free(ev);
        return cuda_failed(c, made, "cudaEventCreateWithFlags", __FILE__, __LINE__, e);
    }
    *ret = ev;
    return 0;
}
struct k_event *k_event_free(struct k_event *ev) {
    if (ev)
        cudaEventDestroy(ev->event);
    free(ev);
    return NULL;
}
void k_event_record(struct k_stream *s, struct k_event *ev) {
    if (s->capturing) { /* CUDA would take it, and never say that it is done */
        stream_fault(s, -ENOTSUP, "an event cannot be recorded into a graph; record it after the launch");
        return;
    }
    ev->recorded = CUDA_QUEUED(s, cudaEventRecord(ev->event, s->stream));
}
bool k_event_done(const struct k_event *ev) {
    return ev->recorded && cudaEventQuery(ev->event) == cudaSuccess;
}
static cudaError_t look_at_event(void *arg) {
    return cudaEventQuery(((struct k_event *)arg)->event);
}
int k_event_wait(struct k_event *ev, uint64_t timeout_ns) {
    if (!ev->recorded)
        return -ETIMEDOUT;
    const cudaError_t r = wait_until(look_at_event, ev, timeout_ns);
    if (r == cudaErrorNotReady)
        return -ETIMEDOUT;
    return r == cudaSuccess ? 0 : errno_of(r);
}

/* --- graphs --- */

struct k_graph {
    struct k_context *context;
    cudaGraphExec_t exec;
    size_t n_nodes;
};
int k_capture_begin(struct k_stream *s, struct error *e) {
    if (s->capturing)
        return error_set(e, -EBUSY, "this stream is being captured already; end that capture first");
    int r = context_enter(s->context, e);
    if (r < 0)
        return r;
    words_send(s); /* they are no part of what is captured */
    CUDA_TRY(s->context, cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal), e);
    s->capturing = true;
    s->made = (struct made){.d_from = NULL}; /* what is captured is not queued here */
    return 0;
}
int k_capture_end(struct k_stream *s, struct k_graph **ret, struct error *e) {
    cudaGraph_t graph = NULL;
    struct k_graph *g;
    if (!s->capturing)
        return error_set(e, -EINVAL, "this stream is not being captured");
    s->capturing = false;
    s->made = (struct made){.d_from = NULL};
    CUDA_TRY(s->context, cudaStreamEndCapture(s->stream, &graph), e);
    g = calloc(1, sizeof *g);
    if (!g) {
        cudaGraphDestroy(graph);
        return error_set(e, -ENOMEM, "no memory for a graph");
    }
    g->context = s->context;
    cudaError_t made = cudaGraphGetNodes(graph, NULL, &g->n_nodes);
    if (made == cudaSuccess)
        made = cudaGraphInstantiate(&g->exec, graph, 0);
    cudaGraphDestroy(graph);
    if (made == cudaSuccess) /* takes its device memory now, and not when it is launched first */
        made = cudaGraphUpload(g->exec, s->stream);
    if (made != cudaSuccess) {
        k_graph_free(g);
        return cuda_failed(s->context, made, "cudaGraphInstantiate", __FILE__, __LINE__, e);
    }
    *ret = g;
    return 0;
}
void k_graph_launch(struct k_stream *s, struct k_graph *g) {
    if (stream_enter(s))
        CUDA_QUEUED(s, cudaGraphLaunch(g->exec, s->stream));
}
uint32_t k_graph_nodes(const struct k_graph *g) {
    return (uint32_t)g->n_nodes;
}
struct k_graph *k_graph_free(struct k_graph *g) {
    if (g && g->exec)
        cudaGraphExecDestroy(g->exec);
    free(g);
    return NULL;
}
