/* quant_config.c - see quant_config.h. A reader per method turns its fields into one list of rules. */
#include "tp/checkpoint/quant_config.h"

#include "base/file.h"
#include "base/json_config.h"
#include "tp/checkpoint/quant_rules.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define READ_METHODS "gptq, awq, compressed-tensors, fp8 and auto-round are read"

struct quant_config {
    enum quant_method method;
    bool v2;
    struct quant_rules rules;
    char file[128]; /* for messages */
};

/* One JSON object and how messages call it. */
struct reader {
    const char *file;
    const char *path; /* "quantization_config." */
    const json_t *object;
    struct error *e;
    struct quant_config *c;
};

static const char *const METHODS[QUANT_METHODS] = {"gptq", "awq", "compressed-tensors", "fp8"};

const char *quant_method_name(enum quant_method method) {
    return METHODS[method];
}

enum quant_method quant_config_method(const struct quant_config *c) {
    return c->method;
}

bool quant_config_is_v2(const struct quant_config *c) {
    return c->v2;
}

int quant_config_find(const struct quant_config *c, const char *module, struct quant_scheme *ret,
        const char **ret_excluded, struct error *e) {
    return quant_rules_find(&c->rules, module, c->file, ret, ret_excluded, e);
}

struct quant_config *quant_config_free(struct quant_config *c) {
    if (!c)
        return NULL;
    quant_rules_done(&c->rules);
    free(c);
    return NULL;
}

/* --- fields --- */

/* The value of key, NULL if it is absent or null. */
static const json_t *field(const struct reader *r, const char *key) {
    const json_t *value = json_object_get(r->object, key);
    return value && !json_is_null(value) ? value : NULL;
}

static int wrong_type(const struct reader *r, const char *key, const char *expected) {
    return error_set(r->e, -EINVAL, "%s: %s%s: expected %s", r->file, r->path, key, expected);
}

/* *ret stays as it is where the key is absent. */
static int read_text(const struct reader *r, const char *key, const char **ret) {
    const json_t *value = field(r, key);
    if (value && !json_is_string(value))
        return wrong_type(r, key, "a string");
    if (value)
        *ret = json_string_value(value);
    return 0;
}

static int read_flag(const struct reader *r, const char *key, bool *ret) {
    const json_t *value = field(r, key);
    if (value && !json_is_boolean(value))
        return wrong_type(r, key, "true or false");
    if (value)
        *ret = json_is_true(value);
    return 0;
}

static int read_list(const struct reader *r, const char *key, const json_t **ret) {
    const json_t *value = field(r, key);
    if (value && !json_is_array(value))
        return wrong_type(r, key, "a list");
    for (size_t i = 0; i < json_array_size(value); i++)
        if (!json_is_string(json_array_get(value, i)))
            return wrong_type(r, key, "a list of strings");
    *ret = value;
    return 0;
}

/* Width of a code: 4 or 8, and 8 only where only8. */
static int read_bits(const struct reader *r, const char *key, bool only4, bool only8, uint32_t *ret) {
    const json_t *value = field(r, key);
    if (!value)
        return 0;
    if (!json_is_integer(value))
        return wrong_type(r, key, "a whole number");
    json_int_t bits = json_integer_value(value);
    if ((bits != 4 || only8) && (bits != 8 || only4))
        return error_set(r->e, -ENOTSUP,
                "%s: %s%s is %lld: of %s, %s read; use another checkpoint of this model", r->file, r->path,
                key, (long long)bits, quant_method_name(r->c->method),
                only4   ? "4 bits are"
                : only8 ? "8 bits are"
                        : "4 and 8 bits are");
    *ret = (uint32_t)bits;
    return 0;
}

static int read_group(const struct reader *r, const char *key, uint32_t *ret) {
    const json_t *value = field(r, key);
    if (!value)
        return 0;
    if (!json_is_integer(value))
        return wrong_type(r, key, "a whole number");
    json_int_t group = json_integer_value(value);
    if (group != -1 && (group < 1 || group > (json_int_t)MODEL_DIM_MAX))
        return error_set(r->e, -EINVAL, "%s: %s%s is %lld, it must be -1 or 1 to %u", r->file, r->path, key,
                (long long)group, MODEL_DIM_MAX);
    *ret = group == -1 ? QUANT_GROUP_ROW : (uint32_t)group;
    return 0;
}

