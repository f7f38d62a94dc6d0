/* generation_config.c - see generation_config.h. */
#include "daemon/service/generation_config.h"

#include "base/file.h"
#include "base/json_config.h"
#include "base/limits.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

void generation_config_init(struct generation_config *g) {
    *g = (struct generation_config){.sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1}};
}

int generation_config_add_stop_id(struct generation_config *g, uint32_t id, struct error *e) {
    for (uint32_t i = 0; i < g->n_stop_ids; i++)
        if (g->stop_ids[i] == id)
            return 0;
    if (g->n_stop_ids == MODEL_STOP_IDS_MAX)
        return error_set(e, -E2BIG, "more than %u stop ids in eos_token_id", MODEL_STOP_IDS_MAX);
    g->stop_ids[g->n_stop_ids++] = id;
    return 0;
}

/* A number in [low, high] ((low, high] with open); null or nothing leaves *value alone. */
static int read_number(const json_t *root, const char *name, double low, double high, bool open, float *value,
        struct error *e) {
    const json_t *j = json_object_get(root, name);
    if (!j || json_is_null(j))
        return 0;
    /* Checked as what it is used as: 1e-50 is above zero, but not as a float. */
    float v = json_is_number(j) ? (float)json_number_value(j) : NAN;
    if (!(v <= high && (open ? v > low : v >= low)))
        return error_set(e, -EINVAL, "%s must be a number %s %g and at most %g", name,
                open ? "above" : "of at least", low, high);
    *value = v;
    return 0;
}

static int read_top_k(const json_t *root, uint32_t *value, struct error *e) {
    const json_t *j = json_object_get(root, "top_k");
    if (!j || json_is_null(j))
        return 0;
    if (!json_is_integer(j) || json_integer_value(j) < -1 || json_integer_value(j) > INT32_MAX)
        return error_set(e, -EINVAL, "top_k must be a whole number; 0 switches it off");
    *value = json_integer_value(j) < 0 ? 0 : (uint32_t)json_integer_value(j);
    return 0;
}

static int read_stop_id(struct generation_config *g, const json_t *j, struct error *e) {
    if (!json_is_integer(j) || json_integer_value(j) < 0 || json_integer_value(j) >= TOKENIZER_VOCAB_MAX)
        return error_set(e, -EINVAL, "eos_token_id must be a token id or a list of them");
    return generation_config_add_stop_id(g, (uint32_t)json_integer_value(j), e);
}

int generation_config_add_stop_ids(struct generation_config *g, const json_t *root, struct error *e) {
    const json_t *j = json_object_get(root, "eos_token_id");
    if (!j || json_is_null(j))
        return 0;
    if (!json_is_array(j))
        return read_stop_id(g, j, e);
    for (size_t i = 0; i < json_array_size(j); i++) {
        int r = read_stop_id(g, json_array_get(j, i), e);
        if (r < 0)
            return r;
    }
    return 0;
}

int generation_config_parse(struct generation_config *g, const char *text, size_t bytes, struct error *e) {
    json_t *root = NULL;
    struct generation_config new = *g;
    int r = json_config_parse(text, bytes, "JSON", &root, e);
    if (r == 0)
        r = read_number(root, "temperature", 0, 100, false, &new.sampling.temperature, e);
    if (r == 0)
        r = read_number(root, "top_p", 0, 1, true, &new.sampling.top_p, e);
    if (r == 0)
        r = read_number(root, "min_p", 0, 1, false, &new.sampling.min_p, e);
    if (r == 0)
        r = read_number(root, "repetition_penalty", 0, 10, true, &new.sampling.repetition_penalty, e);
    if (r == 0)
        r = read_top_k(root, &new.sampling.top_k, e);
    if (r == 0)
        r = generation_config_add_stop_ids(&new, root, e);
    if (r == 0 && json_is_false(json_object_get(root, "do_sample")))
        new.sampling.temperature = 0;
    json_decref(root);
    if (r == 0)
        *g = new;
    return r;
}

int generation_config_load(struct generation_config *g, const char *path, struct error *e) {
    char *text = NULL;
    size_t bytes = 0;
    int r = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r < 0)
        return r;
    r = generation_config_parse(g, text, bytes, e);
    free(text);
    return r < 0 ? error_prefix(e, r, "%s", path) : 0;
}
