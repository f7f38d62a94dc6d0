/* product.c - multiplying activations with packed weights: how an operation of kernels.h becomes kernels.
 *
 * Two steps for every product: the rows become INT8 once (quantise.cu), then each panel of the linear is multiplied
 * (stream.cu, tile.cu). Which kernel that is never changes a bit. Scratch, from the start of the stream's workspace:
 * codes, scales, sums of tiles that blocks share, and the outputs of gate and up where they have no form in common. */
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
uint64_t product_scratch_bytes(uint64_t columns, uint64_t rows, uint64_t outputs) {
    const uint64_t runs = runs_of(columns), row_tiles = row_tiles_of(rows);
    return codes_bytes(runs, row_tiles) + scales_bytes(runs, row_tiles) + parts_bytes(rows) +
           align64(rows * outputs * sizeof(float));
}

struct product {
    const struct k_batch *b;
    const struct k_linear *w;
    const float *d_x, *d_norm; /* d_norm: NULL = none */
    float eps;
    bool gate_up, add; /* add: y += instead of y = */
    float *d_y;
};

/* The activations of the product, in the first of `scratch`; false: a fault was kept. */
static bool quantise(
        struct k_stream *s, const struct product *p, uint8_t *d_scratch, struct activations *ret) {
    const uint32_t rows = p->b->bounds.rows,
                   runs = (p->w->leaf_columns + ACTIVATION_RUN - 1) / ACTIVATION_RUN;
    ret->row_tiles = (uint32_t)row_tiles_of(rows);
    ret->d_codes = d_scratch;
    ret->d_scales = (float *)(d_scratch + codes_bytes(runs_of(p->w->columns), ret->row_tiles));
    const struct quantise_args a = {.d_x = p->d_x,
            .d_norm = p->d_norm,
            .d_order = p->w->d_order,
            .d_plan = p->b->view.d_plan,
            .eps = p->eps,
            .columns = p->w->columns,
            .leaf_columns = p->w->leaf_columns,
            .runs = runs,
            .to = *ret};
    return CUDA_QUEUED(s, queue_quantise(s->stream, &a, rows));
}

/* One panel: few rows as a stream, more in tiles, and as streams of 16 rows where those have no form for it. */
static bool multiply_panel(struct k_stream *s, struct product_args *a, uint32_t rows) {
    if (rows > STREAM_ROWS && tiles_can(&a->w))
        return CUDA_QUEUED(s, queue_tiles(s->stream, a, rows, &s->context->size));
    for (a->first_row = 0; a->first_row < rows; a->first_row += STREAM_ROWS)
        if (!CUDA_QUEUED(s, queue_stream(s->stream, a, rows, &s->context->size)))
            return false;
    return true;
}
/* All panels of w; pair: there is one, of gate and up. */
static void multiply(struct k_stream *s, const struct product *p, const struct activations *x, bool pair,
        float *d_y, uint32_t ldy) {
    const uint64_t runs = runs_of(p->w->columns);
    struct product_args a = {.x = *x,
            .d_plan = p->b->view.d_plan,
            .pair = pair,
            .add = p->add,
            .d_y = d_y,
            .ldy = ldy,
            .d_parts = (float *)((uint8_t *)x->d_scales + scales_bytes(runs, x->row_tiles)),
            .d_counters = s->d_counters};
    for (uint32_t i = 0; i < p->w->n_panels; i++) {
        a.w = p->w->panels[i];
        if (!multiply_panel(s, &a, p->b->bounds.rows))
            return;
    }
}

static void product_run(struct k_stream *s, const struct product *p) {
    const struct k_linear *w = p->w;
    const uint64_t rows = p->b->bounds.rows;
    const bool pair = p->gate_up && w->n_panels == 1;
    struct activations x;
    if (p->gate_up && !w->halves) {
        stream_fault(s, -EINVAL, "%s: gate and up must be two pieces of equally many rows", w->name);
        return;
    }
    if (rows == 0 || !CUDA_QUEUED(s, cudaSetDevice(s->context->device)))
        return;
    const uint64_t before = product_scratch_bytes(w->columns, rows, 0);
    uint8_t *d_scratch =
            stream_scratch(s, product_scratch_bytes(w->columns, rows, p->gate_up && !pair ? w->rows : 0));
    if (!d_scratch || !quantise(s, p, d_scratch, &x))
        return;
    if (!p->gate_up || pair) {
        multiply(s, p, &x, pair, p->d_y, pair ? w->rows / 2 : w->rows);
        return;
    }
    const struct silu_args silu = {.d_both = (float *)(d_scratch + before),
            .d_plan = p->b->view.d_plan,
            .d_y = p->d_y,
            .n = w->rows / 2};
    multiply(s, p, &x, /* pair= */ false, (float *)(d_scratch + before), w->rows);
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
