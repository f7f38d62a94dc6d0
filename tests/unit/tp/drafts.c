/* drafts.c - drafts of the model's own MTP layer: tokens and logprobs are those of steps of a token, bit for bit, at
 * any temperature, number of drafts and ranks; and the drafts are worth something. */
#include "eval_prompts.h"

#define SEQUENCES 3u
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) /* many times slower */
#define NEW_TOKENS  20u
#define DRAFTS_MOST 5u
#else
#define NEW_TOKENS  70u /* beyond four blocks of Gated DeltaNet, and into the next page */
#define DRAFTS_MOST DRAFT_MAX
#endif
#define RATE_MIN 0.5 /* of first drafts of a model that was trained with its MTP layer */

struct life {
    struct offline_sequence s[SEQUENCES];
    struct step_sample samples[SEQUENCES][NEW_TOKENS];
};

/* Some of the held-out prompts; of different lengths, which also run with drafts of different numbers. */
static uint32_t read_prompts(struct record *records) {
    char *text = NULL;
    size_t bytes = 0;
    struct error e = {0};
    must(file_read(PROMPTS, PROMPTS_BYTES, &text, &bytes, &e), &e);
    uint32_t line = 0, n = 0;
    for (char *at = text, *end; n < SEQUENCES && at < text + bytes; at = end + 1) {
        end = memchr(at, '\n', (size_t)(text + bytes - at));
        assert_non_null(end);
        if (line++ % 40 == 7)
            read_record(at, (size_t)(end - at), &records[n++]);
    }
    free(text);
    return n;
}

/* Sequences end where slots have no room left, so that drafts of the last tokens have nowhere to go. */
static struct offline *start(const struct record *records, uint32_t tp, uint32_t drafts_max,
        const char *draft_vocab, bool mtp, bool eager) {
    struct rank_options options = test_options(MODEL, tp);
    struct offline *o = NULL;
    struct error e = {0};
    options.max_model_len = 0;
    for (uint32_t i = 0; i < SEQUENCES; i++)
        if (records[i].n_prompt + NEW_TOKENS > options.max_model_len)
            options.max_model_len = records[i].n_prompt + NEW_TOKENS;
    options.mtp = mtp;
    options.drafts_max = drafts_max;
    options.draft_vocab = draft_vocab;
    options.eager = eager;
    must(offline_create(&options, &o, &e), &e);
    return o;
}

/* drafts: of the first sequence; the others have fewer. */
static void run(struct offline *o, const struct record *records, float temperature, uint32_t drafts,
        struct life *ret) {
    struct error e = {0};
    memset(ret, 0, sizeof(*ret));
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        ret->s[i] = (struct offline_sequence){.prompt = records[i].ids,
                .n_prompt = records[i].n_prompt,
                .max_tokens = NEW_TOKENS,
                .stop_id = STEP_NONE,
                .sampling = offline_greedy(),
                .logprobs = true,
                .top_logprobs = 2,
                .start_step = i,
                .drafts = drafts > i ? drafts - i : 0,
                .samples = ret->samples[i]};
        ret->s[i].sampling.temperature = temperature;
        ret->s[i].sampling.seed = 11 + i;
        ret->s[i].sampling.frequency_penalty = i == 1 ? 0.4f : 0;
    }
    must(offline_run(o, ret->s, SEQUENCES, &e), &e);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        assert_int_equal(ret->s[i].n_tokens, NEW_TOKENS);
}

static void assert_same(const struct life *got, const struct life *plain, uint32_t drafts) {
    for (uint32_t i = 0; i < SEQUENCES; i++)
        for (uint32_t k = 0; k < NEW_TOKENS; k++)
            if (memcmp(&got->samples[i][k], &plain->samples[i][k], sizeof(got->samples[i][k])) != 0)
                fail_msg(
                        "sequence %u, up to %u drafts: token %u is %u with logprob %.9g, without drafts %u with %.9g",
                        i, drafts, k, got->samples[i][k].id, (double)got->samples[i][k].logprob,
                        plain->samples[i][k].id, (double)plain->samples[i][k].logprob);
}

static void drafts_change_no_token(void **state) {
    static const uint32_t drafts[] = {0, 1, 3, 7, DRAFT_MAX};
    static struct record records[SEQUENCES];
    static struct life plain[2], got;
    static const float temperatures[] = {0, 0.9f};
    (void)state;
    assert_int_equal(read_prompts(records), SEQUENCES);
    struct offline *o = start(records, 1, 0, NULL, /* mtp= */ false, /* eager= */ true);
    for (uint32_t t = 0; t < 2; t++)
        run(o, records, temperatures[t], 0, &plain[t]);
    offline_free(o);
    for (uint32_t tp = 1; tp <= 2; tp++) {
        o = start(records, tp, DRAFT_MAX, NULL, /* mtp= */ true, /* eager= */ tp == 2);
        for (uint32_t i = 0; i < sizeof(drafts) / sizeof(drafts[0]) && drafts[i] <= DRAFTS_MOST; i++) {
            for (uint32_t t = 0; t < 2; t++) {
                uint32_t drafted = 0, accepted = 0;
                run(o, records, temperatures[t], drafts[i], &got);
                assert_same(&got, &plain[t], drafts[i]);
                for (uint32_t k = 0; k < SEQUENCES; k++) {
                    drafted += got.s[k].n_drafted;
                    accepted += got.s[k].n_accepted;
                }
                print_message("tp %u, up to %u drafts, temperature %.1f: %u of %u accepted\n", tp, drafts[i],
                        (double)temperatures[t], accepted, drafted);
                if (drafts[i] == 1)
                    assert_true(accepted >= RATE_MIN * drafted);
                assert_int_equal(accepted > 0, drafts[i] > 0);
            }
        }
        offline_free(o);
    }
}

static void write_ids(char *path, uint32_t n) {
    FILE *f = fdopen(mkstemp(path), "w");
    assert_non_null(f);
    for (uint32_t i = 0; i < n; i++)
        fprintf(f, "%u\n", i);
    assert_int_equal(fclose(f), 0);
}
/* They are the same drafts at every tp, and change nothing either; of some ids fewer are right than of all. */
static void drafts_of_some_ids(void **state) {
    static const uint32_t ids[] = {1024, 64};
    static struct record records[SEQUENCES];
    static struct life plain, got;
    uint32_t accepted[2][2] = {{0}};
    (void)state;
    assert_int_equal(read_prompts(records), SEQUENCES);
    struct offline *o = start(records, 1, 0, NULL, /* mtp= */ false, /* eager= */ true);
    run(o, records, 0.9f, 0, &plain);
    offline_free(o);
    for (uint32_t i = 0; i < 2; i++) {
        char path[] = "/tmp/shardd-drafts-XXXXXX";
        write_ids(path, ids[i]);
        for (uint32_t tp = 1; tp <= 2; tp++) {
            o = start(records, tp, 3, path, /* mtp= */ true, /* eager= */ tp == 2);
            run(o, records, 0.9f, 3, &got);
            assert_same(&got, &plain, 3);
            for (uint32_t k = 0; k < SEQUENCES; k++)
                accepted[i][tp - 1] += got.s[k].n_accepted;
            offline_free(o);
        }
        remove(path);
        print_message("of %u ids: %u accepted\n", ids[i], accepted[i][0]);
        assert_int_equal(accepted[i][1], accepted[i][0]);
    }
    assert_true(accepted[0][0] > accepted[1][0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(drafts_change_no_token), cmocka_unit_test(drafts_of_some_ids)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
