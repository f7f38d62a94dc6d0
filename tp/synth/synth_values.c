/* synth_values.c - the value of each element, and how it is stored.
 *
 * An element is drawn from a counter: splitmix64 of (key of the tensor + index), so any element can be
 * computed alone and the order of writing does not matter. Only integer operations and single float products
 * are used where it counts, so that the bytes do not depend on the compiler's options. */
#include "tp/synth/synth_parts.h"

#include "base/half.h"
#include "base/hash.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The start of a tensor's sequence. */
static uint64_t key_of(const char *name, uint64_t seed) {
    return hash_mix(fnv1a_text(FNV1A_START, name) ^ splitmix64(seed));
}

/* --- dtypes --- */

float synth_round(float value, enum tensor_dtype dtype) {
    if (dtype == TENSOR_BF16)
        return float_of_bf16(bf16_of(value));
    if (dtype == TENSOR_F16)
        return float_of_f16(f16_of(value));
    return value;
}

static void store(const float *from, size_t n, enum tensor_dtype dtype, void *to) {
    uint16_t *halves = to;
    if (dtype == TENSOR_F32)
        memcpy(to, from, n * sizeof(*from));
    else
        for (size_t i = 0; i < n; i++)
            halves[i] = dtype == TENSOR_BF16 ? bf16_of(from[i]) : f16_of(from[i]);
}

/* --- values --- */

/* n elements from `first` on. */
static void draw(const struct synth_tensor *t, uint64_t key, uint64_t first, size_t n, float *to) {
    /* The sum of four 16-bit uniforms is near enough to normal; its deviation is 65536 / sqrt(3). */
    const float scale = t->spread * (1.7320508f / 65536.0f);
    for (size_t i = 0; i < n; i++) {
        uint64_t x = hash_mix(key + (first + i + 1) * SPLITMIX_GAMMA);
        if (t->draw == DRAW_NORMAL) {
            int32_t sum =
                    (int32_t)((x & 0xFFFF) + (x >> 16 & 0xFFFF) + (x >> 32 & 0xFFFF) + (x >> 48)) - 2 * 65535;
            to[i] = t->mean + scale * (float)sum;
            continue;
        }
        float unit = (float)(x >> 40) * 0x1p-24f; /* [0, 1) */
        if (t->draw == DRAW_UNIFORM)
            to[i] = t->mean + t->spread * (2.0f * unit - 1.0f);
        else
            to[i] = (float)log(0.01 + (double)unit * 15.99);
    }
}

static void change(const struct synth_tensor *t, float *values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float value = synth_round(values[i], t->dtype); /* the model is the safetensors one */
        if (t->change == CHANGE_PLUS_ONE)
            value += 1.0f;
        else if (t->change == CHANGE_MINUS_EXP)
            value = (float)-exp((double)value);
        values[i] = value;
    }
}

/* Which head of Hugging Face's order stands at place p of GGUF's. */
static uint64_t head_at(const struct synth_plan *plan, uint64_t p) {
    uint64_t ratio = plan->v_heads / plan->k_heads;
    return p % plan->k_heads * ratio + p / plan->k_heads;
}

static uint64_t source_row(const struct synth_plan *plan, const struct synth_tensor *t, uint64_t row) {
    if (t->tile != TILE_ROWS || row < t->tile_first)
        return row;
    uint64_t within = row - t->tile_first;
    return t->tile_first + head_at(plan, within / t->tile_unit) * t->tile_unit + within % t->tile_unit;
}

/* A row of the GGUF form. */
static void gguf_row(
        const struct synth_plan *plan, const struct synth_tensor *t, uint64_t key, uint64_t row, float *to) {
    uint64_t first = source_row(plan, t, row) * t->columns;
    if (t->tile != TILE_COLUMNS) {
        draw(t, key, first, t->columns, to);
    } else {
        for (uint64_t p = 0; p < plan->v_heads; p++)
            draw(t, key, first + head_at(plan, p) * t->tile_unit, t->tile_unit, to + p * t->tile_unit);
    }
    change(t, to, t->columns);
}

/* Codes and shapes are not drawn as numbers. */
static int write_integers(struct synth_file *f, const struct synth_tensor *t, uint64_t key, struct error *e) {
    uint32_t block[1024];
    const uint64_t n = t->rows * t->columns;
    if (t->draw == DRAW_SHAPE)
        return synth_file_write(f, t->shape, sizeof(t->shape), e);
    for (uint64_t i = 0; i < n;) {
        size_t some = 0;
        for (; some < sizeof(block) / sizeof(*block) && i < n; i++)
            block[some++] = (uint32_t)(hash_mix(key + (i / 2 + 1) * SPLITMIX_GAMMA) >> (i % 2 * 32));
        int r = synth_file_write(f, block, some * sizeof(*block), e);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Blocks of Q4_0 or Q8_0: scales spread a quarter around their mean, all codes equally likely. */
static int write_blocks(struct synth_file *f, const struct synth_tensor *t, uint64_t key, struct error *e) {
    const uint32_t code_words = SYNTH_BLOCK * t->gguf_bits / 64; /* of 64 bits */
    const float scale = synth_scale(t, t->gguf_bits);
    const uint64_t n = t->rows * t->columns / SYNTH_BLOCK;
    int r = 0;
    for (uint64_t i = 0; i < n && r == 0; i++) {
        uint64_t block[1 + SYNTH_BLOCK / 8];
        for (uint32_t k = 0; k <= code_words; k++)
            block[k] = hash_mix(key + (i * (code_words + 1) + k + 1) * SPLITMIX_GAMMA);
        const float spread = (float)(block[0] >> 40) * 0x1p-25f - 0.25f; /* [-1/4, 1/4) */
        const uint16_t d = f16_of(scale * (1.0f + spread));
        r = synth_file_write(f, &d, sizeof(d), e);
        if (r == 0)
            r = synth_file_write(f, &block[1], code_words * sizeof(block[0]), e);
    }
    return r;
}

int synth_write_tensor(
        struct synth_file *f, const struct synth_plan *plan, const struct synth_tensor *t, struct error *e) {
    const bool gguf = f->options->format == SYNTH_GGUF;
    const enum tensor_dtype dtype = gguf ? t->gguf_dtype : t->dtype;
    const uint64_t key = key_of(t->name, f->options->seed);
    if (t->draw == DRAW_BITS || t->draw == DRAW_SHAPE)
        return write_integers(f, t, key, e);
    if (gguf && t->gguf_bits)
        return write_blocks(f, t, key, e);
    float *values = malloc(t->columns * sizeof(*values));
    void *stored = malloc(t->columns * tensor_dtype_bytes(dtype));
    int r = 0;
    if (!values || !stored)
        r = error_set(
                e, -ENOMEM, "%s: out of memory for a row of %llu", t->name, (unsigned long long)t->columns);
    for (uint64_t row = 0; row < t->rows && r == 0; row++) {
        if (gguf)
            gguf_row(plan, t, key, row, values);
        else
            draw(t, key, row * t->columns, t->columns, values);
        store(values, t->columns, dtype, stored);
        r = synth_file_write(f, stored, t->columns * tensor_dtype_bytes(dtype), e);
    }
    free(values);
    free(stored);
    return r;
}
