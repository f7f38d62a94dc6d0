/* segments.c - see segments.h. */
#include "kernels/shared/segments.h"

#include <errno.h>
#include <stdlib.h>

int cutting_make(
        struct cutting *ret, uint32_t group, uint32_t first_column, uint32_t leaves, uint32_t leaf_columns) {
    const uint32_t most =
            leaves * (leaf_columns / ACTIVATION_RUN + 2) + leaves * leaf_columns / (group < 16 ? 16 : group);
    struct cutting c = {.group = group, .first_column = first_column};
    c.leaf_first = calloc(leaves + 1, sizeof *c.leaf_first);
    c.segments = calloc(most, sizeof *c.segments);
    *ret = c;
    if (!c.leaf_first || !c.segments)
        return -ENOMEM;
    for (uint32_t leaf = 0; leaf < leaves; leaf++) {
        const uint32_t first = first_column + leaf * leaf_columns;
        for (uint32_t at = first, end; at < first + leaf_columns; at = end) {
            end = segment_end(group, first, leaf_columns, at);
            c.segments[c.n_segments++] =
                    (struct segment){.column = at - first_column, .n = end - at, .x_at = c.x_columns};
            c.x_columns += (end - at + 7) & ~7u;
        }
        c.leaf_first[leaf + 1] = c.n_segments;
    }
    *ret = c;
    return 0;
}

void cutting_free(struct cutting *c) {
    free(c->leaf_first);
    free(c->segments);
    *c = (struct cutting){0};
}
