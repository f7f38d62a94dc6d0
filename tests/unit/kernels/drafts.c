/* Drafts change nothing: whatever a CONTINUE carries beside the slot's last id, tokens, logprobs and the state that is
 * left are those of a step a token, bit for bit. One layer of each kind, three sequences of different lengths with all
 * that sampling depends on. */
#include "tests/unit/kernels/fixture.h"

#define HIDDEN    48u
#define VOCAB     61u
#define SEQUENCES 3u
#define TOKENS    53u  /* that each sequence generates: three blocks of Gated DeltaNet and a few */
#define ROWS_MAX  128u /* of a step */

static const struct k_shape shape = {.tp = 1,
        .hidden_size = HIDDEN,
        .intermediate_size = HIDDEN,
        .vocab_size = VOCAB,
        .vocab_rows = VOCAB,
        .q_heads = 2,
        .kv_heads = 1,
        .head_dim = 32,
        .rotary_dim = 8,
        .gdn_k_heads = 2,
        .gdn_v_heads = 4,
        .gdn_k_dim = 12,
        .gdn_v_dim = 20,
        .conv_kernel = 4,
        .n_attention_layers = 2, /* the second is the drafter's */
        .n_gdn_layers = 1,
        .rms_eps = 1e-6f,
        .rope_theta = 1e6};
#define CHANNELS   (2 * 2 * 12 + 4 * 20)
#define GDN_IN     (CHANNELS + 4 * 20 + 2 * 4)
#define GDN_OUT    (4 * 20)
#define HEADS_IN   (2 * 2 * 32 + 2 * 32)
#define HEADS_OUT  (2 * 32)
#define STATE      (4 * 12 * 20)
#define WINDOW     (3 * CHANNELS)
#define SLOT_PAGES 2u

static const uint32_t prompt_rows[SEQUENCES] = {5, 16, 31}, suppressed[] = {3, 4, 5, 40, 41}, biased[] = {9};
static const float biases[] = {1.5f};
static const struct k_sampling samplings[SEQUENCES] = {
        {.top_p = 1,
                .repetition_penalty = 1.3f,
                .presence_penalty = 0.4f,
                .frequency_penalty = 0.3f,
                .min_tokens = 20,
                .n_suppress = 5,
                .suppress = suppressed},
        {.temperature = 0.9f, .top_p = 0.8f, .repetition_penalty = 1, .frequency_penalty = 0.7f, .seed = 77},
        {.temperature = 1.4f,
                .top_k = 13,
                .top_p = 1,
                .min_p = 0.02f,
                .repetition_penalty = 1.1f,
                .seed = 5,
                .first_sample_index = 11,
                .min_tokens = 30,
                .n_bias = 1,
                .bias_ids = biased,
                .bias = biases,
                .n_suppress = 5,
                .suppress = suppressed},
};

struct model {
    struct world w;
    struct k_batch *drafts;
    struct k_table *table;
    float *rows; /* that it maps */
    struct k_linear *gdn_in, *gdn_out, *heads_in, *heads_out, *head, *fc, *drafter_in, *drafter_out, *few;
    struct k_draft_head some; /* n 0: drafts are sampled from the whole head */
    struct k_gdn_weights gdn;
    struct k_attention_weights heads;
    const float *norm;
    float *x, *in, *mixed, *part, *hidden, *pair, *d_hidden; /* on the device */
    struct k_result *results, *d_results;
    struct k_outcome *outcomes;
};
struct told { /* of a sequence, by its tokens */
    uint32_t n;
    struct k_result tokens[TOKENS];
    float state[STATE], window[WINDOW];
};

