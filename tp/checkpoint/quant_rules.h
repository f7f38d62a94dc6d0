/* quant_rules.h - the ordered list of rules that quant_config.c makes of a quantization_config; the first that matches
 * a module decides. Nobody else includes it. */
#pragma once

#include "tp/checkpoint/quant_config.h"

enum quant_match {
    QUANT_MATCH_NAME,  /* the module's whole name */
    QUANT_MATCH_PART,  /* somewhere in the name */
    QUANT_MATCH_REGEX, /* at the start of the name */
    QUANT_MATCH_ALL
};

struct quant_rules { /* zeroed = empty */
    struct quant_rule *at;
    uint32_t n, size, n_regex;
};
/* Appends a rule; text is copied. excludes: modules that match are not quantised, scheme is not looked at. */
int quant_rules_add(struct quant_rules *rules, enum quant_match match, const char *text, bool excludes,
        const struct quant_scheme *scheme, const char *file, struct error *e);
int quant_rules_find(const struct quant_rules *rules, const char *module, const char *file,
        struct quant_scheme *ret, const char **ret_excluded, struct error *e);
void quant_rules_done(struct quant_rules *rules);
