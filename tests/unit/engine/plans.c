/* plans.c - what the plans say: the test is the rank, answers when it likes, and reads every record. */
#include "tests/unit/engine/harness.h"

#include "base/clock.h"

static struct engine *engine;
static struct step_ring *ring;
static struct null_rank *rank_;
static uint32_t prompt[1024];
static struct engine_options options;
static struct null_rank_options rank_options;

/* A rank that this thread drives: RESET is answered, the rest as the test says. */
static void begin(void) {
    int fd;
    engine = harness_engine(&options);
    assert_int_equal(null_rank_create(&rank_options, &rank_, NULL), 0);
    assert_int_equal(step_ring_create(1, 1, 1, &fd, NULL), 0);
    assert_int_equal(step_ring_attach(fd, 0, &ring, NULL), 0);
    struct control_message m = {
            .kind = CONTROL_CHANNEL, .n_fds = 1, .group_epoch = 1, .coord_epoch = 1, .fds = {fd}};
    assert_int_equal(engine_control(engine, &m), 0);
    close(fd);
    assert_int_equal(null_rank_serve(rank_, ring, LONG_NS, NULL), 0);
    assert_int_equal(engine_wait_ready(engine, LONG_NS), 0);
}

static int setup(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 1024; i++)
        prompt[i] = (i * 7919 + 13) % 1000;
    options = harness_engine_options();
    rank_options = harness_rank_options();
    return 0;
}

static int teardown(void **state) {
    (void)state;
    engine = engine_free(engine);
    ring = step_ring_free(ring);
    rank_ = null_rank_free(rank_);
    return 0;
}

/* The next plan that is not answered yet; pings on the way are answered. The copy stays valid. */
static struct step_plan look(void) {
    const void *record;
    uint32_t bytes;
    struct step_plan p;
    for (;;) {
        int r = step_ring_next(ring, &record, &bytes);
        if (r == -EAGAIN) {
            step_ring_wait(ring, LONG_NS);
            continue;
        }
        assert_int_equal(r, 0);
        assert_int_equal(step_decode(record, bytes, &p, NULL), 0);
        if (p.header->type == STEP_TYPE_PLAN)
            return p;
        assert_int_equal(null_rank_serve(rank_, ring, 0, NULL), 0);
    }
}

static void answer(void) {
    struct error e = {0};
    if (null_rank_serve(rank_, ring, 0, &e) < 0)
        fail_msg("%s", e.text);
}

/* Releases the record without an answer, so that the next one can be looked at. */
static void leave(void) {
    step_ring_release(ring);
}

/* While one step runs the next is planned already, with rows whose ids only the rank knows. */
static void test_overlap(void **state) {
    (void)state;
    struct reading r;
    begin();
    struct engine_request q = harness_request(prompt, 10, 5, 1);
    harness_submit(engine, &q, &r);
    struct step_plan p = look();
    assert_int_equal(p.n_entries, 1);
    assert_int_equal(p.n_opens, 1);
    assert_int_equal(p.entries[0].kind, STEP_ENTRY_PROMPT);
    assert_int_equal(p.entries[0].flags, STEP_ENTRY_SAMPLE);
    assert_int_equal(p.entries[0].n_rows, 10);
    assert_int_equal(p.entries[0].id_after, STEP_NONE);
    assert_int_equal(p.entries[0].n_pages, 1);
    leave();
    p = look(); /* nothing was answered */
    assert_int_equal(p.n_entries, 1);
    assert_int_equal(p.entries[0].kind, STEP_ENTRY_CONTINUE);
    assert_int_equal(p.n_opens, 0);
    assert_int_equal(p.entries[0].n_pages, 0);
    harness_unref(&r, 1);
}

