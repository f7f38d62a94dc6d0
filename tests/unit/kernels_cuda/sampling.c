/* Heads and samples of the CUDA library against those of the CPU library, to the bit: tokens, logprobs, lists, states,
 * outcomes and raw logits, over random parameters, vocabularies, equal logits, extremes and drafts, for some steps in a
 * row.
 *
 * A head has eight columns, each a family of logits; a hidden row mixes them, or is one of them. */
#include "tests/unit/kernels_cuda/sides.h"

#include "base/mask.h"

#include <float.h>

enum { H = 8, ENTRIES = 70, ROWS_MAX = 320, LOGITS_MAX = 40, MASKS = 24, MASK_WORDS = 32 };

struct sampler {
    struct library k;
    struct k_context *c;
    struct k_stream *s;
    struct k_pool *p;
    struct k_comm *m;
    struct k_batch *b;
    struct k_linear *head;
    void *workspace;
    float *d_hidden, *d_logits;
    struct k_result *d_results;
    struct k_outcome *d_outcomes;
};
static struct library libraries[2]; /* the CPU's, the CUDA one */
static size_t compared;

static int open_libraries(void **state) {
    (void)state;
    libraries[0] = linked_library();
    libraries[1] = opened_library();
    return 0;
}
static int report(void **state) {
    (void)state;
    print_message("%zu samples compared\n", compared);
    return 0;
}

/* --- heads --- */

static uint8_t family_code(struct rng *r, uint32_t column, uint32_t id, uint32_t vocab) {
    const uint32_t any = rng_u32(r) >> 8;
    switch (column) {
    case 0:
        return (uint8_t)any;
    case 1: /* many are equal */
        return (uint8_t)(100 + any % 3);
    case 2: /* all are */
        return 140;
    case 3:
        return (uint8_t)((uint64_t)id * 255 / vocab);
    case 4: /* few stand out */
        return (uint8_t)(any % 97 ? any % 28 : 200 + any % 50);
    case 5:
        return (uint8_t)(255 - (uint64_t)id * 255 / vocab);
    case 6: /* round */
        return (uint8_t)((any & 63) + (any >> 6 & 63) + (any >> 12 & 63) + (any >> 18 & 63));
    default: /* one does */
        return id == vocab / 2 ? 255 : (uint8_t)(any % 4);
    }
}
enum extreme { PLAIN, HUGE_LOGITS, TINY_LOGITS, ONE_INFINITE };
static struct fake *head_fake(uint64_t seed, uint32_t vocab, enum extreme extreme) {
    static const float scales[] = {1 / 16.0f, 2.5e36f, 1e-42f, 1 / 16.0f};
    struct fake *f =
            fake_make(seed, (struct fake_kind){QUANT_INT8, QUANT_SCALE_F32, 0, false, false}, vocab, H);
    struct rng r = {seed};
    for (uint32_t id = 0; id < vocab; id++) {
        for (uint32_t c = 0; c < H; c++)
            f->codes[(size_t)id * H + c] = family_code(&r, c, id, vocab);
        f->groups[id] = (struct quant_group){.scale = scales[extreme], .zero = 128};
    }
    if (extreme == ONE_INFINITE)
        f->groups[vocab - 1].scale = INFINITY;
    return f;
}

