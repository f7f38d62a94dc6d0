/* methods.c - the small methods over the wire: tokenize, infos, health, reflection, unknown ones; drain. */
#include "tests/unit/service/harness.h"

#include "grpc/reflection/v1/reflection.pb-c.h"

#include <pthread.h>

#define SERVING     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define UNKNOWN     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN

static void test_tokenize_and_back(void **state) {
    (void)state;
    static const char text[] = "Grüße an 世界 <|im_end|>";
    Shardd__V1__TokenizeRequest q = SHARDD__V1__TOKENIZE_REQUEST__INIT;
    struct client_call *c;
    q.input_case = SHARDD__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    q.text = message_string(text);
    q.with_pieces = true;
    Shardd__V1__TokenizeResponse *r = (Shardd__V1__TokenizeResponse *)ask(
            "/shardd.v1.Shardd/Tokenize", &q.base, &shardd__v1__tokenize_response__descriptor, &c);
    client_free(c);
    assert_non_null(r);
    assert_int_equal(r->n_pieces, r->n_ids);
    char joined[TEXT_MAX] = "";
    for (size_t i = 0; i < r->n_pieces; i++)
        append(joined, r->pieces[i]);
    assert_string_equal(joined, text);
    Shardd__V1__DetokenizeRequest b = SHARDD__V1__DETOKENIZE_REQUEST__INIT;
    b.n_ids = r->n_ids;
    b.ids = r->ids;
    Shardd__V1__DetokenizeResponse *t = (Shardd__V1__DetokenizeResponse *)ask(
            "/shardd.v1.Shardd/Detokenize", &b.base, &shardd__v1__detokenize_response__descriptor, &c);
    client_free(c);
    assert_int_equal(t->text.len, strlen(text));
    assert_memory_equal(t->text.data, text, t->text.len);
    shardd__v1__tokenize_response__free_unpacked(r, NULL);
    shardd__v1__detokenize_response__free_unpacked(t, NULL);
}

static void refused(const char *path, const ProtobufCMessage *m, grpc_status_code status, const char *word) {
    struct client_call *c;
    assert_null(ask(path, m, &shardd__v1__abort_response__descriptor, &c));
    assert_int_equal(c->status, status);
    assert_string_equal(c->code, word);
    assert_string_not_equal(c->text, "");
    client_free(c);
}

static void test_refusals(void **state) {
    (void)state;
    Shardd__V1__TokenizeRequest t = SHARDD__V1__TOKENIZE_REQUEST__INIT;
    refused("/shardd.v1.Shardd/Tokenize", &t.base, GRPC_STATUS_INVALID_ARGUMENT, "missing_input");
    t.model = message_string("other");
    refused("/shardd.v1.Shardd/Tokenize", &t.base, GRPC_STATUS_NOT_FOUND, "unknown_model");
    Shardd__V1__DetokenizeRequest d = SHARDD__V1__DETOKENIZE_REQUEST__INIT;
    uint32_t id = 4000000;
    d.n_ids = 1;
    d.ids = &id;
    refused("/shardd.v1.Shardd/Detokenize", &d.base, GRPC_STATUS_INVALID_ARGUMENT, "invalid_field");
    Shardd__V1__GetModelInfoRequest m = SHARDD__V1__GET_MODEL_INFO_REQUEST__INIT;
    m.model = message_string("other");
    refused("/shardd.v1.Shardd/GetModelInfo", &m.base, GRPC_STATUS_NOT_FOUND, "unknown_model");
    refused("/shardd.v1.Shardd/Nothing", &m.base, GRPC_STATUS_UNIMPLEMENTED, "unknown_method");
    refused("/vllm.grpc.engine.VllmEngine/HealthCheck", &m.base, GRPC_STATUS_UNIMPLEMENTED, "unknown_method");
    Grpc__Health__V1__HealthCheckRequest h = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    h.service = message_string("no.such");
    refused("/grpc.health.v1.Health/Check", &h.base, GRPC_STATUS_NOT_FOUND, "unknown_service");
    Shardd__V1__AbortRequest a = SHARDD__V1__ABORT_REQUEST__INIT;
    refused("/shardd.v1.Shardd/Abort", &a.base, GRPC_STATUS_INVALID_ARGUMENT, "missing_input");
    ProtobufCBinaryData bad = message_string("a b");
    a.n_request_ids = 1;
    a.request_ids = &bad;
    refused("/shardd.v1.Shardd/Abort", &a.base, GRPC_STATUS_INVALID_ARGUMENT, "invalid_field");
    a.all = true;
    refused("/shardd.v1.Shardd/Abort", &a.base, GRPC_STATUS_INVALID_ARGUMENT, "conflicting_fields");
}

