/* json_pull.h - a pull reader for big JSON files (tokenizer.json, safetensors headers).
 *
 * Called at start-up by whoever reads such a file; requests and small configuration files use jansson. The
 * reader walks a buffer that the caller owns and gives one event at a time. Nothing is allocated but one
 * scratch buffer, which holds strings that have escapes.
 *
 * Strict RFC 8259: UTF-8 is validated, control characters in strings, lone surrogate escapes (\ud800 without
 * its other half), trailing commas, leading zeros, comments, a byte order mark and bytes after the document
 * are refused. \u0000 is accepted, so a string may hold a NUL byte: use the length. Objects and arrays nest
 * JSON_DEPTH_MAX deep at most. Duplicate keys are the caller's to refuse.
 *
 *     struct json_pull p;
 *     json_pull_init(&p, text, bytes, "tokenizer.json");
 *     r = json_pull_expect(&p, PULL_OBJECT_BEGIN, e);
 *     while (r >= 0 && (r = json_pull_next(&p, e)) == PULL_KEY)
 *         r = json_pull_is(&p, "vocab") ? read_vocab(&p, e) : json_pull_skip(&p, e);
 *     if (r >= 0)                                  // r is PULL_OBJECT_END
 *         r = json_pull_expect(&p, PULL_DOCUMENT_END, e);
 *     json_pull_done(&p); */
#pragma once

#include "base/error.h"
#include "base/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum json_event {          /* PULL_ and not JSON_, which are jansson's */
    PULL_DOCUMENT_END = 0, /* the value is complete, only white space followed; given again if asked again */
    PULL_OBJECT_BEGIN,
    PULL_OBJECT_END,
    PULL_ARRAY_BEGIN,
    PULL_ARRAY_END,
    PULL_KEY,    /* an object's key: string, string_bytes; its value is the next event */
    PULL_STRING, /* string, string_bytes */
    PULL_NUMBER, /* string, string_bytes: its text; json_pull_u64() and friends convert it */
    PULL_TRUE,
    PULL_FALSE,
    PULL_NULL,
    PULL_EVENTS,
};

struct json_pull {
    /* The current event. string is not NUL-terminated and is valid until the next call. */
    const char *string;
    size_t string_bytes;
    uint32_t depth; /* containers that are open: 1 after the first OBJECT_BEGIN */

    /* private */
    const char *text, *file;
    size_t bytes, at, event_at;
    char *scratch;
    size_t scratch_size;
    uint64_t in_object; /* bit d: the container at depth d+1 is an object */
    int state, event;
};

/* text (bytes long, no NUL needed) and file (named in messages) must outlive the reader. */
void json_pull_init(struct json_pull *p, const char *text, size_t bytes, const char *file);
void json_pull_done(struct json_pull *p); /* frees the scratch buffer; NULL ok */

/* The next event (>= 0), or a negative errno with "file: line L column C (byte B): what": -EBADMSG (not
 * JSON), -E2BIG (too deep), -ENOMEM. After an error the reader gives it again. */
int json_pull_next(struct json_pull *p, struct error *e);
/* Takes the next event and refuses (-EBADMSG) any but this one; returns it. */
int json_pull_expect(struct json_pull *p, enum json_event event, struct error *e);
/* Passes over one whole value: the one that json_pull_next() would begin; 0 or an error. */
int json_pull_skip(struct json_pull *p, struct error *e);
/* Passes over what is left of the container that is open (its BEGIN was the last event at this depth); 0 or
 * error. */
int json_pull_leave(struct json_pull *p, struct error *e);

/* Is the current KEY or STRING this text? */
bool json_pull_is(const struct json_pull *p, const char *text);
/* The current NUMBER. -EBADMSG: not a number or not an integer; -ERANGE: does not fit (a double that is
 * infinite). */
int json_pull_u64(const struct json_pull *p, uint64_t *ret, struct error *e);
int json_pull_i64(const struct json_pull *p, int64_t *ret, struct error *e);
int json_pull_double(const struct json_pull *p, double *ret, struct error *e);

/* For the caller's own refusals: fills *e with "file: line L column C (byte B): " and the sentence, where the
 * current event begins; returns code. */
int json_pull_error(const struct json_pull *p, int code, struct error *e, const char *format, ...)
        __attribute__((format(printf, 4, 5)));
const char *json_event_name(int event); /* "an object", "a string", ... */