static void sampler_open(
        struct sampler *d, struct library k, uint32_t vocab, uint32_t drafts_max, const struct fake *f) {
    const struct k_context_options o = {.threads = 2};
    const struct k_shape shape = {.tp = 1,
            .hidden_size = H,
            .vocab_size = vocab,
            .vocab_rows = vocab,
            .rms_eps = 1e-6f,
            .rope_theta = 1e4};
    const struct k_pool_options options = {
            .slots = ENTRIES + 1, .pages = 1, .pages_per_slot = 1, .drafts_max = drafts_max};
    const struct k_matrix_view v = {.quant = &f->q, .rows = vocab};
    const struct k_linear_spec spec = {
            .pieces = &v, .n_pieces = 1, .columns = H, .leaves = 8, .name = "head"};
    *d = (struct sampler){.k = k};
    OK(k.k_context_create(&o, &d->c, e));
    OK(k.k_stream_create(d->c, &d->s, e));
    OK(k.k_pool_create(d->c, &shape, &options, &d->p, e));
    OK(k.k_comm_create(d->c, &shape, ROWS_MAX, NULL, 0, &d->m, e));
    OK(k.k_batch_create(d->c, ENTRIES, ROWS_MAX, &d->b, e));
    if (mask_words(vocab) <= MASK_WORDS)
        OK(k.k_batch_create_masks(d->b, vocab, MASKS, e));
    OK(k.k_linear_pack(d->c, &spec, &d->head, e));
    const size_t bytes = k.k_workspace_bytes(&shape, ROWS_MAX, ENTRIES);
    d->workspace = k.k_alloc(d->c, bytes);
    k.k_stream_set_workspace(d->s, d->workspace, bytes);
    d->d_hidden = k.k_alloc(d->c, ROWS_MAX * H * sizeof(float));
    d->d_logits = k.k_alloc(d->c, (size_t)LOGITS_MAX * vocab * sizeof(float));
    d->d_results = k.k_alloc(d->c, ROWS_MAX * sizeof *d->d_results);
    d->d_outcomes = k.k_alloc(d->c, ENTRIES * sizeof *d->d_outcomes);
    assert_true(d->workspace && d->d_hidden && d->d_logits && d->d_results && d->d_outcomes);
}
static void sampler_close(struct sampler *d) {
    void *const blocks[] = {d->workspace, d->d_hidden, d->d_logits, d->d_results, d->d_outcomes};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        d->k.k_free(d->c, blocks[i]);
    d->k.k_linear_free(d->head);
    d->k.k_batch_free(d->b);
    d->k.k_comm_free(d->m);
    d->k.k_pool_free(d->p);
    d->k.k_stream_free(d->s);
    d->k.k_context_free(d->c);
}

/* --- parameters and steps --- */

struct slot_lists { /* what a slot's parameters point to */
    uint32_t bias_ids[40], suppress[STOP_IDS_MAX];
    float bias[40];
};
static float one_of(struct rng *r, const float *values, uint32_t n) {
    return values[rng_u32(r) % n];
}
#define ONE_OF(r, ...)                                                                                       \
    one_of((r), (const float[]){__VA_ARGS__}, sizeof((const float[]){__VA_ARGS__}) / sizeof(float))

static struct k_sampling random_sampling(struct rng *r, uint32_t vocab, struct slot_lists *l) {
    struct k_sampling p = {.temperature = ONE_OF(r, 0, 0, 0.3f, 0.7f, 1, 1, 2, 50, 1e-3f, 1e-38f),
            .top_k = (uint32_t)ONE_OF(r, 0, 0, 0, 1, 3, 50, 300, 2048, 3000),
            .top_p = ONE_OF(r, 1, 1, 0.9f, 0.5f, 0.95f, 0.999f, 1e-6f),
            .min_p = ONE_OF(r, 0, 0, 0, 0.05f, 1),
            .repetition_penalty = ONE_OF(r, 1, 1, 1.3f, 0.5f),
            .presence_penalty = ONE_OF(r, 0, 0, 0.5f, -2),
            .frequency_penalty = ONE_OF(r, 0, 0, 0.25f, -1),
            .seed = rng_u32(r),
            .first_sample_index = rng_u32(r) % 3,
            .min_tokens = rng_u32(r) % 4,
            .bias_ids = l->bias_ids,
            .bias = l->bias,
            .suppress = l->suppress};
    if (rng_u32(r) % 8 == 0)
        p.top_k = vocab - 1 + rng_u32(r) % 3;
    p.n_bias = rng_u32(r) % 3 ? 0 : rng_u32(r) % 40;
    for (uint32_t i = 0; i < p.n_bias; i++) { /* some twice, some of no id */
        l->bias_ids[i] = rng_u32(r) % (rng_u32(r) % 4 ? 3 : vocab + 9);
        l->bias[i] = ONE_OF(r, 1, -1, 5, 0.1f, -30, FLT_MAX, -FLT_MAX);
    }
    p.n_suppress = rng_u32(r) % 3 ? 0 : rng_u32(r) % STOP_IDS_MAX;
    for (uint32_t i = 0; i < p.n_suppress; i++)
        l->suppress[i] = vocab <= 7 ? i : rng_u32(r) % (vocab + 9);
    return p;
}
static void random_hidden(struct rng *r, float *x) {
    const uint32_t way = rng_u32(r) % 40;
    for (uint32_t i = 0; i < H; i++)
        x[i] = way < 20 ? rng_float(r, 1) : 0;
    if (way >= 20)
        x[rng_u32(r) % H] = ONE_OF(r, 1, 0.1f, 3, -1);
    if (way == 39)
        x[rng_u32(r) % H] = ONE_OF(r, NAN, INFINITY, -INFINITY);
    if (way == 38)
        memset(x, 0, H * sizeof *x); /* all logits are 0, or -0 */
}