/* A stop that is found late costs one row, which nobody sees; the slot is closed and free again. */
static void test_late_stop(void **state) {
    (void)state;
    static struct reading first, second;
    begin();
    struct engine_request q = harness_request(prompt, 10, 2, 1);
    harness_submit(engine, &q, &first);
    look();
    answer();
    look();
    answer();
    harness_read(&first, 1, 0);
    struct step_plan p = look();
    assert_int_equal(p.n_entries, 0); /* closes alone: nothing else is to do */
    assert_int_equal(p.n_closes, 1);
    answer();

    q.max_tokens = 50;
    q.stop_ids = &first.ids[0]; /* the first token */
    q.n_stop_ids = 1;
    harness_submit(engine, &q, &second);
    p = look();
    assert_int_equal(p.opens[0].n_suppress, 1); /* drafts behind it are not accepted */
    uint32_t slot = p.opens[0].slot;
    answer();
    harness_read(&second, 1, 0); /* the reader knows at once */
    assert_int_equal(second.finish, ENGINE_FINISH_STOP_ID);
    assert_int_equal(second.n, 1);
    p = look(); /* planned before it was known */
    assert_int_equal(p.n_entries, 1);
    struct engine_stats s;
    engine_stats(engine, &s);
    assert_true(s.pages_free < s.pages_total); /* still named by a step: not free */
    answer();
    p = look();
    assert_int_equal(p.n_entries, 0);
    assert_int_equal(p.n_closes, 1);
    assert_int_equal(p.closes[0], slot);
    answer();
    harness_expect_quiet(engine, &s);
    assert_int_equal(s.generated_tokens_total, 3);
    harness_unref(&first, 1);
    harness_unref(&second, 1);
}

/* The reader found a stop string in an earlier token: what was generated behind it stays counted. */
static void test_a_count_never_falls(void **state) {
    (void)state;
    static struct reading r;
    struct engine_stats s;
    begin();
    struct engine_request q = harness_request(prompt, 10, 50, 1);
    harness_submit(engine, &q, &r);
    for (int i = 0; i < 3; i++) {
        look();
        answer();
    }
    harness_read(&r, 1, 3);
    engine_finish(engine, r.stream, 1);
    harness_read(&r, 1, 0);
    engine_stats(engine, &s);
    assert_int_equal(s.generated_tokens_total, 3);
    harness_unref(&r, 1);
}

/* A group that dies before the first token takes the cache with it: the prompt is computed after all, and its tokens
 * are not counted as found. */
static void test_found_and_lost(void **state) {
    (void)state;
    static struct reading r;
    struct engine_stats s;
    options.prefix_cache = true;
    rank_options.slot_units = 4;
    begin();
    struct engine_request q = harness_request(prompt, 200, 1, 1);
    harness_submit(engine, &q, &r);
    for (; r.finish == ENGINE_RUNNING; harness_take(&r)) {
        look();
        answer();
    }
    harness_unref(&r, 1);
    harness_submit(engine, &q, &r);
    while (look().n_entries == 0)
        answer(); /* what the first one leaves, and its slot */
    assert_int_equal(look().memory[0].kind, STEP_MEMORY_RESTORE_SLOT);
    struct control_message m = {.kind = CONTROL_GROUP_LOST, .group_epoch = 1, .coord_epoch = 1};
    assert_int_equal(engine_control(engine, &m), 0);
    do
        engine_stats(engine, &s);
    while (strcmp(s.state, "recovering") != 0);
    assert_int_equal(s.cached_tokens_total, 0);
    harness_unref(&r, 1);
}

