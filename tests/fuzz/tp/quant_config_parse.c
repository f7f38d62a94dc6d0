/* quant_config_parse.c - fuzzes the reader of quantization_config, and asks what is accepted about a few modules. */
#include "tp/checkpoint/quant_config.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition) {
    if (!condition)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const modules[] = {
            "lm_head", "model.language_model.layers.12.mlp.down_proj", "mtp.layers.0.self_attn.q_proj", "m"};
    struct quant_config *c = NULL;
    struct error e = {0};
    if (quant_config_parse((const char *)data, size, "config.json", &c, &e) < 0) {
        require(e.text[0] != '\0' && c == NULL);
        return 0;
    }
    for (size_t i = 0; c && i < sizeof(modules) / sizeof(*modules); i++) {
        struct quant_scheme s = {0};
        const char *excluded = NULL;
        if (quant_config_find(c, modules[i], &s, &excluded, &e) < 0)
            continue;
        require(s.bits == 0 || s.bits == 4 || s.bits == 8);
        require(s.group == QUANT_GROUP_ROW || s.group <= MODEL_DIM_MAX);
        require((s.block_rows == 0) == (s.block_columns == 0));
        require(quant_config_method(c) < QUANT_METHODS && (!excluded || s.bits == 0));
    }
    quant_config_free(c);
    return 0;
}
