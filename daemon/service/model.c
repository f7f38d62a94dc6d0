/* model.c - see model.h. */
#include "daemon/service/model.h"

#include "base/file.h"
#include "base/gguf.h"
#include "base/json_config.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "daemon/text/gguf_text.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int model_check_name(const char *name, size_t bytes, struct error *e) {
    if (bytes == 0 || bytes > SERVED_NAME_BYTES_MAX || !utf8_valid(name, bytes, NULL))
        return error_set(e, -EINVAL,
                "a served model name has 1 to %u bytes of UTF-8; set --served-model-name",
                SERVED_NAME_BYTES_MAX);
    return 0;
}

static int add_name(struct model *m, const char *name, size_t bytes, struct error *e) {
    int r = model_check_name(name, bytes, e);
    if (r < 0)
        return r;
    if (m->n_names == SERVED_NAMES_MAX)
        return error_set(e, -E2BIG, "more than %u --served-model-name", SERVED_NAMES_MAX);
    m->names[m->n_names] = strndup(name, bytes);
    if (!m->names[m->n_names])
        return error_set(e, -ENOMEM, "no memory");
    m->n_names++;
    return 0;
}

/* The last part of the path: "/models/Qwen3.5-27B/" is Qwen3.5-27B, and so is "Qwen3.5-27B.gguf". */
static int add_name_of_path(struct model *m, struct error *e) {
    static const char suffix[] = ".gguf";
    size_t end = strlen(m->path), start;
    while (end > 1 && m->path[end - 1] == '/')
        end--;
    if (end > strlen(suffix) && strncmp(m->path + end - strlen(suffix), suffix, strlen(suffix)) == 0)
        end -= strlen(suffix);
    for (start = end; start > 0 && m->path[start - 1] != '/'; start--)
        ;
    return add_name(m, m->path + start, end - start, e);
}

/* model_type, and the stop ids that only config.json names in some checkpoints. */
static int read_config(struct model *m, struct error *e) {
    char path[PATH_MAX], *text = NULL;
    size_t bytes = 0;
    int r = file_path(m->path, "config.json", path, e);
    if (r == 0)
        r = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r < 0)
        return r;
    json_t *root = NULL;
    r = json_config_parse(text, bytes, path, &root, e);
    free(text);
    if (r < 0)
        return r;
    const char *type = json_string_value(json_object_get(root, "model_type"));
    if (type)
        snprintf(m->architecture, sizeof(m->architecture), "%.*s",
                (int)utf8_cut(type, strlen(type), sizeof(m->architecture) - 1), type);
    const json_t *places[] = {root, json_object_get(root, "text_config")};
    for (size_t i = 0; i < 2 && r == 0; i++)
        r = generation_config_add_stop_ids(&m->generation, places[i], e);
    json_decref(root);
    return r < 0 ? error_prefix(e, r, "%s", path) : 0;
}

/* Some checkpoints name only one of the two: a turn ends with the first, a document with the second. */
static int add_usual_stop_ids(struct model *m, struct error *e) {
    static const char *const usual[] = {"<|im_end|>", "<|endoftext|>"};
    for (size_t i = 0; i < 2; i++) {
        uint32_t id;
        if (tokenizer_find(m->tokenizer, usual[i], &id) < 0)
            continue;
        int r = generation_config_add_stop_id(&m->generation, id, e);
        if (r < 0)
            return r;
    }
    return 0;
}

static bool is_beside(const char *folder, const char *name) {
    char path[PATH_MAX];
    return file_path(folder, name, path, NULL) == 0 && access(path, F_OK) == 0;
}

/* generation_config.json, where there is one. */
static int read_generation(struct model *m, const char *folder, struct error *e) {
    char path[PATH_MAX];
    int r = file_path(folder, "generation_config.json", path, e);
    if (r == 0)
        r = generation_config_load(&m->generation, path, e);
    return r == -ENOENT ? 0 : r;
}

/* Architecture, sampling values and stop ids of a GGUF model, and its tokenizer and chat template unless files
 * beside it have them. */
