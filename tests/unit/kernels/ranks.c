/* Several ranks: the reduce and the head give the bits of one rank; a group that is stopped lets everyone go. */
#include "tests/unit/kernels/processes.h"
#include "tests/unit/kernels/quantised.h"

#include <pthread.h>

enum { H = 128, K = 192, V = 1003, ROWS = 45, STEPS = 3, ENTRIES = 40 };

/* What every rank of a group is given, and what rank r found. */
struct group {
    uint32_t tp;
    void *region;
    const float *w, *head, *in, *x;    /* [H][K], [V][H], [ROWS][K], [ROWS][H] */
    const struct k_sampling *sampling; /* [ENTRIES + 1] */
    const struct fake *quant;          /* the head's weights; NULL = head */
    uint32_t n_some;                   /* ids of the head for drafts; 0 = there is none */
    bool poison;                       /* a NaN in the hidden row of entry 3 */
    const char *isa;
};
struct member {
    struct group *g;
    uint32_t rank;
    float x[ROWS * H], logits[ENTRIES * V];
    struct k_result results[STEPS][ENTRIES];
    struct k_outcome outcomes[STEPS][ENTRIES];
    struct k_result drafts[STEPS][ENTRIES];
    int fault;
    char fault_text[ERROR_TEXT_MAX];
};

static struct k_linear *shard(struct world *w, const float *data, uint32_t stride, uint32_t rows,
        uint32_t columns, uint32_t leaves) {
    struct k_linear *l = NULL;
    struct k_matrix_view v = {.data = data, .row_stride = stride, .rows = rows, .dtype = K_F32};
    struct k_linear_spec spec = {
            .pieces = &v, .n_pieces = 1, .columns = columns, .leaves = leaves, .name = "shard"};
    OK(k_linear_pack(w->c, &spec, &l, e));
    return l;
}

static struct k_linear *head_of(struct world *w, const struct group *g, uint32_t first, uint32_t rows) {
    const struct k_matrix_view v = {
            .quant = g->quant ? &g->quant->q : NULL, .rows = rows, .first_row = first};
    return g->quant ? linear_of(w, &v, 1, H, 8, NULL) : shard(w, g->head + (size_t)first * H, H, rows, H, 8);
}

/* Row i of the head for drafts. */
static uint32_t some_id(uint32_t i) {
    return (7 * i + 3) % V;
}
static void draft_head_open(struct world *w, const struct group *g, uint32_t rank, struct k_draft_head *ret) {
    const uint32_t n = g->n_some / g->tp;
    uint32_t order[V], place[V];
    struct k_linear *l = NULL;
    memset(place, 0xff, sizeof place);
    for (uint32_t i = 0; i < g->n_some; i++)
        place[some_id(i)] = i;
    for (uint32_t i = 0; i < n; i++)
        order[i] = some_id(rank * n + i);
    const struct k_matrix_view v = {.data = g->quant ? NULL : g->head,
            .row_stride = H,
            .quant = g->quant ? &g->quant->q : NULL,
            .rows = n,
            .dtype = K_F32,
            .row_order = order};
    const struct k_linear_spec spec = {
            .pieces = &v, .n_pieces = 1, .columns = H, .leaves = 8, .name = "drafts"};
    OK(k_linear_pack(w->c, &spec, &l, e));
    *ret = (struct k_draft_head){
            .head = l, .place = (const uint32_t *)dev_bytes(w, place, sizeof place), .n = g->n_some};
}

static void plan_step(struct world *w, uint32_t step) {
    step_new(w);
    for (uint32_t i = 0; i < ENTRIES; i++) {
        struct k_entry *e = step == 0 ? step_prompt(w, i + 1, 0, i < 5 ? 2 : 1, i) : step_continue(w, i + 1);
        e->flags =
                i % 4 == 1 && step == 0 ? K_ENTRY_LOGITS : K_ENTRY_SAMPLE | (i % 8 == 0 ? K_ENTRY_LOGITS : 0);
        e->sample_at = w->plan.n_samples;
        w->plan.n_samples += e->flags & K_ENTRY_SAMPLE ? 1 : 0;
        e->outcome_at = e->sample_at;
        e->top_logprobs = i % 3 ? i % 7 : UINT32_MAX;
    }
}

