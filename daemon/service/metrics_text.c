/* metrics_text.c - see metrics_text.h.
 *
 * Everything is a snapshot of numbers that others count; nothing is counted for a scrape. What vLLM has a name for is
 * shown a second time under that name, with its labels, its unit and its bounds, so that dashboards and autoscalers for
 * vLLM work unchanged. A name of vLLM's is there only where ours means the same. */
#include "daemon/service/metrics_text.h"

#include "daemon/service/exposition.h"

#include <stdio.h>

#define SECONDS 1e9 /* of histograms in ns */
#define TOKENS  1.0

/* --- our names --- */

struct line {
    const char *name, *kind, *help;
    double value;
};

static void add_lines(struct exposition *x, const struct line *lines, size_t n) {
    for (size_t i = 0; i < n; i++) {
        exposition_family(x, lines[i].name, lines[i].kind, lines[i].help);
        exposition_sample(x, NULL, lines[i].value);
    }
}
#define ADD_LINES(x, lines) add_lines(x, lines, sizeof(lines) / sizeof((lines)[0]))

static void add_requests(struct exposition *x, const struct service *s, const struct engine_stats *e) {
    const struct line lines[] = {
            {"shardd_up", "gauge", "1 while a request sent now would run.", atomic_load(&s->serving)},
            {"shardd_requests_running", "gauge", "Sequences in steps.", e->running},
            {"shardd_requests_waiting", "gauge", "Requests in the queue.", e->waiting},
            {"shardd_queue_tokens", "gauge", "Prompt tokens of requests that have had no step yet.",
                    (double)e->queue_tokens},
            {"shardd_requests_suspected", "gauge",
                    "Requests that were computed at a death and have not run alone since.", e->suspects},
            {"shardd_requests_total", "counter", "Requests taken by the engine.", (double)e->requests_total},
            {"shardd_requests_refused_total", "counter", "Calls that ended with a refusal.",
                    (double)atomic_load(&s->refused_total)},
            {"shardd_requests_cancelled_total", "counter", "Streams that clients left.",
                    (double)atomic_load(&s->cancelled_total)},
            {"shardd_prompt_tokens_total", "counter", "Prompt tokens of requests that gave a token.",
                    (double)e->prompt_tokens_total},
            {"shardd_prompt_tokens_computed_total", "counter",
                    "Prompt tokens that went through the model; again when a sequence is replayed.",
                    (double)e->prompt_rows_total},
            {"shardd_generated_tokens_total", "counter", "Tokens of answers, as they are sent.",
                    (double)atomic_load(&s->sent_tokens_total)},
            {"shardd_chunks_total", "counter", "Messages of tokens sent.",
                    (double)atomic_load(&s->chunks_total)},
    };
    ADD_LINES(x, lines);
}

