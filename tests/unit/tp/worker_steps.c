/* worker_steps.c - what a rank does with plans that make no sense: each is refused with a sentence, changes
 * nothing, and the rank goes on. */
#include "model_test.h"

#define SLOTS   4u
#define ROWS    64u
#define CONTEXT 128u

static struct offline *model;
static struct step_writer *writer;
static uint8_t *record;
static uint64_t step;
static uint32_t vocab;
static const uint32_t prompt[] = {5, 6, 7, 8, 9, 10, 11, 12};

static int start(void **state) {
    (void)state;
    struct rank_options options = test_options(NULL, 1);
    options.max_num_seqs = SLOTS;
    options.max_num_batched_tokens = ROWS;
    options.max_model_len = CONTEXT;
    options.slot_units = 2;
    options.page_units = 2;
    model = model_start("small", &options);
    vocab = offline_geometry(model)->vocab_size;
    writer = aligned_alloc(64, (step_writer_bytes() + 63) / 64 * 64);
    record = aligned_alloc(64, STEP_RECORD_MAX);
    return writer && record ? 0 : -1;
}

static int end(void **state) {
    (void)state;
    model = offline_free(model);
    free(writer);
    free(record);
    return 0;
}

/* --- plans --- */

static void begin(void) {
    step_begin(writer, STEP_TYPE_PLAN, 0, 0, ++step);
}

static int send(struct error *e) {
    int bytes = step_end(writer, record, STEP_RECORD_MAX);
    assert_true(bytes > 0);
    return offline_record(model, record, (uint32_t)bytes, e);
}

static void send_ok(void) {
    struct error e = {0};
    must(send(&e), &e);
}

static void open_slot(uint32_t slot) {
    struct step_open o = offline_greedy();
    o.slot = slot;
    step_add_open(writer, &o);
}

static void grant(struct step_entry *t, uint32_t first, uint32_t n, uint32_t page) {
    uint32_t pages[64];
    for (uint32_t i = 0; i < n; i++)
        pages[i] = page + i;
    t->page_first = first;
    t->n_pages = n;
    t->pages_at = step_blob(writer, pages, n * 4);
}

static struct step_entry entry_of(uint32_t slot, uint32_t first, uint32_t n, const uint32_t *ids) {
    return (struct step_entry){.slot = slot,
            .kind = STEP_ENTRY_PROMPT,
            .flags = STEP_ENTRY_SAMPLE,
            .n_rows = n,
            .first_pos = first,
            .ids_at = step_blob(writer, ids, n * 4),
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE};
}

static struct step_entry continue_of(uint32_t slot) {
    return (struct step_entry){.slot = slot,
            .kind = STEP_ENTRY_CONTINUE,
            .flags = STEP_ENTRY_SAMPLE,
            .n_rows = 1,
            .ids_at = STEP_NONE,
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE};
}

/* --- one bad thing each; slot 1 is open with 8 tokens, page 1 and a sampled id, slot 2 is open and empty --- */

