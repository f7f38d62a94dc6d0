/* options.h - every setting of the shardd command: one table serves flags, environment, configuration file
 * and help.
 *
 * A setting has one name: --max-num-seqs on the command line, SHARDD_MAX_NUM_SEQS in the environment and
 * max-num-seqs in the [engine] section of the configuration file. The command line wins over the environment,
 * that over the file, that over the default; each value remembers where it came from, for error messages and for
 * --print-config. The table is made of the rows in option_rows.inc, one a setting; option_values.c reads values,
 * options.c and config_file.c their sources.
 *
 * An object of struct options owns its texts; it does not keep argv. Nothing here logs or exits. */
#pragma once

#include "base/error.h"

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum verb {
    VERB_SERVE = 1u << 0,
    VERB_GENERATE = 1u << 1,
    VERB_CHAT = 1u << 2,
    VERB_STATUS = 1u << 3,
    VERB_DOCTOR = 1u << 4,
    VERB_BENCH = 1u << 5,
};
#define VERB_CLIENTS  (VERB_GENERATE | VERB_CHAT | VERB_STATUS)
#define VERB_SETTINGS (VERB_SERVE | VERB_DOCTOR)  /* verbs whose settings have all four sources */
#define VERB_ASKS     (VERB_GENERATE | VERB_CHAT) /* verbs that send prompts and may start a private service */

/* OPT_HOST, OPT_PORT, ...: one for each row. */
#define TEXT(id, ...)     OPT_##id,
#define TEXTS(id, ...)    OPT_##id,
#define NUMBER(id, ...)   OPT_##id,
#define REAL(id, ...)     OPT_##id,
#define BYTES(id, ...)    OPT_##id,
#define DURATION(id, ...) OPT_##id,
#define CHOICE(id, ...)   OPT_##id,
#define SWITCH(id, ...)   OPT_##id,
enum option_id {
#include "launcher/options/option_rows.inc"
    OPTIONS_N,
};

enum option_type {
    OPTION_TEXT,
    OPTION_TEXTS,  /* may be given several times */
    OPTION_NUMBER, /* whole, min..max */
    OPTION_REAL,   /* min..max */
    OPTION_BYTES, /* as size_or_part_parse(): number holds bytes; or real a part such as 0.5, and number is 0 */
    OPTION_DURATION, /* 30s, 500ms, 2m, plain = seconds; number holds milliseconds */
    OPTION_CHOICE,   /* one of "a|b|c" */
    OPTION_SWITCH,   /* no value on the command line; true/false in the file. number holds 0 or 1 */
};

/* The children of `serve` that a setting is passed to, under its name. */
enum option_to {
    TO_NOBODY = 0,
    TO_WORKER = 1u << 0,
    TO_COORDINATOR = 1u << 1,
    TO_BENCH = 1u << 2, /* the worker's `bench`, and not of `serve` */
};

struct option_info {
    enum option_id id;
    const char *name;  /* long name, words joined by '-' */
    const char *alias; /* another spelling after '-' or '--': "tp", "h"; NULL = none */
    enum option_type type;
    const char *section; /* of the file: "server", "model", "engine"; "client"/NULL = not in a file */
    unsigned verbs;      /* enum verb bits: who takes it */
    unsigned to;         /* enum option_to bits: who is told */
    const char *holder;  /* what stands for the value in help: "N", "DIR" */
    const char *preset;  /* default as text; NULL = unset */
    double min, max;     /* NUMBER, REAL, BYTES (bytes), DURATION (milliseconds); a NUMBER of 2^64 = any */
    const char *choices; /* CHOICE */
    const char *help;    /* a sentence or two */
};
extern const struct option_info option_table[OPTIONS_N];

enum option_source { OPTION_UNSET, OPTION_DEFAULT, OPTION_FILE, OPTION_ENVIRONMENT, OPTION_COMMAND_LINE };

#define OPTION_VALUES_MAX 1024u      /* of one TEXTS option */
#define OPTION_BYTES_MAX  (1u << 20) /* one value */

struct option_value {
    enum option_source source;
    char *where; /* "--port", "SHARDD_PORT", "/etc/shardd.conf:12"; NULL for defaults */
    char *text;  /* as given; the last one of TEXTS */
    uint64_t number;
    double real;
    char **texts; /* TEXTS; wheres[i] is where texts[i] came from, "" for defaults */
    char **wheres;
    size_t n_texts;
};

struct options {
    enum verb verb;
    struct option_value values[OPTIONS_N];
    char **positional;
    size_t n_positional;
};

void options_init(struct options *o, enum verb verb);
void options_done(struct options *o);

/* argv[0..n) after the verb. Fills values with source COMMAND_LINE. -EINVAL with a sentence. */
int options_read_arguments(struct options *o, char *const argv[], int n, struct error *e);
/* SHARDD_NAME for every setting of the verb not given on the command line. */
int options_read_environment(struct options *o, char *const environment[], struct error *e);
/* Settings of a configuration file that are not yet set (config_file.c). -ENOENT and others with a sentence. */
int options_read_file(struct options *o, const char *path, struct error *e);
void options_apply_defaults(struct options *o);
/* All of the above in their order, then options_check. */
int options_load(struct options *o, char *const argv[], int n, char *const environment[], struct error *e);
/* Settings that contradict each other: -EINVAL with a sentence. */
int options_check(struct options *o, struct error *e);

/* Stores one value; a value of a stronger source stays. where is copied. A second value from the same source
 * is an error unless the option is TEXTS. */
int options_set(struct options *o, enum option_id id, enum option_source source, const char *where,
        const char *text, struct error *e);
/* How a person gave a setting, to begin a sentence with: "--port", "SHARDD_PORT", "/etc/shardd.conf:12: port". Returns
 * place. */
#define OPTION_PLACE_MAX (PATH_MAX + 64u)
const char *option_place(const struct option_info *info, enum option_source source, const char *where,
        char place[OPTION_PLACE_MAX]);

/* Replaces a value that is only a default or computed ("auto" made concrete). */
int options_replace(struct options *o, enum option_id id, const char *text, struct error *e);

/* By name or alias, '_' and '-' alike; NULL = none. */
const struct option_info *option_find(const char *name, size_t length, unsigned verbs);
/* The nearest other name that verbs take (in_file: that a configuration file may hold); NULL when none is near. */
const char *option_nearest(const char *name, size_t length, unsigned verbs, bool in_file);
static inline bool option_is_in_file(const struct option_info *info) {
    return info->section && (info->verbs & VERB_SERVE);
}
/* Parses text as info's type into *value (number, real). -EINVAL with a sentence that starts with `where`. */
int option_parse(const struct option_info *info, const char *where, const char *text,
        struct option_value *value, struct error *e);

static inline bool options_given(const struct options *o, enum option_id id) {
    return o->values[id].source > OPTION_DEFAULT;
}
static inline const char *options_text(const struct options *o, enum option_id id) {
    return o->values[id].text;
}
static inline uint64_t options_number(const struct options *o, enum option_id id) {
    return o->values[id].number;
}

/* Option list of a verb, in sections, and `--print-config`'s listing: a configuration file with origins in
 * it. */
void options_print_help(FILE *out, unsigned verb);
void options_print_config(FILE *out, const struct options *o);
