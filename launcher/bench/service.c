/* service.c - see service.h. One thread: requests are started when they are due, and their chunks are timed as they
 * come out of the completion queue. */
#include "launcher/bench/service.h"

#include "base/clock.h"
#include "base/file.h"
#include "launcher/bench/load.h"
#include "launcher/bench/record.h"
#include "launcher/client/client.h"
#include "launcher/client/interrupt.h"
#include "launcher/verbs.h"
#include "shardd/v1/shardd.pb-c.h"

#include <errno.h>
#include <grpc/status.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define POLL_MS       50u
#define TIMEOUT_MS    5000u /* of what is asked before the test */
#define GAPS_AT_FIRST 4096u

struct request {
    struct test *test;
    struct record *record;
    struct client_call *call; /* NULL = not under way */
};

struct test {
    const struct options *options;
    struct load load;
    struct limits limits;
    struct client *client;
    uint32_t vocab_size, max_model_len;
    struct record *records;   /* [load.n] */
    struct request *requests; /* [load.n] */
    size_t started, ended;
    double *gaps; /* milliseconds */
    size_t n_gaps, gaps_size;
    char first_error[1100];
    bool out_of_memory, interrupted;
};

/* --- one request --- */

static void add_gap(struct test *t, double ms) {
    if (t->n_gaps == t->gaps_size) {
        const size_t size = t->gaps_size ? 2 * t->gaps_size : GAPS_AT_FIRST;
        double *more = realloc(t->gaps, size * sizeof(more[0]));
        if (!more) {
            t->out_of_memory = true;
            return;
        }
        t->gaps = more;
        t->gaps_size = size;
    }
    t->gaps[t->n_gaps++] = ms;
}

static bool on_chunk(void *user, const uint8_t *data, size_t bytes) {
    struct request *q = user;
    struct record *r = q->record;
    const uint64_t now = clock_ns();
    Shardd__V1__GenerateChunk *chunk = shardd__v1__generate_chunk__unpack(NULL, bytes, data);
    if (!chunk)
        return false;
    if (chunk->n_tokens) {
        if (r->first_ns)
            add_gap(q->test, (double)(now - r->last_ns) / 1e6);
        else
            r->first_ns = now;
        r->last_ns = now;
        r->tokens += chunk->n_tokens;
    }
    if (chunk->started)
        r->prompt_tokens = chunk->started->prompt_tokens;
    r->finished |= chunk->finish != NULL;
    shardd__v1__generate_chunk__free_unpacked(chunk, NULL);
    return true;
}

static void on_end(void *user, const struct client_status *status) {
    struct request *q = user;
    struct test *t = q->test;
    q->record->end_ns = clock_ns();
    q->record->code = status->code;
    q->call = NULL;
    t->ended++;
    if (status->code != GRPC_STATUS_OK && !t->first_error[0])
        snprintf(t->first_error, sizeof(t->first_error), "%s: %s", client_status_name(status->code),
                status->message);
}

static int start(struct test *t, struct error *e) {
    struct request *q = &t->requests[t->started];
    uint8_t *bytes = NULL;
    size_t n = 0;
    int rc = load_request(&t->load, t->options, t->started, t->vocab_size, &bytes, &n, e);
    if (rc < 0)
        return rc;
    *q = (struct request){.test = t, .record = &t->records[t->started]};
    q->record->sent_ns = clock_ns();
    q->call = client_start(t->client, "/shardd.v1.Shardd/Generate", bytes, n,
            options_number(t->options, OPT_TIMEOUT), on_chunk, on_end, q);
    free(bytes);
    if (!q->call)
        return error_set(e, -ENOMEM, "no memory for a call");
    t->started++;
    return 0;
}

/* --- all of them --- */

static void cancel_all(struct test *t) {
    for (size_t i = 0; i < t->started; i++)
        if (t->requests[i].call)
            client_cancel(t->requests[i].call);
}

static int run(struct test *t, struct error *e) {
    const size_t most = options_given(t->options, OPT_CONCURRENCY)
                                ? options_number(t->options, OPT_CONCURRENCY)
                        : t->load.rate > 0 ? t->load.n
                                           : 1;
    uint64_t state = t->load.seed, due = clock_ns();
    size_t n = t->load.n;
    bool stopped = false;
    int rc = 0;
    while (t->ended < n) {
        const uint64_t now = clock_ns();
        const bool room = t->started < n && t->started - t->ended < most;
        if (room && now >= due && rc == 0) {
            rc = start(t, e);
            due += load_gap_ns(&t->load, &state);
            continue;
        }
        if ((interrupt_seen() || rc < 0 || t->out_of_memory) && !stopped) {
            stopped = true;
            t->interrupted = interrupt_seen();
            n = t->started;
            cancel_all(t);
        }
        uint64_t wait_ms = room && !stopped ? (due - now) / 1000000 : POLL_MS;
        client_poll(t->client, wait_ms < POLL_MS ? wait_ms : POLL_MS);
    }
    return rc < 0 || !t->out_of_memory ? rc : error_set(e, -ENOMEM, "no memory for the times");
}

/* --- the service, and what is told --- */

