/* added_tokens.h - finds added tokens ("<|im_end|>") in text: the leftmost match, of those the longest.
 *
 * Used by tokenizer.c. A sorted list that is narrowed byte by byte; immutable after added_tokens_sort(). */
#pragma once

#include "base/buffer.h"

#include <stdbool.h>

struct added_token {
    char *text; /* owned, not NUL-terminated */
    uint32_t bytes, id;
};

struct added_tokens {
    struct added_token *tokens; /* sorted by their bytes */
    uint32_t n, size;
    uint32_t first[257]; /* tokens that begin with byte b: [first[b], first[b + 1]) */
};

void added_tokens_done(struct added_tokens *a);
int added_tokens_add(
        struct added_tokens *a, const char *text, size_t bytes, uint32_t id); /* bytes > 0; -ENOMEM */
/* To be called once all are there. -EEXIST: two have the same text; *ret_id is one of them. */
int added_tokens_sort(struct added_tokens *a, uint32_t *ret_id);
/* The first match that lies wholly in [at, bytes); NULL if there is none. */
const struct added_token *added_tokens_find(
        const struct added_tokens *a, const char *text, size_t at, size_t bytes, size_t *ret_at);
/* The token whose text is exactly this; NULL. */
const struct added_token *added_tokens_named(const struct added_tokens *a, const char *text, size_t bytes);