/* Ranks take the devices that there are, in turn. */
static uint32_t device_of(uint32_t rank) {
    struct k_platform platform = {0};
    struct error e;
    return k_devices(&platform, NULL, 0, &e) == 0 && platform.n_devices ? rank % platform.n_devices : 0;
}
static struct k_context *context_of_rank(const char *isa, uint32_t rank) {
    const struct k_context_options o = {.device = device_of(rank), .threads = 1, .isa = isa};
    struct k_context *c = NULL;
    return k_context_create(&o, &c, NULL) == 0 ? c : NULL;
}
static void member_main(struct member *m) {
    const struct group *g = m->g;
    const uint32_t segment = (V + 63) / 64, per = segment * (64 / g->tp),
                   first = m->rank * per < V ? m->rank * per : V;
    struct k_shape shape = {.tp = g->tp,
            .rank = m->rank,
            .hidden_size = H,
            .vocab_size = V,
            .vocab_first = first,
            .vocab_rows = V - first < per ? V - first : per,
            .rms_eps = 1e-6f,
            .rope_theta = 1e4};
    struct k_pool_options o = {.slots = ENTRIES, .pages = 1, .pages_per_slot = 1};
    struct world *w = calloc(1, sizeof *w);
    float *in = calloc(ROWS * K, sizeof *in), *hidden = calloc(ROWS * H, sizeof *hidden);
    if (!world_open_in(w, &shape, &o, context_of_rank(g->isa, m->rank), g->region))
        goto out;
    for (uint32_t i = 1; i <= ENTRIES; i++)
        slot_new(w, i, &g->sampling[i], 0, 0);
    struct k_linear *l = shard(w, g->w + m->rank * (K / g->tp), K, H, K / g->tp, 8 / g->tp);
    struct k_linear *head = head_of(w, g, first, shape.vocab_rows);
    for (uint32_t r = 0; r < ROWS; r++)
        memcpy(in + r * (K / g->tp), g->in + r * K + m->rank * (K / g->tp), K / g->tp * sizeof *in);
    float *d_in = dev(w, in, ROWS * (K / g->tp)), *d_part = room(w, ROWS * H), *d_hidden = room(w, ROWS * H),
          *d_logits = dev(w, m->logits, ENTRIES * V);
    struct k_result *d_results = dev_bytes(w, m->results[0], sizeof m->results[0]);
    struct k_outcome *d_outcomes = dev_bytes(w, m->outcomes[0], sizeof m->outcomes[0]);
    struct k_result *d_drafts = dev_bytes(w, m->drafts[0], sizeof m->drafts[0]);
    struct k_draft_head some = {0};
    if (g->n_some)
        draft_head_open(w, g, m->rank, &some);
    for (uint32_t step = 0; step < STEPS; step++) {
        plan_step(w, step);
        step_begin_now(w);
        float *d_x = dev(w, g->x, ROWS * H);
        if (step % 2) {
            k_project_residual(w->s, w->m, w->b, l, d_in, d_part, d_x);
        } else {
            k_project_partial(w->s, w->b, l, d_in, d_part);
            k_reduce_residual(w->s, w->m, w->b, d_part, d_x, H);
        }
        k_download(w->s, m->x, d_x, sizeof m->x);
        k_stream_wait(w->s, 0, NULL);
        memcpy(hidden, m->x, sizeof m->x);
        if (g->poison)
            hidden[(step ? 3 : 7) * H] = NAN; /* the last row of entry 3 */
        k_upload(w->s, d_hidden, hidden, sizeof m->x);
        k_head_sample(w->s, w->p, w->m, w->b, head, d_hidden, d_results, d_outcomes, step ? NULL : d_logits,
                ENTRIES);
        if (g->n_some)
            k_draft_sample(w->s, w->p, w->m, w->b, &some, d_hidden, d_drafts);
        k_download(w->s, m->drafts[step], d_drafts, w->plan.n_samples * sizeof *d_drafts);
        k_end_step(w->s, w->p, w->b, d_results, d_outcomes);
        k_download(w->s, m->outcomes[step], d_outcomes, w->plan.n_samples * sizeof *d_outcomes);
        k_download(w->s, m->results[step], d_results, w->plan.n_samples * sizeof *d_results);
        k_stream_wait(w->s, 0, NULL); /* a fault is the last step's to report */
    }
    k_download(w->s, m->logits, d_logits, sizeof m->logits);
    struct error e = {0};
    m->fault = k_stream_wait(w->s, 0, &e);
    memcpy(m->fault_text, e.text, sizeof e.text);
    k_linear_free(l);
    k_linear_free(head);
    k_linear_free((struct k_linear *)some.head);
    world_close(w);
out:
    free(w), free(in), free(hidden);
}

