/* request.c - every field of a GenerateRequest at and beyond its limits, and what the engine is given. */
#include "daemon/service/request.h"

#include "base/mask.h"
#include "daemon/service/message.h"
#include "tests/unit/service/test_model.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

#define LENGTH 4096u
#define VOCAB  100000u

static struct model *model;

/* A request with every part present, for a case to spoil. */
struct draft {
    Shardd__V1__GenerateRequest request;
    Shardd__V1__SamplingParams sampling;
    Shardd__V1__StoppingParams stopping;
    Shardd__V1__OutputOptions output;
    Shardd__V1__TokenIds token_ids;
    Shardd__V1__ChatInput chat;
    uint32_t ids[LENGTH + 8];
    ProtobufCBinaryData stops[STOP_STRINGS_MAX + 1];
    Shardd__V1__SamplingParams__LogitBiasEntry bias[LOGIT_BIAS_MAX + 1], *bias_list[LOGIT_BIAS_MAX + 1];
};

static void draft_init(struct draft *d) {
    memset(d, 0, sizeof(*d));
    shardd__v1__generate_request__init(&d->request);
    shardd__v1__sampling_params__init(&d->sampling);
    shardd__v1__stopping_params__init(&d->stopping);
    shardd__v1__output_options__init(&d->output);
    shardd__v1__token_ids__init(&d->token_ids);
    shardd__v1__chat_input__init(&d->chat);
    d->request.sampling = &d->sampling;
    d->request.stopping = &d->stopping;
    d->request.output = &d->output;
    d->request.input_case = SHARDD__V1__GENERATE_REQUEST__INPUT_TEXT;
    d->request.text = message_string("Hello world");
    d->token_ids.ids = d->ids;
    d->stopping.stop = d->stops;
    d->stopping.stop_token_ids = d->ids;
    for (size_t i = 0; i <= LOGIT_BIAS_MAX; i++) {
        shardd__v1__sampling_params__logit_bias_entry__init(&d->bias[i]);
        d->bias[i].key = (uint32_t)i;
        d->bias_list[i] = &d->bias[i];
    }
    for (size_t i = 0; i <= STOP_STRINGS_MAX; i++)
        d->stops[i] = message_string("stop");
    d->sampling.logit_bias = d->bias_list;
}

static void use_ids(struct draft *d, size_t n) {
    d->request.input_case = SHARDD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
    d->request.token_ids = &d->token_ids;
    d->token_ids.n_ids = n;
}

static int check(struct draft *d, struct plan *p, struct rpc_status *s) {
    struct request_context x = {.model = model, .max_model_len = LENGTH, .vocab_size = VOCAB};
    return request_check(&d->request, &x, p, s);
}

