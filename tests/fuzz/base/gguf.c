/* gguf.c - fuzzes the GGUF parser: what it accepts lies in the file, all of it, and can be read. */
#include "base/gguf.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink; /* so that no read is optimised away */

static void require(bool condition) {
    if (!condition)
        abort();
}

static uint64_t sum(const void *data, uint64_t bytes) {
    const unsigned char *at = data;
    uint64_t total = 0;
    for (uint64_t i = 0; i < bytes; i++)
        total += at[i];
    return total;
}

static uint64_t read_value(const struct gguf *g, const struct gguf_value *v) {
    uint64_t total = sum(v->key.data, v->key.bytes), number = 0;
    if (v->type == GGUF_ARRAY && v->element == GGUF_STRING) {
        const unsigned char *at = v->data;
        for (uint64_t i = 0; i < v->n; i++) {
            struct gguf_string s = gguf_next_string(&at);
            total += sum(s.data, s.bytes);
        }
    } else if (v->type == GGUF_ARRAY) {
        for (uint64_t i = 0; i < v->n; i++)
            total += gguf_array_u64(v, i, &number) == 0 ? number : 1;
    } else if (v->type == GGUF_STRING) {
        const unsigned char *at = v->data;
        struct gguf_string s = gguf_next_string(&at);
        total += sum(s.data, s.bytes);
    }
    require(g->n_values > 0);
    return total;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct error e = {0};
    struct gguf g;
    int r = gguf_parse(data, size, "fuzz.gguf", &g, &e);
    require(r == 0 || e.text[0] != '\0'); /* every refusal has a sentence */
    if (r < 0)
        return 0;
    for (size_t i = 0; i < g.n_values; i++)
        sink += read_value(&g, &g.values[i]);
    for (size_t i = 0; i < g.n_tensors; i++) {
        const struct gguf_tensor *t = &g.tensors[i];
        require((const uint8_t *)t->data >= data && t->bytes <= size);
        sink += sum(t->data, t->bytes) + sum(t->name.data, t->name.bytes);
    }
    gguf_done(&g);
    return 0;
}
