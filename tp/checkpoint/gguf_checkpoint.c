/* gguf_checkpoint.c - the GGUF files of a model, mapped. See gguf_model.h. */
#include "tp/checkpoint/gguf_model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct part {
    char *file; /* base name */
    struct file_map map;
    struct gguf gguf;
};

struct gguf_checkpoint {
    struct part *parts;
    uint32_t n;
};

struct gguf_checkpoint *gguf_checkpoint_free(struct gguf_checkpoint *c) {
    if (!c)
        return NULL;
    for (uint32_t i = 0; i < c->n; i++) {
        gguf_done(&c->parts[i].gguf);
        file_unmap(&c->parts[i].map);
        free(c->parts[i].file);
    }
    free(c->parts);
    free(c);
    return NULL;
}

void gguf_checkpoint_scattered(const struct gguf_checkpoint *c, bool scattered) {
    for (size_t i = 0; i < c->n; i++)
        file_map_scattered(&c->parts[i].map, scattered);
}

void gguf_checkpoint_release(const struct gguf_checkpoint *c) {
    for (size_t i = 0; i < c->n; i++)
        file_map_release(&c->parts[i].map);
}

/* Does the part say of itself what its name says of it? */
static int check_part(const struct part *p, uint32_t number, uint32_t n, struct error *e) {
    uint64_t no = 0, count = 1;
    int r = 0;
    if (n == 1 && !gguf_find(&p->gguf, "split.count"))
        return 0;
    r = gguf_get_u64(&p->gguf, "split.count", &count, e);
    if (r == 0 && gguf_find(&p->gguf, "split.no"))
        r = gguf_get_u64(&p->gguf, "split.no", &no, e);
    if (r < 0)
        return r;
    if (count != n || no != number)
        return error_set(e, -EINVAL,
                "%s: says that it is part %llu of %llu, expected part %u of %u: keep the names that the files of a "
                "set had",
                p->file, (unsigned long long)no + 1, (unsigned long long)count, number + 1, n);
    return 0;
}

static int open_part(struct part *p, const char *path, struct error *e) {
    const char *slash = strrchr(path, '/');
    p->file = strdup(slash ? slash + 1 : path);
    if (!p->file)
        return error_set(e, -ENOMEM, "%s: out of memory", path);
    int r = file_map(path, &p->map, e);
    return r < 0 ? r : gguf_parse(p->map.data, p->map.bytes, p->file, &p->gguf, e);
}

/* A tensor may be in one file only. */
static int check_names(const struct gguf_checkpoint *c, struct error *e) {
    uint64_t n = 0, announced = 0;
    struct tensor_list list = {0};
    for (uint32_t i = 0; i < c->n; i++)
        n += c->parts[i].gguf.n_tensors;
    if (c->n > 1 && gguf_find(&c->parts[0].gguf, "split.tensors.count")) {
        int r = gguf_get_u64(&c->parts[0].gguf, "split.tensors.count", &announced, e);
        if (r < 0)
            return r;
        if (announced != n)
            return error_set(e, -EBADMSG, "%s: the files of this set have %llu tensors, expected %llu",
                    c->parts[0].file, (unsigned long long)n, (unsigned long long)announced);
    }
    int r = gguf_checkpoint_list(c, &list, e);
    if (r == 0)
        r = tensor_list_sort(&list, e);
    tensor_list_done(&list);
    return r;
}

int gguf_checkpoint_open(const struct gguf_files *files, struct gguf_checkpoint **ret, struct error *e) {
    struct gguf_checkpoint *c = calloc(1, sizeof(*c));
    struct part *parts = calloc(files->n, sizeof(*parts));
    int r = c && parts ? 0 : error_set(e, -ENOMEM, "%s: out of memory", files->first);
    if (c)
        c->parts = parts;
    else
        free(parts);
    for (uint32_t i = 0; i < files->n && r == 0; i++) {
        char path[PATH_MAX];
        r = gguf_part_path(files, i, path, e);
        if (r < 0)
            break;
        c->n = i + 1;
        r = open_part(&c->parts[i], path, e);
        if (r == -ENOENT && files->n > 1)
            error_set(e, r, "%s: this file of a set of %u is missing: fetch it again", path, files->n);
        if (r == 0)
            r = check_part(&c->parts[i], i, files->n, e);
    }
    if (r == 0)
        r = check_names(c, e);
    if (r < 0) {
        gguf_checkpoint_free(c);
        return r;
    }
    *ret = c;
    return 0;
}

static int add(struct tensor_list *list, const struct gguf_tensor *t, const char *file) {
    struct tensor *to = &list->at[list->n];
    const bool read = gguf_tensor_is_read(t), quantised = read && gguf_is_quantised(t->type);
    char *name = strndup(t->name.data, t->name.bytes);
    if (!name)
        return -ENOMEM;
    list->n++;
    *to = (struct tensor){.name = name,
            .file = file,
            .dtype = !read                        ? TENSOR_UNKNOWN
                     : quantised                  ? TENSOR_U8
                     : t->type == GGUF_TENSOR_F32 ? TENSOR_F32
                     : t->type == GGUF_TENSOR_F16 ? TENSOR_F16
                                                  : TENSOR_BF16,
            .n_dims = t->n_dims,
            .data = t->data,
            .bytes = t->bytes};
    uint64_t rows = 1;
    for (uint32_t i = 1; i < t->n_dims; i++)
        rows *= t->dims[i];
    for (uint32_t i = 0; i < t->n_dims; i++)
        to->dims[t->n_dims - 1 - i] = t->dims[i];
    if (!read)
        snprintf(to->unknown, sizeof(to->unknown), "%s", gguf_tensor_type_name(t->type));
    if (quantised)
        to->dims[t->n_dims - 1] = t->bytes / rows;
    return 0;
}

int gguf_checkpoint_list(const struct gguf_checkpoint *c, struct tensor_list *list, struct error *e) {
    size_t n = 0;
    for (uint32_t i = 0; i < c->n; i++)
        n += c->parts[i].gguf.n_tensors;
    *list = (struct tensor_list){.at = calloc(n + 1, sizeof(*list->at)), .size = n + 1};
    int r = list->at ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < c->n; i++)
        for (size_t k = 0; k < c->parts[i].gguf.n_tensors && r == 0; k++)
            r = add(list, &c->parts[i].gguf.tensors[k], c->parts[i].file);
    return r < 0 ? error_set(e, r, "%s: out of memory for %zu tensors", c->parts[0].file, n) : 0;
}

const struct gguf_tensor *gguf_checkpoint_find(
        const struct gguf_checkpoint *c, const char *name, const char **ret_file) {
    for (uint32_t i = 0; i < c->n; i++) {
        const struct gguf_tensor *t = gguf_find_tensor(&c->parts[i].gguf, name);
        if (t) {
            *ret_file = c->parts[i].file;
            return t;
        }
    }
    return NULL;
}

const struct gguf *gguf_checkpoint_metadata(const struct gguf_checkpoint *c) {
    return &c->parts[0].gguf;
}

const char *gguf_checkpoint_file(const struct gguf_checkpoint *c) {
    return c->parts[0].file;
}

uint64_t gguf_checkpoint_bytes(const struct gguf_checkpoint *c) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < c->n; i++)
        bytes += c->parts[i].map.bytes;
    return bytes;
}

size_t gguf_checkpoint_files(const struct gguf_checkpoint *c) {
    return c->n;
}
