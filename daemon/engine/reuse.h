/* reuse.h - what a sequence takes from the prefix cache and leaves in it. Engine thread only; the index is prefix.h.
 *
 * Admitted, a sequence gets the pages of the longest prefix that has a snapshot; with its OPEN its slot is restored
 * from that, and what is after it is computed. Its own snapshots are taken where others are likely to go on: at marks
 * (the end of what many prompts share, where this one leaves pages that were there, the end of its last message or of
 * its prompt), every SNAPSHOT_EVERY tokens, and at the end of the answer. A chunk of the prompt never crosses such a
 * place, since a slot's state is what it is between two steps.
 *
 * Only given tokens are taken from the cache: a restored slot counts what it has seen as prompt, which penalties count
 * otherwise than generated tokens. The cache never puts anybody back nor keeps anybody out: what it alone has is as
 * good as free. */
#pragma once

#include "daemon/engine/state.h"

/* Sizes the index for a group that has answered RESET. */
int reuse_begin(struct engine *g);

/* Whether there are pages for all known tokens of s and `spare` more, and what it would take from the cache. */
bool reuse_fits(const struct engine *g, struct sequence *s, uint32_t spare, struct prefix_hit *ret);
/* Whether one that is served before s is about to leave a state that s could go on from, further on than `hit`: then s
 * has less to compute if it is admitted after that, and nothing would have been computed of it meanwhile. */
bool reuse_is_coming(const struct engine *g, const struct sequence *s, const struct prefix_hit *hit);
/* After sequence_admit(), with what reuse_fits() said. */
void reuse_admitted(struct engine *g, struct sequence *s, const struct prefix_hit *hit);

enum reuse_room {
    ROOM_READY,
    ROOM_SOON, /* when a step that is in flight has retired */
    ROOM_NONE, /* others use the pages */
};
/* Grants the slot pages for `rows` rows, out of the cache where needed; *ret_first and *ret_n are what its next entry
 * tells the ranks. */
enum reuse_room reuse_grant(
        struct engine *g, struct sequence *s, uint32_t rows, uint32_t *ret_first, uint32_t *ret_n);

/* The state that the slot begins with, after its OPEN in the plan and its grant. */
void reuse_open(struct engine *g, struct sequence *s);
/* Where a chunk that would end at `stop` has to end. */
uint32_t reuse_stop(const struct sequence *s, uint32_t stop);
/* Before rows of s are planned: a snapshot where one is wanted. */
void reuse_mark(struct engine *g, struct sequence *s);
/* The slot is to be given back, with its pages. ended: the answer is complete, so somebody may go on from there. */
void reuse_leave(struct engine *g, struct sequence *s, bool ended);
/* Snapshots of slots that are closed next: at the beginning of a plan. Whether there were any. */
bool reuse_keep_ended(struct engine *g);
/* s has nothing there any more: it left, or the group is gone. */
void reuse_forget(struct sequence *s);
/* What s has computed is not to be trusted. */
void reuse_distrust(struct engine *g, const struct sequence *s);