static int read_metadata(struct model *m, const char *folder, const struct gguf *g, struct error *e) {
    static const char *const keys[] = {
            "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    struct gguf_string architecture;
    char path[PATH_MAX];
    int r = gguf_get_string(g, "general.architecture", &architecture, e);
    if (r < 0)
        return r;
    snprintf(m->architecture, sizeof(m->architecture), "%.*s",
            (int)(architecture.bytes < sizeof(m->architecture) ? architecture.bytes : 0), architecture.data);
    r = generation_config_read_gguf(&m->generation, g, e);
    if (r == 0)
        r = read_generation(m, folder, e); /* what it says wins */
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys) && r == 0; i++) {
        uint64_t id = 0;
        if (gguf_find(g, keys[i]))
            r = gguf_get_u64(g, keys[i], &id, e);
        if (r == 0 && gguf_find(g, keys[i]) && id < TOKENIZER_VOCAB_MAX)
            r = generation_config_add_stop_id(&m->generation, (uint32_t)id, e);
    }
    if (r == 0)
        r = file_path(folder, "tokenizer.json", path, e);
    if (r == 0)
        r = is_beside(folder, "tokenizer.json") ? tokenizer_load(path, &m->tokenizer, e)
                                                : gguf_tokenizer_load(g, &m->tokenizer, e);
    if (r < 0)
        return r;
    return is_beside(folder, "chat_template.jinja") || is_beside(folder, "tokenizer_config.json")
                   ? chat_template_load(folder, &m->template, e)
                   : gguf_chat_template_load(g, &m->template, e);
}

static int load_gguf(struct model *m, const struct gguf_files *files, struct error *e) {
    const char *slash = strrchr(files->first, '/');
    struct file_map map;
    struct gguf g = {0};
    int r = file_map(files->first, &map, e);
    if (r < 0)
        return r;
    r = gguf_parse(map.data, map.bytes, slash ? slash + 1 : files->first, &g, e);
    if (r == 0)
        r = read_metadata(m, files->folder, &g, e);
    gguf_done(&g);
    file_unmap(&map);
    return r;
}

static int load_folder(struct model *m, struct error *e) {
    char path[PATH_MAX];
    int r = read_generation(m, m->path, e);
    if (r == 0)
        r = read_config(m, e);
    if (r == 0)
        r = file_path(m->path, "tokenizer.json", path, e);
    if (r == 0)
        r = tokenizer_load(path, &m->tokenizer, e);
    return r < 0 ? r : chat_template_load(m->path, &m->template, e);
}

static int load_files(struct model *m, struct error *e) {
    struct gguf_files gguf;
    int is_gguf = gguf_locate(m->path, &gguf, e);
    if (is_gguf < 0)
        return is_gguf;
    generation_config_init(&m->generation);
    int r = is_gguf ? load_gguf(m, &gguf, e) : load_folder(m, e);
    if (r == 0)
        r = add_usual_stop_ids(m, e);
    if (r == 0 && m->template.kind == CHAT_TEMPLATE_NONE && e)
        m->template_error = *e;
    return r;
}

int model_load(
        const char *path, const char *const *names, size_t n_names, struct model **ret, struct error *e) {
    struct model *m = calloc(1, sizeof(*m));
    if (!m)
        return error_set(e, -ENOMEM, "no memory");
    int r = 0;
    m->path = strdup(path);
    if (!m->path)
        r = error_set(e, -ENOMEM, "no memory");
    for (size_t i = 0; i < n_names && r == 0; i++)
        r = add_name(m, names[i], strlen(names[i]), e);
    if (r == 0 && n_names == 0)
        r = add_name_of_path(m, e);
    if (r == 0)
        r = load_files(m, e);
    if (r < 0) {
        model_free(m);
        return r;
    }
    *ret = m;
    return 0;
}

struct model *model_free(struct model *m) {
    if (!m)
        return NULL;
    for (size_t i = 0; i < m->n_names; i++)
        free(m->names[i]);
    tokenizer_free(m->tokenizer);
    free(m->path);
    free(m);
    return NULL;
}

bool model_has_name(const struct model *m, const char *name, size_t bytes) {
    if (bytes == 0)
        return true;
    for (size_t i = 0; i < m->n_names; i++)
        if (strlen(m->names[i]) == bytes && memcmp(m->names[i], name, bytes) == 0)
            return true;
    return false;
}