static void add_engine(struct exposition *x, const struct engine_stats *e, struct rpc_server *server) {
    const struct line lines[] = {
            {"shardd_kv_pages", "gauge", "KV pages of 64 tokens.", e->pages_total},
            {"shardd_kv_pages_free", "gauge", "KV pages not in use.", e->pages_free},
            {"shardd_kv_pages_cached", "gauge",
                    "Of the free KV pages, those that the prefix cache keeps meanwhile.", e->pages_cached},
            {"shardd_prefix_states", "gauge", "States after prefixes that the prefix cache keeps.",
                    e->snapshots},
            {"shardd_prefix_states_max", "gauge", "Room for those.", e->snapshots_max},
            {"shardd_prefix_hits_total", "counter", "Times that a request went on from one.",
                    (double)e->prefix_hits_total},
            {"shardd_prefix_cached_tokens_total", "counter", "Prompt tokens that were not computed again.",
                    (double)e->cached_tokens_total},
            {"shardd_prefix_host_pages", "gauge", "Pages of prefixes in the workers' host memory.",
                    e->host_pages},
            {"shardd_prefix_host_pages_max", "gauge", "Room for those.", e->host_pages_max},
            {"shardd_prefix_host_pages_in_total", "counter", "Pages that came back from there.",
                    (double)e->host_pages_in_total},
            {"shardd_prefix_host_pages_out_total", "counter", "Pages that went there for others.",
                    (double)e->host_pages_out_total},
            {"shardd_prefix_disk_pages", "gauge", "Pages of prefixes in the workers' files.", e->disk_pages},
            {"shardd_prefix_disk_states", "gauge", "States after prefixes in the workers' files.",
                    e->disk_states},
            {"shardd_prefix_disk_hits_total", "counter", "States that were read from there for a request.",
                    (double)e->disk_hits_total},
            {"shardd_prefix_disk_reads_total", "counter", "Pages and states that were read from there.",
                    (double)e->disk_reads_total},
            {"shardd_prefix_disk_writes_total", "counter", "Pages and states that were written there.",
                    (double)e->disk_writes_total},
            {"shardd_prefix_disk_failures_total", "counter", "Of either, those that failed.",
                    (double)e->disk_failures_total},
            {"shardd_prefix_snapshots_total", "counter", "States kept.", (double)e->snapshots_total},
            {"shardd_prefix_evictions_total", "counter", "States given up.",
                    (double)e->snapshot_evictions_total},
            {"shardd_slots", "gauge", "Places for the state of a sequence.", e->slots_total},
            {"shardd_slots_free", "gauge", "Places for the state of a sequence, not in use.", e->slots_free},
            {"shardd_steps_total", "counter", "Engine steps.", (double)e->steps_total},
            {"shardd_step_plan_seconds_total", "counter", "Time of the engine thread for its steps.",
                    (double)e->step_plan_ns_total / SECONDS},
            {"shardd_preemptions_total", "counter",
                    "Times that a sequence gave up its place: for want of memory, or since nobody reads it.",
                    (double)e->preemptions_total},
            {"shardd_replays_total", "counter", "Sequences replayed after a restart of the workers.",
                    (double)e->replays_total},
            {"shardd_dropped_records_total", "counter", "Records of another epoch.",
                    (double)e->dropped_records_total},
            {"shardd_step_errors_total", "counter", "Steps that the workers reported as failed.",
                    (double)e->step_errors_total},
            {"shardd_group_epoch", "gauge", "Starts of the worker group.", (double)e->group_epoch},
            {"shardd_grpc_calls_total", "counter", "gRPC calls.", (double)rpc_server_calls_total(server)},
            {"shardd_grpc_calls_live", "gauge", "gRPC calls that have not ended.",
                    rpc_server_live_calls(server)},
            {"shardd_grpc_connections", "gauge", "Open client connections.", rpc_server_connections(server)},
    };
    ADD_LINES(x, lines);
}

/* --- speculation --- */

static void add_positions(
        struct exposition *x, const struct engine_drafter_stats *d, const uint64_t *counts) {
    for (uint32_t i = 0; i < d->most; i++) {
        char position[16];
        snprintf(position, sizeof(position), "%u", i);
        struct exposition_labels labels = {{{"drafter", d->name}, {"position", position}}};
        exposition_sample(x, &labels, (double)counts[i]);
    }
}

/* Of the drafters that are there. */
static void add_drafts(struct exposition *x, const struct engine_stats *e) {
    uint32_t most = 0;
    for (uint32_t k = 0; k < ENGINE_DRAFTERS; k++)
        most += e->drafters[k].most;
    if (most == 0)
        return;
    exposition_family(x, "shardd_draft_rounds_total", "counter", "Steps of a sequence that verified drafts.");
    exposition_sample(x, NULL, (double)e->draft_rounds_total);
    exposition_family(x, "shardd_drafts_proposed_total", "counter",
            "Drafts verified, by drafter and position after the last token.");
    for (uint32_t k = 0; k < ENGINE_DRAFTERS; k++)
        add_positions(x, &e->drafters[k], e->drafters[k].proposed);
    exposition_family(x, "shardd_drafts_accepted_total", "counter", "Those of them that became tokens.");
    for (uint32_t k = 0; k < ENGINE_DRAFTERS; k++)
        add_positions(x, &e->drafters[k], e->drafters[k].accepted);
    exposition_family(x, "shardd_drafter_silent", "gauge",
            "1 while a drafter has not been worth its time for a while: so few of its drafts are accepted.");
    for (uint32_t k = 0; k < ENGINE_DRAFTERS; k++) {
        struct exposition_labels labels = {{{"drafter", e->drafters[k].name}}};
        if (e->drafters[k].most > 0)
            exposition_sample(x, &labels, e->drafters[k].silent);
    }
}

