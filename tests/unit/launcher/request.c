/* What the command line becomes on the wire, and what comes back as JSON. */
#include "launcher/client/request.h"
#include "launcher/client/chunk_json.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *no_environment[] = {NULL};

static Shardd__V1__GenerateRequest *pack(char *const argv[], const struct request_input *input) {
    struct options o;
    struct error e = {0};
    uint8_t *bytes = NULL;
    size_t n = 0;
    int words = 0;
    while (argv[words])
        words++;
    options_init(&o, VERB_GENERATE);
    if (options_load(&o, argv, words, no_environment, &e) < 0 || request_pack(&o, input, &bytes, &n, &e) < 0)
        fail_msg("%s", e.text);
    Shardd__V1__GenerateRequest *r = shardd__v1__generate_request__unpack(NULL, n, bytes);
    assert_non_null(r);
    free(bytes);
    options_done(&o);
    return r;
}
#define PACK(input, ...) pack((char *[]){__VA_ARGS__, NULL}, input)

static void assert_bytes(ProtobufCBinaryData b, const char *text) {
    assert_int_equal(b.len, strlen(text));
    assert_memory_equal(b.data, text, b.len);
}

static void test_unset_stays_unset(void **state) {
    (void)state;
    struct request_input input = {.text = "a\0b", .text_bytes = 3};
    Shardd__V1__GenerateRequest *r = PACK(&input, "hi");
    assert_int_equal(r->input_case, SHARDD__V1__GENERATE_REQUEST__INPUT_TEXT);
    assert_int_equal(r->text.len, 3);
    assert_int_equal(r->sampling->_temperature_case, 0);
    assert_int_equal(r->sampling->_seed_case, 0);
    assert_int_equal(r->stopping->_max_tokens_case, 0);
    assert_true(r->output->raw); /* the continuation of a text is text */
    assert_int_equal(r->model.len, 0);
    shardd__v1__generate_request__free_unpacked(r, NULL);
}

static void test_every_flag_arrives(void **state) {
    (void)state;
    struct request_input input = {.text = "hi", .text_bytes = 2};
    Shardd__V1__GenerateRequest *r = PACK(&input, "--temperature", "0", "--top-k", "5", "--top-p", "0.5",
            "--min-p", "0.25", "--repetition-penalty", "1.5", "--presence-penalty", "-1",
            "--frequency-penalty", "2", "--seed", "18446744073709551615", "--logit-bias", "7=-1.5",
            "--logit-bias", "8=2", "--max-tokens", "9", "--min-tokens", "3", "--stop", "END", "--stop",
            "\n\n", "--stop-token-id", "11", "--ignore-eos", "--stop-in-reasoning", "--json", "--logprobs",
            "4", "--token-ids", "--parse-special", "--request-id", "id-1", "--model-name", "m", "--answers",
            "3", "--queue-timeout", "1.5s", "--banned-token-id", "21", "--banned-token-id", "22",
            "--allowed-token-id", "30", "--allowed-token-id", "31", "--bad-word", "one", "--bad-word",
            "two words", "--prompt-logprobs", "0", "--echo", "hi");
    assert_int_equal(r->n, 3);
    assert_int_equal(r->queue_timeout_ms, 1500);
    assert_int_equal(r->sampling->n_banned_token_ids, 2);
    assert_int_equal(r->sampling->banned_token_ids[0], 21);
    assert_int_equal(r->sampling->banned_token_ids[1], 22);
    assert_int_equal(r->sampling->n_allowed_token_ids, 2);
    assert_int_equal(r->sampling->allowed_token_ids[1], 31);
    assert_int_equal(r->sampling->n_bad_words, 2);
    assert_bytes(r->sampling->bad_words[1], "two words");
    assert_true(r->output->_prompt_logprobs_case != 0);
    assert_int_equal(r->output->prompt_logprobs, 0);
    assert_true(r->output->echo);
    assert_int_equal(r->sampling->_temperature_case, 1);
    assert_true(r->sampling->temperature == 0);
    assert_int_equal(r->sampling->top_k, 5);
    assert_true(r->sampling->top_p == 0.5f && r->sampling->min_p == 0.25f);
    assert_true(r->sampling->repetition_penalty == 1.5f && r->sampling->presence_penalty == -1);
    assert_true(r->sampling->frequency_penalty == 2);
    assert_true(r->sampling->seed == UINT64_MAX);
    assert_int_equal(r->sampling->n_logit_bias, 2);
    assert_int_equal(r->sampling->logit_bias[0]->key, 7);
    assert_true(r->sampling->logit_bias[0]->value == -1.5f);
    assert_int_equal(r->stopping->max_tokens, 9);
    assert_int_equal(r->stopping->min_tokens, 3);
    assert_bytes(r->stopping->stop[0], "END");
    assert_bytes(r->stopping->stop[1], "\n\n");
    assert_int_equal(r->stopping->stop_token_ids[0], 11);
    assert_true(r->stopping->ignore_eos && r->stopping->stop_in_reasoning && r->parse_special);
    assert_true(r->output->logprobs && r->output->token_ids && !r->output->skip_text);
    assert_int_equal(r->output->top_logprobs, 4);
    assert_bytes(r->request_id, "id-1");
    assert_bytes(r->model, "m");
    shardd__v1__generate_request__free_unpacked(r, NULL);
}

