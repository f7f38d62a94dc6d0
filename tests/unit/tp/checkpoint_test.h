/* checkpoint_test.h - what the tests of checkpoints share: a folder of their own, small files in it, safetensors files
 * made of a few tensors, and a model opened with all that belongs to it. */
#pragma once

#include "base/file.h"
#include "tp/checkpoint/tensor_names.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* --- folders --- */

#define TEST_FOLDER_SIZE 64

static inline void test_folder_make(char folder[TEST_FOLDER_SIZE]) {
    snprintf(folder, TEST_FOLDER_SIZE, "/tmp/shardd-test-XXXXXX");
    assert_non_null(mkdtemp(folder));
}

/* Takes away the files of a folder, and of the folders in it. */
static inline void test_folder_empty(const char *folder) {
    DIR *d = opendir(folder);
    char path[PATH_MAX];
    for (const struct dirent *f; d && (f = readdir(d));) {
        struct stat st;
        if (strcmp(f->d_name, ".") == 0 || strcmp(f->d_name, "..") == 0)
            continue;
        assert_int_equal(file_path(folder, f->d_name, path, NULL), 0);
        if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
            test_folder_empty(path);
            rmdir(path);
        } else {
            unlink(path);
        }
    }
    if (d)
        closedir(d);
}
static inline void test_folder_remove(const char *folder) {
    test_folder_empty(folder);
    assert_int_equal(rmdir(folder), 0);
}

/* Makes the folder too, if it is not there. */
static inline void test_put(const char *folder, const char *name, const void *data, size_t bytes) {
    char path[PATH_MAX];
    struct error e = {0};
    mkdir(folder, 0777);
    if (file_path(folder, name, path, &e) < 0 || file_replace(path, data, bytes, 0644, &e) < 0)
        fail_msg("%s", e.text);
}
static inline void test_put_text(const char *folder, const char *name, const char *text) {
    test_put(folder, name, text, strlen(text));
}
/* With a NUL behind it; malloc'ed. (Inlined, gcc 12 takes what is found in the text for a pointer to a local.) */
__attribute__((noinline, unused)) static char *test_get(
        const char *folder, const char *name, size_t *ret_bytes) {
    char path[PATH_MAX], *data = NULL;
    struct error e = {0};
    if (file_path(folder, name, path, &e) < 0 || file_read(path, MIB(64), &data, ret_bytes, &e) < 0)
        fail_msg("%s", e.text);
    return data;
}
static inline void test_copy(const char *from, const char *to, const char *name) {
    size_t bytes = 0;
    char *data = test_get(from, name, &bytes);
    test_put(to, name, data, bytes);
    free(data);
}
/* The text with its first `from`, which must be there, turned into `to`; malloc'ed. */
__attribute__((noinline, unused)) static char *test_changed(
        const char *text, const char *from, const char *to) {
    char *changed = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&changed, &bytes);
    const char *at = strstr(text, from);
    if (!out || !at)
        fail_msg("'%s' is not in the text", from);
    fwrite(text, 1, (size_t)(at - text), out);
    fputs(to, out);
    fputs(at + strlen(from), out);
    fclose(out);
    return changed;
}

/* --- safetensors files --- */

struct test_piece {
    char name[160];
    enum tensor_dtype dtype;
    uint32_t n_dims;
    uint64_t dims[3];
    const void *data; /* as many bytes as the shape has */
};

static inline uint64_t test_bytes(const struct test_piece *p) {
    uint64_t bytes = tensor_dtype_bytes(p->dtype);
    for (uint32_t i = 0; i < p->n_dims; i++)
        bytes *= p->dims[i];
    return bytes;
}