static struct k_linear *int8_linear(struct world *w, uint32_t rows, uint32_t columns, uint64_t seed) {
    const struct quant_matrix q = {.format = QUANT_INT8,
            .scale = QUANT_SCALE_BF16,
            .group = columns,
            .rows = rows,
            .columns = columns,
            .label = "int8"};
    const struct k_matrix_view v = {.quant = &q, .rows = rows};
    const struct k_linear_spec spec = {
            .pieces = &v, .n_pieces = 1, .columns = columns, .leaves = 8, .name = "drafts"};
    struct k_linear *l = NULL;
    OK(k_linear_dummy(w->c, &spec, seed, 0.2f, &l, e));
    return l;
}
static struct k_linear *tied_head(struct world *w, const float *rows) {
    const struct k_matrix_view v = {.data = rows, .row_stride = HIDDEN, .rows = VOCAB, .dtype = K_F32};
    const struct k_linear_spec spec = {
            .pieces = &v, .n_pieces = 1, .columns = HIDDEN, .leaves = 8, .name = "head"};
    struct k_linear *l = NULL;
    OK(k_linear_pack(w->c, &spec, &l, e));
    return l;
}
static const float *random_on(struct world *w, uint64_t seed, size_t n) {
    float *x = random_floats(seed, n, 1.0f), *d_x = dev(w, x, n);
    free(x);
    return d_x;
}

/* The last n ids of the vocabulary, in another order. */
static void some_open(struct model *m, uint32_t n) {
    uint32_t order[VOCAB], place[VOCAB];
    memset(place, 0xff, sizeof place);
    for (uint32_t i = 0; i < n; i++) {
        order[i] = VOCAB - 1 - (i + 5) % n;
        place[order[i]] = i;
    }
    const struct k_matrix_view v = {
            .data = m->rows, .row_stride = HIDDEN, .rows = n, .dtype = K_F32, .row_order = order};
    const struct k_linear_spec spec = {
            .pieces = &v, .n_pieces = 1, .columns = HIDDEN, .leaves = 8, .name = "few"};
    OK(k_linear_pack(m->w.c, &spec, &m->few, e));
    m->some = (struct k_draft_head){
            .head = m->few, .place = (const uint32_t *)dev_bytes(&m->w, place, sizeof place), .n = n};
}

static void model_open(struct model *m, uint32_t drafts_max, uint32_t n_some, enum k_dtype state_dtype) {
    const struct k_pool_options pool = {.slots = SEQUENCES + 1,
            .pages = SEQUENCES * SLOT_PAGES,
            .pages_per_slot = SLOT_PAGES,
            .slot_units = 1,
            .kv_dtype = K_BF16,
            .state_dtype = state_dtype,
            .drafts_max = drafts_max};
    struct world *w = &m->w;
    m->rows = random_floats(1, VOCAB * HIDDEN, 1.0f);
    assert_true(world_open(w, &shape, &pool, NULL, 2, NULL));
    OK(k_batch_create(w->c, SEQUENCES, SEQUENCES, &m->drafts, e));
    OK(k_table_load(w->c, m->rows, K_F32, VOCAB, HIDDEN, true, &m->table, e));
    m->gdn_in = int8_linear(w, GDN_IN, HIDDEN, 2);
    m->gdn_out = int8_linear(w, HIDDEN, GDN_OUT, 3);
    m->heads_in = int8_linear(w, HEADS_IN, HIDDEN, 4);
    m->heads_out = int8_linear(w, HIDDEN, HEADS_OUT, 5);
    m->head = tied_head(w, m->rows);
    m->fc = int8_linear(w, HIDDEN, 2 * HIDDEN, 7);
    m->drafter_in = int8_linear(w, HEADS_IN, HIDDEN, 8);
    m->drafter_out = int8_linear(w, HIDDEN, HEADS_OUT, 9);
    m->gdn = (struct k_gdn_weights){
            random_on(w, 10, 4 * CHANNELS), random_on(w, 11, 4), random_on(w, 12, 4), random_on(w, 13, 20)};
    m->heads = (struct k_attention_weights){random_on(w, 14, 32), random_on(w, 15, 32)};
    m->norm = random_on(w, 16, HIDDEN);
    m->few = NULL;
    m->some = (struct k_draft_head){0};
    if (n_some)
        some_open(m, n_some);
    m->x = room(w, ROWS_MAX * HIDDEN);
    m->in = room(w, ROWS_MAX * (GDN_IN + HEADS_IN));
    m->mixed = room(w, ROWS_MAX * (GDN_OUT + HEADS_OUT));
    m->part = room(w, ROWS_MAX * HIDDEN);
    m->hidden = room(w, ROWS_MAX * HIDDEN);
    m->pair = room(w, ROWS_MAX * 2 * HIDDEN);
    m->d_hidden = room(w, SEQUENCES * HIDDEN);
    m->results = keep(w, k_alloc(w->c, ROWS_MAX * sizeof *m->results), true);
    m->d_results = keep(w, k_alloc(w->c, SEQUENCES * sizeof *m->d_results), true);
    m->outcomes = keep(w, k_alloc(w->c, SEQUENCES * sizeof *m->outcomes), true);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        slot_new(w, i + 1, &samplings[i], 1 + i * SLOT_PAGES, SLOT_PAGES);
}
static void model_close(struct model *m) {
    struct k_linear *const linears[] = {m->gdn_in, m->gdn_out, m->heads_in, m->heads_out, m->head, m->fc,
            m->drafter_in, m->drafter_out, m->few};
    k_stream_wait(m->w.s, 0, NULL);
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
        k_linear_free(linears[i]);
    k_table_free(m->table);
    k_batch_free(m->drafts);
    world_close(&m->w);
    free(m->rows);
}

