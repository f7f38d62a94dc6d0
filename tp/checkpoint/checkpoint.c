/* checkpoint.c - a model folder: one file or an index and its shards, all tensors in one sorted table. */
#include "base/file.h"
#include "base/json_pull.h"
#include "tp/checkpoint/gguf_model.h"
#include "tp/checkpoint/quant_config.h"
#include "tp/checkpoint/safetensors_file.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SINGLE_FILE "model.safetensors"
#define INDEX_FILE  "model.safetensors.index.json"

struct shard {
    char *file; /* base name */
    struct file_map map;
    bool missing; /* the index names it, but there is no such file */
};

/* A tensor that the index names and that is not where it says. */
struct lost {
    char *tensor;
    const char *file, *elsewhere; /* the shards' own names; elsewhere is NULL where it is nowhere */
    bool no_file;
};

struct checkpoint {
    struct shard *shards; /* in name order */
    size_t n_shards, shards_size;
    struct tensor_list tensors;
    struct lost *lost; /* in name order */
    size_t n_lost;
    struct quant_config *quantisation; /* NULL: config.json says nothing of it */
    struct gguf_checkpoint *gguf;      /* NULL: safetensors */
    uint64_t bytes;
};

/* One entry of the index's weight_map. */
struct mapping {
    char *tensor;
    const char *file; /* the shard's own name */
};

struct checkpoint *checkpoint_free(struct checkpoint *c) {
    if (!c)
        return NULL;
    tensor_list_done(&c->tensors);
    for (size_t i = 0; i < c->n_shards; i++) {
        file_unmap(&c->shards[i].map);
        free(c->shards[i].file);
    }
    free(c->shards);
    for (size_t i = 0; i < c->n_lost; i++)
        free(c->lost[i].tensor);
    free(c->lost);
    quant_config_free(c->quantisation);
    gguf_checkpoint_free(c->gguf);
    free(c);
    return NULL;
}

void checkpoint_scattered(const struct checkpoint *c, bool scattered) {
    for (size_t i = 0; i < c->n_shards; i++)
        file_map_scattered(&c->shards[i].map, scattered);
    if (c->gguf)
        gguf_checkpoint_scattered(c->gguf, scattered);
}

void checkpoint_release(const struct checkpoint *c) {
    for (size_t i = 0; i < c->n_shards; i++)
        file_map_release(&c->shards[i].map);
    if (c->gguf)
        gguf_checkpoint_release(c->gguf);
}

