/* quant_config.h - what a model folder says of its quantisation: quantization_config in config.json (or
 * compression_config, or the quantize_config.json of older GPTQ files).
 *
 * Read by checkpoint_open() and asked while tensors are resolved. The layout of a tensor is decided by the file, which
 * has it or not; this says what the file cannot (which of GPTQ's two ways zeros are stored in, how wide a group is
 * where the last one is cut), and what must agree with the file. Methods, widths and variants that are not read are
 * refused here, by name.
 *
 * Patterns are regular expressions of the file's author, matched at the start of a module's name with limits on the
 * work that they may cause. */
#pragma once

#include "base/error.h"
#include "base/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum quant_method {
    QUANT_METHOD_GPTQ,
    QUANT_METHOD_AWQ,
    QUANT_METHOD_COMPRESSED_TENSORS,
    QUANT_METHOD_FP8,
    QUANT_METHODS
};
const char *quant_method_name(enum quant_method method); /* as quant_method spells it */

#define QUANT_GROUP_ROW UINT32_MAX /* all columns of a row, or more, share a scale */

struct quant_scheme { /* how modules are quantised; 0 = not said */
    uint32_t bits;    /* 4 or 8 */
    uint32_t group;   /* columns, or QUANT_GROUP_ROW */
    enum { QUANT_TYPE_NOT_SAID, QUANT_TYPE_INT, QUANT_TYPE_FLOAT } type;
    bool asymmetric;                    /* zero points must be there */
    uint32_t block_rows, block_columns; /* FP8 whose scales are of blocks */
    bool order;                         /* columns may have been reordered by group: g_idx must be there */
};

struct quant_config;
/* *ret is NULL where the folder says nothing of quantisation (or has no config.json). -ENOTSUP: something that is not
 * read; -EINVAL, -EBADMSG: a file that makes no sense. */
int quant_config_load(const char *dir, struct quant_config **ret, struct error *e);
/* A whole config.json from memory; file is for messages and must outlive *ret. */
int quant_config_parse(
        const char *json, size_t bytes, const char *file, struct quant_config **ret, struct error *e);
struct quant_config *quant_config_free(struct quant_config *c); /* NULL ok; returns NULL */

enum quant_method quant_config_method(const struct quant_config *c);
bool quant_config_is_v2(const struct quant_config *c); /* GPTQ: zeros as they are, not less one */
/* What it says of a module, e.g. "model.layers.3.mlp.up_proj". *ret_excluded is the entry of the configuration that
 * leaves the module as it is, or NULL; valid as long as c. -EINVAL: a pattern takes too long. */
int quant_config_find(const struct quant_config *c, const char *module, struct quant_scheme *ret,
        const char **ret_excluded, struct error *e);
