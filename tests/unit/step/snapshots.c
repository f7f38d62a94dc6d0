/* snapshots.c - the null rank refuses a sequence that goes on from a state and pages which do not belong together, and
 * takes one that goes on rightly: its tokens are those of a sequence that computed everything. */
#include "tests/unit/step/null_world.h"

#define ROWS 100u /* a page and a part of the next */

static uint32_t ids[300];

static void open_world(struct world *w) {
    const struct null_rank_options o = {.tp = 1,
            .slots = 4,
            .pages = 8,
            .slot_units = 2,
            .max_model_len = 512,
            .rows_max = 256,
            .vocab_size = 500};
    open_null_world(w, &o);
    for (uint32_t i = 0; i < 300; i++)
        ids[i] = i * 7 % 500;
    begin(w, STEP_TYPE_RESET);
    run_ok(w);
    w->step = 0;
}

static void add_open(struct world *w, uint32_t slot) {
    struct step_open o = {.slot = slot, .top_p = 1, .repetition_penalty = 1, .seed = 77};
    step_add_open(w->writer, &o);
}

/* Rows [first, first + n) of ids, with a grant of two pages. */
static void add_rows(
        struct world *w, uint32_t slot, uint32_t first, uint32_t n, uint32_t page0, uint32_t page1) {
    const uint32_t table[] = {page0, page1};
    struct step_entry t = entry_of(STEP_ENTRY_PROMPT, n);
    t.slot = slot;
    t.first_pos = first;
    t.ids_at = step_blob(w->writer, ids + first, n * 4);
    t.n_pages = 2;
    t.pages_at = step_blob(w->writer, table, sizeof(table));
    step_add_entry(w->writer, &t);
}

/* Slot 1 has computed ROWS rows into pages 1 and 2, and its state is in unit 1. */
static void leave_snapshot(struct world *w) {
    open_world(w);
    begin(w, STEP_TYPE_PLAN);
    add_open(w, 1);
    add_rows(w, 1, 0, ROWS, 1, 2);
    run_ok(w);
    begin(w, STEP_TYPE_PLAN);
    step_add_memory(w->writer, STEP_MEMORY_SNAPSHOT_SLOT, 1, 1);
    run_ok(w);
}

/* Slot 2 goes on for 10 rows, from `unit` and pages 1 and 3; page 3 is a copy of `copied`, or not copied (0). */
static void go_on(struct world *w, uint32_t unit, uint32_t copied) {
    begin(w, STEP_TYPE_PLAN);
    add_open(w, 2);
    step_add_memory(w->writer, STEP_MEMORY_RESTORE_SLOT, unit, 2);
    if (copied > 0)
        step_add_memory(w->writer, STEP_MEMORY_COPY_PAGE, copied, 3);
    add_rows(w, 2, ROWS, 10, 1, 3);
}

static void refused(struct world *w, const char *why) {
    struct step_completion c;
    char text[STEP_FAULT_TEXT_MAX + 1];
    const void *body = run(w, &c);
    assert_int_equal(c.status, STEP_STATUS_FAULT);
    snprintf(text, sizeof(text), "%.*s", (int)c.n_outcomes, (const char *)body);
    if (strstr(text, why) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", text, why);
    close_world(w);
}

static void test_goes_on(void **state) {
    (void)state;
    struct world w, whole;
    leave_snapshot(&w);
    go_on(&w, 1, 2);
    uint32_t id = step_outcome_samples(run_ok(&w))->id;
    close_world(&w);
    open_world(&whole);
    begin(&whole, STEP_TYPE_PLAN);
    add_open(&whole, 2);
    add_rows(&whole, 2, 0, ROWS + 10, 1, 2);
    assert_int_equal(step_outcome_samples(run_ok(&whole))->id, id);
    close_world(&whole);
}

static void test_wrong_pages(void **state) {
    (void)state;
    struct world w;
    leave_snapshot(&w);
    go_on(&w, 1, 0);
    refused(&w, "do not hold the 100 ids");
    leave_snapshot(&w);
    go_on(&w, 1, 1);
    refused(&w, "do not hold the 100 ids");
    leave_snapshot(&w);
    go_on(&w, 1, 2);
    step_add_memory(w.writer, STEP_MEMORY_COPY_PAGE, 2, 1);
    refused(&w, "copy page 2 to 1: 1 slots use that one");
}

static void test_wrong_units(void **state) {
    (void)state;
    struct world w;
    leave_snapshot(&w);
    go_on(&w, 0, 2);
    refused(&w, "slot unit 0 holds no snapshot");
    leave_snapshot(&w);
    go_on(&w, 2, 2);
    refused(&w, "slot unit 2 does not exist");
    leave_snapshot(&w);
    begin(&w, STEP_TYPE_PLAN);
    step_add_memory(w.writer, STEP_MEMORY_SNAPSHOT_SLOT, 3, 1);
    refused(&w, "slot 3 is not open");
}

/* A state after fewer rows than are said to be there, and a page that is written by two. */
static void test_wrong_rows(void **state) {
    (void)state;
    struct world w;
    leave_snapshot(&w);
    begin(&w, STEP_TYPE_PLAN);
    add_open(&w, 2);
    step_add_memory(w.writer, STEP_MEMORY_RESTORE_SLOT, 1, 2);
    add_rows(&w, 2, ROWS + 5, 5, 1, 2);
    refused(&w, "its length is 100");
    leave_snapshot(&w);
    begin(&w, STEP_TYPE_PLAN);
    add_open(&w, 2);
    step_add_memory(w.writer, STEP_MEMORY_RESTORE_SLOT, 1, 2);
    add_rows(&w, 2, ROWS, 5, 1, 2);
    refused(&w, "into page 2, which 2 slots use");
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_goes_on),
            cmocka_unit_test(test_wrong_pages),
            cmocka_unit_test(test_wrong_units),
            cmocka_unit_test(test_wrong_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
