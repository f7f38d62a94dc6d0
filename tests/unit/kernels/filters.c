/* Sampling as a whole, through k_head_sample(): with the unit matrix for a head a hidden row is its own logits. Filters
 * against an obvious version that sorts, bias and penalties by hand, and pinned draws: seeds in people's hands mean
 * the same on every kernels library. */
#include "tests/unit/kernels/fixture.h"

#include "base/mask.h"

enum { V = 64, SLOTS = 60 };
#define PINNED 0x29d404061fdda8a7ull /* of draws(): may never change */

static const struct k_shape shape = {
        .tp = 1, .hidden_size = V, .vocab_size = V, .vocab_rows = V, .rms_eps = 1e-6f, .rope_theta = 1e4};
static const struct k_pool_options options = {.slots = SLOTS, .pages = 1, .pages_per_slot = 1};

struct sampler {
    struct world w;
    struct k_linear *head;
    float *d_hidden; /* [SLOTS][V] */
    struct k_result *d_results;
    struct k_outcome *d_outcomes;
};

static bool sampler_open(struct sampler *s, const char *isa, uint32_t threads) {
    static const struct k_result none[SLOTS];
    static const struct k_outcome nothing[SLOTS];
    float *unit = calloc(V * V, sizeof *unit);
    const struct k_matrix_view v = {.data = unit, .row_stride = V, .rows = V, .dtype = K_F32};
    const struct k_linear_spec spec = {
            .pieces = &v, .n_pieces = 1, .columns = V, .leaves = 8, .name = "unit"};
    bool present = world_open(&s->w, &shape, &options, isa, threads, NULL);
    for (uint32_t i = 0; i < V; i++)
        unit[i * V + i] = 1;
    if (present) {
        OK(k_linear_pack(s->w.c, &spec, &s->head, e));
        s->d_hidden = room(&s->w, SLOTS * V);
        s->d_results = dev_bytes(&s->w, none, sizeof none);
        s->d_outcomes = dev_bytes(&s->w, nothing, sizeof nothing);
    }
    free(unit);
    return present;
}
static void sampler_close(struct sampler *s) {
    k_linear_free(s->head);
    world_close(&s->w);
}

/* Slots 1..n sample from their rows of logits at position `pos`; they were opened before. The id of the row is the last
 * one, so that what counts as prompt matters to nobody else. */
static void sample(struct sampler *s, uint32_t n, uint32_t pos, const float *logits, struct k_result *ret) {
    struct world *w = &s->w;
    step_new(w);
    for (uint32_t i = 0; i < n; i++) {
        struct k_entry *e = step_prompt(w, i + 1, pos, 1, V - 1);
        e->flags = K_ENTRY_SAMPLE;
        e->sample_at = w->plan.n_samples++;
        e->outcome_at = w->plan.n_outcomes++;
    }
    step_begin_now(w);
    k_upload(w->s, s->d_hidden, logits, (size_t)n * V * sizeof *logits);
    k_head_sample(w->s, w->p, w->m, w->b, s->head, s->d_hidden, s->d_results, s->d_outcomes, NULL, 0);
    k_end_step(w->s, w->p, w->b, s->d_results, s->d_outcomes);
    fetch(w, ret, s->d_results, n * sizeof *ret);
}
static uint32_t sample_one(struct sampler *s, const struct k_sampling *p, const float *logits) {
    struct k_result r;
    slot_new(&s->w, 1, p, 0, 0);
    sample(s, 1, 0, logits, &r);
    return r.id;
}

