/* option_table.c - the table of settings, made of the rows in option_rows.inc; see options.h. */
#include "launcher/options/options.h"

#include "base/limits.h"

#define SERVE    VERB_SERVE
#define GENERATE VERB_GENERATE
#define STATUS   VERB_STATUS
#define CLIENTS  VERB_CLIENTS
#define ASKS     VERB_ASKS
#define DOCTOR   VERB_DOCTOR
#define BENCH    VERB_BENCH
#define SERVICE  (SERVE | ASKS) /* generate and chat hand it on to the private service of --model */

#define RANKS (SERVICE | BENCH) /* bench makes ranks without a service */

#define IN_SERVER "server"
#define IN_MODEL  "model"
#define IN_ENGINE "engine"
#define IN_CLIENT "client"
#define NO_FILE   NULL
#define UNSET     NULL

#define HOUR_MS     3600e3
#define PORT_MAX    65535
#define THREADS_TOP 1024
#define WHOLE_MAX   0x1p64 /* every 64-bit number */

/* One row to one entry; what comes last is the help, and what it has besides. */
#define ROW(id, n, t, s, v, h, p, ...)                                                                       \
    [OPT_##id] = {OPT_##id, .name = n, .type = t, .section = s, .verbs = v, .holder = h, .preset = p,        \
            __VA_ARGS__},
#define TEXT(id, n, s, v, h, p, t, ...)  ROW(id, n, OPTION_TEXT, s, v, h, p, .to = t, .help = __VA_ARGS__)
#define TEXTS(id, n, s, v, h, p, t, ...) ROW(id, n, OPTION_TEXTS, s, v, h, p, .to = t, .help = __VA_ARGS__)
#define NUMBER(id, n, s, v, p, low, high, t, ...)                                                            \
    ROW(id, n, OPTION_NUMBER, s, v, "N", p, .min = low, .max = high, .to = t, .help = __VA_ARGS__)
#define REAL(id, n, s, v, p, low, high, t, ...)                                                              \
    ROW(id, n, OPTION_REAL, s, v, "X", p, .min = low, .max = high, .to = t, .help = __VA_ARGS__)
#define BYTES(id, n, s, v, p, high, t, ...)                                                                  \
    ROW(id, n, OPTION_BYTES, s, v, "BYTES", p, .max = high, .to = t, .help = __VA_ARGS__)
#define DURATION(id, n, s, v, p, low, high, t, ...)                                                          \
    ROW(id, n, OPTION_DURATION, s, v, "TIME", p, .min = low, .max = high, .to = t, .help = __VA_ARGS__)
#define CHOICE(id, n, s, v, h, p, c, t, ...)                                                                 \
    ROW(id, n, OPTION_CHOICE, s, v, h, p, .choices = c, .to = t, .help = __VA_ARGS__)
#define SWITCH(id, n, s, v, p, t, ...) ROW(id, n, OPTION_SWITCH, s, v, NULL, p, .to = t, .help = __VA_ARGS__)

const struct option_info option_table[OPTIONS_N] = {
#include "launcher/options/option_rows.inc"
};
