/* product.c - multiplying activations with packed weights: how an operation of kernels.h becomes kernels.
 *
 * Two steps for every product: the rows are brought into a form once (quantise.cu), then each panel of the linear
 * that takes this form is multiplied. INT4 and INT8 weights take INT8 activations (stream.cu, tile.cu), all others,
 * and those where the context wants float activations, terms of bf16 (terms.cu, terms_tile.cu). Which kernel of a
 * form that is never changes a bit. A linear of both forms multiplies the small part, in terms, beside the large one.
 * Scratch, from the start of the stream's workspace: the rows as INT8, the sums of tiles that blocks share, the rows
 * as terms, sums of their tiles, and the outputs of gate and up where they are not one kernel's. An operation whose
 * result the next product takes as INT8, or as terms, may leave it so, at the end of the workspace (made_wanted()).
 * A product that another one follows at once asks for the beginning of that one's weights (ahead.h).
 *
 * Under fast numerics a library multiplies many rows with BF16 weights, where the machine has it (blas.h). It is given
 * the rows as bf16, and weights as rows, as many outputs at a time as the rest of the workspace has room for. */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/comm.h"
#include "kernels/cuda/exchange.h"
#include "kernels/cuda/internal.h"
#include "kernels/shared/pool_layout.h"

#include <assert.h>
#include <errno.h>

static uint64_t runs_of(uint64_t columns) { /* of a row, at most: the last one of every leaf may be short */
    return columns / ACTIVATION_RUN + K_LEAVES;
}
static uint64_t codes_bytes(uint64_t runs, uint64_t row_tiles) {
    return runs * row_tiles * 8 * ACTIVATION_RUN;
}
static uint64_t scales_bytes(uint64_t runs, uint64_t row_tiles) {
    return align64(runs * row_tiles * 8 * sizeof(float));
}
static uint64_t row_tiles_of(uint64_t rows) {
    return rows > STREAM_ROWS ? (rows + TILE_ROWS - 1) / TILE_ROWS * (TILE_ROWS / 8) : (rows + 7) / 8;
}
static uint64_t parts_bytes(uint64_t rows) {
    return rows > STREAM_ROWS ? SPLIT_BLOCKS_MAX * TILE_PARTS * sizeof(float) : 0;
}
static uint64_t terms_tiles_of(uint64_t rows) { /* of the rows that are terms at once */
    return row_tiles_of(rows < TERMS_ROWS ? rows : TERMS_ROWS);
}
static uint64_t terms_bytes(uint64_t columns, uint64_t rows) {
    return runs_of(columns) * terms_tiles_of(rows) * TERMS * TERM_BYTES;
}
/* Of the rows: as INT8, and behind them as terms; each with the sums of shared tiles. */
static uint64_t rows_as_codes_bytes(uint64_t columns, uint64_t rows) {
    const uint64_t runs = runs_of(columns), row_tiles = row_tiles_of(rows);
    return codes_bytes(runs, row_tiles) + scales_bytes(runs, row_tiles) + parts_bytes(rows);
}
#define ALIGNMENT    256u
#define BLAS_ROWS    512u  /* the least of a step for which unpacking weights pays */
#define BLAS_OUTPUTS 1024u /* at a time, at least: what the scratch of other products has room for anyhow */
static uint64_t blas_bytes(uint64_t columns, uint64_t rows) {
    const uint64_t row = runs_of(columns) * ACTIVATION_RUN * sizeof(uint16_t);
    return rows < BLAS_ROWS ? 0 : ALIGNMENT + BLAS_WORKSPACE + (rows + BLAS_OUTPUTS) * row;
}
static uint64_t rows_bytes(uint64_t columns, uint64_t rows) {
    const uint64_t own = rows_as_codes_bytes(columns, rows) + terms_bytes(columns, rows) +
                         (rows > STREAM_ROWS ? TERMS_PARTS * sizeof(float) : 0),
                   blas = blas_bytes(columns, rows);
    return own > blas ? own : blas;
}
uint64_t product_scratch_bytes(uint64_t columns, uint64_t rows, uint64_t outputs) {
    return rows_bytes(columns, rows) + align64(rows * outputs * sizeof(float));
}

#define FEW_ROWS 64u /* of which terms are made in less time than their product takes */
static_assert(FEW_ROWS <= TERMS_ROWS, "few rows are terms at once");