#define SET_FLOAT(field, CASE, v)                                                                            \
    (d->sampling._##field##_case = SHARDD__V1__SAMPLING_PARAMS__##CASE, d->sampling.field = (v))
#define TEMPERATURE(v) SET_FLOAT(temperature, _TEMPERATURE_TEMPERATURE, v)
#define TOP_P(v)       SET_FLOAT(top_p, _TOP_P_TOP_P, v)
#define MIN_P(v)       SET_FLOAT(min_p, _MIN_P_MIN_P, v)
#define REPETITION(v)  SET_FLOAT(repetition_penalty, _REPETITION_PENALTY_REPETITION_PENALTY, v)
#define PRESENCE(v)    SET_FLOAT(presence_penalty, _PRESENCE_PENALTY_PRESENCE_PENALTY, v)
#define FREQUENCY(v)   SET_FLOAT(frequency_penalty, _FREQUENCY_PENALTY_FREQUENCY_PENALTY, v)
#define MAX_TOKENS(v)                                                                                        \
    (d->stopping._max_tokens_case = SHARDD__V1__STOPPING_PARAMS___MAX_TOKENS_MAX_TOKENS,                     \
            d->stopping.max_tokens = (v))

/* One line per case: its number, how the draft is spoiled, the code and a word of the sentence (NULL:
 * accepted). */
#define CASES                                                                                                \
    X(0, (void)0, NULL, NULL)                                                                                \
    X(1, d->request.model = message_string("test"), NULL, NULL)                                              \
    X(2, d->request.model = message_string("second"), NULL, NULL)                                            \
    X(3, d->request.model = message_string("third"), "unknown_model", "'third'")                             \
    X(4, d->request.model = message_string("tes\xff"), "invalid_utf8", "model")                              \
    X(5, d->request.request_id = message_string("a.B-9_:"), NULL, NULL)                                      \
    X(6, d->request.request_id = message_string("a b"), "invalid_field", "0x20 at offset 1")                 \
    X(7, d->request.request_id = message_text(long_text, REQUEST_ID_BYTES_MAX), NULL, NULL)                  \
    X(8, d->request.request_id = message_text(long_text, REQUEST_ID_BYTES_MAX + 1), "invalid_field",         \
            "request_id")                                                                                    \
    X(9, d->request.request_id = message_text("a\0b", 3), "invalid_field", "0x00")                           \
    X(10, d->request.priority = 100, NULL, NULL)                                                             \
    X(11, d->request.priority = 101, "invalid_field", "priority")                                            \
    X(12, d->request.priority = -101, "invalid_field", "priority")                                           \
    X(13, d->request.input_case = 0, "missing_input", "token_ids or chat")                                   \
    X(14, d->request.text = message_string(""), "missing_input", "text is empty")                            \
    X(15, d->request.text = message_string("ab\xc3("), "invalid_utf8", "offset 2")                           \
    X(16, d->request.text = message_text("a\0b", 3), NULL, NULL)                                             \
    X(17, d->request.parse_special = true, NULL, NULL)                                                       \
    X(18, (use_ids(d, 1), d->request.parse_special = true), "conflicting_fields", "parse_special")           \
    X(19, use_ids(d, 0), "missing_input", "token_ids.ids is empty")                                          \
    X(20, (use_ids(d, 1), d->ids[0] = VOCAB - 1), NULL, NULL)                                                \
    X(21, (use_ids(d, 3), d->ids[2] = VOCAB), "invalid_field", "token_ids.ids[2]")                           \
    X(22, use_ids(d, LENGTH - 1), NULL, NULL)                                                                \
    X(23, use_ids(d, LENGTH), "context_too_long", "4096 tokens and the model takes 4096")                    \
    X(24, (use_ids(d, 100), MAX_TOKENS(LENGTH - 100)), NULL, NULL)                                           \
    X(25, (use_ids(d, 100), MAX_TOKENS(LENGTH - 99)), "context_too_long", "lower max_tokens to 3996")        \
    X(26, TEMPERATURE(0), NULL, NULL)                                                                        \
    X(27, TEMPERATURE(100), NULL, NULL)                                                                      \
    X(28, TEMPERATURE(100.5f), "invalid_field", "sampling.temperature is 100.5; give 0 to 100")              \
    X(29, TEMPERATURE(-0.1f), "invalid_field", "sampling.temperature")                                       \
    X(30, TEMPERATURE(NAN), "invalid_field", "sampling.temperature is nan")                                  \
    X(31, TEMPERATURE(INFINITY), "invalid_field", "sampling.temperature")                                    \
    X(32, TOP_P(1), NULL, NULL)                                                                              \
    X(33, TOP_P(0), "invalid_field", "sampling.top_p is 0; give above 0 to 1")                               \
    X(34, TOP_P(1.01f), "invalid_field", "sampling.top_p")                                                   \
    X(35, TOP_P(-NAN), "invalid_field", "sampling.top_p")                                                    \
    X(36, MIN_P(0), NULL, NULL)                                                                              \
    X(37, MIN_P(1), NULL, NULL)                                                                              \
    X(38, MIN_P(1.5f), "invalid_field", "sampling.min_p")                                                    \
    X(39, REPETITION(0), "invalid_field", "sampling.repetition_penalty")                                     \
    X(40, REPETITION(10), NULL, NULL)                                                                        \
    X(41, REPETITION(10.5f), "invalid_field", "sampling.repetition_penalty")                                 \
    X(42, PRESENCE(-2), NULL, NULL)                                                                          \
    X(43, PRESENCE(-2.5f), "invalid_field", "sampling.presence_penalty")                                     \
    X(44, FREQUENCY(2), NULL, NULL)                                                                          \
    X(45, FREQUENCY(2.5f), "invalid_field", "sampling.frequency_penalty")                                    \
    X(46, d->sampling.n_logit_bias = LOGIT_BIAS_MAX, NULL, NULL)                                             \
    X(47, d->sampling.n_logit_bias = LOGIT_BIAS_MAX + 1, "invalid_field", "sampling.logit_bias has 1025")    \
    X(48, (d->sampling.n_logit_bias = 2, d->bias[1].key = 0), "conflicting_fields", "token 0 twice")         \
    X(49, (d->sampling.n_logit_bias = 1, d->bias[0].key = VOCAB), "invalid_field", "sampling.logit_bias")    \
    X(50, (d->sampling.n_logit_bias = 1, d->bias[0].value = 101), "invalid_field", "-100 to 100")            \
    X(51, (d->sampling.n_logit_bias = 1, d->bias[0].value = NAN), "invalid_field", "sampling.logit_bias")    \
    X(52, MAX_TOKENS(1), NULL, NULL)                                                                         \
    X(53, MAX_TOKENS(0), "invalid_field", "stopping.max_tokens is 0")                                        \
    X(54, MAX_TOKENS(NEW_TOKENS_MAX + 1), "invalid_field", "stopping.max_tokens")                            \
    X(55, (MAX_TOKENS(8), d->stopping.min_tokens = 8), NULL, NULL)                                           \
    X(56, (MAX_TOKENS(8), d->stopping.min_tokens = 9), "conflicting_fields", "stopping.min_tokens")          \
    X(57, d->stopping.min_tokens = LENGTH, "conflicting_fields", "stopping.min_tokens")                      \
    X(58, d->stopping.n_stop = STOP_STRINGS_MAX, NULL, NULL)                                                 \
    X(59, d->stopping.n_stop = STOP_STRINGS_MAX + 1, "invalid_field", "stopping.stop has 33")                \
    X(60, (d->stopping.n_stop = 2, d->stops[1].len = 0), "invalid_field", "stopping.stop[1] has 0 bytes")    \
    X(61, (d->stopping.n_stop = 1, d->stops[0] = message_text(long_text, STOP_STRING_BYTES_MAX)), NULL,      \
            NULL)                                                                                            \
    X(62, (d->stopping.n_stop = 1, d->stops[0] = message_text(long_text, STOP_STRING_BYTES_MAX + 1)),        \
            "invalid_field", "stopping.stop[0]")                                                             \
    X(63, (d->stopping.n_stop = 1, d->stops[0] = message_string("\xff")), "invalid_utf8",                    \
            "stopping.stop[0]")                                                                              \
    X(64, d->stopping.n_stop_token_ids = STOP_IDS_MAX, NULL, NULL)                                           \
    X(65, d->stopping.n_stop_token_ids = STOP_IDS_MAX + 1, "invalid_field",                                  \
            "stopping.stop_token_ids has 65")                                                                \
    X(66, (d->stopping.n_stop_token_ids = 1, d->ids[0] = VOCAB), "invalid_field",                            \
            "stopping.stop_token_ids[0]")                                                                    \
    X(67, (d->output.logprobs = true, d->output.top_logprobs = TOP_LOGPROBS_MAX), NULL, NULL)                \
    X(68, (d->output.logprobs = true, d->output.top_logprobs = TOP_LOGPROBS_MAX + 1), "invalid_field",       \
            "top_logprobs")                                                                                  \
    X(69, d->output.top_logprobs = 1, "conflicting_fields", "output.logprobs")                               \
    X(70, (d->output.skip_text = true, d->stopping.n_stop = 1), "conflicting_fields", "skip_text")           \
    X(71, (d->output.skip_text = true, d->output.show_special = true), "conflicting_fields", "show_special") \
    X(72, d->output.skip_text = true, NULL, NULL)                                                            \
    X(73, (d->request.sampling = NULL, d->request.stopping = NULL, d->request.output = NULL), NULL, NULL)    \
    X(75, d->request.text = message_text(words, 2 * LENGTH), "context_too_long",                             \
            "tokens and the model takes 4096")                                                               \
    X(76, d->request.text = message_text(words, sizeof(words)), "context_too_long",                          \
            "more than 8192 tokens and the model takes 4096")                                                \
    X(74, (d->request.input_case = SHARDD__V1__GENERATE_REQUEST__INPUT_CHAT, d->request.chat = &d->chat),    \
            "missing_input", "chat.messages has 0")

static char words[8 * LENGTH];
static char long_text[REQUEST_BYTES_MAX + 8];

static void spoil(struct draft *d, int number) {
    switch (number) {
#define X(n, how, code, word)                                                                                \
    case n:                                                                                                  \
        how;                                                                                                 \
        break;
        CASES
#undef X
    }
}

static const struct {
    const char *code, *word;
} expected[] = {
#define X(n, how, code, word) [n] = {code, word},
        CASES
#undef X
};

static void test_table(void **state) {
    (void)state;
    struct draft *d = malloc(sizeof(*d));
    struct plan *p = malloc(sizeof(*p));
    for (int i = 0; i < (int)(sizeof(expected) / sizeof(expected[0])); i++) {
        struct rpc_status s = {0};
        draft_init(d);
        spoil(d, i);
        int r = check(d, p, &s);
        bool right = expected[i].code ? r < 0 && strcmp(s.code, expected[i].code) == 0 &&
                                                strstr(s.text, expected[i].word)
                                      : r == 0;
        if (!right)
            print_message("case %d: %d, %s: %s\n", i, r, r < 0 ? s.code : "", r < 0 ? s.text : "");
        assert_true(right);
        if (r == 0)
            plan_done(p);
    }
    free(d);
    free(p);
}

static void test_defaults(void **state) {
    (void)state;
    struct draft *d = malloc(sizeof(*d));
    struct plan *p = malloc(sizeof(*p));
    struct rpc_status s;
    draft_init(d);
    d->request.sampling = NULL;
    assert_int_equal(check(d, p, &s), 0);
    assert_true(p->engine.sampling.temperature == 1.0f);
    assert_int_equal(p->engine.sampling.top_k, 20);
    assert_true(p->engine.sampling.top_p == 0.95f);
    assert_true(p->engine.sampling.repetition_penalty == 1.0f);
    assert_int_equal(p->engine.max_tokens, LENGTH - p->prompt.n);
    assert_int_equal(p->engine.n_stop_ids, 2);
    assert_int_equal(strncmp(p->engine.request_id, "gen-", 4), 0);
    uint64_t seed = p->engine.sampling.seed;
    char id[REQUEST_ID_BYTES_MAX + 1];
    memcpy(id, p->engine.request_id, sizeof(id));
    plan_done(p);
    assert_int_equal(check(d, p, &s), 0);
    assert_true(seed != p->engine.sampling.seed); /* 1 in 2^64 */
    assert_string_not_equal(id, p->engine.request_id);
    plan_done(p);
    free(d);
    free(p);
}

/* Banned ids are biases that no logit comes up from; both lists share their room, and never an id. */
static void test_banned_ids(void **state) {
    (void)state;
    static const struct {
        size_t n_bias, n_banned;
        uint32_t first; /* banned are first, first + 1 ... */
        float penalty;
        const char *word, *sentence;
    } cases[] = {
            {0, 1, 7, 1, NULL, NULL},
            {LOGIT_BIAS_MAX - 5, 5, LOGIT_BIAS_MAX, 1, NULL, NULL},
            {LOGIT_BIAS_MAX - 5, 6, LOGIT_BIAS_MAX, 1, "invalid_field",
                    "sampling.logit_bias has 1019 entries and sampling.banned_token_ids 6; give at most 1024 together"},
            {3, 1, 2, 1, "conflicting_fields", "sampling.logit_bias and banned_token_ids name token 2 twice"},
            {0, 2, VOCAB - 1, 1, "invalid_field", "sampling.banned_token_ids names token"},
            {0, 1, 7, 1e-30f, NULL, NULL},
            {0, 1, 7, 9e-31f, "conflicting_fields", "repetition_penalty"},
    };
    struct draft *d = malloc(sizeof(*d));
    struct plan *p = malloc(sizeof(*p));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint32_t banned[8];
        struct rpc_status s = {0};
        draft_init(d);
        for (uint32_t k = 0; k < cases[i].n_banned; k++)
            banned[k] = cases[i].first + k;
        d->sampling.n_logit_bias = cases[i].n_bias;
        d->sampling.n_banned_token_ids = cases[i].n_banned;
        d->sampling.banned_token_ids = banned;
        REPETITION(cases[i].penalty);
        assert_int_equal(check(d, p, &s), cases[i].word ? -1 : 0);
        if (cases[i].word) {
            assert_string_equal(s.code, cases[i].word);
            assert_non_null(strstr(s.text, cases[i].sentence));
            continue;
        }
        assert_int_equal(p->engine.n_bias, cases[i].n_bias + cases[i].n_banned);
        for (uint32_t k = 0; k < cases[i].n_banned; k++) {
            assert_int_equal(p->engine.bias_ids[cases[i].n_bias + k], banned[k]);
            assert_true(p->engine.bias[cases[i].n_bias + k] == -FLT_MAX);
        }
        plan_done(p);
    }
    free(d);
    free(p);
}