/* Decode rows come first and prompts fill the rest of the budget, in chunks that end at block boundaries. */
static void test_chunked_prefill(void **state) {
    (void)state;
    static struct reading r[2];
    options.max_num_batched_tokens = 50;
    begin();
    struct engine_request q = harness_request(prompt, 10, 100, 1);
    harness_submit(engine, &q, &r[0]);
    look();
    answer();
    struct engine_request big = harness_request(prompt, 200, 4, 2);
    harness_submit(engine, &big, &r[1]);
    uint32_t fed = 0, steps = 0;
    while (fed < 200) {
        struct step_plan p = look();
        assert_true(p.n_rows <= 50);
        assert_true(++steps < 20);
        assert_int_equal(p.entries[0].kind, STEP_ENTRY_CONTINUE);
        if (p.n_entries == 2) {
            const struct step_entry *t = &p.entries[1];
            const uint32_t *ids = (const uint32_t *)(const void *)(p.blob + t->ids_at);
            assert_int_equal(t->kind, STEP_ENTRY_PROMPT);
            assert_int_equal(t->first_pos, fed);
            assert_memory_equal(ids, prompt + fed, t->n_rows * sizeof(uint32_t));
            fed += t->n_rows;
            assert_int_equal(t->id_after, fed < 200 ? prompt[fed] : STEP_NONE);
            assert_int_equal(t->flags, fed < 200 ? 0 : STEP_ENTRY_SAMPLE);
            assert_true(fed % GDN_BLOCK == 0 || fed == 200);
            assert_int_equal(t->n_rows, fed < 200 ? 48 : 8);
        }
        answer();
    }
    engine_abort_all(engine);
    harness_unref(r, 2);
}

/* Higher priority first, then who came first; nobody overtakes. */
static void test_order(void **state) {
    (void)state;
    static struct reading r[6];
    const int32_t priorities[6] = {0, 0, 5, -5, 5, 0};
    const uint32_t order[6] = {2, 4, 0, 1, 5, 3};
    rank_options.slots = 1;
    begin();
    struct reading blocker;
    struct engine_request q = harness_request(prompt, 1, 2, 1);
    harness_submit(engine, &q, &blocker);
    look();
    for (uint32_t i = 0; i < 6; i++) {
        q = harness_request(prompt, 100 + i, 1, 1); /* told apart by length */
        q.priority = priorities[i];
        harness_submit(engine, &q, &r[i]);
    }
    struct engine_stats s;
    do
        engine_stats(engine, &s);
    while (s.requests_total < 7);
    for (uint32_t n = 0; n < 6;) {
        struct step_plan p = look();
        if (p.n_entries == 1 && p.entries[0].kind == STEP_ENTRY_PROMPT && p.entries[0].n_rows >= 100)
            assert_int_equal(p.entries[0].n_rows, 100 + order[n++]);
        answer();
    }
    harness_read(r, 6, 0);
    harness_unref(r, 6);
    harness_unref(&blocker, 1);
}

/* The first answer reads the prompt, the others of the request wait for it and go on from there; whoever else waits is
 * served meanwhile. When the first answer ends in between they read it themselves. */
