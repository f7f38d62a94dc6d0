/* generate.c - Generate over the wire with a scripted engine: what a client sees of tokens, stops, parsing
 * and ends. */
#include "base/file.h"
#include "tests/unit/service/harness.h"

#define LENGTH     SHARDD__V1__FINISH_REASON__FINISH_REASON_LENGTH
#define STOP       SHARDD__V1__FINISH_REASON__FINISH_REASON_STOP
#define TOOL_CALLS SHARDD__V1__FINISH_REASON__FINISH_REASON_TOOL_CALLS
#define ABORTED    SHARDD__V1__FINISH_REASON__FINISH_REASON_ABORTED

static const char mixed[] =
        "Grüße, \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80 und 世界! \xf0\x9f\x87\xa9\xf0\x9f\x87\xaa end.";

static void test_text_and_ids(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("Say it");
    Shardd__V1__OutputOptions o = SHARDD__V1__OUTPUT_OPTIONS__INIT;
    o.token_ids = true;
    q.output = &o;
    script(mixed, NULL, 0, ENGINE_FINISH_LENGTH);
    struct answer *a = generate(&q);
    assert_int_equal(a->status, GRPC_STATUS_OK);
    assert_string_equal(a->text, mixed);
    assert_true(a->finished);
    assert_int_equal(a->reason, LENGTH);
    assert_int_equal(a->n_ids, fake_script_n);
    assert_memory_equal(a->ids, fake_script, a->n_ids * sizeof(a->ids[0]));
    assert_int_equal(a->completion_tokens, a->n_ids);
    assert_int_equal(a->n_tokens, a->n_ids);
    assert_true(a->prompt_tokens > 0);
    assert_true(a->temperature == 1.0);
    assert_int_equal(a->max_tokens, 4096 - a->prompt_tokens);
    assert_int_equal(a->started_id[0], 'g');
    free(a);
}

static void test_an_unfinished_character_comes_out_at_the_end(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    uint32_t *ids = NULL;
    size_t n = 0;
    assert_int_equal(
            tokenizer_encode(harness->model->tokenizer, "\xf0\x9f\x91\xa9", 4, false, 16, &ids, &n, NULL), 0);
    assert_true(n > 1); /* else the script has no half of a character */
    fake_script_set(ids, (uint32_t)n - 1, ENGINE_FINISH_LENGTH);
    free(ids);
    struct answer *a = generate(&q);
    assert_int_equal(a->status, GRPC_STATUS_OK);
    assert_non_null(strstr(a->text, "\xef\xbf\xbd"));
    free(a);
}

static void test_stop_string(void **state) {
    (void)state;
    for (int include = 0; include < 2; include++) {
        Shardd__V1__GenerateRequest q = text_request("x");
        Shardd__V1__StoppingParams p = SHARDD__V1__STOPPING_PARAMS__INIT;
        ProtobufCBinaryData stops[] = {message_string("never"), message_string("two th")};
        p.n_stop = 2;
        p.stop = stops;
        p.include_stop = include;
        q.stopping = &p;
        script("one two three four", NULL, 0, ENGINE_FINISH_LENGTH);
        struct answer *a = generate(&q);
        assert_string_equal(a->text, include ? "one two th" : "one ");
        assert_int_equal(a->reason, STOP);
        assert_string_equal(a->stop_string, "two th");
        assert_int_equal(a->completion_tokens, a->n_tokens);
        assert_true(a->n_tokens < fake_script_n);
        free(a);
    }
}

