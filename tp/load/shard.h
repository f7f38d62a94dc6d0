/* shard.h - the sharding table: which part of each matrix of the model one rank holds.
 *
 * Called by tp/load/weights.c at load and by whoever wants to know a rank's sizes before loading. Pure arithmetic:
 * nothing here allocates or reads weights. A shard_matrix names a full checkpoint matrix (data may be NULL
 * when only sizes matter); a shard_linear is the rank's rows and columns of one fused linear, ready for
 * k_linear_pack().
 *
 *   column-parallel (rows split, all of K, 8 leaves): q+gate|k|v, GDN q|k|v|z|b|a, gate|up, lm_head
 *   row-parallel (K split, 8/tp leaves of the full K): o_proj, out_proj, down_proj
 *   replicated: embedding, norms, mtp.fc
 *
 * q+gate rows go by head, k and v rows by kv head (one head, shared by tp/kv_heads ranks, when there are more
 * ranks than kv heads); the q, k and v segments of in_proj_qkv and conv1d are sliced separately. */
#pragma once

#include "kernels/kernels.h"
#include "tp/checkpoint/model_config.h"

struct shard_range { /* of heads, rows or ids */
    uint32_t first, count;
};

struct shard {
    struct k_shape shape;
    struct shard_range q_heads, kv_heads, gdn_k_heads, gdn_v_heads, intermediate, vocab;
    uint32_t gdn_k_heads_full, gdn_v_heads_full; /* to find the k and v segments of in_proj_qkv */
};

/* The shard of `rank` of `tp`; -EINVAL with a sentence when the model does not divide. with_mtp counts the
 * MTP layer as the last attention layer. */
int shard_make(const struct model_config *m, uint32_t tp, uint32_t rank, bool with_mtp, struct shard *ret,
        struct error *e);

struct shard_matrix { /* a whole matrix [rows][columns]; at most one of data, quant and tiles */
    const void *data; /* row-major, as in the file */
    const struct quant_matrix *quant;
    const struct k_tiles *tiles;
    uint32_t rows, columns;
    enum k_dtype dtype;        /* of data, or where none is given */
    const uint32_t *row_order; /* NULL, or [rows]: row r of the model is this row; not with tiles */
};

struct shard_linear {
    struct k_matrix_view pieces[8];
    uint32_t n_pieces;
    uint32_t columns; /* local K */
    uint32_t leaves;
};

void shard_attention_in(const struct shard *s, const struct shard_matrix *q, const struct shard_matrix *k,
        const struct shard_matrix *v, struct shard_linear *ret);
void shard_gdn_in(const struct shard *s, const struct shard_matrix *qkv, const struct shard_matrix *z,
        const struct shard_matrix *b, const struct shard_matrix *a, struct shard_linear *ret);
void shard_gate_up(const struct shard *s, const struct shard_matrix *gate, const struct shard_matrix *up,
        struct shard_linear *ret);
/* o_proj, out_proj, down_proj: columns [rank * K/tp, + K/tp). */
void shard_row_parallel(const struct shard *s, const struct shard_matrix *m, struct shard_linear *ret);
/* No pieces where the rank has no rows of the vocabulary. */
void shard_head(const struct shard *s, const struct shard_matrix *m, struct shard_linear *ret);
/* Rows that ranks share evenly: m->rows is a multiple of tp. */
void shard_evenly(const struct shard *s, const struct shard_matrix *m, struct shard_linear *ret);
void shard_replicated(const struct shard_matrix *m, struct shard_linear *ret);

/* The rank's channels of in_proj_qkv and conv1d: its q, k and v segments, in that order. */
void shard_gdn_channels(const struct shard *s, struct shard_range ret[3]);