static int member_of(void *members, uint32_t rank) {
    member_main((struct member *)members + rank);
    return 0;
}
static struct member *run_group(struct group *g) {
    struct k_shape shape = {.tp = g->tp, .hidden_size = H, .vocab_size = V};
    const size_t bytes = k_comm_region_bytes(&shape, 1024) + 64;
    struct member *m = shared_memory(g->tp * sizeof *m);
    g->region = shared_memory(bytes);
    for (uint32_t r = 0; r < g->tp; r++) {
        m[r].g = g;
        m[r].rank = r;
    }
    processes_run_well(g->tp, member_of, m);
    munmap(g->region, bytes);
    return m;
}
static void members_free(struct member *m, uint32_t tp) {
    munmap(m, tp * sizeof *m);
}

static struct group group_of(uint32_t tp) {
    static struct k_sampling sampling[ENTRIES + 1];
    struct rng r = {17};
    for (uint32_t i = 0; i <= ENTRIES; i++)
        sampling[i] = (struct k_sampling){.temperature = i % 3 ? 1.0f : 0,
                .top_k = i % 5 ? 0 : 20,
                .seed = rng_u32(&r),
                .top_p = i % 4 ? 1 : 0.8f,
                .repetition_penalty = i % 2 ? 1.2f : 1};
    return (struct group){.tp = tp,
            .w = random_floats(1, H * K, 1),
            .head = random_floats(2, V * H, 0.3f),
            .in = random_floats(3, ROWS * K, 1),
            .x = random_floats(4, ROWS * H, 1),
            .sampling = sampling};
}
static void group_free(struct group *g) {
    free((void *)g->w), free((void *)g->head), free((void *)g->in), free((void *)g->x);
}

/* The raw logits of a group, its ranks' columns side by side. */
static void whole_logits(const struct member *m, uint32_t row, float *ret) {
    const uint32_t tp = m->g->tp, per = (V + 63) / 64 * (64 / tp);
    for (uint32_t r = 0; r < tp; r++) {
        uint32_t first = r * per < V ? r * per : V, n = V - first < per ? V - first : per;
        memcpy(ret + first, m[r].logits + (size_t)row * n, n * sizeof *ret);
    }
}

/* Ranks of the largest group: emulated, each is minutes of a core. */
static uint32_t ranks_most(void) {
    int status = 0;
    pid_t child = fork(); /* a process that has a device open cannot be forked any more */
    assert_true(child >= 0);
    if (child == 0) {
        struct k_context *c = context(NULL, 1);
        _exit(c && strstr(k_context_describe(c), "emulation") ? 2 : RANKS_MAX);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return (uint32_t)WEXITSTATUS(status);
}
static void every_size_gives_the_bits_of_one(const struct fake *quant) {
    /* Ranks that share a card take turns on it, each for some milliseconds: eight are enough once. */
    const uint32_t tp_most = quant && ranks_most() > 4 ? 4 : ranks_most();
    struct group one = group_of(1);
    one.quant = quant;
    struct member *alone = run_group(&one);
    assert_int_equal(alone->fault, 0);
    for (uint32_t i = 1; i < ENTRIES; i++) /* the sampling really differs between entries */
        if (alone->results[0][i].id != alone->results[0][0].id)
            break;
        else
            assert_true(i + 1 < ENTRIES);
    for (uint32_t tp = 2; tp <= tp_most; tp *= 2) {
        struct group g = group_of(tp);
        g.quant = quant;
        struct member *m = run_group(&g);
        for (uint32_t r = 0; r < tp; r++) {
            assert_int_equal(m[r].fault, 0);
            assert_same_floats(m[r].x, alone->x, sizeof m->x / sizeof *m->x, "reduce");
            assert_memory_equal(m[r].results, alone->results, sizeof m->results);
        }
        for (uint32_t row = 0; row < 15; row++) {
            float a[V], b[V];
            whole_logits(m, row, a);
            whole_logits(alone, row, b);
            assert_same_floats(a, b, V, "logits");
        }
        members_free(m, tp);
        group_free(&g);
    }
    members_free(alone, 1);
    group_free(&one);
}

static void test_every_size_gives_the_bits_of_one(void **state) {
    (void)state;
    every_size_gives_the_bits_of_one(NULL);
}
static void test_a_quantised_head_at_every_size(void **state) {
    const struct fake_kind kinds[] = {{QUANT_INT4, QUANT_SCALE_BF16, 32, true, false},
            {QUANT_INT8, QUANT_SCALE_F16, 128, false, false},
            {QUANT_FP8, QUANT_SCALE_F32, 128, false, false}};
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct fake *f = fake_make((uint64_t)i, kinds[i], V, H);
        every_size_gives_the_bits_of_one(f);
        fake_free(f);
    }
}

