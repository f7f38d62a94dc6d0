/* load.h - the requests of a test: when each is due, its prompt, and how much it asks for. Everything follows from the
 * options and the seed: the same flags send the same requests. */
#pragma once

#include "launcher/options/options.h"

struct range {
    uint32_t low, high;
};
/* "512" or "100-900". False: it is not of that form. */
bool range_parse(const char *text, uint32_t max, struct range *ret);

struct load_prompt { /* text, or ids */
    char *text;      /* NUL-terminated; owned */
    uint32_t *ids;   /* owned */
    size_t n_ids;
};
struct load {
    size_t n;    /* requests */
    double rate; /* a second; 0 = as soon as there is room */
    struct range input, output;
    uint64_t seed;
    struct load_prompt *prompts; /* [n_prompts], used in turn; 0: random ids */
    size_t n_prompts;
};

/* -EINVAL and others with a sentence that names the option. load_done() afterwards, whatever came back. */
int load_make(const struct options *o, struct load *ret, struct error *e);
void load_done(struct load *l);
/* When request `at` is due, in nanoseconds after the one before it; called for 0, 1, 2 ... with one state, seeded. */
uint64_t load_gap_ns(const struct load *l, uint64_t *state);
/* The packed GenerateRequest of request `at`; free(*ret_bytes). */
int load_request(const struct load *l, const struct options *o, size_t at, uint32_t vocab_size,
        uint8_t **ret_bytes, size_t *ret_n, struct error *e);
