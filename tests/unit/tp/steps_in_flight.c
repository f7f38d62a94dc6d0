/* steps_in_flight.c - two records in flight on a device that runs nothing before somebody waits: the answers are those
 * of a rank that executes one record at a time, to the bit and in order, whatever happens to host memory meanwhile. */
#include "model_test.h"

#define RECORDS      24u
#define RECORD_BYTES 4096u
#define BODY_BYTES   4096u
#define DRAFTS                                                                                               \
    3u /* that slot 2 makes and verifies in each step; the host does not know its length meanwhile */
#define WAIT_NS 60000000000u /* a wait that does not end by itself */

struct answer {
    struct step_completion completion;
    uint8_t body[BODY_BYTES];
};

static struct step_writer *writer;
static uint64_t records[RECORDS][RECORD_BYTES / 8];
static uint32_t bytes_of[RECORDS], n_records;
static uint64_t step;

struct worker {
    struct rank *rank;
    struct step_exec *exec;
};

static void worker_open(struct worker *w, bool deferred) {
    char path[512];
    struct error e = {0};
    struct rank_options options = test_options(path, 1);
    model_path(path, sizeof(path), "small", NULL);
    options.deferred = deferred;
    options.mtp = true;
    options.drafts_max = DRAFTS;
    must(rank_create(&options, &w->rank, &e), &e);
    must(step_exec_create(w->rank, &w->exec, &e), &e);
}

static void worker_close(struct worker *w) {
    step_exec_free(w->exec);
    rank_free(w->rank);
}

/* --- records --- */

static void begin(enum step_type type) {
    step = type == STEP_TYPE_RESET ? 0 : step + 1;
    step_begin(writer, type, 3, 4, step);
}

static void end(void) {
    assert_true(n_records < RECORDS);
    int n = step_end(writer, records[n_records], RECORD_BYTES);
    assert_true(n > 0);
    bytes_of[n_records++] = (uint32_t)n;
}

static void bare(enum step_type type) {
    begin(type);
    end();
}

/* Every slot has parameters of its own, so that one's are not taken for another's. */
static void open_slot(uint32_t slot) {
    struct step_open o = offline_greedy();
    struct {
        uint32_t id;
        float bias;
    } bias[2] = {{slot * 7, 2.0f + (float)slot}, {slot * 9 + 1, -3}};
    o.slot = slot;
    o.temperature = slot % 2 ? 0.9f : 0;
    o.repetition_penalty = 1.0f + (float)slot / 8;
    o.seed = slot * 1001;
    o.n_bias = 2;
    o.bias_at = step_blob(writer, bias, sizeof(bias));
    step_add_open(writer, &o);
}

static uint32_t drafts_of(uint32_t slot) {
    return slot == 2 ? DRAFTS : 0;
}

static void add_prompt(uint32_t slot, uint32_t first, uint32_t n, bool sample) {
    uint32_t ids[64], page = slot;
    struct step_entry t = {.slot = slot,
            .kind = STEP_ENTRY_PROMPT,
            .flags = sample ? STEP_ENTRY_SAMPLE | STEP_ENTRY_LOGPROB : 0,
            .n_rows = n,
            .first_pos = first,
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE,
            .top_logprobs = sample ? slot : 0,
            .n_pages = first == 0,
            .n_draft_next = sample ? drafts_of(slot) : 0};
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (slot * 97 + (first + i) * 31) % 500;
    t.ids_at = step_blob(writer, ids, n * 4);
    if (t.n_pages)
        t.pages_at = step_blob(writer, &page, sizeof(page));
    step_add_entry(writer, &t);
}

static void add_continue(uint32_t slot) {
    struct step_entry t = {.slot = slot,
            .kind = STEP_ENTRY_CONTINUE,
            .flags = STEP_ENTRY_SAMPLE | STEP_ENTRY_LOGPROB,
            .n_rows = 1 + drafts_of(slot),
            .n_draft_next = drafts_of(slot),
            .ids_at = STEP_NONE,
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE,
            .top_logprobs = slot};
    step_add_entry(writer, &t);
}