struct product {
    const struct k_batch *b;
    const struct k_linear *w;
    const float *d_x, *d_norm; /* d_norm: NULL = none */
    float eps;
    bool gate_up, add; /* add: y += instead of y = */
    bool then_next;    /* w->next is multiplied right after it */
    float *d_y;
    struct made made; /* of x; or there are none */
    struct push_view push;
};

/* Where a product's outputs go, and how. */
struct outputs {
    bool pair; /* silu(gate) * up, by the kernel */
    float *d_y;
    uint32_t ldy;
    struct next_codes next;
};

static uint32_t runs_of_leaf(const struct k_linear *w) {
    return (w->leaf_columns + ACTIVATION_RUN - 1) / ACTIVATION_RUN;
}
static struct input input_of(const struct product *p) {
    return (struct input){.d_x = p->d_x,
            .d_norm = p->d_norm,
            .d_order = p->w->d_order,
            .d_plan = p->b->view.d_plan,
            .eps = p->eps,
            .columns = p->w->columns,
            .leaf_columns = p->w->leaf_columns,
            .runs = runs_of_leaf(p->w)};
}

/* What a panel multiplies: INT8, or so many terms in this order. */
enum input_form {
    INPUT_CODES,
    INPUT_TERMS,
    INPUT_BF16,
    INPUT_TERMS_OF_CODES,
    INPUT_BF16_OF_CODES,
    INPUT_FORMS
};
static const struct {
    enum terms_order order;
    uint32_t n;
} terms_of[INPUT_FORMS] = {[INPUT_TERMS] = {TERMS_PLAIN, TERMS},
        [INPUT_BF16] = {TERMS_PLAIN, 1},
        [INPUT_TERMS_OF_CODES] = {TERMS_CODES, TERMS},
        [INPUT_BF16_OF_CODES] = {TERMS_CODES, 1}};
static enum input_form input_form(const struct k_stream *s, const struct panel *w) {
    static const enum input_form of_codes[] = {[K_ACTIVATIONS_INT8] = INPUT_CODES,
            [K_ACTIVATIONS_BF16] = INPUT_BF16_OF_CODES,
            [K_ACTIVATIONS_FLOAT] = INPUT_TERMS_OF_CODES};
    if (w->form == FORM_INT4 || w->form == FORM_INT8)
        return of_codes[s->context->activations];
    return s->context->fast && form_takes_bf16((enum weight_form)w->form) ? INPUT_BF16 : INPUT_TERMS;
}
static bool takes(const struct k_stream *s, const struct k_linear *w, enum input_form form) {
    for (uint32_t i = 0; i < w->n_panels; i++)
        if (input_form(s, &w->panels[i]) == form)
            return true;
    return false;
}

/* --- what the product after it begins with --- */

/* As much as memory brings while blocks end and the next ones make ready, in parts of the cache, which grows with the
 * memory's speed from card to card. More would keep a kernel from ending; of one row the end is short. */
#define AHEAD_OF_L2     6u
#define AHEAD_OF_L2_ROW 12u
/* Of w's first panel, strips as they are multiplied first; nothing if it is not one of codes. */
static struct ahead ahead_of(const struct k_stream *s, const struct k_linear *w, uint32_t rows) {
    if (!w || input_form(s, &w->panels[0]) != INPUT_CODES)
        return (struct ahead){.codes = {.ranges = 0}};
    const struct panel *p = &w->panels[0];
    const uint32_t halves = w->halves && w->n_panels == 1 ? 2 : 1, strips = p->strips / halves,
                   codes = p->runs * (p->form == FORM_INT4 ? ACTIVATION_RUN / 2 : ACTIVATION_RUN) *
                           STRIP_ROWS,
                   scales = p->slots * STRIP_ROWS * (p->scale == QUANT_SCALE_F32 ? 4 : 2),
                   ranges = halves * p->leaves;
    const uint64_t most = s->context->size.l2 / (rows > 1 ? AHEAD_OF_L2 : AHEAD_OF_L2_ROW) /
                          ((uint64_t)ranges * (codes + scales));
    const uint32_t n = most < strips ? (uint32_t)most : strips;
    return (struct ahead){.codes = {p->d_codes, (uint64_t)strips * codes, ranges, n * codes},
            .scales = {p->d_scales, (uint64_t)strips * scales, ranges, n * scales}};
}