/* --- a step --- */

static void queue_attention(struct model *m, const struct k_batch *b, uint32_t layer, uint32_t shift,
        const struct k_linear *in, const struct k_linear *out) {
    struct world *w = &m->w;
    k_norm_project(w->s, b, m->x, m->norm, 1e-6f, in, m->in);
    k_attention_step(w->s, w->p, b, layer, shift, &m->heads, m->in, m->mixed);
    k_project_residual(w->s, w->m, b, out, m->mixed, m->part, m->x);
}
static void queue_drafter(struct model *m, const struct k_batch *b, const float *hidden,
        const struct k_result *results, float *to) {
    struct world *w = &m->w;
    k_mtp_input(w->s, w->p, b, m->table, hidden, m->norm, m->norm, 1e-6f, results, m->pair);
    k_project(w->s, b, m->pair, m->fc, m->x);
    queue_attention(m, b, 1, 1, m->drafter_in, m->drafter_out);
    k_final_norm(w->s, w->p, b, m->x, m->norm, 1e-6f, to, /* keep= */ false);
}
static void queue_drafts(struct model *m, uint32_t n) {
    struct world *w = &m->w;
    k_draft_begin(w->s, w->p, w->b, m->outcomes, m->pair, m->drafts, m->d_hidden);
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0)
            queue_drafter(m, m->drafts, m->d_hidden, m->d_results, m->d_hidden);
        if (m->some.n)
            k_draft_sample(w->s, w->p, w->m, m->drafts, &m->some, m->d_hidden, m->d_results);
        else
            k_head_sample(w->s, w->p, w->m, m->drafts, m->head, m->d_hidden, m->d_results, NULL, NULL, 0);
        k_draft_take(w->s, w->p, m->drafts, m->d_results);
    }
}
/* What the world's entries say, and n drafts behind it; leaves results and outcomes. */
static void step_run(struct model *m, uint32_t n, struct k_result *results, struct k_outcome *outcomes) {
    struct world *w = &m->w;
    step_begin_now(w);
    k_embed(w->s, w->b, m->table, m->x);
    k_norm_project(w->s, w->b, m->x, m->norm, 1e-6f, m->gdn_in, m->in);
    k_gdn_step(w->s, w->p, w->b, 0, &m->gdn, m->in, m->mixed);
    k_project_residual(w->s, w->m, w->b, m->gdn_out, m->mixed, m->part, m->x);
    queue_attention(m, w->b, 0, 0, m->heads_in, m->heads_out);
    k_final_norm(w->s, w->p, w->b, m->x, m->norm, 1e-6f, m->hidden, /* keep= */ true);
    k_head_sample(w->s, w->p, w->m, w->b, m->head, m->hidden, m->results, m->outcomes, NULL, 0);
    if (n > 0)
        queue_drafter(m, w->b, m->hidden, m->results, m->pair);
    k_end_step(w->s, w->p, w->b, m->results, m->outcomes);
    if (n > 0)
        queue_drafts(m, n);
    fetch(w, results, m->results, w->plan.n_samples * sizeof *results);
    fetch(w, outcomes, m->outcomes, w->plan.n_outcomes * sizeof *outcomes);
}

