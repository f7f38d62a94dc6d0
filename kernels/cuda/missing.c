/* missing.c - operations of kernels.h that this library does not have yet: each is a fault of the stream, or refuses.
 *
 * A line goes when its operation comes; the file goes with the last. */
#include "kernels/cuda/internal.h"

#include <errno.h>

#define NOT_YET(s) stream_fault((s), -ENOTSUP, "%s: kernels/cuda does not have it yet", __func__)

void k_attention_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, uint32_t attention_layer,
        uint32_t kv_shift, const struct k_attention_weights *w, const float *in, float *out) {
    (void)p;
    (void)b;
    (void)attention_layer;
    (void)kv_shift;
    (void)w;
    (void)in;
    (void)out;
    NOT_YET(s);
}
