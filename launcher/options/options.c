/* options.c - where settings come from and which one wins; see options.h. */
#include "launcher/options/options.h"

#include "base/limits.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_BYTES 64

void options_init(struct options *o, enum verb verb) {
    *o = (struct options){.verb = verb};
}

static void value_done(struct option_value *v) {
    for (size_t i = 0; i < v->n_texts; i++) {
        free(v->texts[i]);
        free(v->wheres[i]);
    }
    free(v->texts);
    free(v->wheres);
    free(v->text);
    free(v->where);
    *v = (struct option_value){0};
}

void options_done(struct options *o) {
    for (size_t i = 0; i < OPTIONS_N; i++)
        value_done(&o->values[i]);
    for (size_t i = 0; i < o->n_positional; i++)
        free(o->positional[i]);
    free(o->positional);
    *o = (struct options){.verb = o->verb};
}

/* --max_num_seqs is --max-num-seqs: people copy flags from servers that write them so. */
static bool same_name(const char *name, const char *given, size_t length) {
    if (strlen(name) != length)
        return false;
    for (size_t i = 0; i < length; i++)
        if (name[i] != (given[i] == '_' ? '-' : given[i]))
            return false;
    return true;
}

const struct option_info *option_find(const char *name, size_t length, unsigned verbs) {
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        if ((info->verbs & verbs) && (same_name(info->name, name, length) ||
                                             (info->alias && same_name(info->alias, name, length))))
            return info;
    }
    return NULL;
}

