/* chunk.c - see chunk.h. */
#include "daemon/service/chunk.h"

#include "daemon/service/message.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

typedef Shardd__V1__Delta Delta;
typedef Shardd__V1__ToolCallDelta ToolCallDelta;

void chunk_init(struct chunk *c, struct arena *arena) {
    *c = (struct chunk){.arena = arena, .message = SHARDD__V1__GENERATE_CHUNK__INIT};
}

/* Room for one more entry in an array of the arena; the old one is left behind. */
static void *grow(struct arena *a, void *array, size_t n, size_t *size, size_t entry) {
    if (n < *size)
        return array;
    size_t wanted = *size ? *size * 2 : 8;
    void *bigger = arena_alloc(a, wanted * entry);
    if (!bigger)
        return NULL;
    if (n > 0)
        memcpy(bigger, array, n * entry);
    *size = wanted;
    return bigger;
}

/* Appends to the text that the last delta points to. */
static int append(struct chunk *c, ProtobufCBinaryData *target, const char *text, size_t bytes) {
    struct text_buffer *b = &c->tail;
    if (bytes == 0)
        return 0;
    if (bytes > b->size - b->n) {
        size_t size = (b->n + bytes) * 2 + 32;
        char *data = arena_alloc(c->arena, size);
        if (!data)
            return -ENOMEM;
        if (b->n > 0)
            memcpy(data, b->data, b->n);
        b->data = data;
        b->size = size;
    }
    memcpy(b->data + b->n, text, bytes);
    b->n += bytes;
    *target = message_text(b->data, b->n);
    return 0;
}

static Delta *last_delta(struct chunk *c) {
    return c->message.n_deltas ? c->message.deltas[c->message.n_deltas - 1] : NULL;
}

static Delta *new_delta(struct chunk *c, Shardd__V1__Delta__DeltaCase kind) {
    Delta **list = grow(c->arena, c->message.deltas, c->message.n_deltas, &c->deltas_size, sizeof(*list));
    Delta *d = arena_alloc(c->arena, sizeof(*d));
    if (!list || !d)
        return NULL;
    shardd__v1__delta__init(d);
    d->delta_case = kind;
    d->text = message_string("");
    c->message.deltas = list;
    list[c->message.n_deltas++] = d;
    c->tail = (struct text_buffer){0};
    return d;
}

static int add_piece(struct chunk *c, Shardd__V1__Delta__DeltaCase kind, const char *text, size_t bytes) {
    if (bytes == 0)
        return 0;
    Delta *d = last_delta(c);
    if (!d || d->delta_case != kind)
        d = new_delta(c, kind);
    if (!d)
        return -ENOMEM;
    return append(c, kind == SHARDD__V1__DELTA__DELTA_TEXT ? &d->text : &d->reasoning, text, bytes);
}

/* The delta of this call that is still being written, or a new one. */
static ToolCallDelta *tool_delta(struct chunk *c, uint32_t index) {
    Delta *d = last_delta(c);
    if (d && d->delta_case == SHARDD__V1__DELTA__DELTA_TOOL_CALL && d->tool_call->index == index &&
            !d->tool_call->done)
        return d->tool_call;
    ToolCallDelta *t = arena_alloc(c->arena, sizeof(*t));
    d = t ? new_delta(c, SHARDD__V1__DELTA__DELTA_TOOL_CALL) : NULL;
    if (!d)
        return NULL;
    shardd__v1__tool_call_delta__init(t);
    t->index = index;
    d->tool_call = t;
    return t;
}

static int begin_tool(struct chunk *c, ToolCallDelta *t, const struct output_event *event) {
    uint64_t random[2] = {0};
    char *id = arena_alloc(c->arena, 40), *name = arena_alloc(c->arena, event->bytes + 1);
    if (!id || !name)
        return -ENOMEM;
    if (getrandom(random, sizeof(random), 0) != sizeof(random))
        random[0] = event->tool_index; /* unique within the answer at least */
    int n = snprintf(id, 40, "call_%016llx%08llx", (unsigned long long)random[0],
            (unsigned long long)(random[1] & 0xffffffffu));
    if (event->bytes > 0)
        memcpy(name, event->data, event->bytes);
    t->id = message_text(id, (size_t)n);
    t->name = message_text(name, event->bytes);
    return 0;
}

