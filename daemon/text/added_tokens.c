/* Leftmost-longest search: tokens sorted by bytes, the range of candidates narrowed by two binary searches
 * for each byte of the text that agrees. The cost is that of the text times the logarithm of the number of
 * tokens, whatever both hold. */
#include "daemon/text/added_tokens.h"

void added_tokens_done(struct added_tokens *a) {
    for (uint32_t i = 0; i < a->n; i++)
        free(a->tokens[i].text);
    free(a->tokens);
    *a = (struct added_tokens){0};
}

int added_tokens_add(struct added_tokens *a, const char *text, size_t bytes, uint32_t id) {
    if (a->n == a->size) {
        uint32_t size = a->size ? a->size * 2 : 32;
        struct added_token *tokens = reallocarray(a->tokens, size, sizeof(*tokens));
        if (!tokens)
            return -ENOMEM;
        a->tokens = tokens;
        a->size = size;
    }
    char *copy = malloc(bytes);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, text, bytes);
    a->tokens[a->n++] = (struct added_token){copy, (uint32_t)bytes, id};
    return 0;
}

static int compare(const void *left, const void *right) {
    const struct added_token *a = left, *b = right;
    uint32_t n = a->bytes < b->bytes ? a->bytes : b->bytes;
    int c = memcmp(a->text, b->text, n);
    return c != 0 ? c : (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

int added_tokens_sort(struct added_tokens *a, uint32_t *ret_id) {
    if (a->n > 1)
        qsort(a->tokens, a->n, sizeof(*a->tokens), compare);
    for (uint32_t i = 1; i < a->n; i++)
        if (compare(&a->tokens[i - 1], &a->tokens[i]) == 0) {
            *ret_id = a->tokens[i].id;
            return -EEXIST;
        }
    for (uint32_t byte = 0, i = 0; byte < 256; byte++) {
        a->first[byte] = i;
        while (i < a->n && (unsigned char)a->tokens[i].text[0] == byte)
            i++;
        a->first[byte + 1] = i;
    }
    return 0;
}

/* The first token in [low, high) whose byte at depth is at least byte; all of them agree before depth, and a
 * token that ends there comes first. */
static uint32_t lower_bound(
        const struct added_tokens *a, uint32_t low, uint32_t high, uint32_t depth, unsigned byte) {
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct added_token *t = &a->tokens[middle];
        if (t->bytes <= depth || (unsigned char)t->text[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static const struct added_token *longest_at(const struct added_tokens *a, const char *text, size_t bytes) {
    const struct added_token *found = NULL;
    uint32_t low = a->first[(unsigned char)text[0]], high = a->first[(unsigned char)text[0] + 1];
    for (uint32_t depth = 1; low < high; depth++) {
        if (a->tokens[low].bytes == depth)
            found = &a->tokens[low];
        if (depth == bytes)
            break;
        unsigned char byte = (unsigned char)text[depth];
        low = lower_bound(a, low, high, depth, byte);
        high = lower_bound(a, low, high, depth, byte + 1u);
    }
    return found;
}

const struct added_token *added_tokens_find(
        const struct added_tokens *a, const char *text, size_t at, size_t bytes, size_t *ret_at) {
    if (a->n == 0)
        return NULL;
    for (; at < bytes; at++) {
        unsigned char byte = (unsigned char)text[at];
        if (a->first[byte] == a->first[byte + 1])
            continue;
        const struct added_token *found = longest_at(a, text + at, bytes - at);
        if (found) {
            *ret_at = at;
            return found;
        }
    }
    return NULL;
}

const struct added_token *added_tokens_named(const struct added_tokens *a, const char *text, size_t bytes) {
    if (bytes > UINT32_MAX || a->n == 0)
        return NULL;
    struct added_token key = {(char *)text, (uint32_t)bytes, 0};
    return bsearch(&key, a->tokens, a->n, sizeof(key), compare);
}
