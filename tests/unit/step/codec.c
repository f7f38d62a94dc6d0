/* codec.c - step records: what the writer builds the decoder reads, and nothing malformed passes. */
#include "proto/step/step.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct step_writer *writer;
static uint64_t record[STEP_RECORD_MAX / 8];

static int setup(void **state) {
    (void)state;
    writer = aligned_alloc(64, step_writer_bytes());
    return writer == NULL ? -1 : 0;
}

static int teardown(void **state) {
    (void)state;
    free(writer);
    return 0;
}

static struct step_open good_open(uint32_t slot) {
    return (struct step_open){
            .slot = slot, .sequence = 7, .temperature = 0.5f, .top_p = 1, .repetition_penalty = 1};
}

static struct step_entry good_continue(uint32_t slot) {
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

/* A CONTINUE with `n` drafts that the plan brings. */
static struct step_entry good_drafts(uint32_t slot, uint32_t n) {
    uint32_t ids[DRAFT_MAX] = {5, 6, 7};
    struct step_entry t = good_continue(slot);
    t.n_rows = 1 + n;
    t.drafts_at = step_blob(writer, ids, n * 4);
    t.n_draft_next = DRAFT_MAX;
    return t;
}

static struct step_entry good_prompt(uint32_t slot, uint32_t n) {
    uint32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 8}, pages[2] = {3, 9};
    struct step_entry t = good_continue(slot);
    t.kind = STEP_ENTRY_PROMPT;
    t.n_rows = n;
    t.ids_at = step_blob(writer, ids, n * 4);
    t.n_pages = 2;
    t.pages_at = step_blob(writer, pages, sizeof(pages));
    return t;
}

static void begin(void) {
    step_begin(writer, STEP_TYPE_PLAN, 11, 12, 13);
}

/* Ends the record and decodes it; returns step_decode's answer. */
static int end(struct step_plan *ret, struct error *e) {
    int n = step_end(writer, record, sizeof(record));
    assert_true(n > 0);
    assert_int_equal((uint32_t)n, step_writer_size(writer));
    return step_decode(record, (uint32_t)n, ret, e);
}

static void full_plan(void) {
    begin();
    step_add_entry(writer, &(struct step_entry){0});
    begin(); /* nothing of the record before stays */
    struct step_open o = good_open(5);
    uint32_t suppress[2] = {100, 101};
    struct {
        uint32_t id;
        float bias;
    } bias[1] = {{4, -1.5f}};
    o.n_suppress = 2;
    o.suppress_at = step_blob(writer, suppress, sizeof(suppress));
    o.n_bias = 1;
    o.bias_at = step_blob(writer, bias, sizeof(bias));
    step_add_open(writer, &o);
    step_add_close(writer, 9);
    step_add_memory(writer, STEP_MEMORY_ZERO_SLOT, 5, 0);
    struct step_entry t = good_continue(2);
    step_add_entry(writer, &t);
    t = good_prompt(5, 3);
    t.flags |= STEP_ENTRY_LOGPROB;
    t.top_logprobs = 4;
    step_add_entry(writer, &t);
}

static void test_round_trip(void **state) {
    (void)state;
    struct step_plan p;
    struct error e;
    full_plan();
    assert_int_equal(end(&p, &e), 0);
    assert_int_equal(p.header->type, STEP_TYPE_PLAN);
    assert_int_equal(p.header->group_epoch, 11);
    assert_int_equal(p.header->coord_epoch, 12);
    assert_int_equal(p.header->step, 13);
    assert_int_equal(p.n_opens, 1);
    assert_int_equal(p.opens[0].slot, 5);
    assert_int_equal(p.n_closes, 1);
    assert_int_equal(p.closes[0], 9);
    assert_int_equal(p.n_memory, 1);
    assert_int_equal(p.memory[0].a, 5);
    assert_int_equal(p.n_entries, 2);
    assert_int_equal(p.entries[0].slot, 2);
    assert_int_equal(p.n_rows, 4);
    assert_int_equal(p.n_outcomes, 2);
    const uint32_t *ids = (const uint32_t *)(const void *)(p.blob + p.entries[1].ids_at);
    assert_int_equal(ids[2], 3);
    const uint32_t *pages = (const uint32_t *)(const void *)(p.blob + p.entries[1].pages_at);
    assert_int_equal(pages[1], 9);
}