struct step {
    struct k_plan plan;
    struct k_entry entries[ENTRIES];
    uint32_t ids[ROWS_MAX], n_ids;
    float hidden[ROWS_MAX * H];
    uint32_t masks[MASKS * MASK_WORDS];
};
/* Masks of many, few and sometimes no ids; entries whose samples share one, have one each, or none. Prompts some of
 * whose rows are scored. */
static void mask_and_score(struct rng *r, uint32_t vocab, struct step *t) {
    const uint32_t words = mask_words(vocab);
    for (uint32_t i = 0; i < MASKS; i++)
        for (uint32_t w = 0, kind = rng_u32(r) % 5; w < words; w++)
            t->masks[i * words + w] = kind == 0  ? 0
                                      : kind < 3 ? rng_u32(r) & rng_u32(r) & rng_u32(r)
                                                 : rng_u32(r) | rng_u32(r);
    t->plan.n_samples = 0;
    for (uint32_t i = 0; i < t->plan.n_entries; i++) {
        struct k_entry *e = &t->entries[i];
        const uint32_t samples = !(e->flags & K_ENTRY_SAMPLE)  ? 0
                                 : e->kind == K_ENTRY_CONTINUE ? e->n_rows
                                                               : 1;
        if (samples > 0 && rng_u32(r) % 4) {
            e->flags |= rng_u32(r) % 2 ? K_ENTRY_MASKS : K_ENTRY_MASK;
            e->mask_at = (uint16_t)(rng_u32(r) % (MASKS + 1 - samples));
        }
        if (e->kind == K_ENTRY_PROMPT && samples == 0)
            e->id_after = rng_u32(r) % vocab;
        if (e->kind == K_ENTRY_PROMPT && rng_u32(r) % 4)
            e->n_scores = (uint16_t)(rng_u32(r) % (e->n_rows - samples + 1));
        e->sample_at = t->plan.n_samples + e->n_scores;
        t->plan.n_samples += e->n_scores + samples;
    }
}
static void random_step(
        struct rng *r, uint32_t n, uint32_t step, uint32_t vocab, uint32_t drafts_max, struct step *t) {
    memset(t, 0, sizeof *t);
    for (uint32_t i = 0; i < n; i++) {
        const bool goes_on = step > 0 && rng_u32(r) % 4;
        const uint32_t drafts = goes_on && drafts_max ? rng_u32(r) % (drafts_max + 1) : 0,
                       rows = goes_on ? 1 + drafts : 1 + rng_u32(r) % 4, flags = rng_u32(r);
        struct k_entry *e = &t->entries[t->plan.n_entries++];
        *e = (struct k_entry){.slot = 1 + i,
                .kind = goes_on ? K_ENTRY_CONTINUE : K_ENTRY_PROMPT,
                .n_rows = rows,
                .row_begin = t->plan.n_rows,
                .first_pos = 4 * step,
                .ids_at = t->n_ids,
                .id_after = UINT32_MAX,
                .rope_at = UINT32_MAX,
                .drafts_at = drafts ? t->n_ids : UINT32_MAX,
                .top_logprobs = (uint32_t[]){UINT32_MAX, UINT32_MAX, 0, 1, 5, 20}[rng_u32(r) % 6]};
        e->flags = flags % 8 ? K_ENTRY_SAMPLE : 0;
        e->flags |= flags / 8 % 8 == 0 ? K_ENTRY_LOGITS : flags / 8 % 8 == 1 ? K_ENTRY_LOGITS_ALL : 0;
        e->flags |= !goes_on && flags / 64 % 2 ? K_ENTRY_GENERATED : 0;
        if (e->flags & K_ENTRY_SAMPLE) {
            e->sample_at = t->plan.n_samples;
            t->plan.n_samples += 1 + drafts;
            e->outcome_at = t->plan.n_outcomes++;
        }
        for (uint32_t k = 0; k < (goes_on ? drafts : rows); k++)
            t->ids[t->n_ids++] = rng_u32(r) % vocab;
        t->plan.n_rows += rows;
    }
    for (uint32_t i = 0; i < t->plan.n_rows; i++)
        random_hidden(r, t->hidden + i * H);
}

