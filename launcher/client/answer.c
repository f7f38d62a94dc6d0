/* answer.c - see answer.h. */
#include "launcher/client/answer.h"

#include "base/clock.h"

#include "launcher/client/chunk_json.h"
#include "shardd/v1/shardd.pb-c.h"

#include <grpc/status.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIM   "\033[2m"
#define PLAIN "\033[0m"

static void keep_text(struct answer *a, const uint8_t *data, size_t n) {
    char *more = realloc(a->text, a->text_bytes + n + 1);
    if (!more) {
        a->out_of_memory = true;
        return;
    }
    memcpy(more + a->text_bytes, data, n);
    a->text = more;
    a->text_bytes += n;
    more[a->text_bytes] = '\0';
}

static void dim(struct answer *a, bool on) {
    if (a->dimmed == on)
        return;
    a->dimmed = on;
    fputs(on ? DIM : PLAIN "\n", stdout);
}

static void show(struct answer *a, const uint8_t *data, size_t n) {
    if (n == 0)
        return;
    if (fwrite(data, 1, n, stdout) != n)
        a->broken_pipe = true;
    a->last_byte = (char)data[n - 1];
}

static void show_tool_call(struct answer *a, const Shardd__V1__ToolCallDelta *t) {
    if (t->name.len) {
        show(a, (const uint8_t *)"\n[tool call] ", 13);
        show(a, t->name.data, t->name.len);
        show(a, (const uint8_t *)" ", 1);
    }
    show(a, t->arguments.data, t->arguments.len);
    if (t->done)
        show(a, (const uint8_t *)"\n", 1);
}

static void take_deltas(struct answer *a, const Shardd__V1__GenerateChunk *chunk) {
    for (size_t i = 0; i < chunk->n_deltas; i++) {
        const Shardd__V1__Delta *d = chunk->deltas[i];
        if (d->delta_case == SHARDD__V1__DELTA__DELTA_TEXT)
            keep_text(a, d->text.data, d->text.len);
        if (a->json || a->ids)
            continue;
        if (d->delta_case == SHARDD__V1__DELTA__DELTA_REASONING && a->reasoning) {
            dim(a, true);
            show(a, d->reasoning.data, d->reasoning.len);
        } else if (d->delta_case == SHARDD__V1__DELTA__DELTA_TEXT) {
            dim(a, false);
            show(a, d->text.data, d->text.len);
        } else if (d->delta_case == SHARDD__V1__DELTA__DELTA_TOOL_CALL) {
            dim(a, false);
            show_tool_call(a, d->tool_call);
        }
    }
}

static void show_ids(struct answer *a, const Shardd__V1__GenerateChunk *chunk) {
    for (size_t i = 0; i < chunk->n_token_ids; i++) {
        char id[16];
        int n = snprintf(id, sizeof(id), "%s%u", a->last_byte ? " " : "", chunk->token_ids[i]);
        show(a, (const uint8_t *)id, (size_t)n);
    }
}

static void count(struct answer *a, const Shardd__V1__GenerateChunk *chunk) {
    uint64_t now = clock_ns();
    if (chunk->n_tokens && !a->first_ns)
        a->first_ns = now;
    if (chunk->n_tokens)
        a->last_ns = now;
    a->n_tokens += chunk->n_tokens;
    if (chunk->started)
        a->prompt_tokens = chunk->started->prompt_tokens;
    if (!chunk->finish)
        return;
    a->finished = true;
    if (chunk->finish->usage) {
        a->prompt_tokens = chunk->finish->usage->prompt_tokens;
        a->reasoning_tokens = chunk->finish->usage->reasoning_tokens;
        a->cached_tokens = chunk->finish->usage->cached_tokens;
    }
}

static bool on_chunk(void *user, const uint8_t *data, size_t bytes) {
    struct answer *a = user;
    Shardd__V1__GenerateChunk *chunk = shardd__v1__generate_chunk__unpack(NULL, bytes, data);
    if (!chunk) {
        a->malformed = true;
        return false;
    }
    count(a, chunk);
    take_deltas(a, chunk);
    if (a->json)
        a->broken_pipe |= !chunk_print_json(stdout, chunk);
    else if (a->ids)
        show_ids(a, chunk);
    a->broken_pipe |= fflush(stdout) != 0;
    shardd__v1__generate_chunk__free_unpacked(chunk, NULL);
    return !a->broken_pipe && !a->out_of_memory;
}

static void fail(struct client_status *status, int code, const char *why) {
    *status = (struct client_status){.code = code};
    snprintf(status->message, sizeof(status->message), "%s", why);
}

void answer_run(struct answer *a, struct client *c, const uint8_t *request, size_t bytes, uint64_t timeout_ms,
        struct client_status *ret) {
    a->sent_ns = clock_ns();
    client_call(c, "/shardd.v1.Shardd/Generate", request, bytes, timeout_ms, on_chunk, a, ret);
    if (!a->json) {
        dim(a, false);
        if (a->last_byte && a->last_byte != '\n' && !a->broken_pipe)
            putchar('\n');
        fflush(stdout);
    }
    if (a->malformed)
        fail(ret, GRPC_STATUS_INTERNAL,
                "the service sent a chunk that cannot be read; is it of this version?");
    else if (a->out_of_memory)
        fail(ret, GRPC_STATUS_RESOURCE_EXHAUSTED, "no memory for the answer");
    else if (a->broken_pipe)
        fail(ret, GRPC_STATUS_CANCELLED, "stdout cannot be written any more");
    else if (ret->code == GRPC_STATUS_OK && !a->finished)
        fail(ret, GRPC_STATUS_DATA_LOSS, "the answer ended without its finish");
}

void answer_print_figures(const struct answer *a) {
    double first = a->first_ns ? (double)(a->first_ns - a->sent_ns) / 1e9 : 0;
    double rest = a->first_ns ? (double)(a->last_ns - a->first_ns) / 1e9 : 0;
    fprintf(stderr, "[%u prompt + %u answer tokens", a->prompt_tokens, a->n_tokens);
    if (a->reasoning_tokens)
        fprintf(stderr, ", %u of them reasoning", a->reasoning_tokens);
    if (a->cached_tokens)
        fprintf(stderr, ", %u cached", a->cached_tokens);
    if (a->first_ns)
        fprintf(stderr, "; first after %.3f s", first);
    if (a->n_tokens > 1 && rest > 0)
        fprintf(stderr, ", then %.1f tokens/s", (a->n_tokens - 1) / rest);
    fprintf(stderr, "]\n");
}

void answer_done(struct answer *a) {
    free(a->text);
    a->text = NULL;
}
