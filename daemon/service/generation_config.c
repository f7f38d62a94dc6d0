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

/* In [low, high], or (low, high] with open; checked as what it is used as: 1e-50 is above zero, but not as a float.
 * NaN is not. */
static int take_number(
        const char *name, double number, double low, double high, bool open, float *value, struct error *e) {
    float v = (float)number;
    if (!(v <= high && (open ? v > low : v >= low)))
        return error_set(e, -EINVAL, "%s must be a number %s %g and at most %g", name,
                open ? "above" : "of at least", low, high);
    *value = v;
    return 0;
}

/* null or nothing leaves *value alone. */
static int read_number(const json_t *root, const char *name, double low, double high, bool open, float *value,
        struct error *e) {
    const json_t *j = json_object_get(root, name);
    if (!j || json_is_null(j))
        return 0;
    return take_number(name, json_is_number(j) ? json_number_value(j) : NAN, low, high, open, value, e);
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

/* --- general.sampling.* of a GGUF file --- */

/* *ret is left alone where the file has no such key. */
static int find_real(const struct gguf *file, const char *key, double *ret, struct error *e) {
    return gguf_find(file, key) ? gguf_get_real(file, key, ret, e) : 0;
}

int generation_config_read_gguf(struct generation_config *g, const struct gguf *file, struct error *e) {
    static const char temp[] = "general.sampling.temp", top_k[] = "general.sampling.top_k",
                      top_p[] = "general.sampling.top_p", min_p[] = "general.sampling.min_p",
                      repeat[] = "general.sampling.penalty_repeat",
                      last_n[] = "general.sampling.penalty_last_n";
    struct sampling_defaults s = g->sampling;
    double t = (double)s.temperature, k = s.top_k, p = (double)s.top_p, m = (double)s.min_p;
    double penalty = (double)s.repetition_penalty, penalised = -1; /* tokens; -1: all */
    int r = find_real(file, temp, &t, e);
    if (r == 0)
        r = find_real(file, top_k, &k, e);
    if (r == 0)
        r = find_real(file, top_p, &p, e);
    if (r == 0)
        r = find_real(file, min_p, &m, e);
    if (r == 0)
        r = find_real(file, repeat, &penalty, e);
    if (r == 0)
        r = find_real(file, last_n, &penalised, e);
    if (r < 0)
        return r;
    /* Below zero is off in llama.cpp; a temperature below zero takes the likeliest token. */
    r = take_number(temp, t < 0 ? 0 : t, 0, 100, false, &s.temperature, e);
    if (r == 0 && !(k <= INT32_MAX && k == floor(k)))
        r = error_set(e, -EINVAL, "%s must be a whole number; 0 switches it off", top_k);
    if (r == 0)
        r = take_number(top_p, p, 0, 1, true, &s.top_p, e);
    if (r == 0)
        r = take_number(min_p, m < 0 ? 0 : m, 0, 1, false, &s.min_p, e);
    if (r == 0)
        r = take_number(repeat, penalised == 0 ? 1 : penalty, 0, 10, true, &s.repetition_penalty, e);
    if (r < 0)
        return error_prefix(e, r, "%s", file->file);
    s.top_k = k < 0 ? 0 : (uint32_t)k;
    g->sampling = s;
    return 0;
}
