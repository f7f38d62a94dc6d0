/* scores.c - logprobs of prompt rows and masked samples of a whole model: against transformers' logits, and the same
 * bits at every split of the prompt and every tp. */
#include "model_test.h"

#include "base/mask.h"

#define LENGTH    65u
#define ERROR_MAX 1e-3

static struct step_writer *writer;
static uint8_t *record;

static int start(void **state) {
    (void)state;
    writer = aligned_alloc(64, (step_writer_bytes() + 63) / 64 * 64);
    record = aligned_alloc(64, STEP_RECORD_MAX);
    return writer && record ? 0 : -1;
}
static int end(void **state) {
    (void)state;
    free(writer);
    free(record);
    return 0;
}

static const struct step_outcome *send(struct offline *o) {
    struct error e = {0};
    int bytes = step_end(writer, record, STEP_RECORD_MAX);
    assert_true(bytes > 0);
    must(offline_record(o, record, (uint32_t)bytes, &e), &e);
    return offline_answer(o, 0)->body;
}

static void open_slot(struct offline *o) {
    struct error e = {0};
    must(offline_reset(o, &e), &e);
    step_begin(writer, STEP_TYPE_PLAN, 0, 0, 1);
    struct step_open open = offline_greedy();
    open.slot = 1;
    step_add_open(writer, &open);
    send(o);
}

static struct step_entry rows_of(const uint32_t *ids, uint32_t first, uint32_t n) {
    static const uint32_t pages[] = {1, 2, 3};
    struct step_entry t = {.slot = 1,
            .kind = STEP_ENTRY_PROMPT,
            .n_rows = n,
            .first_pos = first,
            .ids_at = step_blob(writer, ids + first, n * 4),
            .id_after = first + n < LENGTH ? ids[first + n] : STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE};
    if (first == 0) {
        t.n_pages = 3;
        t.pages_at = step_blob(writer, pages, sizeof(pages));
    }
    return t;
}

/* The scores of all rows but the last, and the sample of that one, in chunks. */
static void score_prompt(
        struct offline *o, const uint32_t *ids, uint32_t chunk, struct step_sample ret[LENGTH]) {
    uint32_t n_ret = 0;
    open_slot(o);
    for (uint32_t first = 0, step = 2; first < LENGTH; first += chunk, step++) {
        uint32_t n = LENGTH - first < chunk ? LENGTH - first : chunk;
        bool last = first + n == LENGTH;
        step_begin(writer, STEP_TYPE_PLAN, 0, 0, step);
        struct step_entry t = rows_of(ids, first, n);
        t.flags = STEP_ENTRY_LOGPROB | (last ? STEP_ENTRY_SAMPLE : 0u);
        t.n_scores = n - last;
        t.top_logprobs = 3;
        step_add_entry(writer, &t);
        const struct step_outcome *got = send(o);
        assert_int_equal(got->status, STEP_SAMPLE_OK);
        assert_int_equal(got->n_scores, t.n_scores);
        assert_int_equal(got->n_samples, last);
        memcpy(ret + n_ret, step_outcome_scores(got), n * sizeof(ret[0]));
        n_ret += n;
    }
}

static void against_transformers(
        const uint32_t *ids, const struct step_sample *got, const struct checkpoint *g) {
    const struct tensor *positions = golden(g, LENGTH, "logits_pos"), *logits = golden(g, LENGTH, "logits");
    const uint32_t *at = positions->data, v = (uint32_t)logits->dims[1];
    double *expected = calloc(v, sizeof(double));
    for (uint64_t i = 0; i < positions->dims[0]; i++) {
        const struct step_sample *s = &got[at[i]];
        log_softmax((const float *)logits->data + i * v, v, expected);
        if (at[i] + 1 < LENGTH)
            assert_int_equal(s->id, ids[at[i] + 1]);
        assert_int_equal(s->n_top, 3);
        if (!(fabs(s->logprob - expected[s->id]) <= ERROR_MAX))
            fail_msg("position %u: id %u has %g, expected %g", at[i], s->id, (double)s->logprob,
                    expected[s->id]);
        for (uint32_t k = 0; k < 3; k++)
            assert_true(fabs(s->top_logprobs[k] - expected[s->top_ids[k]]) <= ERROR_MAX);
        for (uint32_t id = 0; id < v; id++) /* none that is missing is clearly above the last one */
            assert_true(expected[id] <= (double)s->top_logprobs[2] + 2 * ERROR_MAX || id == s->top_ids[0] ||
                        id == s->top_ids[1]);
    }
    free(expected);
}

static void scores(void **state) {
    static const uint32_t chunks[] = {64, 33, 5};
    struct checkpoint *g = golden_open("small");
    const uint32_t *ids = golden_ids(g, LENGTH);
    struct step_sample first[LENGTH], got[LENGTH];
    (void)state;
    for (uint32_t i = 0; i < 2 * 3; i++) {
        struct rank_options options = test_options(NULL, 1 + i / 3);
        struct offline *o = model_start("small", &options);
        score_prompt(o, ids, chunks[i % 3], i == 0 ? first : got);
        if (i == 0)
            against_transformers(ids, first, g);
        else
            assert_memory_equal(got, first, sizeof(first));
        offline_free(o);
    }
    checkpoint_free(g);
}

/* The best id, then the best without it, and so on: what is masked is not sampled, and nothing else changes. */
static void masks(void **state) {
    struct checkpoint *g = golden_open("small");
    const uint32_t *ids = golden_ids(g, LENGTH);
    (void)state;
    for (uint32_t tp = 1; tp <= 2; tp++) {
        struct rank_options options = test_options(NULL, tp);
        struct offline *o = model_start("small", &options);
        uint32_t words = mask_words(offline_geometry(o)->vocab_size), mask[64];
        struct step_sample plain = {0};
        memset(mask, 0xff, sizeof(mask));
        for (uint32_t i = 0; i < 4; i++) {
            open_slot(o);
            step_begin(writer, STEP_TYPE_PLAN, 0, 0, 2);
            struct step_entry t = rows_of(ids, 0, LENGTH);
            t.flags = STEP_ENTRY_SAMPLE | STEP_ENTRY_LOGPROB;
            t.top_logprobs = 4;
            if (i > 0) {
                mask_remove(mask, plain.top_ids[i - 1]);
                t.n_masks = 1;
                t.mask_words = words;
                t.mask_at = step_blob(writer, mask, words * 4);
            }
            step_add_entry(writer, &t);
            const struct step_sample *got = step_outcome_samples(send(o));
            if (i == 0)
                plain = *got;
            assert_int_equal(got->id, plain.top_ids[i]);
            assert_memory_equal(&got->logprob, &plain.top_logprobs[i], sizeof(got->logprob));
            assert_memory_equal(got->top_ids, plain.top_ids, sizeof(plain.top_ids));
        }
        offline_free(o);
    }
    checkpoint_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(scores),
            cmocka_unit_test(masks),
    };
    return cmocka_run_group_tests(tests, start, end);
}