static void test_infos(void **state) {
    (void)state;
    struct client_call *c;
    Shardd__V1__GetModelInfoRequest m = SHARDD__V1__GET_MODEL_INFO_REQUEST__INIT;
    Shardd__V1__GetModelInfoResponse *i = (Shardd__V1__GetModelInfoResponse *)ask(
            "/shardd.v1.Shardd/GetModelInfo", &m.base, &shardd__v1__get_model_info_response__descriptor, &c);
    client_free(c);
    assert_int_equal(i->n_served_names, 2);
    assert_true(message_is(i->served_names[0], "test"));
    assert_int_equal(i->max_model_len, 4096);
    assert_int_equal(i->n_stop_token_ids, 2);
    assert_true(message_is(i->weight_fingerprint, "0123456789abcdef"));
    assert_true(message_is(i->chat_template, "qwen3.5"));
    assert_int_equal(i->default_sampling->top_k, 20);
    shardd__v1__get_model_info_response__free_unpacked(i, NULL);
    Shardd__V1__GetServerInfoRequest s = SHARDD__V1__GET_SERVER_INFO_REQUEST__INIT;
    Shardd__V1__GetServerInfoResponse *r =
            (Shardd__V1__GetServerInfoResponse *)ask("/shardd.v1.Shardd/GetServerInfo", &s.base,
                    &shardd__v1__get_server_info_response__descriptor, &c);
    client_free(c);
    assert_true(message_is(r->state, "serving"));
    assert_true(message_is(r->version, SHARDD_VERSION));
    assert_int_equal(r->n_devices, 2);
    assert_true(message_is(r->devices[1], "fake 1"));
    shardd__v1__get_server_info_response__free_unpacked(r, NULL);
}

/* What Generate may give, Detokenize takes: the ids between the tokenizer's and the end of the model's vocabulary
 * have no text, and do not cut a character in two that stands around them. */
static void test_detokenize_takes_every_id_of_the_model(void **state) {
    (void)state;
    uint32_t known = tokenizer_vocab_size(harness->model->tokenizer), *of_text = NULL, ids[64];
    const uint32_t vocab_size = 100000; /* of the fake engine */
    size_t n = 0, of_text_n = 0;
    assert_true(known < vocab_size);
    assert_int_equal(tokenizer_encode(harness->model->tokenizer, "a \xf0\x9f\x91\xa9", 6, false, 16, &of_text,
                             &of_text_n, NULL),
            0);
    assert_true(of_text_n > 2);
    for (size_t i = 0; i < of_text_n; i++) {
        ids[n++] = of_text[i];
        ids[n++] = i % 2 ? known : vocab_size - 1;
    }
    free(of_text);
    Shardd__V1__DetokenizeRequest q = SHARDD__V1__DETOKENIZE_REQUEST__INIT;
    q.ids = ids;
    q.n_ids = n;
    struct client_call *c;
    Shardd__V1__DetokenizeResponse *a = (Shardd__V1__DetokenizeResponse *)ask(
            "/shardd.v1.Shardd/Detokenize", &q.base, &shardd__v1__detokenize_response__descriptor, &c);
    client_free(c);
    assert_non_null(a);
    assert_true(message_is(a->text, "a \xf0\x9f\x91\xa9"));
    shardd__v1__detokenize_response__free_unpacked(a, NULL);
    ids[0] = vocab_size;
    refused("/shardd.v1.Shardd/Detokenize", &q.base, GRPC_STATUS_INVALID_ARGUMENT, "invalid_field");
}

static void assert_state(const char *state) {
    struct client_call *c;
    Shardd__V1__GetServerInfoRequest s = SHARDD__V1__GET_SERVER_INFO_REQUEST__INIT;
    Shardd__V1__GetServerInfoResponse *r =
            (Shardd__V1__GetServerInfoResponse *)ask("/shardd.v1.Shardd/GetServerInfo", &s.base,
                    &shardd__v1__get_server_info_response__descriptor, &c);
    client_free(c);
    assert_true(message_is(r->state, state));
    shardd__v1__get_server_info_response__free_unpacked(r, NULL);
}

/* A client that sees "serving" may act on it, so the launcher must know first: health decides. */
static void test_state_does_not_run_ahead_of_health(void **state) {
    (void)state;
    assert_state("serving");
    service_set_health(&harness->service, false, harness->server);
    assert_state("recovering");
    atomic_store(&harness->service.served, false);
    assert_state("loading");
    fake_state = "recovering";
    service_set_health(&harness->service, true, harness->server);
    assert_state("recovering");
}

static int next_state(struct client_call *c) {
    struct client_bytes b = client_next(c);
    if (!b.data)
        return -1;
    Grpc__Health__V1__HealthCheckResponse *r =
            grpc__health__v1__health_check_response__unpack(NULL, b.n, (uint8_t *)b.data);
    int state = r->status;
    grpc__health__v1__health_check_response__free_unpacked(r, NULL);
    free(b.data);
    return state;
}

static struct client_call *watch(const char *service) {
    Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    q.service = message_string(service);
    return call("/grpc.health.v1.Health/Watch", &q.base, 0);
}

static void *stop_main(void *arg) {
    rpc_server_stop(arg, 60000, 60000);
    return NULL;
}

