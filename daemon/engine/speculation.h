/* speculation.h - the controller: which drafter proposes how many tokens for each sequence in the next round.
 *
 * A round is a step of decode rows. Every draft is a row more; one that is accepted is a token more. How often drafts
 * are accepted is measured, by drafter and position (of copies: by the length of the match), for each sequence and for
 * all; so is what a step takes with so many rows. The choice is the one with the most expected tokens per time over all
 * sequences of the round, and it is "no drafts" unless drafts are clearly better: speculation never makes a number of
 * streams slower than they are without. What is not used is tried now and then, with a small part of the time.
 *
 * Pure: knows nothing of the engine, which owns a struct speculation and a struct drafting in each sequence. Not
 * locked. */
#pragma once

#include "daemon/engine/lookup.h"
#include "daemon/engine/round_cost.h"

#include "base/limits.h"

enum drafter {
    DRAFTER_MODEL,    /* the ranks' own: the checkpoint's MTP layer */
    DRAFTER_LOOKUP,   /* lookup.h */
    DRAFTER_EXTERNAL, /* engine.h: struct engine_drafter */
    DRAFTERS,
};

/* How often drafts were right of those that were tried, by position; old ones are forgotten by and by. LOOKUP: by
 * lookup_class(). */
struct odds {
    float right[DRAFT_MAX], tried[DRAFT_MAX];
};

struct drafting { /* of one sequence */
    struct odds odds[DRAFTERS];
    uint32_t silent; /* rounds since it had drafts of DRAFTER_MODEL or EXTERNAL */
    /* The choice. */
    enum drafter drafter;
    uint32_t n; /* drafts; 0 = none */
    /* Rounds that it is to have some drafts of this drafter, whatever is expected of them; whether this is one. */
    uint32_t trials;
    enum drafter trial;
    bool trying;
};

struct speculation {
    uint32_t most[DRAFTERS]; /* drafts of a sequence in a round; 0 = this drafter is not there */
    struct odds odds[DRAFTERS];
    struct round_cost cost;
    float wait_ns; /* that a round takes longer when it is planned after the one before has ended */
    uint64_t round;
    uint64_t plain_asked; /* the last round that had no drafts so that its time is known */
    float credit_ns;      /* time that trials may take */
    enum drafter trial;   /* whose turn the last one was */
    /* The last choice: the next round can only be planned when every token is on the host. */
    bool synchronous;
    uint32_t unused[DRAFTERS]; /* rounds since it was chosen while it could have been */
};

/* A sequence that takes part in the next round. */
struct draft_stream {
    struct drafting *d;
    uint32_t most;  /* rows beside its own that it may have */
    uint32_t match; /* length of its lookup match; 0 = none */
    bool on_host;   /* the host has to know its drafts: none of DRAFTER_MODEL */
    /* speculation_choose's own, for each way to plan a round: the drafter that is best then, and its drafts' worth. */
    struct draft_offer {
        enum drafter drafter;
        uint32_t n;
        uint8_t level[DRAFT_MAX];
    } offers[2];
};

void speculation_init(struct speculation *x);
void drafting_init(struct drafting *d);
/* Chooses for a round of n streams: fills their drafter and n, and x->synchronous. Where that is true the choice is for
 * a round that is planned when all tokens of the one before are on the host: while they are not, nothing is planned and
 * it is called again afterwards. */
void speculation_choose(struct speculation *x, struct draft_stream *streams, uint32_t n);
/* A step has ended in which a sequence had n drafts, and the first `accepted` of them were right. Not for LOOKUP. */
void speculation_accepted(
        struct speculation *x, struct drafting *d, enum drafter drafter, uint32_t n, uint32_t accepted);
/* A token came of which the sequence's lookup had expected something. */
void speculation_looked_up(struct speculation *x, struct drafting *d, const struct lookup_score *score);
/* A step without prompt rows has ended: round_cost_measured. */
void speculation_measured(struct speculation *x, uint32_t rows, uint32_t depth, float ns);
float speculation_odds(
        const struct speculation *x, enum drafter drafter); /* of the first draft, all sequences */
