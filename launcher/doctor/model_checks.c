/* model_checks.c - would this model fit, with which lengths, and what would have to change? The sums are the worker's
 * own (`--plan`), for the device that has the least memory free. */
#include "launcher/doctor/checkup.h"

#include "base/sizes.h"
#include "launcher/argv.h"
#include "launcher/ask.h"
#include "launcher/pass.h"
#include "launcher/programs.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define WHERE           "model"
#define PLAN_TIMEOUT_MS 60000u /* headers of a model on a slow disk */

struct plan_question {
    const char *model;
    char worker[PATH_MAX];
    bool by_cpu; /* for a GPU, but the CUDA worker is not there: its own differs a little */
    uint64_t memory_bytes;
    uint32_t tp;
};

static uint64_t number(const json_t *o, const char *key) {
    const json_int_t value = json_integer_value(json_object_get(o, key));
    return value > 0 ? (uint64_t)value : 0;
}

static const char *text_of(const json_t *o, const char *key) {
    const char *text = json_string_value(json_object_get(o, key));
    return text ? text : "";
}

/* --- asking --- */

/* The least of what the devices of the ranks have free; 0 = nothing is known. */
static uint64_t gpu_memory(const struct checkup *c) {
    uint64_t least = devices_memory_least(c->cuda_probe, &c->ranks);
    for (uint32_t i = 0; !least && i < c->nvml.n_gpus; i++)
        if (checkup_uses(c, i) && nvml_known(&c->nvml.gpus[i], NVML_MEMORY_FREE))
            least = c->nvml.gpus[i].readings[NVML_MEMORY_FREE].value;
    return least;
}

static void pass(struct argv *a, const struct options *o, enum option_id id) {
    const struct option_value *v = &o->values[id];
    char flag[64];
    snprintf(flag, sizeof(flag), "--%s", option_table[id].name);
    if (v->text)
        argv_add_flag(a, flag, "%s", v->text);
}

static int ask(const struct checkup *c, const struct plan_question *q, json_t **ret, struct error *e) {
    static const enum option_id told[] = {OPT_LOAD_FORMAT, OPT_MAX_MODEL_LEN, OPT_MAX_NUM_SEQS,
            OPT_MAX_NUM_BATCHED_TOKENS, OPT_KV_CACHE_DTYPE, OPT_RECURRENT_STATE_DTYPE, OPT_KV_CACHE_MEMORY,
            OPT_DRAFT_VOCAB};
    struct argv a = {0};
    argv_add(&a, "%s", q->worker);
    argv_add_flag(&a, "--model", "%s", q->model);
    argv_add_flag(&a, "--tensor-parallel-size", "%u", q->tp);
    argv_add_flag(&a, "--plan", "%" PRIu64, q->memory_bytes);
    for (size_t i = 0; i < sizeof(told) / sizeof(told[0]); i++)
        pass(&a, c->options, told[i]);
    pass_speculation(&a, c->options);
    int r = a.failed ? error_set(e, -ENOMEM, "no memory for a command line")
                     : ask_program(a.words, PLAN_TIMEOUT_MS, ret, e);
    argv_done(&a);
    if (r == 0 && *text_of(*ret, "error")) {
        r = error_set(e, -EINVAL, "%s", text_of(*ret, "error"));
        json_decref(*ret);
        *ret = NULL;
    }
    return r;
}

/* --- judging --- */

static void tell_needs(struct checkup *c, const struct plan_question *q) {
    const json_t *p = c->plan;
    const uint64_t embedding = number(p, "embedding_bytes"), mapped = number(p, "mapped_bytes");
    char table[96] = "";
    if (embedding)
        snprintf(table, sizeof(table), " (the embedding %s of it)", SIZE_TEXT(embedding));
    else if (mapped)
        snprintf(table, sizeof(table), " and the embedding %s, mapped once", SIZE_TEXT(mapped));
    char who[32] = "a rank takes";
    if (q->tp > 1)
        snprintf(who, sizeof(who), "each of %u ranks takes", q->tp);
    found(&c->findings, WHERE, "model.needs", FOUND_OK,
            "%s%s: weights %s%s, scratch %s, KV %s a token, state %s a sequence", who,
            q->by_cpu ? ", as the CPU worker counts" : "", SIZE_TEXT(number(p, "weight_bytes")), table,
            SIZE_TEXT(number(p, "scratch_bytes")), SIZE_TEXT(number(p, "token_bytes")),
            SIZE_TEXT(number(p, "slot_bytes")));
}

/* GPUs that can be used. */
static uint32_t gpus_usable(const struct checkup *c) {
    const json_t *devices = json_object_get(c->cuda_probe, "devices");
    uint32_t n = 0;
    for (size_t i = 0; i < json_array_size(devices); i++)
        n += json_is_true(json_object_get(json_array_get(devices, i), "usable"));
    return n;
}

/* The fewest ranks that the model fits with, when each has what the one that was asked about has; 0 = none. */
static uint32_t ranks_that_fit(const struct checkup *c, struct plan_question q) {
    for (q.tp = c->tp * 2; q.tp <= RANKS_MAX; q.tp *= 2) {
        json_t *plan = NULL;
        struct error e;
        const bool fits = ask(c, &q, &plan, &e) == 0 && json_is_true(json_object_get(plan, "fits"));
        json_decref(plan);
        if (fits)
            return q.tp;
    }
    return 0;
}

