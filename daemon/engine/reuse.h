/* reuse.h - what a sequence takes from the prefix cache and leaves in it. Engine thread only; the index is prefix.h.
 *
 * Admitted, a sequence gets the pages of the longest prefix that has a snapshot; with its OPEN its slot is restored
 * from that, and what is after it is computed. Its own snapshots are taken where others are likely to go on: at marks
 * (the end of what many prompts share, where this one leaves pages that were there, the end of its last message or of
 * its prompt), and at the end of the answer; one that is put back leaves its state where it was, to go on from it
 * itself. And in passing, at the ends of messages, every SNAPSHOT_EVERY tokens of what is known and SNAPSHOT_ANSWER of
 * an answer. A chunk of known tokens never crosses such a place, since a slot's state is what it is between two steps;
 * where drafts may be accepted the host does not know how many rows that is, so a sequence goes without drafts for one
 * step before.
 *
 * One that was put back takes its own tokens from the cache as well. A restored slot counts what it has seen as prompt,
 * so those with penalties that tell generated tokens from given ones take given ones only. The cache never puts anybody
 * back nor keeps anybody out: what it alone has is as good as free. */
#pragma once

#include "daemon/engine/state.h"

/* Sizes the index for a group that has answered RESET. */
int reuse_begin(struct engine *g);

/* Whether there are pages for all known tokens of s and `spare` more, and what it would take from the cache. */
bool reuse_fits(const struct engine *g, struct sequence *s, uint32_t spare, struct prefix_hit *ret);
/* Whether one that is served before s is about to leave a state that s could go on from, further on than `hit`: then s
 * has less to compute if it is admitted after that, and nothing would have been computed of it meanwhile. */
bool reuse_is_coming(const struct engine *g, const struct sequence *s, const struct prefix_hit *hit);
/* Whether pages of the hit are on the host and have to come to the device first. Has as many of them copied in the plan
 * that is being made as a plan may: then s is to be asked about again, in the next. */
bool reuse_is_away(struct engine *g, const struct sequence *s, struct prefix_hit *hit);
/* After sequence_admit(), with what reuse_fits() said. */
void reuse_admitted(struct engine *g, struct sequence *s, const struct prefix_hit *hit);

/* A plan has to be committed where pages have moved, whatever else is in it. */
void reuse_begin_plan(struct engine *g);
bool reuse_has_moved(const struct engine *g);

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
/* Whether a snapshot of s is wanted, and can be taken at its next step if there are no drafts in this one. */
bool reuse_wants_no_drafts(const struct sequence *s);
/* Before an entry of s is added to the plan: a snapshot where one is wanted and can be taken. */
void reuse_mark(struct engine *g, struct sequence *s);
/* The slot is to be given back, with its pages. keep_state: the answer is complete, or will be gone on with, so the
 * state is kept if there is a unit for it. */
void reuse_leave(struct engine *g, struct sequence *s, bool keep_state);
/* Snapshots of slots that are closed next, of which the plan has the first n already: before entries are planned.
 * Returns how many it has. */
uint32_t reuse_keep_left(struct engine *g, uint32_t n);
/* s has nothing there any more: it left, or the group is gone. */
void reuse_forget(struct sequence *s);
/* What s has computed is not to be trusted. */
void reuse_distrust(struct engine *g, const struct sequence *s);