static void open_no_such_slot(void) {
    open_slot(SLOTS + 1);
}
static void open_twice(void) {
    open_slot(1);
}
static void open_bias_out_of_vocabulary(void) {
    struct step_open o = offline_greedy();
    uint32_t pair[2] = {vocab, 0};
    o.slot = 3;
    o.n_bias = 1;
    o.bias_at = step_blob(writer, pair, sizeof(pair));
    step_add_open(writer, &o);
}
static void open_suppress_out_of_vocabulary(void) {
    struct step_open o = offline_greedy();
    o.slot = 3;
    o.n_suppress = 1;
    o.suppress_at = step_blob(writer, &vocab, sizeof(vocab));
    step_add_open(writer, &o);
}
static void close_what_is_not_open(void) {
    step_add_close(writer, 3);
}
static void close_no_such_slot(void) {
    step_add_close(writer, 900);
}
static void zero_a_closed_slot(void) {
    step_add_memory(writer, STEP_MEMORY_ZERO_SLOT, 3, 0);
}
static void copy_to_a_closed_slot(void) {
    step_add_memory(writer, STEP_MEMORY_COPY_SLOT, 1, 3);
}
static void copy_no_such_page(void) {
    step_add_memory(writer, STEP_MEMORY_COPY_PAGE, 1, offline_geometry(model)->pages + 1);
}
static void snapshot_no_such_unit(void) {
    step_add_memory(writer, STEP_MEMORY_SNAPSHOT_SLOT, 1, 2);
}
static void restore_an_empty_unit(void) {
    step_add_memory(writer, STEP_MEMORY_RESTORE_SLOT, 1, 2);
}
static void page_out_to_no_such_unit(void) {
    step_add_memory(writer, STEP_MEMORY_PAGE_OUT, 1, 2);
}
static void page_in_from_no_such_unit(void) {
    step_add_memory(writer, STEP_MEMORY_PAGE_IN, 7, 1);
}
static void entry_of_a_closed_slot(void) {
    struct step_entry t = entry_of(3, 0, 4, prompt);
    step_add_entry(writer, &t);
}
static void entry_at_another_position(void) {
    struct step_entry t = entry_of(1, 7, 4, prompt);
    step_add_entry(writer, &t);
}
static void entry_id_out_of_vocabulary(void) {
    uint32_t ids[] = {1, vocab, 2};
    struct step_entry t = entry_of(1, 8, 3, ids);
    step_add_entry(writer, &t);
}
static void entry_id_after_out_of_vocabulary(void) {
    struct step_entry t = entry_of(1, 8, 3, prompt);
    t.id_after = vocab;
    step_add_entry(writer, &t);
}
static void mask_of_another_vocabulary(void) {
    uint32_t words[2] = {1, 1};
    struct step_entry t = continue_of(1);
    t.n_masks = 1;
    t.mask_words = 2;
    t.mask_at = step_blob(writer, words, sizeof(words));
    step_add_entry(writer, &t);
}
static void entry_without_pages(void) {
    struct step_entry t = entry_of(2, 0, 4, prompt);
    step_add_entry(writer, &t);
}
static void entry_beyond_its_pages(void) {
    uint32_t ids[60] = {0};
    struct step_entry t = entry_of(1, 8, 60, ids);
    step_add_entry(writer, &t);
}
static void entry_beyond_the_context(void) {
    uint32_t ids[60] = {0};
    struct step_entry t = entry_of(1, 8, 60, ids);
    grant(&t, 1, 2, 2);
    step_add_entry(writer, &t);
}
static void grant_no_such_page(void) {
    struct step_entry t = entry_of(2, 0, 4, prompt);
    grant(&t, 0, 1, offline_geometry(model)->pages + 1);
    step_add_entry(writer, &t);
}
static void grant_with_a_hole(void) {
    struct step_entry t = entry_of(2, 0, 4, prompt);
    grant(&t, 1, 1, 2);
    step_add_entry(writer, &t);
}
static void rope_out_of_range(void) {
    uint32_t rope[12] = {0};
    struct step_entry t = entry_of(1, 8, 4, prompt);
    rope[11] = CONTEXT_MAX;
    t.rope_at = step_blob(writer, rope, sizeof(rope));
    step_add_entry(writer, &t);
}
static void continue_an_empty_slot(void) {
    struct step_entry t = continue_of(2);
    grant(&t, 0, 1, 2);
    step_add_entry(writer, &t);
}
static void continue_with_drafts(void) {
    struct step_entry t = continue_of(1);
    t.n_rows = 3;
    step_add_entry(writer, &t);
}
static void continue_that_leaves_drafts(void) {
    struct step_entry t = continue_of(1);
    t.n_draft_next = 1;
    step_add_entry(writer, &t);
}
static void too_many_rows(void) {
    uint32_t ids[ROWS] = {0};
    struct step_entry a = entry_of(1, 8, 40, ids), b = entry_of(2, 0, 25, ids);
    grant(&b, 0, 1, 2);
    step_add_entry(writer, &a);
    step_add_entry(writer, &b);
}
static void good_and_bad_together(void) {
    step_add_close(writer, 2);
    step_add_memory(writer, STEP_MEMORY_ZERO_SLOT, 1, 0);
    entry_of_a_closed_slot();
}
static void again_the_same_step(void) {
    step_begin(writer, STEP_TYPE_PLAN, 0, 0, 1);
}