static struct k_entry *sampled(struct world *w, struct k_entry *t) {
    t->flags |= K_ENTRY_SAMPLE;
    t->top_logprobs = 2;
    t->drafts_at = UINT32_MAX;
    t->outcome_at = w->plan.n_outcomes++;
    t->sample_at = w->plan.n_samples;
    w->plan.n_samples += t->kind == K_ENTRY_PROMPT ? 1 : t->n_rows;
    return t;
}
static struct k_entry *step_drafts(struct world *w, uint32_t slot, uint32_t n) {
    struct k_entry *t = step_continue(w, slot);
    t->n_rows += n;
    w->plan.n_rows += n;
    return sampled(w, t);
}

/* --- lives --- */

/* What a sequence carries in a round. */
struct way {
    uint32_t drafts_max;
    uint32_t least, most; /* drafts */
    uint32_t right;       /* so many, at most, are those that will be sampled */
    bool own;             /* those that the drafter leaves in the slot */
    uint32_t some;        /* of so many ids; 0 = of all */
    bool moved; /* slots are copied away and back between rounds, and snapshots of them restored elsewhere */
    enum k_dtype state_dtype;
};

static void take(struct told *t, const struct k_outcome *o, const struct k_result *results) {
    assert_int_equal(o->status, K_RESULT_OK);
    assert_int_equal(o->n_samples, o->n_accepted + 1);
    for (uint32_t i = 0; i < o->n_samples; i++)
        t->tokens[t->n++] = results[i];
}
/* Drafts for the tokens that come, of which `right` are right. */
static void propose(
        struct world *w, struct k_entry *t, const struct told *plain, uint32_t have, uint32_t right) {
    t->drafts_at = w->n_ids;
    for (uint32_t i = 0; i + 1 < t->n_rows; i++) {
        const uint32_t id = plain->tokens[have + i].id;
        w->ids[w->n_ids++] = i < right ? id : (id + 1 + i) % VOCAB;
    }
}
static uint32_t up_to(struct rng *r, uint32_t least, uint32_t most) {
    return most <= least ? most : least + rng_u32(r) % (most - least + 1);
}

static void prompts_run(struct model *m, const struct way *way, struct told *got) {
    struct k_result results[SEQUENCES];
    struct k_outcome outcomes[SEQUENCES];
    step_new(&m->w);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        sampled(&m->w, step_prompt(&m->w, i + 1, 0, prompt_rows[i], 7 * i))->n_draft_next =
                way->own ? way->most : 0;
    step_run(m, way->own ? way->most : 0, results, outcomes);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        take(&got[i], &outcomes[i], &results[i]);
}

/* A slot is what it was after a copy and back, and a snapshot of it has the same state, wherever the rings begin and
 * whatever is folded. */