static void test_bare_records(void **state) {
    (void)state;
    struct step_plan p;
    const uint32_t types[] = {STEP_TYPE_RESET, STEP_TYPE_PING, STEP_TYPE_STOP};
    for (unsigned i = 0; i < 3; i++) {
        step_begin(writer, types[i], 1, 1, types[i] == STEP_TYPE_RESET ? 0 : 4);
        assert_int_equal(end(&p, NULL), 0);
        assert_int_equal(p.n_entries, 0);
    }
    step_begin(writer, STEP_TYPE_RESET, 1, 1, 3);
    assert_int_equal(end(&p, NULL), -EBADMSG);
    step_begin(writer, STEP_TYPE_PLAN, 1, 1, 0);
    assert_int_equal(end(&p, NULL), -EBADMSG);
    step_begin(writer, STEP_TYPE_PING, 1, 1, 3);
    step_add_close(writer, 1);
    assert_int_equal(end(&p, NULL), -EBADMSG);
    step_begin(writer, STEP_TYPE_PLAN, 1, 1, 1); /* an empty plan is one */
    assert_int_equal(end(&p, NULL), 0);
}

static void test_version(void **state) {
    (void)state;
    struct step_plan p;
    struct error e;
    full_plan();
    assert_int_equal(end(&p, &e), 0);
    struct step_header *h = (struct step_header *)record;
    h->protocol = STEP_PROTOCOL + 1;
    assert_int_equal(step_decode(record, h->record_bytes, &p, &e), -EPROTONOSUPPORT);
    assert_non_null(strstr(e.text, "install the same version"));
}

/* Every length and alignment but the right one is refused. */
static void test_lengths(void **state) {
    (void)state;
    struct step_plan p;
    full_plan();
    int n = step_end(writer, record, sizeof(record));
    for (int i = 0; i < n; i++)
        assert_int_equal(step_decode(record, (uint32_t)i, &p, NULL), -EBADMSG);
    assert_int_equal(step_decode(record, (uint32_t)n + 8, &p, NULL), -EBADMSG);
    assert_int_equal(step_decode((uint8_t *)record + 4, (uint32_t)n, &p, NULL), -EBADMSG);
    assert_int_equal(step_end(writer, record, (uint32_t)n - 1), -EMSGSIZE);
}

static void expect_open_refused(struct step_open o) {
    struct step_plan p;
    struct error e = {0};
    begin();
    step_add_open(writer, &o);
    assert_int_equal(end(&p, &e), -EBADMSG);
    assert_true(e.text[0] != 0);
}

static void test_bad_opens(void **state) {
    (void)state;
    struct step_open o;
#define REFUSED(field, value)                                                                                \
    o = good_open(1);                                                                                        \
    o.field = value;                                                                                         \
    expect_open_refused(o)
    REFUSED(slot, 0);
    REFUSED(slot, SEQS_MAX + 1);
    REFUSED(flags, 1);
    REFUSED(temperature, -1);
    REFUSED(temperature, NAN);
    REFUSED(temperature, INFINITY);
    REFUSED(top_p, 0);
    REFUSED(top_p, 1.5f);
    REFUSED(top_p, NAN);
    REFUSED(min_p, -0.1f);
    REFUSED(min_p, NAN);
    REFUSED(repetition_penalty, 0);
    REFUSED(repetition_penalty, NAN);
    REFUSED(presence_penalty, NAN);
    REFUSED(frequency_penalty, INFINITY);
    REFUSED(min_tokens, NEW_TOKENS_MAX + 1);
    REFUSED(n_bias, 1);
    REFUSED(n_bias, LOGIT_BIAS_MAX + 1);
    REFUSED(n_bias, UINT32_MAX / 8 + 2);
    REFUSED(n_suppress, 1);
    REFUSED(n_suppress, STEP_SUPPRESS_MAX + 1);
#undef REFUSED
    struct step_plan p;
    begin();
    o = good_open(3);
    step_add_open(writer, &o);
    step_add_open(writer, &o);
    assert_int_equal(end(&p, NULL), -EBADMSG);
    begin();
    uint32_t bias[2] = {1, 0x7fc00000}; /* a NaN */
    o.n_bias = 1;
    o.bias_at = step_blob(writer, bias, sizeof(bias));
    step_add_open(writer, &o);
    assert_int_equal(end(&p, NULL), -EBADMSG);
}

