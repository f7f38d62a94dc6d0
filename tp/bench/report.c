/* report.c - see report.h. */
#include "tp/bench/report.h"

#include "base/file.h"
#include "base/sizes.h"
#include "base/statistics.h"
#include "tp/bench/gpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void put(json_t *o, const char *name, double value) {
    json_object_set_new(o, name, json_real(value));
}
static void put_whole(json_t *o, const char *name, uint64_t value) {
    json_object_set_new(o, name, json_integer((json_int_t)value));
}

static json_t *or_null(json_t *o) {
    return o ? o : json_null();
}

/* "AMD EPYC 9654 96-Core Processor", of the first processor that /proc/cpuinfo names. */
static void host_name(char *ret, size_t size) {
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];
    snprintf(ret, size, "unknown");
    while (f && fgets(line, sizeof(line), f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(ret, size, "%s", colon + 1 + strspn(colon + 1, " "));
        break;
    }
    if (f)
        fclose(f);
}

/* --- the beginning --- */

static void put_form(json_t *o, const char *name, const struct quant_matrix *form) {
    if (!form)
        return;
    json_object_set_new(o, name, json_string(form->label));
    if (form->group)
        put_whole(o, "group_size", form->group);
}

static json_t *cost_object(const struct bench_cost *c) {
    json_t *o = json_object();
    put(o, "weights", c->weights);
    put(o, "kv_per_position", c->kv);
    put(o, "state_per_sequence", c->state);
    put(o, "embedding_row", c->embedding);
    put(o, "multiply_adds_per_token", c->multiply_adds);
    return o;
}

static const char *kv_dtype_name(enum k_dtype t) {
    return t == K_F32 ? "fp32" : t == K_INT8 ? "int8" : "bf16";
}
void report_begin(struct report *r) {
    const struct bench_options *o = r->options;
    const struct rank *rank = group_rank(r->group, 0);
    const char *kernels = k_context_describe(rank->context);
    json_t *weights = json_object();
    char host[128];
    host_name(host, sizeof(host));
    put(weights, "bytes", r->cost.weights);
    put_form(weights, "layers", o->weights);
    put_form(weights, "head", o->head);
    r->root = json_object();
    json_object_set_new(r->root, "version", json_string(SHARDD_VERSION));
    json_object_set_new(r->root, "kernels", json_string(kernels));
    json_object_set_new(r->root, "host", json_string(host));
    json_object_set_new(r->root, "model", json_string(o->worker.rank.model_dir));
    put_whole(r->root, "tensor_parallel_size", r->group->tp);
    put_whole(r->root, "threads", rank->options.threads);
    put_whole(r->root, "rows_max", r->group->geometry.rows_max);
    put_whole(r->root, "kv_pages", r->group->geometry.pages);
    json_object_set_new(r->root, "kv_dtype", json_string(kv_dtype_name(rank->budget.pool.kv_dtype)));
    json_object_set_new(
            r->root, "state_dtype", json_string(rank->budget.pool.state_dtype == K_F16 ? "fp16" : "fp32"));
    json_object_set_new(r->root, "weights", weights);
    json_object_set_new(r->root, "cost", cost_object(&r->cost));
    json_object_set_new(r->root, "gpu", or_null(r->gpu));
    r->gpu = NULL;
    json_object_set_new(r->root, "mtp", json_boolean(r->group->geometry.has_mtp));
    json_object_set_new(r->root, "tests", json_array());
    fprintf(r->table, "%s: %s of weights, tp %u, %s (%s)\n", o->worker.rank.model_dir,
            SIZE_TEXT((uint64_t)r->cost.weights), r->group->tp, kernels, host);
    bench_gpu_print(r->table, json_object_get(r->root, "gpu"));
    fprintf(r->table, "%-13s %7s %5s %19s %10s %10s %9s %9s %9s%s%s\n", "test", "depth", "batch", "tokens/s",
            "ms a step", "MB a token", "GB/s", "of memory", "TFLOP/s",
            k_runs_behind(rank->context) ? "  host us  nodes" : "",
            o->drafts.at[o->drafts.n - 1] ? "  a round  of plain  speed-up" : "");
    fflush(r->table);
}

/* --- a test --- */

/* Tokens per second of each measurement, and what follows from them. */
struct figures {
    double *rates;
    double mean, deviation, step_ms;
    double flops;              /* per second; prompts */
    double bytes;              /* per second; decoding */
    double round;              /* with drafts: tokens of a sequence in one */
    double of_plain, speed_up; /* 0: no such test without drafts */
};

static struct figures figures_of(const struct report *r, const struct bench_test *t) {
    struct figures f = {.rates = calloc(t->n + 1u, sizeof(f.rates[0]))};
    for (uint32_t i = 0; i < t->n && f.rates; i++)
        f.rates[i] = t->n_tokens / t->seconds[i];
    if (!f.rates)
        return f;
    f.mean = statistics_mean(f.rates, t->n);
    f.deviation = statistics_deviation(f.rates, t->n);
    f.step_ms = 1e3 * statistics_mean(t->seconds, t->n) / t->steps;
    f.flops = t->kind == BENCH_PROMPT ? 2 * r->cost.multiply_adds * f.mean : 0;
    f.bytes = t->kind == BENCH_DECODE ? t->step_bytes * t->steps * f.mean / t->n_tokens : 0;
    f.round = t->drafts ? t->n_tokens / ((double)t->batch * t->steps) : 0;
    if (t->drafts && t->n && r->plain.batch == t->batch && r->plain.depth == t->depth) {
        f.of_plain = f.step_ms / r->plain.step_ms;
        f.speed_up = f.mean / r->plain.rate;
    }
    return f;
}