int chunk_add_event(struct chunk *c, const struct output_event *event) {
    if (event->kind == OUTPUT_TEXT)
        return add_piece(c, SHARDD__V1__DELTA__DELTA_TEXT, event->data, event->bytes);
    if (event->kind == OUTPUT_REASONING)
        return add_piece(c, SHARDD__V1__DELTA__DELTA_REASONING, event->data, event->bytes);
    ToolCallDelta *t = tool_delta(c, event->tool_index);
    if (!t)
        return -ENOMEM;
    if (event->kind == OUTPUT_TOOL_BEGIN)
        return begin_tool(c, t, event);
    if (event->kind == OUTPUT_TOOL_ARGUMENTS)
        return append(c, &t->arguments, event->data, event->bytes);
    t->done = true;
    return 0;
}

int chunk_add_id(struct chunk *c, uint32_t id) {
    uint32_t *ids = grow(c->arena, c->message.token_ids, c->message.n_token_ids, &c->ids_size, sizeof(*ids));
    if (!ids)
        return -ENOMEM;
    ids[c->message.n_token_ids++] = id;
    c->message.token_ids = ids;
    return 0;
}

static ProtobufCBinaryData piece(const struct tokenizer *t, uint32_t id) {
    size_t bytes = 0;
    bool special;
    const char *data = tokenizer_piece(t, id, &bytes, &special);
    return message_text(data ? data : "", data ? bytes : 0);
}

static Shardd__V1__TokenLogprobs *new_logprobs(
        struct chunk *c, const struct tokenizer *t, const struct engine_token *token) {
    uint32_t n = token->n_top < TOP_LOGPROBS_MAX ? token->n_top : TOP_LOGPROBS_MAX;
    Shardd__V1__TokenLogprobs *l = arena_alloc(c->arena, sizeof(*l));
    Shardd__V1__TopLogprob *top = arena_alloc(c->arena, (n + 1) * sizeof(*top));
    Shardd__V1__TopLogprob **tops = arena_alloc(c->arena, (n + 1) * sizeof(*tops));
    if (!l || !top || !tops)
        return NULL;
    shardd__v1__token_logprobs__init(l);
    l->token_id = token->id;
    l->logprob = token->logprob;
    l->token = piece(t, token->id);
    for (uint32_t i = 0; i < n; i++) {
        shardd__v1__top_logprob__init(&top[i]);
        top[i].token_id = token->top_ids[i];
        top[i].logprob = token->top_logprobs[i];
        top[i].token = piece(t, token->top_ids[i]);
        tops[i] = &top[i];
    }
    l->n_top = n;
    l->top = tops;
    return l;
}

int chunk_add_logprobs(struct chunk *c, const struct tokenizer *t, const struct engine_token *token) {
    Shardd__V1__TokenLogprobs *l = new_logprobs(c, t, token),
                              **list = grow(c->arena, c->message.logprobs, c->message.n_logprobs,
                                      &c->logprobs_size, sizeof(*list));
    if (!list || !l)
        return -ENOMEM;
    list[c->message.n_logprobs++] = l;
    c->message.logprobs = list;
    return 0;
}

int chunk_add_prompt_logprobs(
        struct chunk *c, const struct tokenizer *t, const struct engine_token *token, uint32_t index) {
    Shardd__V1__TokenLogprobs *l = new_logprobs(c, t, token),
                              **list = grow(c->arena, c->message.prompt_logprobs,
                                      c->message.n_prompt_logprobs, &c->prompt_size, sizeof(*list));
    if (!list || !l)
        return -ENOMEM;
    if (c->message.n_prompt_logprobs == 0)
        c->message.first_prompt_index = index;
    list[c->message.n_prompt_logprobs++] = l;
    c->message.prompt_logprobs = list;
    return 0;
}

bool chunk_has_content(const struct chunk *c) {
    return c->message.n_deltas > 0 || c->message.n_token_ids > 0 || c->message.n_logprobs > 0 ||
           c->message.n_prompt_logprobs > 0;
}