/* The same id twice is one ban; without any token left there is nothing to say. */
static void test_banned_twice_and_all(void **state) {
    (void)state;
    struct draft *d = malloc(sizeof(*d));
    struct plan *p = malloc(sizeof(*p));
    uint32_t banned[] = {5, 1, 5, 5};
    struct rpc_status s = {0};
    memset(p, 0, sizeof(*p));
    draft_init(d);
    d->sampling.n_banned_token_ids = 4;
    d->sampling.banned_token_ids = banned;
    assert_int_equal(check(d, p, &s), 0);
    assert_int_equal(p->engine.n_bias, 2);
    plan_done(p);
    struct request_context few = {.model = model, .max_model_len = LENGTH, .vocab_size = 2};
    banned[0] = banned[2] = banned[3] = 0;
    assert_int_equal(request_check_options(&d->request, &few, p, &s), -1);
    assert_non_null(strstr(s.text, "leaves no token"));
    free(d);
    free(p);
}

/* What is allowed, less what is banned, as bits. */
static void test_allowed_ids(void **state) {
    (void)state;
    struct draft *d = malloc(sizeof(*d));
    struct plan *p = malloc(sizeof(*p));
    struct rpc_status s = {0};
    uint32_t allowed[] = {5, VOCAB - 1, 5, 64}, banned[] = {64, 5, VOCAB - 1};
    draft_init(d);
    d->sampling.n_allowed_token_ids = 4;
    d->sampling.allowed_token_ids = allowed;
    d->sampling.n_banned_token_ids = 1;
    d->sampling.banned_token_ids = banned;
    assert_int_equal(check(d, p, &s), 0);
    assert_int_equal(p->engine.n_mask_words, mask_words(VOCAB));
    for (uint32_t id = 0; id < VOCAB; id++)
        assert_int_equal(mask_has(p->engine.mask, id), id == 5 || id == VOCAB - 1);
    plan_done(p);
    d->sampling.n_banned_token_ids = 3;
    assert_int_equal(check(d, p, &s), -1);
    assert_string_equal(s.code, "conflicting_fields");
    assert_non_null(strstr(s.text, "sampling.allowed_token_ids leaves no token"));
    allowed[2] = VOCAB;
    assert_int_equal(check(d, p, &s), -1);
    assert_string_equal(s.code, "invalid_field");
    assert_non_null(strstr(s.text, "sampling.allowed_token_ids names token 100000"));
    free(d);
    free(p);
}

