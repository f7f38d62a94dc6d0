/* request.c - see request.h. Everything that a message points to lives in struct builder until it is packed. */
#include "launcher/client/request.h"

#include "base/limits.h"
#include "shardd/v1/shardd.pb-c.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct builder {
    Shardd__V1__GenerateRequest request;
    Shardd__V1__SamplingParams sampling;
    Shardd__V1__StoppingParams stopping;
    Shardd__V1__OutputOptions output;
    Shardd__V1__TokenIds ids;
    Shardd__V1__ChatInput chat;
    Shardd__V1__Message *messages;
    Shardd__V1__Part *parts;
    Shardd__V1__Message **message_list;
    Shardd__V1__Part **part_list;
    Shardd__V1__SamplingParams__LogitBiasEntry *bias;
    Shardd__V1__SamplingParams__LogitBiasEntry **bias_list;
    ProtobufCBinaryData *stop;
    ProtobufCBinaryData *bad_words;
    uint32_t *stop_ids, *banned_ids, *allowed_ids;
};

static ProtobufCBinaryData bytes_of(const char *text) {
    return (ProtobufCBinaryData){.len = text ? strlen(text) : 0, .data = (uint8_t *)(uintptr_t)text};
}

static void builder_done(struct builder *b) {
    free(b->messages);
    free(b->parts);
    free(b->message_list);
    free(b->part_list);
    free(b->bias);
    free(b->bias_list);
    free(b->stop);
    free(b->stop_ids);
    free(b->banned_ids);
    free(b->allowed_ids);
    free(b->bad_words);
}

static int parse_id(const char *option, const char *text, char end_mark, uint32_t *ret, const char **ret_rest,
        struct error *e) {
    char *end;
    errno = 0;
    unsigned long long id = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || errno == ERANGE || id > UINT32_MAX || *end != end_mark)
        return error_set(e, -EINVAL, "%s: '%.64s' is not a token id%s", option, text,
                end_mark == '=' ? "=bias pair such as 42=-1.5" : "");
    *ret = (uint32_t)id;
    if (ret_rest)
        *ret_rest = end;
    return 0;
}

int request_parse_ids(const char *text, uint32_t **ret, size_t *ret_n, struct error *e) {
    size_t n = 0, room = strlen(text) / 2 + 1;
    uint32_t *ids = calloc(room, sizeof(*ids));
    if (!ids)
        return error_set(e, -ENOMEM, "no memory for the token ids");
    for (const char *at = text + strspn(text, ", \t\r\n"); *at; at += strspn(at, ", \t\r\n")) {
        char *end;
        errno = 0;
        unsigned long long id = strtoull(at, &end, 10);
        if (*at < '0' || *at > '9' || errno == ERANGE || id > UINT32_MAX || !strchr(", \t\r\n", *end)) {
            free(ids);
            return error_set(
                    e, -EINVAL, "'%.32s' is not a token id; give numbers separated by blanks or commas", at);
        }
        ids[n++] = (uint32_t)id;
        at = end;
    }
    *ret = ids;
    *ret_n = n;
    return 0;
}

#define SET_REAL(id, field, FIELD)                                                                           \
    do {                                                                                                     \
        if (options_given(o, id)) {                                                                          \
            s->field = (float)o->values[id].real;                                                            \
            s->_##field##_case = SHARDD__V1__SAMPLING_PARAMS___##FIELD##_##FIELD;                            \
        }                                                                                                    \
    } while (0)

static int add_bias(struct builder *b, const struct options *o, struct error *e) {
    const struct option_value *v = &o->values[OPT_LOGIT_BIAS];
    b->bias = calloc(v->n_texts + 1, sizeof(*b->bias));
    b->bias_list = calloc(v->n_texts + 1, sizeof(*b->bias_list));
    if (!b->bias || !b->bias_list)
        return error_set(e, -ENOMEM, "no memory for the request");
    for (size_t i = 0; i < v->n_texts; i++) {
        const char *rest;
        shardd__v1__sampling_params__logit_bias_entry__init(&b->bias[i]);
        int rc = parse_id("--logit-bias", v->texts[i], '=', &b->bias[i].key, &rest, e);
        if (rc < 0)
            return rc;
        char *end;
        double x = strtod(rest + 1, &end);
        if (end == rest + 1 || *end || !isfinite(x))
            return error_set(e, -EINVAL, "--logit-bias: '%.64s' is not a pair such as 42=-1.5", v->texts[i]);
        b->bias[i].value = (float)x;
        b->bias_list[i] = &b->bias[i];
    }
    b->sampling.n_logit_bias = v->n_texts;
    b->sampling.logit_bias = b->bias_list;
    return 0;
}

