/* generation_config.h - the checkpoint's generation_config.json: defaults of sampling, and the stop ids.
 *
 * Read once at start-up. A file that is not there means the usual defaults; one that is broken or has a value
 * out of range is refused by name. */
#pragma once

#include "base/error.h"
#include "base/gguf.h"
#include "base/limits.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct sampling_defaults {
    float temperature, top_p, min_p, repetition_penalty;
    uint32_t top_k;
};

struct generation_config {
    struct sampling_defaults sampling; /* do_sample: false gives temperature 0 */
    uint32_t stop_ids[MODEL_STOP_IDS_MAX];
    uint32_t n_stop_ids;
};

/* Defaults: temperature 1, top_p 1, min_p 0, repetition_penalty 1, top_k off, no stop ids. */
void generation_config_init(struct generation_config *g);
/* path: generation_config.json. -ENOENT leaves *g as it is and is not an error for most callers. */
int generation_config_load(struct generation_config *g, const char *path, struct error *e);
int generation_config_parse(struct generation_config *g, const char *text, size_t bytes, struct error *e);
/* What eos_token_id of an object has: nothing, null, one id or a list; each is added once. */
int generation_config_add_stop_ids(struct generation_config *g, const json_t *object, struct error *e);
/* The sampling values that a GGUF file's metadata has (general.sampling.*), as llama.cpp reads them. */
int generation_config_read_gguf(struct generation_config *g, const struct gguf *file, struct error *e);
/* Adds an id once; -E2BIG. */
int generation_config_add_stop_id(struct generation_config *g, uint32_t id, struct error *e);