/* Writes the pieces whose name is not empty. */
static inline void test_write(int fd, const struct test_piece *pieces, size_t n) {
    char *header = NULL;
    size_t bytes = 0;
    uint64_t at = 0, length;
    FILE *text = open_memstream(&header, &bytes);
    assert_true(fd >= 0 && text);
    fputc('{', text);
    for (size_t i = 0; i < n; i++) {
        const struct test_piece *p = &pieces[i];
        if (!p->name[0])
            continue;
        fprintf(text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", at ? "," : "", p->name,
                tensor_dtype_name(p->dtype));
        for (uint32_t d = 0; d < p->n_dims; d++)
            fprintf(text, "%s%llu", d ? "," : "", (unsigned long long)p->dims[d]);
        fprintf(text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                (unsigned long long)(at + test_bytes(p)));
        at += test_bytes(p);
    }
    fputc('}', text);
    while (ftell(text) % 8 != 0)
        fputc(' ', text);
    fclose(text);
    length = bytes;
    assert_int_equal(file_write_all(fd, &length, 8), 0);
    assert_int_equal(file_write_all(fd, header, bytes), 0);
    for (size_t i = 0; i < n; i++)
        if (pieces[i].name[0])
            assert_int_equal(file_write_all(fd, pieces[i].data, test_bytes(&pieces[i])), 0);
    close(fd);
    free(header);
}
static inline void test_write_file(
        const char *folder, const char *name, const struct test_piece *pieces, size_t n) {
    char path[PATH_MAX];
    assert_int_equal(file_path(folder, name, path, NULL), 0);
    test_write(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), pieces, n);
}
/* Opens such a file without a folder around it. */
static inline struct checkpoint *test_open(const struct test_piece *pieces, size_t n) {
    char path[] = "/tmp/shardd-quant-XXXXXX";
    struct checkpoint *c = NULL;
    struct error e = {0};
    test_write(mkstemp(path), pieces, n);
    if (checkpoint_open_file(path, &c, &e) < 0)
        fail_msg("%s", e.text);
    unlink(path);
    return c;
}
/* All tensors of a checkpoint; names and data are the checkpoint's. malloc'ed, with room for `more`. */
static inline struct test_piece *test_pieces(const struct checkpoint *c, size_t more) {
    struct test_piece *pieces = calloc(checkpoint_count(c) + more, sizeof(*pieces));
    assert_non_null(pieces);
    for (size_t i = 0; i < checkpoint_count(c); i++) {
        const struct tensor *t = checkpoint_at(c, i);
        struct test_piece *p = &pieces[i];
        snprintf(p->name, sizeof(p->name), "%s", t->name);
        p->dtype = t->dtype;
        p->n_dims = t->n_dims;
        assert_true(t->n_dims <= 3);
        memcpy(p->dims, t->dims, t->n_dims * sizeof(p->dims[0]));
        p->data = t->data;
    }
    return pieces;
}
static inline struct test_piece *test_piece_named(struct test_piece *pieces, size_t n, const char *end) {
    for (size_t i = 0; i < n; i++) {
        const size_t have = strlen(pieces[i].name), want = strlen(end);
        if (have >= want && strcmp(pieces[i].name + have - want, end) == 0)
            return &pieces[i];
    }
    fail_msg("no tensor is called ...%s", end);
    return NULL;
}

/* --- models --- */

struct test_model {
    struct model_config m;
    struct checkpoint *c;
    struct model_tensors *t;
};

/* 0 or what the first of the three refused it with. */
static inline int test_model_try(const char *dir, struct test_model *ret, struct error *e) {
    *ret = (struct test_model){0};
    int r = model_config_load(dir, &ret->m, e);
    r = r < 0 ? r : checkpoint_open(dir, &ret->c, e);
    return r < 0 ? r : model_tensors_resolve(ret->c, &ret->m, &ret->t, e);
}
static inline void test_model_done(struct test_model *l) {
    model_tensors_free(l->t);
    checkpoint_free(l->c);
}
static inline struct test_model test_model_load(const char *dir) {
    struct test_model l;
    struct error e = {0};
    if (test_model_try(dir, &l, &e) < 0)
        fail_msg("%s", e.text);
    return l;
}
static inline void test_model_refused(const char *dir, int code, const char *sentence) {
    struct test_model l;
    struct error e = {0};
    int r = test_model_try(dir, &l, &e);
    test_model_done(&l);
    if (r != code || !strstr(e.text, sentence))
        fail_msg("gave %d: %s\n  expected %d: ...%s...", r, e.text, code, sentence);
}
