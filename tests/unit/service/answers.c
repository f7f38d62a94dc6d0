/* answers.c - several answers of one request: each whole and in order, numbered; one end, good or bad, for all. */
#include "tests/unit/service/harness.h"

#define N 3u

struct several {
    char text[N][4096];
    uint32_t n_tokens[N], n_chunks, n_finished;
    int reason[N];
    uint64_t seed;
    bool total;
    uint32_t prompt_tokens, completion_tokens; /* of the total */
    uint32_t sum;                              /* of what each answer says itself */
    uint32_t answer_prompt;
};

static void add_to(struct several *s, const Shardd__V1__GenerateChunk *c) {
    assert_in_range(c->answer, 0, N - 1);
    assert_int_equal(c->index, s->n_chunks++);
    assert_int_equal(c->started != NULL, c->index == 0);
    assert_int_equal(c->first_token_index, s->n_tokens[c->answer]);
    assert_int_equal(s->reason[c->answer], 0); /* nothing comes behind its end */
    s->n_tokens[c->answer] += c->n_tokens;
    if (c->started)
        s->seed = c->started->sampling->seed;
    for (size_t i = 0; i < c->n_deltas; i++) {
        char *text = s->text[c->answer];
        size_t n = strlen(text);
        assert_true(n + c->deltas[i]->text.len < sizeof(s->text[0]));
        memcpy(text + n, c->deltas[i]->text.data, c->deltas[i]->text.len);
    }
    if (c->finish) {
        s->reason[c->answer] = c->finish->reason;
        s->sum += c->finish->usage->completion_tokens;
        s->answer_prompt = c->finish->usage->prompt_tokens;
        s->n_finished++;
    }
    assert_int_equal(c->total != NULL, s->n_finished == N);
    if (c->total) {
        s->prompt_tokens = c->total->prompt_tokens;
        s->completion_tokens = c->total->completion_tokens;
        s->total = true;
    }
}

static void take(struct client_call *c, struct several *s) {
    memset(s, 0, sizeof(*s));
    for (struct client_bytes b; (b = client_next(c)).data;) {
        Shardd__V1__GenerateChunk *chunk = shardd__v1__generate_chunk__unpack(NULL, b.n, (uint8_t *)b.data);
        assert_non_null(chunk);
        add_to(s, chunk);
        shardd__v1__generate_chunk__free_unpacked(chunk, NULL);
        free(b.data);
    }
}

static struct client_call *ask_for(Shardd__V1__GenerateRequest *q) {
    q->n = N;
    return call("/shardd.v1.Shardd/Generate", &q->base, 60000);
}

static void test_each_is_whole(void **state) {
    (void)state;
    static struct several s;
    Shardd__V1__SamplingParams p = SHARDD__V1__SAMPLING_PARAMS__INIT;
    for (uint32_t piece = 1; piece < 80; piece = piece * 5 + 2) {
        Shardd__V1__GenerateRequest q = text_request("Say it");
        q.sampling = &p;
        p._seed_case = SHARDD__V1__SAMPLING_PARAMS___SEED_SEED;
        p.seed = UINT64_MAX; /* seeds go on at 0 */
        script("one two three four five six seven eight", NULL, 0, ENGINE_FINISH_LENGTH);
        atomic_store(&fake_piece, piece);
        uint32_t first = atomic_load(&fake_submits);
        struct client_call *c = ask_for(&q);
        take(c, &s);
        assert_int_equal(client_finish(c), GRPC_STATUS_OK);
        for (uint32_t i = 0; i < N; i++) {
            assert_string_equal(s.text[i], "one two three four five six seven eight");
            assert_int_equal(s.n_tokens[i], fake_script_n);
            assert_int_equal(s.reason[i], SHARDD__V1__FINISH_REASON__FINISH_REASON_LENGTH);
            assert_true(atomic_load(&fake_seeds[(first + i) % 8]) == UINT64_MAX + i);
        }
        assert_true(s.seed == UINT64_MAX && s.total);
        assert_int_equal(s.completion_tokens, N * fake_script_n);
        assert_int_equal(s.completion_tokens, s.sum);
        assert_int_equal(s.prompt_tokens, s.answer_prompt);
        client_free(c);
    }
}

