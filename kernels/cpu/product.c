/* product.c - multiplying activations with packed weights, split over the threads of a rank.
 *
 * The input rows are brought into the forms that the bodies read, once per row and not once per strip:
 * normalised and put into the linear's order; fp32 row after row for a few, in tiles [k][12] for more, and the same of
 * values rounded to bf16; INT8 in tiles [k / 4][rows][4] with scales and sums per segment, once for each way in which
 * the weights' groups cut the columns. Then every thread has a share of the strips, which lie together in memory, and
 * takes them group by group; outputs stay on its stack and are stored with the activation applied, so gate and up are
 * never written out. More than CHUNK_ROWS rows go through in chunks, which bounds the scratch. */
#include "kernels/cpu/internal.h"

#include <errno.h>
#include <string.h>

#define CHUNK_ROWS  480u /* rows that one pass over the weights serves */
#define SHARES_MAX  64u
#define READ_AHEAD  (512u << 10) /* of a thread: what its own cache holds beside its work */
#define READ_STEP   512u
#define UNITS_LEAST 2u /* strips that a thread takes at once, at least; a power of two */

struct share { /* units that one thread begins with; whoever is done first helps with the rest */
    _Alignas(64) atomic_uint next;
    uint32_t end;
};
struct product_job {
    const struct product *p;
    const struct isa *isa;
    uint32_t first, n; /* rows of the product in this chunk */
    uint32_t n_tiles;
    bool floats, rounds; /* some piece takes fp32 activations; some takes them rounded to bf16 */
    bool cuts[CUTS_MAX]; /* some piece takes INT8 activations cut like this */
    float *in;           /* n <= SMALL_ROWS: [n][columns], else tiles [columns][12] */
    float *rounded;    /* the same of values rounded to bf16; where codes would be, which are not made then */
    float *row;        /* [tile][2][columns] a row on its way, and before it is put in order */
    int8_t *row_codes; /* [tile][columns + 64] */
    float *row_scales; /* [tile][runs] */
    uint32_t runs;     /* activation scales of a row */
    uint8_t *codes[CUTS_MAX]; /* [tile] x, scales, sums */
    uint64_t codes_stride[CUTS_MAX];
    uint32_t units; /* strips, or pairs of a gate and an up strip */
    uint32_t n_shares;
    struct share shares[SHARES_MAX];
};

static uint32_t tile_count(uint32_t rows) {
    return (rows + TILE_ROWS - 1) / TILE_ROWS;
}
/* Rows are spread evenly over the tiles: 13 rows are 7 and 6, not 12 and 1. */
static uint32_t tile_first(uint32_t rows, uint32_t n_tiles, uint32_t t) {
    return (uint32_t)((uint64_t)rows * t / n_tiles);
}
static uint32_t tile_rows(const struct product_job *j, uint32_t t) {
    return tile_first(j->n, j->n_tiles, t + 1) - tile_first(j->n, j->n_tiles, t);
}

/* --- scratch --- */

/* A tile of INT8 activations: rows are counted as TILE_ROWS, whatever they are. */
static uint64_t codes_tile_bytes(uint64_t x_columns, uint64_t segments) {
    return align64(TILE_ROWS * x_columns) + 2 * align64(TILE_ROWS * segments * sizeof(float));
}
static uint32_t row_runs(const struct k_linear *w) {
    return w->leaves * ((w->leaf_columns + ACTIVATION_RUN - 1) / ACTIVATION_RUN);
}

/* Floats from one tile of fp32 activations, [columns][TILE_ROWS], to the next: tiles lie together, as they are read. */
static uint64_t tile_floats(uint32_t columns) {
    return (uint64_t)columns * TILE_ROWS;
}

/* Whatever the groups are: a leaf ends, a run of 128 ends, or a group of at least 16 does. */
uint64_t product_scratch_bytes(uint32_t columns, uint32_t rows) {
    const uint64_t tiles = tile_count(rows < CHUNK_ROWS ? rows : CHUNK_ROWS);
    const uint64_t segments = columns / 16 + columns / ACTIVATION_RUN + 3 * K_LEAVES,
                   x_columns = columns + 7 * segments;
    const uint64_t row =
            2 * align64(columns * sizeof(float)) + align64(columns + 64) + align64(segments * sizeof(float));
    return tiles * (align64(tile_floats(columns) * sizeof(float)) + row +
                           CUTS_MAX * codes_tile_bytes(x_columns, segments));
}