/* Two sizes of a block: [rows, columns]. */
static int read_block(const struct reader *r, const char *key, struct quant_scheme *s) {
    const json_t *value = field(r, key);
    if (!value)
        return 0;
    const json_t *rows = json_array_get(value, 0), *columns = json_array_get(value, 1);
    if (json_array_size(value) != 2 || !json_is_integer(rows) || !json_is_integer(columns))
        return wrong_type(r, key, "a list of two sizes");
    json_int_t n = json_integer_value(rows), k = json_integer_value(columns);
    if (n < 1 || n > (json_int_t)MODEL_DIM_MAX || k < 1 || k > (json_int_t)MODEL_DIM_MAX)
        return error_set(r->e, -EINVAL, "%s: %s%s is [%lld, %lld], sizes must be 1 to %u", r->file, r->path,
                key, (long long)n, (long long)k, MODEL_DIM_MAX);
    s->block_rows = (uint32_t)n;
    s->block_columns = (uint32_t)k;
    return 0;
}

static int add_rule(const struct reader *r, enum quant_match match, const char *text, bool excludes,
        const struct quant_scheme *s) {
    return quant_rules_add(&r->c->rules, match, text, excludes, s, r->c->file, r->e);
}

static int exclude_all(const struct reader *r, const char *key, enum quant_match match) {
    const json_t *list = NULL;
    int result = read_list(r, key, &list);
    for (size_t i = 0; i < json_array_size(list) && result == 0; i++)
        result = add_rule(r, match, json_string_value(json_array_get(list, i)), true, NULL);
    return result;
}

static int unread(const struct reader *r, const char *key, const char *found, const char *read) {
    return error_set(r->e, -ENOTSUP, "%s: %s%s '%.60s' is not read: %s; use another checkpoint of this model",
            r->file, r->path, key, found, read);
}

/* --- gptq --- */

/* "+:" or nothing, and "-:", before a regular expression; the first that matches a module decides. */
static int add_dynamic(
        const struct reader *r, const char *key, const json_t *value, const struct quant_scheme *base) {
    bool excludes = strncmp(key, "-:", 2) == 0;
    struct quant_scheme s = *base;
    const struct reader rule = {r->file, "quantization_config.dynamic: ", value, r->e, r->c};
    if (!excludes && !json_is_object(value))
        return error_set(
                r->e, -EINVAL, "%s: quantization_config.dynamic: '%.120s': expected an object", r->file, key);
    if (!excludes) {
        int result = read_bits(&rule, "bits", false, false, &s.bits);
        if (result == 0)
            result = read_group(&rule, "group_size", &s.group);
        if (result == 0)
            result = read_flag(&rule, "desc_act", &s.order);
        if (result < 0)
            return result;
    }
    const char *regex = excludes || strncmp(key, "+:", 2) == 0 ? key + 2 : key;
    return add_rule(r, QUANT_MATCH_REGEX, regex, excludes, &s);
}

static int read_gptq_format(const struct reader *r) {
    const char *format = "gptq", *words = "int32";
    int result = read_text(r, "format", &format); /* newer files */
    if (result == 0)
        result = read_text(r, "checkpoint_format", &format);
    if (result == 0)
        result = read_text(r, "pack_dtype", &words);
    if (result < 0)
        return result;
    if (strcmp(format, "gptq") != 0 && strcmp(format, "gptq_v2") != 0)
        return unread(r, "checkpoint_format", format, "gptq and gptq_v2 are");
    if (strcmp(words, "int32") != 0)
        return unread(r, "pack_dtype", words, "int32 is");
    r->c->v2 = strcmp(format, "gptq_v2") == 0;
    return 0;
}

static int read_gptq(const struct reader *r) {
    struct quant_scheme s = {0};
    const json_t *dynamic = field(r, "dynamic"), *value;
    const char *key;
    if (!field(r, "bits"))
        return error_set(r->e, -EINVAL, "%s: %sbits is missing", r->file, r->path);
    int result = read_bits(r, "bits", false, false, &s.bits);
    if (result == 0)
        result = read_group(r, "group_size", &s.group);
    if (result == 0)
        result = read_flag(r, "desc_act", &s.order);
    if (result == 0)
        result = read_gptq_format(r);
    if (result < 0)
        return result;
    if (dynamic && !json_is_object(dynamic))
        return wrong_type(r, "dynamic", "an object");
    json_object_foreach((json_t *)(uintptr_t)dynamic, key, value) {
        result = add_dynamic(r, key, value, &s);
        if (result < 0)
            return result;
    }
    return add_rule(r, QUANT_MATCH_ALL, "", false, &s);
}

/* --- awq --- */

