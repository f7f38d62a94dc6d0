/* options.h - the command line of `shardd-worker-... bench`: flags of its own, and those of the worker that say what a
 * rank is (model, memory, threads). */
#pragma once

#include "base/quant.h"
#include "tp/worker/worker_options.h"

#define BENCH_LIST_MAX   16u
#define BENCH_REPEAT_MAX 1000u

struct bench_list {
    uint32_t at[BENCH_LIST_MAX], n;
};

struct bench_options {
    struct worker_options worker;
    struct bench_list prompts; /* tokens; no 0 in it */
    struct bench_list depths;  /* tokens that a sequence holds already; ascending */
    struct bench_list batches; /* sequences that decode together */
    struct bench_list drafts;  /* rows of each beside its first, that a step verifies; ascending */
    uint32_t acceptance;       /* of 1000 drafts, so many are right */
    uint32_t decode;           /* tokens of each; 0 = no decoding */
    uint32_t repeat;
    uint64_t memory_bytes; /* that the memory's speed is measured over; 0 = it is not */
    const char *json;      /* file; "-" = stdout; NULL = none */
    /* Point to the two below, or are NULL: as config.json says. */
    const struct quant_matrix *weights, *head;
    struct quant_matrix weights_form, head_form;
};

extern const char bench_help[];

/* argv[0] is the program, argv[1] "bench". -EINVAL with a sentence that names the flag. bench_options_done()
 * afterwards, whatever came back. Strings point into argv. */
int bench_options_parse(int argc, char **argv, struct bench_options *ret, struct error *e);
void bench_options_done(struct bench_options *o);
