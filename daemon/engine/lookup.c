/* lookup.c - see lookup.h. */
#include "daemon/engine/lookup.h"

#include <errno.h>
#include <stdlib.h>

#define ENTRIES_MIN    256u
#define ANSWER_COUNTED 1024u /* an answer is taken to be as long as its prompt and this at most */

int lookup_init(struct lookup *l, uint32_t n_prompt, uint32_t max_tokens) {
    uint64_t tokens = n_prompt, entries = ENTRIES_MIN;
    tokens += max_tokens < n_prompt + ANSWER_COUNTED ? max_tokens : n_prompt + ANSWER_COUNTED;
    while (entries < 4 * tokens && entries < LOOKUP_ENTRIES_MAX)
        entries *= 2;
    *l = (struct lookup){.table = calloc(entries, sizeof(l->table[0])), .mask = (uint32_t)entries - 1};
    return l->table == NULL ? -ENOMEM : 0;
}

void lookup_done(struct lookup *l) {
    free(l->table);
    *l = (struct lookup){0};
}

/* Where the places after the last 2, 3 and 4 tokens before `end` are kept: fills ret[LOOKUP_GRAM_MIN] and on; returns
 * the most tokens of which there is one. */
static uint32_t find_entries(
        const struct lookup *l, const uint32_t *tokens, uint32_t end, uint32_t *ret[LOOKUP_GRAM_MAX + 1]) {
    uint32_t most = end < LOOKUP_GRAM_MAX ? end : LOOKUP_GRAM_MAX;
    uint64_t h = 0x2545f4914f6cdd1dull;
    for (uint32_t n = 1; n <= most; n++) {
        h = (h ^ tokens[end - n]) * 0x9e3779b97f4a7c15ull;
        ret[n] = &l->table[(h >> 32) & l->mask];
    }
    return most;
}

/* How many tokens before a and before b are the same. */
static uint32_t same_before(const uint32_t *tokens, uint32_t a, uint32_t b) {
    uint32_t n = 0;
    while (n < LOOKUP_LENGTH_MAX && n < a && n < b && tokens[a - 1 - n] == tokens[b - 1 - n])
        n++;
    return n;
}

/* The place whose last tokens are those before `end`: the newest for the most tokens in a row, if it is better than the
 * match there is. The index does not know the tokens before `end` yet, so it is another place. */
static void find(
        struct lookup *l, const uint32_t *tokens, uint32_t end, uint32_t *const *entries, uint32_t most) {
    for (uint32_t n = most; n >= LOOKUP_GRAM_MIN && n > l->length; n--) {
        uint32_t at = *entries[n];
        uint32_t length = at > 0 ? same_before(tokens, at, end) : 0;
        if (length >= n) { /* a hash alone says nothing */
            l->at = at;
            l->length = length;
            return;
        }
    }
}

struct lookup_score lookup_read(struct lookup *l, const uint32_t *tokens) {
    uint32_t end = l->read + 1, *entries[LOOKUP_GRAM_MAX + 1];
    uint32_t most = find_entries(l, tokens, end, entries);
    struct lookup_score score = {.expected = l->at > 0, .length = l->length};
    score.right = score.expected && tokens[l->at] == tokens[l->read];
    if (score.right) {
        l->at++;
        l->length += l->length < LOOKUP_LENGTH_MAX;
    } else {
        l->at = l->length = 0;
    }
    find(l, tokens, end, entries, most);
    for (uint32_t n = LOOKUP_GRAM_MIN; n <= most; n++)
        *entries[n] = end;
    l->read = end;
    return score;
}

uint32_t lookup_drafts(const struct lookup *l, const uint32_t *tokens, uint32_t n, uint32_t *ret) {
    if (l->at == 0)
        return 0;
    /* Where the source reaches the end of what is known it goes on with its own copy: what repeats, repeats. */
    for (uint32_t i = 0; i < n; i++)
        ret[i] = l->at + i < l->read ? tokens[l->at + i] : ret[l->at + i - l->read];
    return n;
}

uint32_t lookup_class(uint32_t length) {
    return length < 5 ? length - LOOKUP_GRAM_MIN : length < 8 ? 3 : length < LOOKUP_LENGTH_MAX ? 4 : 5;
}
