/* missing.c - operations of kernels.h that this library does not have yet: each is a fault of the stream, or refuses.
 *
 * A line goes when its operation comes; the file goes with the last. */
#include "kernels/cuda/internal.h"

#include <errno.h>

#define NOT_YET(s) stream_fault((s), -ENOTSUP, "%s: kernels/cuda does not have it yet", __func__)

uint64_t k_table_bytes(enum k_dtype dtype, uint32_t rows, uint32_t columns, bool mapped) {
    (void)dtype;
    (void)rows;
    (void)columns;
    (void)mapped;
    return 0;
}
int k_table_load(struct k_context *c, const void *data, enum k_dtype dtype, uint32_t rows, uint32_t columns,
        bool mapped, struct k_table **ret, struct error *e) {
    (void)c;
    (void)data;
    (void)dtype;
    (void)rows;
    (void)columns;
    (void)mapped;
    (void)ret;
    return error_set(e, -ENOTSUP, "%s: kernels/cuda does not have it yet", __func__);
}
struct k_table *k_table_free(struct k_table *t) {
    (void)t;
    return NULL;
}
void k_slot_open(struct k_stream *s, struct k_pool *p, uint32_t slot, const struct k_sampling *sampling) {
    (void)p;
    (void)slot;
    (void)sampling;
    NOT_YET(s);
}
void k_slot_close(struct k_stream *s, struct k_pool *p, uint32_t slot) {
    (void)p;
    (void)slot;
    NOT_YET(s);
}
void k_slot_grant(struct k_stream *s, struct k_pool *p, uint32_t slot, uint32_t first, uint32_t n,
        const uint32_t *pages) {
    (void)p;
    (void)slot;
    (void)first;
    (void)n;
    (void)pages;
    NOT_YET(s);
}
void k_memory(struct k_stream *s, struct k_pool *p, const struct k_memory_op *ops, uint32_t n) {
    (void)p;
    (void)ops;
    (void)n;
    NOT_YET(s);
}
void k_begin_step(struct k_stream *s, struct k_pool *p, struct k_batch *b) {
    (void)p;
    (void)b;
    NOT_YET(s);
}
void k_embed(struct k_stream *s, const struct k_batch *b, const struct k_table *table, float *x) {
    (void)b;
    (void)table;
    (void)x;
    NOT_YET(s);
}
void k_gdn_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, uint32_t gdn_layer,
        const struct k_gdn_weights *w, const float *in, float *out) {
    (void)p;
    (void)b;
    (void)gdn_layer;
    (void)w;
    (void)in;
    (void)out;
    NOT_YET(s);
}
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
void k_reduce_residual(struct k_stream *s, struct k_comm *m, const struct k_batch *b, const float *part,
        float *x, uint32_t hidden_size) {
    (void)m;
    (void)b;
    (void)part;
    (void)x;
    (void)hidden_size;
    NOT_YET(s);
}
void k_final_norm(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const float *x,
        const float *norm, float eps, float *y) {
    (void)p;
    (void)b;
    (void)x;
    (void)norm;
    (void)eps;
    (void)y;
    NOT_YET(s);
}
void k_mtp_input(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const struct k_table *table,
        const float *hidden, const float *norm_embedding, const float *norm_hidden, float eps,
        const struct k_result *results, float *y) {
    (void)p;
    (void)b;
    (void)table;
    (void)hidden;
    (void)norm_embedding;
    (void)norm_hidden;
    (void)eps;
    (void)results;
    (void)y;
    NOT_YET(s);
}
void k_head_sample(struct k_stream *s, struct k_pool *p, struct k_comm *m, const struct k_batch *b,
        const struct k_linear *head, const float *hidden, struct k_result *results,
        struct k_outcome *outcomes, float *logits, uint32_t logits_rows_max) {
    (void)p;
    (void)m;
    (void)b;
    (void)head;
    (void)hidden;
    (void)results;
    (void)outcomes;
    (void)logits;
    (void)logits_rows_max;
    NOT_YET(s);
}
void k_end_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const struct k_result *results,
        const struct k_outcome *outcomes) {
    (void)p;
    (void)b;
    (void)results;
    (void)outcomes;
    NOT_YET(s);
}
int k_pool_read_gdn(
        struct k_stream *s, struct k_pool *p, uint32_t slot, uint32_t gdn_layer, float *state, float *conv) {
    (void)p;
    (void)slot;
    (void)gdn_layer;
    (void)state;
    (void)conv;
    NOT_YET(s);
    return -ENOTSUP;
}