/* Greedy samples of a part of the vocabulary are those of the whole one, where they are of that part. */
static void drafts_agree(const struct member *m) {
    const struct group *g = m->g;
    uint32_t same = 0;
    for (uint32_t step = 0, n = 0; step < STEPS; step++, n = 0) {
        for (uint32_t i = 0; i < ENTRIES; i++) {
            if (step == 0 && i % 4 == 1)
                continue; /* not sampled */
            const uint32_t whole = m->results[step][n].id, draft = m->drafts[step][n].id;
            uint32_t has[2] = {0};
            n++;
            for (uint32_t k = 0; k < g->n_some; k++) {
                has[0] += some_id(k) == whole;
                has[1] += some_id(k) == draft;
            }
            assert_int_equal(has[1], 1);
            if (g->sampling[i + 1].temperature == 0 && has[0])
                assert_int_equal(draft, whole);
            same += draft == whole;
        }
    }
    assert_true(same > 0);
}
static void test_a_head_for_drafts_at_every_size(void **state) {
    const uint32_t tp_most = ranks_most() > 4 ? 4 : ranks_most();
    struct fake *quants[] = {
            NULL, fake_make(9, (struct fake_kind){QUANT_INT8, QUANT_SCALE_BF16, 128, 0, 0}, V, H)};
    (void)state;
    for (int q = 0; q < 2; q++) {
        struct group one = group_of(1);
        one.quant = quants[q];
        one.n_some = 296;
        struct member *alone = run_group(&one);
        assert_int_equal(alone->fault, 0);
        drafts_agree(alone);
        for (uint32_t tp = 2; tp <= tp_most; tp *= 2) {
            struct group g = group_of(tp);
            g.quant = one.quant;
            g.n_some = one.n_some;
            struct member *m = run_group(&g);
            for (uint32_t r = 0; r < tp; r++) {
                assert_int_equal(m[r].fault, 0);
                assert_memory_equal(m[r].drafts, alone->drafts, sizeof m->drafts);
                assert_memory_equal(m[r].results, alone->results, sizeof m->results);
            }
            members_free(m, tp);
            group_free(&g);
        }
        members_free(alone, 1);
        group_free(&one);
        fake_free(quants[q]);
    }
}

/* Asked in a process of its own: one that has a device open cannot be forked any more. */
static bool serves(const char *isa) {
    int status = 0;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(context(isa, 1) == NULL);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status == 0;
}
static void test_every_instruction_set_gives_them_too(void **state) {
    struct group g = group_of(2);
    struct member *first = NULL;
    (void)state;
    for (int i = 0; i < N_ISAS; i++) {
        if (!serves(all_isas[i]))
            continue;
        g.isa = all_isas[i];
        struct member *m = run_group(&g);
        if (!first) {
            first = m;
            continue;
        }
        assert_memory_equal(m->results, first->results, sizeof m->results);
        assert_same_floats(m->x, first->x, ROWS * H, all_isas[i]);
        members_free(m, g.tp);
    }
    members_free(first, g.tp);
    group_free(&g);
}

static void test_a_bad_logit_ends_that_sample_only(void **state) {
    struct group one = group_of(1);
    struct member *good = run_group(&one);
    const uint32_t tp_most = ranks_most();
    (void)state;
    for (uint32_t tp = 1; tp <= 4 && tp <= tp_most; tp *= 2) {
        struct group g = group_of(tp);
        g.poison = true;
        struct member *m = run_group(&g);
        for (uint32_t r = 0; r < tp; r++) {
            assert_int_equal(m[r].fault, 0);
            for (uint32_t step = 0; step < STEPS; step++) {
                for (uint32_t i = 0; i < ENTRIES; i++) {
                    struct k_result expected = good->results[step][i];
                    if (i == (step ? 3 : 2)) /* step 0 does not sample entry 1 */
                        expected = (struct k_result){.status = K_RESULT_NOT_FINITE};
                    assert_memory_equal(&m[r].results[step][i], &expected, sizeof expected);
                    if (step == 0 && i >= 30)
                        continue; /* so many are sampled there */
                    assert_int_equal(m[r].outcomes[step][i].status, expected.status);
                    assert_int_equal(m[r].outcomes[step][i].n_samples, expected.status == K_RESULT_OK);
                    assert_int_equal(m[r].outcomes[step][i].n_accepted, 0);
                }
            }
        }
        members_free(m, tp);
        group_free(&g);
    }
    members_free(good, 1);
    group_free(&one);
}

