/* record.c - see record.h. */
#include "launcher/bench/record.h"

#include "base/statistics.h"
#include "launcher/client/client.h"

#include <stdlib.h>
#include <string.h>

bool limits_parse(const char *text, struct limits *ret) {
    struct limits l = {0};
    const struct {
        const char *name;
        double *at;
    } names[] = {{"ttft:", &l.ttft}, {"tpot:", &l.tpot}, {"e2e:", &l.e2e}};
    enum { NAMES = sizeof(names) / sizeof(names[0]) };
    for (const char *at = text;; at++) {
        size_t i = 0;
        char *end;
        while (i < NAMES && strncmp(at, names[i].name, strlen(names[i].name)) != 0)
            i++;
        if (i == NAMES || *names[i].at > 0)
            return false;
        at += strlen(names[i].name);
        *names[i].at = strtod(at, &end);
        if (end == at || !(*names[i].at > 0 && *names[i].at < 1e9) || (*end && *end != ','))
            return false;
        at = end;
        if (!*at)
            break;
    }
    *ret = l;
    return true;
}

static double ms_between(uint64_t from, uint64_t to) {
    return (double)(to - from) / 1e6;
}
static double tpot_of(const struct record *r) {
    return r->tokens > 1 ? ms_between(r->first_ns, r->last_ns) / (r->tokens - 1) : 0;
}
static bool ended_well(const struct record *r) {
    return r->finished && r->code == 0;
}

/* Sorts x. */
static struct spread spread_of(double *x, size_t n) {
    statistics_sort(x, n);
    return (struct spread){.mean = statistics_mean(x, n),
            .p50 = statistics_percentile(x, n, 0.5),
            .p90 = statistics_percentile(x, n, 0.9),
            .p99 = statistics_percentile(x, n, 0.99),
            .n = n};
}

static bool is_good(const struct record *r, const struct limits *l) {
    return (!(l->ttft > 0) || (r->first_ns && ms_between(r->sent_ns, r->first_ns) <= l->ttft)) &&
           (!(l->tpot > 0) || tpot_of(r) <= l->tpot) &&
           (!(l->e2e > 0) || ms_between(r->sent_ns, r->end_ns) <= l->e2e);
}

bool summary_make(const struct record *records, size_t n, double *gaps, size_t n_gaps,
        const struct limits *limits, struct summary *ret) {
    struct summary s = {.requests = n};
    double *times = calloc(3 * n + 1, sizeof(times[0])), *ttft = times, *tpot = times + n,
           *e2e = times + 2 * n;
    size_t n_ttft = 0, n_tpot = 0;
    uint64_t begin = UINT64_MAX, end = 0;
    if (!times)
        return false;
    for (size_t i = 0; i < n; i++) {
        const struct record *r = &records[i];
        begin = r->sent_ns < begin ? r->sent_ns : begin;
        end = r->end_ns > end ? r->end_ns : end;
        if (!ended_well(r)) {
            s.errors[r->code > 0 && r->code < RECORD_CODES ? r->code : 2]++; /* 2: UNKNOWN */
            continue;
        }
        s.prompt_tokens += r->prompt_tokens;
        s.tokens += r->tokens;
        s.good += is_good(r, limits);
        if (r->first_ns)
            ttft[n_ttft++] = ms_between(r->sent_ns, r->first_ns);
        if (r->tokens > 1)
            tpot[n_tpot++] = tpot_of(r);
        e2e[s.completed++] = ms_between(r->sent_ns, r->end_ns);
    }
    s.seconds = n ? (double)(end - begin) / 1e9 : 0;
    s.ttft = spread_of(ttft, n_ttft);
    s.tpot = spread_of(tpot, n_tpot);
    s.itl = spread_of(gaps, n_gaps);
    s.e2e = spread_of(e2e, s.completed);
    free(times);
    *ret = s;
    return true;
}

static double per_second(const struct summary *s, double n) {
    return s->seconds > 0 ? n / s->seconds : 0;
}

static void print_spread(FILE *out, const char *name, const struct spread *s) {
    fprintf(out, "%-8s %10.2f %10.2f %10.2f %10.2f\n", name, s->mean, s->p50, s->p90, s->p99);
}

void summary_print(FILE *out, const struct summary *s, const struct limits *limits) {
    fprintf(out, "%zu of %zu requests completed in %.2f s, %llu prompt and %llu output tokens\n",
            s->completed, s->requests, s->seconds, (unsigned long long)s->prompt_tokens,
            (unsigned long long)s->tokens);
    for (int i = 0; i < RECORD_CODES; i++)
        if (s->errors[i])
            fprintf(out, "  failed: %zu %s\n", s->errors[i], client_status_name(i));
    fprintf(out, "%.3f requests/s, %.2f output tokens/s, %.2f tokens/s in all\n",
            per_second(s, (double)s->completed), per_second(s, (double)s->tokens),
            per_second(s, (double)(s->tokens + s->prompt_tokens)));
    if (limits->ttft > 0 || limits->tpot > 0 || limits->e2e > 0)
        fprintf(out, "goodput: %zu requests within the limits, %.3f/s\n", s->good,
                per_second(s, (double)s->good));
    fprintf(out, "%-8s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90", "p99");
    print_spread(out, "TTFT", &s->ttft);
    print_spread(out, "TPOT", &s->tpot);
    print_spread(out, "ITL", &s->itl);
    print_spread(out, "e2e", &s->e2e);
}

static json_t *spread_json(const struct spread *s) {
    return json_pack("{s:I, s:f, s:f, s:f, s:f}", "n", (json_int_t)s->n, "mean", s->mean, "p50", s->p50,
            "p90", s->p90, "p99", s->p99);
}

static json_t *goodput_json(const struct summary *s, const struct limits *l) {
    if (!(l->ttft > 0 || l->tpot > 0 || l->e2e > 0))
        return json_null();
    return json_pack("{s:f, s:f, s:f, s:I, s:f}", "ttft_ms", l->ttft, "tpot_ms", l->tpot, "e2e_ms", l->e2e,
            "requests", (json_int_t)s->good, "requests_per_second", per_second(s, (double)s->good));
}

json_t *summary_json(const struct summary *s, const struct limits *limits) {
    json_t *errors = json_object();
    for (int i = 0; i < RECORD_CODES; i++)
        if (s->errors[i])
            json_object_set_new(errors, client_status_name(i), json_integer((json_int_t)s->errors[i]));
    return json_pack("{s:f, s:{s:I,s:I,s:o}, s:{s:I,s:I}, s:{s:f,s:f,s:f}, s:{s:o,s:o,s:o,s:o}, s:o}",
            "seconds", s->seconds, "requests", "sent", (json_int_t)s->requests, "completed",
            (json_int_t)s->completed, "errors", errors, "tokens", "prompt", (json_int_t)s->prompt_tokens,
            "output", (json_int_t)s->tokens, "throughput", "requests_per_second",
            per_second(s, (double)s->completed), "output_tokens_per_second", per_second(s, (double)s->tokens),
            "total_tokens_per_second", per_second(s, (double)(s->tokens + s->prompt_tokens)), "latency_ms",
            "ttft", spread_json(&s->ttft), "tpot", spread_json(&s->tpot), "itl", spread_json(&s->itl), "e2e",
            spread_json(&s->e2e), "goodput", goodput_json(s, limits));
}