/* By what ended it, in our words and in vLLM's. */
static const struct {
    const char *ours, *vllm;
} endings[ENGINE_FINISHES] = {
        [ENGINE_FINISH_STOP_ID] = {"stop", "stop"},
        [ENGINE_FINISH_LENGTH] = {"length", "length"},
        [ENGINE_FINISH_REQUESTED] = {"stop_string", "stop"},
        [ENGINE_FINISH_CANCELLED] = {"cancelled", "abort"},
        [ENGINE_FINISH_ABORTED] = {"aborted", "abort"},
        [ENGINE_FINISH_DEADLINE] = {"deadline", "abort"},
        [ENGINE_FINISH_FAULT] = {"fault", "error"},
        [ENGINE_FINISH_NO_TOKEN] = {"no_token", "error"},
        [ENGINE_FINISH_SLOW] = {"slow_reader", "abort"},
        [ENGINE_FINISH_QUEUE_TIME] = {"queue_timeout", "abort"},
};

static void add_endings(struct exposition *x, const struct engine_stats *e) {
    exposition_family(x, "shardd_requests_finished_total", "counter", "Requests that have ended, by reason.");
    for (int i = 0; i < ENGINE_FINISHES; i++) {
        struct exposition_labels labels = {{{"reason", endings[i].ours}}};
        if (endings[i].ours)
            exposition_sample(x, &labels, (double)e->finished_total[i]);
    }
}

static const struct {
    enum engine_histogram which;
    double unit;
    const char *name, *help;
} histograms[] = {
        {ENGINE_FIRST_TOKEN_NS, SECONDS, "shardd_time_to_first_token_seconds", "Received to first token."},
        {ENGINE_INTER_TOKEN_NS, SECONDS, "shardd_inter_token_latency_seconds",
                "Between two tokens of a sequence; 0 where one step gave both."},
        {ENGINE_QUEUE_NS, SECONDS, "shardd_request_queue_time_seconds", "Received to first step."},
        {ENGINE_PROMPT_NS, SECONDS, "shardd_request_prefill_time_seconds", "First step to first token."},
        {ENGINE_ANSWER_NS, SECONDS, "shardd_request_decode_time_seconds", "First token to last token."},
        {ENGINE_TOTAL_NS, SECONDS, "shardd_e2e_request_latency_seconds", "Received to finished."},
        {ENGINE_PROMPT_TOKENS, TOKENS, "shardd_request_prompt_tokens", "Prompt tokens of a request."},
        {ENGINE_ANSWER_TOKENS, TOKENS, "shardd_request_generation_tokens", "Generated tokens of a request."},
        {ENGINE_MAX_TOKENS, TOKENS, "shardd_request_max_tokens", "Tokens that a request may generate."},
        {ENGINE_STEP_ROWS, TOKENS, "shardd_step_tokens", "Tokens of a step, prompts and answers together."},
};

static void add_histograms(struct exposition *x, const struct engine *g) {
    for (size_t i = 0; i < sizeof(histograms) / sizeof(histograms[0]); i++) {
        exposition_family(x, histograms[i].name, "histogram", histograms[i].help);
        exposition_histogram(
                x, NULL, engine_histogram(g, histograms[i].which), histograms[i].unit, /* bounds= */ NULL, 0);
    }
}

/* --- vLLM's names --- */

#define MS(n) ((n)*1000000ull)
#define S(n)  ((n)*1000000000ull)
static const uint64_t first_token_bounds[] = {MS(1), MS(5), MS(10), MS(20), MS(40), MS(60), MS(80), MS(100),
        MS(250), MS(500), MS(750), S(1), MS(2500), S(5), MS(7500), S(10), S(20), S(40), S(80), S(160), S(640),
        S(2560)};