const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name) {
    size_t low = 0, high = c->tensors.n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, c->tensors.at[middle].name);
        if (order == 0)
            return &c->tensors.at[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

size_t checkpoint_count(const struct checkpoint *c) {
    return c->tensors.n;
}

const struct tensor *checkpoint_at(const struct checkpoint *c, size_t i) {
    return &c->tensors.at[i];
}

uint64_t checkpoint_bytes(const struct checkpoint *c) {
    return c->bytes;
}

size_t checkpoint_files(const struct checkpoint *c) {
    size_t n = c->gguf ? gguf_checkpoint_files(c->gguf) : 0;
    for (size_t i = 0; i < c->n_shards; i++)
        n += !c->shards[i].missing;
    return n;
}

const struct gguf_checkpoint *checkpoint_gguf(const struct checkpoint *c) {
    return c->gguf;
}

const struct quant_config *checkpoint_quantisation(const struct checkpoint *c) {
    return c->quantisation;
}

/* --- shards --- */

/* Where file is, or where it belongs, among the shards. */
static size_t shard_position(const struct checkpoint *c, const char *file, bool *ret_found) {
    size_t low = 0, high = c->n_shards;
    *ret_found = false;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(file, c->shards[middle].file);
        if (order == 0) {
            *ret_found = true;
            return middle;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Notes a shard by its base name, once; the name that the checkpoint owns goes to *ret. */
static int shard_add(struct checkpoint *c, const char *file, const char **ret, struct error *e) {
    bool found;
    size_t at = shard_position(c, file, &found);
    if (!found) {
        if (c->n_shards == SAFETENSORS_SHARDS_MAX)
            return error_set(e, -E2BIG, "%s: names more than %u shards", INDEX_FILE, SAFETENSORS_SHARDS_MAX);
        if (c->n_shards == c->shards_size) {
            size_t size = c->shards_size ? c->shards_size * 2 : 16;
            struct shard *grown = realloc(c->shards, size * sizeof(*grown));
            if (!grown)
                return error_set(e, -ENOMEM, "%s: out of memory for %zu shards", INDEX_FILE, size);
            c->shards = grown;
            c->shards_size = size;
        }
        char *copy = strdup(file);
        if (!copy)
            return error_set(e, -ENOMEM, "%s: out of memory", INDEX_FILE);
        memmove(c->shards + at + 1, c->shards + at, (c->n_shards - at) * sizeof(*c->shards));
        c->shards[at] = (struct shard){.file = copy};
        c->n_shards++;
    }
    *ret = c->shards[at].file;
    return 0;
}

static int shard_open(struct checkpoint *c, struct shard *s, const char *path, struct error *e) {
    int r = file_map(path, &s->map, e);
    if (r < 0)
        return r;
    r = safetensors_parse(s->map.data, s->map.bytes, s->file, &c->tensors, e);
    c->bytes += s->map.bytes;
    return r;
}

/* --- index --- */

struct index {
    struct mapping *at;
    size_t n, size;
};

static void index_done(struct index *index) {
    for (size_t i = 0; i < index->n; i++)
        free(index->at[i].tensor);
    free(index->at);
}

/* A shard is a file beside the index: an index from elsewhere must not make us open another path. */
static int check_shard_name(const struct json_pull *p, struct error *e) {
    const char *name = p->string;
    size_t n = p->string_bytes;
    if (n == 0 || n > NAME_MAX || memchr(name, '\0', n) || memchr(name, '/', n) || memmem(name, n, "..", 2))
        return json_pull_error(p, -EBADMSG, e,
                "'%.*s' cannot be a shard: it must be the name of a file beside the index, without '/' and "
                "'..'",
                n < 200 ? (int)n : 200, name);
    return 0;
}

/* The entry whose key is the current event. */
static int read_mapping(struct checkpoint *c, struct json_pull *p, struct index *index, struct error *e) {
    char file[NAME_MAX + 1];
    if (index->n == SAFETENSORS_TENSORS_MAX)
        return error_set(e, -E2BIG, "%s: names more than %u tensors", INDEX_FILE, SAFETENSORS_TENSORS_MAX);
    if (memchr(p->string, '\0', p->string_bytes))
        return json_pull_error(p, -EBADMSG, e, "a tensor's name may not have a NUL in it");
    if (index->n == index->size) {
        size_t size = index->size ? index->size * 2 : 256;
        struct mapping *grown = realloc(index->at, size * sizeof(*grown));
        if (!grown)
            return error_set(e, -ENOMEM, "%s: out of memory for %zu tensors", INDEX_FILE, size);
        index->at = grown;
        index->size = size;
    }
    struct mapping *m = &index->at[index->n];
    m->tensor = strndup(p->string, p->string_bytes);
    if (!m->tensor)
        return error_set(e, -ENOMEM, "%s: out of memory", INDEX_FILE);
    index->n++;
    int r = json_pull_expect(p, PULL_STRING, e);
    if (r >= 0)
        r = check_shard_name(p, e);
    if (r < 0)
        return r;
    memcpy(file, p->string, p->string_bytes);
    file[p->string_bytes] = '\0';
    return shard_add(c, file, &m->file, e);
}

static int parse_index(
        struct checkpoint *c, const char *text, size_t bytes, struct index *index, struct error *e) {
    struct json_pull p;
    bool seen = false;
    json_pull_init(&p, text, bytes, INDEX_FILE);
    int r = json_pull_expect(&p, PULL_OBJECT_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(&p, e)) == PULL_KEY) {
        if (!json_pull_is(&p, "weight_map")) {
            r = json_pull_skip(&p, e);
            continue;
        }
        if (seen)
            r = json_pull_error(&p, -EBADMSG, e, "weight_map is there twice");
        else
            r = json_pull_expect(&p, PULL_OBJECT_BEGIN, e);
        seen = true;
        while (r >= 0 && (r = json_pull_next(&p, e)) == PULL_KEY)
            r = read_mapping(c, &p, index, e);
    }
    if (r >= 0)
        r = json_pull_expect(&p, PULL_DOCUMENT_END, e);
    json_pull_done(&p);
    if (r >= 0 && index->n == 0)
        r = error_set(e, -EBADMSG, "%s: has no weight_map with tensors in it", INDEX_FILE);
    return r;
}

static int by_tensor(const void *a, const void *b) {
    return strcmp(((const struct lost *)a)->tensor, ((const struct lost *)b)->tensor);
}

/* Notes what is not in the shard that the index names: it matters to who needs it. Takes those names over. */
static int note_lost(struct checkpoint *c, struct index *index, struct error *e) {
    bool found;
    c->lost = calloc(index->n + 1, sizeof(*c->lost));
    if (!c->lost)
        return error_set(e, -ENOMEM, "%s: out of memory for %zu tensors", INDEX_FILE, index->n);
    for (size_t i = 0; i < index->n; i++) {
        struct mapping *m = &index->at[i];
        const struct tensor *t = checkpoint_find(c, m->tensor);
        if (t && strcmp(t->file, m->file) == 0)
            continue;
        c->lost[c->n_lost++] = (struct lost){.tensor = m->tensor,
                .file = m->file,
                .elsewhere = t ? t->file : NULL,
                .no_file = c->shards[shard_position(c, m->file, &found)].missing};
        m->tensor = NULL;
    }
    qsort(c->lost, c->n_lost, sizeof(*c->lost), by_tensor);
    return 0;
}

int checkpoint_check_announced(const struct checkpoint *c, const char *prefix, struct error *e) {
    size_t low = 0, high = c->n_lost;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(c->lost[middle].tensor, prefix) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == c->n_lost || strncmp(c->lost[low].tensor, prefix, strlen(prefix)) != 0)
        return 0;
    const struct lost *l = &c->lost[low];
    if (l->elsewhere)
        return error_set(e, -EBADMSG, "%s: %.200s: the index says it is here, but it is in %s", l->file,
                l->tensor, l->elsewhere);
    if (l->no_file)
        return error_set(e, -ENOENT, "%s: this shard is missing: %s names it for %.200s; fetch it again",
                l->file, INDEX_FILE, l->tensor);
    return error_set(e, -ENOENT, "%s: %.200s: the index says it is here, but it is not", l->file, l->tensor);
}

static int read_index(struct checkpoint *c, const char *dir, struct index *index, struct error *e) {
    char path[PATH_MAX], *text = NULL;
    size_t bytes = 0;
    int r = file_path(dir, INDEX_FILE, path, e);
    if (r >= 0)
        r = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r >= 0)
        r = parse_index(c, text, bytes, index, e);
    free(text);
    return r;
}

