/* check.c - see check.h. */
#include "kernels/shared/check.h"

#include <errno.h>
#include <stddef.h>

static int check_quant(const struct k_matrix_view *v, uint32_t columns, uint32_t leaf_columns,
        const char *name, struct error *e) {
    const struct quant_matrix *q = v->quant;
    if (q->group == 0 || (q->group % 16 && q->group != q->columns) ||
            (q->format != QUANT_INT4 && q->format != QUANT_INT8 && q->format != QUANT_FP8) ||
            (q->format == QUANT_FP8 && (q->zeros || q->minimums)))
        return error_set(e, -EINVAL,
                "%s: groups of %u columns; the quantised matrix is not one that can be packed", name,
                q->group);
    if (q->columns > MODEL_DIM_MAX || v->first_column > q->columns || columns > q->columns - v->first_column)
        return error_set(e, -EINVAL, "%s: columns %u to %u of a matrix of %u were asked for", name,
                v->first_column, v->first_column + columns, q->columns);
    if (v->first_column % leaf_columns || q->columns % leaf_columns)
        return error_set(e, -EINVAL,
                "%s: column %u of %u is not the start of a K-leaf of %u; use another tensor parallel size",
                name, v->first_column, q->columns, leaf_columns);
    if (!v->row_order && (v->first_row > q->rows || v->rows > q->rows - v->first_row))
        return error_set(e, -EINVAL, "%s: rows %u to %u of a matrix of %u were asked for", name, v->first_row,
                v->first_row + v->rows, q->rows);
    for (uint32_t r = 0; v->row_order && r < v->rows; r++) {
        if (v->row_order[r] >= q->rows)
            return error_set(
                    e, -EINVAL, "%s: row %u of a matrix of %u was asked for", name, v->row_order[r], q->rows);
    }
    return 0;
}

int view_check(const struct k_matrix_view *v, uint32_t columns, uint32_t leaf_columns, const char *name,
        struct error *e) {
    if (v->rows == 0 || v->rows > MODEL_DIM_MAX)
        return error_set(
                e, -EINVAL, "%s: a piece has %u rows; 1 to %u are possible", name, v->rows, MODEL_DIM_MAX);
    if ((v->data != NULL) + (v->quant != NULL) + (v->tiles != NULL) > 1)
        return error_set(e, -EINVAL,
                "%s: a piece has data of more than one kind; give one of data, quant, tiles", name);
    return v->quant ? check_quant(v, columns, leaf_columns, name, e) : 0;
}

/* --- linears --- */

static int check_tiles(const struct k_matrix_view *v, const struct k_linear_spec *spec, struct error *e) {
    const struct k_tiles *t = v->tiles;
    const uint32_t leaf_columns = spec->columns / spec->leaves;
    if (!t->data || (uintptr_t)t->data % 64)
        return error_set(e, -EINVAL, "%s: tiles must lie at a multiple of 64 bytes", spec->name);
    if (t->columns % K_LEAVES || t->columns / K_LEAVES != leaf_columns)
        return error_set(e, -EINVAL, "%s: tiles of %u columns do not fit %u columns in %u leaves", spec->name,
                t->columns, spec->columns, spec->leaves);
    if (v->first_column % leaf_columns || v->first_column > t->columns ||
            spec->columns > t->columns - v->first_column)
        return error_set(e, -EINVAL,
                "%s: column %u is not the start of one of the %u-column leaves of tiles of %u", spec->name,
                v->first_column, leaf_columns, t->columns);
    if (v->first_row % 16 || v->first_row > t->rows || v->rows > t->rows - v->first_row)
        return error_set(e, -EINVAL,
                "%s: rows %u to %u of %u in tiles do not start at a multiple of 16; keep this matrix unpacked or use "
                "another tensor parallel size",
                spec->name, v->first_row, v->first_row + v->rows, t->rows);
    if (v->row_order)
        return error_set(e, -EINVAL,
                "%s: rows of tiles cannot be reordered; reorder them when they are packed", spec->name);
    if (t->quantised && (t->group == 0 || (t->group % 16 && t->group != t->columns)))
        return error_set(e, -EINVAL, "%s: tiles with groups of %u columns", spec->name, t->group);
    return 0;
}

