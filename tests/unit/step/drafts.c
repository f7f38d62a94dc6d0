/* drafts.c - the null rank takes and leaves drafts: whatever they are, the tokens are those without any, and what
 * was not accepted leaves no trace. */
#include "tests/unit/step/null_world.h"

#define VOCAB  500u
#define TOKENS 150u

static void open_world(struct world *w, uint32_t drafts_max, uint32_t drafts_right) {
    const struct null_rank_options o = {.tp = 1,
            .slots = 4,
            .pages = 8,
            .max_model_len = 512,
            .rows_max = 64,
            .vocab_size = VOCAB,
            .drafts_max = drafts_max,
            .drafts_right = drafts_right};
    open_null_world(w, &o);
}

/* Opens slot 1 with a prompt and `pages` pages; the first token. */
static uint32_t start(struct world *w, uint32_t pages, uint32_t n_draft_next) {
    const uint32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6}, table[] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct step_open o = {.slot = 1, .top_p = 1, .repetition_penalty = 1, .seed = 77};
    begin(w, STEP_TYPE_RESET);
    run_ok(w);
    w->step = 0;
    begin(w, STEP_TYPE_PLAN);
    step_add_open(w->writer, &o);
    struct step_entry t = entry_of(STEP_ENTRY_PROMPT, 8);
    t.ids_at = step_blob(w->writer, ids, sizeof(ids));
    t.n_pages = pages;
    t.pages_at = step_blob(w->writer, table, pages * 4);
    t.n_draft_next = n_draft_next;
    step_add_entry(w->writer, &t);
    return step_outcome_samples(run_ok(w))->id;
}

static void plain_tokens(uint32_t *ret) {
    struct world w;
    open_world(&w, 0, 0);
    ret[0] = start(&w, 4, 0);
    for (uint32_t i = 1; i < TOKENS; i++) {
        begin(&w, STEP_TYPE_PLAN);
        struct step_entry t = entry_of(STEP_ENTRY_CONTINUE, 1);
        step_add_entry(w.writer, &t);
        const struct step_outcome *o = run_ok(&w);
        assert_int_equal(o->n_samples, 1);
        assert_int_equal(o->n_accepted, 0);
        ret[i] = step_outcome_samples(o)->id;
    }
    close_world(&w);
}

/* Takes an outcome's tokens; they must be the expected ones. */
static uint32_t take(const struct step_outcome *o, const uint32_t *expected, uint32_t n) {
    assert_int_equal(o->status, STEP_SAMPLE_OK);
    for (uint32_t i = 0; i < o->n_samples && n + i < TOKENS; i++)
        assert_int_equal(step_outcome_samples(o)[i].id, expected[n + i]);
    return n + o->n_samples;
}

static void test_drafts_of_the_slot(void **state) {
    (void)state;
    uint32_t expected[TOKENS];
    plain_tokens(expected);
    for (uint32_t right = 0; right <= DRAFT_MAX; right += 2) {
        struct world w;
        open_world(&w, DRAFT_MAX, right);
        uint32_t n = 1;
        assert_int_equal(start(&w, 4, DRAFT_MAX), expected[0]);
        for (uint32_t drafts = DRAFT_MAX; n < TOKENS; drafts = (drafts + 3) % (DRAFT_MAX + 1)) {
            begin(&w, STEP_TYPE_PLAN);
            struct step_entry t =
                    entry_of(STEP_ENTRY_CONTINUE, 1 + drafts); /* fewer than lie there will do */
            t.n_draft_next = DRAFT_MAX;
            step_add_entry(w.writer, &t);
            const struct step_outcome *o = run_ok(&w);
            assert_int_equal(o->n_accepted, right < drafts ? right : drafts);
            n = take(o, expected, n);
        }
        close_world(&w);
    }
}

static void test_drafts_of_the_plan(void **state) {
    (void)state;
    uint32_t expected[TOKENS];
    struct world w;
    plain_tokens(expected);
    open_world(&w, DRAFT_MAX, 0);
    uint32_t n = 1;
    assert_int_equal(start(&w, 4, 0), expected[0]);
    for (uint32_t right = 0; n + DRAFT_MAX + 1 < TOKENS; right = (right + 1) % 6) {
        uint32_t drafts[5];
        for (uint32_t i = 0; i < 5; i++) /* one that is wrong, and right ones after it that must not count */
            drafts[i] = i == right ? (expected[n + i] + 1) % VOCAB : expected[n + i];
        begin(&w, STEP_TYPE_PLAN);
        struct step_entry t = entry_of(STEP_ENTRY_CONTINUE, 6);
        t.drafts_at = step_blob(w.writer, drafts, sizeof(drafts));
        step_add_entry(w.writer, &t);
        const struct step_outcome *o = run_ok(&w);
        assert_int_equal(o->n_accepted, right);
        n = take(o, expected, n);
    }
    close_world(&w);
}

static void expect_refused(struct world *w, const struct step_entry *t, const char *word) {
    struct step_completion c;
    step_add_entry(w->writer, t);
    const char *text = run(w, &c);
    assert_int_equal(c.status, STEP_STATUS_FAULT);
    if (memmem(text, c.n_outcomes, word, strlen(word)) == NULL)
        fail_msg("'%.*s' does not say '%s'", (int)c.n_outcomes, text, word);
}

static void test_refused(void **state) {
    (void)state;
    struct world w;
    open_world(&w, 3, 3);
    start(&w, 1, 2);
    begin(&w, STEP_TYPE_PLAN);
    struct step_entry t = entry_of(STEP_ENTRY_CONTINUE, 5);
    expect_refused(&w, &t, "this rank takes 3");
    begin(&w, STEP_TYPE_PLAN);
    t = entry_of(STEP_ENTRY_CONTINUE, 1);
    t.n_draft_next = 4;
    expect_refused(&w, &t, "this rank takes 3");
    begin(&w, STEP_TYPE_PLAN);
    t = entry_of(STEP_ENTRY_CONTINUE, 4);
    expect_refused(&w, &t, "its last step left 2");
    begin(&w, STEP_TYPE_PLAN);
    const uint32_t unknown = VOCAB;
    t = entry_of(STEP_ENTRY_CONTINUE, 2);
    t.drafts_at = step_blob(w.writer, &unknown, sizeof(unknown));
    expect_refused(&w, &t, "the vocabulary has");
    /* Pages are granted for all rows, whatever is accepted: 64 positions, the last of them row 0's. */
    start(&w, 1, 2);
    for (uint32_t length = 8; length < 63; length++) {
        begin(&w, STEP_TYPE_PLAN);
        t = entry_of(STEP_ENTRY_CONTINUE, 1);
        t.n_draft_next = 1;
        step_add_entry(w.writer, &t);
        run_ok(&w);
    }
    begin(&w, STEP_TYPE_PLAN);
    t = entry_of(STEP_ENTRY_CONTINUE, 2);
    expect_refused(&w, &t, "no page for a draft at position 64");
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_drafts_of_the_slot),
            cmocka_unit_test(test_drafts_of_the_plan),
            cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
