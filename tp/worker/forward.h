/* forward.h - one step's forward pass, as operations queued on the rank's stream.
 *
 * Called by tp/worker/step_exec.c around the upload of the step's plan to the rank's batch. What is queued is the same
 * for every step within the same bounds (the contents are in the batch), so it is captured once per bucket of
 * bounds and replayed; --enforce-eager queues the operations themselves, for exactly what the step
 * has. No value that the step computes is looked at on the way.
 *
 * Where operations run when they are queued (a CPU), a layer is a graph, and hooks are told before each: that is where
 * the rank is. Where they run behind (a GPU), the step is one graph, since each launch costs, and the device itself
 * writes where it is into pinned memory: forward_place().
 *
 * Where the MTP layer makes drafts, a bucket has two graphs more, which follow the step: one for the first draft of
 * each entry, one for each after it, launched as often as the plan asks.
 *
 * All buckets are captured at the start. On a GPU that is some 40 graphs of 340 to 700 nodes, a second or so; and a
 * graph that is made later would have to take device memory while others are served. */
#pragma once

#include "tp/worker/rank.h"

/* Where the step is, for the watchdog: layer 0 = embedding, i = layer i-1, n_layers+1 = head. */
enum forward_operation {
    FORWARD_EMBED = 1,
    FORWARD_MIXER_IN,
    FORWARD_MIXER,
    FORWARD_MIXER_OUT, /* with the sum over ranks */
    FORWARD_GATE_UP,
    FORWARD_DOWN, /* with the sum over ranks */
    FORWARD_HEAD,
    FORWARD_MTP,
    FORWARD_LAYER, /* a whole layer, where graphs are replayed */
};

struct forward_hooks {
    void (*mark)(void *user, uint32_t layer,
            uint32_t operation); /* called as operations are queued; may be NULL */
    void *user;
    /* Host memory for the residual stream, [n_layers + 1][rows_max][H]: index 0 after the embedding, i after
     * layer i-1. NULL = none. Eager only: a graph would replay the copies. */
    float *hidden;
};

/* Buckets: every power of two of rows and rows_max itself, times these contexts and the longest a slot can have. */
#define FORWARD_CONTEXTS                                                                                     \
    { 1024u, 8192u, 65536u }
/* A device says at every so many layers where it is: a node of a graph costs about 1 us. A step of few rows takes some
 * ms, and says it less often than one of a prompt, which may take seconds and must be seen to move. */
#define FORWARD_MARK_LAYERS     4u
#define FORWARD_MARK_LAYERS_FEW 16u
#define FORWARD_FEW_ROWS        64u

struct forward;
/* Captures the graphs of all buckets, unless eager: nothing is allocated later. */
int forward_create(struct rank *r, struct forward **ret, struct error *e);
struct forward *forward_free(struct forward *f);
/* Called before a step's plan is uploaded: chooses the smallest bucket that holds the step, or its own bounds when
 * eager, bounds the batch by it and returns it. The step must be one that the rank can do. */
struct k_bounds forward_bound(struct forward *f, const struct k_bounds *step);
/* Queues the whole step, k_begin_step to k_end_step, as it was bounded last. step: for forward_place(). */
void forward_queue(struct forward *f, uint32_t step, const struct forward_hooks *hooks);
/* Queues the making of so many drafts, the most that an entry of that step asks for: before the next one is bounded. */
void forward_draft(struct forward *f, uint32_t n);
/* Which step's operations run now or ran last, as forward_queue() got it, and at or behind which layer. False where
 * they run when they are queued, so that the hooks tell. Any thread. */
bool forward_place(const struct forward *f, uint32_t *ret_step, uint32_t *ret_layer);
/* Device memory that the graphs of a rank may take, for its budget; drafts: it makes some. */
uint64_t forward_graphs_estimate(uint32_t n_layers, uint32_t rows_max, bool drafts);
/* Of the graphs that the last step replayed; 0 when eager. */
uint32_t forward_graph_nodes(const struct forward *f);
/* Device memory that the graphs take, as far as it shows. */
uint64_t forward_graph_bytes(const struct forward *f);