/* Words as they begin a text and as they follow a space: those of one token are banned, the others are the engine's. */
static void test_bad_words(void **state) {
    (void)state;
    struct draft *d = malloc(sizeof(*d));
    struct plan *p = malloc(sizeof(*p));
    struct rpc_status s = {0};
    char over[BAD_WORD_BYTES_MAX + 2], longer[BAD_WORD_BYTES_MAX]; /* three times as long in normal form C */
    ProtobufCBinaryData bad[BAD_WORDS_MAX + 1];
    draft_init(d);
    memset(over, 'x', sizeof(over));
    over[BAD_WORD_BYTES_MAX + 1] = '\0';
    bad[0] = message_string("  Hello world, hello"); /* spaces before it are the same */
    bad[1] = message_string("a");
    d->sampling.bad_words = bad;
    d->sampling.n_bad_words = 2;
    assert_int_equal(check(d, p, &s), 0);
    uint32_t n_words = 0, n_banned = 0;
    for (uint32_t at = 0; at < p->engine.n_bad_words; at += 1 + p->engine.bad_words[at], n_words++)
        assert_true(p->engine.bad_words[at] > 1);
    for (uint32_t i = 0; i < p->engine.n_bias; i++)
        n_banned += p->engine.bias[i] <= ENGINE_BIAS_BANNED;
    assert_in_range(n_words, 2, 3);
    assert_int_equal(n_words + n_banned, 4);
    plan_done(p);
    for (size_t i = 0; i < sizeof(longer); i++)
        longer[i] = "\xf0\x9d\x85\xa0"[i % 4];
    bad[1] = (ProtobufCBinaryData){sizeof(longer), (uint8_t *)longer};
    assert_int_equal(check(d, p, &s), 0);
    plan_done(p);
    for (size_t i = 0; i <= BAD_WORDS_MAX; i++)
        bad[i] = message_string("word");
    d->sampling.n_bad_words = BAD_WORDS_MAX + 1;
    assert_int_equal(check(d, p, &s), -1);
    assert_non_null(strstr(s.text, "sampling.bad_words has 129 strings; give at most 128"));
    d->sampling.n_bad_words = 2;
    bad[1] = message_string(over);
    assert_int_equal(check(d, p, &s), -1);
    assert_non_null(strstr(s.text, "sampling.bad_words[1] has 257 bytes; give 1 to 256"));
    bad[1] = message_string("");
    assert_int_equal(check(d, p, &s), -1);
    assert_non_null(strstr(s.text, "sampling.bad_words[1] has 0 bytes"));
    bad[1] = message_string("a\xff");
    assert_int_equal(check(d, p, &s), -1);
    assert_string_equal(s.code, "invalid_utf8");
    free(d);
    free(p);
}