/* A shard that is not there may hold only what nobody needs, but one there must be. */
static int open_shards(struct checkpoint *c, const char *dir, struct index *index, struct error *e) {
    char path[PATH_MAX];
    size_t n_missing = 0;
    int r = 0;
    for (size_t i = 0; i < c->n_shards && r >= 0; i++) {
        r = file_path(dir, c->shards[i].file, path, e);
        if (r >= 0)
            r = shard_open(c, &c->shards[i], path, e);
        if (r != -ENOENT)
            continue;
        c->shards[i].missing = true;
        n_missing++;
        r = 0;
    }
    if (r >= 0 && n_missing == c->n_shards)
        r = error_set(e, -ENOENT, "%s/%s: this shard is missing: %s names it; fetch it again", dir,
                c->shards[0].file, INDEX_FILE);
    if (r >= 0)
        r = tensor_list_sort(&c->tensors, e);
    return r < 0 ? r : note_lost(c, index, e);
}

/* --- opening --- */

static int open_single(struct checkpoint *c, const char *path, struct error *e) {
    const char *slash = strrchr(path, '/'), *file;
    int r = shard_add(c, slash ? slash + 1 : path, &file, e);
    if (r >= 0)
        r = shard_open(c, &c->shards[0], path, e);
    return r < 0 ? r : tensor_list_sort(&c->tensors, e);
}

