/* shard_table.c - the sharding table: the sizes of the published 27B model at every tp, and that the pieces
 * of all ranks together are each matrix exactly once. */
#include "tp/load/shard.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct model_config model_27b(void) {
    struct model_config m = {.hidden_size = 5120,
            .intermediate_size = 17408,
            .vocab_size = 248320,
            .n_layers = 64,
            .q_heads = 24,
            .kv_heads = 4,
            .head_dim = 256,
            .rotary_dim = 64,
            .gdn_k_heads = 16,
            .gdn_v_heads = 48,
            .gdn_k_dim = 128,
            .gdn_v_dim = 128,
            .conv_kernel = 4,
            .max_position_embeddings = 262144,
            .mtp_layers = 1,
            .rms_eps = 1e-6f,
            .rope_theta = 1e7};
    for (uint32_t i = 0; i < m.n_layers; i++)
        m.is_attention[i] = i % 4 == 3;
    return m;
}

static void sizes_of_27b(void **state) {
    (void)state;
    static const struct {
        uint32_t tp, q_heads, kv_heads, k_heads, v_heads, intermediate, vocab;
    } rows[] = {{1, 24, 4, 16, 48, 17408, 248320}, {2, 12, 2, 8, 24, 8704, 124160},
            {4, 6, 1, 4, 12, 4352, 62080}, {8, 3, 1, 2, 6, 2176, 31040}};
    struct model_config m = model_27b();
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (uint32_t rank = 0; rank < rows[i].tp; rank++) {
            struct shard s;
            assert_int_equal(shard_make(&m, rows[i].tp, rank, true, &s, NULL), 0);
            assert_int_equal(s.shape.q_heads, rows[i].q_heads);
            assert_int_equal(s.shape.kv_heads, rows[i].kv_heads);
            assert_int_equal(s.shape.gdn_k_heads, rows[i].k_heads);
            assert_int_equal(s.shape.gdn_v_heads, rows[i].v_heads);
            assert_int_equal(s.shape.intermediate_size, rows[i].intermediate);
            assert_int_equal(s.shape.vocab_rows, rows[i].vocab);
            assert_int_equal(s.shape.vocab_first, rank * rows[i].vocab);
            assert_int_equal(s.shape.n_attention_layers, 17);
            assert_int_equal(s.shape.n_gdn_layers, 48);
            assert_int_equal(s.q_heads.first, rank * rows[i].q_heads);
            /* the kv head that this rank's query heads use: h / (24 / 4) */
            assert_int_equal(s.kv_heads.first, s.q_heads.first / 6);
            assert_int_equal(s.gdn_v_heads.first, 3 * s.gdn_k_heads.first);
        }
    }
}

static void no_such_rank(void **state) {
    (void)state;
    struct model_config m = model_27b();
    struct shard s;
    struct error e = {0};
    assert_true(shard_make(&m, 2, 2, false, &s, &e) < 0);
    assert_non_null(strstr(e.text, "rank 2"));
    assert_true(shard_make(&m, 3, 0, false, &s, &e) < 0);
}

/* Adds one to count[row] for each row of the pieces that lies in the matrix at `data`. */
static void count_rows(const struct shard_linear *l, const struct shard_matrix *m, uint8_t *count) {
    const uint8_t *data = m->data;
    size_t row_bytes = (size_t)m->columns * k_dtype_bytes(m->dtype);
    for (uint32_t i = 0; i < l->n_pieces; i++) {
        const uint8_t *piece = l->pieces[i].data;
        if (piece < data || piece >= data + m->rows * row_bytes)
            continue;
        assert_int_equal((size_t)(piece - data) % row_bytes, 0);
        for (uint32_t r = 0; r < l->pieces[i].rows; r++)
            count[(size_t)(piece - data) / row_bytes + r]++;
    }
}

static void all_equal(const uint8_t *count, uint32_t n, uint8_t value) {
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(count[i], value);
}

static struct shard_matrix matrix(uint8_t *memory, uint32_t rows, uint32_t columns) {
    return (struct shard_matrix){.data = memory, .rows = rows, .columns = columns, .dtype = K_BF16};
}

