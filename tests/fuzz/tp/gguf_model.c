/* gguf_model.c - fuzzes what is made of a GGUF file: the configuration, and matrices of its quantised tensors. */
#include "tp/checkpoint/gguf_model.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_matrix(const struct gguf_tensor *t, uint32_t unit) {
    const uint32_t heads = (uint32_t)t->dims[0] / unit, k_heads = heads % 2 ? 1 : 2;
    const struct gguf_order rows = {0}, columns = {0, unit, k_heads, heads / k_heads};
    struct gguf_matrix m;
    uint8_t codes[256];
    struct quant_group group;
    uint16_t *row;
    if (gguf_matrix_make(t, &rows, &columns, &m, NULL) < 0)
        return;
    for (uint32_t at = 0; at < m.q.columns; at += sizeof(codes)) {
        uint32_t n = m.q.columns - at < sizeof(codes) ? m.q.columns - at : (uint32_t)sizeof(codes);
        m.q.codes(&m.q, m.q.rows - 1, 1, at, n, codes);
        for (uint32_t i = 0; i < n && m.q.format == QUANT_INT4; i++)
            if (codes[i] > 15)
                abort();
    }
    for (uint32_t i = 0; i < quant_groups(&m.q); i++)
        m.q.groups(&m.q, 0, i, 1, &group);
    row = malloc((size_t)m.q.columns * sizeof(*row));
    if (row)
        (void)gguf_matrix_row_f16(&m, m.q.rows - 1, row);
    free(row);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct error e = {0};
    struct model_config config;
    struct gguf g;
    if (gguf_parse(data, size, "fuzz.gguf", &g, &e) < 0)
        return 0;
    if (gguf_model_config(&g, &config, &e) < 0 && e.text[0] == '\0')
        abort(); /* every refusal has a sentence */
    for (size_t i = 0; i < g.n_tensors; i++) {
        const struct gguf_tensor *t = &g.tensors[i];
        if (!gguf_tensor_is_read(t) || !gguf_is_quantised(t->type) || t->n_dims != 2 ||
                t->dims[0] > 1u << 20 || t->dims[1] > 1u << 20)
            continue;
        read_matrix(t, (uint32_t)t->dims[0]);
        if (t->dims[0] % 64 == 0)
            read_matrix(t, 64);
    }
    gguf_done(&g);
    return 0;
}
