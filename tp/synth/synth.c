/* synth.c - see synth.h. Checks the options, the folder and the room, then writes the files, config.json
 * last. */
#include "tp/synth/synth.h"

#include "base/sizes.h"
#include "tp/synth/synth_parts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define OTHER_FILES_BYTES MIB(64) /* tokenizer, configuration, headers */

/* -EDOM: what was asked for cannot be. */
static int check_options(const struct synth_options *o, struct error *e) {
    const struct model_config *m = &o->config;
    if (o->dtype != TENSOR_F32 && o->dtype != TENSOR_BF16 && o->dtype != TENSOR_F16)
        return error_set(
                e, -EDOM, "weights can be written as F32, BF16 and F16, not %s", tensor_dtype_name(o->dtype));
    if (o->weight_bits != 0 && o->weight_bits != 4 && o->weight_bits != 8)
        return error_set(e, -EDOM, "weights of %u bits: 4 and 8 are possible", o->weight_bits);
    if (o->weight_bits && o->group_size != 32 && o->group_size != 64 && o->group_size != 128)
        return error_set(e, -EDOM, "a group size of %u: 32, 64 and 128 are possible", o->group_size);
    if (o->weight_bits && o->format == SYNTH_GGUF && o->group_size != SYNTH_BLOCK)
        return error_set(e, -EDOM, "a group size of %u: a GGUF file (Q4_0, Q8_0) has groups of %u columns",
                o->group_size, SYNTH_BLOCK);
    if (o->config_only && o->format == SYNTH_GGUF)
        return error_set(
                e, -EDOM, "a GGUF file holds weights: a folder without them is for safetensors only");
    if (o->head_bits && (!o->weight_bits || m->tie_word_embeddings))
        return error_set(e, -EDOM, "a head of %u bits needs quantised layers, and not to be the embedding",
                o->head_bits);
    for (uint32_t i = 0; o->format == SYNTH_GGUF && i < m->n_layers; i++)
        if (m->is_attention[i] != ((i + 1) % 4 == 0))
            return error_set(e, -EDOM,
                    "layer %u: a GGUF file can only say that every fourth layer is attention; use "
                    "safetensors",
                    i);
    return 0;
}

/* The folder, made if need be, as a descriptor. */
static int open_folder(const char *dir, bool *ret_made, struct error *e) {
    *ret_made = mkdir(dir, 0777) == 0;
    if (!*ret_made && errno != EEXIST)
        return error_set(e, -errno, "%s: cannot make this folder: %s", dir, strerror(errno));
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set(e, -errno, "%s: cannot open this folder: %s", dir, strerror(errno));
    DIR *entries = opendir(dir);
    const struct dirent *entry;
    int r = entries ? 0 : error_set(e, -errno, "%s: cannot read this folder: %s", dir, strerror(errno));
    while (r == 0 && (entry = readdir(entries)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            r = error_set(
                    e, -EEXIST, "%s: has '%.100s' in it: name a new or an empty folder", dir, entry->d_name);
    if (entries)
        closedir(entries);
    if (r < 0) {
        close(fd);
        return r;
    }
    return fd;
}

static int check_room(const char *dir, int fd, uint64_t bytes, struct error *e) {
    struct statvfs fs;
    if (fstatvfs(fd, &fs) < 0)
        return error_set(e, -errno, "%s: cannot tell how much room is left: %s", dir, strerror(errno));
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize, needed = bytes + OTHER_FILES_BYTES;
    if (room < needed)
        return error_set(e, -ENOSPC,
                "%s: needs %s, %s are free on this disk: fewer --layers, or another disk", dir,
                SIZE_TEXT(needed), SIZE_TEXT(room));
    return 0;
}

/* After a failure: takes away what we wrote into a folder that was empty, so that the same command can be
 * given again. */
static void clean_folder(const char *dir, int fd, bool made) {
    static const char *const beginnings[] = {
            "model", "tokenizer", "chat_template.jinja", "generation_config.json", "config.json"};
    DIR *entries = opendir(dir);
    const struct dirent *entry;
    while (entries && (entry = readdir(entries)))
        for (size_t i = 0; i < sizeof(beginnings) / sizeof(*beginnings); i++)
            if (strncmp(entry->d_name, beginnings[i], strlen(beginnings[i])) == 0)
                unlinkat(fd, entry->d_name, 0);
    if (entries)
        closedir(entries);
    if (made)
        rmdir(dir);
}

static void count(const struct synth_options *o, const struct synth_plan *plan, struct synth_report *report) {
    report->tensors = plan->n;
    for (uint32_t i = 0; i < plan->n; i++) {
        const struct synth_tensor *t = &plan->tensors[i];
        if (t->parameters)
            report->parameters += t->parameters;
        else if (!o->weight_bits || !strstr(t->name, "weight_"))
            report->parameters += t->rows * t->columns;
        report->bytes += synth_tensor_bytes(&plan->tensors[i], o->format);
    }
}

int synth_write(const struct synth_options *o, struct synth_report *ret, struct error *e) {
    struct synth_plan plan = {0};
    struct synth_report report = {0};
    struct synth_tokens tokens = {0};
    bool made = false;
    int fd = -1;
    int r = check_options(o, e);
    if (r == 0)
        r = synth_plan_make(&o->config, o->dtype, &plan, e);
    if (r == 0 && o->weight_bits && o->format == SYNTH_GGUF)
        r = synth_plan_quantise_gguf(&plan, o->weight_bits, o->head_bits, e);
    else if (r == 0 && o->weight_bits)
        r = synth_plan_quantise(&plan, o->weight_bits, o->head_bits, o->group_size, e);
    if (r < 0)
        goto done;
    count(o, &plan, &report);
    fd = open_folder(o->dir, &made, e);
    if (fd < 0) {
        r = fd;
        goto done;
    }
    r = check_room(o->dir, fd, o->config_only ? 0 : report.bytes, e);
    if (r == 0)
        r = synth_write_tokenizer(o, e);
    if (r == 0)
        r = synth_tokens_read(o, &tokens, e);
    if (r == 0 && o->format == SYNTH_GGUF)
        r = synth_write_gguf(o, &plan, &tokens, fd, &report, e);
    else if (r == 0 && !o->config_only)
        r = synth_write_safetensors(o, &plan, fd, &report, e);
    if (r == 0)
        r = synth_write_configs(o, tokens.eos, e);
    if (r == 0 && ret)
        *ret = report;
done:
    if (fd >= 0) {
        if (r < 0)
            clean_folder(o->dir, fd, made);
        close(fd);
    }
    synth_tokens_done(&tokens);
    synth_plan_done(&plan);
    return r;
}