struct answer {
    struct k_result results[ROWS_MAX];
    struct k_outcome outcomes[ENTRIES];
    float *logits; /* [LOGITS_MAX][vocab] */
};
static void forget(struct sampler *d, struct answer *a, uint32_t vocab) {
    memset(a->results, 0xee, sizeof a->results);
    memset(a->outcomes, 0xee, sizeof a->outcomes);
    memset(a->logits, 0xee, (size_t)LOGITS_MAX * vocab * sizeof *a->logits);
    d->k.k_upload(d->s, d->d_results, a->results, sizeof a->results);
    d->k.k_upload(d->s, d->d_outcomes, a->outcomes, sizeof a->outcomes);
    d->k.k_upload(d->s, d->d_logits, a->logits, (size_t)LOGITS_MAX * vocab * sizeof *a->logits);
    OK(d->k.k_stream_wait(d->s, 0, e));
}
/* g: instead of the head itself, what was captured of it. */
static void run_step(struct sampler *d, const struct step *t, uint32_t vocab, bool logits, bool outcomes,
        struct k_graph *g, struct answer *a) {
    forget(d, a, vocab);
    if (mask_words(vocab) <= MASK_WORDS)
        d->k.k_batch_upload_masks(d->s, d->b, t->masks, MASKS);
    d->k.k_batch_upload(d->s, d->b, &t->plan, t->entries, t->ids, t->n_ids, NULL, 0);
    d->k.k_upload(d->s, d->d_hidden, t->hidden, t->plan.n_rows * H * sizeof(float));
    d->k.k_begin_step(d->s, d->p, d->b);
    if (g)
        d->k.k_graph_launch(d->s, g);
    else
        d->k.k_head_sample(d->s, d->p, d->m, d->b, d->head, d->d_hidden, d->d_results,
                outcomes ? d->d_outcomes : NULL, logits ? d->d_logits : NULL, logits ? LOGITS_MAX : 0);
    if (outcomes)
        d->k.k_end_step(d->s, d->p, d->b, d->d_results, d->d_outcomes);
    d->k.k_download(d->s, a->results, d->d_results, sizeof a->results);
    d->k.k_download(d->s, a->outcomes, d->d_outcomes, sizeof a->outcomes);
    d->k.k_download(d->s, a->logits, d->d_logits, (size_t)LOGITS_MAX * vocab * sizeof *a->logits);
    OK(d->k.k_stream_wait(d->s, 0, e));
}

static void assert_equal_results(const struct answer *want, const struct answer *got, const char *what) {
    for (uint32_t i = 0; i < ROWS_MAX; i++) {
        const struct k_result *w = &want->results[i], *g = &got->results[i];
        if (memcmp(w, g, sizeof *w) != 0)
            fail_msg("%s: sample %u: id %u logprob %.9g top %u (%u %.9g) status %u, expected %u %.9g %u (%u "
                     "%.9g) %u",
                    what, i, g->id, (double)g->logprob, g->n_top, g->top_ids[0], (double)g->top_logprobs[0],
                    g->status, w->id, (double)w->logprob, w->n_top, w->top_ids[0], (double)w->top_logprobs[0],
                    w->status);
    }
    assert_memory_equal(got->outcomes, want->outcomes, sizeof want->outcomes);
}