/* Edits (insert, delete, replace, swap of neighbours) from a to b. */
static unsigned edit_distance(const char *a, size_t na, const char *b, size_t nb) {
    unsigned d[NAME_MAX_BYTES + 1][NAME_MAX_BYTES + 1];
    for (size_t i = 0; i <= na; i++)
        d[i][0] = (unsigned)i;
    for (size_t j = 0; j <= nb; j++)
        d[0][j] = (unsigned)j;
    for (size_t i = 1; i <= na; i++) {
        for (size_t j = 1; j <= nb; j++) {
            unsigned best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = d[i - 1][j] + 1 < best ? d[i - 1][j] + 1 : best;
            best = d[i][j - 1] + 1 < best ? d[i][j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[na][nb];
}

const char *option_nearest(const char *name, size_t length, unsigned verbs, bool in_file) {
    if (length == 0 || length > NAME_MAX_BYTES)
        return NULL;
    const char *nearest = NULL;
    unsigned nearest_distance = 1 + (unsigned)length / 3;
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        size_t n = strlen(info->name);
        if (!(info->verbs & verbs) || (in_file && !option_is_in_file(info)) || n > NAME_MAX_BYTES ||
                same_name(info->name, name, length))
            continue;
        unsigned distance = edit_distance(name, length, info->name, n);
        /* "batched-tokens" is far from "max-num-batched-tokens" in edits, but it is what was meant. */
        if (length >= 4 && n > length && strcmp(info->name + n - length, name) == 0)
            distance = 0;
        if (distance < nearest_distance) {
            nearest = info->name;
            nearest_distance = distance;
        }
    }
    return nearest;
}

static int append(char ***texts, size_t *n, const char *text) {
    char **more = realloc(*texts, (*n + 1) * sizeof(**texts));
    if (!more)
        return -ENOMEM;
    *texts = more;
    if (!(more[*n] = strdup(text)))
        return -ENOMEM;
    (*n)++;
    return 0;
}

const char *option_place(const struct option_info *info, enum option_source source, const char *where,
        char place[OPTION_PLACE_MAX]) {
    if (source == OPTION_FILE && where)
        snprintf(place, OPTION_PLACE_MAX, "%s: %s", where, info->name);
    else
        snprintf(place, OPTION_PLACE_MAX, "%s%s", where ? "" : "--", where ? where : info->name);
    return place;
}

int options_set(struct options *o, enum option_id id, enum option_source source, const char *where,
        const char *text, struct error *e) {
    const struct option_info *info = &option_table[id];
    struct option_value *v = &o->values[id];
    if (v->source > source)
        return 0;
    if (v->source == source && info->type != OPTION_TEXTS)
        return v->where && where && strcmp(v->where, where) != 0
                       ? error_set(e, -EINVAL, "%s: '%s' is given twice; the first is in %s", where,
                                 info->name, v->where)
                       : error_set(e, -EINVAL, "%s: '%s' is given twice", where ? where : info->name,
                                 info->name);
    if (v->n_texts >= OPTION_VALUES_MAX)
        return error_set(e, -E2BIG, "%s: '%s' is given more than %u times", where ? where : info->name,
                info->name, OPTION_VALUES_MAX);
    struct option_value parsed = {.source = source};
    char place[OPTION_PLACE_MAX];
    int rc = option_parse(info, option_place(info, source, where, place), text, &parsed, e);
    if (rc < 0)
        return rc;
    if (!(parsed.text = strdup(text)) || (where && !(parsed.where = strdup(where)))) {
        value_done(&parsed);
        return error_set(e, -ENOMEM, "no memory for the settings");
    }
    if (v->source == source) { /* one more of a list */
        parsed.texts = v->texts;
        parsed.wheres = v->wheres;
        parsed.n_texts = v->n_texts;
        v->texts = v->wheres = NULL;
        v->n_texts = 0;
    }
    value_done(v);
    *v = parsed;
    size_t n = v->n_texts;
    if (info->type == OPTION_TEXTS &&
            (append(&v->wheres, &n, where ? where : "") < 0 || append(&v->texts, &v->n_texts, text) < 0))
        return error_set(e, -ENOMEM, "no memory for the settings");
    return 0;
}

int options_replace(struct options *o, enum option_id id, const char *text, struct error *e) {
    value_done(&o->values[id]);
    return options_set(o, id, OPTION_DEFAULT, NULL, text, e);
}

static int unknown_option(const char *name, size_t length, unsigned verb, struct error *e) {
    const char *near = option_nearest(name, length, verb, /* in_file= */ false);
    if (near)
        return error_set(e, -EINVAL, "unknown option --%.*s; did you mean --%s?",
                (int)(length > 64 ? 64 : length), name, near);
    return error_set(e, -EINVAL, "unknown option --%.*s", (int)(length > 64 ? 64 : length), name);
}

/* argv[*at] is an option; moves *at to its last word. */
static int read_option(struct options *o, char *const argv[], int n, int *at, struct error *e) {
    const char *word = argv[*at], *name = word + (word[1] == '-' ? 2 : 1);
    size_t length = strcspn(name, "=");
    const struct option_info *info = option_find(name, length, o->verb);
    if (!info)
        return unknown_option(name, length, o->verb, e);
    char where[NAME_MAX_BYTES + 8];
    snprintf(where, sizeof(where), "--%s", info->name);
    const char *value = name[length] == '=' ? name + length + 1 : NULL;
    if (info->type == OPTION_SWITCH)
        value = value ? value : "true";
    else if (!value && *at + 1 < n)
        value = argv[++*at];
    if (!value)
        return error_set(e, -EINVAL, "%s needs a value: %s %s", where, where, info->holder);
    return options_set(o, info->id, OPTION_COMMAND_LINE, where, value, e);
}

int options_read_arguments(struct options *o, char *const argv[], int n, struct error *e) {
    bool only_positional = false;
    for (int i = 0; i < n; i++) {
        const char *word = argv[i];
        int rc = 0;
        if (!only_positional && strcmp(word, "--") == 0)
            only_positional = true;
        else if (!only_positional && word[0] == '-' && word[1] != '\0')
            rc = read_option(o, argv, n, &i, e);
        else if (append(&o->positional, &o->n_positional, word) < 0)
            rc = error_set(e, -ENOMEM, "no memory for the command line");
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Settings of the service come from the environment of `serve`, and of who judges them; the client verbs read what
 * clients need. */
static bool environment_counts(const struct option_info *info, unsigned verb) {
    if (!info->section || !(info->verbs & verb))
        return false;
    return (verb & VERB_SETTINGS) || strcmp(info->section, "client") == 0;
}

static void environment_name(const struct option_info *info, char *name, size_t size) {
    snprintf(name, size, "SHARDD_%s", info->name);
    for (char *c = name; *c; c++)
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

static const char *environment_value(char *const environment[], const char *name) {
    size_t n = strlen(name);
    for (; environment && *environment; environment++)
        if (strncmp(*environment, name, n) == 0 && (*environment)[n] == '=')
            return *environment + n + 1;
    return NULL;
}

int options_read_environment(struct options *o, char *const environment[], struct error *e) {
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        if (!environment_counts(info, o->verb))
            continue;
        char name[NAME_MAX_BYTES + 16];
        environment_name(info, name, sizeof(name));
        const char *value = environment_value(environment, name);
        if (!value || !*value)
            continue;
        /* Kubernetes sets NAME_PORT=tcp://... for every service NAME it runs beside us. */
        if (info->id == OPT_PORT && strncmp(value, "tcp://", 6) == 0 && !options_given(o, OPT_PORT))
            return error_set(e, -EINVAL,
                    "SHARDD_PORT=%.64s comes from a Kubernetes service named 'shardd', not from a "
                    "setting; name the service otherwise, or set enableServiceLinks: false, or give --port",
                    value);
        int rc = options_set(o, info->id, OPTION_ENVIRONMENT, name, value, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

void options_apply_defaults(struct options *o) {
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        if (info->preset && (info->verbs & o->verb) && o->values[i].source == OPTION_UNSET)
            (void)options_set(o, info->id, OPTION_DEFAULT, NULL, info->preset, NULL); /* presets are tested */
    }
}

int options_load(struct options *o, char *const argv[], int n, char *const environment[], struct error *e) {
    int rc = options_read_arguments(o, argv, n, e);
    if (rc < 0 || options_number(o, OPT_HELP))
        return rc;
    rc = options_read_environment(o, environment, e);
    if (rc < 0)
        return rc;
    if ((o->verb & VERB_SETTINGS) && options_given(o, OPT_CONFIG)) {
        rc = options_read_file(o, options_text(o, OPT_CONFIG), e);
        if (rc < 0)
            return rc;
    }
    options_apply_defaults(o);
    return options_check(o, e);
}