static void test_answers_share_a_prompt(void **state) {
    (void)state;
    static struct reading r[4];
    options.max_num_batched_tokens = 100;
    options.prefix_cache = true;
    rank_options.slot_units = 8;
    for (int cancelled = 0; cancelled < 2; cancelled++) {
        begin();
        struct engine_request q = harness_request(prompt, 300, 3, 1),
                              other = harness_request(prompt + 500, 5, 2, 1);
        harness_submit(engine, &q, &r[0]);
        look(); /* it has begun */
        q.lead = r[0].stream;
        harness_submit(engine, &q, &r[1]);
        harness_submit(engine, &q, &r[2]);
        harness_submit(engine, &other, &r[3]);
        uint32_t opened = 1, rows = 0;
        for (int i = 0; i < 40 && (r[1].finish == ENGINE_RUNNING || r[2].finish == ENGINE_RUNNING); i++) {
            struct step_plan p = look();
            for (uint32_t k = 0; k < p.n_entries; k++)
                rows += p.entries[k].kind == STEP_ENTRY_PROMPT ? p.entries[k].n_rows : 0;
            opened += i > 0 ? p.n_opens : 0;
            answer();
            if (i == 0 && cancelled)
                engine_cancel(engine, r[0].stream);
            for (uint32_t k = 0; k < 4; k++)
                harness_take(&r[k]);
            assert_true(cancelled || opened <= 2 || r[0].n > 0); /* the other one was opened */
        }
        assert_int_equal(r[1].finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(r[2].finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(r[3].finish, ENGINE_FINISH_LENGTH);
        assert_memory_equal(r[1].ids, r[2].ids, 3 * sizeof(uint32_t));
        if (!cancelled) /* all but the end of the prompt, once */
            assert_in_range(rows, 300 + 5 + 2, 300 + 5 + 2 * PAGE_TOKENS);
        harness_unref(r, 4);
        if (cancelled == 0)
            teardown(state);
    }
}

/* While a prompt of 100,003 tokens is read, everybody who generates has a row in every step. */
static void test_long_prompt_stops_nobody(void **state) {
    (void)state;
    enum { LONG = 100003, OTHERS = 5 };
    static struct reading r[OTHERS + 1];
    static uint32_t ids[LONG];
    uint32_t steps = 0, read = 0;
    for (uint32_t i = 0; i < LONG; i++)
        ids[i] = i % 1000;
    options.max_num_batched_tokens = 512;
    rank_options.max_model_len = LONG + 100;
    rank_options.pages = LONG / PAGE_TOKENS + 200;
    begin();
    for (uint32_t i = 0; i < OTHERS; i++) {
        struct engine_request q = harness_request(prompt, 7, 1000, i);
        harness_submit(engine, &q, &r[i]);
    }
    for (struct step_plan p = look(); p.n_entries < OTHERS || p.n_rows > OTHERS; p = look())
        answer(); /* until all of them generate */
    struct engine_request q = harness_request(ids, LONG, 1, 9);
    harness_submit(engine, &q, &r[OTHERS]);
    while (read < LONG) {
        struct step_plan p = look();
        uint32_t generating = 0, rows = 0;
        for (uint32_t i = 0; i < p.n_entries; i++) {
            generating += p.entries[i].kind == STEP_ENTRY_CONTINUE;
            rows += p.entries[i].kind == STEP_ENTRY_PROMPT ? p.entries[i].n_rows : 0;
        }
        answer();
        assert_int_equal(generating, OTHERS);
        assert_in_range(rows, 0, 512 - OTHERS);
        for (uint32_t i = 0; i < OTHERS; i++)
            harness_take(&r[i]);
        read += rows;
        steps += rows > 0;
    }
    assert_in_range(steps, LONG / 507, LONG / 496 + 1); /* chunks end at block boundaries */
    engine_abort_all(engine);
    harness_unref(r, OTHERS + 1);
}

/* Tokens that wait are bounded: what would be more is refused, but never a request that nobody waits before. */
static void test_queue_tokens(void **state) {
    (void)state;
    static struct reading r[4];
    struct engine_stream *unused;
    struct error e = {0};
    options.max_num_seqs = 1;
    options.max_queue_tokens = 100;
    begin();
    struct engine_request q = harness_request(prompt, 500, 5, 1);
    harness_submit(engine, &q, &r[0]); /* alone, so of any length */
    look();                            /* it has begun: it waits no longer */
    q.n_prompt = 60;
    harness_submit(engine, &q, &r[1]);
    q.n_prompt = 41;
    assert_int_equal(engine_submit(engine, &q, &unused, &e), -EAGAIN);
    assert_non_null(strstr(e.text, "60 prompt tokens wait"));
    uint32_t wait_ms = engine_retry_ms(engine, q.n_prompt);
    assert_true(wait_ms >= 100 && wait_ms <= 60000);
    q.n_prompt = 40;
    harness_submit(engine, &q, &r[2]);
    engine_cancel(engine, r[1].stream); /* one that leaves unserved makes room, too */
    harness_read(&r[1], 1, 0);
    q.n_prompt = 60;
    harness_submit(engine, &q, &r[3]);
    engine_abort_all(engine);
    harness_read(&r[2], 2, 0);
    struct engine_stats s;
    do
        engine_stats(engine, &s);
    while (s.queue_tokens > 0); /* nothing is counted twice or forgotten */
    harness_unref(r, 4);
}

/* Serves the rank until sequences 1 to n were opened. Whether each was opened later than those before it. */
static bool serve_opens(struct reading *r, uint32_t n) {
    uint64_t last = 0;
    while (last < n) {
        struct step_plan p = look();
        for (uint32_t k = 0; k < p.n_opens; k++) {
            uint64_t number = p.opens[k].sequence;
            if (number > last + 1)
                return false;
            last = number > last ? number : last; /* or it was put back, and comes again */
        }
        answer();
        for (uint32_t i = 0; i < n; i++)
            harness_take(&r[i]);
    }
    return true;
}

/* A prompt that was let in to pages which the cache gives up only when steps in flight have retired: whoever generates
 * may take some of them first, and then it has to wait; but nobody who came after it is let in before. At some of these
 * lengths two that generate want a page each in just that plan. */
static void test_nobody_overtakes_one_that_waits_for_pages(void **state) {
    static struct reading r[5];
    for (uint32_t first = 52; first <= 60; first++) {
        for (uint32_t second = first; second <= first + 2; second++) {
            setup(state);
            rank_options.pages = 13;
            rank_options.slot_units = 4;
            options.prefix_cache = true;
            options.max_num_batched_tokens = 512;
            begin();
            const uint32_t lengths[] = {first, second, 256, 8 * PAGE_TOKENS - 11, 10};
            const uint32_t answers[] = {90, 90, 70, 1, 1};
            for (uint32_t i = 0; i < 5; i++) {
                struct engine_request q = harness_request(prompt + i, lengths[i], answers[i], i);
                harness_submit(engine, &q, &r[i]);
            }
            assert_true(serve_opens(r, 5));
            engine_abort_all(engine);
            harness_unref(r, 5);
            teardown(state);
        }
    }
}

/* One that is not served in time ends by itself, while nothing else moves; one that was served is left alone. */
static void test_queue_time(void **state) {
    (void)state;
    static struct reading r[4];
    struct engine_timing t;
    options.max_num_seqs = 1;
    options.max_queue_ms = 2000;
    begin();
    struct engine_request q = harness_request(prompt, 10, 50, 1);
    harness_submit(engine, &q, &r[0]);
    look(); /* begun, and never answered */
    harness_submit(engine, &q, &r[1]);
    q.queue_ms = 20;
    harness_submit(engine, &q, &r[2]);
    q.queue_ms = 100000; /* longer than the server allows: that counts */
    q.deadline_ns = clock_ns() + 20000000u;
    harness_submit(engine, &q, &r[3]);
    harness_read(&r[2], 2, 0);
    assert_int_equal(r[2].finish, ENGINE_FINISH_QUEUE_TIME);
    assert_int_equal(r[3].finish, ENGINE_FINISH_DEADLINE);
    engine_stream_timing(r[3].stream, &t);
    assert_int_equal(t.first_step_ns, 0);
    harness_read(
            &r[1], 1, 0); /* it came after the first, whose time in the queue would be over by now as well */
    assert_int_equal(r[1].finish, ENGINE_FINISH_QUEUE_TIME);
    harness_take(&r[0]);
    assert_int_equal(r[0].finish, ENGINE_RUNNING);
    harness_unref(r, 4);
}

/* What a slot is opened with. */
static void test_open(void **state) {
    (void)state;
    struct reading r;
    uint32_t stops[2] = {7, 8}, bias_ids[2] = {5, 6};
    float bias[2] = {1.5f, -2};
    begin();
    struct engine_request q = harness_request(prompt, 10, 20, 99);
    q.sampling = (struct engine_sampling){.temperature = 0.25f,
            .top_p = 0.5f,
            .min_p = 0.125f,
            .top_k = 40,
            .repetition_penalty = 1.5f,
            .presence_penalty = 0.75f,
            .frequency_penalty = -1,
            .seed = 99};
    q.min_tokens = 4;
    q.stop_ids = stops;
    q.n_stop_ids = 2;
    q.bias_ids = bias_ids;
    q.bias = bias;
    q.n_bias = 2;
    q.logprobs = true;
    q.top_logprobs = 3;
    harness_submit(engine, &q, &r);
    struct step_plan p = look();
    const struct step_open *o = &p.opens[0];
    assert_int_equal(p.n_memory, 1);
    assert_int_equal(p.memory[0].kind, STEP_MEMORY_ZERO_SLOT);
    assert_int_equal(p.memory[0].a, o->slot);
    assert_true(o->temperature == 0.25f && o->top_p == 0.5f && o->min_p == 0.125f && o->top_k == 40);
    assert_true(o->repetition_penalty == 1.5f && o->presence_penalty == 0.75f && o->frequency_penalty == -1);
    assert_int_equal(o->seed, 99);
    assert_int_equal(o->min_tokens, 4);
    assert_int_equal(o->n_suppress, 2);
    assert_memory_equal(p.blob + o->suppress_at, stops, sizeof(stops));
    assert_int_equal(o->n_bias, 2);
    struct {
        uint32_t id;
        float bias;
    } pairs[2] = {{5, 1.5f}, {6, -2}};
    assert_memory_equal(p.blob + o->bias_at, pairs, sizeof(pairs));
    assert_int_equal(p.entries[0].flags, STEP_ENTRY_SAMPLE | STEP_ENTRY_LOGPROB);
    assert_int_equal(p.entries[0].top_logprobs, 3);
    engine_abort_all(engine);
    harness_unref(&r, 1);
}

/* The prompt rows of a step follow what a row was measured to take. */
static void test_prefill_limit(void **state) {
    (void)state;
    struct reading r;
    options.prefill_target_ms = 4;
    rank_options.row_ns = 500000; /* so about 8 rows fit the target, and 16 is the least */
    begin();
    struct engine_request q = harness_request(prompt, 600, 1, 1);
    harness_submit(engine, &q, &r);
    uint32_t rows[64], n = 0, fed = 0;
    while (fed < 600 && n < 64) {
        struct step_plan p = look();
        fed += rows[n++] = p.n_rows;
        answer();
    }
    assert_int_equal(rows[0], 64); /* before anything was measured */
    assert_int_equal(rows[1], 64);
    assert_int_equal(rows[n - 2], 16);
    harness_read(&r, 1, 0);
    harness_unref(&r, 1);
}

static void speculate(uint32_t drafters) {
    options.speculative_tokens = rank_options.drafts_max = 4;
    options.drafters = drafters;
    rank_options.has_mtp = 1;
    rank_options.drafts_right = 4;
    rank_options.claimed_ns = 1000000000; /* rows cost nothing */
    rank_options.id_count = drafters == ENGINE_DRAFTS_OF_LOOKUP ? 1 : 0;
}

/* Answers until a plan has drafts. */
static struct step_plan look_for_drafts(void) {
    for (;;) {
        struct step_plan p = look();
        if (p.n_entries > 0 && p.entries[0].kind == STEP_ENTRY_CONTINUE && p.entries[0].n_rows > 1)
            return p;
        answer();
    }
}

/* Drafts of the model stay on the device: the step after them is planned while they are verified, with pages for all of
 * them. */
static void test_drafts_overlap(void **state) {
    (void)state;
    struct reading r;
    speculate(ENGINE_DRAFTS_OF_MODEL);
    begin();
    struct engine_request q = harness_request(prompt, 60, 200, 1);
    harness_submit(engine, &q, &r);
    struct step_plan p = look_for_drafts();
    uint32_t rows = p.entries[0].n_rows, first = p.entries[0].first_pos;
    assert_int_equal(p.entries[0].drafts_at, STEP_NONE);
    assert_true(p.entries[0].n_draft_next > 0);
    leave();
    p = look(); /* nothing was answered: it counts on all of them */
    assert_int_equal(p.n_entries, 1);
    assert_int_equal(p.entries[0].first_pos, first + rows);
    assert_true(p.entries[0].n_rows > 1 && p.entries[0].drafts_at == STEP_NONE);
    harness_unref(&r, 1);
}

/* The drafts that a step leaves have pages already, also where a page ends between its rows and them. */
static void test_drafts_have_pages(void **state) {
    (void)state;
    struct reading r;
    speculate(ENGINE_DRAFTS_OF_MODEL);
    begin();
    struct engine_request q = harness_request(prompt, 10, 300, 1);
    harness_submit(engine, &q, &r);
    uint32_t pages = 0, asked = 0;
    for (uint32_t end = 0; end < 200; answer()) {
        struct step_plan p = look();
        harness_take(&r);
        if (p.n_entries == 0)
            continue;
        const struct step_entry *t = &p.entries[0];
        end = t->first_pos + t->n_rows;
        pages += t->n_pages;
        if (t->kind == STEP_ENTRY_CONTINUE && t->n_draft_next > 0)
            assert_true(pages * PAGE_TOKENS >=
                        end + t->n_draft_next); /* an entry lies one further than its row */
        asked += t->n_draft_next;
    }
    assert_true(asked > 100);
    harness_unref(&r, 1);
}

/* Copies are in the plan, and it is made when every token before it is known. */
static void test_copies_wait(void **state) {
    (void)state;
    struct reading r;
    const void *record;
    uint32_t bytes;
    speculate(ENGINE_DRAFTS_OF_LOOKUP);
    begin();
    struct engine_request q = harness_request(prompt, 10, 200, 1);
    harness_submit(engine, &q, &r);
    struct step_plan p = look_for_drafts();
    assert_int_equal(p.entries[0].n_draft_next, 0);
    const uint32_t *drafts = (const uint32_t *)(const void *)(p.blob + p.entries[0].drafts_at);
    for (uint32_t i = 0; i + 1 < p.entries[0].n_rows; i++)
        assert_int_equal(drafts[i], 0); /* all there ever is */
    leave();
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    assert_int_equal(step_ring_next(ring, &record, &bytes), -EAGAIN);
    harness_unref(&r, 1);
}

/* More accepted drafts than there were, or an id that is none, is a rank that cannot be trusted. */
static void test_wrong_outcomes(void **state) {
    const uint32_t wrong[][2] = {{5, 0}, {1, 1000}};
    for (uint32_t i = 0; i < 2; i++) {
        static struct reading r;
        struct {
            struct step_outcome o;
            struct step_sample samples[6];
        } body = {.o = {.slot = 1, .n_samples = wrong[i][0] + 1, .n_accepted = wrong[i][0]}};
        setup(state);
        speculate(ENGINE_DRAFTS_OF_MODEL);
        begin();
        struct engine_request q = harness_request(prompt, 60, 200, 1);
        harness_submit(engine, &q, &r);
        struct step_plan p = look_for_drafts();
        body.o.slot = p.entries[0].slot;
        body.samples[1].id = wrong[i][1];
        struct step_completion c = {.type = STEP_TYPE_PLAN, .step = p.header->step, .n_outcomes = 1};
        c.checksum = step_checksum(STEP_CHECKSUM_SEED, &body.o, body.samples);
        assert_int_equal(step_ring_complete(ring, &c, &body,
                                 (uint32_t)(sizeof(body.o) + body.o.n_samples * sizeof(body.samples[0]))),
                0);
        struct control_message m = harness_wait_message(0);
        assert_int_equal(m.kind, CONTROL_STUCK);
        assert_non_null(strstr(m.text, "an outcome that the plan did not ask for"));
        engine_cancel(engine, r.stream);
        harness_read(&r, 1, 0);
        harness_unref(&r, 1);
        teardown(state);
    }
}

/* When nothing is to do the ranks are asked each second whether they live. */
/* No number behind the end of an answer, in a row that was planned before the end was known: the answer is what it is,
 * and nobody goes on from what its sequence has left. */
static void test_damage_behind_the_end(void **state) {
    (void)state;
    static struct reading first, second;
    options.prefix_cache = true;
    rank_options.slot_units = 4;
    rank_options.id_first = 7; /* is what is always sampled */
    rank_options.id_count = 1;
    for (uint32_t i = 0; i < 200; i++)
        prompt[i] = 10 + i;
    const uint32_t stop = 7;
    struct engine_stats s;
    for (uint32_t damage = 0; damage < 2; damage++) {
        rank_options.damaged_id = damage * 7;
        begin();
        struct engine_request q = harness_request(prompt, 200, 50, 1);
        q.stop_ids = &stop;
        q.n_stop_ids = 1;
        harness_submit(engine, &q, &first);
        for (uint32_t i = 0; i < 3; i++) { /* two chunks, and the row of the stop id */
            struct step_plan p = look();
            assert_int_equal(p.n_entries, 1);
            assert_int_equal(p.entries[0].kind, i < 2 ? STEP_ENTRY_PROMPT : STEP_ENTRY_CONTINUE);
            answer();
            do /* it has planned what comes after the next step */
                engine_stats(engine, &s);
            while (s.steps_total <= i);
        }
        harness_read(&first, 1, 0);
        assert_int_equal(first.finish, ENGINE_FINISH_STOP_ID);
        assert_int_equal(look().n_closes, 1);
        answer();
        harness_submit(engine, &q, &second);
        struct step_plan p = look();
        assert_int_equal(p.memory[0].kind, damage ? STEP_MEMORY_ZERO_SLOT : STEP_MEMORY_RESTORE_SLOT);
        harness_unref(&first, 1);
        harness_unref(&second, 1);
        teardown(NULL);
    }
}

static void test_ping(void **state) {
    (void)state;
    begin();
    const void *record;
    uint32_t bytes;
    struct step_plan p;
    while (step_ring_next(ring, &record, &bytes) == -EAGAIN)
        step_ring_wait(ring, LONG_NS);
    assert_int_equal(step_decode(record, bytes, &p, NULL), 0);
    assert_int_equal(p.header->type, STEP_TYPE_PING);
    assert_int_equal(p.header->step, 1);
    answer();
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test_setup_teardown(test_overlap, setup, teardown),
            cmocka_unit_test_setup_teardown(test_late_stop, setup, teardown),
            cmocka_unit_test_setup_teardown(test_a_count_never_falls, setup, teardown),
            cmocka_unit_test_setup_teardown(test_found_and_lost, setup, teardown),
            cmocka_unit_test_setup_teardown(test_chunked_prefill, setup, teardown),
            cmocka_unit_test_setup_teardown(test_order, setup, teardown),
            cmocka_unit_test_setup_teardown(test_open, setup, teardown),
            cmocka_unit_test_setup_teardown(test_prefill_limit, setup, teardown),
            cmocka_unit_test_setup_teardown(test_answers_share_a_prompt, setup, teardown),
            cmocka_unit_test_setup_teardown(test_long_prompt_stops_nobody, setup, teardown),
            cmocka_unit_test_setup_teardown(test_queue_tokens, setup, teardown),
            cmocka_unit_test_setup_teardown(test_queue_time, setup, teardown),
            cmocka_unit_test(test_nobody_overtakes_one_that_waits_for_pages),
            cmocka_unit_test_setup_teardown(test_drafts_overlap, setup, teardown),
            cmocka_unit_test_setup_teardown(test_drafts_have_pages, setup, teardown),
            cmocka_unit_test_setup_teardown(test_copies_wait, setup, teardown),
            cmocka_unit_test(test_wrong_outcomes),
            cmocka_unit_test_setup_teardown(test_damage_behind_the_end, setup, teardown),
            cmocka_unit_test_setup_teardown(test_ping, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