static void test_what_the_engine_gets(void **state) {
    (void)state;
    struct draft *d = malloc(sizeof(*d));
    struct plan *p = malloc(sizeof(*p));
    struct rpc_status s;
    draft_init(d);
    TEMPERATURE(0.5f);
    PRESENCE(1.5f);
    d->sampling._top_k_case = SHARDD__V1__SAMPLING_PARAMS___TOP_K_TOP_K; /* 0: off, against the model's 20 */
    d->sampling._seed_case = SHARDD__V1__SAMPLING_PARAMS___SEED_SEED;
    d->sampling.n_logit_bias = 2;
    d->bias[0] = (Shardd__V1__SamplingParams__LogitBiasEntry){.key = 9, .value = -1};
    d->bias[1] = (Shardd__V1__SamplingParams__LogitBiasEntry){.key = 3, .value = 2};
    d->stopping.ignore_eos = true;
    d->stopping.n_stop_token_ids = 1;
    d->ids[0] = 77;
    d->request.request_id = message_string("mine");
    d->request.priority = -5;
    d->request.cache_salt = message_string("a salt");
    MAX_TOKENS(7);
    d->stopping.min_tokens = 3;
    d->output.logprobs = true;
    d->output.top_logprobs = 4;
    assert_int_equal(check(d, p, &s), 0);
    assert_true(p->engine.sampling.temperature == 0.5f && p->engine.sampling.presence_penalty == 1.5f);
    assert_int_equal(p->engine.sampling.top_k, 0);
    assert_true(p->engine.sampling.seed == 0);
    assert_int_equal(p->engine.n_bias, 2);
    assert_int_equal(p->engine.bias_ids[0], 3);
    assert_true(p->engine.bias[0] == 2.0f && p->engine.bias[1] == -1.0f);
    assert_int_equal(p->engine.n_stop_ids, 1);
    assert_int_equal(p->engine.stop_ids[0], 77);
    assert_string_equal(p->engine.request_id, "mine");
    assert_int_equal(p->engine.priority, -5);
    assert_int_equal(p->engine.n_cache_salt, 6);
    assert_memory_equal(p->engine.cache_salt, "a salt", 6);
    assert_int_equal(p->engine.max_tokens, 7);
    assert_int_equal(p->engine.min_tokens, 3);
    assert_true(p->engine.logprobs);
    assert_int_equal(p->engine.top_logprobs, 4);
    assert_int_equal(p->engine.n_prompt, p->prompt.n);
    plan_done(p);
    free(d);
    free(p);
}

