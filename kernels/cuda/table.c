/* table.c - embedding tables: rows of a checkpoint matrix that are looked up by token id, copied to the device. */
#include "kernels/cuda/internal.h"
#include "kernels/shared/check.h"

#include <errno.h>
#include <stdlib.h>

uint64_t k_table_bytes(enum k_dtype dtype, uint32_t rows, uint32_t columns, bool mapped) {
    (void)mapped;
    return (uint64_t)rows * columns * k_dtype_bytes(dtype);
}

int k_table_load(struct k_context *c, const void *data, enum k_dtype dtype, uint32_t rows, uint32_t columns,
        bool mapped, struct k_table **ret, struct error *e) {
    const uint64_t bytes = k_table_bytes(dtype, rows, columns, mapped);
    struct k_table *t;
    int r = weights_there(c) ? 0 : table_check(data, rows, columns, e);
    if (r < 0)
        return r;
    t = calloc(1, sizeof *t);
    if (!t)
        return error_set(e, -ENOMEM, "no memory for an embedding table");
    *t = (struct k_table){.context = c, .dtype = dtype, .rows = rows, .columns = columns};
    t->d_data = weights_alloc(c, bytes);
    if (!t->d_data)
        r = error_set(e, -ENOMEM, "device %d: no memory for an embedding table of %u x %u", c->device, rows,
                columns);
    else if (!weights_there(c))
        r = context_upload(c, t->d_data, data, bytes, e);
    if (r < 0) {
        k_table_free(t);
        return r;
    }
    if (!mapped)
        k_host_free(c, (void *)data);
    *ret = t;
    return 0;
}
struct k_table *k_table_free(struct k_table *t) {
    if (t)
        k_free(t->context, t->d_data);
    free(t);
    return NULL;
}