static void *take(uint8_t **at, uint64_t bytes) {
    void *p = *at;
    *at += bytes;
    return p;
}
static void lay_out(struct product_job *j, float *scratch) {
    const struct k_linear *w = j->p->w;
    const uint64_t tiles = j->n_tiles;
    uint8_t *at = (uint8_t *)scratch;
    j->runs = row_runs(w);
    j->in = take(&at, align64(tiles * tile_floats(w->columns) * sizeof(float)));
    j->row = take(&at, tiles * 2 * align64(w->columns * sizeof(float)));
    j->row_codes = take(&at, tiles * align64(w->columns + 64));
    j->row_scales = take(&at, tiles * align64(j->runs * sizeof(float)));
    _Static_assert(
            CUTS_MAX * sizeof(int8_t) >= sizeof(float), "the rounded tiles fit where the codes would be");
    j->rounded = (float *)at;
    for (uint32_t c = 0; c < w->n_cuts; c++) {
        j->codes_stride[c] = codes_tile_bytes(w->cuts[c].x_columns, w->cuts[c].n_segments);
        j->codes[c] = take(&at, tiles * j->codes_stride[c]);
    }
}

/* --- the input --- */

static struct codes_tile codes_tile(const struct product_job *j, uint32_t cut, uint32_t t) {
    const struct cutting *c = &j->p->w->cuts[cut];
    const uint8_t *at = j->codes[cut] + t * j->codes_stride[cut];
    const uint64_t x = align64((uint64_t)TILE_ROWS * c->x_columns),
                   of_segments = align64(TILE_ROWS * 4ull * c->n_segments);
    return (struct codes_tile){.x = (const int8_t *)at,
            .scales = (const float *)(at + x),
            .sums = (const int32_t *)(at + x + of_segments),
            .rows = tile_rows(j, t)};
}

/* Row r of the chunk, as it enters the product, to `to`. */
static void prepare_row(const struct product_job *j, uint32_t r, float *to, float *spare) {
    const struct product *p = j->p;
    const float *x = p->x + (uint64_t)(p->rows_at ? p->rows_at[j->first + r] : j->first + r) * p->w->columns;
    const uint32_t *order = p->w->order;
    if (p->norm) {
        float *normed = order ? spare : to;
        j->isa->norm_row(x, p->norm, p->eps, p->w->columns, normed);
        x = normed;
    } else if (!order) {
        memcpy(to, x, p->w->columns * sizeof *to);
    }
    for (uint32_t k = 0; order && k < p->w->columns; k++)
        to[k] = x[order[k]];
}

/* One row's codes to row r of a tile; a segment's end is filled up with zeros. */
static void spread_codes(const struct product_job *j, uint32_t cut, uint32_t t, uint32_t r,
        const int8_t *codes, const float *scales) {
    const struct cutting *c = &j->p->w->cuts[cut];
    const struct codes_tile tile = codes_tile(j, cut, t);
    const uint32_t leaf_runs = j->runs / j->p->w->leaves, leaf_columns = j->p->w->leaf_columns;
    int8_t *x = (int8_t *)tile.x;
    for (uint32_t i = 0; i < c->n_segments; i++) {
        const struct segment *g = &c->segments[i];
        const uint32_t leaf = g->column / leaf_columns;
        int8_t quad[4];
        int32_t sum = 0;
        for (uint32_t k = 0; k < g->n; k++)
            sum += codes[g->column + k];
        const bool whole = tile.rows == 1 && g->n % 8 == 0; /* nothing to interleave and nothing to fill */
        if (whole)
            memcpy(x + g->x_at, codes + g->column, g->n);
        for (uint32_t k = 0; k < ((g->n + 7) & ~7u) && !whole; k += 4) {
            memset(quad, 0, sizeof quad);
            if (k < g->n)
                memcpy(quad, codes + g->column + k, g->n - k < 4 ? g->n - k : 4);
            memcpy(x + ((uint64_t)(g->x_at + k) / 4 * tile.rows + r) * 4, quad, sizeof quad);
        }
        ((int32_t *)tile.sums)[i * tile.rows + r] = sum;
        ((float *)tile.scales)[i * tile.rows + r] =
                scales[leaf * leaf_runs + (g->column - leaf * leaf_columns) / ACTIVATION_RUN];
    }
}

