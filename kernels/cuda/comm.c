/* comm.c - the group of ranks that share a model. So far a group is one rank, and nobody has to be met. */
#include "kernels/cuda/internal.h"

#include <errno.h>
#include <stdlib.h>

struct k_comm {
    struct k_context *context;
};

size_t k_comm_region_bytes(const struct k_shape *shape, uint32_t rows_max) {
    (void)shape;
    (void)rows_max;
    return 0;
}
int k_comm_create(struct k_context *c, const struct k_shape *shape, uint32_t rows_max, void *region,
        size_t region_bytes, struct k_comm **ret, struct error *e) {
    struct k_comm *m;
    (void)rows_max;
    (void)region;
    (void)region_bytes;
    if (shape->tp != 1)
        return error_set(e, -ENOTSUP,
                "tensor parallel size %u: the CUDA worker serves a model from one GPU; several GPUs come later",
                shape->tp);
    if (shape->rank != 0)
        return error_set(e, -EINVAL, "rank %u of %u", shape->rank, shape->tp);
    m = calloc(1, sizeof *m);
    if (!m)
        return error_set(e, -ENOMEM, "no memory for a communicator");
    m->context = c;
    *ret = m;
    return 0;
}
struct k_comm *k_comm_free(struct k_comm *m) {
    free(m);
    return NULL;
}
void k_comm_abort(struct k_comm *m) {
    (void)m;
}