/* Ids and stops are each answer's own. */
static void test_stop_strings(void **state) {
    (void)state;
    static struct several s;
    Shardd__V1__GenerateRequest q = text_request("Say it");
    Shardd__V1__StoppingParams p = SHARDD__V1__STOPPING_PARAMS__INIT;
    ProtobufCBinaryData stops[] = {message_string(" three")};
    p.n_stop = 1;
    p.stop = stops;
    q.stopping = &p;
    script("one two three four five", NULL, 0, ENGINE_FINISH_LENGTH);
    struct client_call *c = ask_for(&q);
    take(c, &s);
    assert_int_equal(client_finish(c), GRPC_STATUS_OK);
    for (uint32_t i = 0; i < N; i++) {
        assert_string_equal(s.text[i], "one two");
        assert_int_equal(s.reason[i], SHARDD__V1__FINISH_REASON__FINISH_REASON_STOP);
    }
    assert_int_equal(atomic_load(&fake_finishes), N);
    client_free(c);
}

static void test_abort_ends_all(void **state) {
    (void)state;
    static struct several s;
    Shardd__V1__GenerateRequest q = text_request("x");
    Shardd__V1__AbortRequest a = SHARDD__V1__ABORT_REQUEST__INIT;
    ProtobufCBinaryData id = message_string("mine");
    q.request_id = id;
    a.n_request_ids = 1;
    a.request_ids = &id;
    atomic_store(&fake_hold, true);
    script("one", NULL, 0, ENGINE_FINISH_LENGTH);
    struct client_call *c = ask_for(&q), *other;
    Shardd__V1__AbortResponse *answer;
    uint32_t found = 0;
    while (found == 0) { /* it may not have come yet */
        answer = (Shardd__V1__AbortResponse *)ask(
                "/shardd.v1.Shardd/Abort", &a.base, &shardd__v1__abort_response__descriptor, &other);
        assert_non_null(answer);
        found = answer->found;
        protobuf_c_message_free_unpacked(&answer->base, NULL);
        client_free(other);
    }
    assert_int_equal(found, 1);
    take(c, &s);
    assert_int_equal(client_finish(c), GRPC_STATUS_OK);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(s.reason[i], SHARDD__V1__FINISH_REASON__FINISH_REASON_ABORTED);
    client_free(c);
}

static void test_cancel_ends_all(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    atomic_store(&fake_hold, true);
    script("one", NULL, 0, ENGINE_FINISH_LENGTH);
    struct client_call *c = ask_for(&q);
    struct client_bytes b = client_next(c); /* started */
    free(b.data);
    client_cancel(c);
    client_finish(c);
    client_free(c);
    while (atomic_load(&fake_cancels) < N)
        usleep(1000);
}

/* A fault of one is the call's end; the others are not left running (tear down waits for their streams). */
static void test_a_fault_ends_all(void **state) {
    (void)state;
    static struct several s;
    Shardd__V1__GenerateRequest q = text_request("x");
    script("one", NULL, 0, ENGINE_FINISH_FAULT);
    struct client_call *c = ask_for(&q);
    take(c, &s);
    assert_int_equal(client_finish(c), GRPC_STATUS_INTERNAL);
    assert_int_equal(s.n_finished, 0);
    assert_string_equal(c->code, "worker_fault");
    client_free(c);
}

/* No room for the third: the first two are taken back, and nothing was started. */
static void test_all_or_none(void **state) {
    (void)state;
    static struct several s;
    Shardd__V1__GenerateRequest q = text_request("x");
    atomic_store(&fake_hold, true);
    atomic_store(&fake_takes, 2);
    atomic_store(&fake_submit_code, -EAGAIN);
    struct client_call *c = ask_for(&q);
    take(c, &s);
    assert_int_equal(client_finish(c), GRPC_STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(s.n_chunks, 0);
    assert_int_equal(atomic_load(&fake_cancels), 2);
    client_free(c);
    q.n = ANSWERS_MAX + 1;
    c = call("/shardd.v1.Shardd/Generate", &q.base, 60000);
    take(c, &s);
    assert_int_equal(client_finish(c), GRPC_STATUS_INVALID_ARGUMENT);
    assert_string_equal(c->text, "n is 17; give 1 to 16 answers");
    client_free(c);
}

int main(void) {
    log_open("unit-service-answers", LOG_LEVEL_ERROR);
#define T(name) cmocka_unit_test_setup_teardown(name, harness_up, harness_down)
    const struct CMUnitTest tests[] = {T(test_each_is_whole), T(test_stop_strings), T(test_abort_ends_all),
            T(test_cancel_ends_all), T(test_a_fault_ends_all), T(test_all_or_none)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
