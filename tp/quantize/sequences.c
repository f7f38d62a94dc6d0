/* sequences.c - reads a file of token ids for calibration and evaluation: a JSON object a line. */
#include "tp/quantize/parts.h"

#include "base/file.h"
#include "base/json_pull.h"
#include "base/limits.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX MIB(256)
#define SEQUENCES_MAX  QUANTIZE_TOKENS_MAX

struct line {
    struct quantize_sequences *s;
    uint32_t ids[2][QUANTIZE_SEQUENCE_MAX]; /* the prompt's, the reply's */
    uint32_t n[2];
    uint32_t vocab_size, tokens_max;
    bool found;
};

static int read_ids(struct json_pull *p, struct line *l, int part, struct error *e) {
    int r = json_pull_expect(p, PULL_ARRAY_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(p, e)) == PULL_NUMBER) {
        uint64_t id = 0;
        r = json_pull_u64(p, &id, e);
        if (r == 0 && id >= l->vocab_size)
            r = json_pull_error(p, -EINVAL, e, "%llu is no id of a vocabulary of %u", (unsigned long long)id,
                    l->vocab_size);
        if (r == 0 && l->n[part] < QUANTIZE_SEQUENCE_MAX)
            l->ids[part][l->n[part]++] = (uint32_t)id;
    }
    if (r > 0 && r != PULL_ARRAY_END)
        r = json_pull_error(p, -EINVAL, e, "expected a number");
    l->found = true;
    return r < 0 ? r : 0;
}

static int read_line(struct line *l, const char *text, size_t bytes, const char *name, struct error *e) {
    struct json_pull p;
    l->n[0] = l->n[1] = 0;
    l->found = false;
    json_pull_init(&p, text, bytes, name);
    int r = json_pull_expect(&p, PULL_OBJECT_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(&p, e)) == PULL_KEY) {
        if (json_pull_is(&p, "ids") || json_pull_is(&p, "prompt_ids"))
            r = read_ids(&p, l, 0, e);
        else if (json_pull_is(&p, "reply_ids"))
            r = read_ids(&p, l, 1, e);
        else
            r = json_pull_skip(&p, e);
    }
    if (r >= 0)
        r = json_pull_expect(&p, PULL_DOCUMENT_END, e);
    json_pull_done(&p);
    if (r >= 0 && !l->found)
        return error_set(e, -EINVAL,
                "%s: has neither \"ids\" nor \"prompt_ids\": lists of token ids are read, not text", name);
    return r < 0 ? r : 0;
}

/* What fits; a sequence of one token predicts nothing and is left out. */
static void keep(struct line *l) {
    struct quantize_sequences *s = l->s;
    uint32_t at = s->begin[s->n], n = l->n[0] + l->n[1];
    n = n < QUANTIZE_SEQUENCE_MAX ? n : QUANTIZE_SEQUENCE_MAX;
    if (n < 2 || s->n == SEQUENCES_MAX || at + n > l->tokens_max)
        return;
    for (uint32_t i = 0; i < n; i++)
        s->ids[at + i] = i < l->n[0] ? l->ids[0][i] : l->ids[1][i - l->n[0]];
    s->begin[++s->n] = at + n;
}

static int read_lines(struct line *l, const char *path, const char *text, struct error *e) {
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    uint32_t number = 0;
    for (const char *end; *text; text = *end ? end + 1 : end) {
        char name[128];
        end = strchrnul(text, '\n');
        snprintf(name, sizeof(name), "%.100s, line %u", base, ++number);
        if (text + strspn(text, " \t\r") >= end)
            continue;
        int r = read_line(l, text, (size_t)(end - text), name, e);
        if (r < 0)
            return r;
        keep(l);
    }
    return l->s->n ? 0 : error_set(e, -EINVAL, "%s: no sequence of two tokens or more is in it", path);
}

int quantize_sequences_read(const char *path, uint32_t vocab_size, uint32_t tokens_max,
        struct quantize_sequences *ret, struct error *e) {
    char *text = NULL;
    size_t bytes = 0;
    struct quantize_sequences s = {0};
    struct line *l = calloc(1, sizeof(*l));
    s.ids = calloc(QUANTIZE_TOKENS_MAX, sizeof(s.ids[0]));
    s.begin = calloc(SEQUENCES_MAX + 1, sizeof(s.begin[0]));
    int r = l && s.ids && s.begin ? 0 : error_set(e, -ENOMEM, "%s: out of memory", path);
    if (r == 0)
        r = file_read(path, FILE_BYTES_MAX, &text, &bytes, e);
    if (r == 0) {
        l->s = &s;
        l->vocab_size = vocab_size;
        l->tokens_max = tokens_max < QUANTIZE_TOKENS_MAX ? tokens_max : QUANTIZE_TOKENS_MAX;
        r = read_lines(l, path, text, e);
    }
    free(text);
    free(l);
    if (r < 0)
        quantize_sequences_done(&s);
    else
        *ret = s;
    return r;
}

void quantize_sequences_done(struct quantize_sequences *s) {
    free(s->ids);
    free(s->begin);
    *s = (struct quantize_sequences){0};
}
