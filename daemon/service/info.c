/* info.c - GetModelInfo, GetServerInfo and Abort: small answers from what others know. */
#include "daemon/service/message.h"

#include "base/clock.h"
#include "daemon/service/methods.h"
#include "daemon/service/refusal.h"
#include "daemon/service/request.h"

#include "shardd/v1/shardd.pb-c.h"

#include <stdio.h>
#include <string.h>

typedef Shardd__V1__SamplingParams Sampling;

static void fill_defaults(Sampling *p, const struct sampling_defaults *d) {
    shardd__v1__sampling_params__init(p);
    p->_temperature_case = SHARDD__V1__SAMPLING_PARAMS___TEMPERATURE_TEMPERATURE;
    p->temperature = d->temperature;
    p->_top_k_case = SHARDD__V1__SAMPLING_PARAMS___TOP_K_TOP_K;
    p->top_k = d->top_k;
    p->_top_p_case = SHARDD__V1__SAMPLING_PARAMS___TOP_P_TOP_P;
    p->top_p = d->top_p;
    p->_min_p_case = SHARDD__V1__SAMPLING_PARAMS___MIN_P_MIN_P;
    p->min_p = d->min_p;
    p->_repetition_penalty_case = SHARDD__V1__SAMPLING_PARAMS___REPETITION_PENALTY_REPETITION_PENALTY;
    p->repetition_penalty = d->repetition_penalty;
    p->_presence_penalty_case = SHARDD__V1__SAMPLING_PARAMS___PRESENCE_PENALTY_PRESENCE_PENALTY;
    p->_frequency_penalty_case = SHARDD__V1__SAMPLING_PARAMS___FREQUENCY_PENALTY_FREQUENCY_PENALTY;
}

static void answer_model_info(struct rpc_call *c) {
    struct service *s = rpc_call_user(c);
    const struct model *m = s->options.model;
    struct engine_stats stats;
    engine_stats(s->options.engine, &stats);

    Shardd__V1__GetModelInfoResponse answer = SHARDD__V1__GET_MODEL_INFO_RESPONSE__INIT;
    ProtobufCBinaryData names[SERVED_NAMES_MAX];
    for (size_t i = 0; i < m->n_names; i++)
        names[i] = message_string(m->names[i]);
    answer.n_served_names = m->n_names;
    answer.served_names = names;
    answer.path = message_string(m->path);
    answer.architecture = message_string(m->architecture);
    answer.vocab_size = stats.vocab_size;
    answer.max_model_len = service_context_tokens(&stats);
    uint32_t stop_ids[MODEL_STOP_IDS_MAX];
    memcpy(stop_ids, m->generation.stop_ids, sizeof(stop_ids));
    answer.n_stop_token_ids = m->generation.n_stop_ids;
    answer.stop_token_ids = stop_ids;
    answer.chat_template = message_string(m->template.kind == CHAT_TEMPLATE_NONE ? "" : m->template.name);
    answer.thinks_by_default = m->template.thinks_by_default;
    Sampling sampling;
    fill_defaults(&sampling, &m->generation.sampling);
    answer.default_sampling = &sampling;
    char fingerprint[17];
    snprintf(fingerprint, sizeof(fingerprint), "%016llx", (unsigned long long)stats.weight_fingerprint);
    answer.weight_fingerprint = message_string(stats.weight_fingerprint ? fingerprint : "");
    answer.weight_bytes = stats.weight_bytes;
    ProtobufCBinaryData kinds[] = {
            message_string("text"), message_string("token_ids"), message_string("chat")};
    answer.n_input_kinds = m->template.kind == CHAT_TEMPLATE_NONE ? 2 : 3;
    answer.input_kinds = kinds;
    answer.has_mtp = stats.model_has_mtp;
    message_reply(c, &answer.base);
}

void model_info_on_call(struct rpc_call *c) {
    struct service *s = rpc_call_user(c);
    struct arena arena;
    struct rpc_status status;
    arena_init(&arena, ARENA_BYTES_MAX, NULL, 0);
    const Shardd__V1__GetModelInfoRequest *q = (const Shardd__V1__GetModelInfoRequest *)message_of_call(
            &shardd__v1__get_model_info_request__descriptor, c, &arena, &status);
    if (q && request_check_model(s->options.model, q->model, &status) == 0)
        answer_model_info(c);
    else
        method_refuse(c, &status);
    arena_done(&arena);
}

static uint64_t uptime_ms(const struct service *s) {
    return (clock_ns() - s->start_ns) / CLOCK_MS;
}

/* Those that are there. */
static void fill_prefix_cache(const struct engine_stats *stats, Shardd__V1__PrefixCacheInfo *ret) {
    *ret = (Shardd__V1__PrefixCacheInfo)SHARDD__V1__PREFIX_CACHE_INFO__INIT;
    ret->states = stats->snapshots;
    ret->states_max = stats->snapshots_max;
    ret->kv_pages = stats->pages_cached;
    ret->hits = stats->prefix_hits_total;
    ret->cached_tokens = stats->cached_tokens_total;
    ret->evictions = stats->snapshot_evictions_total;
    ret->host_pages = stats->host_pages;
    ret->host_pages_max = stats->host_pages_max;
}

