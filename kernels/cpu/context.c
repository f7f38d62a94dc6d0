/* context.c - contexts, streams, events and graphs of the CPU library.
 *
 * Called by tp/. Operations run on the calling thread and its team when they are queued, so a stream is empty
 * whenever the caller looks; between capture begin and end they are only written down. A deferred context, for tests,
 * keeps them until somebody waits. The caller owns every
 * object and frees streams, events and graphs before their context. */
#include "kernels/cpu/internal.h"

#include <cpuid.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- context --- */

/* clang 14 has no name for it in __builtin_cpu_supports() */
static bool f16c_present(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

static bool isa_present(const struct isa *isa) {
    __builtin_cpu_init();
    if (isa == &isa_avx512_vnni && !__builtin_cpu_supports("avx512vnni"))
        return false;
    if (isa == &isa_avx512 || isa == &isa_avx512_vnni)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (isa == &isa_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c_present();
    return true;
}

static int isa_find(const char *name, const struct isa **ret, struct error *e) {
    static const struct {
        const char *name;
        const struct isa *isa;
    } best_first[] = {{"avx512", &isa_avx512_vnni}, {"avx512", &isa_avx512}, {"avx512-base", &isa_avx512},
            {"avx2", &isa_avx2}, {"plain", &isa_plain}};
    bool known = false;
    for (size_t i = 0; i < sizeof best_first / sizeof *best_first; i++) {
        if (name && strcmp(name, best_first[i].name) != 0)
            continue;
        if (isa_present(best_first[i].isa)) {
            *ret = best_first[i].isa;
            return 0;
        }
        known = name != NULL;
    }
    if (known)
        return error_set(
                e, -ENOTSUP, "this processor has no %s; leave the instruction set to be chosen", name);
    return error_set(e, -EINVAL, "unknown instruction set '%s'; use avx512, avx2 or plain", name ? name : "");
}

int k_context_create(const struct k_context_options *options, struct k_context **ret, struct error *e) {
    struct k_context *c = calloc(1, sizeof *c);
    int r;

    if (!c)
        return error_set(e, -ENOMEM, "no memory for a context");
    r = isa_find(options->isa, &c->isa, e);
    if (r < 0)
        goto fail;
    r = team_create(options->threads, &c->team, e);
    if (r < 0)
        goto fail;
    c->activations = options->activations;
    c->deferred = options->deferred;
    const uint32_t threads = team_threads(c->team);
    snprintf(c->text, sizeof c->text, "cpu %s, %" PRIu32 " thread%s", c->isa->name, threads,
            threads == 1 ? "" : "s");
    *ret = c;
    return 0;
fail:
    k_context_free(c);
    return r;
}

struct k_context *k_context_free(struct k_context *c) {
    if (c) {
        team_free(c->team);
        memory_leave(c);
    }
    free(c);
    return NULL;
}

const char *k_context_describe(const struct k_context *c) {
    return c->text;
}

bool k_runs_behind(const struct k_context *c) {
    return c->deferred;
}

int k_devices(struct k_platform *ret, struct k_device *devices, uint32_t max, struct error *e) {
    struct k_context *c = NULL;
    const uint64_t pages = (uint64_t)sysconf(_SC_PHYS_PAGES), page = (uint64_t)sysconf(_SC_PAGESIZE);
    int r = k_context_create(&(struct k_context_options){0}, &c, e);
    *ret = (struct k_platform){.kind = "cpu", .n_devices = 1};
    if (r < 0)
        return r;
    if (max > 0) {
        devices[0] = (struct k_device){.units = team_threads(c->team),
                .memory_total = pages * page,
                .memory_free = k_memory_free(c),
                .refused = devices[0].refused};
        snprintf(devices[0].name, sizeof devices[0].name, "%s", c->text);
    }
    k_context_free(c);
    return 0;
}

void k_device_place(uint32_t device, char *ret, size_t size) {
    (void)device;
    if (size)
        ret[0] = '\0';
}

/* --- streams --- */

struct call { /* followed by its arguments, padded to 16 */
    stream_fn fn;
    size_t bytes;
};
struct k_graph {
    uint8_t *calls;
    size_t used, capacity;
    uint32_t n_calls; /* ever recorded */
    bool out_of_memory;
};

int k_stream_create(struct k_context *c, struct k_stream **ret, struct error *e) {
    struct k_stream *s = calloc(1, sizeof *s);
    if (!s)
        return error_set(e, -ENOMEM, "no memory for a stream");
    s->context = c;
    if (c->deferred)
        s->queue = calloc(1, sizeof *s->queue);
    if (c->deferred && !s->queue) {
        k_stream_free(s);
        return error_set(e, -ENOMEM, "no memory for a stream");
    }
    *ret = s;
    return 0;
}
struct k_stream *k_stream_free(struct k_stream *s) {
    if (s) {
        k_graph_free(s->capture);
        k_graph_free(s->queue);
    }
    free(s);
    return NULL;
}
int k_stream_error(struct k_stream *s, struct error *e) {
    if (s->fault.code && e)
        *e = s->fault;
    return s->fault.code;
}
int k_stream_wait(struct k_stream *s, uint64_t timeout_ns, struct error *e) {
    (void)timeout_ns;
    stream_run_queue(s, NULL);
    return k_stream_error(s, e);
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

void k_stream_set_workspace(struct k_stream *s, void *device_memory, size_t bytes) {
    s->workspace = device_memory;
    s->workspace_bytes = bytes;
}
void *stream_scratch(struct k_stream *s, size_t bytes) {
    struct error e;
    if (scratch_check(s->workspace_bytes, bytes, &e) == 0)
        return s->workspace;
    stream_refused(s, &e);
    return NULL;
}

static void record(struct k_graph *g, stream_fn fn, const void *args, size_t bytes) {
    struct call call = {.fn = fn, .bytes = (bytes + 15) & ~(size_t)15};
    size_t need = g->used + sizeof call + call.bytes;
    if (need > g->capacity) {
        size_t capacity = need * 2;
        uint8_t *grown = realloc(g->calls, capacity);
        if (!grown) {
            g->out_of_memory = true;
            return;
        }
        g->calls = grown;
        g->capacity = capacity;
    }
    memcpy(g->calls + g->used, &call, sizeof call);
    memcpy(g->calls + g->used + sizeof call, args, bytes);
    g->used = need;
    g->n_calls++;
}

void stream_submit(struct k_stream *s, stream_fn fn, const void *args, size_t bytes) {
    if (s->capture)
        record(s->capture, fn, args, bytes);
    else if (s->queue)
        record(s->queue, fn, args, bytes);
    else
        fn(s, args);
}
void stream_run_queue(struct k_stream *s, const bool *passed) {
    struct k_graph *q = s->queue;
    struct call call;
    if (!q)
        return;
    if (q->out_of_memory)
        stream_fault(s, -ENOMEM, "no memory for the operations of a deferred stream");
    while (s->queue_at < q->used && !(passed && *passed)) {
        memcpy(&call, q->calls + s->queue_at, sizeof call);
        call.fn(s, q->calls + s->queue_at + sizeof call);
        s->queue_at += sizeof call + call.bytes;
    }
    if (s->queue_at == q->used)
        s->queue_at = q->used = 0;
}

int k_capture_begin(struct k_stream *s, struct error *e) {
    if (s->capture)
        return error_set(e, -EBUSY, "this stream is being captured already; end that capture first");
    s->capture = calloc(1, sizeof *s->capture);
    return s->capture ? 0 : error_set(e, -ENOMEM, "no memory for a graph");
}
int k_capture_end(struct k_stream *s, struct k_graph **ret, struct error *e) {
    struct k_graph *g = s->capture;
    if (!g)
        return error_set(e, -EINVAL, "this stream is not being captured");
    s->capture = NULL;
    if (g->out_of_memory) {
        k_graph_free(g);
        return error_set(e, -ENOMEM, "no memory for a graph");
    }
    *ret = g;
    return 0;
}
void k_graph_launch(struct k_stream *s, struct k_graph *g) {
    struct call call;
    for (size_t at = 0; at < g->used; at += sizeof call + call.bytes) {
        memcpy(&call, g->calls + at, sizeof call);
        stream_submit(s, call.fn, g->calls + at + sizeof call, call.bytes);
    }
}
uint32_t k_graph_nodes(const struct k_graph *g) {
    return g->n_calls;
}
struct k_graph *k_graph_free(struct k_graph *g) {
    if (g)
        free(g->calls);
    free(g);
    return NULL;
}

/* --- copies and events --- */

struct copy_args {
    void *to;
    const void *from;
    size_t bytes;
};
static void run_copy(struct k_stream *s, const void *args) {
    const struct copy_args *a = args;
    (void)s;
    if (a->bytes)
        memcpy(a->to, a->from, a->bytes);
}
void k_upload(struct k_stream *s, void *device_to, const void *host_from, size_t bytes) {
    struct copy_args a = {device_to, host_from, bytes};
    stream_submit(s, run_copy, &a, sizeof a);
}
void k_download(struct k_stream *s, void *host_to, const void *device_from, size_t bytes) {
    struct copy_args a = {host_to, device_from, bytes};
    stream_submit(s, run_copy, &a, sizeof a);
}

struct mark_args {
    uint32_t *word, value;
};
static void run_mark(struct k_stream *s, const void *args) {
    const struct mark_args *a = args;
    (void)s;
    __atomic_store_n(a->word, a->value, __ATOMIC_RELEASE);
}
void k_mark(struct k_stream *s, uint32_t *word, uint32_t value) {
    struct mark_args a = {word, value};
    stream_submit(s, run_mark, &a, sizeof a);
}

struct k_event {
    bool recorded; /* all that was queued before it has run when it is recorded */
    struct k_stream *stream;
};
static void run_event(struct k_stream *s, const void *args) {
    struct k_event *ev;
    (void)s;
    memcpy(&ev, args, sizeof ev);
    ev->recorded = true;
}
int k_event_create(struct k_context *c, struct k_event **ret, struct error *e) {
    struct k_event *ev = calloc(1, sizeof *ev);
    (void)c;
    if (!ev)
        return error_set(e, -ENOMEM, "no memory for an event");
    *ret = ev;
    return 0;
}
struct k_event *k_event_free(struct k_event *ev) {
    free(ev);
    return NULL;
}
void k_event_record(struct k_stream *s, struct k_event *ev) {
    ev->recorded = false;
    ev->stream = s;
    stream_submit(s, run_event, &ev, sizeof ev);
}
bool k_event_done(const struct k_event *ev) {
    return ev->recorded;
}
int k_event_wait(struct k_event *ev, uint64_t timeout_ns) {
    (void)timeout_ns;
    if (ev->stream)
        stream_run_queue(ev->stream, &ev->recorded);
    return ev->recorded ? 0 : -ETIMEDOUT; /* nobody else can record it while its owner waits here */
}