static int take_ids(const char *option, const struct option_value *v, uint32_t **ret, struct error *e) {
    *ret = calloc(v->n_texts + 1, sizeof(**ret));
    if (!*ret)
        return error_set(e, -ENOMEM, "no memory for the request");
    int rc = 0;
    for (size_t i = 0; i < v->n_texts && rc == 0; i++)
        rc = parse_id(option, v->texts[i], '\0', &(*ret)[i], NULL, e);
    return rc;
}

static int take_texts(const struct option_value *v, ProtobufCBinaryData **ret, struct error *e) {
    *ret = calloc(v->n_texts + 1, sizeof(**ret));
    if (!*ret)
        return error_set(e, -ENOMEM, "no memory for the request");
    for (size_t i = 0; i < v->n_texts; i++)
        (*ret)[i] = bytes_of(v->texts[i]);
    return 0;
}

static int add_restrictions(struct builder *b, const struct options *o, struct error *e) {
    const struct option_value *allowed = &o->values[OPT_ALLOWED_TOKEN_ID], *words = &o->values[OPT_BAD_WORD];
    int rc = take_ids("--allowed-token-id", allowed, &b->allowed_ids, e);
    if (rc == 0)
        rc = take_texts(words, &b->bad_words, e);
    b->sampling.allowed_token_ids = b->allowed_ids;
    b->sampling.n_allowed_token_ids = allowed->n_texts;
    b->sampling.bad_words = b->bad_words;
    b->sampling.n_bad_words = words->n_texts;
    return rc;
}

static int add_sampling(struct builder *b, const struct options *o, struct error *e) {
    Shardd__V1__SamplingParams *s = &b->sampling;
    shardd__v1__sampling_params__init(s);
    b->request.sampling = s;
    SET_REAL(OPT_TEMPERATURE, temperature, TEMPERATURE);
    SET_REAL(OPT_TOP_P, top_p, TOP_P);
    SET_REAL(OPT_MIN_P, min_p, MIN_P);
    SET_REAL(OPT_REPETITION_PENALTY, repetition_penalty, REPETITION_PENALTY);
    SET_REAL(OPT_PRESENCE_PENALTY, presence_penalty, PRESENCE_PENALTY);
    SET_REAL(OPT_FREQUENCY_PENALTY, frequency_penalty, FREQUENCY_PENALTY);
    if (options_given(o, OPT_TOP_K)) {
        s->top_k = (uint32_t)options_number(o, OPT_TOP_K);
        s->_top_k_case = SHARDD__V1__SAMPLING_PARAMS___TOP_K_TOP_K;
    }
    if (options_given(o, OPT_SEED)) {
        s->seed = options_number(o, OPT_SEED);
        s->_seed_case = SHARDD__V1__SAMPLING_PARAMS___SEED_SEED;
    }
    s->n_banned_token_ids = o->values[OPT_BANNED_TOKEN_ID].n_texts;
    int rc = take_ids("--banned-token-id", &o->values[OPT_BANNED_TOKEN_ID], &b->banned_ids, e);
    s->banned_token_ids = b->banned_ids;
    if (rc == 0)
        rc = add_restrictions(b, o, e);
    return rc < 0 ? rc : add_bias(b, o, e);
}

static int add_stopping(struct builder *b, const struct options *o, struct error *e) {
    Shardd__V1__StoppingParams *s = &b->stopping;
    const struct option_value *stop = &o->values[OPT_STOP], *ids = &o->values[OPT_STOP_TOKEN_ID];
    shardd__v1__stopping_params__init(s);
    b->request.stopping = s;
    if (options_given(o, OPT_MAX_TOKENS)) {
        s->max_tokens = (uint32_t)options_number(o, OPT_MAX_TOKENS);
        s->_max_tokens_case = SHARDD__V1__STOPPING_PARAMS___MAX_TOKENS_MAX_TOKENS;
    }
    s->min_tokens = (uint32_t)options_number(o, OPT_MIN_TOKENS);
    s->ignore_eos = options_number(o, OPT_IGNORE_EOS) != 0;
    s->stop_in_reasoning = options_number(o, OPT_STOP_IN_REASONING) != 0;
    int rc = take_texts(stop, &b->stop, e);
    if (rc == 0)
        rc = take_ids("--stop-token-id", ids, &b->stop_ids, e);
    if (rc < 0)
        return rc;
    s->stop = b->stop;
    s->n_stop = stop->n_texts;
    s->stop_token_ids = b->stop_ids;
    s->n_stop_token_ids = ids->n_texts;
    return 0;
}

