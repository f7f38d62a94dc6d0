/* worker_generate.c - `shardd-worker-cpu --generate-ids`: one prompt of ids through all ranks, in this
 * process. */
#include "base/clock.h"
#include "base/log.h"
#include "tp/worker/offline.h"
#include "tp/worker/worker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static double now_s(void) {
    return (double)clock_ns() * 1e-9;
}

static void print_result(const struct offline_sequence *s, double seconds) {
    for (uint32_t i = 0; i < s->n_tokens; i++)
        printf("%s%u", i ? "," : "", s->samples[i].id);
    printf("\n");
    for (uint32_t i = 0; i < s->n_tokens; i++)
        printf("%6u  id %8u  logprob %.6f\n", i, s->samples[i].id, (double)s->samples[i].logprob);
    fprintf(stderr, "%u prompt tokens and %u generated in %.2f s\n", s->n_prompt, s->n_tokens, seconds);
    if (s->drafts > 0)
        fprintf(stderr, "%u tokens guessed, %u accepted\n", s->n_drafted, s->n_accepted);
}

static int run(struct offline *o, const struct worker_options *options, struct error *e) {
    struct offline_sequence s = {.prompt = options->prompt,
            .n_prompt = options->n_prompt,
            .max_tokens = options->max_tokens,
            .stop_id = STEP_NONE,
            .sampling = offline_greedy(),
            .logprobs = true,
            .drafts = offline_geometry(o)->has_mtp ? offline_geometry(o)->drafts_max : 0};
    s.sampling.temperature = options->temperature;
    s.sampling.top_k = options->top_k;
    s.sampling.top_p = options->top_p;
    s.sampling.min_p = options->min_p;
    s.sampling.seed = options->rank.seed;
    s.samples = calloc(options->max_tokens + 1u, sizeof(s.samples[0]));
    if (!s.samples)
        return error_set(e, -ENOMEM, "out of memory for %u tokens", options->max_tokens);
    double begin = now_s();
    int r = offline_run(o, &s, 1, e);
    if (r == 0)
        print_result(&s, now_s() - begin);
    free(s.samples);
    return r;
}

static void on_note(void *user, const char *text) {
    (void)user;
    log_notice("%s", text);
}

int worker_generate(const struct worker_options *options) {
    struct error e = {0};
    struct offline *o = NULL;
    struct rank_options rank = options->rank;
    rank.threads = worker_threads(options);
    rank.note = on_note;
    if (!rank.max_num_seqs)
        rank.max_num_seqs = 1;
    int r = offline_create(&rank, &o, &e);
    if (r == 0) {
        for (uint32_t i = 0; i < rank.tp; i++) {
            const struct rank *at = offline_rank(o, i);
            log_info("rank %u: %s; %s%s%s", i, k_context_describe(at->context), at->budget.text,
                    at->weights_from[0] ? "; " : "", at->weights_from);
        }
        r = run(o, options, &e);
    }
    if (r < 0)
        log_error("%s", e.text);
    offline_free(o);
    return r < 0 ? worker_exit_status(r) : EXIT_SUCCESS;
}