static void expect_entry_refused(struct step_entry t) {
    struct step_plan p;
    struct error e = {0};
    step_add_entry(writer, &t);
    assert_int_equal(end(&p, &e), -EBADMSG);
    assert_true(e.text[0] != 0);
}

static void test_bad_entries(void **state) {
    (void)state;
    struct step_entry t;
    struct step_plan p;
    begin();
    t = good_drafts(1, 2);
    step_add_entry(writer, &t);
    t = good_drafts(2, DRAFT_MAX);
    t.drafts_at = STEP_NONE; /* those in the slot */
    step_add_entry(writer, &t);
    assert_int_equal(end(&p, NULL), 0);
    assert_int_equal(p.n_rows, 3 + 1 + DRAFT_MAX);
    assert_int_equal(p.n_outcomes, 2);
#define REFUSED(make, field, value)                                                                          \
    begin();                                                                                                 \
    t = make;                                                                                                \
    t.field = value;                                                                                         \
    expect_entry_refused(t)
    REFUSED(good_continue(1), slot, 0);
    REFUSED(good_continue(1), slot, SEQS_MAX + 1);
    REFUSED(good_continue(1), kind, 2);
    REFUSED(good_continue(1), flags, 8);
    REFUSED(good_continue(1), flags, STEP_ENTRY_LOGPROB);
    REFUSED(good_continue(1), flags, STEP_ENTRY_GENERATED);
    REFUSED(good_continue(1), n_rows, 0);
    REFUSED(good_continue(1), n_rows, DRAFT_MAX + 2);
    REFUSED(good_continue(1), ids_at, 0);
    REFUSED(good_continue(1), id_after, 1);
    REFUSED(good_continue(1), rope_at, 0);
    REFUSED(good_continue(1), mask_at, 0);
    REFUSED(good_continue(1), top_logprobs, 1);
    REFUSED(good_continue(1), drafts_at, 0);
    REFUSED(good_continue(1), n_draft_next, DRAFT_MAX + 1);
    REFUSED(good_drafts(1, 2), drafts_at, 4);
    REFUSED(good_drafts(1, 2), drafts_at, 2);
    REFUSED(good_drafts(1, 2), n_rows, 4);
    REFUSED(good_drafts(1, 2), n_rows, 1);
    REFUSED(good_drafts(1, 2), n_rows, 0x40000002);
    REFUSED(good_drafts(1, 2), flags, 0);
    REFUSED(good_prompt(1, 3), drafts_at, 0);
    REFUSED(good_continue(1), replay, 2);
    REFUSED(good_continue(1), n_pages, 1);
    REFUSED(good_prompt(1, 3), n_rows, 9);
    REFUSED(good_prompt(1, 3), n_rows, UINT32_MAX);
    REFUSED(good_prompt(1, 3), n_rows, 0x40000001);
    REFUSED(good_prompt(1, 3), ids_at, 2);
    REFUSED(good_prompt(1, 3), ids_at, STEP_NONE);
    REFUSED(good_prompt(1, 3), ids_at, 4096);
    REFUSED(good_prompt(1, 3), first_pos, CONTEXT_MAX - 2);
    REFUSED(good_prompt(1, 3), first_pos, UINT32_MAX);
    REFUSED(good_prompt(1, 3), rope_at, 4);
    REFUSED(good_prompt(1, 3), page_first, STEP_SLOT_PAGES_MAX - 1);
    REFUSED(good_prompt(1, 3), page_first, UINT32_MAX);
    REFUSED(good_prompt(1, 3), n_pages, 3);
    REFUSED(good_prompt(1, 3), n_pages, 0x40000000);
    REFUSED(good_prompt(1, 3), pages_at, 13);
#undef REFUSED
    begin();
    uint32_t zero = 0;
    t = good_continue(1);
    t.n_pages = 1;
    t.pages_at = step_blob(writer, &zero, 4);
    expect_entry_refused(t);
    begin();
    t = good_continue(4);
    step_add_entry(writer, &t);
    expect_entry_refused(t);
}

