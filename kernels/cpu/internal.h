/* internal.h - what the files of kernels/cpu share: the objects behind kernels.h and the table of numeric bodies.
 *
 * Every operation has the same form: the public function copies its arguments and calls stream_submit(), which runs
 * the operation at once or records it. The operation splits its work over the threads of the context and calls bodies
 * through struct isa. Bodies do arithmetic only; they see no slots, pages or threads. */
#pragma once

#include "base/futex.h"
#include "kernels/kernels.h"
#include "kernels/layout/cpu_tiles.h"
#include "kernels/shared/bounds.h"
#include "kernels/shared/check.h"
#include "kernels/shared/constants.h"
#include "kernels/shared/counts.h"
#include "kernels/shared/drafts.h"
#include "kernels/shared/noise.h"
#include "kernels/shared/numbers.h"
#include "kernels/shared/pool_layout.h"
#include "kernels/shared/segments.h"
#include "kernels/shared/slot.h"

#include <stdatomic.h>

#define TILE_ROWS   12u /* rows of one packed activation tile: [k][12] */
#define BLOCK_TILES 4u  /* tiles that share one conversion of the weights */
#define BLOCK_ROWS  (TILE_ROWS * BLOCK_TILES)
#define SMALL_ROWS  3u  /* up to here the few-rows product is used; both give the same bits */
#define OUT_MAX     96u /* strips x rows of one call of a product */
#define HEAD_ROWS   32u /* rows of logits computed at once */
#define QUERIES_MAX 16u /* (row, head) pairs of one attention task */

/* --- bodies --- */

struct strip {           /* 16 outputs of a linear */
    const uint8_t *data; /* its block of this rank's first leaf, here or in tiles of somebody else */
    uint64_t leaf_stride;
    uint32_t column; /* first output column */
    uint8_t n_valid; /* 1..16 */
    uint8_t kind;    /* as in its piece's form */
    uint8_t piece;
};
struct piece {
    struct form form;
    uint32_t cut; /* quantised: index of its cut */
    uint32_t first_strip, n_strips;
};
struct k_linear {
    struct k_context *context;
    uint8_t *data; /* per piece [group of strips][leaf][strip][block] */
    struct strip *strips;
    struct piece pieces[PIECES_MAX];
    struct cutting cuts[CUTS_MAX];
    uint32_t *order; /* NULL, or [columns]: position k takes input order[k] */
    uint32_t n_strips, rows, columns, leaves, leaf_columns, n_pieces, n_cuts;
    const struct k_linear *next; /* NULL, or what a step multiplies after this */
    bool gate_up;                /* used by k_norm_gate_up */
    char name[96];
};

struct gdn_task { /* one v head over consecutive rows of one sequence that lie in one block of C positions */
    uint32_t n_rows, first; /* first: index in the block of the first row, first + n_rows <= C */
    uint32_t dk, dv;
    /* Of row i of the block, wherever it lies: k, normalised, of rows before first + n_rows; Delta and G, of which rows
     * first.. are written. */
    const float *k[GDN_BLOCK];
    float *delta[GDN_BLOCK], *decay[GDN_BLOCK];
    const void *s0; /* [dk][dv] fp32, with `f16` fp16 */
    bool f16;
    const float *q, *v; /* of row first + i at + i * row_stride; q normalised and scaled */
    uint32_t row_stride;
    const float *g, *beta; /* row i at + i * gate_stride */
    uint32_t gate_stride;
    float *out; /* row i at + i * out_stride */
    uint32_t out_stride;
};

struct attention_task {                /* queries of one kv head of one sequence */
    uint32_t n;                        /* queries, 1..QUERIES_MAX */
    uint32_t head_dim, first, longest; /* positions first <= j <= last[i] are seen; longest = max(last) */
    const float *q[QUERIES_MAX];
    uint32_t last[QUERIES_MAX]; /* ascending */
    /* Page p of this layer and head: K at pages + p * page_stride, then V, then what scales there are. */
    const uint8_t *pages;
    uint64_t page_stride; /* bytes */
    const uint32_t *table;
    enum k_dtype dtype;
    float *out[QUERIES_MAX]; /* softmax(q K / sqrt D) V */
};

