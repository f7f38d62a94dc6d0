/* synth_tokens.c - reads the folder's tokenizer.json back: for the ids that end a text, and for a GGUF file,
 * which holds the tokenizer too. Not the tokenizer of the service: it checks only what it uses. */
#include "tp/synth/synth_parts.h"

#include "base/file.h"
#include "base/json_pull.h"
#include "base/limits.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void synth_tokens_done(struct synth_tokens *t) {
    for (uint32_t i = 0; t->text && i < t->n; i++)
        free(t->text[i]);
    for (size_t i = 0; i < t->n_merges; i++)
        free(t->merges[i]);
    free(t->text);
    free(t->type);
    free(t->merges);
    *t = (struct synth_tokens){0};
}

/* Takes text, also on failure. */
static int set_token(struct synth_tokens *t, const struct json_pull *p, uint64_t id, char *text,
        enum synth_token_type type, struct error *e) {
    if (!text || id >= t->n) {
        free(text);
        if (!text)
            return json_pull_error(p, -ENOMEM, e, "out of memory for a token");
        return json_pull_error(p, -EINVAL, e,
                "token id %llu is beyond the model's vocabulary of %u: use a larger --vocab, or another "
                "tokenizer",
                (unsigned long long)id, t->n);
    }
    free(t->text[id]);
    t->text[id] = text;
    t->type[id] = (uint8_t)type;
    return 0;
}

static char *copy_string(const struct json_pull *p) {
    return strndup(p->string, p->string_bytes);
}

static int read_vocab(struct json_pull *p, struct synth_tokens *t, struct error *e) {
    int r = json_pull_expect(p, PULL_OBJECT_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(p, e)) == PULL_KEY) {
        uint64_t id = 0;
        char *text = copy_string(p);
        r = json_pull_expect(p, PULL_NUMBER, e);
        if (r >= 0)
            r = json_pull_u64(p, &id, e);
        if (r >= 0)
            r = set_token(t, p, id, text, TOKEN_NORMAL, e);
        else
            free(text);
    }
    return r;
}

static int read_added_token(struct json_pull *p, struct synth_tokens *t, struct error *e) {
    uint64_t id = 0;
    char *text = NULL;
    bool special = false;
    int r = 0;
    while (r >= 0 && (r = json_pull_next(p, e)) == PULL_KEY) {
        if (json_pull_is(p, "id")) {
            r = json_pull_expect(p, PULL_NUMBER, e);
            if (r >= 0)
                r = json_pull_u64(p, &id, e);
        } else if (json_pull_is(p, "content")) {
            r = json_pull_expect(p, PULL_STRING, e);
            free(text);
            text = r >= 0 ? copy_string(p) : NULL;
        } else if (json_pull_is(p, "special")) {
            r = json_pull_next(p, e);
            special = r == PULL_TRUE;
        } else {
            r = json_pull_skip(p, e);
        }
    }
    if (r >= 0 && !text)
        return json_pull_error(p, -EBADMSG, e, "an added token has no content");
    if (r < 0) {
        free(text);
        return r;
    }
    return set_token(t, p, id, text, special ? TOKEN_CONTROL : TOKEN_USER_DEFINED, e);
}

static int read_added(struct json_pull *p, struct synth_tokens *t, struct error *e) {
    int r = json_pull_expect(p, PULL_ARRAY_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(p, e)) == PULL_OBJECT_BEGIN)
        r = read_added_token(p, t, e);
    if (r >= 0 && r != PULL_ARRAY_END)
        return json_pull_error(p, -EBADMSG, e, "expected an added token, found %s", json_event_name(r));
    return r;
}

