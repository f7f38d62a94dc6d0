/* status.c - `shardd status`: health, model and server information of a running service. */
#include "launcher/verbs.h"

#include "base/sizes.h"
#include "grpc/health/v1/health.pb-c.h"
#include "launcher/client/chunk_json.h"
#include "launcher/client/client.h"
#include "shardd/v1/shardd.pb-c.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATUS_TIMEOUT_MS 5000

struct answers {
    Grpc__Health__V1__HealthCheckResponse *health;
    Shardd__V1__GetServerInfoResponse *server;
    Shardd__V1__GetModelInfoResponse *model;
};

static bool on_health(void *user, const uint8_t *data, size_t bytes) {
    struct answers *a = user;
    a->health = a->health ? a->health : grpc__health__v1__health_check_response__unpack(NULL, bytes, data);
    return a->health != NULL;
}

static bool on_server(void *user, const uint8_t *data, size_t bytes) {
    struct answers *a = user;
    a->server = a->server ? a->server : shardd__v1__get_server_info_response__unpack(NULL, bytes, data);
    return a->server != NULL;
}

static bool on_model(void *user, const uint8_t *data, size_t bytes) {
    struct answers *a = user;
    a->model = a->model ? a->model : shardd__v1__get_model_info_response__unpack(NULL, bytes, data);
    return a->model != NULL;
}

static void answers_done(struct answers *a) {
    grpc__health__v1__health_check_response__free_unpacked(a->health, NULL);
    shardd__v1__get_server_info_response__free_unpacked(a->server, NULL);
    shardd__v1__get_model_info_response__free_unpacked(a->model, NULL);
}

/* All requests are empty messages: zero bytes. */
static void ask_all(struct client *c, uint64_t timeout_ms, struct answers *a, struct client_status *status) {
    client_call(c, "/grpc.health.v1.Health/Check", NULL, 0, timeout_ms, on_health, a, status);
    if (status->code == 0)
        client_call(c, "/shardd.v1.Shardd/GetServerInfo", NULL, 0, timeout_ms, on_server, a, status);
    if (status->code == 0)
        client_call(c, "/shardd.v1.Shardd/GetModelInfo", NULL, 0, timeout_ms, on_model, a, status);
}

static bool healthy(const struct answers *a) {
    return a->health && a->health->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
}

static void print_text(const char *name, ProtobufCBinaryData b) {
    printf("%-18s %.*s\n", name, (int)b.len, b.data ? (const char *)b.data : "");
}

static void print_uptime(uint64_t ms) {
    uint64_t s = ms / 1000;
    printf("%-18s ", "up for");
    if (s >= 86400)
        printf("%llu d ", (unsigned long long)(s / 86400));
    printf("%02llu:%02llu:%02llu\n", (unsigned long long)(s / 3600 % 24), (unsigned long long)(s / 60 % 60),
            (unsigned long long)(s % 60));
}

static void print_model(const Shardd__V1__GetModelInfoResponse *m) {
    for (size_t i = 0; i < m->n_served_names; i++)
        print_text(i ? "" : "model", m->served_names[i]);
    print_text("folder", m->path);
    printf("%-18s %.*s, vocabulary %u, context %u tokens\n", "architecture", (int)m->architecture.len,
            (const char *)m->architecture.data, m->vocab_size, m->max_model_len);
    printf("%-18s %s, fingerprint %.*s\n", "weights", SIZE_TEXT(m->weight_bytes),
            (int)m->weight_fingerprint.len, (const char *)m->weight_fingerprint.data);
    if (m->chat_template.len)
        print_text("chat template", m->chat_template);
    else
        printf("%-18s none that is known: chat is refused, text and token ids work\n", "chat template");
}

static void print_drafter(const Shardd__V1__DrafterInfo *d) {
    char name[64];
    snprintf(name, sizeof(name), "drafts of %.*s", (int)d->name.len, (const char *)d->name.data);
    printf("%-18s up to %u a step, %llu of %llu accepted%s\n", name, d->drafts_max,
            (unsigned long long)d->drafts_accepted, (unsigned long long)d->drafts_proposed,
            d->silent ? ", not worth their time now" : "");
}

