/* answers.h - the answers of one Generate call: n generations that share the prompt, the deadline and the stream of
 * chunks. Used by the call's worker only; see generate.c, which sends what they say. */
#pragma once

#include "daemon/service/generation.h"

struct answers {
    uint32_t n, n_done;
    uint32_t turn;           /* whose turn it is to say something */
    uint64_t next_index;     /* of chunks */
    uint64_t received_ns;    /* when the call came */
    bool ended;              /* a status was given, or the call was cancelled */
    bool aborted;            /* Abort was called: what is cancelled for it ends as aborted, too */
    Shardd__V1__Usage sum;   /* over those that are done */
    struct generation *of[]; /* [n] */
};

int answers_new(const struct plan *p, struct answers **ret); /* 0 or -ENOMEM; nothing is submitted yet */
struct answers *answers_free(struct answers *a);             /* NULL ok */
/* Submits every answer, answer i with the seed plus i; p->engine is complete but for that. All or none: a refusal of
 * one (as of engine_submit()) takes back the others. */
int answers_submit(struct answers *a, struct engine *engine, struct plan *p, struct error *e);
void answers_cancel(
        struct answers *a, struct engine *engine); /* those that are not done are not wanted any more */
/* One answer is done. ret is its usage; after the last one a->sum is that of the call. */
void answers_done(struct answers *a, struct generation *g, Shardd__V1__Usage *ret);
