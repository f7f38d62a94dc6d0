/* generation.c - see generation.h. */
#include "daemon/service/generation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int copy_stop_strings(struct generation *g, const struct plan *p) {
    const char *texts[STOP_STRINGS_MAX];
    size_t bytes[STOP_STRINGS_MAX];
    for (size_t i = 0; i < p->n_stop_strings; i++) {
        struct owned_text *t = &g->stop_strings[i];
        t->data = malloc(p->stop_strings[i].len);
        if (!t->data)
            return -ENOMEM;
        memcpy(t->data, p->stop_strings[i].data, p->stop_strings[i].len);
        t->n = p->stop_strings[i].len;
        texts[i] = t->data;
        bytes[i] = t->n;
        g->n_stop_strings = i + 1;
    }
    return stop_strings_new(texts, bytes, p->n_stop_strings, p->include_stop, &g->stops);
}

#define ECHO_BYTES 65536u /* of the prompt's text in a message, about */

static int copy_echo(struct generation *g, const struct plan *p) {
    if (!p->echo)
        return 0;
    g->echo_ids = malloc(p->prompt.n * sizeof(g->echo_ids[0]));
    if (!g->echo_ids)
        return -ENOMEM;
    g->n_echo = (uint32_t)p->prompt.n;
    memcpy(g->echo_ids, p->prompt.ids, p->prompt.n * sizeof(g->echo_ids[0]));
    detokenizer_init(&g->echo, /* show_special= */ true);
    return 0;
}

int generation_new(const struct plan *p, struct generation **ret) {
    struct generation *g = calloc(1, sizeof(*g));
    if (!g)
        return -ENOMEM;
    g->stop_index = -1;
    g->include_stop = p->include_stop;
    g->stop_in_reasoning = p->stop_in_reasoning;
    g->min_tokens = p->engine.min_tokens;
    g->stops_kind = OUTPUT_TEXT;
    g->want_ids = p->want_ids;
    g->want_logprobs = p->want_logprobs;
    g->skip_text = p->skip_text;
    g->prompt_tokens = p->engine.n_prompt;
    g->n_stop_ids = p->engine.n_stop_ids;
    memcpy(g->stop_ids, p->stop_ids, sizeof(g->stop_ids));
    detokenizer_init(&g->detokenizer, p->show_special);
    int r = copy_stop_strings(g, p);
    if (r == 0)
        r = copy_echo(g, p);
    /* Only what the template began can be reasoning, only what was offered can be called. */
    if (r == 0 && p->prompt.chat && !p->raw)
        r = output_parser_new(p->prompt.thinking_open, p->prompt.tools, &g->parser);
    if (r < 0) {
        generation_free(g);
        return r;
    }
    *ret = g;
    return 0;
}

struct generation *generation_free(struct generation *g) {
    if (!g)
        return NULL;
    engine_stream_unref(g->stream);
    for (size_t i = 0; i < g->n_stop_strings; i++)
        free(g->stop_strings[i].data);
    stop_strings_free(g->stops);
    output_parser_free(g->parser);
    free(g->echo_ids);
    free(g->text);
    free(g);
    return NULL;
}

/* --- text, on its way into the chunk --- */

struct sink {
    struct generation *g;
    struct chunk *chunk;
};

/* What was held back turned out to be the beginning of no stop string. */
static int release(struct sink *to) {
    struct output_event held = {.kind = to->g->stops_kind};
    stop_strings_end(to->g->stops, &held.data, &held.bytes);
    return held.bytes > 0 ? chunk_add_event(to->chunk, &held) : 0;
}

/* Stop strings are looked for in what the parser made of the text: in the answer, and in reasoning if the
 * request wants that. So none is found in tags, in the newlines around them or in a tool's arguments, and none
 * reaches from one kind of text into the next. */
static int on_event(void *user, const struct output_event *event) {
    struct sink *to = user;
    struct generation *g = to->g;
    struct output_event shown = {.kind = event->kind};
    if (g->stop_index >= 0) /* what follows is nobody's */
        return 0;
    int r = event->kind == g->stops_kind ? 0 : release(to);
    g->stops_kind = event->kind;
    if (r < 0)
        return r;
    if (event->kind != OUTPUT_TEXT && !(event->kind == OUTPUT_REASONING && g->stop_in_reasoning))
        return chunk_add_event(to->chunk, event);
    int index = stop_strings_feed(
            g->stops, event->data, event->bytes, g->n_tokens > g->min_tokens, &shown.data, &shown.bytes);
    if (index == -ENOMEM)
        return index;
    if (index >= 0)
        g->stop_index = index;
    return shown.bytes > 0 ? chunk_add_event(to->chunk, &shown) : 0;
}