static const struct {
    void (*build)(void);
    const char *says;
} bad_plans[] = {
        {open_no_such_slot, "slot 5 does not exist"},
        {open_twice, "slot 1 is open already"},
        {open_bias_out_of_vocabulary, "the vocabulary has 512"},
        {open_suppress_out_of_vocabulary, "suppressed id 512"},
        {close_what_is_not_open, "slot 3 is not open"},
        {close_no_such_slot, "slot 900 does not exist"},
        {zero_a_closed_slot, "slot 3 is not open"},
        {copy_to_a_closed_slot, "slot 3 is not open"},
        {copy_no_such_page, "does not exist"},
        {snapshot_no_such_unit, "slot unit 2 does not exist"},
        {restore_an_empty_unit, "slot unit 1 holds no snapshot"},
        {page_out_to_no_such_unit, "page unit 2 does not exist"},
        {page_in_from_no_such_unit, "page unit 7 does not exist"},
        {entry_of_a_closed_slot, "slot 3 is not open"},
        {entry_at_another_position, "slot 1 holds 8 tokens"},
        {entry_id_out_of_vocabulary, "id 512 at row 1"},
        {entry_id_after_out_of_vocabulary, "id after it, 512"},
        {mask_of_another_vocabulary, "masks of 2 words, the vocabulary of 512 has 16"},
        {entry_without_pages, "slot 2 needs 1 pages"},
        {entry_beyond_its_pages, "slot 1 needs 2 pages"},
        {entry_beyond_the_context, "grants 2 pages from 1"},
        {grant_no_such_page, "does not exist"},
        {grant_with_a_hole, "page table entry 1 of slot 2"},
        {rope_out_of_range, "rope position"},
        {continue_an_empty_slot, "no sampled id"},
        {continue_with_drafts, "2 drafts, this rank takes at most 0"},
        {continue_that_leaves_drafts, "asks for 1 drafts, this rank makes at most 0"},
        {too_many_rows, "65 rows"},
        {good_and_bad_together, "slot 3 is not open"},
        {again_the_same_step, "step 1 came after step"},
};

/* RESET, then the two slots that the bad plans know of. */
static void set_up(void) {
    struct error e = {0};
    must(offline_reset(model, &e), &e);
    step = 0;
    begin();
    open_slot(1);
    open_slot(2);
    struct step_entry t = entry_of(1, 0, 8, prompt);
    grant(&t, 0, 1, 1);
    step_add_entry(writer, &t);
    send_ok();
}

/* Continues slot 1 and returns the id: what it was before the bad plan, if that changed nothing. */
static struct step_sample go_on(void) {
    begin();
    struct step_entry t = continue_of(1), u = entry_of(2, 0, 8, prompt);
    grant(&u, 0, 1, 2);
    u.flags |= STEP_ENTRY_LOGPROB;
    t.flags |= STEP_ENTRY_LOGPROB;
    step_add_entry(writer, &t);
    step_add_entry(writer, &u);
    send_ok();
    assert_int_equal(offline_answer(model, 0)->completion.n_outcomes, 2);
    return *step_outcome_samples(offline_answer(model, 0)->body);
}