/* Rows are disjoint between matrices because each has its own part of one block of address space. */
static void column_parallel_rows(void **state) {
    (void)state;
    struct model_config m = model_27b();
    m.hidden_size = 64; /* only the rows matter, and nothing reads the data */
    uint8_t *memory = malloc(64u << 20), *count = calloc(20000, 1);
    for (uint32_t tp = 1; tp <= 8; tp *= 2) {
        struct shard_matrix q = matrix(memory, 12288, 64), k = matrix(memory + (8u << 20), 1024, 64),
                            qkv = matrix(memory + (16u << 20), 10240, 64),
                            z = matrix(memory + (24u << 20), 6144, 64),
                            b = matrix(memory + (32u << 20), 48, 64),
                            a = matrix(memory + (33u << 20), 48, 64),
                            gate = matrix(memory + (40u << 20), 17408, 64),
                            up = matrix(memory + (48u << 20), 17408, 64);
        const struct shard_matrix *all[] = {&q, &k, &qkv, &z, &b, &a, &gate, &up};
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
            memset(count, 0, 20000);
            for (uint32_t rank = 0; rank < tp; rank++) {
                struct shard s;
                struct shard_linear l[3];
                assert_int_equal(shard_make(&m, tp, rank, false, &s, NULL), 0);
                shard_attention_in(&s, &q, &k, &k, &l[0]);
                shard_gdn_in(&s, &qkv, &z, &b, &a, &l[1]);
                shard_gate_up(&s, &gate, &up, &l[2]);
                for (int j = 0; j < 3; j++)
                    count_rows(&l[j], all[i], count);
            }
            /* k is given as v too; with more ranks than kv heads each head is on several */
            all_equal(count, all[i]->rows, all[i] == &k ? 2 * (tp > 4 ? tp / 4 : 1) : 1);
        }
    }
    free(memory);
    free(count);
}

static void order_of_pieces(void **state) {
    (void)state;
    struct model_config m = model_27b();
    struct shard s;
    struct shard_linear l;
    struct shard_matrix qkv = {.rows = 10240, .columns = 5120}, z = {.rows = 6144, .columns = 5120},
                        b = {.rows = 48, .columns = 5120}, q = {.rows = 12288, .columns = 5120},
                        k = {.rows = 1024, .columns = 5120};
    assert_int_equal(shard_make(&m, 8, 5, false, &s, NULL), 0);
    shard_gdn_in(&s, &qkv, &z, &b, &b, &l);
    static const uint32_t gdn_rows[] = {256, 256, 768, 768, 6, 6};
    assert_int_equal(l.n_pieces, 6);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(l.pieces[i].rows, gdn_rows[i]);
    assert_int_equal(l.columns, 5120);
    assert_int_equal(l.leaves, 8);
    shard_attention_in(&s, &q, &k, &k, &l);
    assert_int_equal(l.n_pieces, 3);
    assert_int_equal(l.pieces[0].rows, 1536);
    assert_int_equal(l.pieces[1].rows, 256);
    assert_null(l.pieces[0].data); /* sizes only */
    struct shard_range channels[3];
    shard_gdn_channels(&s, channels);
    assert_int_equal(channels[0].first, 5 * 256);
    assert_int_equal(channels[1].first, 2048 + 5 * 256);
    assert_int_equal(channels[2].first, 4096 + 5 * 768);
}

static void row_parallel_columns(void **state) {
    (void)state;
    struct model_config m = model_27b();
    uint16_t data[1] = {0};
    struct shard_matrix down = {.data = data, .rows = 5120, .columns = 17408, .dtype = K_BF16};
    for (uint32_t tp = 1; tp <= 8; tp *= 2) {
        for (uint32_t rank = 0; rank < tp; rank++) {
            struct shard s;
            struct shard_linear l;
            assert_int_equal(shard_make(&m, tp, rank, false, &s, NULL), 0);
            shard_row_parallel(&s, &down, &l);
            assert_int_equal(l.columns, 17408 / tp);
            assert_int_equal(l.leaves, 8 / tp);
            assert_int_equal(l.pieces[0].rows, 5120);
            assert_int_equal(l.pieces[0].row_stride, 17408);
            assert_int_equal(
                    (const uint8_t *)l.pieces[0].data - (const uint8_t *)data, 2 * rank * (17408 / tp));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(sizes_of_27b),
            cmocka_unit_test(no_such_rank),
            cmocka_unit_test(column_parallel_rows),
            cmocka_unit_test(order_of_pieces),
            cmocka_unit_test(row_parallel_columns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
