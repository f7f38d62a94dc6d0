/* answer.h - one Generate call, shown as it streams: text, ids or JSON lines on stdout. */
#pragma once

#include "launcher/client/client.h"
#include "launcher/options/options.h"

struct answer {
    /* how to show it */
    bool json;      /* one object per chunk and line */
    bool ids;       /* token ids instead of text */
    bool reasoning; /* show reasoning, dimmed: stdout is a terminal */
    /* what came */
    char *text; /* of the answer without reasoning; NUL-terminated; owned */
    size_t text_bytes;
    uint32_t n_tokens, prompt_tokens, reasoning_tokens, cached_tokens;
    bool finished;                       /* the finish came */
    uint64_t sent_ns, first_ns, last_ns; /* CLOCK_MONOTONIC; first, last token */
    /* inner */
    bool dimmed, malformed, out_of_memory, broken_pipe;
    char last_byte;
};

/* Runs the call to its end. Whatever went wrong here is turned into a status too. */
void answer_run(struct answer *a, struct client *c, const uint8_t *request, size_t bytes, uint64_t timeout_ms,
        struct client_status *ret);
/* One line of figures on stderr. */
void answer_print_figures(const struct answer *a);
void answer_done(struct answer *a);