static void bad_plans_change_nothing(void **state) {
    (void)state;
    set_up();
    struct step_sample expected = go_on();
    for (size_t i = 0; i < sizeof(bad_plans) / sizeof(bad_plans[0]); i++) {
        struct error e = {0};
        set_up();
        begin();
        bad_plans[i].build();
        assert_true(send(&e) < 0);
        if (!strstr(e.text, bad_plans[i].says))
            fail_msg("plan %zu was refused with '%s', expected '%s'", i, e.text, bad_plans[i].says);
        struct step_sample got = go_on();
        assert_int_equal(got.id, expected.id);
        assert_memory_equal(&got.logprob, &expected.logprob, sizeof(float));
    }
}

static void broken_records(void **state) {
    (void)state;
    set_up();
    struct error e = {0};
    begin();
    struct step_entry t = continue_of(1);
    step_add_entry(writer, &t);
    int bytes = step_end(writer, record, STEP_RECORD_MAX);
    assert_true(bytes > 0);
    assert_true(offline_record(model, record, (uint32_t)bytes - 8, &e) < 0);
    assert_true(offline_record(model, record, 4, &e) < 0);
    for (int i = 0; i < bytes; i++) { /* a flipped byte is refused or harmless, never more */
        record[i] ^= 0xff;
        int r = offline_record(model, record, (uint32_t)bytes, &e);
        assert_true(r == 0 || e.text[0]);
        record[i] ^= 0xff;
    }
    assert_false(step_exec_failed(offline_exec(model, 0), NULL));
    set_up();
    go_on();
}

static void plan_before_reset(void **state) {
    (void)state;
    char path[512];
    struct error e = {0};
    struct rank *rank = NULL;
    struct step_exec *exec = NULL;
    struct step_answer answer;
    model_path(path, sizeof(path), "small", NULL);
    struct rank_options options = test_options(path, 1);
    must(rank_create(&options, &rank, &e), &e);
    must(step_exec_create(rank, &exec, &e), &e);
    step_begin(writer, STEP_TYPE_PLAN, 3, 4, 9);
    int bytes = step_end(writer, record, STEP_RECORD_MAX);
    step_exec_record(exec, record, (uint32_t)bytes, &answer);
    assert_int_equal(answer.completion.status, STEP_STATUS_FAULT);
    assert_int_equal(answer.completion.step, 9);
    assert_int_equal(answer.completion.group_epoch, 3);
    assert_int_equal(answer.completion.coord_epoch, 4);
    assert_int_equal(answer.completion.n_outcomes, answer.body_bytes);
    assert_non_null(memmem(answer.body, answer.body_bytes, "RESET", 5));
    step_exec_free(exec);
    rank_free(rank);
}

static void empty_records(void **state) {
    (void)state;
    struct error e = {0};
    set_up();
    begin();
    send_ok();
    assert_int_equal(offline_answer(model, 0)->completion.n_outcomes, 0);
    step_begin(writer, STEP_TYPE_PING, 0, 0, ++step);
    must(send(&e), &e);
    assert_int_equal(offline_answer(model, 0)->completion.type, STEP_TYPE_PING);
    assert_int_equal(offline_answer(model, 0)->body_bytes, 0);
    begin();
    step_add_close(writer, 1);
    step_add_close(writer, 2);
    send_ok();
}

/* A snapshot, a fork and a swap in and out of a page bring a sequence back where it was, to the bit. A
 * snapshot is of positions: the id sampled after the last one is given again. */