/* Which ids may come out, by sorting. */
static void allowed_ids(const struct k_sampling *p, const float *x, bool ret[V]) {
    uint32_t order[V], kept = p->top_k ? p->top_k : V;
    double total = 0, mass = 0;
    for (uint32_t i = 0; i < V; i++) {
        uint32_t at = i;
        for (; at > 0 && x[order[at - 1]] < x[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    memset(ret, 0, V * sizeof *ret);
    for (uint32_t i = 0; i < kept; i++)
        total += exp((x[order[i]] - x[order[0]]) / (double)p->temperature);
    for (uint32_t i = 0; i < kept && (p->top_p >= 1 || mass < p->top_p * total); i++) {
        const double q = exp((x[order[i]] - x[order[0]]) / (double)p->temperature);
        mass += q;
        ret[order[i]] = q >= p->min_p;
    }
}

static void test_filters_against_sorting(void **state) {
    static const struct k_sampling params[] = {
            {.temperature = 1, .top_k = 3, .top_p = 1},
            {.temperature = 0.7f, .top_p = 0.33f},
            {.temperature = 1.3f, .top_k = 20, .top_p = 0.61f},
            {.temperature = 1, .top_p = 1, .min_p = 0.23f},
            {.temperature = 3, .top_k = 12, .top_p = 0.87f, .min_p = 0.3f},
            {.temperature = 1, .top_k = 1, .top_p = 0.001f, .min_p = 1},
    };
    struct sampler s = {0};
    (void)state;
    assert_true(sampler_open(&s, NULL, 2));
    for (size_t t = 0; t < sizeof params / sizeof *params; t++) {
        float *x = random_floats(t, V, 6.0f), rows[SLOTS * V];
        bool allowed[V], seen[V] = {0};
        uint32_t n_allowed = 0, n_seen = 0;
        for (uint32_t i = 0; i < V; i++)
            x[i] = roundf(x[i] * 2) / 2; /* so that equal ones happen */
        allowed_ids(&params[t], x, allowed);
        for (uint32_t i = 0; i < V; i++)
            n_allowed += allowed[i];
        for (uint32_t i = 0; i < SLOTS * V; i++)
            rows[i] = x[i % V];
        for (uint32_t round = 0; round < 50; round++) {
            struct k_result r[SLOTS];
            for (uint32_t i = 0; i < SLOTS; i++) {
                struct k_sampling p = params[t];
                p.repetition_penalty = 1;
                p.seed = 1 + round * SLOTS + i;
                slot_new(&s.w, i + 1, &p, 0, 0);
            }
            sample(&s, SLOTS, 0, rows, r);
            for (uint32_t i = 0; i < SLOTS; i++) {
                assert_true(r[i].id < V && allowed[r[i].id]);
                n_seen += !seen[r[i].id];
                seen[r[i].id] = true;
            }
        }
        if (n_allowed <= 20)
            assert_int_equal(n_seen, n_allowed);
        free(x);
    }
    sampler_close(&s);
}

static void test_greedy_takes_the_lowest_of_equals(void **state) {
    struct rng r = {4};
    struct sampler s = {0};
    float rows[SLOTS * V];
    struct k_result results[SLOTS];
    (void)state;
    assert_true(sampler_open(&s, NULL, 2));
    for (uint32_t i = 0; i < SLOTS * V; i++)
        rows[i] = (float)(rng_u32(&r) % 8) - 20;
    for (uint32_t i = 0; i < SLOTS; i++)
        slot_new(&s.w, i + 1, NULL, 0, 0);
    sample(&s, SLOTS, 0, rows, results);
    for (uint32_t i = 0; i < SLOTS; i++) {
        uint32_t best = 0;
        for (uint32_t k = 1; k < V; k++)
            best = rows[i * V + k] > rows[i * V + best] ? k : best;
        assert_int_equal(results[i].id, best);
    }
    sampler_close(&s);
}

static void test_bias_and_penalties(void **state) {
    float x[V];
    struct sampler s = {0};
    struct k_sampling p = greedy;
    struct k_result r;
    (void)state;
    for (uint32_t i = 0; i < V; i++)
        x[i] = -50;
    x[0] = 5, x[1] = 4, x[2] = 3, x[3] = -1, x[4] = -2, x[5] = 1;
    assert_true(sampler_open(&s, NULL, 1));
    p.n_bias = 2;
    p.bias_ids = (uint32_t[]){4, V + 13}; /* the second is not in the vocabulary */
    p.bias = (float[]){8, 100};
    assert_int_equal(sample_one(&s, &p, x), 4);

    p = greedy; /* ids 0 and 1 are suppressed for three samples */
    p.min_tokens = 3;
    p.n_suppress = 2;
    p.suppress = (uint32_t[]){0, 1};
    for (uint32_t i = 0; i < 5; i++) {
        p.first_sample_index = i; /* a replay: i were generated before */
        slot_new(&s.w, 1, &p, 0, 0);
        sample(&s, 1, 0, x, &r);
        assert_int_equal(r.id, i < 3 ? 2 : 0);
    }
    static const struct {
        float repetition, presence, frequency;
        uint32_t prompt, output,
                expected; /* ids 0 .. prompt - 1 were given, then 0 .. output - 1 generated */
    } cases[] = {
            {2, 0, 0, 1, 0, 1},    /* 0: 5 -> 2.5 */
            {2, 0, 0, 2, 0, 2},    /* 1: 4 -> 2 */
            {2, 0, 0, 3, 0, 0},    /* 2: 3 -> 1.5 */
            {1, 4, 0, 3, 0, 0},    /* what was given is not output */
            {1, 4, 0, 0, 2, 2},    /* 0: 1, 1: 0 */
            {1, 3, 0, 0, 2, 2},    /* 0: 2, 1: 1 */
            {1, 0, 2.5f, 0, 1, 1}, /* 0: 2.5 */
            {2, 1, 0.5f, 0, 3, 0}, /* 0: 1, 1: 0.5, 2: 0; 5 stays at 1, and 0 is the lower id */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        p = greedy;
        p.repetition_penalty = cases[i].repetition;
        p.presence_penalty = cases[i].presence;
        p.frequency_penalty = cases[i].frequency;
        slot_new(&s.w, 1, &p, 0, 0);
        step_new(&s.w);
        if (cases[i].prompt)
            step_prompt(&s.w, 1, 0, cases[i].prompt, 0);
        step_begin_now(&s.w);
        k_end_step(s.w.s, s.w.p, s.w.b, NULL, NULL);
        step_new(&s.w);
        if (cases[i].output)
            step_prompt(&s.w, 1, cases[i].prompt, cases[i].output, 0)->flags = K_ENTRY_GENERATED;
        step_begin_now(&s.w);
        k_end_step(s.w.s, s.w.p, s.w.b, NULL, NULL);
        sample(&s, 1, cases[i].prompt + cases[i].output, x, &r);
        if (r.id != cases[i].expected)
            fail_msg("case %zu: id %u", i, r.id);
    }
    sampler_close(&s);
}

/* Of masked samples only ids of the mask come out, the highest one of greedy ones; what is reported is of the
 * distribution as it was. Others notice nothing. */
static void test_masks(void **state) {
    struct rng r = {11};
    struct sampler s = {0};
    struct k_result results[SLOTS], plain[SLOTS];
    uint32_t masks[SLOTS][2];
    float *rows = random_floats(5, SLOTS * V, 4.0f);
    (void)state;
    assert_true(sampler_open(&s, NULL, 2));
    OK(k_batch_create_masks(s.w.b, V, SLOTS, e));
    for (uint32_t masked = 0; masked < 2; masked++) {
        step_new(&s.w);
        for (uint32_t i = 0; i < SLOTS; i++) {
            const struct k_sampling p = {.temperature = (float)(i % 3),
                    .top_p = i % 2 ? 0.9f : 1,
                    .repetition_penalty = 1,
                    .seed = i};
            slot_new(&s.w, i + 1, &p, 0, 0);
            struct k_entry *entry = step_prompt(&s.w, i + 1, 0, 1, V - 1);
            const bool has = masked && i % 4;
            entry->flags = K_ENTRY_SAMPLE | (has ? i % 4 == 1 ? K_ENTRY_MASKS : K_ENTRY_MASK : 0);
            entry->mask_at = (uint16_t)(SLOTS - 1 - i);
            entry->top_logprobs = 3;
            entry->sample_at = s.w.plan.n_samples++;
            entry->outcome_at = s.w.plan.n_outcomes++;
            masks[SLOTS - 1 - i][0] = i == 5 ? 0 : rng_u32(&r) & rng_u32(&r) & rng_u32(&r);
            masks[SLOTS - 1 - i][1] = i == 5 ? 0 : 1u << rng_u32(&r) % 32;
        }
        k_batch_upload_masks(s.w.s, s.w.b, masks[0], SLOTS);
        step_begin_now(&s.w);
        k_upload(s.w.s, s.d_hidden, rows, (size_t)SLOTS * V * sizeof *rows);
        k_head_sample(s.w.s, s.w.p, s.w.m, s.w.b, s.head, s.d_hidden, s.d_results, s.d_outcomes, NULL, 0);
        k_end_step(s.w.s, s.w.p, s.w.b, s.d_results, s.d_outcomes);
        fetch(&s.w, masked ? results : plain, s.d_results, sizeof results);
    }
    for (uint32_t i = 0; i < SLOTS; i++) {
        const uint32_t *mask = masks[SLOTS - 1 - i];
        if (i % 4 == 0) {
            assert_memory_equal(&results[i], &plain[i], sizeof plain[i]);
            continue;
        }
        assert_int_equal(results[i].status, i == 5 ? K_RESULT_NO_TOKEN : K_RESULT_OK);
        if (i == 5)
            continue;
        assert_true(mask_has(mask, results[i].id));
        assert_memory_equal(results[i].top_ids, plain[i].top_ids, sizeof plain[i].top_ids);
        assert_memory_equal(results[i].top_logprobs, plain[i].top_logprobs, sizeof plain[i].top_logprobs);
        for (uint32_t id = 0; id < V && i % 3 == 0; id++)
            assert_true(!mask_has(mask, id) || rows[i * V + id] <= rows[i * V + results[i].id]);
    }
    free(rows);
    sampler_close(&s);
}
/* A plan that names a mask which is not there computes nothing. */
static void test_a_mask_that_is_not_there(void **state) {
    struct sampler s = {0};
    struct error found = {0};
    (void)state;
    assert_true(sampler_open(&s, NULL, 1));
    OK(k_batch_create_masks(s.w.b, V, 3, e));
    slot_new(&s.w, 1, NULL, 0, 0);
    step_new(&s.w);
    struct k_entry *entry = step_prompt(&s.w, 1, 0, 1, 0);
    entry->flags = K_ENTRY_SAMPLE | K_ENTRY_MASK;
    entry->mask_at = 3;
    s.w.plan.n_samples = s.w.plan.n_outcomes = 1;
    k_batch_upload(s.w.s, s.w.b, &s.w.plan, s.w.entries, s.w.ids, s.w.n_ids, NULL, 0);
    assert_int_equal(k_stream_wait(s.w.s, 0, &found), -EINVAL);
    assert_string_equal(found.text, "slot 1: mask 3; the batch has room for 3");
    sampler_close(&s);
}

/* Rows of prompts whose next ids are there: what each one's probability was. Longer than a chunk of rows. */
static void test_scores(void **state) {
    enum { ROWS = 50 };
    struct sampler s = {0};
    struct k_result results[SLOTS];
    float *rows = random_floats(6, ROWS * V, 4.0f);
    (void)state;
    assert_true(sampler_open(&s, NULL, 2));
    slot_new(&s.w, 1, NULL, 0, 0);
    step_new(&s.w);
    struct k_entry *entry = step_prompt(&s.w, 1, 0, ROWS, 7);
    entry->flags = K_ENTRY_SAMPLE;
    entry->n_scores = ROWS - 1;
    entry->top_logprobs = 4;
    entry->sample_at = ROWS - 1;
    s.w.plan.n_samples = ROWS;
    s.w.plan.n_outcomes = 1;
    step_begin_now(&s.w);
    k_upload(s.w.s, s.d_hidden, rows, (size_t)ROWS * V * sizeof *rows);
    k_head_sample(s.w.s, s.w.p, s.w.m, s.w.b, s.head, s.d_hidden, s.d_results, s.d_outcomes, NULL, 0);
    fetch(&s.w, results, s.d_results, sizeof results);
    for (uint32_t i = 0; i < ROWS; i++) {
        const float *x = rows + i * V;
        uint32_t best = 0;
        double sum = 0;
        for (uint32_t id = 0; id < V; id++) {
            sum += exp(x[id]);
            best = x[id] > x[best] ? id : best;
        }
        assert_int_equal(results[i].status, K_RESULT_OK);
        assert_int_equal(results[i].id, i + 1 < ROWS ? (7 + i + 1) % V : best);
        assert_int_equal(results[i].n_top, 4);
        assert_int_equal(results[i].top_ids[0], best);
        assert_true(fabs(results[i].logprob - (x[results[i].id] - log(sum))) < 1e-4);
        assert_true(fabs(results[i].top_logprobs[0] - (x[best] - log(sum))) < 1e-4);
    }
    free(rows);
    sampler_close(&s);
}

/* 3,000 draws of every way to sample, as one number. */
static uint64_t draws(const char *isa, uint32_t threads) {
    struct sampler s = {0};
    uint64_t sum = 0xcbf29ce484222325ull;
    float *rows = random_floats(8, SLOTS * V, 4.0f);
    if (!sampler_open(&s, isa, threads)) {
        free(rows);
        return 0;
    }
    for (uint32_t i = 0; i < SLOTS; i++) {
        const struct k_sampling p = {.temperature = 0.5f + (float)(i % 4) / 2,
                .top_k = i % 3 ? 0 : 10 + i,
                .top_p = i % 4 ? 1 : 0.75f,
                .min_p = i % 5 ? 0 : 0.03125f,
                .repetition_penalty = i % 2 ? 1 : 1.25f,
                .seed = 0x123456789ull * (i + 1)};
        slot_new(&s.w, i + 1, &p, 0, 0);
    }
    for (uint32_t step = 0; step < 50; step++) {
        struct k_result r[SLOTS];
        sample(&s, SLOTS, step, rows, r);
        for (uint32_t i = 0; i < SLOTS; i++)
            sum = (sum ^ r[i].id) * 0x100000001b3ull;
    }
    sampler_close(&s);
    free(rows);
    return sum;
}
static void test_pinned_draws(void **state) {
    (void)state;
    for (uint32_t i = 0; i < N_ISAS * 2; i++) {
        const uint64_t sum = draws(all_isas[i / 2], 1 + i % 2 * 2);
        if (sum) /* this instruction set is here */
            assert_int_equal(sum, PINNED);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_filters_against_sorting),
            cmocka_unit_test(test_greedy_takes_the_lowest_of_equals),
            cmocka_unit_test(test_bias_and_penalties),
            cmocka_unit_test(test_masks),
            cmocka_unit_test(test_a_mask_that_is_not_there),
            cmocka_unit_test(test_scores),
            cmocka_unit_test(test_pinned_draws),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
