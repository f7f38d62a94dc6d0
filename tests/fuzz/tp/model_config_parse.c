/* model_config_parse.c - fuzzes the reader of config.json. What it accepts must satisfy what others rely on. */
#include "tp/checkpoint/model_config.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition) {
    if (!condition)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct model_config m;
    struct error e = {0};
    if (model_config_parse((const char *)data, size, "config.json", &m, &e) < 0) {
        require(e.text[0] != '\0');
        return 0;
    }
    require(m.n_layers >= 1 && m.n_layers <= MODEL_LAYERS_MAX);
    require(m.q_heads % m.kv_heads == 0 && m.gdn_v_heads % m.gdn_k_heads == 0);
    require(m.rotary_dim >= 2 && m.rotary_dim % 2 == 0 && m.rotary_dim <= m.head_dim);
    require(m.rms_eps > 0 && m.rope_theta > 1);
    require(m.max_position_embeddings >= 1 && m.max_position_embeddings <= CONTEXT_MAX);
    for (uint32_t i = 0; i < m.n_eos_ids; i++)
        require(m.eos_ids[i] < m.vocab_size);
    require(model_config_parameters(&m) > 0);
    for (uint32_t tp = 0; tp <= 9; tp++)
        if (model_config_check_tp(&m, tp, &e) == 0)
            require(m.q_heads % tp == 0 && m.gdn_k_heads % tp == 0 && m.intermediate_size % K_LEAVES == 0);
    return 0;
}