int checkpoint_open_file(const char *path, struct checkpoint **ret, struct error *e) {
    struct checkpoint *c = calloc(1, sizeof(*c));
    if (!c)
        return error_set(e, -ENOMEM, "%s: out of memory", path);
    int r = open_single(c, path, e);
    if (r < 0) {
        checkpoint_free(c);
        return r;
    }
    *ret = c;
    return 0;
}

static bool is_there(const char *dir, const char *name) {
    char path[PATH_MAX];
    struct stat st;
    return file_path(dir, name, path, NULL) == 0 && stat(path, &st) == 0;
}

static int open_gguf(const struct gguf_files *files, struct checkpoint **ret, struct error *e) {
    struct checkpoint *c = calloc(1, sizeof(*c));
    if (!c)
        return error_set(e, -ENOMEM, "%s: out of memory", files->first);
    int r = gguf_checkpoint_open(files, &c->gguf, e);
    if (r == 0)
        r = gguf_checkpoint_list(c->gguf, &c->tensors, e);
    if (r == 0)
        r = tensor_list_sort(&c->tensors, e);
    if (r < 0) {
        checkpoint_free(c);
        return r;
    }
    c->bytes = gguf_checkpoint_bytes(c->gguf);
    *ret = c;
    return 0;
}

static void forget_shards(struct checkpoint *c) {
    for (size_t i = 0; i < c->n_shards; i++)
        free(c->shards[i].file);
    c->n_shards = 0;
}

/* An index beside a single file counts where it names that file: llm-compressor writes the MTP layer to a second one.
 * Where it does not, or cannot be read, it is what a conversion left lying there. */
static int open_files(struct checkpoint *c, const char *dir, struct error *e) {
    char path[PATH_MAX];
    struct index index = {0};
    bool single = is_there(dir, SINGLE_FILE), named = false;
    int r = single && !is_there(dir, INDEX_FILE) ? 0 : read_index(c, dir, &index, single ? NULL : e);
    if (r >= 0 && c->n_shards > 0)
        shard_position(c, SINGLE_FILE, &named);
    if (single && !named) {
        forget_shards(c);
        r = file_path(dir, SINGLE_FILE, path, e);
        r = r < 0 ? r : open_single(c, path, e);
    } else if (r >= 0) {
        r = open_shards(c, dir, &index, e);
    }
    index_done(&index);
    return r;
}

static int open_folder(struct checkpoint *c, const char *dir, struct error *e) {
    int r = quant_config_load(dir, &c->quantisation, e);
    return r < 0 ? r : open_files(c, dir, e);
}

int checkpoint_open(const char *dir, struct checkpoint **ret, struct error *e) {
    struct stat st;
    struct gguf_files gguf;
    if (stat(dir, &st) < 0)
        return error_set(e, -errno, "%s: no model folder: %s", dir, strerror(errno));
    int found = gguf_locate(dir, &gguf, e);
    if (found != 0)
        return found < 0 ? found : open_gguf(&gguf, ret, e);
    if (!S_ISDIR(st.st_mode))
        return error_set(e, -ENOTDIR,
                "%s: is a file; a model is a folder with config.json and %s, or a GGUF file", dir,
                SINGLE_FILE);
    if (!is_there(dir, SINGLE_FILE) && !is_there(dir, INDEX_FILE))
        return error_set(e, -ENOENT, "%s: has neither %s nor %s nor a *.gguf: is this a model folder?", dir,
                SINGLE_FILE, INDEX_FILE);
    struct checkpoint *c = calloc(1, sizeof(*c));
    if (!c)
        return error_set(e, -ENOMEM, "%s: out of memory", dir);
    int r = open_folder(c, dir, e);
    if (r < 0) {
        checkpoint_free(c);
        return r;
    }
    *ret = c;
    return 0;
}
