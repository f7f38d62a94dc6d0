/* generate_request.c - any bytes as a GenerateRequest, a TokenizeRequest and an AbortRequest: unpacked,
 * checked, and (chat) built into JSON. What passes must be within its limits. */
#include "daemon/service/conversation.h"
#include "daemon/service/message.h"
#include "daemon/service/request.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB 1000u
/* Also where asserts are compiled out. */
#define CHECK(what)                                                                                          \
    do {                                                                                                     \
        if (!(what))                                                                                         \
            abort();                                                                                         \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct model model = {.n_names = 1};
static char model_name[] = "m";

static void check_plan(const struct plan *p) {
    CHECK(p->engine.sampling.temperature >= 0 && p->engine.sampling.temperature <= 100);
    CHECK(p->engine.sampling.top_p > 0 && p->engine.sampling.top_p <= 1);
    CHECK(isfinite(p->engine.sampling.presence_penalty) && isfinite(p->engine.sampling.frequency_penalty));
    CHECK(p->engine.n_bias <= LOGIT_BIAS_MAX && p->engine.n_stop_ids <= STOP_IDS_MAX + MODEL_STOP_IDS_MAX);
    for (uint32_t i = 0; i < p->engine.n_bias; i++) {
        bool banned = p->bias[i] == -FLT_MAX;
        CHECK(p->bias_ids[i] < VOCAB && (banned || fabsf(p->bias[i]) <= 100));
        CHECK(i == 0 || p->bias_ids[i] > p->bias_ids[i - 1]);
        CHECK(!banned || p->engine.sampling.repetition_penalty >= 1e-30f);
    }
    CHECK(p->n_answers >= 1 && p->n_answers <= ANSWERS_MAX);
    for (uint32_t i = 0; i < p->engine.n_stop_ids; i++)
        CHECK(p->stop_ids[i] < VOCAB);
    CHECK(p->n_stop_strings <= STOP_STRINGS_MAX && p->engine.max_tokens <= NEW_TOKENS_MAX);
    CHECK(p->engine.top_logprobs <= TOP_LOGPROBS_MAX && p->prompt_top_logprobs <= TOP_LOGPROBS_MAX);
    CHECK(!p->echo || !p->skip_text);
    size_t n = strlen(p->engine.request_id);
    CHECK(n > 0 && n <= REQUEST_ID_BYTES_MAX);
}

static void check_chat(const Shardd__V1__ChatInput *chat) {
    struct conversation c;
    struct rpc_status s;
    if (chat && conversation_build(chat, &c, &s) == 0) {
        CHECK(json_array_size(c.messages) == chat->n_messages);
        conversation_done(&c);
    }
}

/* What restricts samples, as far as it needs no tokenizer. */
static void check_restrictions(const Shardd__V1__SamplingParams *sampling) {
    CHECK(sampling->n_allowed_token_ids <= VOCAB && sampling->n_bad_words <= BAD_WORDS_MAX);
    for (size_t i = 0; i < sampling->n_allowed_token_ids; i++)
        CHECK(sampling->allowed_token_ids[i] < VOCAB);
    for (size_t i = 0; i < sampling->n_bad_words; i++)
        CHECK(sampling->bad_words[i].len >= 1 && sampling->bad_words[i].len <= BAD_WORD_BYTES_MAX);
}

static void fuzz_generate(const uint8_t *data, size_t size) {
    struct arena a;
    struct rpc_status s;
    struct plan p = {0};
    struct request_context x = {.model = &model, .max_model_len = 4096, .vocab_size = VOCAB, .seed = 1};
    arena_init(&a, 1u << 20, NULL, 0);
    const Shardd__V1__GenerateRequest *q = (const Shardd__V1__GenerateRequest *)message_unpack(
            &shardd__v1__generate_request__descriptor, data, size, &a, &s);
    if (q) {
        if (request_check_options(q, &x, &p, &s) == 0) {
            check_plan(&p);
            if (q->sampling)
                check_restrictions(q->sampling);
        }
        struct prompt prompt;
        if (q->input_case == SHARDD__V1__GENERATE_REQUEST__INPUT_CHAT)
            check_chat(q->chat);
        if (q->input_case == SHARDD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS &&
                prompt_from_ids(q->token_ids->ids, q->token_ids->n_ids, VOCAB, &prompt, &s) == 0)
            prompt_done(&prompt);
    }
    arena_done(&a);
}

static void fuzz_tokenize(const uint8_t *data, size_t size) {
    struct arena a;
    struct rpc_status s;
    arena_init(&a, 1u << 20, NULL, 0);
    const Shardd__V1__TokenizeRequest *q = (const Shardd__V1__TokenizeRequest *)message_unpack(
            &shardd__v1__tokenize_request__descriptor, data, size, &a, &s);
    if (q && q->input_case == SHARDD__V1__TOKENIZE_REQUEST__INPUT_CHAT)
        check_chat(q->chat);
    arena_done(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!model.names[0]) {
        model.names[0] = model_name;
        generation_config_init(&model.generation);
    }
    fuzz_generate(data, size);
    fuzz_tokenize(data, size);
    return 0;
}