struct waiter {
    struct k_comm *m;
    struct k_context *c;
    int r;
};
static void *wait_in_reduce(void *arg) {
    struct waiter *a = arg;
    struct k_stream *s = NULL;
    struct k_batch *b = NULL;
    struct k_plan plan = {.n_entries = 0, .n_rows = 1};
    float *part = k_alloc(a->c, H * sizeof *part), *x = k_alloc(a->c, H * sizeof *x);
    OK(k_stream_create(a->c, &s, e));
    OK(k_batch_create(a->c, 1, 1, &b, e));
    k_batch_upload(s, b, &plan, (struct k_entry[1]){{0}}, NULL, 0, NULL, 0);
    k_reduce_residual(s, a->m, b, part, x, H);
    a->r = k_stream_wait(s, 0, NULL);
    k_batch_free(b);
    k_stream_free(s);
    k_free(a->c, part), k_free(a->c, x);
    return NULL;
}

static void test_abort_frees_ranks_that_wait_or_come_later(void **state) {
    struct k_shape shape = {.tp = 2, .hidden_size = H, .vocab_size = V, .vocab_rows = V / 2};
    size_t bytes = k_comm_region_bytes(&shape, 4);
    void *region = calloc(1, bytes);
    struct k_context *c = context(NULL, 1);
    struct waiter w[2] = {{.c = c}, {.c = c}};
    pthread_t t;
    (void)state;
    OK(k_comm_create(c, &shape, 4, region, bytes, &w[0].m, e));
    shape.rank = 1;
    OK(k_comm_create(c, &shape, 4, region, bytes, &w[1].m, e));
    assert_int_equal(pthread_create(&t, NULL, wait_in_reduce, &w[0]), 0);
    k_comm_abort(w[1].m);
    pthread_join(t, NULL);
    assert_int_equal(w[0].r, -ECANCELED);
    wait_in_reduce(&w[1]);
    assert_int_equal(w[1].r, -ECANCELED);
    k_comm_free(w[0].m);
    k_comm_free(w[1].m);
    k_context_free(c);
    free(region);
}

static void test_a_region_that_does_not_fit_is_refused(void **state) {
    struct k_shape shape = {.tp = 2, .hidden_size = H, .vocab_size = V, .vocab_rows = V / 2};
    size_t bytes = k_comm_region_bytes(&shape, 4);
    void *region = calloc(1, bytes);
    struct k_comm *m = NULL, *other = NULL;
    struct error e;
    struct k_context *c = context(NULL, 1);
    (void)state;
    assert_int_equal(k_comm_create(c, &shape, 4, region, bytes - 1, &m, &e), -EINVAL);
    assert_int_equal(k_comm_create(c, &shape, 4, NULL, bytes, &m, &e), -EINVAL);
    assert_int_equal(k_comm_create(c, &shape, 4, region, bytes, &m, &e), 0);
    shape.vocab_size--; /* another model than the first rank's */
    assert_int_equal(k_comm_create(c, &shape, 4, region, bytes, &other, &e), -EINVAL);
    shape.tp = 3;
    assert_int_equal(k_comm_create(c, &shape, 4, region, bytes, &other, &e), -EINVAL);
    k_comm_free(m);
    k_context_free(c);
    free(region);
}

/* --- sums by every way --- */

enum { SUM_COLUMNS = 1000, SUM_ROWS = 300, SUM_SIZES = 5 };
/* Of the plan and of the bound; those of all rows are large, and the last ones of more than two ranks. */
static const uint32_t sum_rows[SUM_SIZES][2] = {
        {SUM_ROWS, SUM_ROWS}, {1, 1}, {37, SUM_ROWS}, {SUM_ROWS - 1, SUM_ROWS}, {61, 190}};
enum { SUMS_RIGHT, SUMS_WRONG, SUMS_NO_WAY };