static int check_order(const struct k_linear_spec *spec, struct error *e) {
    for (uint32_t k = 0; k < spec->columns; k++) {
        if (spec->order[k] >= spec->columns)
            return error_set(e, -EINVAL, "%s: the order of %u columns names column %u", spec->name,
                    spec->columns, spec->order[k]);
    }
    for (uint32_t i = 0; i < spec->n_pieces; i++) {
        const struct k_matrix_view *v = &spec->pieces[i];
        if (!v->quant)
            continue;
        const uint32_t *own = v->quant->order;
        for (uint32_t k = 0; k < spec->columns; k++) {
            if ((own ? own[v->first_column + k] : v->first_column + k) - v->first_column != spec->order[k])
                return error_set(e, -EINVAL,
                        "%s: piece %u has its columns in another order than the linear; requantise so that all "
                        "matrices of the input share one order",
                        spec->name, i);
        }
    }
    return 0;
}

int linear_check(const struct k_linear_spec *spec, struct error *e) {
    uint32_t l = spec->leaves;
    if (spec->n_pieces < 1 || spec->n_pieces > PIECES_MAX)
        return error_set(
                e, -EINVAL, "%s: %u pieces; 1 to %u are possible", spec->name, spec->n_pieces, PIECES_MAX);
    if (l != 1 && l != 2 && l != 4 && l != 8)
        return error_set(e, -EINVAL, "%s: %u leaves; 1, 2, 4 or 8 are possible", spec->name, l);
    if (spec->columns == 0 || spec->columns > MODEL_DIM_MAX || spec->columns % l)
        return error_set(e, -EINVAL,
                "%s: %u columns do not divide into %u leaves; use another tensor parallel size", spec->name,
                spec->columns, l);
    for (uint32_t i = 0; i < spec->n_pieces; i++) {
        const struct k_matrix_view *v = &spec->pieces[i];
        int r = view_check(v, spec->columns, spec->columns / l, spec->name, e);
        if (r >= 0 && v->tiles)
            r = check_tiles(v, spec, e);
        if (r < 0)
            return r;
    }
    return spec->order ? check_order(spec, e) : 0;
}

int linear_check_weights(const struct k_linear_spec *spec, struct error *e) {
    for (uint32_t i = 0; spec->n_pieces <= PIECES_MAX && i < spec->n_pieces; i++) {
        const struct k_matrix_view *v = &spec->pieces[i];
        if (!v->data && !v->quant && !v->tiles)
            return error_set(e, -EINVAL, "%s: piece %u has no weights", spec->name, i);
    }
    return 0;
}

int linear_check_dummy(const struct k_linear_spec *spec, struct error *e) {
    for (uint32_t i = 0; spec->n_pieces <= PIECES_MAX && i < spec->n_pieces; i++) {
        if (spec->pieces[i].tiles)
            return error_set(e, -EINVAL, "%s: tiles cannot hold made-up weights", spec->name);
    }
    return 0;
}

int head_check(const struct k_shape *h, const char *name, uint32_t rows, uint32_t columns, struct error *e) {
    if (rows == h->vocab_rows && (!name || columns == h->hidden_size))
        return 0;
    return error_set(e, -EINVAL, "%s: %u x %u, but this rank's head is %u x %u", name ? name : "no head",
            rows, columns, h->vocab_rows, h->hidden_size);
}

int draft_head_check(const struct k_shape *s, const struct k_draft_head *h, const char *name, uint32_t rows,
        uint32_t columns, struct error *e) {
    if (h->place && h->n > 0 && h->n <= s->vocab_size && h->n % s->tp == 0 && rows == h->n / s->tp &&
            columns == s->hidden_size)
        return 0;
    return error_set(e, -EINVAL,
            "%s: %u x %u as one of %u shares of %u ids for drafts, of a vocabulary of %u", name, rows,
            columns, s->tp, h->n, s->vocab_size);
}

int table_check(const void *data, uint32_t rows, uint32_t columns, struct error *e) {
    if (!data || !rows || !columns)
        return error_set(
                e, -EINVAL, "an embedding table of %u x %u without rows, columns or values", rows, columns);
    return 0;
}