/* One panel: few rows as a stream, more in tiles, and as streams of 16 rows where those have no form for it. */
static bool multiply_codes_panel(struct k_stream *s, struct product_args *a, uint32_t rows) {
    if (rows > STREAM_ROWS && tiles_can(&a->w))
        return CUDA_QUEUED(s, queue_tiles(s->stream, a, rows, &s->context->size));
    for (a->first_row = 0; a->first_row < rows; a->first_row += STREAM_ROWS)
        if (!CUDA_QUEUED(s, queue_stream(s->stream, a, rows, &s->context->size)))
            return false;
    return true;
}
/* Whether all panels of one form make their activations for themselves. */
static bool all_own(const struct k_stream *s, const struct k_linear *w, enum input_form form,
        const struct input *in, uint32_t rows) {
    bool (*const can)(const struct panel *, const struct input *, uint32_t) =
            form == INPUT_CODES ? stream_can_own : terms_can_own;
    for (uint32_t i = 0; i < w->n_panels; i++)
        if (input_form(s, &w->panels[i]) == form && !can(&w->panels[i], in, rows))
            return false;
    return true;
}
/* Where a product's rows are in the forms of its panels, and which of them are there already. */
struct forms {
    struct activations codes;
    struct terms terms; /* of the one form that is made before, else only where */
    float *d_codes_parts, *d_terms_parts;
    bool codes_made, terms_made;
};
static struct activations codes_at(uint8_t *d_at, uint64_t columns, uint64_t rows) {
    const uint64_t row_tiles = row_tiles_of(rows);
    return (struct activations){.d_codes = d_at,
            .d_scales = (float *)(d_at + codes_bytes(runs_of(columns), row_tiles)),
            .row_tiles = (uint32_t)row_tiles};
}
static struct forms forms_at(const struct product *p, uint8_t *d_scratch) {
    const uint64_t columns = p->w->columns, rows = p->b->bounds.rows,
                   codes = rows_as_codes_bytes(columns, rows);
    return (struct forms){.codes = codes_at(d_scratch, columns, rows),
            .terms = {.d_terms = d_scratch + codes, .row_tiles = (uint32_t)terms_tiles_of(rows)},
            .d_codes_parts = (float *)(d_scratch + codes - parts_bytes(rows)),
            .d_terms_parts = (float *)(d_scratch + codes + terms_bytes(columns, rows))};
}

/* All panels that take INT8 activations, which are made here unless they are there or a product does it itself. dense:
 * NULL, or a panel that the first of them takes in, whose terms are there unless the product makes them too. */
static bool multiply_codes(struct k_stream *s, const struct product *p, const struct forms *f,
        const struct panel *dense, const struct outputs *o) {
    const uint32_t rows = p->b->bounds.rows;
    const struct quantise_args q = {.in = input_of(p), .to = f->codes};
    const bool own = !f->codes_made && all_own(s, p->w, INPUT_CODES, &q.in, rows);
    bool well = own || f->codes_made || CUDA_QUEUED(s, queue_quantise(s->stream, &q, rows));
    for (uint32_t i = 0; i < p->w->n_panels && well; i++) {
        struct product_args a = {.w = p->w->panels[i],
                .x = q.to,
                .in = q.in,
                .own = own,
                .d_plan = q.in.d_plan,
                .pair = o->pair,
                .add = p->add,
                .d_y = o->d_y,
                .ldy = o->ldy,
                .next = o->next,
                .push = p->push,
                .d_parts = f->d_codes_parts,
                .d_counters = s->d_counters};
        if (input_form(s, &a.w) != INPUT_CODES)
            continue;
        if (dense) {
            a.dense = *dense;
            a.dense_x = f->terms;
            dense = NULL;
        }
        if (p->then_next && i + 1 == p->w->n_panels)
            a.ahead = ahead_of(s, p->w->next, rows);
        well = multiply_codes_panel(s, &a, rows);
    }
    return well;
}
/* One panel and what are terms now: few rows as a stream, more in tiles where those have its form. */
static bool multiply_terms_panel(
        struct k_stream *s, cudaStream_t stream, const struct terms_product_args *a, uint32_t rows) {
    if (rows - a->first_row > STREAM_ROWS && terms_tiles_can(&a->w))
        return a->x.n == 1 ? CUDA_QUEUED(s, queue_bf16_tiles(stream, a, rows, &s->context->size))
                           : CUDA_QUEUED(s, queue_terms_tiles(stream, a, rows, &s->context->size));
    return CUDA_QUEUED(s, queue_terms_product(stream, a, rows, &s->context->size));
}
/* All panels that take the terms of `form`: TERMS_ROWS rows after another, which bounds the scratch. beside: on the
 * branch, beside what s->stream is given next. */