static float sum_part(uint32_t rank, uint32_t size, uint32_t i) {
    struct rng r = {(uint64_t)i * 64 + size * 8 + rank};
    return ((float)(rng_u32(&r) >> 8) - 8388608.0f) * (rng_u32(&r) % 2 ? 1e-3f : 7.0f);
}
static float sum_of(uint32_t tp, uint32_t size, uint32_t i) {
    float sum[RANKS_MAX];
    for (uint32_t r = 0; r < tp; r++)
        sum[r] = sum_part(r, size, i);
    for (uint32_t d = 1; d < tp; d *= 2)
        for (uint32_t r = 0; r < tp; r += 2 * d)
            sum[r] = sum[r] + sum[r + d];
    return sum[0];
}
static int sums_of(struct world *w, struct k_graph **ret_graph) {
    float *part = calloc(SUM_ROWS * SUM_COLUMNS, sizeof *part),
          *x = calloc(SUM_ROWS * SUM_COLUMNS, sizeof *x), *d_part = room(w, SUM_ROWS * SUM_COLUMNS),
          *d_x = room(w, SUM_ROWS * SUM_COLUMNS);
    int wrong = 0;
    struct error e;
    for (uint32_t size = 0; size < SUM_SIZES && !wrong; size++) {
        const uint32_t n = sum_rows[size][0] * SUM_COLUMNS;
        const struct k_bounds bounds = {.rows = sum_rows[size][1], .entries = 1, .context = 1};
        for (uint32_t i = 0; i < SUM_ROWS * SUM_COLUMNS; i++)
            part[i] = sum_part(w->shape.rank, size, i);
        memset(x, 0, SUM_ROWS * SUM_COLUMNS * sizeof *x);
        k_upload(w->s, d_part, part, SUM_ROWS * SUM_COLUMNS * sizeof *part);
        k_upload(w->s, d_x, x, SUM_ROWS * SUM_COLUMNS * sizeof *x);
        k_batch_bounds(w->b, &bounds);
        k_batch_upload(w->s, w->b, &(struct k_plan){.n_rows = sum_rows[size][0]}, (struct k_entry[1]){{0}},
                NULL, 0, NULL, 0);
        wrong = k_capture_begin(w->s, &e);
        k_reduce_residual(w->s, w->m, w->b, d_part, d_x, SUM_COLUMNS);
        wrong = wrong || k_capture_end(w->s, ret_graph, &e);
        k_graph_launch(w->s, *ret_graph);
        k_download(w->s, x, d_x, SUM_ROWS * SUM_COLUMNS * sizeof *x);
        wrong = wrong || k_stream_wait(w->s, 0, &e);
        *ret_graph = k_graph_free(*ret_graph);
        for (uint32_t i = 0; i < SUM_ROWS * SUM_COLUMNS && !wrong; i++)
            wrong = x[i] != (i < n ? sum_of(w->shape.tp, size, i) : 0);
    }
    free(part), free(x);
    return wrong ? SUMS_WRONG : SUMS_RIGHT;
}
/* A rank of a group of sums that has met, or not: then *ret_e says why. */
static bool sums_open(uint32_t tp, uint32_t rank, enum k_all_reduce way, void *region, struct world *ret,
        bool *ret_met, struct error *ret_e) {
    const struct k_shape shape = {.tp = tp,
            .rank = rank,
            .hidden_size = SUM_COLUMNS,
            .vocab_size = 64,
            .vocab_first = 64 / tp * rank,
            .vocab_rows = 64 / tp};
    const struct k_pool_options o = {.slots = 1, .pages = 1, .pages_per_slot = 1};
    const struct k_context_options co = {.device = device_of(rank), .threads = 1, .all_reduce = way};
    struct k_context *c = NULL;
    if (k_context_create(&co, &c, ret_e) < 0 || !world_open_in(ret, &shape, &o, c, region))
        return false;
    *ret_met = k_comm_meet(ret->m, ret_e) == 0;
    return true;
}
static int sums_rank(uint32_t tp, uint32_t rank, enum k_all_reduce way, void *region) {
    struct k_graph *g = NULL;
    struct world w;
    struct error e;
    bool met = false;
    if (!sums_open(tp, rank, way, region, &w, &met, &e))
        return SUMS_WRONG;
    if (rank == 0)
        print_message("tp %u, way %d: %s\n", tp, way, met ? k_comm_describe(w.m) : e.text);
    const int r = met                                                      ? sums_of(&w, &g)
                  : way == K_ALL_REDUCE_AUTO || way == K_ALL_REDUCE_STAGED ? SUMS_WRONG
                                                                           : SUMS_NO_WAY;
    world_close(&w);
    return r;
}
/* Rank 0 waits for a rank that comes no more, but stops the group. */
static int stopped_rank(uint32_t tp, uint32_t rank, enum k_all_reduce way, void *region) {
    struct world w;
    struct error e;
    bool met = false;
    if (!sums_open(tp, rank, way, region, &w, &met, &e))
        return SUMS_WRONG;
    int r = met ? SUMS_RIGHT : SUMS_NO_WAY;
    if (met && rank > 0)
        k_comm_abort(w.m);
    if (met && rank == 0) {
        float *d_part = room(&w, SUM_ROWS * SUM_COLUMNS), *d_x = room(&w, SUM_ROWS * SUM_COLUMNS);
        const struct k_bounds bounds = {.rows = SUM_ROWS, .entries = 1, .context = 1};
        k_batch_bounds(w.b, &bounds);
        k_batch_upload(
                w.s, w.b, &(struct k_plan){.n_rows = SUM_ROWS}, (struct k_entry[1]){{0}}, NULL, 0, NULL, 0);
        k_reduce_residual(w.s, w.m, w.b, d_part, d_x, SUM_COLUMNS);
        r = k_stream_wait(w.s, 0, &e) == -ECANCELED ? SUMS_RIGHT : SUMS_WRONG;
    }
    world_close(&w);
    return r;
}

