/* exposition.c - see exposition.h. */
#include "daemon/service/exposition.h"

#include <math.h>
#include <stdio.h>

#define NUMBER_BYTES 40u

static void add(struct exposition *x, const char *text) {
    if (x->error == 0)
        x->error = byte_buffer_text(&x->text, text);
}

void exposition_family(struct exposition *x, const char *name, const char *kind, const char *help) {
    const char *const parts[] = {"# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        add(x, parts[i]);
    x->family = name;
}

/* Between quotes only three characters mean something else. */
static void add_escaped(struct exposition *x, const char *value) {
    for (; *value; value++) {
        const char one[2] = {*value, '\0'};
        add(x, *value == '\n' ? "\\n" : *value == '"' ? "\\\"" : *value == '\\' ? "\\\\" : one);
    }
}

/* {a="x",le="0.5"}, or nothing. */
static void add_labels(struct exposition *x, const struct exposition_labels *labels, const char *le) {
    const char *before = "{";
    for (size_t i = 0; labels && i < EXPOSITION_LABELS_MAX && labels->of[i].name; i++) {
        add(x, before);
        add(x, labels->of[i].name);
        add(x, "=\"");
        add_escaped(x, labels->of[i].value);
        add(x, "\"");
        before = ",";
    }
    if (le) {
        add(x, before);
        add(x, "le=\"");
        add(x, le);
        add(x, "\"");
        before = ",";
    }
    if (*before == ',')
        add(x, "}");
}

static void add_sample(struct exposition *x, const char *suffix, const struct exposition_labels *labels,
        const char *le, double value) {
    char number[NUMBER_BYTES];
    snprintf(number, sizeof(number), " %.17g\n", value);
    add(x, x->family);
    add(x, suffix);
    add_labels(x, labels, le);
    add(x, number);
}

void exposition_sample(struct exposition *x, const struct exposition_labels *labels, double value) {
    add_sample(x, "", labels, NULL, value);
}

/* As clients of Prometheus write bounds: "0.5", "1.0". */
static void write_bound(char text[NUMBER_BYTES], double bound) {
    snprintf(text, NUMBER_BYTES, bound == floor(bound) ? "%.1f" : "%.9g", bound);
}

void exposition_histogram(struct exposition *x, const struct exposition_labels *labels,
        const struct histogram *h, double unit, const uint64_t *bounds, size_t n_bounds) {
    struct histogram_reading r;
    histogram_read(h, &r);
    size_t next = 0; /* both lists ascend */
    for (uint32_t i = 0; i < h->n_bounds; i++) {
        char text[NUMBER_BYTES];
        while (bounds && next < n_bounds && bounds[next] < h->bounds[i])
            next++;
        if (bounds && (next == n_bounds || bounds[next] != h->bounds[i]))
            continue;
        write_bound(text, (double)h->bounds[i] / unit);
        add_sample(x, "_bucket", labels, text, (double)r.up_to[i]);
    }
    add_sample(x, "_bucket", labels, "+Inf", (double)r.count);
    add_sample(x, "_sum", labels, NULL, (double)r.sum / unit);
    add_sample(x, "_count", labels, NULL, (double)r.count);
}
