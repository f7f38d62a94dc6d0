/* tokens.c - Tokenize and Detokenize: exactly what Generate does with text on the way in and out. */
#include "daemon/service/message.h"
#include "daemon/service/methods.h"
#include "daemon/service/prompt.h"
#include "daemon/service/refusal.h"
#include "daemon/service/request.h"

#include "shardd/v1/shardd.pb-c.h"

#include <errno.h>
#include <stdlib.h>

typedef Shardd__V1__TokenizeRequest TokenizeRequest;
typedef Shardd__V1__DetokenizeRequest DetokenizeRequest;

static int make_prompt(
        const struct model *m, const TokenizeRequest *q, struct prompt *ret, struct rpc_status *s) {
    if (request_check_model(m, q->model, s) < 0)
        return -1;
    if (q->parse_special && q->input_case != SHARDD__V1__TOKENIZE_REQUEST__INPUT_TEXT)
        return refuse(s, REFUSAL_CONFLICT, "parse_special is for text input only; unset it");
    if (q->input_case == SHARDD__V1__TOKENIZE_REQUEST__INPUT_TEXT)
        return prompt_from_text(m, q->text, q->parse_special, /* length= */ 0, ret, s);
    if (q->input_case == SHARDD__V1__TOKENIZE_REQUEST__INPUT_CHAT)
        return prompt_from_chat(m, q->chat, /* length= */ 0, ret, s);
    return refuse(s, REFUSAL_MISSING_INPUT, "the request has no input; set text or chat");
}

static int answer_tokenize(
        struct rpc_call *c, const TokenizeRequest *q, struct arena *a, struct rpc_status *s) {
    const struct model *m = ((struct service *)rpc_call_user(c))->options.model;
    struct prompt p;
    if (make_prompt(m, q, &p, s) < 0)
        return -1;
    Shardd__V1__TokenizeResponse answer = SHARDD__V1__TOKENIZE_RESPONSE__INIT;
    ProtobufCBinaryData *pieces = q->with_pieces && p.n ? arena_zalloc(a, p.n * sizeof(*pieces)) : NULL;
    if (q->with_pieces && p.n && !pieces) {
        prompt_done(&p);
        return refuse(
                s, REFUSAL_TOO_COMPLEX, "too many tokens to show with their pieces; send a shorter text");
    }
    for (size_t i = 0; pieces && i < p.n; i++) {
        size_t bytes = 0;
        bool special;
        const char *piece = tokenizer_piece(m->tokenizer, p.ids[i], &bytes, &special);
        pieces[i] = message_text(piece ? piece : "", piece ? bytes : 0);
    }
    answer.n_ids = p.n;
    answer.ids = p.ids;
    answer.n_pieces = pieces ? p.n : 0;
    answer.pieces = pieces;
    if (p.rendered)
        answer.rendered = message_text(p.rendered, p.rendered_bytes);
    message_reply(c, &answer.base);
    prompt_done(&p);
    return 0;
}

void tokenize_on_call(struct rpc_call *c) {
    struct arena arena;
    struct rpc_status status;
    arena_init(&arena, ARENA_BYTES_MAX, NULL, 0);
    const TokenizeRequest *q = (const TokenizeRequest *)message_of_call(
            &shardd__v1__tokenize_request__descriptor, c, &arena, &status);
    if (!q || answer_tokenize(c, q, &arena, &status) < 0)
        method_refuse(c, &status);
    arena_done(&arena);
}

/* Ids below it are taken: whatever Generate can give, with the ids that only pad the model's vocabulary and have
 * no text, and before the model is loaded those of the tokenizer. */
static uint32_t ids_end(const struct service *s) {
    struct engine_stats stats;
    engine_stats(s->options.engine, &stats);
    uint32_t known = tokenizer_vocab_size(s->options.model->tokenizer);
    return stats.vocab_size > known ? stats.vocab_size : known;
}

/* *ret is malloc'ed. */
static int detokenize(const struct service *service, const DetokenizeRequest *q, char **ret,
        size_t *ret_bytes, struct rpc_status *s) {
    const struct model *m = service->options.model;
    uint32_t end = ids_end(service);
    struct detokenizer d;
    size_t size = 0;
    int r = 0;
    if (request_check_model(m, q->model, s) < 0)
        return -1;
    if (q->n_ids > CONTEXT_MAX)
        return refuse(
                s, REFUSAL_CONTEXT_TOO_LONG, "ids has %zu entries; give at most %u", q->n_ids, CONTEXT_MAX);
    detokenizer_init(&d, q->show_special);
    for (size_t i = 0; i < q->n_ids && r == 0; i++) {
        if (q->ids[i] >= end)
            return refuse(s, REFUSAL_INVALID_FIELD,
                    "ids[%zu] is %u, which is no token of this model; its ids go from 0 to %u", i, q->ids[i],
                    end - 1);
        r = detokenizer_add(&d, m->tokenizer, q->ids[i], ret, ret_bytes, &size);
        if (r == -EINVAL) /* in no table of the tokenizer */
            r = 0;
        if (r == 0 && *ret_bytes > REQUEST_BYTES_MAX)
            return refuse(s, REFUSAL_TOO_COMPLEX, "the text is longer than %u bytes; send fewer ids",
                    REQUEST_BYTES_MAX);
    }
    if (r == 0)
        r = detokenizer_end(&d, ret, ret_bytes, &size);
    return r < 0 ? refuse(s, REFUSAL_INTERNAL, "no memory for the text") : 0;
}

void detokenize_on_call(struct rpc_call *c) {
    struct arena arena;
    struct rpc_status status;
    char *text = NULL;
    size_t bytes = 0;
    arena_init(&arena, ARENA_BYTES_MAX, NULL, 0);
    const DetokenizeRequest *q = (const DetokenizeRequest *)message_of_call(
            &shardd__v1__detokenize_request__descriptor, c, &arena, &status);
    if (q && detokenize(rpc_call_user(c), q, &text, &bytes, &status) == 0) {
        Shardd__V1__DetokenizeResponse answer = SHARDD__V1__DETOKENIZE_RESPONSE__INIT;
        answer.text = message_text(text ? text : "", bytes);
        message_reply(c, &answer.base);
    } else {
        method_refuse(c, &status);
    }
    free(text);
    arena_done(&arena);
}