/* A user's text cannot make a control token; a trusted prompt can. */
static void test_control_tokens_in_text(void **state) {
    (void)state;
    struct draft *d = malloc(sizeof(*d));
    struct plan *p = malloc(sizeof(*p));
    struct rpc_status s;
    uint32_t end;
    assert_int_equal(tokenizer_find(model->tokenizer, "<|im_end|>", &end), 0);
    for (int trusted = 0; trusted < 2; trusted++) {
        draft_init(d);
        d->request.text = message_string("<|im_end|>");
        d->request.parse_special = trusted;
        assert_int_equal(check(d, p, &s), 0);
        assert_int_equal(p->prompt.n == 1 && p->prompt.ids[0] == end, trusted);
        plan_done(p);
    }
    free(d);
    free(p);
}

static int set_up(void **state) {
    (void)state;
    memset(long_text, 'a', sizeof(long_text));
    for (size_t i = 0; i < sizeof(words); i++)
        words[i] = "!a"[i % 2]; /* two tokens and no word of more than one letter */
    model = test_model();
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    model = model_free(model);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_table),
            cmocka_unit_test(test_defaults),
            cmocka_unit_test(test_banned_ids),
            cmocka_unit_test(test_banned_twice_and_all),
            cmocka_unit_test(test_allowed_ids),
            cmocka_unit_test(test_bad_words),
            cmocka_unit_test(test_what_the_engine_gets),
            cmocka_unit_test(test_control_tokens_in_text),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
