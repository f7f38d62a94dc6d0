/* quant_check.c - see quant_matrix.h. */
#include "tp/checkpoint/quant_matrix.h"

#include <errno.h>
#include <math.h>

#define GROUPS_AT_ONCE  64u
#define COLUMNS_AT_ONCE 512u

static int refuse(const struct tensor *t, uint32_t row, uint32_t column, const char *what, struct error *e) {
    return error_set(e, -EBADMSG, "%s: %s: %s for row %u, column %u: the file is broken, fetch it again",
            t->file, t->name, what, row, column);
}

static int check_groups(const struct tensor *t, uint32_t row, struct error *e) {
    const struct quant_matrix *q = t->quant;
    const struct tensor *scales = t->scales ? t->scales : t;
    struct quant_group groups[GROUPS_AT_ONCE];
    uint32_t n = quant_groups(q), count;
    for (uint32_t first = 0; first < n; first += count) {
        count = n - first < GROUPS_AT_ONCE ? n - first : GROUPS_AT_ONCE;
        q->groups(q, row, first, count, groups);
        for (uint32_t i = 0; i < count; i++) {
            if (!isfinite(groups[i].scale))
                return refuse(scales, row, (first + i) * q->group, "the scale is not a finite number", e);
            if (!isfinite(groups[i].minimum))
                return refuse(scales, row, (first + i) * q->group, "the minimum is not a finite number", e);
        }
    }
    return 0;
}

static int check_codes(const struct tensor *t, uint32_t row, uint32_t n_rows, struct error *e) {
    const struct quant_matrix *q = t->quant;
    uint8_t codes[QUANT_ROWS_MAX * COLUMNS_AT_ONCE];
    uint32_t count;
    for (uint32_t first = 0; first < q->columns; first += count) {
        count = q->columns - first < COLUMNS_AT_ONCE ? q->columns - first : COLUMNS_AT_ONCE;
        q->codes(q, row, n_rows, first, count, codes);
        uint32_t bad = 0, n = n_rows * count;
        for (uint32_t i = 0; i < n; i++)
            bad += (codes[i] & 0x7f) == 0x7f;
        for (uint32_t i = 0; bad && i < n; i++)
            if ((codes[i] & 0x7f) == 0x7f)
                return refuse(t, row + i / count, first + i % count, "the value is not a number", e);
    }
    return 0;
}

int quant_matrix_check(const struct tensor *t, struct error *e) {
    const struct quant_matrix *q = t->quant;
    int r = 0;
    for (uint32_t row = 0; row < q->rows && r == 0; row++)
        r = check_groups(t, row, e);
    for (uint32_t row = 0; q->format == QUANT_FP8 && row < q->rows && r == 0; row += QUANT_ROWS_MAX)
        r = check_codes(t, row, q->rows - row < QUANT_ROWS_MAX ? q->rows - row : QUANT_ROWS_MAX, e);
    return r;
}