static void add_output(struct builder *b, const struct options *o, bool chat) {
    Shardd__V1__OutputOptions *out = &b->output;
    shardd__v1__output_options__init(out);
    b->request.output = out;
    out->token_ids = options_number(o, OPT_TOKEN_IDS) != 0;
    out->logprobs = options_given(o, OPT_LOGPROBS);
    out->top_logprobs = (uint32_t)options_number(o, OPT_LOGPROBS);
    if (options_given(o, OPT_PROMPT_LOGPROBS)) {
        out->prompt_logprobs = (uint32_t)options_number(o, OPT_PROMPT_LOGPROBS);
        out->_prompt_logprobs_case = SHARDD__V1__OUTPUT_OPTIONS___PROMPT_LOGPROBS_PROMPT_LOGPROBS;
    }
    out->echo = options_number(o, OPT_ECHO) != 0;
    /* The continuation of a plain text is plain text: nothing in it is an answer's reasoning or a tool call. */
    out->raw = !chat || options_number(o, OPT_RAW) != 0;
    out->skip_text = out->token_ids && !options_given(o, OPT_JSON);
}

static int add_messages(
        struct builder *b, const struct options *o, const struct request_input *input, struct error *e) {
    size_t n = input->n_messages;
    b->messages = calloc(n, sizeof(*b->messages));
    b->parts = calloc(n, sizeof(*b->parts));
    b->message_list = calloc(n, sizeof(*b->message_list));
    b->part_list = calloc(n, sizeof(*b->part_list));
    if (!b->messages || !b->parts || !b->message_list || !b->part_list)
        return error_set(e, -ENOMEM, "no memory for the request");
    shardd__v1__chat_input__init(&b->chat);
    for (size_t i = 0; i < n; i++) {
        shardd__v1__message__init(&b->messages[i]);
        shardd__v1__part__init(&b->parts[i]);
        b->parts[i].part_case = SHARDD__V1__PART__PART_TEXT;
        b->parts[i].text = bytes_of(input->messages[i].text);
        b->part_list[i] = &b->parts[i];
        b->messages[i].role = bytes_of(input->messages[i].role);
        b->messages[i].n_content = 1;
        b->messages[i].content = &b->part_list[i];
        b->message_list[i] = &b->messages[i];
    }
    b->chat.n_messages = n;
    b->chat.messages = b->message_list;
    if (options_given(o, OPT_THINKING)) {
        b->chat._enable_thinking_case = SHARDD__V1__CHAT_INPUT___ENABLE_THINKING_ENABLE_THINKING;
        b->chat.enable_thinking = strcmp(options_text(o, OPT_THINKING), "on") == 0;
    }
    b->request.input_case = SHARDD__V1__GENERATE_REQUEST__INPUT_CHAT;
    b->request.chat = &b->chat;
    return 0;
}

static int add_input(
        struct builder *b, const struct options *o, const struct request_input *input, struct error *e) {
    if (input->messages)
        return add_messages(b, o, input, e);
    if (input->ids) {
        shardd__v1__token_ids__init(&b->ids);
        b->ids.n_ids = input->n_ids;
        b->ids.ids = (uint32_t *)(uintptr_t)input->ids;
        b->request.input_case = SHARDD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
        b->request.token_ids = &b->ids;
        return 0;
    }
    b->request.input_case = SHARDD__V1__GENERATE_REQUEST__INPUT_TEXT;
    b->request.text =
            (ProtobufCBinaryData){.len = input->text_bytes, .data = (uint8_t *)(uintptr_t)input->text};
    b->request.parse_special = options_number(o, OPT_PARSE_SPECIAL) != 0;
    return 0;
}

int request_pack(const struct options *o, const struct request_input *input, uint8_t **ret_bytes,
        size_t *ret_n, struct error *e) {
    struct builder b = {0};
    shardd__v1__generate_request__init(&b.request);
    b.request.model = bytes_of(options_text(o, OPT_MODEL_NAME));
    b.request.request_id = bytes_of(options_text(o, OPT_REQUEST_ID));
    b.request.n = (uint32_t)options_number(o, OPT_ANSWERS);
    b.request.queue_timeout_ms = (uint32_t)options_number(o, OPT_QUEUE_TIMEOUT);
    int rc = add_sampling(&b, o, e);
    if (rc == 0)
        rc = add_stopping(&b, o, e);
    if (rc == 0) {
        add_output(&b, o, input->messages != NULL);
        rc = add_input(&b, o, input, e);
    }
    if (rc == 0) {
        size_t n = shardd__v1__generate_request__get_packed_size(&b.request);
        uint8_t *bytes = malloc(n ? n : 1);
        if (n > REQUEST_BYTES_MAX)
            rc = error_set(
                    e, -E2BIG, "the request has %zu bytes; a service takes at most %u", n, REQUEST_BYTES_MAX);
        else if (!bytes)
            rc = error_set(e, -ENOMEM, "no memory for the request");
        else
            *ret_n = shardd__v1__generate_request__pack(&b.request, bytes);
        if (rc == 0)
            *ret_bytes = bytes;
        else
            free(bytes);
    }
    builder_done(&b);
    return rc;
}