/* The engine is told after which token the string was complete, while it would go on. */
static void test_stop_string_frees_the_engine(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    Shardd__V1__StoppingParams p = SHARDD__V1__STOPPING_PARAMS__INIT;
    ProtobufCBinaryData stop = message_string(" b");
    p.n_stop = 1;
    p.stop = &stop;
    q.stopping = &p;
    uint32_t ids[2000], *one = NULL;
    size_t n = 0;
    assert_int_equal(tokenizer_encode(harness->model->tokenizer, "a b c", 5, false, 16, &one, &n, NULL), 0);
    for (size_t i = 0; i < 2000; i++)
        ids[i] = one[i % n];
    free(one);
    fake_script_set(ids, 2000, ENGINE_FINISH_LENGTH);
    uint64_t before = atomic_load(&harness->service.sent_tokens_total);
    struct answer *a = generate(&q);
    assert_string_equal(a->text, "a");
    assert_int_equal(atomic_load(&harness->service.sent_tokens_total) - before, a->n_tokens);
    assert_int_equal(atomic_load(&fake_finishes), 1);
    assert_int_equal(atomic_load(&fake_finish_tokens), a->n_tokens);
    assert_int_equal(atomic_load(&fake_cancels), 0);
    free(a);
}

/* At least min_tokens tokens, whatever they say. */
static void test_min_tokens_win_over_stop_strings(void **state) {
    (void)state;
    script("a b a b a b a b", NULL, 0, ENGINE_FINISH_LENGTH);
    uint32_t all = fake_script_n;
    for (uint32_t least = 0; least <= all; least++) {
        Shardd__V1__GenerateRequest q = text_request("x");
        Shardd__V1__StoppingParams p = SHARDD__V1__STOPPING_PARAMS__INIT;
        ProtobufCBinaryData stop = message_string("b");
        p.n_stop = 1;
        p.stop = &stop;
        p.min_tokens = least;
        p.include_stop = true;
        q.stopping = &p;
        for (int piece = 1; piece < 4; piece += 2) {
            atomic_store(&fake_piece, piece);
            struct answer *a = generate(&q);
            assert_int_equal(a->reason, least < all ? STOP : LENGTH);
            if (least < all) /* the first b after them, and not a later one */
                assert_in_range(a->completion_tokens, least + 1, least + 2);
            assert_int_equal(a->text[strlen(a->text) - 1], 'b');
            free(a);
        }
    }
}

static void test_held_back_text_comes_out(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    Shardd__V1__StoppingParams p = SHARDD__V1__STOPPING_PARAMS__INIT;
    ProtobufCBinaryData stop = message_string("four five");
    p.n_stop = 1;
    p.stop = &stop;
    q.stopping = &p;
    script("one two four", NULL, 0, ENGINE_FINISH_LENGTH);
    struct answer *a = generate(&q);
    assert_string_equal(a->text, "one two four");
    assert_int_equal(a->reason, LENGTH);
    free(a);
}

static void test_stop_id(void **state) {
    (void)state;
    uint32_t end = harness->model->generation.stop_ids[0];
    for (int show = 0; show < 2; show++) {
        Shardd__V1__GenerateRequest q = text_request("x");
        Shardd__V1__OutputOptions o = SHARDD__V1__OUTPUT_OPTIONS__INIT;
        o.token_ids = true;
        o.show_special = show;
        q.output = &o;
        script("Bye", &end, 1, ENGINE_FINISH_STOP_ID);
        struct answer *a = generate(&q);
        assert_string_equal(a->text, "Bye");
        assert_int_equal(a->reason, STOP);
        assert_true(a->has_stop_id);
        assert_int_equal(a->stop_id, end);
        assert_int_equal(a->ids[a->n_ids - 1], end);
        free(a);
    }
}

struct chat_draft {
    Shardd__V1__GenerateRequest q;
    Shardd__V1__ChatInput chat;
    Shardd__V1__Message message, *messages[1];
    Shardd__V1__Part part, *parts[1];
    Shardd__V1__Tool tool, *tools[1];
    Shardd__V1__OutputOptions output;
};