static int read_awq(const struct reader *r) {
    struct quant_scheme s = {.bits = 4};
    const char *version = "gemm";
    int result = read_bits(r, "bits", true, false, &s.bits);
    if (result == 0)
        result = read_group(r, "group_size", &s.group);
    if (result == 0)
        result = read_text(r, "format", &version);
    if (result == 0)
        result = read_text(r, "version", &version);
    if (result < 0)
        return result;
    if (strcasecmp(version, "gemm") != 0)
        return unread(r, "version", version, "gemm is");
    result = exclude_all(r, "modules_to_not_convert", QUANT_MATCH_PART);
    return result < 0 ? result : add_rule(r, QUANT_MATCH_ALL, "", false, &s);
}

/* --- auto-round: the layouts of GPTQ and AWQ under other names --- */

/* "extra_config": what differs, by name or pattern of modules; 16 bits are as they were. */
static int add_extra(const struct reader *r, const char *key, const json_t *value, struct quant_scheme s) {
    const struct reader rule = {r->file, "quantization_config.extra_config: ", value, r->e, r->c};
    if (!json_is_object(value))
        return error_set(r->e, -EINVAL, "%s: quantization_config.extra_config: '%.120s': expected an object",
                r->file, key);
    bool excludes = json_integer_value(field(&rule, "bits")) >= 16;
    int result = excludes ? 0 : read_bits(&rule, "bits", false, false, &s.bits);
    if (result == 0 && !excludes)
        result = read_group(&rule, "group_size", &s.group);
    if (result == 0)
        result = add_rule(r, QUANT_MATCH_NAME, key, excludes, &s);
    return result < 0 || !strpbrk(key, "*$^\\") ? result : add_rule(r, QUANT_MATCH_REGEX, key, excludes, &s);
}

static int read_auto_round(const struct reader *r) {
    struct quant_scheme s = {0};
    const char *packing = "auto_round:auto_gptq", *type = "int", *key;
    const json_t *extra = field(r, "extra_config"), *value;
    int result = read_text(r, "packing_format", &packing);
    if (result == 0)
        result = read_text(r, "data_type", &type);
    if (result < 0)
        return result;
    if (strcmp(type, "int") != 0)
        return unread(r, "data_type", type, "int is");
    bool awq = strcmp(packing, "auto_round:auto_awq") == 0, v1 = strcmp(packing, "auto_round:auto_gptq") == 0;
    if (!awq && !v1 && strcmp(packing, "auto_round") != 0 && strcmp(packing, "auto_round:gptqmodel") != 0)
        return unread(r, "packing_format", packing,
                "auto_round:auto_gptq, auto_round:gptqmodel, auto_round and auto_round:auto_awq are");
    r->c->method = awq ? QUANT_METHOD_AWQ : QUANT_METHOD_GPTQ;
    r->c->v2 = !awq && !v1;
    result = read_bits(r, "bits", awq, false, &s.bits);
    if (result == 0)
        result = read_group(r, "group_size", &s.group);
    if (result == 0 && extra && !json_is_object(extra))
        return wrong_type(r, "extra_config", "an object");
    if (result < 0)
        return result;
    json_object_foreach((json_t *)(uintptr_t)extra, key, value) {
        result = add_extra(r, key, value, s);
        if (result < 0)
            return result;
    }
    return add_rule(r, QUANT_MATCH_ALL, "", false, &s);
}

/* --- fp8 --- */

static int read_fp8(const struct reader *r) {
    struct quant_scheme s = {.bits = 8};
    const char *fmt = "e4m3";
    int result = read_text(r, "fmt", &fmt);
    if (result == 0)
        result = read_block(r, "weight_block_size", &s);
    if (result < 0)
        return result;
    if (strcmp(fmt, "e4m3") != 0 && strcmp(fmt, "float8_e4m3fn") != 0)
        return unread(r, "fmt", fmt, "e4m3 is");
    result = exclude_all(r, "modules_to_not_convert", QUANT_MATCH_NAME);
    return result < 0 ? result : add_rule(r, QUANT_MATCH_ALL, "", false, &s);
}

/* --- compressed-tensors --- */

static int check_packing(const struct reader *r) {
    static const char *const read[] = {
            "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"};
    const char *format = NULL;
    int result = read_text(r, "format", &format);
    if (result < 0 || !format)
        return result;
    for (size_t i = 0; i < sizeof(read) / sizeof(*read); i++)
        if (strcmp(format, read[i]) == 0)
            return 0;
    return unread(
            r, "format", format, "pack-quantized, int-quantized, float-quantized and mixed-precision are");
}