struct codes_tile {      /* INT8 activations of a few rows, as one cutting of a linear wants them */
    const int8_t *x;     /* [x_columns / 4][rows][4] */
    const float *scales; /* [segment][rows] */
    const int32_t *sums; /* [segment][rows] of x */
    uint32_t rows;       /* 1..TILE_ROWS */
};

struct isa {
    const char *name;
    /* out[n][rows][16]: the tree over leaves of n <= GROUP_STRIPS neighbouring strips of one piece, fp32 activations
     * x[rows][ldx], rows <= SMALL_ROWS */
    void (*linear_small)(const struct k_linear *w, uint32_t first, uint32_t n, const float *x, uint32_t ldx,
            uint32_t rows, float *out);
    /* The same for n <= 2 strips and up to BLOCK_TILES tiles [K][12]; tile t has rows[t] rows; out[n][all rows][16] */
    void (*linear_block)(const struct k_linear *w, uint32_t first, uint32_t n, const float *tiles,
            const uint32_t *rows, uint32_t n_tiles, float *out);
    /* INT4 or INT8 weights x INT8 activations: n neighbouring strips of one piece x all rows of the tiles,
     * n * rows <= OUT_MAX; out[n][all rows][16] */
    void (*linear_codes)(const struct k_linear *w, uint32_t first, uint32_t n, const struct codes_tile *tiles,
            uint32_t n_tiles, float *out);
    /* codes[columns], scales[leaf][run of ACTIVATION_RUN] */
    void (*quantise_row)(
            const float *x, uint32_t columns, uint32_t leaf_columns, int8_t *codes, float *scales);
    /* codes[n] and the scale that they share */
    void (*quantise_run)(const float *x, uint32_t n, int8_t *codes, float *scale);
    void (*norm_row)(const float *x, const float *w, float eps, uint32_t n, float *y);
    void (*silu_mul)(const float *g, const float *u, uint32_t n, float *y);
    /* y = silu(sum_j taps[j][c] * x[j][c]), j ascending */
    void (*conv_row)(const float *const *x, const float *taps, uint32_t taps_stride, uint32_t n_taps,
            uint32_t channels, float *y);
    void (*l2_row)(float *x, uint32_t n, float scale);
    /* g = -exp(a_log) * softplus(a + dt_bias), beta = sigmoid(b) */
    void (*gdn_gates)(const float *a, const float *b, const float *a_log, const float *dt_bias, uint32_t n,
            float *g, float *beta);
    void (*gdn_rows)(const struct gdn_task *t);
    /* s = e^G_last s + sum_i (e^(G_last - G_i) k_i) Delta_i, i ascending, over the block's first n rows; s is as t->f16
     * says */
    void (*gdn_fold)(const struct gdn_task *t, uint32_t n, void *s);
    void (*gated_norm)(const float *x, const float *w, const float *z, float eps, uint32_t n, float *y);
    void (*rope)(float *x, const float *cos_sin, uint32_t half);
    void (*attention)(const struct attention_task *t);
    /* The same in two steps, so that leaves can be tasks: max[n], sum[n], o[n][HEAD_DIM_MAX] of one leaf of
     * the queries that see it; then out of one query from its leaves in order, parts[n][max, sum, o[D]]. */
    void (*attention_leaf)(const struct attention_task *t, uint32_t leaf, float *max, float *sum, float *o);
    void (*attention_merge)(const float *parts, uint32_t n, uint32_t head_dim, float *out);
    void (*sigmoid_mul)(const float *gate, uint32_t n, float *y);
    /* highest of x; *ret_finite = no NaN and no infinity */
    float (*highest)(const float *x, uint32_t n, bool *ret_finite);
    float (*sum_exp)(const float *x, uint32_t n, float highest);
    void (*exp_minus)(const float *x, uint32_t n, float highest, float *y);
    float (*log_one)(float x);
    /* the first index of the highest x; the id of the highest x + Gumbel noise: ids[i], or i if ids is NULL */
    uint32_t (*argmax)(const float *x, uint32_t n);
    uint32_t (*gumbel_argmax)(const float *x, const uint32_t *ids, uint32_t n, struct gumbel_key key);
};
extern const struct isa isa_plain, isa_avx2, isa_avx512, isa_avx512_vnni;

