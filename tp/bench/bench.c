/* bench.c - see bench.h: options to ranks, a meter for the memory, the tests, the report. */
#include "tp/bench/bench.h"

#include "base/log.h"
#include "tp/bench/gpu.h"
#include "tp/bench/report.h"
#include "tp/worker/worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define POOL_FRACTION 0.95    /* of what is left: of which the pool takes no more than the tests need */
#define METER_LEAST   MIB(64) /* of memory that is short: less would be in a cache */

/* Measures the memory, in a context beside the ranks': they are idle meanwhile. */
struct meter {
    struct k_context *context;
    struct k_stream *stream;
    void *memory;
    uint64_t bytes;
    uint32_t devices; /* that work at the same time, each with a memory of its own */
};

struct bench {
    struct bench_options options;
    struct group group;
    struct meter meter;
    struct report report;
    json_t *gpu_load; /* of the test that is being measured; owned; NULL = none */
};

/* GPUs that the ranks are on. */
static uint32_t devices_of(const struct rank_options *o) {
    uint64_t seen = 0;
    for (uint32_t i = 0; i < o->tp; i++)
        seen |= UINT64_C(1) << o->devices[i];
    return (uint32_t)__builtin_popcountll(seen);
}

static int meter_open(const struct bench_options *o, struct meter *m, struct error *e) {
    const uint32_t threads = worker_threads(&o->worker), tp = o->worker.rank.tp;
    const struct k_context_options options = {.device = o->worker.rank.devices[0], .threads = threads * tp};
    if (!o->memory_bytes)
        return 0;
    int r = k_context_create(&options, &m->context, e);
    if (r == 0)
        r = k_stream_create(m->context, &m->stream, e);
    if (r < 0)
        return r;
    m->devices = k_memory_shared(m->context) ? 1 : devices_of(&o->worker.rank);
    m->bytes = o->memory_bytes;
    m->memory = k_alloc(m->context, m->bytes);
    while (!m->memory && m->bytes / 2 >= METER_LEAST) {
        m->bytes /= 2;
        m->memory = k_alloc(m->context, m->bytes);
    }
    return m->memory
                   ? 0
                   : error_set(e, -ENOMEM,
                             "out of memory for measuring the memory's speed: --speed-memory 0 does without");
}

static void meter_close(struct meter *m) {
    if (m->memory)
        k_free(m->context, m->memory);
    k_stream_free(m->stream);
    k_context_free(m->context);
    *m = (struct meter){0};
}

static double meter_read(void *user) {
    struct bench *b = user;
    return k_memory_speed(b->meter.stream, b->meter.memory, b->meter.bytes) * b->meter.devices;
}

static void on_test(void *user, const struct bench_test *t) {
    struct bench *b = user;
    report_test(&b->report, t, b->gpu_load);
    b->gpu_load = NULL;
}

static void on_measured(void *user) {
    struct bench *b = user;
    b->gpu_load = bench_gpu_load(NULL);
}

/* A rank for just these tests: as many slots, rows and pages as they need, where no flag says otherwise. */
static struct rank_options rank_options_of(const struct bench_options *o) {
    const struct bench_needs needs = bench_needs_of(o);
    struct rank_options r = o->worker.rank;
    r.threads = worker_threads(&o->worker);
    r.dummy_quant = o->weights;
    r.dummy_head_quant = o->head;
    r.max_num_seqs = needs.slots;
    r.max_model_len = needs.tokens;
    r.pages = needs.pages;
    r.drafts_max = needs.drafts;
    if (r.max_num_batched_tokens && r.max_num_batched_tokens < needs.rows)
        r.max_num_batched_tokens = needs.rows;
    if (!r.kv_cache_bytes && !(r.kv_cache_fraction > 0))
        r.kv_cache_fraction = POOL_FRACTION;
    return r;
}

static int run(struct bench *b, struct error *e) {
    const struct bench_options *o = &b->options;
    const struct rank_options rank = rank_options_of(o);
    int r = meter_open(o, &b->meter, e);
    if (r == 0)
        r = group_start(&rank, &b->group, e);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < b->group.tp; i++)
        log_info("%s", b->group.ranks[i].ready_text);
    const bool on_gpu = !k_memory_shared(group_rank(&b->group, 0)->context);
    const struct bench_run tests = {.options = o,
            .group = &b->group,
            .cost = bench_cost_of(&b->group),
            .memory_rate = b->meter.memory ? meter_read : NULL,
            .measured = on_gpu ? on_measured : NULL,
            .on_test = on_test,
            .user = b};
    b->report = (struct report){.options = o, .group = &b->group, .cost = tests.cost, .table = stdout};
    if (o->json && strcmp(o->json, "-") == 0)
        b->report.table = stderr;
    if (on_gpu)
        b->report.gpu = bench_gpu(NULL);
    report_begin(&b->report);
    r = bench_run_all(&tests, e);
    return r == 0 && o->json ? report_write(&b->report, o->json, e) : r;
}

int bench_main(int argc, char **argv) {
    struct error e = {0};
    struct bench *b = calloc(1, sizeof(*b));
    if (!b)
        return EXIT_FAILURE;
    b->group.event_fd = -1;
    int status = EXIT_SUCCESS, r = bench_options_parse(argc, argv, &b->options, &e);
    log_open("shardd-bench", r == 0 ? (enum log_level)b->options.worker.log_level : LOG_LEVEL_INFO);
    if (r < 0) {
        log_error("%s", e.text);
        status = WORKER_EXIT_USAGE;
    } else if (b->options.worker.help) {
        fputs(bench_help, stdout);
    } else if ((r = run(b, &e)) < 0) {
        log_error("%s", e.text);
        status = worker_exit_status(r);
    }
    json_decref(b->gpu_load);
    report_done(&b->report);
    group_stop(&b->group);
    meter_close(&b->meter);
    bench_options_done(&b->options);
    free(b);
    return status;
}