static int read_strategy(const struct reader *r, struct quant_scheme *s) {
    const char *strategy = "group", *type = "int";
    int result = read_text(r, "strategy", &strategy);
    bool symmetric = true;
    if (result == 0)
        result = read_text(r, "type", &type);
    if (result == 0)
        result = read_flag(r, "symmetric", &symmetric);
    if (result < 0)
        return result;
    bool is_float = strcmp(type, "float") == 0;
    if (!is_float && strcmp(type, "int") != 0)
        return unread(r, "type", type, "int and float are");
    s->type = is_float ? QUANT_TYPE_FLOAT : QUANT_TYPE_INT;
    s->asymmetric = !symmetric && !is_float;
    if (!field(r, "num_bits"))
        return error_set(r->e, -EINVAL, "%s: %snum_bits is missing", r->file, r->path);
    result = read_bits(r, "num_bits", false, is_float, &s->bits);
    if (result < 0)
        return result;
    if (strcmp(strategy, "channel") == 0 || strcmp(strategy, "tensor") == 0) {
        s->group = QUANT_GROUP_ROW;
        return 0;
    }
    if (strcmp(strategy, "block") == 0)
        return read_block(r, "block_structure", s);
    if (strcmp(strategy, "group") != 0)
        return unread(r, "strategy", strategy, "group, channel, tensor and block are");
    return read_group(r, "group_size", &s->group);
}

/* "actorder": "group" (or true) reorders columns; "weight" and "static" do not. */
static int read_actorder(const struct reader *r, struct quant_scheme *s) {
    const json_t *value = field(r, "actorder");
    if (!value || json_is_boolean(value)) {
        s->order = json_is_true(value);
        return 0;
    }
    if (!json_is_string(value))
        return wrong_type(r, "actorder", "a string or a boolean");
    s->order = strcasecmp(json_string_value(value), "group") == 0;
    return 0;
}

/* The targets of one group that match in this way: names first, then patterns, then classes of modules, whatever the
 * order of the groups. */
static int add_targets(const struct reader *group, const json_t *targets, enum quant_match match,
        const struct quant_scheme *s) {
    int result = 0;
    for (size_t i = 0; i < json_array_size(targets) && result == 0; i++) {
        const char *text = json_string_value(json_array_get(targets, i));
        bool is_regex = strncmp(text, "re:", 3) == 0;
        if (match == QUANT_MATCH_REGEX && is_regex)
            result = add_rule(group, match, text + 3, false, s);
        else if (match == QUANT_MATCH_NAME && !is_regex)
            result = add_rule(group, match, text, false, s);
        else if (match == QUANT_MATCH_ALL && strcmp(text, "Linear") == 0)
            result = add_rule(group, match, text, false, s);
    }
    return result;
}

static int read_config_group(const struct reader *r, const json_t *value, enum quant_match match) {
    const struct reader group = {r->file, "quantization_config.config_groups: ", value, r->e, r->c};
    struct reader weights = {r->file, "quantization_config.config_groups: weights.", NULL, r->e, r->c};
    struct quant_scheme s = {0};
    const json_t *targets = NULL;
    if (!json_is_object(value))
        return wrong_type(r, "config_groups", "objects");
    int result = check_packing(&group);
    if (result == 0)
        result = read_list(&group, "targets", &targets);
    weights.object = field(&group, "weights");
    if (result < 0 || !weights.object) /* a group for activations or the cache only */
        return result;
    if (!json_is_object(weights.object))
        return wrong_type(&group, "weights", "an object");
    result = read_strategy(&weights, &s);
    if (result == 0)
        result = read_actorder(&weights, &s);
    return result < 0 ? result : add_targets(&group, targets, match, &s);
}

/* What changes weights in a way that scales and codes do not tell. */
static int check_no_more(const struct reader *r) {
    const json_t *sparsity = field(r, "sparsity_config"), *transform = field(r, "transform_config");
    const char *format = json_string_value(json_object_get(sparsity, "format"));
    if (format && strcmp(format, "dense") != 0)
        return unread(r, "sparsity_config.format", format, "dense is");
    if (json_object_size(json_object_get(transform, "config_groups")) > 0)
        return error_set(r->e, -ENOTSUP,
                "%s: %stransform_config: rotations of activations are not applied; use another checkpoint "
                "of this model",
                r->file, r->path);
    return 0;
}