static void memory_operations(void **state) {
    (void)state;
    set_up();
    uint32_t pending = step_outcome_samples(offline_answer(model, 0)->body)->id;
    begin();
    step_add_memory(writer, STEP_MEMORY_SNAPSHOT_SLOT, 1, 0);
    step_add_memory(writer, STEP_MEMORY_PAGE_OUT, 1, 0);
    send_ok();
    struct step_sample expected = go_on();
    begin();
    step_add_close(writer, 1);
    send_ok();
    begin();
    open_slot(3);
    open_slot(4);
    step_add_memory(writer, STEP_MEMORY_RESTORE_SLOT, 0, 3);
    step_add_memory(writer, STEP_MEMORY_PAGE_IN, 0, 3);
    step_add_memory(writer, STEP_MEMORY_COPY_SLOT, 3, 4);
    step_add_memory(writer, STEP_MEMORY_COPY_PAGE, 3, 4);
    struct step_entry t = entry_of(3, 8, 1, &pending), u = entry_of(4, 8, 1, &pending);
    t.flags |= STEP_ENTRY_LOGPROB | STEP_ENTRY_GENERATED;
    u.flags |= STEP_ENTRY_LOGPROB | STEP_ENTRY_GENERATED;
    grant(&t, 0, 1, 3);
    grant(&u, 0, 1, 4);
    step_add_entry(writer, &t);
    step_add_entry(writer, &u);
    send_ok();
    const struct step_outcome *got = offline_answer(model, 0)->body;
    for (int i = 0; i < 2; i++, got = step_outcome_next(got)) {
        assert_int_equal(step_outcome_samples(got)->id, expected.id);
        assert_memory_equal(&step_outcome_samples(got)->logprob, &expected.logprob, sizeof(float));
    }
}

static void continue_after_restore(void **state) {
    (void)state;
    struct error e = {0};
    set_up();
    begin();
    step_add_memory(writer, STEP_MEMORY_SNAPSHOT_SLOT, 1, 0);
    step_add_memory(writer, STEP_MEMORY_RESTORE_SLOT, 0, 2);
    struct step_entry t = continue_of(2);
    grant(&t, 0, 1, 2);
    step_add_entry(writer, &t);
    assert_true(send(&e) < 0);
    assert_non_null(strstr(e.text, "no sampled id"));
}

/* --- random plans --- */

static uint64_t random_state;

