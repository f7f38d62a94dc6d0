/* quant_rules.c - see quant_rules.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "tp/checkpoint/quant_rules.h"

#include <errno.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/* A name has some fifty bytes: a pattern that takes more steps than this was made to take them. */
#define MATCH_STEPS_MAX 20000u
#define DEPTH_MAX       1000u

struct quant_rule {
    enum quant_match match;
    bool excludes;
    char *text;
    pcre2_code *regex; /* QUANT_MATCH_REGEX */
    struct quant_scheme scheme;
};

static int compile(struct quant_rule *rule, const char *file, struct error *e) {
    int code;
    PCRE2_SIZE at;
    rule->regex = pcre2_compile((PCRE2_SPTR)rule->text, PCRE2_ZERO_TERMINATED,
            PCRE2_ANCHORED | PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if (rule->regex)
        return 0;
    PCRE2_UCHAR why[128] = "";
    pcre2_get_error_message(code, why, sizeof(why));
    return error_set(e, -EINVAL,
            "%s: quantization_config: '%.120s' is not a regular expression: %s at character %zu", file,
            rule->text, (const char *)why, (size_t)at);
}

int quant_rules_add(struct quant_rules *rules, enum quant_match match, const char *text, bool excludes,
        const struct quant_scheme *scheme, const char *file, struct error *e) {
    if (strlen(text) > QUANT_PATTERN_BYTES_MAX)
        return error_set(e, -E2BIG, "%s: quantization_config: '%.60s...' is longer than %u bytes", file, text,
                QUANT_PATTERN_BYTES_MAX);
    if (rules->n == QUANT_RULES_MAX || (match == QUANT_MATCH_REGEX && rules->n_regex == QUANT_REGEX_MAX))
        return error_set(e, -E2BIG,
                "%s: quantization_config names more than %u modules or %u regular expressions", file,
                QUANT_RULES_MAX, QUANT_REGEX_MAX);
    if (rules->n == rules->size) {
        uint32_t size = rules->size ? rules->size * 2 : 16;
        struct quant_rule *grown = realloc(rules->at, size * sizeof(*grown));
        if (!grown)
            return error_set(e, -ENOMEM, "%s: out of memory for %u rules", file, size);
        rules->at = grown;
        rules->size = size;
    }
    struct quant_rule *rule = &rules->at[rules->n];
    *rule = (struct quant_rule){.match = match, .excludes = excludes, .text = strdup(text)};
    if (!rule->text)
        return error_set(e, -ENOMEM, "%s: out of memory", file);
    rules->n++; /* quant_rules_done() frees it from here on */
    if (scheme)
        rule->scheme = *scheme;
    if (match != QUANT_MATCH_REGEX)
        return 0;
    rules->n_regex++;
    return compile(rule, file, e);
}

struct matcher { /* made for one look-up, at the first regular expression */
    pcre2_match_data *data;
    pcre2_match_context *limits;
};

static int matcher_make(struct matcher *m) {
    if (m->data)
        return 0;
    m->data = pcre2_match_data_create(1, NULL);
    m->limits = pcre2_match_context_create(NULL);
    if (!m->data || !m->limits)
        return -ENOMEM;
    pcre2_set_match_limit(m->limits, MATCH_STEPS_MAX);
    pcre2_set_depth_limit(m->limits, DEPTH_MAX);
    return 0;
}

static void matcher_done(struct matcher *m) {
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->limits);
}

/* 1: it matches, 0: it does not. */
static int matches(struct matcher *m, const struct quant_rule *rule, const char *module, const char *file,
        struct error *e) {
    switch (rule->match) {
    case QUANT_MATCH_NAME:
        return strcmp(rule->text, module) == 0;
    case QUANT_MATCH_PART:
        return strstr(module, rule->text) != NULL;
    case QUANT_MATCH_ALL:
        return 1;
    case QUANT_MATCH_REGEX:
        break;
    }
    if (matcher_make(m) < 0)
        return error_set(e, -ENOMEM, "%s: out of memory", file);
    int found = pcre2_match(rule->regex, (PCRE2_SPTR)module, strlen(module), 0, 0, m->data, m->limits);
    if (found >= 0)
        return 1;
    if (found == PCRE2_ERROR_NOMATCH)
        return 0;
    return error_set(e, -EINVAL,
            "%s: quantization_config: the regular expression '%.120s' takes too long on '%.120s': write it "
            "simpler",
            file, rule->text, module);
}

int quant_rules_find(const struct quant_rules *rules, const char *module, const char *file,
        struct quant_scheme *ret, const char **ret_excluded, struct error *e) {
    struct matcher m = {0};
    int found = 0;
    uint32_t i = 0;
    while (i < rules->n && (found = matches(&m, &rules->at[i], module, file, e)) == 0)
        i++;
    matcher_done(&m);
    if (found < 0)
        return found;
    *ret_excluded = found && rules->at[i].excludes ? rules->at[i].text : NULL;
    *ret = found && !rules->at[i].excludes ? rules->at[i].scheme : (struct quant_scheme){0};
    return 0;
}

void quant_rules_done(struct quant_rules *rules) {
    for (uint32_t i = 0; i < rules->n; i++) {
        free(rules->at[i].text);
        pcre2_code_free(rules->at[i].regex);
    }
    free(rules->at);
    *rules = (struct quant_rules){0};
}
