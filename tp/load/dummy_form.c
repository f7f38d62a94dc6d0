/* dummy_form.c - see dummy_form.h. */
#include "tp/load/dummy_form.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MODULE_MAX 128u

const struct quant_matrix dummy_dense = {.label = "bf16"};

/* A configuration speaks of a checkpoint's modules, of which a linear here may be several; they are alike wherever
 * they can be multiplied together. */
static const struct {
    const char *linear, *module;
} modules[] = {
        {"self_attn.qkv", "self_attn.q_proj"},
        {"linear_attn.in_proj", "linear_attn.in_proj_qkv"},
        {"mlp.gate_up", "mlp.gate_proj"},
};

static void module_of(const char *linear, char ret[MODULE_MAX]) {
    const size_t n = strlen(linear);
    snprintf(ret, MODULE_MAX, "%s%s", strncmp(linear, "layers.", 7) == 0 ? "model." : "", linear);
    for (size_t i = 0; i < sizeof(modules) / sizeof(modules[0]); i++) {
        const size_t m = strlen(modules[i].linear);
        if (n >= m && strcmp(linear + n - m, modules[i].linear) == 0)
            snprintf(ret + strlen(ret) - m, m + 16, "%s", modules[i].module);
    }
}

static int of_config(const struct dummy_form *form, const char *linear, uint32_t columns,
        struct quant_matrix *ret, bool *ret_quantised, struct error *e) {
    char module[MODULE_MAX];
    struct quant_scheme s;
    const char *excluded = NULL;
    module_of(linear, module);
    int r = quant_config_find(form->config, module, &s, &excluded, e);
    *ret_quantised = r == 0 && !excluded && s.bits != 0;
    if (r < 0 || !*ret_quantised)
        return r;
    const bool fp8 = s.type == QUANT_TYPE_FLOAT || quant_config_method(form->config) == QUANT_METHOD_FP8;
    uint32_t group = s.block_columns ? s.block_columns : s.group;
    if (group == 0 || group > columns)
        group = columns;
    if (group != columns && group % 16 != 0)
        return error_set(e, -ENOTSUP, "%s: dummy weights cannot have groups of %u columns", module, group);
    *ret = (struct quant_matrix){.format = fp8           ? QUANT_FP8
                                           : s.bits == 4 ? QUANT_INT4
                                                         : QUANT_INT8,
            .scale = QUANT_SCALE_BF16,
            .group = group,
            .label = "dummy"};
    return 0;
}

int dummy_form_of(const struct dummy_form *form, const char *linear, uint32_t columns,
        struct quant_matrix *ret, bool *ret_quantised, struct error *e) {
    const struct quant_matrix *like = form->layers;
    if (form->head && strcmp(linear, "lm_head") == 0)
        like = form->head;
    if (!like && form->config)
        return of_config(form, linear, columns, ret, ret_quantised, e);
    *ret_quantised = like && like != &dummy_dense;
    if (*ret_quantised) {
        *ret = *like;
        ret->group = ret->group < columns ? ret->group : columns;
    }
    return 0;
}