/* Whole characters. */
static int take_text(struct generation *g, struct chunk *chunk) {
    struct sink to = {g, chunk};
    struct output_event text = {.kind = OUTPUT_TEXT, .data = g->text, .bytes = g->text_n};
    if (g->text_n == 0)
        return 0;
    if (g->parser_ended && output_parser_in_reasoning(g->parser))
        text.kind = OUTPUT_REASONING;
    return g->parser && !g->parser_ended ? output_parser_feed(g->parser, g->text, g->text_n, on_event, &to)
                                         : on_event(&to, &text);
}

static int end_parser(struct generation *g, bool end_of_turn, struct chunk *chunk) {
    struct sink to = {g, chunk};
    if (!g->parser || g->parser_ended || g->stop_index >= 0)
        return 0;
    g->parser_ended = true;
    return output_parser_end(g->parser, end_of_turn, on_event, &to);
}

static bool is_stop_id(const struct generation *g, uint32_t id) {
    for (uint32_t i = 0; i < g->n_stop_ids; i++)
        if (g->stop_ids[i] == id)
            return true;
    return false;
}

static bool is_tag(const struct tokenizer *t, uint32_t id) {
    size_t bytes = 0;
    bool special;
    const char *piece = tokenizer_piece(t, id, &bytes, &special);
    return piece && output_parser_is_tag(piece, bytes);
}

int generation_echo(struct generation *g, const struct tokenizer *t, struct chunk *chunk) {
    int r = 0;
    g->text_n = 0;
    while (generation_echoes(g) && g->text_n < ECHO_BYTES && r == 0) {
        r = detokenizer_add(&g->echo, t, g->echo_ids[g->echo_at++], &g->text, &g->text_n, &g->text_size);
        r = r == -EINVAL ? 0 : r; /* an id that only pads the vocabulary has no text */
    }
    if (r == 0 && !generation_echoes(g))
        r = detokenizer_end(&g->echo, &g->text, &g->text_n, &g->text_size);
    const struct output_event event = {.kind = OUTPUT_TEXT, .data = g->text, .bytes = g->text_n};
    return r == 0 && g->text_n > 0 ? chunk_add_event(chunk, &event) : r;
}

int generation_add(struct generation *g, const struct tokenizer *t, const struct engine_token *token,
        struct chunk *chunk) {
    int r = 0;
    if (token->of_prompt)
        return chunk_add_prompt_logprobs(chunk, t, token, ++g->n_scored);
    g->n_tokens++;
    g->last_id = token->id;
    if (g->want_ids)
        r = chunk_add_id(chunk, token->id);
    if (r == 0 && g->want_logprobs)
        r = chunk_add_logprobs(chunk, t, token);
    if (r < 0 || g->skip_text)
        return r;
    if (g->parser && output_parser_in_reasoning(g->parser))
        g->reasoning_tokens++;
    bool tag = g->parser && is_tag(t, token->id), shown = g->detokenizer.show_special;
    /* The engine ends the stream at a stop id: it has no text to show, or all of it, special or not. Unless it is
     * a tag it says nothing more to the parser than that the turn ended. */
    if (is_stop_id(g, token->id)) {
        if (!g->include_stop)
            return 0;
        shown = true;
        r = tag ? 0 : end_parser(g, /* end_of_turn= */ true, chunk);
        if (r < 0)
            return r;
    }
    g->text_n = 0;
    g->detokenizer.show_special = shown || tag;
    r = detokenizer_add(&g->detokenizer, t, token->id, &g->text, &g->text_n, &g->text_size);
    g->detokenizer.show_special = shown;
    if (r < 0 &&
            r != -EINVAL) /* an id beyond the tokenizer's table (padding of the vocabulary) has no text */
        return r;
    return take_text(g, chunk);
}

int generation_end(struct generation *g, bool end_of_turn, struct chunk *chunk) {
    struct sink to = {g, chunk};
    if (g->skip_text || g->stop_index >= 0)
        return 0;
    g->text_n = 0;
    int r = detokenizer_end(&g->detokenizer, &g->text, &g->text_n, &g->text_size);
    if (r == 0)
        r = take_text(g, chunk);
    if (r == 0)
        r = end_parser(g, end_of_turn, chunk);
    return r == 0 && g->stop_index < 0 ? release(&to) : r;
}