static void chat_init(struct chat_draft *d, bool tools, bool thinking, bool raw) {
    shardd__v1__generate_request__init(&d->q);
    shardd__v1__chat_input__init(&d->chat);
    shardd__v1__message__init(&d->message);
    shardd__v1__part__init(&d->part);
    shardd__v1__tool__init(&d->tool);
    shardd__v1__output_options__init(&d->output);
    d->q.input_case = SHARDD__V1__GENERATE_REQUEST__INPUT_CHAT;
    d->q.chat = &d->chat;
    d->q.output = &d->output;
    d->output.raw = raw;
    d->messages[0] = &d->message;
    d->chat.messages = d->messages;
    d->chat.n_messages = 1;
    d->chat._enable_thinking_case = SHARDD__V1__CHAT_INPUT___ENABLE_THINKING_ENABLE_THINKING;
    d->chat.enable_thinking = thinking;
    d->message.role = message_string("user");
    d->parts[0] = &d->part;
    d->message.content = d->parts;
    d->message.n_content = 1;
    d->part.part_case = SHARDD__V1__PART__PART_TEXT;
    d->part.text = message_string("Hi");
    d->tool.json = message_string(
            "{\"type\":\"function\",\"function\":{\"name\":\"weather\",\"parameters\":{\"type\":\"object\","
            "\"properties\":{\"days\":{\"type\":\"integer\"},\"city\":{\"type\":\"string\"}}}}}");
    d->tools[0] = &d->tool;
    d->chat.tools = d->tools;
    d->chat.n_tools = tools;
}

static void test_reasoning(void **state) {
    (void)state;
    struct chat_draft d;
    chat_init(&d, false, true, false);
    script("Let me see.\n</think>\n\nIt is 4.", NULL, 0, ENGINE_FINISH_LENGTH);
    struct answer *a = generate(&d.q);
    assert_int_equal(a->status, GRPC_STATUS_OK);
    assert_non_null(strstr(a->reasoning, "Let me see."));
    assert_null(strstr(a->reasoning, "think"));
    assert_string_equal(a->text, "It is 4.");
    assert_true(a->reasoning_tokens > 0 && a->reasoning_tokens < a->completion_tokens);
    free(a);
    chat_init(&d, false, true, true);
    a = generate(&d.q);
    assert_string_equal(a->text, "Let me see.\n</think>\n\nIt is 4.");
    assert_string_equal(a->reasoning, "");
    free(a);
    chat_init(&d, false, false, false); /* the template closed the block: nothing is reasoning */
    script("It is 4.", NULL, 0, ENGINE_FINISH_LENGTH);
    a = generate(&d.q);
    assert_string_equal(a->text, "It is 4.");
    assert_int_equal(a->reasoning_tokens, 0);
    free(a);
}

/* A special token is part of the text where the request wants to keep what it stopped at. */
static void test_stop_id_included(void **state) {
    (void)state;
    uint32_t end = harness->model->generation.stop_ids[0], special;
    assert_int_equal(tokenizer_find(harness->model->tokenizer, "<|im_start|>", &special), 0);
    for (int kind = 0; kind < 3; kind++) {
        Shardd__V1__GenerateRequest q = text_request("x");
        Shardd__V1__StoppingParams p = SHARDD__V1__STOPPING_PARAMS__INIT;
        p.include_stop = kind != 1;
        p.stop_token_ids = &special;
        p.n_stop_token_ids = 1;
        q.stopping = &p;
        script("Bye", kind == 2 ? &special : &end, 1, ENGINE_FINISH_STOP_ID);
        struct answer *a = generate(&q);
        assert_string_equal(a->text, kind == 1 ? "Bye" : kind == 2 ? "Bye<|im_start|>" : "Bye<|im_end|>");
        assert_true(a->has_stop_id);
        free(a);
    }
    /* one that the answer does not stop at stays hidden */
    Shardd__V1__GenerateRequest q = text_request("x");
    Shardd__V1__StoppingParams p = SHARDD__V1__STOPPING_PARAMS__INIT;
    p.include_stop = true;
    q.stopping = &p;
    script("<|im_start|>Bye", &end, 1, ENGINE_FINISH_STOP_ID);
    struct answer *a = generate(&q);
    assert_string_equal(a->text, "Bye<|im_end|>");
    free(a);
}

