/* request.h - a GenerateRequest from command-line options. */
#pragma once

#include "launcher/options/options.h"

struct request_message {
    const char *role; /* "system", "user", "assistant" */
    char *text;       /* owned by whoever holds the list */
};

struct request_input { /* exactly one of text, ids and messages */
    const char *text;
    size_t text_bytes;
    const uint32_t *ids;
    size_t n_ids;
    const struct request_message *messages;
    size_t n_messages;
};

/* The packed message; free(*ret_bytes). -EINVAL with a sentence that names the option. */
int request_pack(const struct options *o, const struct request_input *input, uint8_t **ret_bytes,
        size_t *ret_n, struct error *e);
/* "1, 2 3" -> {1, 2, 3}; free(*ret). */
int request_parse_ids(const char *text, uint32_t **ret, size_t *ret_n, struct error *e);
