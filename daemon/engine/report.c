/* report.c - see report.h. */
#include "daemon/engine/report.h"

#include <stdarg.h>
#include <stdio.h>

void engine_log(struct engine *g, int level, const char *format, ...) {
    char text[ERROR_TEXT_MAX];
    va_list ap;
    if (g->o.log == NULL)
        return;
    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    g->o.log(g->o.log_user, level, text);
}

void engine_tell_launcher(struct engine *g, uint32_t kind, uint64_t a, const char *text) {
    struct control_message m = {.kind = kind, .a = a};
    if (g->o.launcher.fn == NULL)
        return;
    if (g->ring != NULL) {
        m.group_epoch = step_ring_group_epoch(g->ring);
        m.coord_epoch = step_ring_coord_epoch(g->ring);
    }
    snprintf(m.text, sizeof(m.text), "%s", text);
    g->o.launcher.fn(g->o.launcher.user, &m);
}
