/* product.c - multiplying activations with packed weights, split over the threads of a rank.
 *
 * The input rows are brought into the form that the bodies read (normalised once per row, not once per
 * strip): row after row for a few, tiles [k][12] for more. Then groups of strips are tasks; a task keeps its
 * outputs on its stack and stores them with the activation applied, so gate and up are never written out. */
#include "kernels/cpu/internal.h"

#include <errno.h>
#include <string.h>

#define GROUPS_PER_THREAD 16u /* tasks per thread: enough to even out, few enough to keep long streams */

struct product_job {
    const struct product *p;
    const struct isa *isa;
    float *in;        /* [n][columns], or tiles */
    uint32_t n_tiles; /* 0 = rows lie one after another */
    uint32_t units;   /* strips, or pairs of a gate and an up strip */
    uint32_t units_per_task;
};

static uint32_t tile_count(uint32_t rows) {
    return (rows + TILE_ROWS - 1) / TILE_ROWS;
}
/* Rows are spread evenly over the tiles: 13 rows are 7 and 6, not 12 and 1. */
static uint32_t tile_first(uint32_t rows, uint32_t n_tiles, uint32_t t) {
    return (uint32_t)((uint64_t)rows * t / n_tiles);
}

uint64_t product_scratch_bytes(uint32_t columns, uint32_t rows) {
    return align64((uint64_t)(tile_count(rows) * TILE_ROWS + 1) * columns * sizeof(float));
}

static const float *input_row(const struct product *p, uint32_t r) {
    return p->x + (uint64_t)(p->rows_at ? p->rows_at[r] : r) * p->w->columns;
}

static void prepare_row(const struct product_job *j, uint32_t r, float *to) {
    const struct product *p = j->p;
    if (p->norm)
        j->isa->norm_row(input_row(p, r), p->norm, p->eps, p->w->columns, to);
    else
        memcpy(to, input_row(p, r), p->w->columns * sizeof *to);
}

static void prepare_tile(void *arg, uint32_t t) {
    const struct product_job *j = arg;
    const uint32_t k = j->p->w->columns;
    const uint32_t first = tile_first(j->p->n, j->n_tiles, t),
                   n = tile_first(j->p->n, j->n_tiles, t + 1) - first;
    float *tile = j->in + (uint64_t)t * k * TILE_ROWS;
    for (uint32_t r = 0; r < n; r++) {
        const float *x = input_row(j->p, first + r);
        if (j->p->norm) {
            j->isa->norm_spread(x, j->p->norm, j->p->eps, k, tile + r);
            continue;
        }
        for (uint32_t i = 0; i < k; i++)
            tile[(uint64_t)i * TILE_ROWS + r] = x[i];
    }
}

/* 16 outputs of each of n rows, computed by strip s0 (and s1 for gate and up). */
static void store_strip(const struct product *p, const struct isa *isa, uint32_t s, const float *first,
        const float *second, uint32_t row0, uint32_t n) {
    const struct strip *strip = &p->w->strips[s];
    for (uint32_t r = 0; r < n; r++) {
        float *y = p->y + (uint64_t)(row0 + r) * p->ldy + strip->column;
        if (p->gate_up)
            isa->silu_mul(first + r * 16, second + r * 16, strip->n_valid, y);
        else
            memcpy(y, first + r * 16, strip->n_valid * sizeof *y);
    }
}

static uint32_t same_piece(const struct k_linear *w, uint32_t s, uint32_t end, uint32_t limit) {
    uint32_t n = 1;
    while (n < limit && s + n < end && w->strips[s + n].piece == w->strips[s].piece)
        n++;
    return n;
}

static void small_task(void *arg, uint32_t task) {
    const struct product_job *j = arg;
    const struct product *p = j->p;
    _Alignas(64) float out[SMALL_STRIPS * SMALL_ROWS * 16];
    uint32_t u = task * j->units_per_task,
             end = u + j->units_per_task < j->units ? u + j->units_per_task : j->units;
    const uint32_t limit = p->gate_up ? SMALL_STRIPS / 2 : SMALL_STRIPS;
    while (u < end) {
        uint32_t n = same_piece(p->w, u, end, limit), strips[SMALL_STRIPS];
        for (uint32_t i = 0; i < n; i++)
            strips[i] = u + i;
        float *second = out + (uint64_t)n * p->n * 16;
        j->isa->linear_small(p->w, strips, n, j->in, p->w->columns, p->n, out);
        if (p->gate_up) {
            for (uint32_t i = 0; i < n; i++)
                strips[i] = j->units + u + i;
            j->isa->linear_small(p->w, strips, n, j->in, p->w->columns, p->n, second);
        }
        for (uint32_t i = 0; i < n; i++)
            store_strip(p, j->isa, u + i, out + (uint64_t)i * p->n * 16, second + (uint64_t)i * p->n * 16, 0,
                    p->n);
        u += n;
    }
}

