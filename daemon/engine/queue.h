/* queue.h - what waits for its first step: how many prompt tokens, for how long at most, and how fast the queue moves.
 *
 * Requests are counted by registry.c (max_queue); the order in which they are served is heap.c's. queue_enter()
 * runs under registry_lock in the thread that submits, everything else on the engine thread. */
#pragma once

#include "daemon/engine/state.h"

/* Counts the sequence's prompt among those that wait. -EAGAIN with a sentence when room for n of them is over
 * max_queue_tokens, n = 0: its request has room; one that nobody waits before is always taken. */
int queue_enter(struct engine *g, struct sequence *s, uint32_t n, struct error *e);
/* It has its first step, at now_ns: its time in the queue is no longer limited. Does nothing the second time. */
void queue_begun(struct engine *g, struct sequence *s, uint64_t now_ns);
void queue_left(struct engine *g, struct sequence *s); /* it ended; nothing when it had begun */
/* When a request has to have had its first step; 0 = it may wait for ever. queue_ms: its own limit, 0 = none. */
uint64_t queue_start_by(const struct engine_options *o, uint64_t received_ns, uint32_t queue_ms);
/* Called when s enters the queue: one whose prompt its lead is still reading is held behind all others. */
void queue_hold(struct engine *g, struct sequence *s);
/* Those whose lead has spoken, or is gone, wait like others from now on. */
void queue_release(struct engine *g);
void queue_unhold(struct engine *g, struct sequence *s); /* not while it is in the heap */
/* By what a sequence in the heap of deadlines ends whose time has come. */
enum engine_finish queue_lateness(const struct sequence *s, uint64_t now_ns);
