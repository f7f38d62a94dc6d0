/* prompt.c - see prompt.h. */
#include "daemon/service/prompt.h"

#include "base/limits.h"
#include "daemon/service/conversation.h"
#include "daemon/service/message.h"
#include "daemon/service/refusal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MESSAGES_APART 512u /* tokens: a state at the end of a message has to save so many */

static size_t ids_max(uint32_t length) {
    return length > 0 && length < CONTEXT_MAX / 2 ? 2 * (size_t)length : CONTEXT_MAX;
}

static int refuse_encoding(int code, uint32_t length, const struct error *e, struct rpc_status *s) {
    if (code == -E2BIG && length > 0)
        return refuse(s, REFUSAL_CONTEXT_TOO_LONG,
                "the prompt has more than %zu tokens and the model takes %u, prompt and answer together; "
                "shorten the prompt",
                ids_max(length), length);
    if (code == -E2BIG)
        return refuse(s, REFUSAL_CONTEXT_TOO_LONG, "the text has more than %zu tokens; send a shorter one",
                ids_max(length));
    if (code == -EILSEQ)
        return refuse(s, REFUSAL_INVALID_UTF8, "%s", e->text);
    return refuse(s, REFUSAL_INTERNAL, "the tokenizer failed: %s", e->text);
}

int prompt_from_text(const struct model *m, ProtobufCBinaryData text, bool parse_special, uint32_t length,
        struct prompt *ret, struct rpc_status *s) {
    struct error e = {0};
    struct prompt p = {0};
    if (text.len == 0)
        return refuse(s, REFUSAL_MISSING_INPUT, "text is empty; give at least one character");
    if (message_check_utf8(text, "text", s) < 0)
        return -1;
    int r = tokenizer_encode(m->tokenizer, (const char *)text.data, text.len, parse_special, ids_max(length),
            &p.ids, &p.n, &e);
    if (r < 0)
        return refuse_encoding(r, length, &e, s);
    *ret = p;
    return 0;
}

/* Of many messages those are marked that are far enough from the one before. Returns how far that has to be now. */
static uint32_t mark_message(struct prompt *p, uint32_t end, uint32_t apart) {
    uint32_t before = p->n_message_ends > 0 ? p->message_ends[p->n_message_ends - 1] : 0;
    if (end < before + apart)
        return apart;
    if (p->n_message_ends == MESSAGE_ENDS_MAX) { /* every other one, and from here on at twice the distance */
        for (uint32_t i = 0; i < MESSAGE_ENDS_MAX / 2; i++)
            p->message_ends[i] = p->message_ends[2 * i + 1];
        p->n_message_ends /= 2;
        apart *= 2;
    }
    p->message_ends[p->n_message_ends++] = end;
    return apart;
}

/* A message begins with the control token that the first begins with, which no text can give. */
void prompt_find_messages(struct prompt *p) {
    uint32_t apart = MESSAGES_APART;
    for (size_t i = 1; i < p->n; i++) {
        if (p->ids[i] != p->ids[0])
            continue;
        p->turn_end = (uint32_t)i;
        if (p->shared_end == 0)
            p->shared_end = p->turn_end;
        apart = mark_message(p, p->turn_end, apart);
    }
}

static int render(const struct model *m, const Shardd__V1__ChatInput *chat, const struct conversation *c,
        uint32_t length, struct prompt *p, struct rpc_status *s) {
    struct error e = {0};
    struct chat_rendered text = {0};
    struct chat_options options = {
            .enable_thinking = chat->_enable_thinking_case ? chat->enable_thinking != 0 : -1,
            .add_generation_prompt = chat->_add_generation_prompt_case ? chat->add_generation_prompt : true,
            .tools = c->tools,
    };
    int r = chat_template_render(&m->template, c->messages, &options, &text, &e);
    if (r < 0)
        return refuse(s, r == -ENOMEM ? REFUSAL_INTERNAL : REFUSAL_TEMPLATE, "%s", e.text);
    r = tokenizer_encode_spans(m->tokenizer, text.spans, text.n_spans, ids_max(length), &p->ids, &p->n, &e);
    if (r < 0) {
        chat_rendered_done(&text);
        return refuse_encoding(r, length, &e, s);
    }
    prompt_find_messages(p);
    p->chat = true;
    p->thinking_open = text.thinking_open;
    p->rendered = text.text;
    p->rendered_bytes = text.bytes;
    text.text = NULL; /* kept; the rest goes */
    chat_rendered_done(&text);
    return 0;
}

int prompt_from_chat(const struct model *m, const Shardd__V1__ChatInput *chat, uint32_t length,
        struct prompt *ret, struct rpc_status *s) {
    struct conversation c = {0};
    struct prompt p = {0};
    if (m->template.kind == CHAT_TEMPLATE_NONE)
        return refuse(s, REFUSAL_CHAT_UNSUPPORTED,
                "this model takes no chat messages: %s; send text or token_ids",
                m->template_error.text[0] ? m->template_error.text : "it has no chat template");
    if (conversation_build(chat, &c, s) < 0)
        return -1;
    int r = render(m, chat, &c, length, &p, s);
    if (r == 0) {
        p.tools = json_incref(c.tools);
        *ret = p;
    }
    conversation_done(&c);
    return r;
}

int prompt_from_ids(
        const uint32_t *ids, size_t n, uint32_t vocab_size, struct prompt *ret, struct rpc_status *s) {
    if (n == 0)
        return refuse(s, REFUSAL_MISSING_INPUT, "token_ids.ids is empty; give at least one id");
    if (n > CONTEXT_MAX)
        return refuse(s, REFUSAL_CONTEXT_TOO_LONG,
                "token_ids.ids has %zu entries; no model takes more than %u", n, CONTEXT_MAX);
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= vocab_size)
            return refuse(s, REFUSAL_INVALID_FIELD,
                    "token_ids.ids[%zu] is %u; the ids of this model go from 0 to %u", i, ids[i],
                    vocab_size - 1);
    uint32_t *copy = malloc(n * sizeof(*copy));
    if (!copy)
        return refuse(s, REFUSAL_INTERNAL, "no memory for the prompt");
    memcpy(copy, ids, n * sizeof(*copy));
    *ret = (struct prompt){.ids = copy, .n = n};
    return 0;
}

void prompt_done(struct prompt *p) {
    free(p->ids);
    free(p->rendered);
    json_decref(p->tools);
    *p = (struct prompt){0};
}
