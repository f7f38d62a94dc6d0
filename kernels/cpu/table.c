/* table.c - embedding tables: rows of a checkpoint matrix that are looked up by token id.
 *
 * Called by tp/ at load and by the operations that look rows up. On a CPU a table is used where it lies: the mapped
 * checkpoint, whose pages all ranks of a machine share, or host memory that the table has taken over. */
#include "kernels/cpu/internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

uint64_t k_table_bytes(enum k_dtype dtype, uint32_t rows, uint32_t columns, bool mapped) {
    return mapped ? 0 : (uint64_t)rows * columns * k_dtype_bytes(dtype);
}

int k_table_load(struct k_context *c, const void *data, enum k_dtype dtype, uint32_t rows, uint32_t columns,
        bool mapped, struct k_table **ret, struct error *e) {
    struct k_table *t;
    int r = table_check(data, rows, columns, e);
    if (r < 0)
        return r;
    t = calloc(1, sizeof *t);
    if (!t)
        return error_set(e, -ENOMEM, "no memory for an embedding table");
    *t = (struct k_table){
            .context = c, .data = data, .dtype = dtype, .rows = rows, .columns = columns, .mapped = mapped};
    *ret = t;
    return 0;
}

struct k_table *k_table_free(struct k_table *t) {
    if (t && !t->mapped)
        k_host_free(t->context, (void *)t->data);
    free(t);
    return NULL;
}

void table_row(const struct k_table *t, uint32_t id, float *to) {
    assert(id < t->rows); /* ids were checked against the vocabulary, which is the table's rows */
    const uint64_t at = (uint64_t)id * t->columns * k_dtype_bytes(t->dtype);
    convert_row(t->dtype, (const uint8_t *)t->data + at, t->columns, to);
}
