/* synth_safetensors.c - the safetensors files of a synthetic model: one, or shards with an index. */
#include "tp/synth/synth_parts.h"

#include "base/file.h"
#include "base/limits.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tensors [first, end) of the plan are one file. */
struct part {
    uint32_t first, end;
    char name[64];
};

struct parts {
    struct part *at;
    uint32_t n;
};

/* Fills one file after another; a tensor larger than a shard is a file of its own. */
static int divide(
        const struct synth_options *o, const struct synth_plan *plan, struct parts *ret, struct error *e) {
    uint64_t bytes = 0;
    struct part *at = calloc(plan->n, sizeof(*at));
    uint32_t n = 0;
    if (!at)
        return error_set(e, -ENOMEM, "out of memory for a list of %u files", plan->n);
    for (uint32_t i = 0; i < plan->n; i++) {
        uint64_t more = synth_tensor_bytes(&plan->tensors[i], SYNTH_SAFETENSORS);
        if (n == 0 || (o->shard_bytes > 0 && bytes + more > o->shard_bytes)) {
            at[n++].first = i;
            bytes = 0;
        }
        bytes += more;
        at[n - 1].end = i + 1;
    }
    if (n > SAFETENSORS_SHARDS_MAX) {
        free(at);
        return error_set(e, -EDOM, "--shard-size %llu would make %u files, at most %u are read",
                (unsigned long long)o->shard_bytes, n, SAFETENSORS_SHARDS_MAX);
    }
    for (uint32_t i = 0; i < n; i++)
        if (n == 1)
            snprintf(at[i].name, sizeof(at[i].name), "model.safetensors");
        else
            snprintf(at[i].name, sizeof(at[i].name), "model-%05u-of-%05u.safetensors", i + 1, n);
    *ret = (struct parts){at, n};
    return 0;
}

/* Wide elements go first, so that all are aligned for their dtype. */
#define PASSES 3
static bool goes_in_pass(const struct synth_tensor *t, int pass) {
    static const size_t bytes[PASSES] = {8, 4, 2};
    return tensor_dtype_bytes(t->dtype) == bytes[pass];
}

static void print_entry(struct synth_buffer *b, const struct synth_tensor *t, uint64_t offset) {
    unsigned long long begin = offset, end = offset + synth_tensor_bytes(t, SYNTH_SAFETENSORS);
    synth_print(b, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%llu", t->name, tensor_dtype_name(t->dtype),
            (unsigned long long)t->rows);
    if (t->is_conv)
        synth_print(b, ",1");
    if (!t->is_vector)
        synth_print(b, ",%llu", (unsigned long long)t->columns);
    synth_print(b, "],\"data_offsets\":[%llu,%llu]}", begin, end);
}

/* The header with its length before it, padded with spaces to a multiple of eight. */
static int make_header(
        const struct synth_plan *plan, const struct part *part, struct synth_buffer *b, struct error *e) {
    uint64_t offset = 0;
    synth_append(b, "\0\0\0\0\0\0\0\0", 8);
    synth_print(b, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int pass = 0; pass < PASSES; pass++)
        for (uint32_t i = part->first; i < part->end; i++)
            if (goes_in_pass(&plan->tensors[i], pass)) {
                print_entry(b, &plan->tensors[i], offset);
                offset += synth_tensor_bytes(&plan->tensors[i], SYNTH_SAFETENSORS);
            }
    synth_print(b, "}");
    while (b->n % 8 != 0 && !b->failed)
        synth_print(b, " ");
    if (b->failed)
        return error_set(e, -ENOMEM, "%s: out of memory for its header", part->name);
    for (unsigned i = 0; i < 8; i++)
        b->data[i] = (char)((uint64_t)(b->n - 8) >> (8 * i));
    return 0;
}

static int write_part(const struct synth_options *o, const struct synth_plan *plan, const struct part *part,
        int dir_fd, uint64_t *done, uint64_t total, struct error *e) {
    struct synth_buffer header = {0};
    struct synth_file f = {.fd = -1};
    uint64_t unused = 0; /* the header is not counted */
    int r = make_header(plan, part, &header, e);
    if (r == 0)
        r = synth_file_open(&f, o, dir_fd, part->name, &unused, total, e);
    if (r == 0)
        r = synth_file_write(&f, header.data, header.n, e);
    f.done = done;
    for (int pass = 0; pass < PASSES; pass++)
        for (uint32_t i = part->first; i < part->end && r == 0; i++)
            if (goes_in_pass(&plan->tensors[i], pass))
                r = synth_write_tensor(&f, plan, &plan->tensors[i], e);
    if (r == 0)
        r = synth_file_close(&f, e);
    synth_file_abandon(&f);
    free(header.data);
    return r;
}

static int write_index(const struct synth_options *o, const struct synth_plan *plan,
        const struct parts *parts, uint64_t total, struct error *e) {
    struct synth_buffer b = {0};
    char path[PATH_MAX];
    synth_print(&b, "{\n  \"metadata\": {\n    \"total_size\": %llu\n  },\n  \"weight_map\": {",
            (unsigned long long)total);
    for (uint32_t i = 0; i < parts->n; i++)
        for (uint32_t k = parts->at[i].first; k < parts->at[i].end; k++)
            synth_print(&b, "%s\n    \"%s\": \"%s\"", k ? "," : "", plan->tensors[k].name, parts->at[i].name);
    synth_print(&b, "\n  }\n}\n");
    int r = b.failed ? error_set(e, -ENOMEM, "out of memory for the index")
                     : file_path(o->dir, "model.safetensors.index.json", path, e);
    if (r == 0)
        r = file_replace(path, b.data, b.n, 0644, e);
    free(b.data);
    return r;
}

int synth_write_safetensors(const struct synth_options *o, const struct synth_plan *plan, int dir_fd,
        struct synth_report *report, struct error *e) {
    struct parts parts = {0};
    uint64_t done = 0;
    int r = divide(o, plan, &parts, e);
    for (uint32_t i = 0; i < parts.n && r == 0; i++)
        r = write_part(o, plan, &parts.at[i], dir_fd, &done, report->bytes, e);
    if (r == 0 && parts.n > 1)
        r = write_index(o, plan, &parts, report->bytes, e);
    report->files = parts.n;
    free(parts.at);
    return r;
}
