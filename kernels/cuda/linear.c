/* linear.c - linears: panels of strips in device memory, in the layout cuda-mma-2 (kernels/layout/cuda_mma.h).
 *
 * Called by tp/ at load. Pieces of one form lie in one panel, so that a product of them is one kernel; of each piece
 * the rank's rows and leaves only. Tiles are copied from where they lie, which need not outlive the linear; other
 * pieces are packed on the host by kernels/layout, stretch after stretch. */
#include "kernels/cuda/internal.h"
#include "kernels/layout/cuda_mma.h"
#include "kernels/shared/check.h"
#include "kernels/shared/dummy.h"
#include "kernels/shared/numbers.h"
#include "kernels/shared/segments.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 256u

const struct k_layout *k_layout_native(void) {
    return &k_layout_cuda_mma;
}

static size_t aligned(size_t n) {
    return (n + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
}

/* --- the plan --- */

enum array { CODES, SCALES, ZEROS, MINIMUMS, ARRAYS };

/* A piece as the layout sees it: (all rows of the view in) a whole matrix of 8 leaves, of which the rank has some. */
struct piece {
    struct k_tiles whole;
    struct cuda_mma_plan plan;
    size_t block[ARRAYS]; /* bytes of one leaf of one strip; 0 = the array is not there */
    uint32_t first_leaf, strips;
    uint32_t panel, first_strip; /* where its strips are */
};
struct plan {
    struct piece pieces[PIECES_MAX];
    struct panel panels[PIECES_MAX];  /* without pointers */
    size_t block[PIECES_MAX][ARRAYS]; /* as of its pieces */
    size_t at[PIECES_MAX][ARRAYS];    /* of the panels' arrays in the linear's memory */
    size_t outputs_at[PIECES_MAX], order_at, bytes;
    uint32_t n_panels;
};

static void piece_describe(struct piece *p, const struct k_matrix_view *v, uint32_t leaf_columns) {
    if (v->tiles) {
        p->whole = *v->tiles;
    } else {
        k_tiles_describe(v, leaf_columns * K_LEAVES, &p->whole);
    }
    p->plan = cuda_mma_plan(&p->whole);
    p->strips = strips_of(v->rows);
    p->first_leaf = v->tiles || v->quant ? v->first_column / leaf_columns : 0;
    const size_t slots = (size_t)p->plan.slots * STRIP_ROWS;
    p->block[CODES] = (size_t)p->plan.runs * p->plan.run_bytes;
    p->block[SCALES] = slots * p->plan.scale_bytes;
    p->block[ZEROS] = p->whole.zeros ? slots : 0;
    p->block[MINIMUMS] = p->whole.minimums ? slots * sizeof(float) : 0;
}

/* Whether the rank's leaves are cut at every multiple of `width` from their start, and nowhere else. */
static bool cut_evenly(const struct piece *p, uint32_t leaves, uint32_t width) {
    const uint32_t n = p->plan.leaf_columns;
    for (uint32_t leaf = p->first_leaf; leaf < p->first_leaf + leaves; leaf++) {
        const uint32_t first = leaf * n;
        for (uint32_t at = first, end; at < first + n; at = end) {
            const uint32_t left = first + n - at;
            end = segment_end(p->whole.group, first, n, at);
            if ((at - first) % width || end - at != (left < width ? left : width))
                return false;
        }
    }
    return p->plan.slots >= p->plan.runs * (ACTIVATION_RUN / width);
}
static uint32_t segments_of(const struct piece *p, uint32_t leaves) {
    if (!p->whole.quantised)
        return 1;
    for (uint32_t segments = 1; segments <= 4 && !p->whole.minimums; segments *= 2)
        if (cut_evenly(p, leaves, ACTIVATION_RUN / segments))
            return segments;
    return SEGMENTS_ANY;
}

static enum weight_form weight_form(const struct k_tiles *t) {
    if (t->quantised)
        return (enum weight_form)t->format;
    return t->dtype == K_BF16 ? FORM_BF16 : t->dtype == K_F16 ? FORM_F16 : FORM_F32;
}
static struct panel panel_form(const struct piece *p, uint32_t leaves) {
    struct panel f = {.leaves = leaves,
            .leaf_columns = p->plan.leaf_columns,
            .runs = p->plan.runs,
            .slots = p->plan.slots,
            .segments = segments_of(p, leaves),
            .form = weight_form(&p->whole),
            .scale = p->whole.scale,
            .zeros = p->whole.zeros,
            .minimums = p->whole.minimums};
    if (f.segments == SEGMENTS_ANY) {
        f.group = p->whole.group;
        f.first_column = p->first_leaf * p->plan.leaf_columns;
    }
    return f;
}
/* The panel that takes strips of this form: an earlier one, or a new one. */
static uint32_t panel_for(struct plan *plan, const struct panel *form) {
    for (uint32_t i = 0; i < plan->n_panels; i++) {
        const struct panel *p = &plan->panels[i];
        if (p->form == form->form && p->scale == form->scale && p->zeros == form->zeros &&
                p->minimums == form->minimums && p->segments == form->segments && p->slots == form->slots &&
                p->group == form->group && p->first_column == form->first_column)
            return i;
    }
    plan->panels[plan->n_panels] = *form;
    return plan->n_panels++;
}

/* Where everything goes; of a spec that linear_check() let through. */
static void plan_make(const struct k_linear_spec *spec, struct plan *plan) {
    memset(plan, 0, sizeof *plan);
    for (uint32_t i = 0; i < spec->n_pieces; i++) {
        struct piece *p = &plan->pieces[i];
        piece_describe(p, &spec->pieces[i], spec->columns / spec->leaves);
        const struct panel form = panel_form(p, spec->leaves);
        p->panel = panel_for(plan, &form);
        p->first_strip = plan->panels[p->panel].strips;
        plan->panels[p->panel].strips += p->strips;
        for (uint32_t a = 0; a < ARRAYS; a++)
            plan->block[p->panel][a] = p->block[a];
    }
    for (uint32_t i = 0; i < plan->n_panels; i++) {
        for (uint32_t a = 0; a < ARRAYS; a++) {
            plan->at[i][a] = plan->bytes;
            plan->bytes += aligned((size_t)spec->leaves * plan->panels[i].strips * plan->block[i][a]);
        }
        plan->outputs_at[i] = plan->bytes;
        plan->bytes += aligned(plan->panels[i].strips * sizeof(struct strip_output));
    }
    plan->order_at = plan->bytes;
    plan->bytes += spec->order ? aligned(spec->columns * sizeof *spec->order) : 0;
}
size_t k_linear_bytes(const struct k_linear_spec *spec) {
    struct plan plan;
    plan_make(spec, &plan);
    return plan.bytes;
}

/* What a whole matrix of 8 leaves cannot be part of. */
static int leaves_check(const struct k_linear_spec *spec, struct error *e) {
    const uint32_t leaf_columns = spec->columns / spec->leaves;
    for (uint32_t i = 0; i < spec->n_pieces; i++) {
        const struct k_matrix_view *v = &spec->pieces[i];
        if (v->quant && v->first_column / leaf_columns + spec->leaves > K_LEAVES)
            return error_set(e, -EINVAL, "%s: column %u begins leaf %u of %u columns; a matrix has %u leaves",
                    spec->name, v->first_column, v->first_column / leaf_columns, leaf_columns, K_LEAVES);
    }
    return 0;
}

/* --- making one --- */

static void set_pointers(struct k_linear *l, const struct plan *plan) {
    for (uint32_t i = 0; i < plan->n_panels; i++) {
        struct panel *p = &l->panels[i];
        *p = plan->panels[i];
        p->d_codes = l->d_memory + plan->at[i][CODES];
        p->d_scales = l->d_memory + plan->at[i][SCALES];
        p->d_zeros = l->d_memory + plan->at[i][ZEROS];
        p->d_minimums = (const float *)(l->d_memory + plan->at[i][MINIMUMS]);
        p->d_outputs = (const struct strip_output *)(l->d_memory + plan->outputs_at[i]);
    }
    l->n_panels = plan->n_panels;
}

static int upload_outputs(struct k_linear *l, const struct k_linear_spec *spec, const struct plan *plan,
        uint32_t panel, struct error *e) {
    struct strip_output *all = calloc(plan->panels[panel].strips, sizeof *all);
    uint32_t column = 0;
    if (!all)
        return error_set(e, -ENOMEM, "%s: no memory", l->name);
    for (uint32_t i = 0; i < spec->n_pieces; column += spec->pieces[i++].rows) {
        const struct piece *p = &plan->pieces[i];
        for (uint32_t s = 0; p->panel == panel && s < p->strips; s++) {
            const uint32_t left = spec->pieces[i].rows - s * STRIP_ROWS;
            all[p->first_strip + s] = (struct strip_output){
                    .column = column + s * STRIP_ROWS, .n_valid = left < STRIP_ROWS ? left : STRIP_ROWS};
        }
    }
    int r = context_upload(l->context, l->d_memory + plan->outputs_at[panel], all,
            plan->panels[panel].strips * sizeof *all, e);
    free(all);
    return r;
}

/* What is not weights: where outputs go, and the order of the inputs. */
static int upload_tables(
        struct k_linear *l, const struct k_linear_spec *spec, const struct plan *plan, struct error *e) {
    int r = 0;
    for (uint32_t i = 0; i < plan->n_panels && r == 0; i++)
        r = upload_outputs(l, spec, plan, i, e);
    if (r < 0 || !spec->order)
        return r;
    return context_upload(
            l->context, l->d_memory + plan->order_at, spec->order, spec->columns * sizeof *spec->order, e);
}

#define LIBRARY_OUTPUTS 256u /* of fewer, our own kernels are as soon done */
/* A library wants outputs side by side, at multiples of 16 bytes. */
static bool library_can(const struct k_linear_spec *spec, const struct plan *plan, uint32_t rows) {
    for (uint32_t i = 0; i + 1 < spec->n_pieces; i++)
        if (spec->pieces[i].rows % STRIP_ROWS)
            return false;
    return plan->n_panels == 1 && plan->panels[0].form == FORM_BF16 && rows >= LIBRARY_OUTPUTS &&
           rows % 4 == 0;
}
static int linear_new(struct k_context *c, const struct k_linear_spec *spec, const struct plan *plan,
        struct k_linear **ret, struct error *e) {
    struct k_linear *l = calloc(1, sizeof *l);
    int r = 0;
    if (!l)
        return error_set(e, -ENOMEM, "%s: no memory", spec->name);
    *l = (struct k_linear){.context = c,
            .columns = spec->columns,
            .leaves = spec->leaves,
            .leaf_columns = spec->columns / spec->leaves,
            .n_pieces = spec->n_pieces,
            .halves = spec->n_pieces == 2 && spec->pieces[0].rows == spec->pieces[1].rows};
    snprintf(l->name, sizeof l->name, "%s", spec->name);
    for (uint32_t i = 0; i < spec->n_pieces; i++)
        l->rows += spec->pieces[i].rows;
    l->for_library = library_can(spec, plan, l->rows) && context_library(c);
    l->d_memory = weights_alloc(c, plan->bytes);
    if (!l->d_memory) {
        r = error_set(e, -ENOMEM, "%s: no memory for %zu bytes of packed weights on device %d", spec->name,
                plan->bytes, c->device);
        goto fail;
    }
    set_pointers(l, plan);
    if (spec->order)
        l->d_order = (const uint32_t *)(l->d_memory + plan->order_at);
    if (!weights_there(c))
        r = upload_tables(l, spec, plan, e);
    if (r < 0)
        goto fail;
    *ret = l;
    return 0;
fail:
    k_linear_free(l);
    return r;
}

/* --- filling it --- */

/* Where leaf `leaf` of the piece's strips goes. */
static uint8_t *stretch_at(const struct k_linear *l, const struct plan *plan, const struct piece *p,
        enum array a, uint32_t leaf) {
    const uint32_t strips = plan->panels[p->panel].strips;
    return l->d_memory + plan->at[p->panel][a] + ((size_t)leaf * strips + p->first_strip) * p->block[a];
}

static int copy_tiles(struct k_linear *l, const struct plan *plan, const struct piece *p,
        const struct k_matrix_view *v, struct error *e) {
    uint32_t n = 0; /* stretches so far: of every array that is there, leaf after leaf */
    for (uint32_t a = 0; a < ARRAYS; a++) {
        for (uint32_t leaf = 0; p->block[a] && leaf < l->leaves; leaf++) {
            const void *from;
            size_t bytes;
            if (!k_layout_cuda_mma.part(v, l->columns, l->leaves, n++, &from, &bytes))
                return error_set(e, -EINVAL, "%s: tiles without all of their arrays", l->name);
            int r = context_send(l->context, stretch_at(l, plan, p, a, leaf), from, bytes, e);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* Leaf `leaf` of an array, whose units begin at first_unit: packed where it will be copied from, as many strips at a
 * time as a staging buffer holds. */
static int pack_leaf(struct k_linear *l, const struct plan *plan, const struct piece *p, enum array a,
        uint32_t leaf, const struct k_layout_source *source, uint32_t first_unit, struct error *e) {
    const size_t block = p->block[a];
    const uint32_t most =
            (uint32_t)((STAGING_BYTES - ALIGNMENT) / block); /* an array's last unit is padded */
    if (most == 0)
        return error_set(e, -ENOTSUP, "%s: %u columns in %u leaves are more than can be packed", l->name,
                l->columns, l->leaves);
    for (uint32_t s = 0; s < p->strips; s += most) {
        const uint32_t n = p->strips - s < most ? p->strips - s : most;
        uint8_t *packed;
        int r = staging_take(l->context, &packed, e);
        if (r < 0)
            return r;
        k_layout_pack_units(&k_layout_cuda_mma, source, first_unit + s, n, l->context->threads, packed);
        r = staging_send(l->context, stretch_at(l, plan, p, a, leaf) + s * block, n * block, e);
        if (r < 0)
            return r;
    }
    return 0;
}
static int pack_piece(struct k_linear *l, const struct plan *plan, const struct piece *p,
        const struct k_matrix_view *v, const uint32_t *order, struct error *e) {
    const struct k_layout_source source = {
            .tiles = &p->whole, .view = v, .order = p->whole.quantised ? NULL : order};
    uint32_t first = 0; /* unit of the array */
    int r = 0;
    for (uint32_t a = 0; a < ARRAYS && r == 0; a++) {
        for (uint32_t leaf = 0; p->block[a] && leaf < l->leaves && r == 0; leaf++)
            r = pack_leaf(l, plan, p, a, leaf, &source, first + (p->first_leaf + leaf) * p->strips, e);
        first += p->block[a] ? K_LEAVES * p->strips : 0;
    }
    return r;
}

int k_linear_pack(
        struct k_context *c, const struct k_linear_spec *spec, struct k_linear **ret, struct error *e) {
    struct plan plan;
    struct k_linear *l = NULL;
    int r = linear_check_weights(spec, e);
    r = r < 0 ? r : linear_check(spec, e);
    r = r < 0 ? r : leaves_check(spec, e);
    if (r < 0)
        return r;
    plan_make(spec, &plan);
    r = linear_new(c, spec, &plan, &l, e);
    for (uint32_t i = 0; i < spec->n_pieces && r == 0 && !weights_there(c); i++) {
        const struct k_matrix_view *v = &spec->pieces[i];
        r = v->tiles ? copy_tiles(l, &plan, &plan.pieces[i], v, e)
                     : pack_piece(l, &plan, &plan.pieces[i], v, spec->order, e);
    }
    r = r < 0 ? r : staging_finish(c, e);
    if (r < 0) {
        k_linear_free(l);
        return r;
    }
    *ret = l;
    return 0;
}

struct dummy {
    uint64_t seed; /* of the linear */
    float scale;
    uint32_t first_strip; /* of the piece, in the linear */
};
static int dummy_quantised(struct k_linear *l, const struct plan *plan, const struct dummy *d, uint32_t piece,
        const struct k_matrix_view *like, struct error *e) {
    const struct dummy_weights weights = {dummy_piece_seed(d->seed, piece), d->scale, l->leaf_columns};
    const struct quant_matrix q = dummy_matrix(like->quant, &weights);
    struct k_matrix_view v = *like;
    v.quant = &q;
    return pack_piece(l, plan, &plan->pieces[piece], &v, NULL, e);
}

/* data[rows][columns] of strips from `strip` of the linear on; rows behind the last of a strip are not looked at. */
static void dummy_fill(const struct k_linear *l, const struct dummy *d, uint32_t strip, uint32_t rows,
        enum k_dtype dtype, uint8_t *data) {
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t k = 0; k < l->columns; k++) {
            const float x = dummy_dense(d->seed, strip + r / STRIP_ROWS, k / l->leaf_columns,
                    k % l->leaf_columns, r % STRIP_ROWS, d->scale);
            const uint16_t half = dtype == K_BF16 ? bf16_of(x) : f16_of(x);
            const size_t at = (size_t)r * l->columns + k;
            if (dtype == K_F32)
                memcpy(data + at * 4, &x, 4);
            else
                memcpy(data + at * 2, &half, 2);
        }
    }
}
/* Strip by strip, so that it needs little memory. */
static int dummy_dense_piece(struct k_linear *l, const struct plan *plan, const struct dummy *d,
        const struct piece *p, const struct k_matrix_view *like, struct error *e) {
    struct k_matrix_view v = {.data = malloc((size_t)STRIP_ROWS * l->columns * k_dtype_bytes(like->dtype)),
            .row_stride = l->columns,
            .dtype = like->dtype};
    uint8_t *packed = malloc(p->block[CODES] + ALIGNMENT);
    int r = v.data && packed ? 0 : error_set(e, -ENOMEM, "%s: no memory to pack a strip", l->name);
    for (uint32_t s = 0; s < p->strips && r == 0; s++) {
        struct k_tiles strip;
        const uint32_t left = like->rows - s * STRIP_ROWS;
        const struct k_layout_source source = {.tiles = &strip, .view = &v};
        v.rows = left < STRIP_ROWS ? left : STRIP_ROWS;
        k_tiles_describe(&v, l->leaf_columns * K_LEAVES, &strip);
        dummy_fill(l, d, d->first_strip + s, v.rows, v.dtype, (uint8_t *)v.data);
        for (uint32_t leaf = 0; leaf < l->leaves && r == 0; leaf++) {
            k_layout_pack_units(&k_layout_cuda_mma, &source, leaf, 1, 1, packed);
            r = context_send(l->context, stretch_at(l, plan, p, CODES, leaf) + s * p->block[CODES], packed,
                    p->block[CODES], e);
        }
    }
    free((void *)v.data);
    free(packed);
    return r;
}

int k_linear_dummy(struct k_context *c, const struct k_linear_spec *spec, uint64_t seed, float scale,
        struct k_linear **ret, struct error *e) {
    struct plan plan;
    struct k_linear *l = NULL;
    struct dummy d = {.seed = dummy_seed(seed), .scale = scale};
    int r = linear_check_dummy(spec, e);
    r = r < 0 ? r : linear_check(spec, e);
    r = r < 0 ? r : leaves_check(spec, e);
    if (r < 0)
        return r;
    plan_make(spec, &plan);
    r = linear_new(c, spec, &plan, &l, e);
    for (uint32_t i = 0; i < spec->n_pieces && r == 0 && !weights_there(c);
            d.first_strip += plan.pieces[i++].strips) {
        const struct k_matrix_view *v = &spec->pieces[i];
        r = v->quant ? dummy_quantised(l, &plan, &d, i, v, e)
                     : dummy_dense_piece(l, &plan, &d, &plan.pieces[i], v, e);
    }
    r = r < 0 ? r : staging_finish(c, e);
    if (r < 0) {
        k_linear_free(l);
        return r;
    }
    *ret = l;
    return 0;
}

struct k_linear *k_linear_free(struct k_linear *l) {
    if (l)
        k_free(l->context, l->d_memory);
    free(l);
    return NULL;
}
uint32_t k_linear_rows(const struct k_linear *l) {
    return l->rows;
}
/* A graph queues the next kernel by itself; product.c leaves a result in the form of next, and asks for what next
 * begins with. */
void k_linear_then(struct k_linear *l, const struct k_linear *next, const float *norm, bool gate_up) {
    (void)gate_up;
    l->next = next;
    l->next_norm = norm;
}

/* --- vectors --- */

static int floats_load(struct k_context *c, const float *from, uint64_t n, float **ret, struct error *e) {
    float *d_v = weights_alloc(c, n * sizeof *from);
    int r = 0;
    if (!d_v)
        r = error_set(e, -ENOMEM, "no memory for %llu floats on device %d", (unsigned long long)n, c->device);
    else if (!weights_there(c))
        r = context_upload(c, d_v, from, n * sizeof *from, e);
    if (r == 0)
        *ret = d_v;
    else
        k_free(c, d_v);
    return r;
}
int k_vector_load(struct k_context *c, const void *data, enum k_dtype dtype, uint32_t n, float offset,
        float **ret, struct error *e) {
    if (weights_there(c))
        return floats_load(c, NULL, n, ret, e);
    float *v = malloc((size_t)n * sizeof *v + 1);
    if (!v)
        return error_set(e, -ENOMEM, "no memory for a vector of %u weights", n);
    convert_row(dtype, data, n, v);
    for (uint32_t i = 0; i < n; i++)
        v[i] += offset;
    int r = floats_load(c, v, n, ret, e);
    free(v);
    return r;
}
int k_taps_load(struct k_context *c, const void *data, enum k_dtype dtype, uint32_t channels, uint32_t w,
        float **ret, struct error *e) {
    const size_t n = (size_t)channels * w;
    if (weights_there(c))
        return floats_load(c, NULL, n, ret, e);
    float *taps = malloc(2 * n * sizeof *taps + 1), *turned = taps + n;
    if (!taps)
        return error_set(e, -ENOMEM, "no memory for the taps of %u channels", channels);
    convert_row(dtype, data, (uint32_t)n, taps);
    for (size_t i = 0; i < n; i++)
        turned[i % w * channels + i / w] = taps[i];
    int r = floats_load(c, turned, n, ret, e);
    free(taps);
    return r;
}