static bool on_model(void *user, const uint8_t *data, size_t bytes) {
    struct test *t = user;
    Shardd__V1__GetModelInfoResponse *m = shardd__v1__get_model_info_response__unpack(NULL, bytes, data);
    if (!m)
        return false;
    t->vocab_size = m->vocab_size;
    t->max_model_len = m->max_model_len;
    shardd__v1__get_model_info_response__free_unpacked(m, NULL);
    return true;
}

/* 0, or an exit code that has been told. */
static int look_at_service(struct test *t) {
    struct client_status status;
    client_call(t->client, "/shardd.v1.Shardd/GetModelInfo", NULL, 0, TIMEOUT_MS, on_model, t, &status);
    if (status.code != GRPC_STATUS_OK)
        return client_report(t->client, &status);
    const uint64_t longest = (uint64_t)t->load.output.high + (t->load.n_prompts ? 1 : t->load.input.high);
    if (t->vocab_size && longest <= t->max_model_len)
        return 0;
    fprintf(stderr, "shardd bench: %llu tokens of prompt and answer, this service takes %u\n",
            (unsigned long long)longest, t->max_model_len);
    return EXIT_USAGE;
}

static json_t *settings_json(const struct test *t) {
    const struct load *l = &t->load;
    return json_pack("{s:I, s:f, s:I, s:[I,I], s:[I,I], s:I, s:I}", "requests", (json_int_t)l->n, "rate",
            l->rate, "concurrency", (json_int_t)options_number(t->options, OPT_CONCURRENCY), "input_len",
            (json_int_t)l->input.low, (json_int_t)l->input.high, "output_len", (json_int_t)l->output.low,
            (json_int_t)l->output.high, "prompts", (json_int_t)l->n_prompts, "seed", (json_int_t)l->seed);
}

static int write_json(const struct test *t, const struct summary *s, struct error *e) {
    const char *path = options_text(t->options, OPT_JSON_FILE);
    json_t *root = summary_json(s, &t->limits);
    int rc = 0;
    json_object_set_new(root, "version", json_string(SHARDD_VERSION));
    json_object_set_new(root, "address", json_string(client_address(t->client)));
    json_object_set_new(root, "settings", settings_json(t));
    char *json = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12)), *text = NULL;
    json_decref(root);
    if (!json || asprintf(&text, "%s\n", json) < 0)
        rc = error_set(e, -ENOMEM, "no memory for the figures");
    else if (strcmp(path, "-") == 0)
        rc = fputs(text, stdout) < 0 || fflush(stdout) != 0 ? error_set(e, -EIO, "stdout cannot be written")
                                                            : 0;
    else
        rc = file_replace(path, text, strlen(text), 0644, e);
    free(text);
    free(json);
    return rc;
}

static int tell(struct test *t, struct error *e) {
    const char *json = options_text(t->options, OPT_JSON_FILE);
    struct summary s;
    if (!summary_make(t->records, t->started, t->gaps, t->n_gaps, &t->limits, &s))
        return error_set(e, -ENOMEM, "no memory for the figures");
    summary_print(json && strcmp(json, "-") == 0 ? stderr : stdout, &s, &t->limits);
    if (t->first_error[0])
        fprintf(stderr, "shardd bench: the first that failed: %s\n", t->first_error);
    int rc = json ? write_json(t, &s, e) : 0;
    return rc < 0 ? rc : s.completed < s.requests;
}

/* 0, an exit code that has been told, or a negative errno with its sentence in *e. */
static int measure(struct test *t, struct error *e) {
    const char *goodput = options_text(t->options, OPT_GOODPUT);
    int rc = load_make(t->options, &t->load, e);
    if (rc == 0 && goodput && !limits_parse(goodput, &t->limits))
        rc = error_set(e, -EINVAL, "--goodput '%s': limits such as ttft:500,tpot:50 are expected", goodput);
    if (rc == 0)
        rc = client_open(options_text(t->options, OPT_ASKED_SERVICE), &t->client, e);
    if (rc < 0)
        return rc;
    rc = look_at_service(t);
    if (rc != 0)
        return rc;
    t->records = calloc(t->load.n, sizeof(t->records[0]));
    t->requests = calloc(t->load.n, sizeof(t->requests[0]));
    if (!t->records || !t->requests)
        return error_set(e, -ENOMEM, "no memory for %zu requests", t->load.n);
    rc = run(t, e);
    return rc < 0 ? rc : tell(t, e);
}

int bench_service(const struct options *o) {
    struct test t = {.options = o};
    struct error e = {0};
    signal(SIGPIPE, SIG_IGN);
    int rc = interrupt_catch();
    if (rc < 0)
        error_set(&e, rc, "cannot take signals: %s", strerror(-rc));
    else
        rc = measure(&t, &e);
    if (rc < 0)
        fprintf(stderr, "shardd bench: %s\n", e.text);
    client_close(t.client);
    load_done(&t.load);
    free(t.records);
    free(t.requests);
    free(t.gaps);
    if (t.interrupted)
        return EXIT_INTERRUPTED;
    return rc == -EINVAL ? EXIT_USAGE : rc < 0 ? EXIT_FAILED : rc;
}
