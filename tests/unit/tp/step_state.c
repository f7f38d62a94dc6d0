/* step_state.c - what a rank knows on the host of slots whose drafts are in flight, and the plans that it refuses. */
#include "tp/worker/step_state.h"
#include "model_test.h"

#define RECORD_BYTES 4096u
#define DRAFTS       3u

static const struct step_limits limits = {.slots = 2,
        .pages = 8,
        .pages_per_slot = 4,
        .slot_units = 1,
        .rows_max = 64,
        .entries_max = 2,
        .vocab_size = 100,
        .max_model_len = 200,
        .drafts_max = DRAFTS,
        .makes_drafts = true,
        .extra_positions = 1};
static struct step_writer *writer;

static void begin(void) {
    step_begin(writer, STEP_TYPE_PLAN, 1, 1, 1);
}
/* Commits the plan, or tells what is wrong with it. */
static int check(struct step_state *s, struct error *e) {
    static uint64_t record[RECORD_BYTES / 8];
    struct step_plan p;
    const int n = step_end(writer, record, RECORD_BYTES);
    assert_true(n > 0);
    must(step_decode(record, (uint32_t)n, &p, e), e);
    const int r = step_state_check(s, &p, e);
    if (r == 0)
        step_state_commit(s);
    return r;
}
static void good(struct step_state *s) {
    struct error e = {0};
    must(check(s, &e), &e);
}
static void refused(struct step_state *s, const char *why) {
    struct error e = {0};
    assert_int_equal(check(s, &e), -EINVAL);
    if (!strstr(e.text, why))
        fail_msg("'%s' does not say '%s'", e.text, why);
}

static void add_open(uint32_t slot) {
    struct step_open o = offline_greedy();
    o.slot = slot;
    step_add_open(writer, &o);
}
static struct step_entry entry(uint32_t kind, uint32_t n_rows) {
    return (struct step_entry){.slot = 1,
            .kind = kind,
            .flags = STEP_ENTRY_SAMPLE,
            .n_rows = n_rows,
            .ids_at = STEP_NONE,
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE};
}
static void add_prompt(uint32_t first, uint32_t n, uint32_t n_draft_next) {
    static const uint32_t ids[32], pages[4] = {1, 2, 3, 4};
    struct step_entry t = entry(STEP_ENTRY_PROMPT, n);
    t.first_pos = first;
    t.n_draft_next = n_draft_next;
    t.ids_at = step_blob(writer, ids, n * 4);
    t.n_pages = first == 0 ? 4 : 0;
    t.pages_at = step_blob(writer, pages, sizeof(pages));
    step_add_entry(writer, &t);
}
static void add_continue(uint32_t drafts, uint32_t n_draft_next) {
    struct step_entry t = entry(STEP_ENTRY_CONTINUE, 1 + drafts);
    t.n_draft_next = n_draft_next;
    step_add_entry(writer, &t);
}
static void open_state(struct step_state *s, const struct step_limits *l) {
    struct error e = {0};
    must(step_state_init(l, s, &e), &e);
    begin();
    add_open(1);
    add_prompt(0, 10, l->makes_drafts ? DRAFTS : 0);
    good(s);
}

static void a_length_is_a_range(void **state) {
    struct step_state s;
    (void)state;
    open_state(&s, &limits);
    for (int i = 0; i < 2; i++) { /* two in flight, of which nobody knows anything yet */
        begin();
        add_continue(DRAFTS, DRAFTS);
        good(&s);
    }
    const uint32_t life = s.slots[1].life;
    assert_int_equal(s.slots[1].least, 12);
    assert_int_equal(s.slots[1].length, 18);
    step_state_accepted(&s, 1, life, DRAFTS, 2);
    assert_int_equal(s.slots[1].least, 14);
    assert_int_equal(s.slots[1].length, 17);
    begin();
    add_prompt(18, 1, 0);
    refused(&s, "starts at position 18");
    step_state_accepted(&s, 1, life, DRAFTS, 0);
    assert_int_equal(s.slots[1].least, 14);
    assert_int_equal(s.slots[1].length, 14);
    begin();
    add_prompt(14, 1, 0);
    good(&s);
    step_state_done(&s);
}

static void an_answer_is_for_the_life_that_asked(void **state) {
    struct step_state s;
    (void)state;
    open_state(&s, &limits);
    begin();
    add_continue(DRAFTS, 0);
    good(&s);
    const uint32_t life = s.slots[1].life;
    begin();
    step_add_memory(writer, STEP_MEMORY_ZERO_SLOT, 1, 0);
    add_prompt(0, 7, 0);
    good(&s);
    step_state_accepted(&s, 1, life, DRAFTS, 0);
    assert_int_equal(s.slots[1].length, 7);
    step_state_reset(&s);
    step_state_accepted(&s, 1, s.slots[1].life - 1, DRAFTS, 0);
    assert_int_equal(s.slots[1].length, 0);
    step_state_done(&s);
}

static void drafts_that_are_refused(void **state) {
    static const uint32_t ids[] = {5, 100};
    struct step_limits without = limits;
    struct step_state s;
    (void)state;
    open_state(&s, &limits);
    begin();
    add_continue(DRAFTS, 1);
    good(&s);
    begin();
    add_continue(2, 0);
    refused(&s, "2 drafts, of which the last step of slot 1 left 1");
    begin();
    add_continue(DRAFTS + 1, 0);
    refused(&s, "4 drafts, this rank takes at most 3");
    begin();
    struct step_entry t = entry(STEP_ENTRY_CONTINUE, 3);
    t.drafts_at = step_blob(writer, ids, sizeof(ids));
    step_add_entry(writer, &t);
    refused(&s, "draft 1 is id 100");
    step_state_done(&s);
    without.makes_drafts = false;
    open_state(&s, &without);
    begin();
    add_continue(0, 1);
    refused(&s, "asks for 1 drafts, this rank makes at most 0");
    step_state_done(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_length_is_a_range),
            cmocka_unit_test(an_answer_is_for_the_life_that_asked),
            cmocka_unit_test(drafts_that_are_refused),
    };
    writer = aligned_alloc(64, (step_writer_bytes() + 63) / 64 * 64);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(writer);
    return failed;
}
