/* lookup.h - drafts copied from what a sequence has read and written before: where its last tokens stood before, what
 * came after them there is likely to come again (documents that are edited, code, tool results, quotations).
 *
 * An index from every 2, 3 and 4 tokens in a row to the place after them, the newest where several are the same, of
 * bounded memory: where it is full, old places give way. Reading a token costs a constant. A match goes on as long as
 * it tells the next token right; so it is always known, for nothing, how often it does. Owned by a sequence; not
 * locked. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define LOOKUP_GRAM_MIN    2u
#define LOOKUP_GRAM_MAX    4u
#define LOOKUP_LENGTH_MAX  16u /* tokens of a match that are counted */
#define LOOKUP_CLASSES     6u  /* of matches by their length */
#define LOOKUP_ENTRIES_MAX (1u << 17)

struct lookup {
    uint32_t *table; /* [mask + 1] place after the tokens that hash here; 0 = empty. NULL: no index */
    uint32_t mask;
    uint32_t read;   /* tokens read */
    uint32_t at;     /* the token that is expected next is a copy of the one at this index; 0 = no match */
    uint32_t length; /* tokens before it that match, up to LOOKUP_LENGTH_MAX */
};

/* What was expected of a token that was read. */
struct lookup_score {
    bool expected, right;
    uint32_t length; /* of the match */
};

/* For a prompt and what may be generated after it. -ENOMEM. */
int lookup_init(struct lookup *l, uint32_t n_prompt, uint32_t max_tokens);
void lookup_done(struct lookup *l);
/* Reads tokens[l->read]; tokens before it are those of the calls before. */
struct lookup_score lookup_read(struct lookup *l, const uint32_t *tokens);
/* What is expected after the tokens read, up to n ids; returns how many: n, or 0 where there is no match. */
uint32_t lookup_drafts(const struct lookup *l, const uint32_t *tokens, uint32_t n, uint32_t *ret);
uint32_t lookup_class(uint32_t length); /* below LOOKUP_CLASSES, for matches of LOOKUP_GRAM_MIN and more */