static const char tool_text[] =
        "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>";

static void test_tool_call(void **state) {
    (void)state;
    struct chat_draft d;
    uint32_t end = harness->model->generation.stop_ids[0];
    chat_init(&d, true, false, false);
    script(tool_text, &end, 1, ENGINE_FINISH_STOP_ID);
    struct answer *a = generate(&d.q);
    assert_int_equal(a->reason, TOOL_CALLS);
    assert_string_equal(a->tool_name, "weather");
    assert_int_equal(a->n_tools_done, 1);
    json_t *arguments = json_loads(a->tool_arguments, 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(arguments, "days")), 3);
    assert_string_equal(json_string_value(json_object_get(arguments, "city")), "Köln");
    json_decref(arguments);
    free(a);
    chat_init(&d, false, false, false); /* no tools were offered: it is text */
    a = generate(&d.q);
    assert_string_equal(a->text, tool_text);
    assert_int_equal(a->reason, STOP);
    free(a);
}

/* The model's tokenizer, but that it says of the tags of tools and thinking that they are special. */
static struct tokenizer *with_special_tags(void) {
    static const char *const tags[] = {"<think>", "</think>", "<tool_call>", "</tool_call>"};
    static const char before[] = "\"special\": false", after[] = "\"special\": true ";
    char *text = NULL;
    size_t bytes;
    struct tokenizer *t = NULL;
    struct error e = {0};
    assert_int_equal(
            file_read(TESTS_DIR "/golden/tokenizer/tokenizer.json", 64u << 20, &text, &bytes, &e), 0);
    for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
        char content[32];
        snprintf(content, sizeof(content), "\"%s\"", tags[i]);
        char *at = memmem(text, bytes, content, strlen(content));
        assert_non_null(at);
        at = memmem(at, bytes - (size_t)(at - text), before, sizeof(before) - 1);
        assert_non_null(at);
        memcpy(at, after, sizeof(after) - 1);
    }
    assert_int_equal(tokenizer_parse(text, bytes, "tokenizer.json", &t, &e), 0);
    free(text);
    return t;
}

static void test_special_tags(void **state) {
    (void)state;
    struct chat_draft d;
    uint32_t end = harness->model->generation.stop_ids[0];
    /* the model's from now on: freed when nobody serves any more */
    tokenizer_free(harness->model->tokenizer);
    harness->model->tokenizer = with_special_tags();
    char said[512];
    snprintf(said, sizeof(said), "Hm.\n</think>\n\nOk.\n%s", tool_text);
    for (int show = 0; show < 2; show++) {
        chat_init(&d, true, true, false);
        d.output.show_special = show;
        script(said, &end, 1, ENGINE_FINISH_STOP_ID);
        struct answer *a = generate(&d.q);
        assert_string_equal(a->reasoning, "Hm.");
        assert_string_equal(a->text, "Ok.");
        assert_string_equal(a->tool_name, "weather");
        assert_int_equal(a->n_tools_done, 1);
        assert_int_equal(a->reason, TOOL_CALLS);
        free(a);
    }
}