/* Row r of tile t, as it is or rounded to bf16. */
static void spread_floats(
        const struct product_job *j, float *in, uint32_t t, uint32_t r, const float *row, bool round) {
    const uint32_t k = j->p->w->columns, step = j->n <= SMALL_ROWS ? 1 : TILE_ROWS;
    float *to = in + t * tile_floats(k) + (step == 1 ? (uint64_t)r * k : r);
    for (uint32_t i = 0; i < k; i++)
        to[(uint64_t)i * step] = round ? float_of_bf16(bf16_of(row[i])) : row[i];
}

static void prepare_tile(void *arg, uint32_t t) {
    const struct product_job *j = arg;
    const uint32_t k = j->p->w->columns, n = tile_rows(j, t), first = tile_first(j->n, j->n_tiles, t);
    const bool small = j->n <= SMALL_ROWS;
    const uint64_t row_stride = align64(k * sizeof(float)) / sizeof(float);
    float *tile = j->in + t * tile_floats(k);
    float *scales = j->row_scales + t * (align64(j->runs * sizeof(float)) / sizeof(float));
    int8_t *codes = j->row_codes + t * align64(k + 64);
    bool any = false;
    for (uint32_t c = 0; c < j->p->w->n_cuts; c++)
        any = any || j->cuts[c];
    for (uint32_t r = 0; r < n; r++) {
        float *spare = j->row + (2 * t + 1) * row_stride, *own = j->row + 2 * t * row_stride;
        float *row = small && j->floats ? tile + (uint64_t)r * k : own;
        prepare_row(j, first + r, row, spare);
        if (j->floats && !small)
            spread_floats(j, j->in, t, r, row, /* round= */ false);
        if (j->rounds)
            spread_floats(j, j->rounded, t, r, row, /* round= */ true);
        if (!any)
            continue;
        j->isa->quantise_row(row, k, j->p->w->leaf_columns, codes, scales);
        for (uint32_t c = 0; c < j->p->w->n_cuts; c++)
            if (j->cuts[c])
                spread_codes(j, c, t, r, codes, scales);
    }
}

/* --- the strips --- */

/* What a piece is multiplied with. */
static enum k_activations takes(const struct product_job *j, const struct piece *p) {
    const bool codes = p->form.kind == KIND_INT4 || p->form.kind == KIND_INT8;
    return codes ? j->p->w->context->activations : K_ACTIVATIONS_FLOAT;
}

/* 16 outputs of each of n rows, computed by strip s (and its partner for gate and up). */
static void store_strip(const struct product_job *j, uint32_t s, const float *first, const float *second,
        uint32_t row0, uint32_t n) {
    const struct product *p = j->p;
    const struct strip *strip = &p->w->strips[s];
    for (uint32_t r = 0; r < n; r++) {
        float *y = p->y + (uint64_t)(j->first + row0 + r) * p->ldy + strip->column;
        if (p->gate_up)
            j->isa->silu_mul(first + r * 16, second + r * 16, strip->n_valid, y);
        else
            memcpy(y, first + r * 16, strip->n_valid * sizeof *y);
    }
}

