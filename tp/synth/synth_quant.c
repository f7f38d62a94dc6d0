/* synth_quant.c - a synthetic model with quantised matrices, in the layout of compressed-tensors (pack-quantized) or as
 * blocks of a GGUF file.
 *
 * Each matrix of the layers, and the head where that is asked for, becomes its codes, its scales and its shape, or in a
 * GGUF file one tensor of another type; the embedding, what is small and what the published quantised models leave
 * alone stay as they are. Codes are uniform, and scales are spread a quarter around the value that gives the dense
 * model's deviation, so that activations keep their size. */
#include "tp/synth/synth_parts.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* Bits of the tensor's elements; 0 = it stays as it is. */
static uint32_t bits_of(const struct synth_tensor *t, uint32_t bits, uint32_t head_bits) {
    static const char *const kept[] = {
            "embed_tokens.weight", "in_proj_a.weight", "in_proj_b.weight", "mtp.fc.weight"};
    for (size_t i = 0; i < sizeof(kept) / sizeof(*kept); i++)
        if (ends_with(t->name, kept[i]))
            return 0;
    if (ends_with(t->name, "lm_head.weight"))
        return head_bits;
    return t->is_vector || t->is_conv ? 0 : bits;
}

float synth_scale(const struct synth_tensor *t, uint32_t bits) {
    const double levels = (double)(1u << bits), deviation = sqrt((levels * levels - 1.0) / 12.0);
    return (float)((double)t->spread / deviation);
}

static int check_columns(const struct synth_tensor *t, uint32_t group, struct error *e) {
    return t->columns % group == 0
                   ? 0
                   : error_set(e, -EDOM, "%s: %llu columns are no multiple of the group size %u", t->name,
                             (unsigned long long)t->columns, group);
}

/* The three tensors that stand for one matrix. */
static int expand(const struct synth_tensor *t, uint32_t bits, uint32_t group, struct synth_tensor *to,
        struct error *e) {
    static const char *const ends[] = {"_packed", "_scale", "_shape"};
    const float scale = synth_scale(t, bits);
    int r = check_columns(t, group, e);
    if (r < 0)
        return r;
    for (int i = 0; i < 3; i++) {
        to[i] = (struct synth_tensor){.rows = t->rows};
        int n = snprintf(to[i].name, sizeof(to[i].name), "%s%s", t->name, ends[i]);
        if (n < 0 || (size_t)n >= sizeof(to[i].name))
            return error_set(e, -EINVAL, "%s: its name is too long", t->name);
    }
    to[0].columns = t->columns * bits / 32;
    to[0].dtype = TENSOR_I32;
    to[0].draw = DRAW_BITS;
    to[0].parameters = t->rows * t->columns;
    to[1].columns = t->columns / group;
    to[1].dtype = TENSOR_BF16;
    to[1].draw = DRAW_UNIFORM;
    to[1].mean = scale;
    to[1].spread = scale / 4.0f;
    to[2].rows = 2;
    to[2].columns = 1;
    to[2].is_vector = true;
    to[2].dtype = TENSOR_I64;
    to[2].draw = DRAW_SHAPE;
    to[2].shape[0] = t->rows;
    to[2].shape[1] = t->columns;
    return 0;
}

int synth_plan_quantise_gguf(struct synth_plan *plan, uint32_t bits, uint32_t head_bits, struct error *e) {
    int r = 0;
    for (uint32_t i = 0; i < plan->n && r == 0; i++)
        if (bits_of(&plan->tensors[i], bits, head_bits))
            r = check_columns(&plan->tensors[i], SYNTH_BLOCK, e);
    for (uint32_t i = 0; i < plan->n && r == 0; i++)
        plan->tensors[i].gguf_bits = bits_of(&plan->tensors[i], bits, head_bits);
    return r;
}

int synth_plan_quantise(
        struct synth_plan *plan, uint32_t bits, uint32_t head_bits, uint32_t group, struct error *e) {
    struct synth_tensor *tensors = calloc((size_t)plan->n * 3, sizeof(*tensors));
    uint32_t n = 0;
    if (!tensors)
        return error_set(e, -ENOMEM, "out of memory for a list of %u tensors", plan->n * 3);
    for (uint32_t i = 0; i < plan->n; i++) {
        const uint32_t own = bits_of(&plan->tensors[i], bits, head_bits);
        if (!own) {
            tensors[n++] = plan->tensors[i];
            continue;
        }
        int r = expand(&plan->tensors[i], own, group, &tensors[n], e);
        if (r < 0) {
            free(tensors);
            return r;
        }
        n += 3;
    }
    free(plan->tensors);
    plan->tensors = tensors;
    plan->n = n;
    plan->size = plan->n;
    return 0;
}