/* The model ends its turn in the middle of a call; the text of the stop id, if it is wanted, is none of it. */
static void test_the_turn_ends_inside_a_call(void **state) {
    (void)state;
    struct chat_draft d;
    uint32_t end = harness->model->generation.stop_ids[0];
    for (int kind = 0; kind < 3; kind++) {
        Shardd__V1__StoppingParams p = SHARDD__V1__STOPPING_PARAMS__INIT;
        chat_init(&d, true, false, false);
        p.include_stop = kind == 1;
        d.q.stopping = &p;
        script("<tool_call>\n<function=weather>\n<parameter=city>\nBonn\n</parameter>\n", &end, kind != 2,
                kind == 2 ? ENGINE_FINISH_LENGTH : ENGINE_FINISH_STOP_ID);
        struct answer *a = generate(&d.q);
        assert_string_equal(a->tool_arguments, kind == 2 ? "{\"city\": \"Bonn\"" : "{\"city\": \"Bonn\"}");
        assert_int_equal(a->n_tools_done, kind != 2);
        assert_int_equal(a->reason, kind == 2 ? LENGTH : TOOL_CALLS);
        assert_string_equal(a->text, kind == 1 ? "<|im_end|>" : "");
        free(a);
    }
}

/* One stop string, in chat; told in pieces of every size. */
static struct answer *chat_with_stop(
        bool tools, bool thinking, bool raw, const char *stop, bool in_reasoning, int piece) {
    struct chat_draft d;
    Shardd__V1__StoppingParams p = SHARDD__V1__STOPPING_PARAMS__INIT;
    ProtobufCBinaryData string = message_string(stop);
    chat_init(&d, tools, thinking, raw);
    p.n_stop = 1;
    p.stop = &string;
    p.stop_in_reasoning = in_reasoning;
    d.q.stopping = &p;
    atomic_store(&fake_piece, piece);
    return generate(&d.q);
}