static void test_chat(void **state) {
    (void)state;
    char system[] = "be brief", user[] = "hello";
    struct request_message messages[] = {{"system", system}, {"user", user}};
    struct request_input input = {.messages = messages, .n_messages = 2};
    Shardd__V1__GenerateRequest *r = PACK(&input, "--chat", "--thinking", "off", "hello");
    assert_int_equal(r->input_case, SHARDD__V1__GENERATE_REQUEST__INPUT_CHAT);
    assert_int_equal(r->chat->n_messages, 2);
    assert_bytes(r->chat->messages[0]->role, "system");
    assert_bytes(r->chat->messages[1]->content[0]->text, "hello");
    assert_int_equal(
            r->chat->_enable_thinking_case, SHARDD__V1__CHAT_INPUT___ENABLE_THINKING_ENABLE_THINKING);
    assert_false(r->chat->enable_thinking);
    assert_false(r->output->raw);
    shardd__v1__generate_request__free_unpacked(r, NULL);
}

static void test_ids(void **state) {
    (void)state;
    uint32_t *ids = NULL;
    size_t n = 0;
    struct error e = {0};
    assert_int_equal(request_parse_ids(" 1, 2 3\n4294967295 ", &ids, &n, &e), 0);
    assert_int_equal(n, 4);
    assert_true(ids[2] == 3 && ids[3] == UINT32_MAX);
    struct request_input input = {.ids = ids, .n_ids = n};
    Shardd__V1__GenerateRequest *r = PACK(&input, "--prompt-token-ids", "--token-ids", "1");
    assert_int_equal(r->token_ids->n_ids, 4);
    assert_true(r->output->token_ids && r->output->skip_text);
    shardd__v1__generate_request__free_unpacked(r, NULL);
    free(ids);
    assert_int_equal(request_parse_ids("", &ids, &n, &e), 0);
    assert_int_equal(n, 0);
    free(ids);
    static const char *const bad[] = {"1 x", "-1", "4294967296", "1;2", "0x10"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(request_parse_ids(bad[i], &ids, &n, &e), -EINVAL);
}

static void test_bad_pairs(void **state) {
    (void)state;
    static char *const bad[] = {"7", "7=", "=1", "7=x", "7=nan", "-7=1", "4294967296=1"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct options o;
        struct error e = {0};
        uint8_t *bytes = NULL;
        size_t n;
        struct request_input input = {.text = "hi", .text_bytes = 2};
        options_init(&o, VERB_GENERATE);
        char *argv[] = {"--logit-bias", bad[i], "hi"};
        assert_int_equal(options_load(&o, argv, 3, no_environment, &e), 0);
        assert_int_equal(request_pack(&o, &input, &bytes, &n, &e), -EINVAL);
        assert_non_null(strstr(e.text, "--logit-bias"));
        options_done(&o);
    }
}

static char *json_line(const Shardd__V1__GenerateChunk *chunk) {
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    assert_true(chunk_print_json(out, chunk));
    fclose(out);
    return text;
}

static void test_a_chunk_as_json(void **state) {
    (void)state;
    uint8_t text[] = "a\"\xff\xc3\xa9";
    uint32_t ids[] = {1, 2};
    Shardd__V1__Delta delta = SHARDD__V1__DELTA__INIT, *deltas[] = {&delta};
    delta.delta_case = SHARDD__V1__DELTA__DELTA_TEXT;
    delta.text = (ProtobufCBinaryData){.len = sizeof(text) - 1, .data = text};
    Shardd__V1__Finish finish = SHARDD__V1__FINISH__INIT;
    finish.reason = SHARDD__V1__FINISH_REASON__FINISH_REASON_LENGTH;
    Shardd__V1__GenerateChunk chunk = SHARDD__V1__GENERATE_CHUNK__INIT;
    chunk.index = 3;
    chunk.n_tokens = 2;
    chunk.n_deltas = 1;
    chunk.deltas = deltas;
    chunk.n_token_ids = 2;
    chunk.token_ids = ids;
    chunk.finish = &finish;
    char *line = json_line(&chunk);
    json_t *o = json_loads(line, 0, NULL);
    assert_non_null(o);
    assert_int_equal(strchr(line, '\n') - line, strlen(line) - 1);
    const char *shown =
            json_string_value(json_object_get(json_array_get(json_object_get(o, "deltas"), 0), "text"));
    assert_string_equal(shown, "a\"\xef\xbf\xbd\xc3\xa9");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(o, "token_ids"), 1)), 2);
    assert_string_equal(json_string_value(json_object_get(json_object_get(o, "finish"), "reason")), "length");
    assert_null(json_object_get(o, "started"));
    json_decref(o);
    free(line);
    finish.reason = (Shardd__V1__FinishReason)99; /* of a newer service */
    line = json_line(&chunk);
    assert_non_null(strstr(line, "unspecified"));
    free(line);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_unset_stays_unset),
            cmocka_unit_test(test_every_flag_arrives),
            cmocka_unit_test(test_chat),
            cmocka_unit_test(test_ids),
            cmocka_unit_test(test_bad_pairs),
            cmocka_unit_test(test_a_chunk_as_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