static void move_slots(struct model *m) {
    const uint32_t spare = SEQUENCES + 1;
    struct world *w = &m->w;
    float state[2][STATE], window[2][WINDOW];
    for (uint32_t slot = 1; slot <= SEQUENCES; slot++) {
        const struct k_memory_op ops[] = {{K_MEM_SNAPSHOT_SLOT, slot, 0}, {K_MEM_COPY_SLOT, slot, spare},
                {K_MEM_ZERO_SLOT, slot, 0}, {K_MEM_COPY_SLOT, spare, slot}, {K_MEM_ZERO_SLOT, spare, 0},
                {K_MEM_RESTORE_SLOT, 0, spare}};
        k_memory(w->s, w->p, ops, sizeof ops / sizeof *ops);
        OK(k_pool_read_gdn(w->s, w->p, slot, 0, state[0], window[0]));
        OK(k_pool_read_gdn(w->s, w->p, spare, 0, state[1], window[1]));
        assert_same_floats(state[1], state[0], STATE, "a snapshot's state");
        assert_same_floats(window[1], window[0], WINDOW, "a snapshot's window");
    }
}

static uint32_t n_ends; /* that rows with drafts went on from, in all lives */

/* Behind an id that would end the sequence nothing is accepted, right or not. */
static void check_ends(const struct k_sampling *s, uint32_t before, const struct k_outcome *o,
        const struct k_result *results) {
    for (uint32_t i = 0; i < s->n_suppress; i++) {
        n_ends += s->suppress[i] == before;
        if (s->suppress[i] == before)
            assert_int_equal(o->n_accepted, 0);
        for (uint32_t k = 0; k < o->n_accepted; k++)
            assert_int_not_equal(results[k].id, s->suppress[i]);
    }
}

/* One round of all sequences that want tokens; returns how many of them do. *accepted counts drafts. */
static uint32_t round_run(struct model *m, const struct way *way, struct rng *r, const struct told *plain,
        struct told *got, uint32_t *accepted) {
    struct k_result results[ROWS_MAX];
    struct k_outcome outcomes[SEQUENCES];
    struct world *w = &m->w;
    uint32_t of[SEQUENCES], n = 0;
    step_new(w);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        const uint32_t left = TOKENS - got[i].n;
        if (left == 0)
            continue;
        const uint32_t most = way->most < left - 1 ? way->most : left - 1;
        struct k_entry *t = step_drafts(w, i + 1, up_to(r, way->least, most));
        if (way->own)
            t->n_draft_next = way->most;
        else if (t->n_rows > 1)
            propose(w, t, &plain[i], got[i].n, up_to(r, 0, way->right));
        of[n++] = i;
    }
    if (n == 0)
        return 0;
    step_run(m, way->own ? way->most : 0, results, outcomes);
    for (uint32_t k = 0; k < n; k++) {
        struct told *t = &got[of[k]];
        const struct k_result *its = &results[w->entries[k].sample_at];
        check_ends(&samplings[of[k]], t->tokens[t->n - 1].id, &outcomes[k], its);
        take(t, &outcomes[k], its);
        *accepted += outcomes[k].n_accepted;
    }
    if (way->moved)
        move_slots(m);
    return n;
}

/* Returns drafts that were accepted. */
static uint32_t life_run(const struct way *way, uint64_t seed, const struct told *plain, struct told *got) {
    struct model m;
    struct rng r = {seed};
    uint32_t accepted = 0;
    memset(got, 0, SEQUENCES * sizeof *got);
    model_open(&m, way->drafts_max, way->some, way->state_dtype);
    prompts_run(&m, way, got);
    while (round_run(&m, way, &r, plain, got, &accepted) > 0)
        ;
    for (uint32_t i = 0; i < SEQUENCES; i++)
        OK(k_pool_read_gdn(m.w.s, m.w.p, i + 1, 0, got[i].state, got[i].window));
    model_close(&m);
    return accepted;
}
static void assert_same_life(const struct told *got, const struct told *plain) {
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        for (uint32_t k = 0; k < TOKENS; k++)
            if (memcmp(&got[i].tokens[k], &plain[i].tokens[k], sizeof got->tokens[k]) != 0)
                fail_msg("sequence %u: token %u is %u with logprob %.9g, without drafts %u with %.9g", i, k,
                        got[i].tokens[k].id, (double)got[i].tokens[k].logprob, plain[i].tokens[k].id,
                        (double)plain[i].tokens[k].logprob);
        assert_same_floats(got[i].state, plain[i].state, STATE, "state");
        assert_same_floats(got[i].window, plain[i].window, WINDOW, "window");
    }
}