/* --- the tests --- */

struct setting {
    uint32_t vocab, entries, steps;
    enum extreme extreme;
    uint64_t seed;
    const struct k_sampling *sampling; /* NULL: random, each slot's own */
    uint32_t family;                   /* not 0: all logits are of this column */
    uint32_t drafts_max;
    bool masks; /* and scores */
};
static void slots_open(struct sampler *d, const struct setting *t) {
    struct rng r = {t->seed * 3 + 1};
    for (uint32_t i = 0; i < t->entries; i++) {
        struct slot_lists l;
        struct k_sampling p = random_sampling(&r, t->vocab, &l);
        const uint64_t seed = p.seed;
        if (t->sampling) {
            p = *t->sampling;
            p.seed = seed;
        }
        d->k.k_slot_open(d->s, d->p, 1 + i, &p);
        d->k.k_memory(d->s, d->p, &(struct k_memory_op){K_MEM_ZERO_SLOT, 1 + i, 0}, 1);
    }
}
static void compare(const struct setting *t) {
    struct fake *f = head_fake(t->seed, t->vocab, t->extreme);
    struct sampler d[2];
    struct answer a[2];
    struct rng r = {t->seed};
    if (libraries[1].emu_seed)
        libraries[1].emu_seed(t->seed % 4);
    for (uint32_t i = 0; i < 2; i++) {
        sampler_open(&d[i], libraries[i], t->vocab, t->drafts_max, f);
        slots_open(&d[i], t);
        a[i].logits = malloc((size_t)LOGITS_MAX * t->vocab * sizeof(float));
    }
    for (uint32_t step = 0; step < t->steps; step++) {
        struct step now;
        char what[96];
        random_step(&r, t->entries, step, t->vocab, t->drafts_max, &now);
        if (t->masks)
            mask_and_score(&r, t->vocab, &now);
        for (uint32_t i = 0; i < now.plan.n_rows * H && t->family; i++)
            now.hidden[i] = i % H == t->family;
        const struct k_bounds bounds = {
                .rows = now.plan.n_rows, .entries = now.plan.n_entries, .context = UINT32_MAX};
        const bool bounded = rng_u32(&r) % 2, logits = rng_u32(&r) % 2;
        for (uint32_t i = 0; i < 2; i++) {
            d[i].k.k_batch_bounds(d[i].b, bounded ? &bounds : NULL);
            run_step(&d[i], &now, t->vocab, logits, /* outcomes= */ true, NULL, &a[i]);
        }
        snprintf(what, sizeof what, "vocabulary %u, seed %llu, step %u", t->vocab,
                (unsigned long long)t->seed, step);
        assert_equal_results(&a[0], &a[1], what);
        assert_equal_floats(a[1].logits, a[0].logits, (size_t)LOGITS_MAX * t->vocab, what);
        compared += now.plan.n_samples;
    }
    for (uint32_t i = 0; i < 2; i++) {
        sampler_close(&d[i]);
        free(a[i].logits);
    }
    fake_free(f);
}