/* out[n][rows][16] of neighbouring strips of one piece and nt tiles from t0 on. */
static void strips_times_tiles(
        const struct product_job *j, uint32_t s, uint32_t n, uint32_t t0, uint32_t nt, float *out) {
    const struct k_linear *w = j->p->w;
    const struct piece *piece = &w->pieces[w->strips[s].piece];
    const float *in = takes(j, piece) == K_ACTIVATIONS_BF16 ? j->rounded : j->in;
    if (takes(j, piece) == K_ACTIVATIONS_INT8) {
        struct codes_tile tiles[BLOCK_TILES];
        for (uint32_t t = 0; t < nt; t++)
            tiles[t] = codes_tile(j, piece->cut, t0 + t);
        j->isa->linear_codes(w, s, n, tiles, nt, out);
    } else if (j->n <= SMALL_ROWS) {
        j->isa->linear_small(w, s, n, in, w->columns, j->n, out);
    } else {
        uint32_t rows[BLOCK_TILES];
        for (uint32_t t = 0; t < nt; t++)
            rows[t] = tile_rows(j, t0 + t);
        j->isa->linear_block(w, s, n, in + t0 * tile_floats(w->columns), rows, nt, out);
    }
}

/* How many strips from s on lie together: of one piece, their blocks of a leaf one after another. */
static uint32_t strips_together(const struct k_linear *w, uint32_t s, uint32_t end, uint32_t limit) {
    const struct strip *first = &w->strips[s];
    const uint64_t bytes = w->pieces[first->piece].form.bytes;
    uint32_t n = 1;
    while (n < limit && s + n < end && first[n].piece == first->piece &&
            first[n].leaf_stride == first->leaf_stride && first[n].data == first->data + n * bytes)
        n++;
    return n;
}
/* How many strips, at most, one call of a body may take. */
static uint32_t strips_limit(const struct product_job *j, uint32_t s) {
    const uint32_t rows = j->n < BLOCK_ROWS ? j->n : BLOCK_ROWS;
    if (j->n > SMALL_ROWS && takes(j, &j->p->w->pieces[j->p->w->strips[s].piece]) != K_ACTIVATIONS_INT8)
        return 2;
    return OUT_MAX / rows < GROUP_STRIPS ? OUT_MAX / rows : GROUP_STRIPS;
}

/* Units u .. end - 1. */
static void units_run(const struct product_job *j, uint32_t u, uint32_t end) {
    const struct product *p = j->p;
    _Alignas(64) float out[OUT_MAX * 16], second[OUT_MAX * 16];
    for (uint32_t n; u < end; u += n) {
        n = strips_together(p->w, u, end, strips_limit(j, u));
        if (p->gate_up)
            n = strips_together(p->w, j->units + u, j->units + u + n, strips_limit(j, j->units + u));
        for (uint32_t t0 = 0; t0 < j->n_tiles; t0 += BLOCK_TILES) {
            const uint32_t nt = j->n_tiles - t0 < BLOCK_TILES ? j->n_tiles - t0 : BLOCK_TILES,
                           row0 = tile_first(j->n, j->n_tiles, t0),
                           rows = tile_first(j->n, j->n_tiles, t0 + nt) - row0;
            strips_times_tiles(j, u, n, t0, nt, out);
            if (p->gate_up)
                strips_times_tiles(j, j->units + u, n, t0, nt, second);
            for (uint32_t i = 0; i < n; i++)
                store_strip(j, u + i, out + (uint64_t)i * rows * 16, second + (uint64_t)i * rows * 16, row0,
                        rows);
        }
    }
}

/* The next units of a share: to the end of a group of strips, which is one stream. With many rows, when arithmetic
 * takes longer than memory, no more than half of what is left, so that the threads end together. Returns how many;
 * 0 = none are left. */