/* --- threads and streams --- */

struct team; /* threads.c */
typedef void (*team_fn)(void *arg, uint32_t task);
int team_create(uint32_t threads, struct team **ret, struct error *e);
struct team *team_free(struct team *t);
uint32_t team_threads(const struct team *t);
/* Calls fn(arg, 0 .. n-1) in any order on any thread; returns when all are done. One caller at a time. */
void team_run(struct team *t, team_fn fn, void *arg, uint32_t n);
/* What thread `self` of `threads` does while it waits: a piece of well below a microsecond from `at` on, which is 0
 * first and then what the last piece returned, or TEAM_IDLE_DONE. */
struct team_idle {
    uint64_t (*fn)(const void *arg, uint32_t self, uint32_t threads, uint64_t at);
    const void *arg;
};
#define TEAM_IDLE_DONE UINT64_MAX
/* The same as team_run; threads that are done wait with `idle`, also after the run, until another run brings
 * another. */
void team_run_idle(struct team *t, team_fn fn, void *arg, uint32_t n, const struct team_idle *idle);
/* Returns when no thread uses the argument of an idle function any more. */
void team_forget_idle(struct team *t);

struct k_context {
    const struct isa *isa;
    struct team *team;
    struct arena *arena; /* memory.c: where the next blocks come from */
    enum k_activations activations;
    bool deferred;
    char text[64];
};
void memory_leave(struct k_context *c); /* before the context goes; blocks may outlive it */

