/* bits_batch.c - the same tokens and log probabilities whatever else is in the step, wherever a prompt is
 * cut, and when a sequence is replayed from its tokens. */
#include "bits_test.h"

static struct work expected; /* all six at once, each prompt in one step if it fits */
static struct work got;
static struct checkpoint *golden_file;
static struct offline *model;
static const uint32_t suppress[2] = {1, 2};

static int start(void **state) {
    (void)state;
    struct rank_options options = bits_options(1);
    golden_file = golden_open("tp8");
    model = model_start("tp8", &options);
    work_init(&expected, golden_file, suppress);
    work_run(&expected, model);
    return 0;
}

static int end(void **state) {
    (void)state;
    model = offline_free(model);
    golden_file = checkpoint_free(golden_file);
    return 0;
}

static void alone(void **state) {
    (void)state;
    work_init(&got, golden_file, suppress);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        struct error e = {0};
        must(offline_run(model, &got.s[i], 1, &e), &e);
    }
    same_work(&got, &expected, "alone");
}

/* Other neighbours and other slots: every rotation of the six, joining at different steps. */
static void other_company(void **state) {
    (void)state;
    for (uint32_t turn = 1; turn < SEQUENCES; turn++) {
        struct work turned;
        struct error e = {0};
        work_init(&got, golden_file, suppress);
        work_init(&turned, golden_file, suppress);
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            turned.s[i] = got.s[(i + turn) % SEQUENCES]; /* its samples still go to got */
            turned.s[i].start_step = i * turn;
        }
        must(offline_run(model, turned.s, SEQUENCES - turn % 3, &e), &e);
        for (uint32_t i = 0; i < SEQUENCES - turn % 3; i++) {
            uint32_t j = (i + turn) % SEQUENCES;
            for (uint32_t k = 0; k < TOKENS; k++)
                same_sample(&got.samples[j][k], &expected.samples[j][k], "other company", j, k);
        }
    }
}

static void cut_prompts(void **state) {
    (void)state;
    static const uint32_t one[] = {1}, odd[] = {3, 1, 17, 2, 40, 15}, block[] = {16}, page[] = {64},
                          around[] = {63, 2}, primes[] = {5, 7, 11, 13, 29};
    static const struct {
        const char *name;
        const uint32_t *chunks;
        uint32_t n;
    } cuts[] = {{"one row at a time", one, 1}, {"odd chunks", odd, 6}, {"blocks", block, 1},
            {"pages", page, 1}, {"around a page", around, 2}, {"primes", primes, 5}};
    for (size_t c = 0; c < sizeof(cuts) / sizeof(cuts[0]); c++) {
        work_init(&got, golden_file, suppress);
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            got.s[i].chunks = cuts[c].chunks;
            got.s[i].n_chunks = cuts[c].n;
        }
        work_run(&got, model);
        same_work(&got, &expected, cuts[c].name);
    }
}

/* A row limit so small that sequences wait for each other and prompts trickle in. */
static void few_rows(void **state) {
    (void)state;
    static const uint32_t rows[] = {7, 33};
    for (size_t i = 0; i < 2; i++) {
        struct rank_options options = bits_options(1);
        options.max_num_batched_tokens = rows[i];
        struct offline *o = model_start("tp8", &options);
        work_init(&got, golden_file, suppress);
        work_run(&got, o);
        same_work(&got, &expected, "few rows");
        offline_free(o);
    }
}

/* What a group restart or a preemption does: the prompt and the first tokens are read again, as rows of a
 * prompt. */
static void replay(void **state) {
    (void)state;
    static const uint32_t at[] = {1, 7, 15, 16, 23};
    static const uint32_t chunks[] = {9, 50, 1};
    static uint32_t ids[SEQUENCES][256 + TOKENS];
    for (size_t t = 0; t < sizeof(at) / sizeof(at[0]); t++) {
        work_init(&got, golden_file, suppress);
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            struct offline_sequence *s = &got.s[i];
            memcpy(ids[i], s->prompt, s->n_prompt * sizeof(uint32_t));
            for (uint32_t k = 0; k < at[t]; k++)
                ids[i][s->n_prompt + k] = expected.samples[i][k].id;
            s->prompt = ids[i];
            s->n_prompt += at[t];
            s->n_generated = at[t];
            s->max_tokens = TOKENS - at[t];
            s->chunks = i % 2 ? chunks : NULL;
            s->n_chunks = i % 2 ? 3 : 0;
        }
        work_run(&got, model);
        for (uint32_t i = 0; i < SEQUENCES; i++)
            for (uint32_t k = at[t]; k < TOKENS; k++)
                same_sample(&got.samples[i][k - at[t]], &expected.samples[i][k], "replay", i, k);
    }
}

/* Other seeds give other tokens, the same seed the same: the noise is keyed, not drawn. */
static void seeds(void **state) {
    (void)state;
    uint32_t different = 0;
    work_init(&got, golden_file, suppress);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        got.s[i].sampling.seed += 1000;
    work_run(&got, model);
    for (uint32_t k = 0; k < TOKENS; k++) {
        same_sample(&got.samples[0][k], &expected.samples[0][k], "greedy with another seed", 0, k);
        different += got.samples[1][k].id != expected.samples[1][k].id;
    }
    assert_true(different > TOKENS / 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(alone),
            cmocka_unit_test(other_company),
            cmocka_unit_test(cut_prompts),
            cmocka_unit_test(few_rows),
            cmocka_unit_test(replay),
            cmocka_unit_test(seeds),
    };
    return cmocka_run_group_tests(tests, start, end);
}
