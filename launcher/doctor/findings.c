/* findings.c - see findings.h. */
#include "launcher/doctor/findings.h"

#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Names of files, drivers and processes are in these texts: no terminal obeys them, and JSON takes them. */
static void clean(char *text) {
    for (size_t left = strlen(text), n; left; text += n, left -= n) {
        n = utf8_sequence(text, left);
        if (n == 0 || (unsigned char)*text < 0x20 || *text == 0x7F) {
            *text = '?';
            n = 1;
        }
    }
}

void found(struct findings *f, const char *where, const char *check, enum finding_level level,
        const char *format, ...) {
    if (f->n == f->room) {
        const size_t room = f->room ? 2 * f->room : 64;
        struct finding *more = room <= FINDINGS_MAX ? realloc(f->items, room * sizeof(*more)) : NULL;
        f->failed |= !more;
        if (!more)
            return;
        f->items = more;
        f->room = room;
    }
    struct finding *item = &f->items[f->n++];
    *item = (struct finding){.check = check, .level = level};
    snprintf(item->where, sizeof(item->where), "%s", where);
    va_list ap;
    va_start(ap, format);
    vsnprintf(item->text, sizeof(item->text), format, ap);
    va_end(ap);
    clean(item->text);
}

void advise(struct findings *f, const char *format, ...) {
    if (f->failed || f->n == 0)
        return;
    va_list ap;
    va_start(ap, format);
    char *advice = f->items[f->n - 1].advice;
    vsnprintf(advice, sizeof(f->items[0].advice), format, ap);
    va_end(ap);
    clean(advice);
}

size_t findings_count(const struct findings *f, enum finding_level level) {
    size_t n = 0;
    for (size_t i = 0; i < f->n; i++)
        n += f->items[i].level == level;
    return n;
}

const char *finding_level_name(enum finding_level level) {
    static const char *const names[] = {"ok", "note", "warning", "problem"};
    return names[level];
}

void findings_done(struct findings *f) {
    free(f->items);
    *f = (struct findings){0};
}
