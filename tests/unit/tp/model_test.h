/* model_test.h - what the model tests share: the golden models, ranks that run them, and comparisons. */
#pragma once

#include "tp/checkpoint/safetensors.h"
#include "tp/worker/offline.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define ROWS_MAX 256u

/* Fails the test with the sentence when r is an error. */
static inline void must(int r, const struct error *e) {
    if (r < 0)
        fail_msg("%d: %s", r, e->text);
}

static inline void model_path(char *path, size_t size, const char *model, const char *file) {
    const char *moved = getenv("SHARDD_TESTS_DIR"); /* where a build was copied to another machine */
    snprintf(path, size, "%s/golden/models/%s%s%s", moved ? moved : TESTS_DIR, model, file ? "/" : "",
            file ? file : "");
}

static inline struct checkpoint *golden_open(const char *model) {
    char path[512];
    struct checkpoint *c = NULL;
    struct error e = {0};
    model_path(path, sizeof(path), model, "golden.safetensors");
    must(checkpoint_open_file(path, &c, &e), &e);
    return c;
}

/* "len65.logits" and so on; fails the test when it is not there. */
static inline const struct tensor *golden(const struct checkpoint *c, uint32_t length, const char *what) {
    char name[64];
    snprintf(name, sizeof(name), "len%u.%s", length, what);
    const struct tensor *t = checkpoint_find(c, name);
    if (!t)
        fail_msg("%s is not in the golden data", name);
    return t;
}

static inline const uint32_t *golden_ids(const struct checkpoint *c, uint32_t length) {
    const struct tensor *t = golden(c, length, "ids");
    assert_int_equal(t->dtype, TENSOR_I32);
    assert_int_equal(t->dims[0], length);
    return t->data;
}

/* Small pools, all that a test of these models needs. */
static inline struct rank_options test_options(const char *model_dir, uint32_t tp) {
    return (struct rank_options){.model_dir = model_dir,
            .tp = tp,
            .threads = 1,
            .max_model_len = 512,
            .max_num_seqs = 8,
            .max_num_batched_tokens = ROWS_MAX,
            .kv_dtype = RANK_KV_F32,
            .kv_cache_bytes = 256u << 20,
            .memory_bytes = 1ull << 30};
}

static inline struct offline *model_start(const char *model, const struct rank_options *changes) {
    char path[512];
    struct offline *o = NULL;
    struct error e = {0};
    struct rank_options options = *changes;
    model_path(path, sizeof(path), model, NULL);
    if (!options.model_dir)
        options.model_dir = path;
    must(offline_create(&options, &o, &e), &e);
    return o;
}

/* One greedy sequence with every result kept. */
struct one_run {
    struct offline_sequence s;
    uint32_t vocab;
};

static inline void run_start(struct one_run *r, struct offline *o, const uint32_t *ids, uint32_t n,
        uint32_t max_tokens, bool keep_logits) {
    uint32_t v = offline_geometry(o)->vocab_size;
    size_t logits = (size_t)(n + max_tokens) * v;
    *r = (struct one_run){.vocab = v,
            .s = {.prompt = ids,
                    .n_prompt = n,
                    .max_tokens = max_tokens,
                    .stop_id = STEP_NONE,
                    .sampling = offline_greedy(),
                    .logprobs = true,
                    .top_logprobs = 5}};
    r->s.samples = calloc(max_tokens + 1u, sizeof(r->s.samples[0]));
    assert_non_null(r->s.samples);
    if (keep_logits) {
        r->s.logits = calloc(logits, sizeof(float));
        assert_non_null(r->s.logits);
    }
    if (keep_logits && offline_geometry(o)->has_mtp) {
        r->s.mtp_logits = calloc(logits, sizeof(float));
        assert_non_null(r->s.mtp_logits);
    }
}

static inline void run_done(struct one_run *r) {
    free(r->s.samples);
    free(r->s.logits);
    free(r->s.mtp_logits);
}

static inline uint32_t argmax(const float *x, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

static inline double max_abs_error(const float *a, const float *b, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) /* a NaN is the worst */
            worst = isnan(d) ? INFINITY : d;
    }
    return worst;
}

static inline void log_softmax(const float *logits, uint32_t n, double *out) {
    double top = logits[argmax(logits, n)], sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - top);
    for (uint32_t i = 0; i < n; i++)
        out[i] = (double)logits[i] - top - log(sum);
}

/* A copy of the tp8 model with the bytes of one tensor changed. Returns the folder. */
static inline void changed_model(char *dir, size_t size, const char *tensor, uint8_t byte, size_t bytes) {
    char path[512], copy[512];
    struct error e = {0};
    struct checkpoint *c = NULL;
    model_path(path, sizeof(path), "tp8", NULL);
    must(checkpoint_open(path, &c, &e), &e);
    const struct tensor *t = checkpoint_find(c, tensor);
    assert_non_null(t);
    snprintf(dir, size, "/tmp/shardd-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    for (int i = 0; i < 2; i++) {
        static const char *const files[] = {"config.json", "model.safetensors"};
        struct stat st;
        model_path(path, sizeof(path), "tp8", files[i]);
        int from = open(path, O_RDONLY | O_CLOEXEC);
        assert_int_equal(fstat(from, &st), 0);
        uint8_t *data = malloc((size_t)st.st_size);
        assert_int_equal(read(from, data, (size_t)st.st_size), st.st_size);
        close(from);
        if (i == 1) {
            uint8_t *at = memmem(data, (size_t)st.st_size, t->data, t->bytes);
            assert_non_null(at);
            memset(at, byte, bytes);
        }
        snprintf(copy, sizeof(copy), "%s/%s", dir, files[i]);
        int to = open(copy, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        assert_int_equal(write(to, data, (size_t)st.st_size), st.st_size);
        close(to);
        free(data);
    }
    checkpoint_free(c);
}

static inline void remove_model(const char *dir) {
    char path[512];
    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    unlink(path);
    rmdir(dir);
}