static void print_prefix_cache(const Shardd__V1__PrefixCacheInfo *p) {
    char host[48] = "";
    if (p->host_pages_max > 0)
        snprintf(host, sizeof(host), ", %u of %u on the host", p->host_pages, p->host_pages_max);
    printf("%-18s %u of %u states, %u pages%s; %llu hits, %llu tokens not computed again\n", "prefix cache",
            p->states, p->states_max, p->kv_pages, host, (unsigned long long)p->hits,
            (unsigned long long)p->cached_tokens);
}

static void print_server(const Shardd__V1__GetServerInfoResponse *s) {
    print_uptime(s->uptime_ms);
    print_text("version", s->version);
    printf("%-18s %u\n", "tensor parallel", s->tensor_parallel_size);
    for (size_t i = 0; i < s->n_devices; i++) {
        char name[32];
        snprintf(name, sizeof(name), "rank %zu", i);
        print_text(name, s->devices[i]);
    }
    printf("%-18s %u running of %u, %u waiting of %u\n", "requests", s->running, s->max_num_seqs, s->waiting,
            s->max_queue);
    printf("%-18s %u of %u free (64 tokens each)\n", "KV pages", s->kv_pages_free, s->kv_pages_total);
    printf("%-18s %llu requests, %llu prompt and %llu generated tokens, %llu steps\n", "so far",
            (unsigned long long)s->requests_total, (unsigned long long)s->prompt_tokens_total,
            (unsigned long long)s->generated_tokens_total, (unsigned long long)s->steps_total);
    if (s->prefix_cache)
        print_prefix_cache(s->prefix_cache);
    for (size_t i = 0; i < s->n_drafters; i++)
        print_drafter(s->drafters[i]);
    printf("%-18s group %llu, coordinator %llu\n", "starts", (unsigned long long)s->group_epoch,
            (unsigned long long)s->coord_epoch);
}

static void print_table(const struct client *c, const struct answers *a) {
    const ProtobufCBinaryData *state = &a->server->state;
    printf("%-18s %.*s%s\n", client_address(c), (int)state->len, (const char *)state->data,
            healthy(a) ? "" : " (health: NOT_SERVING)");
    if (a->model)
        print_model(a->model);
    print_server(a->server);
}

static json_t *list_of(const ProtobufCBinaryData *items, size_t n) {
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_of_bytes(items[i]));
    return list;
}

static void put(json_t *o, const char *name, uint64_t value) {
    json_object_set_new(o, name, json_integer((json_int_t)value));
}

