/* generation_config.c - fuzzes the reader of generation_config.json. What it accepts must be fit for sampling. */
#include "daemon/service/generation_config.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition) {
    if (!condition)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct generation_config g;
    struct error e = {0};
    generation_config_init(&g);
    if (generation_config_parse(&g, (const char *)data, size, &e) < 0) {
        require(e.text[0] != '\0');
        return 0;
    }
    const struct sampling_defaults *s = &g.sampling;
    require(isfinite(s->temperature) && s->temperature >= 0);
    require(s->top_p > 0 && s->top_p <= 1 && s->min_p >= 0 && s->min_p <= 1);
    require(isfinite(s->repetition_penalty) && s->repetition_penalty > 0);
    require(g.n_stop_ids <= MODEL_STOP_IDS_MAX);
    return 0;
}