static size_t fill_drafters(const struct engine_stats *stats, Shardd__V1__DrafterInfo *all) {
    size_t n = 0;
    for (uint32_t k = 0; k < ENGINE_DRAFTERS; k++) {
        const struct engine_drafter_stats *d = &stats->drafters[k];
        if (d->most == 0)
            continue;
        all[n] = (Shardd__V1__DrafterInfo)SHARDD__V1__DRAFTER_INFO__INIT;
        all[n].name = message_string(d->name);
        all[n].drafts_max = d->most;
        all[n].silent = d->silent;
        for (uint32_t i = 0; i < DRAFT_MAX; i++) {
            all[n].drafts_proposed += d->proposed[i];
            all[n].drafts_accepted += d->accepted[i];
        }
        n++;
    }
    return n;
}

static void answer_server_info(struct rpc_call *c) {
    struct service *s = rpc_call_user(c);
    struct engine_stats stats;
    engine_stats(s->options.engine, &stats);
    Shardd__V1__GetServerInfoResponse answer = SHARDD__V1__GET_SERVER_INFO_RESPONSE__INIT;
    answer.version = message_string(SHARDD_VERSION);
    answer.uptime_ms = uptime_ms(s);
    answer.tensor_parallel_size = stats.tp;
    ProtobufCBinaryData devices[RANKS_MAX];
    for (uint32_t i = 0; i < stats.tp && i < RANKS_MAX; i++)
        devices[answer.n_devices++] =
                message_text(stats.devices[i], strnlen(stats.devices[i], sizeof(stats.devices[i])));
    answer.devices = devices;
    answer.max_num_seqs = stats.max_num_seqs;
    answer.max_num_batched_tokens = stats.max_num_batched_tokens;
    answer.max_queue = stats.max_queue;
    answer.kv_pages_total = stats.pages_total;
    answer.kv_pages_free = stats.pages_free;
    answer.running = stats.running;
    answer.waiting = stats.waiting;
    answer.requests_total = stats.requests_total;
    answer.prompt_tokens_total = stats.prompt_tokens_total;
    answer.generated_tokens_total = atomic_load(&s->sent_tokens_total);
    answer.steps_total = stats.steps_total;
    answer.group_epoch = stats.group_epoch;
    answer.coord_epoch = stats.coord_epoch;
    Shardd__V1__PrefixCacheInfo cache;
    fill_prefix_cache(&stats, &cache);
    answer.prefix_cache = stats.snapshots_max > 0 ? &cache : NULL;
    Shardd__V1__DrafterInfo drafters[ENGINE_DRAFTERS], *list[ENGINE_DRAFTERS];
    answer.n_drafters = fill_drafters(&stats, drafters);
    for (size_t i = 0; i < answer.n_drafters; i++)
        list[i] = &drafters[i];
    answer.drafters = list;
    answer.state = message_string(service_state(s, rpc_call_server(c), &stats));
    message_reply(c, &answer.base);
}

void server_info_on_call(struct rpc_call *c) {
    struct arena arena;
    struct rpc_status status;
    arena_init(&arena, ARENA_BYTES_MAX, NULL, 0);
    if (message_of_call(&shardd__v1__get_server_info_request__descriptor, c, &arena, &status))
        answer_server_info(c);
    else
        method_refuse(c, &status);
    arena_done(&arena);
}

/* Returns how many were found, or -1 with *s filled. */
static int64_t abort_requests(struct rpc_call *c, const Shardd__V1__AbortRequest *q, struct rpc_status *s) {
    struct service *service = rpc_call_user(c);
    if (q->all && !rpc_call_peer_is_local(c))
        return refuse(s, REFUSAL_NOT_LOCAL,
                "all ends the requests of every client and is only taken from a loopback or "
                "Unix peer; give request_ids");
    if (q->all && q->n_request_ids > 0)
        return refuse(s, REFUSAL_CONFLICT, "give either all or request_ids");
    if (!q->all && q->n_request_ids == 0)
        return refuse(s, REFUSAL_MISSING_INPUT, "nothing to abort; give request_ids, or all");
    if (q->n_request_ids > LIVE_REQUESTS_MAX)
        return refuse(s, REFUSAL_INVALID_FIELD, "request_ids has %zu entries, more than %u; split the call",
                q->n_request_ids, LIVE_REQUESTS_MAX);
    if (q->all)
        return engine_abort_all(service->options.engine);
    int64_t found = 0;
    char caller[RPC_CALLER_BYTES];
    rpc_call_caller(c, caller, sizeof(caller));
    for (size_t i = 0; i < q->n_request_ids; i++) {
        char id[REQUEST_ID_BYTES_MAX + 1] = {0};
        if (request_check_id(q->request_ids[i], s) < 0)
            return -1;
        if (q->request_ids[i].len)
            memcpy(id, q->request_ids[i].data, q->request_ids[i].len);
        found += id[0] && engine_abort(service->options.engine, caller, id);
    }
    return found;
}

void abort_on_call(struct rpc_call *c) {
    struct arena arena;
    struct rpc_status status;
    arena_init(&arena, ARENA_BYTES_MAX, NULL, 0);
    const Shardd__V1__AbortRequest *q = (const Shardd__V1__AbortRequest *)message_of_call(
            &shardd__v1__abort_request__descriptor, c, &arena, &status);
    int64_t found = q ? abort_requests(c, q, &status) : -1;
    if (found >= 0) {
        Shardd__V1__AbortResponse answer = SHARDD__V1__ABORT_RESPONSE__INIT;
        answer.found = (uint32_t)found;
        message_reply(c, &answer.base);
    } else {
        method_refuse(c, &status);
    }
    arena_done(&arena);
}
