/* product.c - multiplying activations with packed weights: how an operation of kernels.h becomes kernels.
 *
 * Two steps for every product: the rows are brought into a form once (quantise.cu), then each panel of the linear
 * that takes this form is multiplied. INT4 and INT8 weights take INT8 activations (stream.cu, tile.cu), all others,
 * and those where the context wants float activations, terms of bf16 (terms.cu, terms_tile.cu). Which kernel of a
 * form that is never changes a bit. A linear of both forms multiplies the small part, in terms, beside the large one.
 * Scratch, from the start of the stream's workspace: the rows as INT8, the sums of tiles that blocks share, the rows
 * as terms, sums of their tiles, and the outputs of gate and up where they are not one kernel's. */
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
static uint64_t rows_bytes(uint64_t columns, uint64_t rows) {
    return rows_as_codes_bytes(columns, rows) + terms_bytes(columns, rows) +
           (rows > STREAM_ROWS ? TERMS_PARTS * sizeof(float) : 0);
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
    float *d_y;
};

/* Where a product's outputs go, and how. */
struct outputs {
    bool pair; /* silu(gate) * up, by the kernel */
    float *d_y;
    uint32_t ldy;
};

static struct input input_of(const struct product *p) {
    return (struct input){.d_x = p->d_x,
            .d_norm = p->d_norm,
            .d_order = p->w->d_order,
            .d_plan = p->b->view.d_plan,
            .eps = p->eps,
            .columns = p->w->columns,
            .leaf_columns = p->w->leaf_columns,
            .runs = (p->w->leaf_columns + ACTIVATION_RUN - 1) / ACTIVATION_RUN};
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
/* All panels that take INT8 activations, which are made in d_scratch unless a product does it itself. Beside the branch
 * (`both`) it does not: it would take the whole device before the branch's product has its place. */
static bool multiply_codes(
        struct k_stream *s, const struct product *p, bool both, uint8_t *d_scratch, const struct outputs *o) {
    const uint32_t rows = p->b->bounds.rows, row_tiles = (uint32_t)row_tiles_of(rows);
    const uint64_t runs = runs_of(p->w->columns);
    uint8_t *d_scales = d_scratch + codes_bytes(runs, row_tiles);
    const struct quantise_args q = {.in = input_of(p),
            .to = {.d_codes = d_scratch, .d_scales = (float *)d_scales, .row_tiles = row_tiles}};
    const bool own = !both && all_own(s, p->w, INPUT_CODES, &q.in, rows);
    bool well = own || CUDA_QUEUED(s, queue_quantise(s->stream, &q, rows));
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
                .d_parts = (float *)(d_scales + scales_bytes(runs, row_tiles)),
                .d_counters = s->d_counters};
        if (input_form(s, &a.w) == INPUT_CODES)
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
/* Forms of terms share their scratch. */
static bool takes_other_terms(const struct k_stream *s, const struct k_linear *w, enum input_form form) {
    for (enum input_form other = INPUT_CODES + 1; other < INPUT_FORMS; other++)
        if (other != form && takes(s, w, other))
            return true;
    return false;
}
/* All panels that take the terms of `form`: TERMS_ROWS rows after another, which bounds the scratch. beside: on the
 * branch, beside what s->stream is given next. A device that is full of that has no place for the branch, so what comes
 * before its products must not be in their way: of few rows it is before the fork. */
static bool multiply_terms(struct k_stream *s, const struct product *p, enum input_form form, bool beside,
        uint8_t *d_scratch, const struct outputs *o) {
    const uint32_t rows = p->b->bounds.rows;
    struct terms_args t = {.in = input_of(p),
            .to = {.d_terms = d_scratch, .row_tiles = (uint32_t)terms_tiles_of(rows), .n = terms_of[form].n},
            .order = terms_of[form].order};
    const bool own = form == INPUT_TERMS && all_own(s, p->w, form, &t.in, rows),
               few = rows <= FEW_ROWS && !takes_other_terms(s, p->w, form);
    bool well = !beside || few || stream_fork(s);
    for (; t.first_row < rows && well; t.first_row += TERMS_ROWS) {
        const uint32_t left = rows - t.first_row;
        cudaStream_t stream = beside ? s->branch.stream : s->stream;
        well = own || CUDA_QUEUED(s, queue_terms(beside && few ? s->stream : stream, &t,
                                             left < TERMS_ROWS ? left : TERMS_ROWS));
        if (well && beside && few)
            well = stream_fork(s);
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
                    .d_parts = (float *)(d_scratch + terms_bytes(p->w->columns, rows)),
                    .d_counters = s->d_counters + SPLIT_BLOCKS_MAX};
            if (input_form(s, &a.w) == form)
                well = multiply_terms_panel(s, stream, &a, rows);
        }
    }
    return well;
}