static json_t *json_of_drafters(Shardd__V1__DrafterInfo *const *all, size_t n) {
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *o = json_object();
        json_object_set_new(o, "name", json_of_bytes(all[i]->name));
        put(o, "drafts_max", all[i]->drafts_max);
        put(o, "drafts_proposed", all[i]->drafts_proposed);
        put(o, "drafts_accepted", all[i]->drafts_accepted);
        json_object_set_new(o, "silent", json_boolean(all[i]->silent));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *json_of_prefix_cache(const Shardd__V1__PrefixCacheInfo *p) {
    json_t *o = json_object();
    put(o, "states", p->states);
    put(o, "states_max", p->states_max);
    put(o, "kv_pages", p->kv_pages);
    put(o, "hits", p->hits);
    put(o, "cached_tokens", p->cached_tokens);
    put(o, "evictions", p->evictions);
    put(o, "host_pages", p->host_pages);
    put(o, "host_pages_max", p->host_pages_max);
    return o;
}

static json_t *json_of_server(const Shardd__V1__GetServerInfoResponse *s) {
    json_t *o = json_object();
    json_object_set_new(o, "version", json_of_bytes(s->version));
    json_object_set_new(o, "state", json_of_bytes(s->state));
    json_object_set_new(o, "devices", list_of(s->devices, s->n_devices));
    put(o, "uptime_ms", s->uptime_ms);
    put(o, "tensor_parallel_size", s->tensor_parallel_size);
    put(o, "max_num_seqs", s->max_num_seqs);
    put(o, "max_num_batched_tokens", s->max_num_batched_tokens);
    put(o, "max_queue", s->max_queue);
    put(o, "kv_pages_total", s->kv_pages_total);
    put(o, "kv_pages_free", s->kv_pages_free);
    put(o, "running", s->running);
    put(o, "waiting", s->waiting);
    put(o, "requests_total", s->requests_total);
    put(o, "prompt_tokens_total", s->prompt_tokens_total);
    put(o, "generated_tokens_total", s->generated_tokens_total);
    put(o, "steps_total", s->steps_total);
    put(o, "group_epoch", s->group_epoch);
    put(o, "coord_epoch", s->coord_epoch);
    if (s->prefix_cache)
        json_object_set_new(o, "prefix_cache", json_of_prefix_cache(s->prefix_cache));
    json_object_set_new(o, "drafters", json_of_drafters(s->drafters, s->n_drafters));
    return o;
}

static json_t *json_of_model(const Shardd__V1__GetModelInfoResponse *m) {
    json_t *o = json_object();
    json_object_set_new(o, "served_names", list_of(m->served_names, m->n_served_names));
    json_object_set_new(o, "path", json_of_bytes(m->path));
    json_object_set_new(o, "architecture", json_of_bytes(m->architecture));
    json_object_set_new(o, "chat_template", json_of_bytes(m->chat_template));
    json_object_set_new(o, "weight_fingerprint", json_of_bytes(m->weight_fingerprint));
    json_object_set_new(o, "stop_token_ids", json_of_ids(m->stop_token_ids, m->n_stop_token_ids));
    json_object_set_new(o, "input_kinds", list_of(m->input_kinds, m->n_input_kinds));
    json_object_set_new(o, "thinks_by_default", json_boolean(m->thinks_by_default));
    json_object_set_new(o, "has_mtp", json_boolean(m->has_mtp));
    if (m->default_sampling)
        json_object_set_new(o, "default_sampling", json_of_sampling(m->default_sampling));
    put(o, "vocab_size", m->vocab_size);
    put(o, "max_model_len", m->max_model_len);
    put(o, "weight_bytes", m->weight_bytes);
    return o;
}

static void print_json(const struct client *c, const struct answers *a) {
    json_t *o = json_object();
    json_object_set_new(o, "address", json_string(client_address(c)));
    json_object_set_new(o, "healthy", json_boolean(healthy(a)));
    json_object_set_new(o, "server", json_of_server(a->server));
    if (a->model)
        json_object_set_new(o, "model", json_of_model(a->model));
    json_dumpf(o, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(o);
}

int verb_status(const struct options *o) {
    struct error e;
    struct client *c = NULL;
    signal(SIGPIPE, SIG_IGN);
    if (o->n_positional) {
        fprintf(stderr, "shardd status: '%s' is too much; name a service with --server\n", o->positional[0]);
        return EXIT_USAGE;
    }
    if (client_open(options_text(o, OPT_SERVER), &c, &e) < 0) {
        fprintf(stderr, "shardd status: %s\n", e.text);
        return EXIT_USAGE;
    }
    struct answers a = {0};
    struct client_status status;
    uint64_t timeout_ms = options_given(o, OPT_TIMEOUT) ? options_number(o, OPT_TIMEOUT) : STATUS_TIMEOUT_MS;
    ask_all(c, timeout_ms, &a, &status);
    int code = EXIT_FAILED;
    if (a.server) { /* a service that loads may not know its model yet */
        if (options_number(o, OPT_JSON))
            print_json(c, &a);
        else
            print_table(c, &a);
        code = healthy(&a) ? EXIT_OK : EXIT_FAILED;
    }
    if (status.code != 0 && (!a.server || healthy(&a)))
        code = client_report(c, &status);
    answers_done(&a);
    client_close(c);
    return code;
}
