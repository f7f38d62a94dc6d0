/* seeded_checkpoint.h - makes the checkpoints of tests/golden/seeded, whose weights are a rule and not a
 * file.
 *
 * Called by tests that need a model of some size with known results. seeded_model_read() reads tensors.txt,
 * the list of tensors and their rules; seeded_model_write() makes a Hugging Face folder of them in F32, F16
 * or BF16. The rule and the sums are in tests/golden/README.md; make_seeded_goldens.py follows the same. The
 * caller owns the model (seeded_model_done) and the folder. Everything returns 0 or a negative errno. */
#pragma once

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEEDED_STEP 0x9e3779b97f4a7c15u
#define SEEDED_DIMS 3u
#define SEEDED_NAME 128u
#define SEEDED_PATH 1024u

enum seeded_store { SEEDED_F32, SEEDED_F16, SEEDED_BF16, SEEDED_STORES };

struct seeded_tensor {
    char name[SEEDED_NAME];
    int bf16; /* BF16 holds every value; otherwise the tensor is F32 in a BF16 checkpoint */
    int64_t base, spread;
    int exponent;
    uint32_t n_dims;
    uint64_t dims[SEEDED_DIMS], elements;
    uint64_t sums[SEEDED_STORES]; /* what seeded_sum() of its stored bytes must be */
};

struct seeded_model {
    uint64_t seed;
    struct seeded_tensor *at; /* [n], in name order */
    size_t n, size;
};

static inline uint64_t seeded_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* The checksum of n elements of 2 or 4 bytes. */
static inline uint64_t seeded_sum(const void *data, uint64_t n, size_t width) {
    const unsigned char *p = data;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n; i++, p += width) {
        uint16_t half;
        uint32_t word;
        if (width == 2) {
            memcpy(&half, p, 2);
            word = half;
        } else {
            memcpy(&word, p, 4);
        }
        sum += seeded_mix((i + 1) * SEEDED_STEP + word);
    }
    return sum;
}

static inline const char *seeded_dtype(const struct seeded_tensor *t, enum seeded_store store) {
    if (store == SEEDED_BF16)
        return t->bf16 ? "BF16" : "F32";
    return store == SEEDED_F16 ? "F16" : "F32";
}

static inline size_t seeded_width(const struct seeded_tensor *t, enum seeded_store store) {
    return seeded_dtype(t, store)[0] == 'F' && store != SEEDED_F16 ? 4 : 2;
}

/* Exact for every value of a tensor: at most 11 significant bits, none below 2^-24. */
static inline uint16_t seeded_f16(uint32_t bits) {
    uint32_t sign = bits >> 16 & 0x8000, mantissa = (bits & 0x7fffff) | 0x800000;
    int exponent = (int)(bits >> 23 & 255) - 127;
    if ((bits & 0x7fffffff) == 0)
        return (uint16_t)sign;
    if (exponent < -14)
        return (uint16_t)(sign | mantissa >> (-1 - exponent));
    return (uint16_t)(sign | (uint32_t)(exponent + 15) << 10 | (mantissa >> 13 & 0x3ff));
}

/* Fills out[elements] in the dtype of that store. */
static inline void seeded_fill(
        const struct seeded_model *m, const struct seeded_tensor *t, enum seeded_store store, void *out) {
    uint64_t name_hash = 0xcbf29ce484222325u;
    for (const char *c = t->name; *c; c++)
        name_hash = (name_hash ^ (unsigned char)*c) * 0x100000001b3u;
    uint64_t start = seeded_mix(name_hash ^ m->seed), width = seeded_width(t, store);
    unsigned char *to = out;
    for (uint64_t i = 0; i < t->elements; i++, to += width) {
        uint64_t high = seeded_mix(start + (i + 1) * SEEDED_STEP) >> 32;
        int64_t value = t->base + (int64_t)(high * (uint64_t)(2 * t->spread + 1) >> 32) - t->spread;
        float f = ldexpf((float)value, -t->exponent);
        uint32_t bits;
        memcpy(&bits, &f, 4);
        uint16_t half = store == SEEDED_F16 ? seeded_f16(bits) : (uint16_t)(bits >> 16);
        memcpy(to, width == 4 ? (void *)&bits : (void *)&half, width);
    }
}

/* One line of tensors.txt. */
static inline int seeded_parse(const char *line, struct seeded_tensor *t) {
    char dtype[8], shape[64];
    unsigned long long sums[SEEDED_STORES];
    long long base, spread;
    if (sscanf(line, "%127s %7s %lld %lld %d %63s %llx %llx %llx", t->name, dtype, &base, &spread,
                &t->exponent, shape, &sums[SEEDED_F32], &sums[SEEDED_F16], &sums[SEEDED_BF16]) != 9)
        return -EBADMSG;
    t->bf16 = strcmp(dtype, "BF16") == 0;
    t->base = base;
    t->spread = spread;
    for (int i = 0; i < SEEDED_STORES; i++)
        t->sums[i] = sums[i];
    t->elements = 1;
    t->n_dims = 0;
    for (char *at = shape; *at; at += *at == 'x') {
        char *end;
        if (t->n_dims == SEEDED_DIMS)
            return -EBADMSG;
        t->dims[t->n_dims] = strtoul(at, &end, 10);
        if (end == at || (*end && *end != 'x'))
            return -EBADMSG;
        t->elements *= t->dims[t->n_dims++];
        at = end;
    }
    return t->n_dims > 0 && t->elements > 0 ? 0 : -EBADMSG;
}