/* All panels, of whatever form. */
static bool multiply(
        struct k_stream *s, const struct product *p, uint8_t *d_scratch, const struct outputs *o) {
    uint8_t *d_terms = d_scratch + rows_as_codes_bytes(p->w->columns, p->b->bounds.rows);
    const bool codes = takes(s, p->w, INPUT_CODES);
    bool terms = false, well = true;
    for (enum input_form form = INPUT_CODES + 1; form < INPUT_FORMS && well; form++) {
        if (!takes(s, p->w, form))
            continue;
        well = multiply_terms(s, p, form, codes, d_terms, o);
        terms = true;
    }
    return well && (!codes || multiply_codes(s, p, terms, d_scratch, o)) &&
           (!(codes && terms) || stream_join(s));
}

static void product_run(struct k_stream *s, const struct product *p) {
    const struct k_linear *w = p->w;
    const uint64_t rows = p->b->bounds.rows;
    const bool pair = p->gate_up && w->n_panels == 1 && takes(s, w, INPUT_CODES);
    struct outputs o = {.pair = pair, .d_y = p->d_y, .ldy = pair ? w->rows / 2 : w->rows};
    if (p->gate_up && !w->halves) {
        stream_fault(s, -EINVAL, "%s: gate and up must be two pieces of equally many rows", w->name);
        return;
    }
    if (rows == 0 || !CUDA_QUEUED(s, cudaSetDevice(s->context->device)))
        return;
    uint8_t *d_scratch =
            stream_scratch(s, product_scratch_bytes(w->columns, rows, p->gate_up && !pair ? w->rows : 0));
    if (!d_scratch)
        return;
    if (p->gate_up && !pair)
        o.d_y = (float *)(d_scratch + rows_bytes(w->columns, rows));
    const bool well = multiply(s, p, d_scratch, &o);
    const struct silu_args silu = {
            .d_both = o.d_y, .d_plan = p->b->view.d_plan, .d_y = p->d_y, .n = w->rows / 2};
    if (well && p->gate_up && !pair)
        CUDA_QUEUED(s, queue_silu(s->stream, &silu, (uint32_t)rows));
}

/* --- the operations --- */

void k_norm_project(struct k_stream *s, const struct k_batch *b, const float *x, const float *norm, float eps,
        const struct k_linear *w, float *y) {
    const struct product p = {.b = b, .w = w, .d_x = x, .d_norm = norm, .eps = eps, .d_y = y};
    product_run(s, &p);
}
void k_norm_gate_up(struct k_stream *s, const struct k_batch *b, const float *x, const float *norm, float eps,
        const struct k_linear *w, float *y) {
    const struct product p = {
            .b = b, .w = w, .d_x = x, .d_norm = norm, .eps = eps, .gate_up = true, .d_y = y};
    product_run(s, &p);
}
void k_project_partial(
        struct k_stream *s, const struct k_batch *b, const struct k_linear *w, const float *in, float *part) {
    const struct product p = {.b = b, .w = w, .d_x = in, .d_y = part};
    product_run(s, &p);
}
/* A group is one rank so far: it adds what it multiplies where it belongs, which is the same sum. */
void k_project_residual(struct k_stream *s, struct k_comm *m, const struct k_batch *b,
        const struct k_linear *w, const float *in, float *part, float *x) {
    const struct product p = {.b = b, .w = w, .d_x = in, .d_y = x, .add = true};
    (void)m;
    (void)part;
    product_run(s, &p);
}
void k_project(
        struct k_stream *s, const struct k_batch *b, const float *x, const struct k_linear *w, float *y) {
    const struct product p = {.b = b, .w = w, .d_x = x, .d_y = y};
    product_run(s, &p);
}
