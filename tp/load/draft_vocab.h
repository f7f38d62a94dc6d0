/* draft_vocab.h - the file of --draft-vocab: the ids that drafts of the MTP layer are chosen among.
 *
 * Text, an id a line, the most frequent first; empty lines and what follows a '#' are left out. `shardd draft-vocab`
 * counts one from texts. Called by rank.c. */
#pragma once

#include "base/error.h"

#include <stdint.h>

/* Ids are taken in whole multiples of this, so that they divide among ranks at every tp: the last ones are left out. */
#define DRAFT_VOCAB_MULTIPLE 64u

struct draft_vocab {
    uint32_t *ids; /* [n] ascending; owned */
    uint32_t n;    /* 0: there is none */
    uint64_t hash; /* of them */
};

/* -EINVAL with file and line: what is no id of the vocabulary, an id twice, or fewer than DRAFT_VOCAB_MULTIPLE. */
int draft_vocab_read(const char *path, uint32_t vocab_size, struct draft_vocab *ret, struct error *e);
void draft_vocab_done(struct draft_vocab *v);
/* ret_place[vocab_size]: the place of each id among these, UINT32_MAX: it is none of them. */
void draft_vocab_places(const struct draft_vocab *v, uint32_t vocab_size, uint32_t *ret_place);
