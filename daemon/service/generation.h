/* generation.h - the state of one answer: tokens in, deltas out. Knows nothing of gRPC. */
#pragma once

#include "daemon/service/chunk.h"
#include "daemon/service/request.h"
#include "daemon/text/output_parser.h"
#include "daemon/text/stop_strings.h"

struct owned_text {
    char *data;
    size_t n;
};

struct generation {
    struct engine_stream *stream; /* our reference; NULL before submit */
    struct detokenizer detokenizer;
    struct stop_strings *stops;
    enum output_event_kind stops_kind; /* of the text that stops holds back */
    struct output_parser *parser;      /* NULL: everything is text */
    struct owned_text stop_strings[STOP_STRINGS_MAX];
    size_t n_stop_strings;
    uint32_t stop_ids[STOP_IDS_MAX + MODEL_STOP_IDS_MAX];
    uint32_t n_stop_ids;
    uint32_t min_tokens; /* stop strings end no earlier */
    bool parser_ended;   /* what comes yet is no syntax */
    bool include_stop, stop_in_reasoning, want_ids, want_logprobs, skip_text;

    uint32_t *echo_ids, n_echo, echo_at; /* the prompt's, which the text begins with; those that were said */
    struct detokenizer echo;
    uint32_t n_scored; /* logprobs of the prompt that were taken */
    char *text;        /* of the token at hand */
    size_t text_n, text_size;
    uint64_t n_tokens, n_sent; /* tokens taken; tokens that chunks account for */
    uint32_t prompt_tokens, reasoning_tokens, last_id;
    int stop_index;  /* of the stop string that was found, or -1 */
    uint32_t answer; /* which of the call's answers */
    bool done;       /* its last token was taken and its end is known */
};

int generation_new(
        const struct plan *p, struct generation **ret); /* 0 or -ENOMEM; copies what it needs of the plan */
struct generation *generation_free(struct generation *g);
/* The next piece of the prompt's text, where the request wants it and has not had all of it. 0 or -ENOMEM. */
int generation_echo(struct generation *g, const struct tokenizer *t, struct chunk *chunk);
static inline bool generation_echoes(const struct generation *g) {
    return g->echo_at < g->n_echo;
}
/* One token: its id, logprobs and text go into the chunk as far as they are certain. 0 or -ENOMEM. */
int generation_add(struct generation *g, const struct tokenizer *t, const struct engine_token *token,
        struct chunk *chunk);
/* The end of the tokens: what was held back goes into the chunk. end_of_turn: a stop id ended them. */
int generation_end(struct generation *g, bool end_of_turn, struct chunk *chunk);