/* "left right", or ["left", "right"] whose BEGIN is the current event; malloc'ed. */
static int read_merge(struct json_pull *p, int event, char **ret, struct error *e) {
    if (event == PULL_STRING) {
        *ret = copy_string(p);
        return *ret ? 0 : json_pull_error(p, -ENOMEM, e, "out of memory for a merge");
    }
    if (event != PULL_ARRAY_BEGIN)
        return json_pull_error(p, -EBADMSG, e, "expected a merge, found %s", json_event_name(event));
    struct synth_buffer b = {0};
    int r = 0;
    for (int side = 0; side < 2 && r >= 0; side++) {
        r = json_pull_expect(p, PULL_STRING, e);
        if (r >= 0)
            synth_append(&b, p->string, p->string_bytes);
        synth_append(&b, side == 0 ? " " : "", 1);
    }
    if (r >= 0)
        r = json_pull_expect(p, PULL_ARRAY_END, e);
    if (r >= 0 && b.failed)
        r = json_pull_error(p, -ENOMEM, e, "out of memory for a merge");
    if (r < 0) {
        free(b.data);
        return r;
    }
    *ret = b.data;
    return 0;
}

static int read_merges(struct json_pull *p, struct synth_tokens *t, struct error *e) {
    int r = json_pull_expect(p, PULL_ARRAY_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(p, e)) != PULL_ARRAY_END) {
        if (r >= 0 && t->n_merges == t->merges_size) {
            size_t size = t->merges_size ? t->merges_size * 2 : 1024;
            char **grown = realloc(t->merges, size * sizeof(*grown));
            if (!grown)
                return json_pull_error(p, -ENOMEM, e, "out of memory for %zu merges", size);
            t->merges = grown;
            t->merges_size = size;
        }
        if (r >= 0)
            r = read_merge(p, r, &t->merges[t->n_merges], e);
        if (r >= 0)
            t->n_merges++;
    }
    return r;
}

static int read_model(struct json_pull *p, struct synth_tokens *t, struct error *e) {
    int r = json_pull_expect(p, PULL_OBJECT_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(p, e)) == PULL_KEY)
        r = json_pull_is(p, "vocab")    ? read_vocab(p, t, e)
            : json_pull_is(p, "merges") ? read_merges(p, t, e)
                                        : json_pull_skip(p, e);
    return r;
}

/* An added token's id, or -ENOENT. */
static int find_added(const struct synth_tokens *t, const char *text, uint32_t *ret) {
    for (uint32_t i = t->n; i-- > 0;)
        if (t->text[i] && t->type[i] != TOKEN_NORMAL && strcmp(t->text[i], text) == 0) {
            *ret = i;
            return 0;
        }
    return -ENOENT;
}

static int find_ends(struct synth_tokens *t, const char *path, struct error *e) {
    bool turn = find_added(t, "<|im_end|>", &t->eos[0]) == 0,
         text = find_added(t, "<|endoftext|>", &t->eos[1]) == 0;
    if (!turn && !text)
        return error_set(
                e, -EINVAL, "%s: has neither <|im_end|> nor <|endoftext|>: nothing would end a text", path);
    if (!turn)
        t->eos[0] = t->eos[1];
    if (!text)
        t->eos[1] = t->eos[0];
    return 0;
}

int synth_tokens_read(const struct synth_options *o, struct synth_tokens *ret, struct error *e) {
    char path[PATH_MAX], *json = NULL;
    size_t bytes = 0;
    struct json_pull p;
    struct synth_tokens t = {.n = o->config.vocab_size};
    int r = file_path(o->dir, "tokenizer.json", path, e);
    if (r == 0)
        r = file_read(path, TOKENIZER_BYTES_MAX, &json, &bytes, e);
    if (r < 0)
        return r;
    t.text = calloc(t.n, sizeof(*t.text));
    t.type = calloc(t.n, sizeof(*t.type));
    json_pull_init(&p, json, bytes, path);
    r = t.text && t.type ? json_pull_expect(&p, PULL_OBJECT_BEGIN, e)
                         : error_set(e, -ENOMEM, "%s: out of memory for %u tokens", path, t.n);
    while (r >= 0 && (r = json_pull_next(&p, e)) == PULL_KEY)
        r = json_pull_is(&p, "model")          ? read_model(&p, &t, e)
            : json_pull_is(&p, "added_tokens") ? read_added(&p, &t, e)
                                               : json_pull_skip(&p, e);
    if (r >= 0)
        r = find_ends(&t, path, e);
    json_pull_done(&p);
    free(json);
    if (r < 0) {
        synth_tokens_done(&t);
        return r;
    }
    *ret = t;
    return 0;
}