static bool multiply_terms(struct k_stream *s, const struct product *p, enum input_form form, bool beside,
        const struct forms *f, const struct outputs *o) {
    const uint32_t rows = p->b->bounds.rows;
    const cudaStream_t stream = beside ? s->branch.stream : s->stream;
    struct terms_args t = {.in = input_of(p), .to = f->terms, .order = terms_of[form].order};
    t.to.n = terms_of[form].n;
    const bool own = !f->terms_made && all_own(s, p->w, form, &t.in, rows);
    bool well = !beside || stream_fork(s);
    for (; t.first_row < rows && well; t.first_row += TERMS_ROWS) {
        const uint32_t left = rows - t.first_row;
        well = own || f->terms_made ||
               CUDA_QUEUED(s, queue_terms(stream, &t, left < TERMS_ROWS ? left : TERMS_ROWS));
        for (uint32_t i = 0; i < p->w->n_panels && well; i++) {
            const struct terms_product_args a = {.w = p->w->panels[i],
                    .x = t.to,
                    .in = t.in,
                    .own = own,
                    .d_plan = t.in.d_plan,
                    .first_row = t.first_row,
                    .add = p->add,
                    .d_y = o->d_y,
                    .ldy = o->ldy,
                    .d_parts = f->d_terms_parts,
                    .d_counters = s->d_counters + SPLIT_BLOCKS_MAX};
            if (input_form(s, &a.w) == form)
                well = multiply_terms_panel(s, stream, &a, rows);
        }
    }
    return well;
}

/* The only form of terms that a linear's panels take; INPUT_CODES: none or several, which share their scratch. */
static enum input_form only_terms(const struct k_stream *s, const struct k_linear *w) {
    enum input_form only = INPUT_CODES;
    for (enum input_form form = INPUT_CODES + 1; form < INPUT_FORMS; form++) {
        if (!takes(s, w, form))
            continue;
        if (only != INPUT_CODES)
            return INPUT_CODES;
        only = form;
    }
    return only;
}
/* Of a linear of both forms, the panel of terms that the kernel of its first panel of codes can take in; NULL: none, or
 * they are several. */
static const struct panel *dense_part(const struct k_stream *s, const struct k_linear *w, uint32_t rows) {
    const struct panel *large = NULL, *dense = NULL;
    for (uint32_t i = 0; i < w->n_panels; i++) {
        const struct panel *panel = &w->panels[i];
        if (input_form(s, panel) != INPUT_CODES && dense)
            return NULL;
        if (input_form(s, panel) != INPUT_CODES)
            dense = panel;
        else if (!large)
            large = panel;
    }
    return large && dense && input_form(s, dense) == INPUT_TERMS && stream_can_take(large, dense, rows)
                   ? dense
                   : NULL;
}
/* Few rows of a linear of both forms: one kernel makes both. A device that is full of the large part has no place for
 * the branch, so nothing but its product is to be there. */
static bool make_both(struct k_stream *s, const struct product *p, enum input_form form, struct forms *f) {
    f->terms.n = terms_of[form].n;
    f->codes_made = f->terms_made = true;
    const struct both_args both = {
            .in = input_of(p), .codes = f->codes, .terms = f->terms, .order = terms_of[form].order};
    return CUDA_QUEUED(s, queue_both(s->stream, &both, p->b->bounds.rows));
}