static int read_compressed(const struct reader *r) {
    static const enum quant_match passes[] = {QUANT_MATCH_NAME, QUANT_MATCH_REGEX, QUANT_MATCH_ALL};
    const json_t *groups = field(r, "config_groups"), *ignore = NULL, *value;
    const char *key;
    int result = check_packing(r);
    if (result == 0)
        result = check_no_more(r);
    if (result == 0)
        result = read_list(r, "ignore", &ignore);
    for (size_t i = 0; i < json_array_size(ignore) && result == 0; i++) {
        const char *text = json_string_value(json_array_get(ignore, i));
        bool regex = strncmp(text, "re:", 3) == 0;
        result = add_rule(
                r, regex ? QUANT_MATCH_REGEX : QUANT_MATCH_NAME, regex ? text + 3 : text, true, NULL);
    }
    if (result == 0 && groups && !json_is_object(groups))
        return wrong_type(r, "config_groups", "an object");
    for (size_t i = 0; i < sizeof(passes) / sizeof(*passes) && result == 0; i++)
        json_object_foreach((json_t *)(uintptr_t)groups, key, value) {
            result = read_config_group(r, value, passes[i]);
            if (result < 0)
                return result;
        }
    return result;
}

/* --- the whole --- */

/* fallback: the method of a file that names none, or NULL. */
static int read_method(const struct reader *r, const char *fallback) {
    static int (*const readers[QUANT_METHODS])(const struct reader *r) = {
            read_gptq, read_awq, read_compressed, read_fp8};
    const char *method = fallback;
    int result = read_text(r, "method", &method); /* newer files of GPTQ */
    if (result == 0)
        result = read_text(r, "quant_method", &method);
    if (result < 0)
        return result;
    if (!method)
        return error_set(r->e, -EINVAL, "%s: %squant_method is missing: " READ_METHODS, r->file, r->path);
    if (strcmp(method, "auto-round") == 0)
        return read_auto_round(r);
    for (size_t i = 0; i < QUANT_METHODS; i++)
        if (strcmp(method, METHODS[i]) == 0) {
            r->c->method = (enum quant_method)i;
            return readers[i](r);
        }
    return unread(r, "quant_method", method, READ_METHODS);
}

static int make(const char *file, const char *path, const json_t *object, const char *fallback,
        struct quant_config **ret, struct error *e) {
    struct quant_config *c = calloc(1, sizeof(*c));
    if (!c)
        return error_set(e, -ENOMEM, "%s: out of memory", file);
    size_t n = strlen(file), size = sizeof(c->file) - 1;
    memcpy(c->file, n > size ? file + n - size : file, n > size ? size : n); /* the end of a path says more */
    int r = read_method(&(struct reader){file, path, object, e, c}, fallback);
    if (r < 0) {
        quant_config_free(c);
        return r;
    }
    *ret = c;
    return 0;
}

int quant_config_parse(
        const char *json, size_t bytes, const char *file, struct quant_config **ret, struct error *e) {
    static const struct {
        const char *key, *path, *fallback;
    } places[] = {{"quantization_config", "quantization_config.", NULL},
            {"compression_config", "compression_config.", "compressed-tensors"}};
    json_t *root = NULL;
    struct quant_config *c = NULL;
    int r = json_config_parse(json, bytes, file, &root, e);
    if (r < 0)
        return r;
    const json_t *const owners[] = {root, json_object_get(root, "text_config")};
    for (size_t i = 0; i < 2 && !c && r == 0; i++)
        for (size_t j = 0; j < 2 && !c && r == 0; j++) {
            const json_t *value = json_object_get(owners[i], places[j].key);
            if (!value || json_is_null(value))
                continue;
            if (!json_is_object(value))
                r = error_set(e, -EINVAL, "%s: %s: expected an object", file, places[j].key);
            else
                r = make(file, places[j].path, value, places[j].fallback, &c, e);
        }
    json_decref(root);
    if (r == 0)
        *ret = c;
    return r;
}

/* The file of older GPTQ checkpoints, whose config.json says nothing. */
static int load_gptq_file(const char *dir, struct quant_config **ret, struct error *e) {
    char path[PATH_MAX], *text = NULL;
    size_t bytes = 0;
    json_t *root = NULL;
    int r = file_path(dir, "quantize_config.json", path, e);
    if (r == 0)
        r = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r == -ENOENT)
        return 0;
    if (r == 0)
        r = json_config_parse(text, bytes, path, &root, e);
    if (r == 0)
        r = make(path, "", root, "gptq", ret, e);
    json_decref(root);
    free(text);
    return r;
}

int quant_config_load(const char *dir, struct quant_config **ret, struct error *e) {
    char path[PATH_MAX], *text = NULL;
    size_t bytes = 0;
    struct quant_config *c = NULL;
    int r = file_path(dir, "config.json", path, e);
    if (r == 0)
        r = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r == 0)
        r = quant_config_parse(text, bytes, path, &c, e);
    free(text);
    if (r == -ENOENT)
        r = 0;
    if (r == 0 && !c)
        r = load_gptq_file(dir, &c, e);
    if (r == 0)
        *ret = c;
    return r;
}