/* Steps of all shapes: chunks of one prompt while others generate in changing order, refused plans, pings, resets. */
static void make_records(void) {
    n_records = 0;
    bare(STEP_TYPE_RESET);
    for (uint32_t round = 0; round < 2; round++) {
        begin(STEP_TYPE_PLAN);
        for (uint32_t slot = 1; slot <= 3; slot++)
            open_slot(slot);
        add_prompt(1, 0, 8 + round, true);
        add_prompt(2, 0, 5, true);
        end();
        for (uint32_t i = 0, at = 0; i < 6; i++) {
            begin(STEP_TYPE_PLAN);
            add_continue(1 + (i + round) % 2);
            add_prompt(3, at, 3 + i, i == 5);
            at += 3 + i;
            add_continue(2 - (i + round) % 2);
            end();
            if (i == 2) { /* refused: slot 4 is not open */
                begin(STEP_TYPE_PLAN);
                add_continue(4);
                end();
            }
            if (i == 3)
                bare(STEP_TYPE_PING);
        }
        if (round == 0)
            bare(STEP_TYPE_RESET);
    }
    begin(STEP_TYPE_PLAN);
    step_add_close(writer, 2);
    add_continue(3);
    end();
    bare(STEP_TYPE_STOP);
}

static void keep(const struct step_answer *from, struct answer *to) {
    assert_true(from->body_bytes <= BODY_BYTES);
    memset(to, 0, sizeof(*to));
    to->completion = from->completion;
    to->completion.compute_ns = 0;
    if (from->body_bytes)
        memcpy(to->body, from->body, from->body_bytes);
}

/* --- tests --- */

static struct answer expected[RECORDS], got[RECORDS];

static void one_at_a_time(void) {
    struct worker w;
    uint32_t ok = 0;
    worker_open(&w, false);
    for (uint32_t i = 0; i < n_records; i++) {
        struct step_answer a;
        step_exec_record(w.exec, records[i], bytes_of[i], &a);
        keep(&a, &expected[i]);
        ok += a.completion.status == STEP_STATUS_OK;
    }
    assert_int_equal(ok, n_records - 2); /* two plans are refused */
    worker_close(&w);
}

static void collect(struct worker *w, uint32_t i) {
    struct step_answer a;
    assert_int_equal(step_exec_collect(w->exec, WAIT_NS, &a), 0);
    keep(&a, &got[i]);
    if (memcmp(&got[i].completion, &expected[i].completion, sizeof(got[i].completion)) != 0 ||
            memcmp(got[i].body, expected[i].body, BODY_BYTES) != 0)
        fail_msg("the answer to record %u (step %llu) is another with two in flight", i,
                (unsigned long long)a.completion.step);
}

/* eager: both records have run before the first is collected; otherwise each runs when its answer is asked for. So what
 * is written too early shows as well as what is read too late. */
static void two_in_flight(bool eager) {
    static uint64_t record[RECORD_BYTES / 8];
    struct worker w;
    struct step_answer a;
    worker_open(&w, true);
    for (uint32_t i = 0; i < n_records; i++) {
        memcpy(record, records[i], bytes_of[i]);
        step_exec_submit(w.exec, record, bytes_of[i]);
        memset(record, 0xee, sizeof(record)); /* it was the ring's, which has given it to another */
        if (i == 1)                           /* the device really has not run yet */
            assert_int_equal(step_exec_collect(w.exec, 0, &a), -EAGAIN);
        if (step_exec_in_flight(w.exec) < STEP_EXEC_IN_FLIGHT)
            continue;
        if (eager)
            assert_int_equal(k_stream_wait(w.rank->stream, 0, NULL), 0);
        collect(&w, i - 1);
    }
    collect(&w, n_records - 1);
    assert_int_equal(step_exec_in_flight(w.exec), 0);
    worker_close(&w);
}

static void two_in_flight_give_the_same_answers(void **state) {
    (void)state;
    make_records();
    one_at_a_time();
    two_in_flight(/* eager= */ false);
    two_in_flight(/* eager= */ true);
}