static uint32_t share_take(const struct product_job *j, struct share *share, uint32_t *ret_first) {
    uint32_t from = atomic_load_explicit(&share->next, memory_order_relaxed), n;
    do {
        if (from >= share->end)
            return 0;
        const uint32_t left = share->end - from,
                       in_piece = from - j->p->w->pieces[j->p->w->strips[from].piece].first_strip;
        n = GROUP_STRIPS - in_piece % GROUP_STRIPS;
        if (j->n_tiles > 1 && n > left / 2)
            n = left / 2 > UNITS_LEAST ? (left / 2) & ~(UNITS_LEAST - 1) : UNITS_LEAST;
        n = left < n ? left : n;
    } while (!atomic_compare_exchange_weak_explicit(
            &share->next, &from, from + n, memory_order_relaxed, memory_order_relaxed));
    *ret_first = from;
    return n;
}
/* A thread's share of the strips, then what others have left of theirs. */
static void strips_task(void *arg, uint32_t task) {
    struct product_job *j = arg;
    for (uint32_t i = 0; i < j->n_shares; i++) {
        struct share *share = &j->shares[(task + i) % j->n_shares];
        for (uint32_t first, n; (n = share_take(j, share, &first)) != 0;)
            units_run(j, first, first + n);
    }
}
static uint32_t share_first(uint32_t units, uint32_t i, uint32_t n_shares) {
    const uint64_t least = (units + UNITS_LEAST - 1) / UNITS_LEAST,
                   first = least * i / n_shares * UNITS_LEAST;
    return first < units ? (uint32_t)first : units;
}
static uint32_t share_count(uint32_t threads) {
    return threads < SHARES_MAX ? threads : SHARES_MAX;
}
static void share_out(struct product_job *j, uint32_t threads) {
    j->n_shares = share_count(threads);
    for (uint32_t i = 0; i < j->n_shares; i++) {
        atomic_init(&j->shares[i].next, share_first(j->units, i, j->n_shares));
        j->shares[i].end = share_first(j->units, i + 1, j->n_shares);
    }
}

/* Byte `at` of what a thread with the share from unit u on reads first: group after group, gate and up by turns.
 * NULL = behind its last group. */
static const uint8_t *share_byte(const struct k_linear *w, uint32_t u, uint32_t end, uint64_t at) {
    const uint32_t halves = w->gate_up ? 2 : 1;
    for (uint32_t n; u < end; u += n) {
        n = strips_together(w, u, end, GROUP_STRIPS);
        for (uint32_t h = 0; h < halves; h++) {
            const struct strip *s = &w->strips[h * (w->n_strips / 2) + u];
            const uint64_t bytes =
                    (w->leaves - 1) * s->leaf_stride + (uint64_t)n * w->pieces[s->piece].form.bytes;
            if (at < bytes)
                return s->data + at;
            at -= bytes;
        }
    }
    return NULL;
}
/* What a thread fetches into its cache while it waits: the beginning of its share of the next linear. */
static uint64_t read_ahead(const void *arg, uint32_t self, uint32_t threads, uint64_t at) {
    const struct k_linear *w = arg;
    const uint32_t units = w->gate_up ? w->n_strips / 2 : w->n_strips, n = share_count(threads);
    if (self >= n || at >= READ_AHEAD)
        return TEAM_IDLE_DONE;
    const uint8_t *from = share_byte(w, share_first(units, self, n), share_first(units, self + 1, n), at);
    if (!from)
        return TEAM_IDLE_DONE;
    for (uint32_t i = 0; i < READ_STEP; i += 64)
        __builtin_prefetch(from + i, /* rw= */ 0, /* locality= */ 2);
    return at + READ_STEP;
}

static void run_chunk(struct k_stream *s, struct product_job *j, float *scratch) {
    const struct k_linear *w = j->p->w;
    const uint32_t threads = team_threads(s->context->team);
    j->n_tiles = tile_count(j->n);
    lay_out(j, scratch);
    j->units = j->p->gate_up ? w->n_strips / 2 : w->n_strips;
    share_out(j, threads);
    stream_run(s, prepare_tile, j, j->n_tiles);
    const struct team_idle idle = {.fn = w->next ? read_ahead : NULL, .arg = w->next};
    team_run_idle(s->context->team, strips_task, j, threads, &idle);
}

void product_run(struct k_stream *s, const struct product *p, float *scratch) {
    struct product_job j = {.p = p, .isa = stream_isa(s)};
    for (uint32_t i = 0; i < p->w->n_pieces; i++) {
        const struct piece *piece = &p->w->pieces[i];
        if (takes(&j, piece) == K_ACTIVATIONS_INT8)
            j.cuts[piece->cut] = true;
        else if (takes(&j, piece) == K_ACTIVATIONS_BF16)
            j.rounds = true;
        else
            j.floats = true;
    }
    for (; j.first < p->n; j.first += j.n) {
        j.n = p->n - j.first < CHUNK_ROWS ? p->n - j.first : CHUNK_ROWS;
        run_chunk(s, &j, scratch);
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