static const uint64_t token_bounds[] = {MS(10), MS(25), MS(50), MS(75), MS(100), MS(150), MS(200), MS(300),
        MS(400), MS(500), MS(750), S(1), MS(2500), S(5), MS(7500), S(10), S(20), S(40), S(80)};
static const uint64_t request_bounds[] = {MS(300), MS(500), MS(800), S(1), MS(1500), S(2), MS(2500), S(5),
        S(10), S(15), S(20), S(30), S(40), S(50), S(60), S(120), S(240), S(480), S(960), S(1920), S(7680)};
static const uint64_t step_bounds[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
#undef MS
#undef S

#define BOUNDS(list) list, sizeof(list) / sizeof((list)[0])
static const struct {
    enum engine_histogram which;
    double unit;
    const char *name, *help;
    const uint64_t *bounds; /* NULL: ours are the same */
    size_t n_bounds;
} vllm_histograms[] = {
        {ENGINE_FIRST_TOKEN_NS, SECONDS, "vllm:time_to_first_token_seconds", "Received to first token.",
                BOUNDS(first_token_bounds)},
        {ENGINE_INTER_TOKEN_NS, SECONDS, "vllm:inter_token_latency_seconds",
                "Between two tokens of a sequence.", BOUNDS(token_bounds)},
        {ENGINE_TOTAL_NS, SECONDS, "vllm:e2e_request_latency_seconds", "Received to finished.",
                BOUNDS(request_bounds)},
        {ENGINE_QUEUE_NS, SECONDS, "vllm:request_queue_time_seconds", "Received to first step.",
                BOUNDS(request_bounds)},
        {ENGINE_PROMPT_NS, SECONDS, "vllm:request_prefill_time_seconds", "First step to first token.",
                BOUNDS(request_bounds)},
        {ENGINE_ANSWER_NS, SECONDS, "vllm:request_decode_time_seconds", "First token to last token.",
                BOUNDS(request_bounds)},
        {ENGINE_PROMPT_TOKENS, TOKENS, "vllm:request_prompt_tokens", "Prompt tokens of a request.", NULL, 0},
        {ENGINE_ANSWER_TOKENS, TOKENS, "vllm:request_generation_tokens", "Generated tokens of a request.",
                NULL, 0},
        {ENGINE_MAX_TOKENS, TOKENS, "vllm:request_params_max_tokens", "Tokens that a request may generate.",
                NULL, 0},
        {ENGINE_STEP_ROWS, TOKENS, "vllm:iteration_tokens_total", "Tokens of a step.", BOUNDS(step_bounds)},
};

static void add_vllm_endings(
        struct exposition *x, const struct engine_stats *e, const struct exposition_labels *base) {
    static const char *const reasons[] = {"stop", "length", "abort", "error"};
    exposition_family(x, "vllm:request_success_total", "counter", "Requests that have ended, by reason.");
    for (size_t r = 0; r < sizeof(reasons) / sizeof(reasons[0]); r++) {
        struct exposition_labels labels = *base;
        uint64_t n = 0;
        labels.of[2] = (struct exposition_label){"finished_reason", reasons[r]};
        for (int i = 0; i < ENGINE_FINISHES; i++)
            n += endings[i].vllm && strcmp(endings[i].vllm, reasons[r]) == 0 ? e->finished_total[i] : 0;
        exposition_sample(x, &labels, (double)n);
    }
}

/* Summed over the drafters. */
static void add_vllm_drafts(
        struct exposition *x, const struct engine_stats *e, const struct exposition_labels *base) {
    uint64_t proposed = 0, accepted = 0, at[DRAFT_MAX] = {0};
    for (uint32_t k = 0; k < ENGINE_DRAFTERS; k++) {
        for (uint32_t i = 0; i < DRAFT_MAX; i++) {
            proposed += e->drafters[k].proposed[i];
            at[i] += e->drafters[k].accepted[i];
            accepted += e->drafters[k].accepted[i];
        }
    }
    exposition_family(x, "vllm:spec_decode_num_drafts_total", "counter", "Steps that verified drafts.");
    exposition_sample(x, base, (double)e->draft_rounds_total);
    exposition_family(x, "vllm:spec_decode_num_draft_tokens_total", "counter", "Drafts verified.");
    exposition_sample(x, base, (double)proposed);
    exposition_family(x, "vllm:spec_decode_num_accepted_tokens_total", "counter", "Drafts accepted.");
    exposition_sample(x, base, (double)accepted);
    exposition_family(x, "vllm:spec_decode_num_accepted_tokens_per_pos_total", "counter",
            "Drafts accepted, by position after the last token.");
    for (uint32_t i = 0; i < DRAFT_MAX && i < e->drafts_max; i++) {
        char position[16];
        struct exposition_labels labels = *base;
        snprintf(position, sizeof(position), "%u", i);
        labels.of[2] = (struct exposition_label){"position", position};
        exposition_sample(x, &labels, (double)at[i]);
    }
}

static void add_vllm(struct exposition *x, const struct service *s, const struct engine_stats *e) {
    const struct exposition_labels labels = {{{"model_name", s->options.model->names[0]}, {"engine", "0"}}};
    const struct line lines[] = {
            {"vllm:num_requests_running", "gauge", "Sequences in steps.", e->running},
            {"vllm:num_requests_waiting", "gauge", "Requests in the queue.", e->waiting},
            {"vllm:kv_cache_usage_perc", "gauge", "Part of the KV pages that is in use, 0 to 1.",
                    e->pages_total ? 1 - (double)e->pages_free / e->pages_total : 0},
            {"vllm:num_preemptions_total", "counter", "Sequences that gave up their place.",
                    (double)e->preemptions_total},
            {"vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked for in the prefix cache.",
                    e->snapshots_max > 0 ? (double)e->prompt_tokens_total : 0},
            {"vllm:prefix_cache_hits_total", "counter", "Those of them that were found there.",
                    (double)e->cached_tokens_total},
            {"vllm:prompt_tokens_total", "counter", "Prompt tokens taken.", (double)e->prompt_tokens_total},
            {"vllm:generation_tokens_total", "counter", "Tokens of answers, as they are sent.",
                    (double)atomic_load(&s->sent_tokens_total)},
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        exposition_family(x, lines[i].name, lines[i].kind, lines[i].help);
        exposition_sample(x, &labels, lines[i].value);
    }
    add_vllm_endings(x, e, &labels);
    if (e->drafts_max > 0)
        add_vllm_drafts(x, e, &labels);
    for (size_t i = 0; i < sizeof(vllm_histograms) / sizeof(vllm_histograms[0]); i++) {
        exposition_family(x, vllm_histograms[i].name, "histogram", vllm_histograms[i].help);
        exposition_histogram(x, &labels, engine_histogram(s->options.engine, vllm_histograms[i].which),
                vllm_histograms[i].unit, vllm_histograms[i].bounds, vllm_histograms[i].n_bounds);
    }
    char pages[16];
    snprintf(pages, sizeof(pages), "%u", e->pages_total);
    exposition_family(x, "vllm:cache_config_info", "gauge", "The KV cache: tokens of a page, pages.");
    struct exposition_labels cache = {{{"block_size", "64"}, {"num_gpu_blocks", pages}, {"engine", "0"}}};
    exposition_sample(x, &cache, 1);
}
_Static_assert(PAGE_TOKENS == 64, "as the texts say");

int metrics_text(const struct service *s, struct rpc_server *server, struct byte_buffer *ret) {
    struct exposition x = {0};
    struct engine_stats e;
    engine_stats(s->options.engine, &e);
    add_requests(&x, s, &e);
    add_engine(&x, &e, server);
    add_endings(&x, &e);
    add_drafts(&x, &e);
    add_histograms(&x, s->options.engine);
    add_vllm(&x, s, &e);
    *ret = x.text;
    return x.error;
}
