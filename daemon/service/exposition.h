/* exposition.h - writes metrics in Prometheus' text format, version 0.0.4.
 *
 * A family is its HELP and TYPE, then its samples. Names, helps and label names are ours and static; a label's value
 * may be anything and is escaped. When memory runs out the rest is left out and exposition_done() says so. */
#pragma once

#include "base/buffer.h"
#include "base/histogram.h"

struct exposition {
    struct byte_buffer text;
    const char *family; /* of the samples that follow */
    int error;          /* 0 or -ENOMEM */
};

#define EXPOSITION_LABELS_MAX 3u
struct exposition_label {
    const char *name, *value;
};
/* Labels end at the first without a name. */
struct exposition_labels {
    struct exposition_label of[EXPOSITION_LABELS_MAX];
};

/* kind: "counter", "gauge" or "histogram". */
void exposition_family(struct exposition *x, const char *name, const char *kind, const char *help);
void exposition_sample(struct exposition *x, const struct exposition_labels *labels, double value);
/* A histogram's samples at those of its bounds that are in `bounds` (NULL: all), divided by `unit`. Bounds that the
 * histogram does not have are not shown. */
void exposition_histogram(struct exposition *x, const struct exposition_labels *labels,
        const struct histogram *h, double unit, const uint64_t *bounds, size_t n_bounds);
