/* chunk.h - builds one GenerateChunk from tokens and parser events.
 *
 * Everything that happens between two sends goes into one chunk, and neighbouring pieces of the same kind
 * into one delta. Lives on the stack of the worker; all memory is the arena's. */
#pragma once

#include "daemon/engine/engine.h"
#include "daemon/service/arena.h"
#include "daemon/text/output_parser.h"
#include "daemon/text/tokenizer.h"

#include "shardd/v1/shardd.pb-c.h"

struct text_buffer {
    char *data;
    size_t n, size;
};

struct chunk {
    struct arena *arena;
    Shardd__V1__GenerateChunk message;
    size_t deltas_size, ids_size, logprobs_size, prompt_size; /* allocated entries */
    struct text_buffer tail;                                  /* of the last delta */
};

void chunk_init(struct chunk *c, struct arena *arena);
/* All: 0 or -ENOMEM. */
int chunk_add_event(struct chunk *c, const struct output_event *event);
int chunk_add_id(struct chunk *c, uint32_t id);
int chunk_add_logprobs(struct chunk *c, const struct tokenizer *t, const struct engine_token *token);
/* index: of the token in the prompt */
int chunk_add_prompt_logprobs(
        struct chunk *c, const struct tokenizer *t, const struct engine_token *token, uint32_t index);
bool chunk_has_content(const struct chunk *c);
