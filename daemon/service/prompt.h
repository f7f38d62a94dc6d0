/* prompt.h - what a request gives as input, turned into token ids. Used by Generate and Tokenize. */
#pragma once

#include "daemon/rpc/rpc.h"
#include "daemon/service/model.h"

#include "shardd/v1/shardd.pb-c.h"

#include <jansson.h>

struct prompt {
    uint32_t *ids; /* malloc'ed */
    size_t n;
    bool chat;
    bool thinking_open;  /* chat: the prompt ends inside a think block */
    json_t *tools;       /* chat: array or NULL; a reference */
    uint32_t shared_end; /* chat: tokens of the first message; 0 = there is no other */
    uint32_t turn_end;   /* chat: tokens of all messages, before what begins the answer; 0 = as shared_end */
    uint32_t message_ends[MESSAGE_ENDS_MAX],
            n_message_ends; /* chat: tokens up to the ends of some messages */
    char *rendered;         /* chat: the text of the template, malloc'ed */
    size_t rendered_bytes;
};

/* All: 0, or -1 with *s filled. length: what the model takes, 0 = only limits.h; tokenizing stops at twice
 * that, so that the refusal of a usual mistake names the real count and hostile text costs no long work.
 * Whether the prompt fits is the caller's question. On success prompt_done() releases *ret. */
int prompt_from_text(const struct model *m, ProtobufCBinaryData text, bool parse_special, uint32_t length,
        struct prompt *ret, struct rpc_status *s);
int prompt_from_chat(const struct model *m, const Shardd__V1__ChatInput *chat, uint32_t length,
        struct prompt *ret, struct rpc_status *s);
int prompt_from_ids(
        const uint32_t *ids, size_t n, uint32_t vocab_size, struct prompt *ret, struct rpc_status *s);
/* Fills shared_end, turn_end and message_ends of the ids of a chat. */
void prompt_find_messages(struct prompt *p);
void prompt_done(struct prompt *p);