/* Masks of samples and scores of prompt rows: as many as there are samples or rows that can have one. */
static void test_masks_and_scores(void **state) {
    static const uint32_t words[3 * 8];
    struct step_plan p;
    struct error e;
    (void)state;
    begin();
    struct step_entry t = good_drafts(1, 2);
    t.n_masks = 3;
    t.mask_words = 8;
    t.mask_at = step_blob(writer, words, sizeof(words));
    step_add_entry(writer, &t);
    t.slot = 2;
    t.n_masks = 1; /* one for all */
    step_add_entry(writer, &t);
    t = good_prompt(3, 8);
    t.flags |= STEP_ENTRY_LOGPROB;
    t.n_scores = 7;
    step_add_entry(writer, &t);
    t = good_prompt(4, 8);
    t.flags = STEP_ENTRY_LOGPROB;
    t.id_after = 5;
    t.n_scores = 8;
    step_add_entry(writer, &t);
    if (end(&p, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(p.n_masks, 4);
    assert_int_equal(p.n_scores, 15);
    assert_int_equal(p.n_outcomes, 4);

    static const struct {
        uint32_t n_masks, mask_words, mask_at, n_scores, flags, id_after;
    } bad[] = {
            {2, 8, 0, 0, STEP_ENTRY_SAMPLE, STEP_NONE},              /* of one sample */
            {1, 8, 0, 0, 0, STEP_NONE},                              /* of none */
            {1, 0, 0, 0, STEP_ENTRY_SAMPLE, STEP_NONE},              /* of no ids */
            {1, 8, 1, 0, STEP_ENTRY_SAMPLE, STEP_NONE},              /* not aligned */
            {1, UINT32_MAX / 4, 0, 0, STEP_ENTRY_SAMPLE, STEP_NONE}, /* past the blob */
            {1, 40, 0, 0, STEP_ENTRY_SAMPLE, STEP_NONE},             /* past the blob */
            {0, 0, 0, 0, STEP_ENTRY_SAMPLE, STEP_NONE},              /* at a place, and none */
            {0, 0, STEP_NONE, 8, STEP_ENTRY_SAMPLE | STEP_ENTRY_LOGPROB, STEP_NONE},
            {0, 0, STEP_NONE, 8, STEP_ENTRY_LOGPROB, STEP_NONE},
            {0, 0, STEP_NONE, 9, STEP_ENTRY_LOGPROB, 5},
            {0, 0, STEP_NONE, 7, STEP_ENTRY_SAMPLE, STEP_NONE},
            {0, 0, STEP_NONE, 7, STEP_ENTRY_LOGPROB | STEP_ENTRY_GENERATED, 5},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        begin();
        step_blob(writer, words, sizeof(words));
        t = good_prompt(1, 8);
        t.n_masks = bad[i].n_masks;
        t.mask_words = bad[i].mask_words;
        t.mask_at = bad[i].mask_at;
        t.n_scores = bad[i].n_scores;
        t.flags = bad[i].flags;
        t.id_after = bad[i].id_after;
        step_add_entry(writer, &t);
        if (end(&p, &e) != -EBADMSG)
            fail_msg("case %u passed", i);
    }
}

/* More masks or scores than a step may have. */
static void test_too_many_masks_and_scores(void **state) {
    static const uint32_t words[1], ids[SCORES_MAX + 1];
    struct step_plan p;
    (void)state;
    for (uint32_t more = 0; more < 2; more++) {
        begin();
        uint32_t at = step_blob(writer, words, sizeof(words));
        for (uint32_t i = 0; i < MASKS_MAX + more; i++) {
            struct step_entry t = good_continue(1 + i);
            t.n_masks = t.mask_words = 1;
            t.mask_at = at;
            step_add_entry(writer, &t);
        }
        assert_int_equal(end(&p, NULL), more ? -EBADMSG : 0);
        begin();
        struct step_entry t = good_prompt(1, 8);
        t.flags = STEP_ENTRY_LOGPROB;
        t.ids_at = step_blob(writer, ids, sizeof(ids));
        t.n_rows = SCORES_MAX + 1;
        t.n_scores = SCORES_MAX + more;
        t.id_after = 5;
        step_add_entry(writer, &t);
        assert_int_equal(end(&p, NULL), more ? -EBADMSG : 0);
    }
}

static void test_bad_closes_and_memory(void **state) {
    (void)state;
    struct step_plan p;
    begin();
    step_add_close(writer, 0);
    assert_int_equal(end(&p, NULL), -EBADMSG);
    begin();
    step_add_close(writer, 2);
    step_add_close(writer, 2);
    assert_int_equal(end(&p, NULL), -EBADMSG);
    begin();
    step_add_memory(writer, STEP_MEMORY_KINDS, 1, 1);
    assert_int_equal(end(&p, NULL), -EBADMSG);
    begin();
    step_add_memory(writer, STEP_MEMORY_COPY_PAGE, 1, 0);
    assert_int_equal(end(&p, NULL), -EBADMSG);
    begin();
    step_add_memory(writer, STEP_MEMORY_SNAPSHOT_SLOT, 1, 0); /* units count from 0 */
    assert_int_equal(end(&p, NULL), 0);
}

static void test_writer_limits(void **state) {
    (void)state;
    begin();
    for (uint32_t i = 0; i < SEQS_MAX; i++)
        step_add_close(writer, i + 1);
    assert_true(step_end(writer, record, sizeof(record)) > 0);
    step_add_close(writer, 1);
    assert_int_equal(step_end(writer, record, sizeof(record)), -EMSGSIZE);
    begin();
    static uint8_t big[STEP_RECORD_MAX];
    assert_int_equal(step_blob(writer, big, sizeof(big)), 0);
    assert_int_equal(step_blob(writer, big, 1), STEP_NONE);
    assert_int_equal(step_end(writer, record, sizeof(record)), -EMSGSIZE);
    begin();
    assert_int_equal(step_blob(writer, big, 3), 0);
    assert_int_equal(step_blob(writer, big, 3), 4); /* offsets are multiples of 4 */
}

/* One bit wrong anywhere: either refused, or a plan whose pointers stay inside (the sanitizers watch the
 * reads). */
static void test_bit_flips(void **state) {
    (void)state;
    full_plan();
    int n = step_end(writer, record, sizeof(record));
    uint64_t sum = 0;
    for (int bit = 0; bit < n * 8; bit++) {
        struct step_plan p;
        uint8_t *bytes = (uint8_t *)record;
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (step_decode(record, (uint32_t)n, &p, NULL) == 0) {
            for (uint32_t i = 0; i < p.n_entries; i++) {
                const struct step_entry *t = &p.entries[i];
                for (uint32_t k = 0; t->kind == STEP_ENTRY_PROMPT && k < t->n_rows; k++)
                    sum += ((const uint32_t *)(const void *)(p.blob + t->ids_at))[k];
                assert_true(p.n_rows <= STEP_ROWS_MAX);
            }
        }
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_true(sum > 0);
}

struct answer { /* an entry with one token */
    struct step_outcome outcome;
    struct step_sample sample;
};

static void test_completion_check(void **state) {
    (void)state;
    struct {
        struct step_completion c;
        union {
            struct answer answers[2];
            struct step_geometry geometry;
            char text[400];
        };
    } m = {.c = {.magic = STEP_COMPLETION_MAGIC,
                   .protocol = STEP_PROTOCOL,
                   .type = STEP_TYPE_PLAN,
                   .n_outcomes = 2}};
    const uint32_t good = sizeof(m.c) + 2 * sizeof(struct answer);
    m.c.bytes = good;
    m.answers[0].outcome.n_samples = m.answers[1].outcome.n_samples = 1;
    assert_int_equal(step_completion_check(&m, good, NULL), 0);
#define REFUSED(field, value)                                                                                \
    {                                                                                                        \
        const uint32_t before = field;                                                                       \
        field = value;                                                                                       \
        assert_int_equal(step_completion_check(&m, m.c.bytes, NULL), -EBADMSG);                              \
        field = before;                                                                                      \
        assert_int_equal(step_completion_check(&m, m.c.bytes, NULL), 0);                                     \
    }
    assert_int_equal(step_completion_check(&m, good - 1, NULL), -EBADMSG);
    REFUSED(m.c.bytes, good - 8);
    REFUSED(m.c.n_outcomes, 1);
    REFUSED(m.c.n_outcomes, 3);
    REFUSED(m.c.n_outcomes, 268435458);
    REFUSED(m.c.rank, RANKS_MAX);
    REFUSED(m.c.status, 2);
    REFUSED(m.answers[0].outcome.n_samples, 0);
    REFUSED(m.answers[0].outcome.n_samples, 2);
    REFUSED(m.answers[0].outcome.n_samples, UINT32_MAX);
    REFUSED(m.answers[1].outcome.n_accepted, 1);
    REFUSED(m.answers[1].outcome.n_accepted, UINT32_MAX);
    REFUSED(m.answers[1].outcome.status, STEP_SAMPLE_NO_TOKEN);
    REFUSED(m.answers[1].outcome.status, STEP_SAMPLE_STATUSES);
    REFUSED(m.answers[1].sample.n_top, TOP_LOGPROBS_MAX + 1);
    REFUSED(m.answers[1].sample.reserved, 1);
    m.answers[1].outcome = (struct step_outcome){.status = STEP_SAMPLE_NOT_FINITE}; /* no token follows it */
    m.c.bytes = good - (uint32_t)sizeof(struct step_sample);
    assert_int_equal(step_completion_check(&m, m.c.bytes, NULL), 0);
    REFUSED(m.answers[1].outcome.n_accepted, 1);
    m.c.type = STEP_TYPE_RESET;
    m.c.n_outcomes = 0;
    m.c.bytes = sizeof(m.c) + sizeof(m.geometry);
    assert_int_equal(step_completion_check(&m, m.c.bytes, NULL), 0);
    REFUSED(m.c.n_outcomes, 1);
    m.c.status = STEP_STATUS_FAULT;
    assert_int_equal(step_completion_check(&m, m.c.bytes, NULL), -EBADMSG);
    m.c.n_outcomes = sizeof(m.geometry);
    assert_int_equal(step_completion_check(&m, m.c.bytes, NULL), 0);
#undef REFUSED
}

/* One outcome may hold a token for every accepted draft and one more. */
static void test_outcomes_of_drafts(void **state) {
    (void)state;
    static struct {
        struct step_completion c;
        struct step_outcome first;
        struct step_sample samples[1 + DRAFT_MAX];
        struct step_outcome second;
    } m = {.c = {.magic = STEP_COMPLETION_MAGIC,
                   .protocol = STEP_PROTOCOL,
                   .type = STEP_TYPE_PLAN,
                   .n_outcomes = 2},
            .first = {.slot = 1, .n_samples = 1 + DRAFT_MAX, .n_accepted = DRAFT_MAX},
            .second = {.slot = 2, .status = STEP_SAMPLE_NO_TOKEN}};
    m.c.bytes = sizeof(m);
    assert_int_equal(step_completion_check(&m, sizeof(m), NULL), 0);
    assert_ptr_equal(step_outcome_samples(&m.first), m.samples);
    assert_ptr_equal(step_outcome_next(&m.first), &m.second);
    m.first.status = STEP_SAMPLE_NOT_FINITE; /* then the last of them is no token */
    assert_int_equal(step_completion_check(&m, sizeof(m), NULL), -EBADMSG);
}

static void test_checksum(void **state) {
    (void)state;
    /* FNV-1a of the bytes below, worked out apart from this code. */
    uint64_t sum = 0xcbf29ce484222325ull;
    const uint8_t bytes[] = {1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 9, 1, 0, 0};
    const struct step_outcome a = {.slot = 1, .n_samples = 2, .n_accepted = 1};
    struct step_sample samples[2] = {{.id = 7}, {.id = 265}};
    for (unsigned i = 0; i < sizeof(bytes); i++)
        sum = (sum ^ bytes[i]) * 1099511628211ull;
    assert_true(step_checksum(STEP_CHECKSUM_SEED, &a, samples) == sum);
    samples[0].logprob = 5; /* says nothing that ranks must agree about */
    assert_true(step_checksum(STEP_CHECKSUM_SEED, &a, samples) == sum);
    for (unsigned i = 0; i < 4; i++) {
        struct step_outcome b = a;
        b.slot += i == 0;
        b.status += i == 1;
        b.n_samples -= i == 2;
        b.n_accepted -= i == 3;
        assert_true(step_checksum(STEP_CHECKSUM_SEED, &b, samples) != sum);
    }
    samples[1].id++;
    assert_true(step_checksum(STEP_CHECKSUM_SEED, &a, samples) != sum);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_round_trip),
            cmocka_unit_test(test_bare_records),
            cmocka_unit_test(test_version),
            cmocka_unit_test(test_lengths),
            cmocka_unit_test(test_bad_opens),
            cmocka_unit_test(test_bad_entries),
            cmocka_unit_test(test_masks_and_scores),
            cmocka_unit_test(test_too_many_masks_and_scores),
            cmocka_unit_test(test_bad_closes_and_memory),
            cmocka_unit_test(test_writer_limits),
            cmocka_unit_test(test_bit_flips),
            cmocka_unit_test(test_completion_check),
            cmocka_unit_test(test_outcomes_of_drafts),
            cmocka_unit_test(test_checksum),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