static void test_health_follows_the_engine(void **state) {
    (void)state;
    Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    struct client_call *all = watch(""), *one = watch("shardd.v1.Shardd"), *none = watch("no.such"), *c;
    assert_int_equal(next_state(all), SERVING);
    assert_int_equal(next_state(one), SERVING);
    assert_int_equal(next_state(none), UNKNOWN);
    service_set_health(&harness->service, false, harness->server);
    assert_int_equal(next_state(all), NOT_SERVING);
    assert_int_equal(next_state(one), NOT_SERVING);
    Grpc__Health__V1__HealthCheckResponse *r =
            (Grpc__Health__V1__HealthCheckResponse *)ask("/grpc.health.v1.Health/Check", &q.base,
                    &grpc__health__v1__health_check_response__descriptor, &c);
    client_free(c);
    assert_int_equal(r->status, NOT_SERVING);
    grpc__health__v1__health_check_response__free_unpacked(r, NULL);
    service_set_health(&harness->service, true, harness->server);
    assert_int_equal(next_state(all), SERVING);
    assert_int_equal(next_state(one), SERVING);

    pthread_t thread; /* endless streams do not hold the server: it ends them, and says so */
    pthread_create(&thread, NULL, stop_main, harness->server);
    assert_int_equal(next_state(all), NOT_SERVING);
    struct client_call *calls[] = {all, one, none};
    for (int i = 0; i < 3; i++) {
        while (next_state(calls[i]) >= 0)
            ;
        assert_int_equal(client_finish(calls[i]), GRPC_STATUS_UNAVAILABLE);
        assert_string_equal(calls[i]->code, "draining");
        client_free(calls[i]);
    }
    client_close(&harness->client); /* hangs up, and is opened again for the teardown */
    pthread_join(thread, NULL);
    harness->client = client_open(harness->address, NULL);
}

static void test_reflection(void **state) {
    (void)state;
    static const char *const paths[] = {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"};
    for (int version = 0; version < 2; version++) {
        struct client_call *c = client_call(&harness->client, paths[version], NULL, 0, 60000);
        for (int question = 0; question < 3; question++) {
            Grpc__Reflection__V1__ServerReflectionRequest q =
                    GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
            q.message_request_case =
                    question == 0
                            ? GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES
                            : GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL;
            q.list_services = message_string(question == 0   ? ""
                                             : question == 1 ? "shardd.v1.Shardd"
                                                             : "no.such");
            uint8_t bytes[256];
            client_send(c, bytes, protobuf_c_message_pack(&q.base, bytes));
            struct client_bytes b = client_next(c);
            assert_non_null(b.data);
            Grpc__Reflection__V1__ServerReflectionResponse *r =
                    grpc__reflection__v1__server_reflection_response__unpack(NULL, b.n, (uint8_t *)b.data);
            free(b.data);
            if (question == 0)
                assert_int_equal(r->list_services_response->n_service, 4);
            else if (question == 1)
                assert_int_equal(r->file_descriptor_response->n_file_descriptor_proto, 1);
            else
                assert_int_equal(r->error_response->error_code, GRPC_STATUS_NOT_FOUND);
            assert_int_equal(r->original_request->message_request_case, q.message_request_case);
            grpc__reflection__v1__server_reflection_response__free_unpacked(r, NULL);
        }
        client_half_close(c);
        struct client_bytes b = client_next(c);
        assert_null(b.data);
        assert_int_equal(client_finish(c), GRPC_STATUS_OK);
        client_free(c);
    }
}

/* New work is refused while the old ends, with a code that says: elsewhere, or later. */
static void test_drain_lets_streams_end(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    pthread_t thread;
    script("one two three four five six", NULL, 0, ENGINE_FINISH_LENGTH);
    atomic_store(&fake_hold, true);
    struct client_call *running = call("/shardd.v1.Shardd/Generate", &q.base, 0);
    while (atomic_load(&fake_live) < 1)
        usleep(200);
    engine_drain(&fake_engine);
    pthread_create(&thread, NULL, stop_main, harness->server);
    while (!rpc_server_draining(harness->server))
        usleep(200);
    struct answer *a = generate(&q);
    assert_int_equal(a->status, GRPC_STATUS_UNAVAILABLE);
    assert_string_equal(a->code, "draining");
    assert_string_equal(a->retryable, "true");
    free(a);
    atomic_store(&fake_hold, false);
    a = collect(running);
    assert_int_equal(a->status, GRPC_STATUS_OK);
    assert_string_equal(a->text, "one two three four five six");
    free(a);
    client_close(&harness->client);
    pthread_join(thread, NULL);
    harness->client = client_open(harness->address, NULL);
}

int main(void) {
    log_open("unit-service-methods", LOG_LEVEL_ERROR);
#define T(name) cmocka_unit_test_setup_teardown(name, harness_up, harness_down)
    const struct CMUnitTest tests[] = {
            T(test_tokenize_and_back),
            T(test_detokenize_takes_every_id_of_the_model),
            T(test_refusals),
            T(test_infos),
            T(test_state_does_not_run_ahead_of_health),
            T(test_health_follows_the_engine),
            T(test_reflection),
            T(test_drain_lets_streams_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
