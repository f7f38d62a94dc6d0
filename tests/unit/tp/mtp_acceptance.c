/* mtp_acceptance.c - how often the MTP head of models/shardd-tiny guesses the token after the next one, counted
 * over the held-out prompts of tests/eval/prompts.jsonl and the greedy replies that transformers gave to them.
 *
 * Unlike the random weights of tests/golden this model was trained with its MTP head, so the figure is what
 * speculation could gain. It must be the count that the training's own code recorded, prompt by prompt, at
 * every tensor-parallel size; and each token of a reply must be the one that the main head finds best. */
#include "eval_prompts.h"

#define GROUPS_MAX 64u
/* Of the prompts, every how many-th is counted: all, or with sanitizers, which are many times slower, a few. */
#ifdef __SANITIZE_ADDRESS__
#define STRIDE 12u
#else
#define STRIDE 1u
#endif
#define RATE_MIN 0.8 /* what was measured is 0.97 and more; random weights give 0.00 */

struct count {
    char group[64];
    uint32_t good, tried;
};

/* Teacher forced: one pass over prompt and reply. Returns how many guesses of MTP held; fails the test where a
 * token of the reply is not the main head's best. Position i of the main head is about token i + 1, position i
 * of MTP, which has seen token i + 1, about token i + 2. */
static uint32_t guesses_held(struct offline *o, const struct record *r, uint32_t line) {
    struct one_run run;
    struct error e = {0};
    uint32_t n = r->n_prompt + r->n_reply, held = 0;
    run_start(&run, o, r->ids, n, 0, true);
    must(offline_run(o, &run.s, 1, &e), &e);
    for (uint32_t i = r->n_prompt - 1; i + 1 < n; i++) {
        uint32_t best = argmax(run.s.logits + (size_t)i * run.vocab, run.vocab);
        if (best != r->ids[i + 1])
            fail_msg("line %u (%s): token %u of the reply is %u, shardd's best is %u", line, r->group,
                    i + 1 - r->n_prompt, r->ids[i + 1], best);
        if (i + 2 < n)
            held += argmax(run.s.mtp_logits + (size_t)i * run.vocab, run.vocab) == r->ids[i + 2];
    }
    run_done(&run);
    return held;
}

static struct count *count_of(struct count *counts, uint32_t *n, const char *group) {
    for (uint32_t i = 0; i < *n; i++)
        if (strcmp(counts[i].group, group) == 0)
            return &counts[i];
    assert_true(*n < GROUPS_MAX);
    snprintf(counts[*n].group, sizeof(counts[*n].group), "%s", group);
    return &counts[(*n)++];
}

/* Every `stride`-th line of the file at this tensor-parallel size; returns the counts by group. */
static uint32_t count_all(uint32_t tp, uint32_t stride, struct count *counts) {
    char *text = NULL;
    size_t bytes = 0;
    struct error e = {0};
    struct offline *o = NULL;
    struct rank_options options = test_options(MODEL, tp);
    options.max_model_len = TOKENS_MAX;
    options.max_num_batched_tokens = options.logits_rows = 512;
    options.mtp = true;
    must(offline_create(&options, &o, &e), &e);
    assert_true(offline_geometry(o)->has_mtp);
    must(file_read(PROMPTS, PROMPTS_BYTES, &text, &bytes, &e), &e);
    struct record *r = malloc(sizeof(*r));
    assert_non_null(r);
    uint32_t line = 0, n_counts = 0;
    for (char *at = text, *end; at < text + bytes; at = end + 1) {
        end = memchr(at, '\n', (size_t)(text + bytes - at));
        assert_non_null(end);
        if (line++ % stride)
            continue;
        read_record(at, (size_t)(end - at), r);
        uint32_t held = guesses_held(o, r, line);
        if (held != r->good || r->tried + 1 != r->n_reply)
            fail_msg("line %u (%s), tp %u: MTP guessed %u of %u tokens, recorded are %u of %u", line,
                    r->group, tp, held, r->n_reply - 1, r->good, r->tried);
        struct count *c = count_of(counts, &n_counts, r->group);
        c->good += held;
        c->tried += r->tried;
    }
    assert_true(line > 0);
    free(r);
    free(text);
    offline_free(o);
    return n_counts;
}

static void as_recorded(void **state) {
    (void)state;
    struct count counts[GROUPS_MAX] = {0};
    uint32_t n = count_all(1, STRIDE, counts), good = 0, tried = 0;
    for (uint32_t i = 0; i < n; i++) {
        print_message("%-34s %5.1f %% of %u tokens\n", counts[i].group,
                100.0 * counts[i].good / counts[i].tried, counts[i].tried);
        good += counts[i].good;
        tried += counts[i].tried;
    }
    if (STRIDE > 1)
        print_message("only each %uth prompt: sanitizers are slow\n", STRIDE);
    print_message("MTP acceptance: %.1f %% of %u tokens\n", 100.0 * good / tried, tried);
    assert_true(good >= RATE_MIN * tried);
    assert_true(good < tried); /* all of them would mean that it was told the token it guesses */
}

/* The same at other sizes, for some prompts of each skill. */
static void at_every_size(void **state) {
    (void)state;
    for (uint32_t tp = 2; tp <= 4; tp *= 2) {
        struct count counts[GROUPS_MAX] = {0};
        assert_true(count_all(tp, 7 * STRIDE, counts) > 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(as_recorded),
            cmocka_unit_test(at_every_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
