/* record.h - what became of the requests of a test, and what is said of all of them.
 *
 * Times, as most benchmarks of servers have them:
 *
 *   TTFT   from sending the request to the first chunk with a token
 *   TPOT   per output token: from that chunk to the last one with a token, over all tokens but the first
 *   ITL    between two chunks with tokens, each gap once however many tokens the later one brings
 *   e2e    from sending the request to its end
 *
 * Only requests that ended well count in these and in the throughput. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define RECORD_CODES 17 /* of gRPC */

struct record {
    uint64_t sent_ns, first_ns, last_ns, end_ns; /* 0 = not yet */
    uint32_t prompt_tokens, tokens;
    int code; /* gRPC's; 0 with `finished` = it ended well */
    bool finished;
};

struct limits { /* of --goodput, in milliseconds; 0 = none */
    double ttft, tpot, e2e;
};
/* "ttft:500,tpot:50". False: it is not of that form. */
bool limits_parse(const char *text, struct limits *ret);

struct spread {
    double mean, p50, p90, p99; /* milliseconds */
    size_t n;
};
struct summary {
    size_t requests, completed, good; /* good: within the limits */
    size_t errors[RECORD_CODES];
    double seconds; /* from the first that was sent to the last that ended */
    uint64_t prompt_tokens, tokens;
    struct spread ttft, tpot, itl, e2e;
};

/* gaps: all of ITL, in milliseconds; it is sorted. False = out of memory. */
bool summary_make(const struct record *records, size_t n, double *gaps, size_t n_gaps,
        const struct limits *limits, struct summary *ret);
void summary_print(FILE *out, const struct summary *s, const struct limits *limits);
json_t *summary_json(const struct summary *s, const struct limits *limits);
