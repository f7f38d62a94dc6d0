/* draft.c - see draft.h. */
#include "daemon/engine/draft.h"

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* Drafts that are worth making for the step after the next one: the next one gives a token at least. */
static uint32_t wanted_next(const struct engine *g, const struct sequence *s) {
    uint32_t left = s->max_tokens - s->samples; /* with the next one's */
    uint32_t most = g->geometry.has_mtp ? least(g->o.speculative_tokens, g->geometry.drafts_max) : 0;
    return left < 3 ? 0 : least(most, left - 2);
}

struct draft draft_continue(const struct engine *g, const struct sequence *s, uint32_t most) {
    return (struct draft){.n = least(s->drafts_left, most - 1), .n_next = wanted_next(g, s)};
}

struct draft draft_first(const struct engine *g, const struct sequence *s) {
    return (struct draft){.n_next = wanted_next(g, s)};
}
