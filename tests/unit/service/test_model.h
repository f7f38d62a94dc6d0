/* test_model.h - a model for tests: the small committed tokenizer, the Qwen3.5 template, no files of weights. */
#pragma once

#include "daemon/service/model.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static inline struct model *test_model(void) {
    struct model *m = calloc(1, sizeof(*m));
    struct error e = {0};
    assert(m);
    m->path = strdup("/models/test");
    m->names[m->n_names++] = strdup("test");
    m->names[m->n_names++] = strdup("second");
    int r = tokenizer_load(TESTS_DIR "/golden/tokenizer/tokenizer.json", &m->tokenizer, &e);
    assert(r == 0);
    (void)r;
    m->template = (struct chat_template){
            .kind = CHAT_TEMPLATE_QWEN35, .name = "qwen3.5", .thinks_by_default = true};
    generation_config_init(&m->generation);
    m->generation.sampling.top_k = 20;
    m->generation.sampling.top_p = 0.95f;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t id = 0;
        r = tokenizer_find(m->tokenizer, i ? "<|endoftext|>" : "<|im_end|>", &id);
        assert(r == 0);
        r = generation_config_add_stop_id(&m->generation, id, &e);
        assert(r == 0);
    }
    return m;
}