/* One or two strips against all rows, BLOCK_TILES tiles at a time. */
static void block_strips(const struct product_job *j, const uint32_t *strips, uint32_t n) {
    const struct product *p = j->p;
    _Alignas(64) float out[2 * BLOCK_ROWS * 16];
    for (uint32_t t0 = 0; t0 < j->n_tiles; t0 += BLOCK_TILES) {
        uint32_t nt = j->n_tiles - t0 < BLOCK_TILES ? j->n_tiles - t0 : BLOCK_TILES, rows[BLOCK_TILES];
        uint32_t row0 = tile_first(p->n, j->n_tiles, t0), all = tile_first(p->n, j->n_tiles, t0 + nt) - row0;
        for (uint32_t t = 0; t < nt; t++)
            rows[t] = tile_first(p->n, j->n_tiles, t0 + t + 1) - tile_first(p->n, j->n_tiles, t0 + t);
        const float *tiles = j->in + (uint64_t)t0 * p->w->columns * TILE_ROWS;
        if (n == 1 || p->w->strips[strips[0]].kind == p->w->strips[strips[1]].kind) {
            j->isa->linear_block(p->w, strips, n, tiles, rows, nt, out);
        } else { /* gate and up of different types */
            j->isa->linear_block(p->w, strips, 1, tiles, rows, nt, out);
            j->isa->linear_block(p->w, strips + 1, 1, tiles, rows, nt, out + (uint64_t)all * 16);
        }
        if (p->gate_up) {
            store_strip(p, j->isa, strips[0], out, out + (uint64_t)all * 16, row0, all);
            continue;
        }
        for (uint32_t i = 0; i < n; i++)
            store_strip(p, j->isa, strips[i], out + (uint64_t)i * all * 16, NULL, row0, all);
    }
}
static void block_task(void *arg, uint32_t task) {
    const struct product_job *j = arg;
    uint32_t u = task * j->units_per_task,
             end = u + j->units_per_task < j->units ? u + j->units_per_task : j->units;
    while (u < end) {
        const uint32_t n = same_piece(j->p->w, u, end, 2), gate_up[2] = {u, j->units + u},
                       plain[2] = {u, u + 1};
        block_strips(j, j->p->gate_up ? gate_up : plain, j->p->gate_up ? 2 : n);
        u += j->p->gate_up ? 1 : n;
    }
}

void product_run(struct k_stream *s, const struct product *p, float *scratch) {
    struct product_job j = {.p = p, .isa = stream_isa(s), .in = scratch};
    if (p->n == 0)
        return;
    j.units = p->gate_up ? p->w->n_strips / 2 : p->w->n_strips;
    uint32_t tasks = team_threads(s->context->team) * GROUPS_PER_THREAD;
    /* Strips that are open together stay together: pairs, or what fills the chains when a rank has few
     * leaves. */
    const uint32_t together = p->w->leaves == K_LEAVES ? 2 : SMALL_STRIPS;
    j.units_per_task = ((j.units + tasks - 1) / tasks + together - 1) / together * together;
    tasks = (j.units + j.units_per_task - 1) / j.units_per_task;
    if (p->n <= SMALL_ROWS) {
        for (uint32_t r = 0; r < p->n; r++)
            prepare_row(&j, r, scratch + (uint64_t)r * p->w->columns);
        stream_run(s, small_task, &j, tasks);
    } else {
        j.n_tiles = tile_count(p->n);
        stream_run(s, prepare_tile, &j, j.n_tiles);
        stream_run(s, block_task, &j, tasks);
    }
}

/* --- the operations --- */

struct project_args {
    const struct k_batch *b;
    const struct k_linear *w;
    const float *x, *norm;
    float *y;
    float eps;
    bool gate_up;
};
static void run_project(struct k_stream *s, const void *args) {
    const struct project_args *a = args;
    uint32_t n = a->b->plan.n_rows, out = a->gate_up ? a->w->rows / 2 : a->w->rows;
    if (a->gate_up && (a->w->n_pieces != 2 || a->w->strips[a->w->n_strips / 2].column != out)) {
        stream_fault(s, -EINVAL, "%s: gate and up must be two pieces of equally many rows", a->w->name);
        return;
    }
    float *scratch = stream_scratch(s, product_scratch_bytes(a->w->columns, n));
    if (!scratch)
        return;
    struct product p = {.w = a->w,
            .x = a->x,
            .norm = a->norm,
            .eps = a->eps,
            .n = n,
            .gate_up = a->gate_up,
            .y = a->y,
            .ldy = out};
    product_run(s, &p, scratch);
}

void k_norm_project(struct k_stream *s, const struct k_batch *b, const float *x, const float *norm, float eps,
        const struct k_linear *w, float *y) {
    struct project_args a = {.b = b, .w = w, .x = x, .norm = norm, .y = y, .eps = eps};
    stream_submit(s, run_project, &a, sizeof a);
}
void k_norm_gate_up(struct k_stream *s, const struct k_batch *b, const float *x, const float *norm, float eps,
        const struct k_linear *w, float *y) {
    struct project_args a = {.b = b, .w = w, .x = x, .norm = norm, .y = y, .eps = eps, .gate_up = true};
    stream_submit(s, run_project, &a, sizeof a);
}
void k_project_partial(
        struct k_stream *s, const struct k_batch *b, const struct k_linear *w, const float *in, float *part) {
    struct project_args a = {.b = b, .w = w, .x = in, .y = part};
    stream_submit(s, run_project, &a, sizeof a);
}
void k_project(
        struct k_stream *s, const struct k_batch *b, const float *x, const struct k_linear *w, float *y) {
    struct project_args a = {.b = b, .w = w, .x = x, .y = y};
    stream_submit(s, run_project, &a, sizeof a);
}
