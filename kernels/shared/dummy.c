/* dummy.c - see dummy.h. */
#include "kernels/shared/dummy.h"

#include "kernels/shared/segments.h"

/* Whatever part is asked for, eights are counted from where its segments begin. */
static void dummy_codes(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n, uint8_t *ret) {
    const struct dummy_weights *d = q->file;
    const uint32_t end = column + n;
    for (uint32_t at = column, next; at < end; at = next) {
        const uint32_t begin = segment_begin(q->group, at / d->leaf_columns * d->leaf_columns, at),
                       of_segment = segment_end(
                               q->group, at / d->leaf_columns * d->leaf_columns, d->leaf_columns, at),
                       first = begin + (at - begin) / 8 * 8;
        next = first + 8 < of_segment ? first + 8 : of_segment;
        next = next < end ? next : end;
        for (uint32_t r = 0; r < n_rows; r++) {
            const uint64_t eight = dummy_eight(d->seed, row + r, first);
            for (uint32_t c = at; c < next; c++)
                ret[(uint64_t)r * n + (c - column)] = dummy_code(q->format, eight, c - first);
        }
    }
}
static void dummy_groups(
        const struct quant_matrix *q, uint32_t row, uint32_t first, uint32_t n, struct quant_group *ret) {
    const struct dummy_weights *d = q->file;
    (void)row;
    (void)first;
    for (uint32_t i = 0; i < n; i++)
        ret[i] = (struct quant_group){
                .scale = dummy_scale(q->format, d->scale), .zero = dummy_zero(q->format)};
}

struct quant_matrix dummy_matrix(const struct quant_matrix *like, const struct dummy_weights *d) {
    struct quant_matrix q = *like;
    q.codes = dummy_codes;
    q.groups = dummy_groups;
    q.file = d;
    return q;
}