static inline void seeded_model_done(struct seeded_model *m) {
    free(m->at);
    memset(m, 0, sizeof(*m));
}

/* golden_dir: a folder of tests/golden/seeded. */
static inline int seeded_model_read(const char *golden_dir, struct seeded_model *ret) {
    char path[SEEDED_PATH], line[512];
    struct seeded_model m = {0};
    unsigned long long seed;
    snprintf(path, sizeof(path), "%s/tensors.txt", golden_dir);
    FILE *f = fopen(path, "re");
    if (!f)
        return -errno;
    int r = fgets(line, sizeof(line), f) && sscanf(line, "seed %llu", &seed) == 1 ? 0 : -EBADMSG;
    while (r == 0 && fgets(line, sizeof(line), f)) {
        if (m.n == m.size) {
            size_t size = m.size ? 2 * m.size : 64;
            struct seeded_tensor *at = realloc(m.at, size * sizeof(*at));
            if (!at) {
                r = -ENOMEM;
                break;
            }
            m.at = at;
            m.size = size;
        }
        r = seeded_parse(line, &m.at[m.n]);
        m.n += r == 0;
    }
    fclose(f);
    if (r == 0 && m.n == 0)
        r = -EBADMSG;
    if (r < 0) {
        seeded_model_done(&m);
        return r;
    }
    m.seed = seed;
    *ret = m;
    return 0;
}

static inline int seeded_copy(const char *from_dir, const char *to_dir, const char *name) {
    char path[SEEDED_PATH], text[16384];
    snprintf(path, sizeof(path), "%s/%s", from_dir, name);
    FILE *f = fopen(path, "re");
    if (!f)
        return -errno;
    size_t n = fread(text, 1, sizeof(text), f);
    fclose(f);
    if (n == 0 || n == sizeof(text))
        return -EBADMSG;
    snprintf(path, sizeof(path), "%s/%s", to_dir, name);
    f = fopen(path, "we");
    if (!f)
        return -errno;
    int bad = fwrite(text, 1, n, f) != n;
    return fclose(f) != 0 || bad ? -EIO : 0;
}

/* The length, the JSON and its padding. */
static inline int seeded_write_header(const struct seeded_model *m, enum seeded_store store, FILE *f) {
    char *json = NULL;
    size_t bytes = 0;
    uint64_t at = 0;
    FILE *text = open_memstream(&json, &bytes);
    if (!text)
        return -errno;
    fprintf(text, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < m->n; i++) {
        const struct seeded_tensor *t = &m->at[i];
        fprintf(text, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, seeded_dtype(t, store));
        for (uint32_t d = 0; d < t->n_dims; d++)
            fprintf(text, "%s%llu", d ? "," : "", (unsigned long long)t->dims[d]);
        uint64_t end = at + t->elements * seeded_width(t, store);
        fprintf(text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at, (unsigned long long)end);
        at = end;
    }
    fputc('}', text);
    while (ftell(text) % 8 != 0)
        fputc(' ', text);
    if (fclose(text) != 0) {
        free(json);
        return -ENOMEM;
    }
    uint64_t length = bytes;
    int r = fwrite(&length, 1, 8, f) == 8 && fwrite(json, 1, bytes, f) == bytes ? 0 : -EIO;
    free(json);
    return r;
}

/* Writes config.json, generation_config.json and model.safetensors into dir, which exists. */
static inline int seeded_model_write(
        const struct seeded_model *m, const char *golden_dir, enum seeded_store store, const char *dir) {
    char path[SEEDED_PATH];
    int r = seeded_copy(golden_dir, dir, "config.json");
    if (r == 0)
        r = seeded_copy(golden_dir, dir, "generation_config.json");
    if (r < 0)
        return r;
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    FILE *f = fopen(path, "we");
    if (!f)
        return -errno;
    r = seeded_write_header(m, store, f);
    for (size_t i = 0; i < m->n && r == 0; i++) {
        const struct seeded_tensor *t = &m->at[i];
        size_t width = seeded_width(t, store);
        void *data = malloc(t->elements * width);
        if (!data) {
            r = -ENOMEM;
            break;
        }
        seeded_fill(m, t, store, data);
        if (fwrite(data, width, t->elements, f) != t->elements)
            r = -EIO;
        free(data);
    }
    return fclose(f) != 0 && r == 0 ? -EIO : r;
}