typedef int (*rank_fn)(uint32_t tp, uint32_t rank, enum k_all_reduce way, void *region);
struct sums { /* a group of ranks that add */
    rank_fn rank;
    uint32_t tp;
    enum k_all_reduce way;
    const char *machine;
    void *region;
};
static int rank_of_sums(void *sums, uint32_t rank) {
    const struct sums *g = sums;
    char words[128], *rest = words;
    snprintf(words, sizeof words, "%s", g->machine ? g->machine : "");
    for (char *word; (word = strsep(&rest, " "));) {
        char *value = strchr(word, '=');
        if (value)
            *value = '\0', setenv(word, value + 1, 1);
    }
    return g->rank(g->tp, rank, g->way, g->region);
}
/* `machine`: words of the environment that tell an emulated machine what it is, or NULL. */
static void ranks_run(rank_fn rank, uint32_t tp, enum k_all_reduce way, const char *machine) {
    const struct k_shape shape = {.tp = tp, .hidden_size = SUM_COLUMNS, .vocab_size = 64};
    const size_t bytes = k_comm_region_bytes(&shape, 1024);
    struct sums g = {rank, tp, way, machine, shared_memory(bytes)};
    int codes[RANKS_MAX];
    processes_run(tp, rank_of_sums, &g, codes);
    for (uint32_t r = 0; r < tp; r++)
        assert_int_not_equal(codes[r], SUMS_WRONG);
    munmap(g.region, bytes);
}
static void sums_by(uint32_t tp, enum k_all_reduce way, const char *machine) {
    ranks_run(sums_rank, tp, way, machine);
}
static void test_sums_by_every_way(void **state) {
    (void)state;
    for (uint32_t tp = 2; tp <= 4; tp *= 2) {
        sums_by(tp, K_ALL_REDUCE_AUTO, NULL);
        sums_by(tp, K_ALL_REDUCE_NCCL, NULL);
        sums_by(tp, K_ALL_REDUCE_ONESHOT, NULL);
        sums_by(tp, K_ALL_REDUCE_STAGED, NULL);
    }
}
static void test_who_stops_a_group_ends_its_sums(void **state) {
    (void)state;
    ranks_run(stopped_rank, 2, K_ALL_REDUCE_AUTO, NULL);
    ranks_run(stopped_rank, 2, K_ALL_REDUCE_NCCL, NULL);
}
/* Where devices do not reach each other, or only seem to, where processes share memory in no way or by CUDA IPC only,
 * and where there is no NCCL. */
static void test_ranks_find_a_way_that_works(void **state) {
    (void)state;
    sums_by(2, K_ALL_REDUCE_AUTO, "CUDA_EMU_PEERS=0");
    sums_by(2, K_ALL_REDUCE_ONESHOT, "CUDA_EMU_PEERS=0");
    sums_by(2, K_ALL_REDUCE_AUTO, "CUDA_EMU_PEERS=2");
    sums_by(4, K_ALL_REDUCE_AUTO, "CUDA_EMU_SHARED=0");
    sums_by(2, K_ALL_REDUCE_AUTO, "CUDA_EMU_SHARED=0 CUDA_EMU_PEERS=2");
    sums_by(2, K_ALL_REDUCE_AUTO, "CUDA_EMU_SHARED=0 CUDA_EMU_IPC=0");
    sums_by(2, K_ALL_REDUCE_NCCL, "CUDA_EMU_NO_NCCL=1");
}