/* All panels, of whatever form. */
static bool multiply(
        struct k_stream *s, const struct product *p, uint8_t *d_scratch, const struct outputs *o) {
    const struct k_linear *w = p->w;
    const uint32_t rows = p->b->bounds.rows;
    const struct input in = input_of(p);
    const struct panel *dense = dense_part(s, w, rows);
    const enum input_form only = only_terms(s, w);
    const bool codes = takes(s, w, INPUT_CODES),
               own = dense && all_own(s, w, INPUT_CODES, &in, rows) && all_own(s, w, INPUT_TERMS, &in, rows);
    struct forms f = forms_at(p, d_scratch);
    bool beside = false, well = true;
    if (p->made.d_from) {
        f.codes = p->made.codes;
        f.terms = p->made.terms;
        f.codes_made = f.terms_made = true;
    } else if (codes && only != INPUT_CODES && rows <= FEW_ROWS && !own) {
        well = make_both(s, p, only, &f);
    }
    for (enum input_form form = INPUT_CODES + 1; form < INPUT_FORMS && well && !dense; form++) {
        if (!takes(s, w, form))
            continue;
        well = multiply_terms(s, p, form, codes, &f, o);
        beside = codes;
    }
    return well && (!codes || multiply_codes(s, p, &f, dense, o)) && (!beside || stream_join(s));
}

/* --- by a library --- */

static bool library_takes(const struct k_stream *s, const struct product *p) {
    return s->context->blas && p->w->for_library && p->b->bounds.rows >= BLAS_ROWS &&
           (uintptr_t)p->d_y % 16 == 0;
}
/* The linear's only panel, in `bytes` of scratch: activations, and then its strips in equal shares, each made rows and
 * multiplied. */
static bool multiply_rows(struct k_stream *s, const struct product *p, uint8_t *d_scratch, uint64_t bytes,
        const struct outputs *o) {
    const struct panel *w = &p->w->panels[0];
    const uint32_t rows = p->b->bounds.rows, columns = w->leaves * w->runs * ACTIVATION_RUN;
    const uint64_t row_bytes = columns * sizeof(uint16_t), x_at = BLAS_WORKSPACE,
                   w_at = x_at + rows * row_bytes, room = (bytes - w_at) / (row_bytes * STRIP_ROWS),
                   shares = (w->strips + room - 1) / room;
    const uint32_t share = (uint32_t)((w->strips + shares - 1) / shares);
    const struct rows_args x = {.in = input_of(p), .d_to = d_scratch + x_at};
    bool well = CUDA_QUEUED(s, queue_rows(s->stream, &x, rows));
    for (uint32_t first = 0; first < w->strips && well; first += share) {
        const uint32_t left = w->strips - first, output = first * STRIP_ROWS;
        const struct unpack_args unpack = {.w = *w,
                .first_strip = first,
                .strips = left < share ? left : share,
                .d_to = d_scratch + w_at};
        const struct blas_product product = {
                .outputs = left <= share ? p->w->rows - output : share * STRIP_ROWS,
                .columns = columns,
                .rows = rows,
                .ldy = o->ldy,
                .floats = true,
                .add = p->add};
        struct error e;
        well = CUDA_QUEUED(s, queue_unpack(s->stream, &unpack));
        if (well && blas_multiply(s->context->blas, s->stream, &product, unpack.d_to, x.d_to, o->d_y + output,
                            d_scratch, &e) < 0) {
            stream_refused(s, &e);
            well = false;
        }
    }
    return well;
}

/* --- a result in the forms of the product after it --- */

static uint64_t made_codes_bytes(uint64_t columns, uint64_t rows) {
    const uint64_t runs = runs_of(columns), row_tiles = row_tiles_of(rows);
    return align64(codes_bytes(runs, row_tiles) + scales_bytes(runs, row_tiles));
}
uint64_t made_scratch_bytes(uint64_t columns, uint64_t rows, bool terms) {
    const uint64_t few = rows < FEW_ROWS ? rows : FEW_ROWS;
    return made_codes_bytes(columns, few) + (terms ? terms_bytes(columns, few) : 0) + ALIGNMENT;
}
/* It lies at the end of the workspace, or before what is read there: behind the scratch of who makes it and of who
 * multiplies it. */