/* What fails on the device is the answer to everything in flight, and to what comes later. */
static void a_fault_answers_all_in_flight(void **state) {
    (void)state;
    static const uint32_t ids[1000];
    const struct k_sampling too_much = {
            .top_p = 1, .repetition_penalty = 1, .n_suppress = 1000, .suppress = ids};
    struct worker w;
    struct step_answer a;
    make_records();
    worker_open(&w, true);
    for (uint32_t i = 0; i < 2; i++)
        step_exec_record(w.exec, records[i], bytes_of[i], &a);
    assert_int_equal(a.completion.status, STEP_STATUS_OK);
    step_exec_submit(w.exec, records[2], bytes_of[2]);
    k_slot_open(w.rank->stream, w.rank->pool, 1, &too_much);
    step_exec_submit(w.exec, records[3], bytes_of[3]);
    for (uint32_t i = 2; i < 5; i++) {
        if (i == 4)
            step_exec_submit(w.exec, records[4], bytes_of[4]);
        assert_int_equal(step_exec_collect(w.exec, WAIT_NS, &a), 0);
        assert_int_equal(a.completion.status, STEP_STATUS_FAULT);
        assert_int_equal(a.completion.step, i);
        assert_non_null(memmem(a.body, a.body_bytes, "suppressed ids", 14));
    }
    assert_true(step_exec_failed(w.exec, NULL));
    worker_close(&w);
}

/* Where a device is: at what it has begun, not at what was queued. */
static void the_place_is_what_has_run(void **state) {
    struct worker w;
    struct step_answer a;
    uint64_t at = 0;
    uint32_t layer = 0;
    (void)state;
    make_records();
    worker_open(&w, true);
    step_exec_record(w.exec, records[0], bytes_of[0], &a);
    step_exec_submit(w.exec, records[1], bytes_of[1]);
    assert_false(step_exec_place(w.exec, &at, &layer));
    assert_int_equal(k_stream_wait(w.rank->stream, 0, NULL), 0);
    step_exec_submit(w.exec, records[2], bytes_of[2]);
    assert_true(step_exec_place(w.exec, &at, &layer));
    assert_int_equal(at, 1);
    assert_int_equal(layer, w.rank->config.n_layers + 1);
    assert_int_equal(k_stream_wait(w.rank->stream, 0, NULL), 0);
    assert_true(step_exec_place(w.exec, &at, &layer));
    assert_int_equal(at, 2);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(step_exec_collect(w.exec, WAIT_NS, &a), 0);
    assert_false(step_exec_place(w.exec, &at, &layer));
    worker_close(&w);
    worker_open(&w, false);
    assert_false(step_exec_place(w.exec, &at, &layer));
    worker_close(&w);
}

static bool made_drafts(const struct worker *w) {
    return w->rank->draft_results->id != STEP_NONE; /* memory of the host, here */
}

/* An answer does not wait for the drafts behind its step. A device makes them at once, and where operations run when
 * they are queued the next plan brings them. */
static void answers_come_before_drafts(void **state) {
    (void)state;
    make_records();
    for (int deferred = 0; deferred < 2; deferred++) {
        struct worker w;
        struct step_answer a;
        worker_open(&w, deferred);
        w.rank->draft_results->id = STEP_NONE;
        for (uint32_t i = 0; i < 2; i++)
            step_exec_record(w.exec, records[i], bytes_of[i], &a);
        assert_int_equal(a.completion.n_outcomes, 2);
        assert_false(made_drafts(&w));
        if (deferred)
            assert_int_equal(k_stream_wait(w.rank->stream, 0, NULL), 0);
        else
            step_exec_record(w.exec, records[2], bytes_of[2], &a);
        assert_true(made_drafts(&w));
        worker_close(&w);
    }
}

static int setup(void **state) {
    (void)state;
    writer = aligned_alloc(64, step_writer_bytes());
    return writer ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    free(writer);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(two_in_flight_give_the_same_answers),
            cmocka_unit_test(a_fault_answers_all_in_flight),
            cmocka_unit_test(the_place_is_what_has_run),
            cmocka_unit_test(answers_come_before_drafts),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