/* The answer is what stops, not the thinking about it, unless that is asked for. */
static void test_stop_string_in_reasoning(void **state) {
    (void)state;
    static const struct {
        const char *stop;
        bool raw, in_reasoning;
        const char *reasoning, *text, *found;
    } cases[] = {
            {"STOP", false, false, "So 3 STOP 4 is fine.", "Answer ", "STOP"},
            {"STOP", false, true, "So 3 ", "", "STOP"},
            {"fine", false, false, "So 3 STOP 4 is fine.", "Answer STOP more", ""},
            {"fine.", false, true, "So 3 STOP 4 is ", "", "fine."},
            {"fine.Answer", false, true, "So 3 STOP 4 is fine.", "Answer STOP more", ""}, /* two texts */
            {"</think>", false, true, "So 3 STOP 4 is fine.", "Answer STOP more", ""},    /* no text */
            {"\n\n", false, false, "So 3 STOP 4 is fine.", "Answer STOP more", ""},
            {"more", false, false, "So 3 STOP 4 is fine.", "Answer STOP ", "more"},
            {"STOP", true, false, "", "So 3 ", "STOP"}, /* raw: all is text */
            {"</think>", true, false, "", "So 3 STOP 4 is fine.\n", "</think>"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (int piece = 1; piece < 50; piece += 6) {
            script("So 3 STOP 4 is fine.\n</think>\n\nAnswer STOP more", NULL, 0, ENGINE_FINISH_LENGTH);
            struct answer *a =
                    chat_with_stop(false, true, cases[i].raw, cases[i].stop, cases[i].in_reasoning, piece);
            assert_string_equal(a->reasoning, cases[i].reasoning);
            assert_string_equal(a->text, cases[i].text);
            assert_string_equal(a->stop_string, cases[i].found);
            assert_int_equal(a->reason, *cases[i].found ? STOP : LENGTH);
            free(a);
        }
}

/* A stop string breaks no call: not its tags, not its arguments, not the newlines around it. */
static void test_stop_string_and_tool_calls(void **state) {
    (void)state;
    static const struct {
        const char *stop, *text, *found;
        int calls;
    } cases[] = {
            {"Köln", "Look: after", "", 1},
            {"\n", "Look: after", "", 1},
            {"<tool_call>", "Look: after", "", 1},
            {":", "Look", ":", 0},
            {"Look: after", "Look: after", "", 1}, /* the call stands between */
            {"ft", "Look: a", "ft", 1},
    };
    char text[512];
    snprintf(text, sizeof(text), "Look:%s after", tool_text);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (int piece = 1; piece < 50; piece += 6) {
            script(text, NULL, 0, ENGINE_FINISH_LENGTH);
            struct answer *a = chat_with_stop(true, false, false, cases[i].stop, false, piece);
            assert_int_equal(a->n_tools_done, cases[i].calls);
            assert_string_equal(a->stop_string, cases[i].found);
            if (cases[i].calls)
                assert_string_equal(a->tool_arguments, "{\"city\": \"Köln\", \"days\": 3}");
            assert_string_equal(a->text, cases[i].text);
            free(a);
        }
}

static void test_logprobs(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    Shardd__V1__OutputOptions o = SHARDD__V1__OUTPUT_OPTIONS__INIT;
    o.logprobs = true;
    o.top_logprobs = 3;
    q.output = &o;
    script(mixed, NULL, 0, ENGINE_FINISH_LENGTH);
    struct answer *a = generate(&q);
    assert_int_equal(a->n_logprobs, fake_script_n);
    assert_int_equal(a->n_top, 3 * fake_script_n);
    assert_string_equal(a->logprob_bytes, mixed); /* the tokens' bytes are the text */
    free(a);
}

static void test_skip_text(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    Shardd__V1__OutputOptions o = SHARDD__V1__OUTPUT_OPTIONS__INIT;
    o.skip_text = true;
    q.output = &o;
    script(mixed, NULL, 0, ENGINE_FINISH_LENGTH);
    struct answer *a = generate(&q);
    assert_string_equal(a->text, "");
    assert_int_equal(a->n_tokens, fake_script_n);
    free(a);
}

/* What waited goes out as one message. */
static void test_coalescing(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    uint32_t ids[60];
    for (uint32_t i = 0; i < 60; i++)
        ids[i] = 100 + i;
    fake_script_set(ids, 60, ENGINE_FINISH_LENGTH);
    atomic_store(&fake_piece, 60);
    struct answer *a = generate(&q);
    assert_int_equal(a->n_tokens, 60);
    assert_int_equal(a->n_chunks, 2); /* started, and all of the rest */
    free(a);
}

static void test_ends(void **state) {
    (void)state;
    static const struct {
        enum engine_finish finish;
        grpc_status_code status;
        int reason; /* of OK */
        const char *code;
    } cases[] = {
            {ENGINE_FINISH_LENGTH, GRPC_STATUS_OK, LENGTH, ""},
            {ENGINE_FINISH_STOP_ID, GRPC_STATUS_OK, STOP, ""},
            {ENGINE_FINISH_ABORTED, GRPC_STATUS_OK, ABORTED, ""},
            {ENGINE_FINISH_DEADLINE, GRPC_STATUS_DEADLINE_EXCEEDED, 0, "deadline_exceeded"},
            {ENGINE_FINISH_FAULT, GRPC_STATUS_INTERNAL, 0, "worker_fault"},
            {ENGINE_FINISH_CANCELLED, GRPC_STATUS_CANCELLED, 0, "cancelled"},
            {ENGINE_FINISH_SLOW, GRPC_STATUS_RESOURCE_EXHAUSTED, 0, ""},
            {ENGINE_FINISH_QUEUE_TIME, GRPC_STATUS_UNAVAILABLE, 0, "queue_timeout"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Shardd__V1__GenerateRequest q = text_request("x");
        script("one two", NULL, 0, cases[i].finish);
        struct answer *a = generate(&q);
        assert_int_equal(a->status, cases[i].status);
        assert_string_equal(a->code, cases[i].code);
        assert_int_equal(a->finished, cases[i].status == GRPC_STATUS_OK);
        assert_int_equal(a->reason, cases[i].reason);
        if (cases[i].finish != ENGINE_FINISH_SLOW)
            assert_true(strncmp(a->text, "one", 3) == 0); /* what was generated is not lost */
        free(a);
    }
}

static void test_submit_refusals(void **state) {
    (void)state;
    static const struct {
        int code;
        grpc_status_code status;
        const char *word, *retryable, *retry_after;
    } cases[] = {
            {-EAGAIN, GRPC_STATUS_RESOURCE_EXHAUSTED, "queue_full", "true",
                    "1001"}, /* a prompt of one token */
            {-ESHUTDOWN, GRPC_STATUS_UNAVAILABLE, "draining", "true", ""},
            {-EEXIST, GRPC_STATUS_ALREADY_EXISTS, "duplicate_request_id", "false", ""},
            {-E2BIG, GRPC_STATUS_INVALID_ARGUMENT, "context_too_long", "false", ""},
            {-EINVAL, GRPC_STATUS_INVALID_ARGUMENT, "invalid_field", "false", ""},
            {-ENOMEM, GRPC_STATUS_INTERNAL, "internal", "true", ""},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Shardd__V1__GenerateRequest q = text_request("x");
        atomic_store(&fake_submit_code, cases[i].code);
        struct answer *a = generate(&q);
        assert_int_equal(a->status, cases[i].status);
        assert_string_equal(a->code, cases[i].word);
        assert_string_equal(a->retryable, cases[i].retryable);
        assert_string_equal(a->retry_after, cases[i].retry_after);
        assert_int_equal(a->n_chunks, 0);
        free(a);
    }
}

static void test_loading(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    fake_state = "loading";
    struct answer *a = generate(&q);
    assert_int_equal(a->status, GRPC_STATUS_UNAVAILABLE);
    assert_string_equal(a->code, "loading");
    assert_string_equal(a->retryable, "true");
    free(a);
}

/* A cache smaller than the model's length: an answer without max_tokens must still fit it. */
static void test_small_cache(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    script("one", NULL, 0, ENGINE_FINISH_LENGTH);
    atomic_store(&fake_pages, 2);
    struct answer *a = generate(&q);
    atomic_store(&fake_pages, 64);
    assert_int_equal(a->status, GRPC_STATUS_OK);
    assert_int_equal(a->max_tokens, 2 * PAGE_TOKENS - a->prompt_tokens);
    free(a);
}

static void wait_streams(uint32_t n) {
    while (atomic_load(&fake_live) != n)
        usleep(200);
}

static void test_cancel_reaches_the_engine(void **state) {
    (void)state;
    Shardd__V1__GenerateRequest q = text_request("x");
    atomic_store(&fake_hold, true);
    script("one", NULL, 0, ENGINE_FINISH_LENGTH);
    struct client_call *c = call("/shardd.v1.Shardd/Generate", &q.base, 0);
    wait_streams(1);
    client_cancel(c);
    struct answer *a = collect(c);
    assert_int_equal(a->status, GRPC_STATUS_CANCELLED);
    free(a);
    wait_streams(0);
    assert_int_equal(atomic_load(&fake_cancels), 1);
    c = call("/shardd.v1.Shardd/Generate", &q.base, 50); /* a deadline does the same */
    a = collect(c);
    assert_int_equal(a->status, GRPC_STATUS_DEADLINE_EXCEEDED);
    free(a);
    wait_streams(0);
}

static void test_abort(void **state) {
    (void)state;
    Shardd__V1__AbortRequest q = SHARDD__V1__ABORT_REQUEST__INIT;
    ProtobufCBinaryData ids[] = {message_string("nobody"), message_string("first")};
    struct client_call *calls[2], *c;
    atomic_store(&fake_hold, true);
    script("one", NULL, 0, ENGINE_FINISH_LENGTH);
    for (int i = 0; i < 2; i++) {
        Shardd__V1__GenerateRequest g = text_request("x");
        g.request_id = message_string(i ? "second" : "first");
        calls[i] = call("/shardd.v1.Shardd/Generate", &g.base, 0);
    }
    wait_streams(2);
    q.n_request_ids = 2;
    q.request_ids = ids;
    for (int all = 0; all < 2; all++) {
        if (all)
            q = (Shardd__V1__AbortRequest){.base = q.base, .all = true};
        Shardd__V1__AbortResponse *r = (Shardd__V1__AbortResponse *)ask(
                "/shardd.v1.Shardd/Abort", &q.base, &shardd__v1__abort_response__descriptor, &c);
        assert_non_null(r);
        assert_int_equal(r->found, 1);
        shardd__v1__abort_response__free_unpacked(r, NULL);
        client_free(c);
        struct answer *a = collect(calls[all]);
        assert_int_equal(a->status, GRPC_STATUS_OK);
        assert_int_equal(a->reason, ABORTED);
        free(a);
    }
}

/* Found and aborted of what the client of `address` names. */
static uint32_t abort_from(const char *address, const char *id) {
    Shardd__V1__AbortRequest q = SHARDD__V1__ABORT_REQUEST__INIT;
    ProtobufCBinaryData ids[] = {message_string(id)};
    struct client own = harness->client, other = client_open(address, NULL);
    struct client_call *c;
    q.n_request_ids = 1;
    q.request_ids = ids;
    harness->client = other;
    Shardd__V1__AbortResponse *r = (Shardd__V1__AbortResponse *)ask(
            "/shardd.v1.Shardd/Abort", &q.base, &shardd__v1__abort_response__descriptor, &c);
    assert_non_null(r);
    uint32_t found = r->found;
    shardd__v1__abort_response__free_unpacked(r, NULL);
    client_free(c);
    client_close(&other);
    harness->client = own;
    return found;
}

/* Another connection of the same caller may, another caller may not: the user of a Unix socket is not loopback. */
static void test_abort_is_the_callers_own(void **state) {
    (void)state;
    char address[64], name[128];
    struct error e = {0};
    int fd;
    snprintf(address, sizeof(address), "unix:/tmp/unit-service-generate-%d", (int)getpid());
    assert_int_equal(rpc_listen(address, &fd, name, sizeof(name), &e), 0);
    assert_int_equal(rpc_server_add_listener(harness->server, fd, &e), 0);
    atomic_store(&fake_hold, true);
    script("one", NULL, 0, ENGINE_FINISH_LENGTH);
    Shardd__V1__GenerateRequest g = text_request("x");
    g.request_id = message_string("mine");
    struct client_call *c = call("/shardd.v1.Shardd/Generate", &g.base, 0);
    wait_streams(1);
    assert_int_equal(abort_from(address, "mine"), 0);
    assert_int_equal(abort_from(harness->address, "mine"), 1);
    struct answer *a = collect(c);
    assert_int_equal(a->reason, ABORTED);
    free(a);
    unlink(address + strlen("unix:"));
}

int main(void) {
    log_open("unit-service-generate", LOG_LEVEL_ERROR);
#define T(name) cmocka_unit_test_setup_teardown(name, harness_up, harness_down)
    const struct CMUnitTest tests[] = {
            T(test_text_and_ids),
            T(test_an_unfinished_character_comes_out_at_the_end),
            T(test_stop_string),
            T(test_stop_string_frees_the_engine),
            T(test_held_back_text_comes_out),
            T(test_min_tokens_win_over_stop_strings),
            T(test_stop_id),
            T(test_stop_id_included),
            T(test_stop_string_in_reasoning),
            T(test_stop_string_and_tool_calls),
            T(test_reasoning),
            T(test_tool_call),
            T(test_special_tags),
            T(test_the_turn_ends_inside_a_call),
            T(test_logprobs),
            T(test_skip_text),
            T(test_coalescing),
            T(test_ends),
            T(test_submit_refusals),
            T(test_loading),
            T(test_small_cache),
            T(test_cancel_reaches_the_engine),
            T(test_abort),
            T(test_abort_is_the_callers_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
