/* draft_vocab.c - see draft_vocab.h. */
#include "tp/load/draft_vocab.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/sizes.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX MIB(16)
#define DIGITS_MAX     10u

struct reader {
    const char *path;
    uint32_t vocab_size, line;
    uint32_t *ids; /* [vocab_size] in the order of the file */
    bool *seen;    /* [vocab_size] */
    uint32_t n;
};

static int read_id(struct reader *r, const char *text, size_t n, struct error *e) {
    char digits[DIGITS_MAX + 1];
    uint32_t id;
    snprintf(digits, sizeof(digits), "%.*s", (int)(n < sizeof(digits) ? n : sizeof(digits)), text);
    if (n > DIGITS_MAX || count_parse_u32(digits, 0, r->vocab_size - 1, &id, NULL) < 0)
        return error_set(e, -EINVAL, "%s, line %u: '%.*s' is no id of a vocabulary of %u", r->path, r->line,
                (int)(n < 32 ? n : 32), text, r->vocab_size);
    if (r->seen[id])
        return error_set(e, -EINVAL, "%s, line %u: id %u is there twice", r->path, r->line, id);
    r->seen[id] = true;
    r->ids[r->n++] = id;
    return 0;
}

static int read_lines(struct reader *r, const char *text, struct error *e) {
    static const char blanks[] = " \t\r";
    for (const char *end; *text; text = *end ? end + 1 : end) {
        end = strchrnul(text, '\n');
        r->line++;
        text += strspn(text, blanks);
        size_t n = strcspn(text, "#\n");
        while (n > 0 && strchr(blanks, text[n - 1]))
            n--;
        int rc = n > 0 ? read_id(r, text, n, e) : 0;
        if (rc < 0)
            return rc;
    }
    if (r->n < DRAFT_VOCAB_MULTIPLE)
        return error_set(e, -EINVAL, "%s: %u ids; %u at least are needed to choose drafts among", r->path,
                r->n, DRAFT_VOCAB_MULTIPLE);
    r->n -= r->n % DRAFT_VOCAB_MULTIPLE;
    return 0;
}

static int ascending(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int draft_vocab_read(const char *path, uint32_t vocab_size, struct draft_vocab *ret, struct error *e) {
    struct reader r = {.path = path, .vocab_size = vocab_size};
    char *text = NULL;
    size_t bytes;
    r.ids = calloc(vocab_size, sizeof(r.ids[0]));
    r.seen = calloc(vocab_size, sizeof(r.seen[0]));
    int rc = r.ids && r.seen ? file_read(path, FILE_BYTES_MAX, &text, &bytes, e)
                             : error_set(e, -ENOMEM, "%s: out of memory", path);
    if (rc == 0 && strlen(text) != bytes)
        rc = error_set(e, -EINVAL, "%s: is no text: it has a byte 0", path);
    if (rc == 0)
        rc = read_lines(&r, text, e);
    free(text);
    free(r.seen);
    if (rc < 0) {
        free(r.ids);
        return rc;
    }
    qsort(r.ids, r.n, sizeof(r.ids[0]), ascending);
    *ret = (struct draft_vocab){
            .ids = r.ids, .n = r.n, .hash = fnv1a(FNV1A_START, r.ids, r.n * sizeof(r.ids[0]))};
    return 0;
}

void draft_vocab_done(struct draft_vocab *v) {
    free(v->ids);
    *v = (struct draft_vocab){0};
}

void draft_vocab_places(const struct draft_vocab *v, uint32_t vocab_size, uint32_t *ret_place) {
    for (uint32_t id = 0; id < vocab_size; id++)
        ret_place[id] = UINT32_MAX;
    for (uint32_t i = 0; i < v->n; i++)
        ret_place[v->ids[i]] = i;
}