static uint32_t pick(uint32_t n) { /* 0 .. n-1 */
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

struct guess { /* what the test believes of a slot; now and then it lies */
    uint32_t length, granted;
    bool open;
};

static void random_open(uint32_t slot) {
    struct step_open o = offline_greedy();
    o.slot = slot;
    o.seed = pick(100);
    o.temperature = (float)pick(3) * 0.7f;
    o.top_k = pick(4) * 10;
    o.top_p = pick(2) ? 1.0f : 0.8f;
    o.min_p = pick(2) ? 0.0f : 0.1f;
    o.repetition_penalty = pick(2) ? 1.0f : 1.3f;
    o.presence_penalty = (float)pick(5) - 2.0f;
    o.min_tokens = pick(3);
    if (pick(3) == 0) {
        uint32_t id = pick(vocab + 4);
        o.n_suppress = 1;
        o.suppress_at = step_blob(writer, &id, sizeof(id));
    }
    step_add_open(writer, &o);
}

static void random_memory(void) {
    uint32_t kind = pick(STEP_MEMORY_KINDS);
    bool pages = kind == STEP_MEMORY_COPY_PAGE || kind == STEP_MEMORY_PAGE_OUT || kind == STEP_MEMORY_PAGE_IN;
    uint32_t a = pages ? pick(offline_geometry(model)->pages + 2) : pick(SLOTS + 2);
    uint32_t b = pages ? pick(offline_geometry(model)->pages + 2) : pick(SLOTS + 2);
    if (kind == STEP_MEMORY_SNAPSHOT_SLOT || kind == STEP_MEMORY_PAGE_OUT)
        b = pick(3);
    if (kind == STEP_MEMORY_RESTORE_SLOT || kind == STEP_MEMORY_PAGE_IN)
        a = pick(3);
    step_add_memory(writer, (enum step_memory_kind)kind, a, b);
}

static void random_entry(uint32_t slot, struct guess *g) {
    uint32_t ids[ROWS], rope[3 * ROWS], n = 1 + pick(pick(4) ? 12 : ROWS);
    struct step_entry t = continue_of(slot);
    if (pick(3)) {
        for (uint32_t i = 0; i < n; i++)
            ids[i] = pick(pick(50) ? vocab : vocab + 2);
        t = entry_of(slot, pick(20) ? g->length : pick(CONTEXT + 8), n, ids);
        t.flags = pick(8);
        if ((t.flags & STEP_ENTRY_SAMPLE) == 0)
            t.flags &= ~(uint32_t)STEP_ENTRY_LOGPROB;
        t.id_after = pick(3) ? STEP_NONE : pick(vocab + 2);
    }
    if (t.flags & STEP_ENTRY_LOGPROB)
        t.top_logprobs = pick(TOP_LOGPROBS_MAX + 1);
    if (pick(10) == 0) {
        for (uint32_t i = 0; i < 3 * t.n_rows; i++)
            rope[i] = pick(CONTEXT_MAX + (pick(200) == 0));
        t.rope_at = step_blob(writer, rope, 12 * t.n_rows);
    }
    uint32_t needed = (g->length + t.n_rows + PAGE_TOKENS - 1) / PAGE_TOKENS;
    if (needed > g->granted && pick(20))
        grant(&t, g->granted, needed - g->granted,
                1 + pick(offline_geometry(model)->pages + (pick(20) == 0)));
    g->granted = needed > g->granted ? needed : g->granted;
    g->length += t.n_rows;
    step_add_entry(writer, &t);
}

/* Whatever the plans say, the rank neither fails nor reads or writes where it should not (sanitizers watch). */
static void random_plans(void **state) {
    (void)state;
    struct guess slots[SLOTS + 1] = {0}, next[SLOTS + 1];
    uint32_t taken = 0, refused = 0;
    set_up();
    struct step_sample expected = go_on();
    set_up();
    slots[1] = (struct guess){.length = 8, .granted = 1, .open = true};
    slots[2].open = true;
    random_state = 1;
    for (uint32_t i = 0; i < 3000; i++) {
        struct error e = {0};
        memcpy(next, slots, sizeof(next));
        begin();
        for (uint32_t slot = 1; slot <= SLOTS; slot++) {
            struct guess *g = &next[slot];
            if (g->open ? pick(12) == 0 || g->length > CONTEXT - 20 : pick(40) == 0) {
                step_add_close(writer, slot);
                *g = (struct guess){0};
            }
            if (g->open ? pick(100) == 0 : pick(2) == 0) {
                random_open(slot);
                *g = (struct guess){.open = true};
            }
            if (g->open ? pick(4) != 0 : pick(60) == 0)
                random_entry(slot, g);
        }
        if (pick(8) == 0)
            random_memory();
        int r = send(&e);
        assert_false(step_exec_failed(offline_exec(model, 0), NULL));
        if (r == 0) {
            memcpy(slots, next, sizeof(slots));
            taken++;
        } else {
            assert_true(e.text[0]);
            refused++;
        }
        if (refused % 50 == 49) { /* memory operations made the guesses wrong: start over */
            refused++;
            set_up();
            memset(slots, 0, sizeof(slots));
            slots[1] = (struct guess){.length = 8, .granted = 1, .open = true};
            slots[2].open = true;
        }
    }
    assert_true(taken > 500 && refused > 100);
    set_up();
    struct step_sample got = go_on();
    assert_int_equal(got.id, expected.id);
    assert_memory_equal(&got.logprob, &expected.logprob, sizeof(float));
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(bad_plans_change_nothing),
            cmocka_unit_test(broken_records),
            cmocka_unit_test(plan_before_reset),
            cmocka_unit_test(empty_records),
            cmocka_unit_test(memory_operations),
            cmocka_unit_test(continue_after_restore),
            cmocka_unit_test(random_plans),
    };
    return cmocka_run_group_tests(tests, start, end);
}