static void test_small_vocabularies(void **state) {
    static const uint32_t vocabs[] = {1, 2, 7, 63, 64, 65, 200, 1000};
    (void)state;
    for (uint32_t t = 0; t < 16; t++)
        compare(&(struct setting){.vocab = vocabs[t % 8], .entries = 9, .steps = 2, .seed = 100 + t});
}
static void test_larger_vocabularies(void **state) {
    static const uint32_t vocabs[] = {4097, 20000, 9000};
    (void)state;
    for (uint32_t t = 0; t < 6; t++)
        compare(&(struct setting){.vocab = vocabs[t % 3], .entries = 6, .steps = 1, .seed = 200 + t});
}
/* Three logits for all ids, so that every cut is among equal ones, of a list and of more ids than a list has. */
static void test_cuts_among_equals(void **state) {
    static const struct k_sampling params[] = {
            {.temperature = 1, .top_p = 0.5f, .repetition_penalty = 1},
            {.temperature = 1, .top_k = 30, .top_p = 1, .repetition_penalty = 1},
            {.temperature = 0.1f, .top_k = 50, .top_p = 0.99f, .repetition_penalty = 1},
    };
    (void)state;
    for (uint32_t t = 0; t < 6; t++)
        compare(&(struct setting){.vocab = t < 3 ? 70 : 30000,
                .entries = t < 3 ? 50 : 3,
                .steps = 1,
                .seed = 250 + t,
                .sampling = &params[t % 3],
                .family = 1});
}
/* A segment of more ids than are staged at once. */
static void test_a_long_segment(void **state) {
    (void)state;
    compare(&(struct setting){.vocab = 64 * 4097, .entries = 3, .steps = 1, .seed = 300});
}
/* More samples, and more rows with logits, than a round has. */
static void test_rounds(void **state) {
    (void)state;
    for (uint32_t t = 0; t < 2; t++)
        compare(&(struct setting){.vocab = 130, .entries = ENTRIES, .steps = 1, .seed = 400 + t});
}
/* Every row of an entry with drafts is sampled, as if those before it were tokens; of few ids many are. */
static void test_drafts(void **state) {
    static const uint32_t vocabs[] = {2, 1, 7, 65, 300}, drafts[] = {3, DRAFT_MAX, 1};
    (void)state;
    for (uint32_t t = 0; t < 10; t++)
        compare(&(struct setting){.vocab = vocabs[t % 5],
                .entries = 5 + t % 5,
                .steps = 3,
                .seed = 700 + t,
                .drafts_max = drafts[t % 3]});
}
/* Samples that only some ids are left to, or none; rows of prompts whose ids are there already. */
static void test_masks_and_scores(void **state) {
    static const uint32_t vocabs[] = {1, 33, 64, 300, 1000}, drafts[] = {0, 3, DRAFT_MAX};
    (void)state;
    for (uint32_t t = 0; t < 6; t++)
        compare(&(struct setting){.vocab = vocabs[t % 5],
                .entries = 5 + t % 5,
                .steps = 2,
                .seed = 800 + t,
                .drafts_max = drafts[t % 3],
                .masks = true});
    /* More rows than a round has. */
    compare(&(struct setting){.vocab = 130, .entries = 40, .steps = 1, .seed = 820, .masks = true});
}
static void test_extremes(void **state) {
    (void)state;
    for (uint32_t t = 0; t < 6; t++)
        compare(&(struct setting){
                .vocab = 300, .entries = 30, .steps = 2, .extreme = HUGE_LOGITS + t % 3, .seed = 500 + t});
}

/* A graph of the head that was captured for the largest step samples smaller ones like the CPU does. */
static void test_a_graph_replays_with_new_contents(void **state) {
    const struct setting t = {.vocab = 500, .entries = ENTRIES, .seed = 600};
    struct fake *f = head_fake(t.seed, t.vocab, PLAIN);
    struct sampler d[2];
    struct answer a[2];
    struct rng r = {t.seed};
    struct k_graph *g = NULL;
    (void)state;
    for (uint32_t i = 0; i < 2; i++) {
        sampler_open(&d[i], libraries[i], t.vocab, t.drafts_max, f);
        slots_open(&d[i], &t);
        a[i].logits = malloc((size_t)LOGITS_MAX * t.vocab * sizeof(float));
    }
    OK(d[1].k.k_capture_begin(d[1].s, e));
    d[1].k.k_head_sample(d[1].s, d[1].p, d[1].m, d[1].b, d[1].head, d[1].d_hidden, d[1].d_results,
            d[1].d_outcomes, d[1].d_logits, LOGITS_MAX);
    OK(d[1].k.k_capture_end(d[1].s, &g, e));
    for (uint32_t step = 0; step < 3; step++) {
        struct step now;
        random_step(&r, 1 + step * step * 4, step, t.vocab, t.drafts_max, &now);
        run_step(&d[0], &now, t.vocab, true, true, NULL, &a[0]);
        run_step(&d[1], &now, t.vocab, true, true, g, &a[1]);
        assert_equal_results(&a[0], &a[1], "replayed");
        assert_equal_floats(a[1].logits, a[0].logits, (size_t)LOGITS_MAX * t.vocab, "replayed logits");
    }
    d[1].k.k_graph_free(g);
    for (uint32_t i = 0; i < 2; i++) {
        sampler_close(&d[i]);
        free(a[i].logits);
    }
    fake_free(f);
}