bool made_wanted(
        const struct k_stream *s, const struct k_linear *w, const struct made_of *of, struct made *ret) {
    const uint32_t rows = of->b->bounds.rows;
    if (!w || w->d_order || w->columns != of->columns || w->leaf_columns % of->piece || rows > FEW_ROWS)
        return false;
    const enum input_form form = only_terms(s, w);
    bool codes = false, terms = false;
    for (uint32_t i = 0; i < w->n_panels; i++) {
        const bool one = input_form(s, &w->panels[i]) == INPUT_CODES;
        codes = codes || one;
        terms = terms || !one;
    }
    if (terms && (!of->terms || form == INPUT_CODES))
        return false;
    const uint64_t codes_end = codes ? made_codes_bytes(of->columns, rows) : 0,
                   bytes = codes_end + (terms ? terms_bytes(of->columns, rows) : 0),
                   end = of->d_read ? (uint64_t)(of->d_read - s->d_workspace) : s->workspace_bytes;
    if (of->scratch + bytes + ALIGNMENT > end)
        return false;
    uint8_t *d_at = s->d_workspace + (end - bytes) / ALIGNMENT * ALIGNMENT;
    *ret = (struct made){.d_from = of->d_from,
            .d_norm = of->d_norm,
            .eps = of->eps,
            .w = w,
            .b = of->b,
            .rows = rows,
            .d_first = d_at};
    if (codes)
        ret->codes = codes_at(d_at, of->columns, rows);
    if (terms) {
        ret->terms = (struct terms){.d_terms = d_at + codes_end,
                .row_tiles = (uint32_t)terms_tiles_of(rows),
                .n = terms_of[form].n};
        ret->order = terms_of[form].order;
    }
    return true;
}
/* Whether that is x of a product with so much scratch of its own. */
static bool made_for(const struct k_stream *s, const struct product *p, uint64_t scratch) {
    const struct made *made = &s->made;
    return made->d_from == p->d_x && made->d_norm == p->d_norm && made->eps == p->eps && made->w == p->w &&
           made->b == p->b && made->rows == p->b->bounds.rows && made->d_first >= s->d_workspace + scratch;
}
/* What gate and up leave, unless who is next has a better way. */
static bool made_of_pair(const struct k_stream *s, const struct product *p, uint64_t scratch,
        struct made *ret, struct next_codes *ret_next) {
    const struct k_linear *w = p->w->next;
    const uint32_t rows = p->b->bounds.rows;
    const struct made_of of = {.b = p->b,
            .d_from = p->d_y,
            .columns = p->w->rows / 2,
            .piece = STRIP_ROWS,
            .scratch = scratch,
            .d_read = p->made.d_first};
    if (!stream_can_round(&p->w->panels[0], rows) || !made_wanted(s, w, &of, ret) ||
            w->leaves * runs_of_leaf(w) > NEXT_RUNS_MAX)
        return false;
    const struct input in = {.columns = w->columns, .leaf_columns = w->leaf_columns};
    *ret_next = (struct next_codes){.to = ret->codes,
            .leaf_columns = w->leaf_columns,
            .runs = runs_of_leaf(w),
            .d_arrived = s->d_counters + 2 * SPLIT_BLOCKS_MAX};
    if (rows == 1)
        ret_next->d_words = ret_next->d_arrived + NEXT_RUNS_MAX;
    return !all_own(s, w, INPUT_CODES, &in, rows);
}