static void tell_misfit(struct checkup *c, const struct plan_question *q) {
    struct findings *f = &c->findings;
    found(f, WHERE, "model.fits", FOUND_PROBLEM, "%s", text_of(c->plan, "text"));
    const uint32_t ranks = c->cuda ? ranks_that_fit(c, *q) : 0;
    if (ranks && ranks <= gpus_usable(c))
        advise(f, "--tensor-parallel-size %u: it fits on %u of the GPUs here.", ranks, ranks);
    else if (ranks)
        advise(f,
                "It would fit on %u GPUs like this. With what is here: free the GPU's memory, or take INT4 weights "
                "(`shardd quantize`), a lower --max-num-batched-tokens, or --device cpu.",
                ranks);
    else if (c->cuda)
        advise(f,
                "Free the GPU's memory, take INT4 weights (`shardd quantize`), a lower --max-num-batched-tokens, a "
                "larger GPU, or --device cpu.");
    else
        advise(f,
                "Take INT4 weights (`shardd quantize`), a lower --max-num-batched-tokens, or a machine with more "
                "memory.");
}

/* What a person asked for and does not get is a warning; what only a default wanted is good to know. */
static void tell_clamped(struct checkup *c) {
    const json_t *p = c->plan;
    struct findings *f = &c->findings;
    const uint64_t length = number(p, "served_model_len"), wanted = number(p, "max_model_len");
    const uint64_t slots = number(p, "slots"), seqs = number(p, "max_num_seqs");
    const bool kv_given = options_given(c->options, OPT_KV_CACHE_MEMORY);
    if (length < wanted) {
        found(f, WHERE, "model.length",
                options_given(c->options, OPT_MAX_MODEL_LEN) ? FOUND_WARNING : FOUND_NOTE,
                "a sequence can have %" PRIu64 " tokens, not %" PRIu64, length, wanted);
        advise(f,
                kv_given
                        ? "A larger --kv-cache-memory or a lower --max-num-seqs allows longer ones."
                        : "A lower --max-num-seqs, or --kv-cache-memory 0.9 (half of what is left is the default), "
                          "allows longer ones.");
    }
    if (slots < seqs) {
        found(f, WHERE, "model.sequences",
                options_given(c->options, OPT_MAX_NUM_SEQS) ? FOUND_WARNING : FOUND_NOTE,
                "%" PRIu64 " sequences run at the same time, not %" PRIu64, slots, seqs);
        advise(f,
                kv_given ? "A larger --kv-cache-memory allows more." : "--kv-cache-memory 0.9 allows more.");
    }
    if (length == wanted && slots == seqs && number(p, "pages") < slots * number(p, "pages_per_slot"))
        found(f, WHERE, "model.pages", FOUND_NOTE,
                "%" PRIu64
                " tokens fit at the same time, of all sequences together; all at their full length would need %s",
                number(p, "pages") * 64, SIZE_TEXT(number(p, "wanted_bytes")));
}

static void judge(struct checkup *c, const struct plan_question *q) {
    if (!json_is_true(json_object_get(c->plan, "fits"))) {
        tell_misfit(c, q);
        return;
    }
    found(&c->findings, WHERE, "model.fits", FOUND_OK, "fits: %s", text_of(c->plan, "text"));
    tell_clamped(c);
}

/* The worker that would serve counts; for a GPU without one the CPU's is asked, which is near. */
static int find_worker(struct checkup *c, struct plan_question *q, struct error *e) {
    const char *libexec = options_text(c->options, OPT_LIBEXEC_DIR);
    if (c->cuda && program_find("shardd-worker-cuda", libexec, q->worker, e) == 0)
        return 0;
    q->by_cpu = c->cuda;
    return program_find("shardd-worker-cpu", libexec, q->worker, e);
}

/* Memory that nothing is known of is as good as endless: what the model needs is told, whether it fits is not. */
#define MEMORY_UNKNOWN (UINT64_MAX / 4)

static int make_plan(struct checkup *c, struct plan_question *q, struct error *e) {
    int r = find_worker(c, q, e);
    if (r == 0)
        r = ask(c, q, &c->plan, e);
    const uint64_t table = number(c->plan, "mapped_bytes");
    if (r < 0 || !q->by_cpu || table == 0 || q->memory_bytes <= table)
        return r;
    q->memory_bytes -= table; /* a GPU has it in its own memory */
    json_decref(c->plan);
    c->plan = NULL;
    return ask(c, q, &c->plan, e);
}

void check_model(struct checkup *c) {
    struct plan_question q = {.model = options_text(c->options, OPT_MODEL), .tp = c->tp};
    struct error e = {0};
    if (!q.model)
        return;
    q.memory_bytes = c->cuda ? gpu_memory(c) : host_memory_left(&c->host) / c->tp;
    if (q.memory_bytes == 0)
        q.memory_bytes = MEMORY_UNKNOWN;
    const bool told = q.memory_bytes != MEMORY_UNKNOWN;
    if (make_plan(c, &q, &e) < 0) {
        found(&c->findings, WHERE, "model.readable", FOUND_PROBLEM, "%s", e.text);
        advise(&c->findings, "`shardd inspect %.300s` says more.", q.model);
        return;
    }
    tell_needs(c, &q);
    if (told)
        judge(c, &q);
    else
        found(&c->findings, WHERE, "model.fits", FOUND_NOTE,
                "whether it fits is not known: nothing tells how much memory is free");
}