/* Two processes, more rows than an area holds, so that the sum goes in pieces. */
static float process_rank(uint32_t rank, void *region, size_t bytes) {
    enum { WIDE = 65536, MANY = 9, FEW = 300 };
    struct k_shape shape = {.tp = 2, .rank = rank, .hidden_size = WIDE, .vocab_size = 10, .vocab_rows = 5};
    struct k_context *c = context_of_rank(NULL, rank);
    struct k_stream *s = NULL;
    struct k_batch *b = NULL;
    struct k_comm *m = NULL;
    struct k_plan plan = {.n_rows = MANY};
    float *part = calloc(MANY * WIDE, sizeof *part), *x = calloc(MANY * WIDE, sizeof *x), wrong = 0;
    if (!c || k_stream_create(c, &s, NULL) || k_batch_create(c, 1, MANY, &b, NULL) ||
            k_comm_create(c, &shape, MANY, region, bytes, &m, NULL))
        return 1;
    for (uint32_t i = 0; i < MANY * WIDE; i++) {
        part[i] = (float)(i % 1000 + rank * 10000);
        x[i] = 1;
    }
    k_batch_upload(s, b, &plan, (struct k_entry[1]){{0}}, NULL, 0, NULL, 0);
    const size_t all = MANY * WIDE * sizeof *x;
    float *d_part = k_alloc(c, all), *d_x = k_alloc(c, all);
    k_upload(s, d_part, part, all);
    k_upload(s, d_x, x, all);
    for (int round = 0; round < 5; round++)
        k_reduce_residual(s, m, b, d_part, d_x, WIDE);
    /* Few of the rows that there may be: behind their exchange come empty ones, in which nobody is waited for. */
    float *d_few = k_alloc(c, all);
    k_batch_upload(s, b, &(struct k_plan){.n_rows = 1}, (struct k_entry[1]){{0}}, NULL, 0, NULL, 0);
    for (int round = 0; round < FEW; round++)
        k_reduce_residual(s, m, b, d_part, d_few, WIDE);
    k_download(s, x, d_x, all);
    k_download(s, part, d_few, WIDE * sizeof *part);
    wrong += (float)(k_stream_wait(s, 0, NULL) != 0);
    for (uint32_t i = 0; i < WIDE; i++)
        wrong += part[i] != FEW * (float)(2 * (i % 1000) + 10000);
    for (uint32_t i = 0; i < MANY * WIDE; i++)
        wrong += x[i] != 1 + 5 * (float)(2 * (i % 1000) + 10000);
    k_free(c, d_part), k_free(c, d_x), k_free(c, d_few);
    k_comm_free(m);
    k_batch_free(b);
    k_stream_free(s);
    k_context_free(c);
    free(part), free(x);
    return wrong;
}
static void test_ranks_in_two_processes(void **state) {
    struct k_shape shape = {.tp = 2, .hidden_size = 65536, .vocab_size = 10, .vocab_rows = 5};
    size_t bytes = k_comm_region_bytes(&shape, 9);
    int status = 0;
    (void)state;
    void *region = shared_memory(bytes);
    pid_t child = fork();
    if (child == 0)
        _exit(process_rank(1, region, bytes) != 0);
    assert_true(process_rank(0, region, bytes) == 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    munmap(region, bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_every_size_gives_the_bits_of_one),
            cmocka_unit_test(test_a_quantised_head_at_every_size),
            cmocka_unit_test(test_a_head_for_drafts_at_every_size),
            cmocka_unit_test(test_every_instruction_set_gives_them_too),
            cmocka_unit_test(test_a_bad_logit_ends_that_sample_only),
            cmocka_unit_test(test_sums_by_every_way),
            cmocka_unit_test(test_ranks_find_a_way_that_works),
            cmocka_unit_test(test_who_stops_a_group_ends_its_sums),
            cmocka_unit_test(test_ranks_in_two_processes), /* from here on this process has devices open */
            cmocka_unit_test(test_abort_frees_ranks_that_wait_or_come_later),
            cmocka_unit_test(test_a_region_that_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
