/* findings.h - what `shardd doctor` found: sentences, each with a level, and for what is not right what to do.
 *
 * Checks add to a list in the order in which it is shown. Owned by doctor.c; texts are copied and cut to fit. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum finding_level {
    FOUND_OK,
    FOUND_NOTE,    /* good to know; advice may come with it */
    FOUND_WARNING, /* serving works, but slower, less safely or with less room than it could */
    FOUND_PROBLEM, /* serving would not work */
};

struct finding {
    const char *check; /* "gpu.ecc": a stable name, for programs; a literal */
    char where[24];    /* "driver", "gpu 0", "machine", "programs", "model" */
    enum finding_level level;
    char text[512];
    char advice[384]; /* one sentence, what to do; "" = nothing */
};

struct findings {
    struct finding *items;
    size_t n, room;
    bool failed; /* out of memory, or more than anybody reads: the list is not whole */
};
#define FINDINGS_MAX 8192u /* 64 cards with 64 processes each are told in full */

void found(struct findings *f, const char *where, const char *check, enum finding_level level,
        const char *format, ...) __attribute__((format(printf, 5, 6)));
/* For the finding before. */
void advise(struct findings *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
size_t findings_count(const struct findings *f, enum finding_level level);
const char *finding_level_name(enum finding_level level); /* "ok", "note", "warning", "problem" */
void findings_done(struct findings *f);