typedef void (*stream_fn)(struct k_stream *s, const void *args);
struct k_stream {
    struct k_context *context;
    struct k_graph *capture; /* recording into it; NULL = operations run */
    struct k_graph *queue;   /* of a deferred context: what has not run yet; else NULL */
    size_t queue_at;         /* bytes of it that have run */
    uint8_t *workspace;
    size_t workspace_bytes;
    struct error fault; /* code 0 = none */
};
/* Runs what a deferred stream has queued, until *passed (NULL: all of it). */
void stream_run_queue(struct k_stream *s, const bool *passed);
/* Runs fn(s, args) or records it with a copy of args. */
void stream_submit(struct k_stream *s, stream_fn fn, const void *args, size_t bytes);
/* Keeps the first fault. */
void stream_fault(struct k_stream *s, int code, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
void stream_refused(struct k_stream *s, const struct error *e);
/* bytes of scratch, from the start of the workspace; NULL and a fault when it is too small. */
void *stream_scratch(struct k_stream *s, size_t bytes);
static inline const struct isa *stream_isa(const struct k_stream *s) {
    return s->context->isa;
}
static inline void stream_run(struct k_stream *s, team_fn fn, void *arg, uint32_t n) {
    team_run(s->context->team, fn, arg, n);
}

/* --- embedding tables (table.c) --- */

struct k_table {
    struct k_context *context;
    const void *data; /* [rows][columns] of dtype */
    enum k_dtype dtype;
    uint32_t rows, columns;
    bool mapped; /* data belongs to the caller */
};
/* to[columns] = row `id`, widened to fp32. */
void table_row(const struct k_table *t, uint32_t id, float *to);

/* --- batch and pool --- */

struct k_batch {
    struct k_context *context;
    uint32_t entries_max, rows_max;
    struct k_bounds bounds; /* of what is queued next */
    struct k_plan plan;
    struct k_entry *entries;                /* [entries_max] */
    uint32_t *ids;                          /* [rows_max] of PROMPT entries, as uploaded */
    uint32_t *rope;                         /* [3 * rows_max] as uploaded */
    uint32_t *row_id, *row_pos, *row_entry; /* [rows_max] derived by k_begin_step */
    uint32_t *row_rope;                     /* [rows_max][3] */
    uint32_t *masks;                        /* [masks_max][mask_words] or NULL */
    uint32_t masks_max, mask_words;
};

struct gdn_view { /* one slot and layer */
    void *s0;     /* [Hv][dk][dv] of state_dtype */
    float *k;     /* [ring_rows][Hk][dk] */
    float *delta; /* [ring_rows][Hv][dv] */
    float *decay; /* [ring_rows][Hv] */
    float *conv;  /* [window_rows][channels] */
};

struct k_pool {
    struct k_context *context;
    struct k_shape shape;
    struct k_pool_options options;
    struct pool_layout layout;
    uint8_t *kv; /* [layer][page][kv_head][K|V][64][D] */
    float *gdn;  /* [slot][layer] */
    struct slot *slots;
    uint32_t *tables;   /* [slot][pages_per_slot] */
    uint16_t *counts;   /* [slot][V] */
    float *hidden;      /* [slot][H] MTP hidden */
    uint32_t *bias_ids; /* [slot][LOGIT_BIAS_MAX] */
    float *bias;
    uint32_t *suppress; /* [slot][SUPPRESS_MAX] */
    float *inv_freq;    /* [rotary_dim / 2] */
    uint8_t *slot_units, *page_units;
};
struct gdn_view pool_gdn(const struct k_pool *p, uint32_t slot, uint32_t layer);
/* S0 of one value head. */
static inline void *gdn_head_s0(const struct k_pool *p, const struct gdn_view *g, uint32_t v) {
    return (uint8_t *)g->s0 +
           (uint64_t)v * p->shape.gdn_k_dim * p->shape.gdn_v_dim * k_dtype_bytes(p->options.state_dtype);
}
/* Row i of a block is row `at` of the slot's ring, a position modulo its rows: for the task of value head v, whose key
 * head is k. */
static inline void gdn_place(const struct k_shape *h, const struct gdn_view *g, uint32_t v, uint32_t k,
        uint64_t at, struct gdn_task *t, uint32_t i) {
    t->k[i] = g->k + (at * h->gdn_k_heads + k) * h->gdn_k_dim;
    t->delta[i] = g->delta + (at * h->gdn_v_heads + v) * h->gdn_v_dim;
    t->decay[i] = g->decay + at * h->gdn_v_heads + v;
}
/* The row of position `pos` in the convolution window; those before position 0 are zeros of a fresh slot. */
static inline float *gdn_window_row(
        const struct pool_layout *l, const struct k_shape *h, const struct gdn_view *g, int64_t pos) {
    return g->conv + (uint64_t)((pos + l->window_rows) % l->window_rows) * gdn_channels(h);
}

/* --- products --- */

/* y[r][rows of w] = W n(x_r) for the rows named by rows_at (NULL: 0..n-1), n = RMS norm if norm is not NULL.
 * gate_up: w holds gate rows then up rows and y[r][rows / 2] = silu(gate) * up. Takes scratch from `scratch`. */
struct product {
    const struct k_linear *w;
    const float *x, *norm;
    const uint32_t *rows_at;
    float eps;
    uint32_t n;
    bool gate_up;
    float *y;
    uint32_t ldy;
};
void product_run(struct k_stream *s, const struct product *p, float *scratch);
uint64_t product_scratch_bytes(uint32_t columns, uint32_t rows); /* enough for every smaller row count too */

uint64_t gdn_scratch_bytes(const struct k_shape *h, uint32_t rows);
uint64_t attention_scratch_bytes(const struct k_shape *h, uint32_t rows);
uint64_t head_scratch_bytes(const struct k_shape *h);

/* --- communicator --- */

/* Every rank's area in the shared region; barrier returns false when the group was aborted. */
bool comm_barrier(struct k_stream *s, struct k_comm *m);
void comm_flip(struct k_comm *m); /* the other of the two area sets; once per exchange */
float *comm_area(const struct k_comm *m, uint32_t rank);
uint64_t comm_area_floats(const struct k_comm *m);
struct k_result *comm_results(const struct k_comm *m); /* [HEAD_ROWS] */
void comm_vocab(const struct k_comm *m, uint32_t rank, uint32_t *ret_first, uint32_t *ret_rows);
