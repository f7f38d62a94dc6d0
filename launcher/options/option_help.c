/* option_help.c - the option list of --help and the listing of --print-config, both made from the table. */
#include "launcher/options/options.h"

#include <string.h>

#define HELP_COLUMN 32
#define HELP_WIDTH  100

/* text from column HELP_COLUMN on, broken at blanks. */
static void print_wrapped(FILE *out, const char *text) {
    size_t room = HELP_WIDTH - HELP_COLUMN;
    while (*text) {
        size_t n = strlen(text);
        if (n > room) {
            n = room;
            while (n > 0 && text[n] != ' ')
                n--;
            n = n ? n : room;
        }
        fprintf(out, "%.*s\n", (int)n, text);
        text += n;
        text += strspn(text, " ");
        if (*text)
            fprintf(out, "%*s", HELP_COLUMN, "");
    }
}

static void print_option(FILE *out, const struct option_info *info, unsigned verb) {
    char left[96], text[512];
    int n = info->alias ? snprintf(left, sizeof(left), "  --%s, -%s", info->name, info->alias)
                        : snprintf(left, sizeof(left), "  --%s", info->name);
    if (info->holder)
        n += snprintf(left + n, sizeof(left) - (size_t)n, " %s", info->holder);
    /* A preset of 0 means "chosen for you" and is told in the sentence itself. */
    bool tell = info->preset && strcmp(info->preset, "0") != 0 && !strstr(info->help, "Default") &&
                (verb & info->verbs);
    snprintf(text, sizeof(text), "%s%s%s%s", info->help, tell ? " [" : "", tell ? info->preset : "",
            tell ? "]" : "");
    if (n < HELP_COLUMN - 1)
        fprintf(out, "%-*s", HELP_COLUMN, left);
    else
        fprintf(out, "%s\n%*s", left, HELP_COLUMN, "");
    print_wrapped(out, text);
}

static void print_section(FILE *out, const char *title, const char *section, unsigned verb) {
    bool titled = false;
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        bool here = section ? info->section && strcmp(info->section, section) == 0
                            : !info->section || strcmp(info->section, "client") == 0;
        if (!here || !(info->verbs & verb) || !info->help)
            continue;
        if (!titled)
            fprintf(out, "\n%s:\n", title);
        titled = true;
        print_option(out, info, verb);
    }
}

void options_print_help(FILE *out, unsigned verb) {
    if (verb == VERB_SERVE) {
        print_section(out, "Listening and clients; [server] in the configuration file", "server", verb);
        print_section(out, "The model; [model]", "model", verb);
        print_section(out, "The engine and its workers; [engine]", "engine", verb);
        print_section(out, "Command line only", NULL, verb);
        return;
    }
    print_section(out, "Options", NULL, verb);
    if (verb == VERB_DOCTOR) {
        print_section(out, "What would be served", "model", verb);
        print_section(out, "And how", "engine", verb);
    }
    if (verb == VERB_BENCH) {
        print_section(out, "Without --serve: the model", "model", verb);
        print_section(out, "Its ranks", "engine", verb);
        print_section(out, "What is told", "server", verb);
    }
    if (verb & VERB_ASKS) {
        print_section(out, "With --model DIR: the private service", "model", verb);
        print_section(out, "Its engine and workers", "engine", verb);
        print_section(out, "Its server", "server", verb);
    }
}

static void print_setting(FILE *out, const struct option_info *info, const struct option_value *v) {
    const char *origin = v->source == OPTION_DEFAULT ? "default" : v->where;
    char line[256];
    if (v->source == OPTION_UNSET) {
        fprintf(out, "; %s is not set\n", info->name);
        return;
    }
    for (size_t i = 0; i < (v->n_texts ? v->n_texts : 1); i++) {
        const char *text = v->n_texts ? v->texts[i] : v->text;
        if (v->n_texts && v->source != OPTION_DEFAULT)
            origin = v->wheres[i];
        snprintf(line, sizeof(line), "%s = %s", info->name, text);
        /* A long value keeps its line to itself: the comment would be read as a part of nothing else. */
        if (strlen(info->name) + 3 + strlen(text) >= sizeof(line))
            fprintf(out, "%s = %s\n", info->name, text);
        else
            fprintf(out, "%-44s ; %s\n", line, origin);
    }
}

void options_print_config(FILE *out, const struct options *o) {
    static const char *const sections[] = {"server", "model", "engine"};
    for (size_t s = 0; s < sizeof(sections) / sizeof(sections[0]); s++) {
        fprintf(out, "%s[%s]\n", s ? "\n" : "", sections[s]);
        for (size_t i = 0; i < OPTIONS_N; i++) {
            const struct option_info *info = &option_table[i];
            if (info->section && strcmp(info->section, sections[s]) == 0)
                print_setting(out, info, &o->values[i]);
        }
    }
}