static void product_run(struct k_stream *s, const struct product *product) {
    struct product p = *product;
    const struct k_linear *w = p.w;
    const uint32_t rows = p.b->bounds.rows;
    const bool pair = p.gate_up && w->n_panels == 1 && takes(s, w, INPUT_CODES), both = p.gate_up && !pair;
    const uint64_t of_rows = rows_bytes(w->columns, rows),
                   scratch = of_rows + (both ? align64((uint64_t)rows * w->rows * sizeof(float)) : 0);
    struct outputs o = {.pair = pair, .d_y = p.d_y, .ldy = pair ? w->rows / 2 : w->rows};
    struct made made = {.d_from = NULL};
    if (p.gate_up && !w->halves) {
        stream_fault(s, -EINVAL, "%s: gate and up must be two pieces of equally many rows", w->name);
        return;
    }
    if (made_for(s, &p, scratch))
        p.made = s->made;
    if (rows == 0 || !CUDA_QUEUED(s, cudaSetDevice(s->context->device)))
        return;
    uint8_t *d_scratch = stream_scratch(s, scratch);
    if (!d_scratch)
        return;
    const bool library = library_takes(s, &p);
    if (both) /* a library's scratch is all that is behind */
        o.d_y = (float *)(d_scratch + (library ? 0 : of_rows));
    const bool leaves_codes = pair && made_of_pair(s, &p, scratch, &made, &o.next);
    if (!leaves_codes)
        o.next = (struct next_codes){.d_arrived = NULL};
    const uint64_t at = (scratch - of_rows + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const bool well = library ? multiply_rows(s, &p, d_scratch + at, s->workspace_bytes - at, &o)
                              : multiply(s, &p, d_scratch, &o);
    const struct silu_args silu = {
            .d_both = o.d_y, .d_plan = p.b->view.d_plan, .d_y = p.d_y, .n = w->rows / 2};
    if (well && both)
        CUDA_QUEUED(s, queue_silu(s->stream, &silu, rows));
    if (well && leaves_codes)
        s->made = made;
    s->expected = w->next;
}

/* --- the operations --- */

void k_norm_project(struct k_stream *s, const struct k_batch *b, const float *x, const float *norm, float eps,
        const struct k_linear *w, float *y) {
    const struct product p = {.b = b, .w = w, .d_x = x, .d_norm = norm, .eps = eps, .d_y = y};
    product_run(s, &p);
}
void k_norm_gate_up(struct k_stream *s, const struct k_batch *b, const float *x, const float *norm, float eps,
        const struct k_linear *w, float *y) {
    const struct product p = {.b = b,
            .w = w,
            .d_x = x,
            .d_norm = norm,
            .eps = eps,
            .gate_up = true,
            .then_next = true,
            .d_y = y};
    product_run(s, &p);
}
void k_project_partial(
        struct k_stream *s, const struct k_batch *b, const struct k_linear *w, const float *in, float *part) {
    const struct product p = {.b = b, .w = w, .d_x = in, .d_y = part};
    product_run(s, &p);
}
/* Whether the exchange of p's result, which x takes, can leave its few rows in the forms of the product after it. */
static bool made_of_sum(const struct k_stream *s, const struct k_comm *m, const struct product *p,
        const float *x, struct made *ret) {
    const struct made_of of = {.b = p->b,
            .d_from = x,
            .d_norm = p->w->next_norm,
            .eps = comm_eps(m),
            .columns = p->w->rows,
            .piece = 4,
            .terms = true};
    return of.d_norm && comm_by_words(m, (uint64_t)p->b->bounds.rows * of.columns) &&
           exchange_rows_can(p->b->bounds.rows, of.columns) && (uintptr_t)x % 16 == 0 &&
           (uintptr_t)p->d_y % 16 == 0 && made_wanted(s, p->w->next, &of, ret);
}
/* Whether p's kernels can send their result while they make it. */
static bool pushes(const struct k_stream *s, const struct product *p) {
    for (uint32_t i = 0; i < p->w->n_panels; i++)
        if (input_form(s, &p->w->panels[i]) != INPUT_CODES)
            return false;
    return p->b->bounds.rows <= STREAM_ROWS;
}
/* x += what all ranks' products give. */
static void project_of_all(struct k_stream *s, struct k_comm *m, const struct product *product, float *x) {
    struct product p = *product;
    const struct k_linear *next = p.w->next;
    struct made made;
    const bool leaves = made_of_sum(s, m, &p, x, &made);
    if (leaves && pushes(s, &p) && !comm_push(s, m, &p.push))
        return;
    product_run(s, &p);
    if (!leaves) {
        comm_add(s, m, p.b, p.d_y, x, p.w->rows);
        return;
    }
    const struct input in = {.d_norm = made.d_norm,
            .d_plan = p.b->view.d_plan,
            .eps = made.eps,
            .columns = p.w->rows,
            .leaf_columns = next->leaf_columns,
            .runs = runs_of_leaf(next)};
    const struct comm_add add = {.b = p.b, .part = p.d_y, .x = x, .pushed = p.push.n > 0};
    comm_add_made(s, m, &add, &in, &made);
}
/* A rank that is alone adds what it multiplies where it belongs, which is the same sum. */
void k_project_residual(struct k_stream *s, struct k_comm *m, const struct k_batch *b,
        const struct k_linear *w, const float *in, float *part, float *x) {
    const bool alone = comm_alone(m);
    const struct product p = {
            .b = b, .w = w, .d_x = in, .d_y = alone ? x : part, .add = alone, .then_next = true};
    if (alone)
        product_run(s, &p);
    else if (b->bounds.rows > 0)
        project_of_all(s, m, &p, x);
}
void k_project(
        struct k_stream *s, const struct k_batch *b, const float *x, const struct k_linear *w, float *y) {
    const struct product p = {.b = b, .w = w, .d_x = x, .d_y = y};
    product_run(s, &p);
}