static void print_round(const struct report *r, const struct figures *f) {
    fprintf(r->table, " %8.2f", f->round);
    if (f->speed_up > 0)
        fprintf(r->table, " %9.3f %9.2f", f->of_plain, f->speed_up);
}

static void print_test(const struct report *r, const struct bench_test *t, const struct figures *f) {
    char name[32], rate[48];
    if (t->drafts)
        snprintf(name, sizeof(name), "decode %u+%u", t->tokens, t->drafts);
    else
        snprintf(name, sizeof(name), "%s %u", t->kind == BENCH_PROMPT ? "prompt" : "decode", t->tokens);
    fprintf(r->table, "%-13s %7u %5u ", name, t->depth, t->batch);
    if (t->n == 0) {
        fprintf(r->table, "skipped: %s\n", t->skipped);
        return;
    }
    snprintf(rate, sizeof(rate), "%.2f +- %.2f", f->mean, f->deviation);
    fprintf(r->table, "%19s %10.3f", rate, f->step_ms);
    if (t->kind == BENCH_PROMPT)
        fprintf(r->table, " %10s %9s %9s %9.3f", "", "", "", f->flops / 1e12);
    else
        fprintf(r->table, " %10.1f %9.1f", t->step_bytes * t->steps / t->n_tokens / 1e6, f->bytes / 1e9);
    if (t->kind == BENCH_DECODE && t->memory_rate > 0)
        fprintf(r->table, " %7.1f %% %9s", 100 * f->bytes / t->memory_rate, "");
    else if (t->kind == BENCH_DECODE)
        fprintf(r->table, " %9s %9s", "", "");
    if (t->behind)
        fprintf(r->table, " %8.1f %6u", t->host_seconds * 1e6, t->graph_nodes);
    if (t->drafts)
        print_round(r, f);
    fputc('\n', r->table);
}

static json_t *rates_object(const struct bench_test *t, const struct figures *f) {
    json_t *o = json_object(), *samples = json_array();
    put(o, "mean", f->mean);
    put(o, "deviation", f->deviation);
    for (uint32_t i = 0; i < t->n; i++)
        json_array_append_new(samples, json_real(f->rates[i]));
    json_object_set_new(o, "samples", samples);
    return o;
}

static void put_figures(json_t *o, const struct bench_test *t, const struct figures *f) {
    json_object_set_new(o, "tokens_per_second", rates_object(t, f));
    put(o, "step_ms", f->step_ms);
    json_object_set_new(o, "host_us", t->behind ? json_real(t->host_seconds * 1e6) : json_null());
    json_object_set_new(o, "host_mean_us", t->behind ? json_real(t->host_mean * 1e6) : json_null());
    json_object_set_new(o, "graph_nodes", t->behind ? json_integer(t->graph_nodes) : json_null());
    if (t->memory_rate > 0)
        put(o, "memory_bytes_per_second", t->memory_rate);
    if (t->kind == BENCH_PROMPT) {
        put(o, "flops_per_second", f->flops);
        return;
    }
    if (t->drafts) {
        put(o, "acceptance", t->acceptance / 1e3);
        put(o, "tokens_per_round", f->round);
        json_object_set_new(o, "round_of_plain", f->speed_up > 0 ? json_real(f->of_plain) : json_null());
        json_object_set_new(o, "speed_up", f->speed_up > 0 ? json_real(f->speed_up) : json_null());
    }
    put(o, "bytes_per_step", t->step_bytes);
    put(o, "bytes_per_token", t->step_bytes * t->steps / t->n_tokens);
    put(o, "bytes_per_second", f->bytes);
    if (t->memory_rate > 0)
        put(o, "part_of_memory", f->bytes / t->memory_rate);
}

void report_test(struct report *r, const struct bench_test *t, json_t *gpu_load) {
    struct figures f = figures_of(r, t);
    json_t *o = json_object();
    json_object_set_new(o, "kind", json_string(t->kind == BENCH_PROMPT ? "prompt" : "decode"));
    put_whole(o, "tokens", t->tokens);
    put_whole(o, "depth", t->depth);
    put_whole(o, "batch", t->batch);
    put_whole(o, "drafts", t->drafts);
    if (t->n) {
        put_whole(o, "steps", t->steps);
        put_figures(o, t, &f);
        json_object_set_new(o, "gpu_load", or_null(gpu_load));
    } else {
        json_object_set_new(o, "skipped", json_string(t->skipped));
        json_decref(gpu_load);
    }
    if (t->n && t->kind == BENCH_DECODE && !t->drafts) {
        r->plain.depth = t->depth;
        r->plain.batch = t->batch;
        r->plain.step_ms = f.step_ms;
        r->plain.rate = f.mean;
    }
    json_array_append_new(json_object_get(r->root, "tests"), o);
    print_test(r, t, &f);
    fflush(r->table);
    free(f.rates);
}

/* --- the end --- */

int report_write(const struct report *r, const char *path, struct error *e) {
    char *json = json_dumps(r->root, JSON_INDENT(2) | JSON_REAL_PRECISION(12)), *text = NULL;
    int rc = 0;
    if (!json || asprintf(&text, "%s\n", json) < 0)
        rc = error_set(e, -ENOMEM, "out of memory for the figures");
    else if (strcmp(path, "-") == 0)
        rc = fputs(text, stdout) < 0 || fflush(stdout) != 0 ? error_set(e, -EIO, "stdout cannot be written")
                                                            : 0;
    else
        rc = file_replace(path, text, strlen(text), 0644, e);
    free(text);
    free(json);
    return rc;
}

void report_done(struct report *r) {
    json_decref(r->root);
    json_decref(r->gpu);
    r->root = r->gpu = NULL;
}