/* --- tests --- */

static struct told plain[SEQUENCES];
static bool drafts_are_taken;

static int find_out(void **state) {
    const struct k_pool_options pool = {.slots = 1, .pages = 1, .pages_per_slot = 1, .drafts_max = DRAFT_MAX};
    struct k_context *c = context(NULL, 2);
    struct k_pool *p = NULL;
    struct error e = {0};
    (void)state;
    const int r = k_pool_create(c, &shape, &pool, &p, &e);
    drafts_are_taken = r == 0;
    k_pool_free(p);
    k_context_free(c);
    if (r == -ENOTSUP)
        print_message("not taken here: %s\n", e.text);
    if (drafts_are_taken)
        life_run(&(struct way){0}, 1, NULL, plain);
    return r == 0 || r == -ENOTSUP ? 0 : -1;
}
#define NEEDS_DRAFTS()                                                                                       \
    do {                                                                                                     \
        (void)state;                                                                                         \
        if (!drafts_are_taken)                                                                               \
            skip();                                                                                          \
    } while (0)

static void lives_are_the_same(const struct way *ways, size_t n, bool some) {
    static struct told got[SEQUENCES];
    for (size_t i = 0; i < n; i++) {
        const uint32_t accepted = life_run(&ways[i], 3 + i, plain, got);
        assert_same_life(got, plain);
        assert_int_equal(accepted > 0, some);
    }
}

static void test_room_for_drafts_changes_nothing(void **state) {
    static const struct way ways[] = {{.drafts_max = 1}, {.drafts_max = DRAFT_MAX}};
    NEEDS_DRAFTS();
    lives_are_the_same(ways, 2, /* some= */ false);
}
/* With k of them each round begins k + 1 further: all places of a block. */
static void test_right_drafts(void **state) {
    NEEDS_DRAFTS();
    for (uint32_t k = 1; k <= DRAFT_MAX; k += k % 2 ? 1 : 3) {
        const struct way way = {.drafts_max = k, .least = k, .most = k, .right = DRAFT_MAX};
        lives_are_the_same(&way, 1, /* some= */ true);
    }
    assert_true(n_ends > 0);
}
static void test_wrong_drafts(void **state) {
    static const struct way ways[] = {{.drafts_max = 3, .least = 2, .most = 2},
            {.drafts_max = DRAFT_MAX, .least = DRAFT_MAX, .most = DRAFT_MAX}};
    NEEDS_DRAFTS();
    lives_are_the_same(ways, 2, /* some= */ false);
}
static void test_any_drafts(void **state) {
    static const struct way ways[] = {{.drafts_max = DRAFT_MAX, .most = DRAFT_MAX, .right = DRAFT_MAX},
            {.drafts_max = DRAFT_MAX, .most = 5, .right = 4}, {.drafts_max = 7, .most = 7, .right = 7},
            {.drafts_max = 4, .least = 1, .most = 4, .right = 3}};
    NEEDS_DRAFTS();
    lives_are_the_same(ways, 4, /* some= */ true);
}
static void test_slots_that_move(void **state) {
    static const struct way way = {.drafts_max = 9, .least = 3, .most = 9, .right = 9, .moved = true};
    NEEDS_DRAFTS();
    lives_are_the_same(&way, 1, /* some= */ true);
}
/* Blocks of drafts are folded into a rounded S0 as others are; it is not the exact one. */
static void test_f16_states(void **state) {
    static const struct way ways[] = {{.drafts_max = 4, .least = 4, .most = 4, .right = 4},
            {.drafts_max = DRAFT_MAX, .most = DRAFT_MAX, .right = DRAFT_MAX},
            {.drafts_max = 9, .least = 3, .most = 9, .right = 9, .moved = true}};
    static struct told rounded[SEQUENCES], got[SEQUENCES];
    NEEDS_DRAFTS();
    life_run(&(struct way){.state_dtype = K_F16}, 1, NULL, rounded);
    assert_memory_not_equal(rounded[2].state, plain[2].state, sizeof plain[2].state);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct way way = ways[i];
        way.state_dtype = K_F16;
        life_run(&way, 3 + i, rounded, got);
        assert_same_life(got, rounded);
    }
}
/* The drafter's weights are made up, so that it is right by chance. */
static void test_drafts_in_the_slot(void **state) {
    static const struct way ways[] = {{.drafts_max = 1, .least = 1, .most = 1, .own = true},
            {.drafts_max = 5, .least = 5, .most = 5, .own = true},
            {.drafts_max = DRAFT_MAX, .least = 0, .most = DRAFT_MAX, .own = true}};
    static struct told got[SEQUENCES];
    NEEDS_DRAFTS();
    for (size_t i = 0; i < 3; i++) {
        life_run(&ways[i], 3 + i, plain, got);
        assert_same_life(got, plain);
    }
}

