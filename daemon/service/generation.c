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

int generation_new(const struct plan *p, struct generation **ret) {
    struct generation *g = calloc(1, sizeof(*g));
    if (!g)
        return -ENOMEM;
    g->stop_index = -1;
    g->include_stop = p->include_stop;
    g->want_ids = p->want_ids;
    g->want_logprobs = p->want_logprobs;
    g->skip_text = p->skip_text;
    g->prompt_tokens = p->engine.n_prompt;
    g->n_stop_ids = p->engine.n_stop_ids;
    memcpy(g->stop_ids, p->stop_ids, sizeof(g->stop_ids));
    detokenizer_init(&g->detokenizer, p->show_special);
    int r = copy_stop_strings(g, p);
    /* Only what the template began can be reasoning, only what was offered can be called. */
    if (r == 0 && p->prompt.chat && !p->raw)
        r = output_parser_new(p->prompt.thinking_open, /* parse_tools= */ p->prompt.tools != NULL,
                p->prompt.tools, &g->parser);
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
    free(g->text);
    free(g);
    return NULL;
}

static int on_event(void *user, const struct output_event *event) {
    return chunk_add_event(user, event);
}

/* Text that no stop string can take back any more. */
static int show(struct generation *g, const char *text, size_t bytes, struct chunk *chunk) {
    if (bytes == 0)
        return 0;
    return g->parser ? output_parser_feed(g->parser, text, bytes, on_event, chunk)
                     : chunk_add_text(chunk, text, bytes);
}

static int filter(struct generation *g, struct chunk *chunk) {
    const char *text = NULL;
    size_t bytes = 0;
    int index = stop_strings_feed(g->stops, g->text, g->text_n, &text, &bytes);
    if (index == -ENOMEM)
        return index;
    if (index >= 0)
        g->stop_index = index;
    return show(g, text, bytes, chunk);
}

static bool is_stop_id(const struct generation *g, uint32_t id) {
    for (uint32_t i = 0; i < g->n_stop_ids; i++)
        if (g->stop_ids[i] == id)
            return true;
    return false;
}

int generation_add(struct generation *g, const struct tokenizer *t, const struct engine_token *token,
        struct chunk *chunk) {
    int r = 0;
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
    /* The engine ends the stream at a stop id, so that one has no text to show. */
    if (is_stop_id(g, token->id) && !g->include_stop)
        return 0;
    g->text_n = 0;
    r = detokenizer_add(&g->detokenizer, t, token->id, &g->text, &g->text_n, &g->text_size);
    if (r < 0 &&
            r != -EINVAL) /* an id beyond the tokenizer's table (padding of the vocabulary) has no text */
        return r;
    return g->text_n > 0 ? filter(g, chunk) : 0;
}

int generation_end(struct generation *g, struct chunk *chunk) {
    const char *text = NULL;
    size_t bytes = 0;
    int r = 0;
    if (g->skip_text)
        return 0;
    if (g->stop_index < 0) {
        g->text_n = 0;
        r = detokenizer_end(&g->detokenizer, &g->text, &g->text_n, &g->text_size);
        if (r == 0 && g->text_n > 0)
            r = filter(g, chunk);
    }
    if (r == 0 && g->stop_index < 0) {
        stop_strings_end(g->stops, &text, &bytes);
        r = show(g, text, bytes, chunk);
    }
    if (r == 0 && g->parser)
        r = output_parser_end(g->parser, on_event, chunk);
    return r;
}