/* What the head of a rank is not: too small, or not there. */
static void test_a_wrong_head_is_a_fault(void **state) {
    struct fake *f = head_fake(1, 60, PLAIN);
    struct error faults[2] = {{0}};
    (void)state;
    for (uint32_t none = 0; none < 2; none++) {
        for (uint32_t i = 0; i < 2; i++) {
            struct sampler d;
            f->q.rows = 60;
            sampler_open(&d, libraries[i], 60, 0, f);
            const struct k_matrix_view v = {.quant = &f->q, .rows = 59};
            const struct k_linear_spec spec = {
                    .pieces = &v, .n_pieces = 1, .columns = H, .leaves = 8, .name = "small"};
            struct k_linear *small = NULL;
            OK(d.k.k_linear_pack(d.c, &spec, &small, e));
            d.k.k_head_sample(
                    d.s, d.p, d.m, d.b, none ? NULL : small, d.d_hidden, d.d_results, d.d_outcomes, NULL, 0);
            assert_int_equal(d.k.k_stream_wait(d.s, 0, &faults[i]), -EINVAL);
            d.k.k_linear_free(small);
            sampler_close(&d);
        }
        assert_string_equal(faults[0].text, faults[1].text);
    }
    fake_free(f);
}

static void test_residual(void **state) {
    static const uint32_t columns[] = {1, 5, 8, 100, 1028};
    struct fake *f = head_fake(1, 64, PLAIN);
    struct sampler d[2];
    float *x = random_floats(1, 9 * 1028, 3), *part = random_floats(2, 9 * 1028, 3), got[2][9 * 1028];
    struct step now = {.plan = {.n_entries = 1, .n_rows = 8}, .entries = {{.n_rows = 8}}};
    (void)state;
    for (uint32_t t = 0; t < sizeof columns / sizeof *columns; t++) {
        for (uint32_t i = 0; i < 2; i++) {
            const size_t bytes = sizeof got[i];
            sampler_open(&d[i], libraries[i], 64, 0, f);
            float *d_x = d[i].k.k_alloc(d[i].c, bytes), *d_part = d[i].k.k_alloc(d[i].c, bytes);
            d[i].k.k_batch_upload(d[i].s, d[i].b, &now.plan, now.entries, now.ids, 8, NULL, 0);
            d[i].k.k_upload(d[i].s, d_x, x, bytes);
            d[i].k.k_upload(d[i].s, d_part, part, bytes);
            d[i].k.k_reduce_residual(d[i].s, d[i].m, d[i].b, d_part, d_x, columns[t]);
            d[i].k.k_download(d[i].s, got[i], d_x, bytes);
            OK(d[i].k.k_stream_wait(d[i].s, 0, e));
            d[i].k.k_free(d[i].c, d_x);
            d[i].k.k_free(d[i].c, d_part);
            sampler_close(&d[i]);
        }
        assert_equal_floats(got[1], got[0], 9 * 1028, "residual");
        assert_true(got[1][8 * columns[t] - 1] == x[8 * columns[t] - 1] + part[8 * columns[t] - 1]);
    }
    fake_free(f);
    free(x);
    free(part);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_small_vocabularies),
            cmocka_unit_test(test_larger_vocabularies),
            cmocka_unit_test(test_cuts_among_equals),
            cmocka_unit_test(test_a_long_segment),
            cmocka_unit_test(test_rounds),
            cmocka_unit_test(test_extremes),
            cmocka_unit_test(test_drafts),
            cmocka_unit_test(test_masks_and_scores),
            cmocka_unit_test(test_a_graph_replays_with_new_contents),
            cmocka_unit_test(test_a_wrong_head_is_a_fault),
            cmocka_unit_test(test_residual),
    };
    return cmocka_run_group_tests(tests, open_libraries, report);
}