/* What the drafter makes of the token behind a prompt that fills a page but for one place, after it was asked for
 * drafts that there were not pages for, or were. */
static void hidden_behind_drafts(uint32_t n_pages, float *hidden) {
    const uint32_t page = n_pages + 1;
    struct k_result results[1];
    struct k_outcome outcomes[1];
    struct model m;
    struct world *w = &m.w;
    model_open(&m, 3, 0, K_F32);
    k_slot_close(w->s, w->p, 1);
    slot_new(w, 1, NULL, 1, n_pages);
    step_new(w);
    sampled(w, step_prompt(w, 1, 0, PAGE_TOKENS - 1, 5))->n_draft_next = 3;
    step_run(&m, 3, results, outcomes);
    k_slot_grant(w->s, w->p, 1, n_pages, SLOT_PAGES - n_pages, &page);
    step_new(w);
    sampled(w, step_continue(w, 1))->n_draft_next = 1;
    step_run(&m, 1, results, outcomes);
    fetch(w, hidden, m.d_hidden, HIDDEN * sizeof *hidden);
    model_close(&m);
}
/* A draft behind the pages that there are is not stored over the entry of a token. */
static void test_drafts_behind_the_pages(void **state) {
    float with[HIDDEN], without[HIDDEN];
    NEEDS_DRAFTS();
    hidden_behind_drafts(2, with);
    hidden_behind_drafts(1, without);
    assert_same_floats(without, with, HIDDEN, "behind drafts that had no page");
}
/* With all ids, in whatever order, they are the same drafts; with some others, and no token differs. */
static void test_drafts_of_some_ids(void **state) {
    struct way way = {.drafts_max = 5, .least = 5, .most = 5, .own = true};
    static struct told got[SEQUENCES];
    uint32_t accepted[3];
    NEEDS_DRAFTS();
    for (size_t i = 0; i < 3; i++) {
        way.some = (const uint32_t[]){0, VOCAB, 40}[i];
        accepted[i] = life_run(&way, 3, plain, got);
        assert_same_life(got, plain);
    }
    assert_true(accepted[0] > 0);
    assert_int_equal(accepted[1], accepted[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_room_for_drafts_changes_nothing),
            cmocka_unit_test(test_right_drafts),
            cmocka_unit_test(test_wrong_drafts),
            cmocka_unit_test(test_any_drafts),
            cmocka_unit_test(test_slots_that_move),
            cmocka_unit_test(test_f16_states),
            cmocka_unit_test(test_drafts_in_the_slot),
            cmocka_unit_test(test_drafts_behind_the_pages),
            cmocka_unit_test(test_drafts_of_some_ids),
    };
    return cmocka_run_group_tests(tests, find_out, NULL);
}
