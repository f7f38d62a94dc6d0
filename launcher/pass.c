/* pass.c - see pass.h. */
#include "launcher/pass.h"

#include <string.h>

void pass_value(struct argv *a, const struct option_info *info, const struct option_value *v) {
    char flag[64];
    snprintf(flag, sizeof(flag), "--%s%s", info->name, info->type == OPTION_DURATION ? "-ms" : "");
    bool is_part = info->type == OPTION_BYTES && v->real > 0;
    if (info->type == OPTION_SWITCH && v->number)
        argv_add(a, "%s", flag);
    else if (info->type == OPTION_NUMBER || info->type == OPTION_DURATION ||
             (info->type == OPTION_BYTES && !is_part))
        argv_add_flag(a, flag, "%llu", (unsigned long long)v->number);
    else if (info->type != OPTION_SWITCH && info->type != OPTION_TEXTS && v->text)
        argv_add_flag(a, flag, "%s", v->text);
    for (size_t i = 0; i < v->n_texts; i++)
        argv_add_flag(a, flag, "%s", v->texts[i]);
}

void pass_settings(struct argv *a, const struct options *o, enum option_to to) {
    for (size_t i = 0; i < OPTIONS_N; i++)
        if (option_table[i].to & to)
            pass_value(a, &option_table[i], &o->values[i]);
}

void pass_speculation(struct argv *a, const struct options *o) {
    const char *who = options_text(o, OPT_SPECULATION);
    uint64_t most = options_number(o, OPT_SPECULATIVE_TOKENS);
    if (most == 0 || strcmp(who, "off") == 0)
        return;
    argv_add_flag(a, "--drafts-max", "%llu", (unsigned long long)most);
    argv_add_flag(a, "--mtp", "%s", strcmp(who, "lookup") == 0 ? "off" : "on");
}
