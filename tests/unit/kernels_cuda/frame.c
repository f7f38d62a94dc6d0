/* A step's frame on the CUDA library against the CPU's: random sequences of slots opened, granted and closed, memory
 * operations and steps, after which everything that a pool and a batch hold is the same, to the bit. */
#include "tests/unit/kernels_cuda/sides.h"

#include "kernels/cpu/internal.h"
#include "kernels/cuda/views.h"

enum { SLOTS = 5, PAGES = 9, TABLE = 7, UNITS = 3, ROWS = 600, ENTRIES = 5, SAMPLES = 40, ROUNDS = 20 };

/* Sizes that are no multiples of what a kernel works on at once; an odd vocabulary, so that counts share words. */
static struct k_shape shape = {.tp = 1,
        .hidden_size = 531,
        .vocab_size = 1091,
        .vocab_rows = 1091,
        .q_heads = 2,
        .kv_heads = 1,
        .head_dim = 24,
        .rotary_dim = 8,
        .n_attention_layers = 3,
        .gdn_k_heads = 2,
        .gdn_v_heads = 4,
        .gdn_k_dim = 12,
        .gdn_v_dim = 20,
        .conv_kernel = 4,
        .n_gdn_layers = 2,
        .rms_eps = 1e-6f,
        .rope_theta = 1e6};
static struct k_pool_options options = {.slots = SLOTS,
        .pages = PAGES,
        .pages_per_slot = TABLE,
        .slot_units = UNITS,
        .page_units = UNITS,
        .kv_dtype = K_BF16};

struct half { /* one library's */
    struct library k;
    struct k_context *c;
    struct k_stream *s;
    struct k_pool *p;
    struct k_batch *b, *drafts;
    struct k_table *table;
    float *x, *y, *mtp, *d_hidden; /* [ROWS][H], the same, [ROWS][2H], [ENTRIES][H] */
    struct k_result *results;
    struct k_outcome *outcomes;
    float *norm;
};
static struct half cpu, cuda;
/* Over the emulation: what the stream does (a bit for it), what leaves (1) and what comes (2) beside it runs as early
 * as it can, not as late. */
static uint32_t eager_stream, eager_units;

static void half_open(struct half *h, struct library k) {
    const struct k_context_options o = {.threads = 1};
    const size_t v = shape.vocab_size, n = shape.hidden_size;
    float *table = random_floats(9, v * n, 1), *norm = random_floats(10, n, 1);
    *h = (struct half){.k = k};
    OK(k.k_context_create(&o, &h->c, e));
    if (k.emu_eager)
        k.emu_eager(eager_stream);
    OK(k.k_stream_create(h->c, &h->s, e));
    if (k.emu_eager)
        k.emu_eager(eager_units);
    OK(k.k_pool_create(h->c, &shape, &options, &h->p, e));
    if (k.emu_eager)
        k.emu_eager(0);
    OK(k.k_batch_create(h->c, ENTRIES, ROWS, &h->b, e));
    OK(k.k_batch_create(h->c, ENTRIES, ENTRIES, &h->drafts, e));
    OK(k.k_table_load(h->c, table, K_F32, shape.vocab_size, shape.hidden_size, true, &h->table, e));
    h->x = k.k_alloc(h->c, ROWS * n * sizeof(float));
    h->y = k.k_alloc(h->c, ROWS * n * sizeof(float));
    h->mtp = k.k_alloc(h->c, ROWS * 2 * n * sizeof(float));
    h->d_hidden = k.k_alloc(h->c, ENTRIES * n * sizeof(float));
    h->results = k.k_alloc(h->c, SAMPLES * sizeof *h->results);
    h->outcomes = k.k_alloc(h->c, ENTRIES * sizeof *h->outcomes);
    h->norm = k.k_alloc(h->c, n * sizeof(float));
    k.k_upload(h->s, h->norm, norm, n * sizeof(float));
    OK(k.k_stream_wait(h->s, 0, e));
    free(norm);
    if (h == &cuda)
        free(table); /* kernels/cpu uses it where it lies */
}
static void half_close(struct half *h) {
    void *const blocks[] = {h->x, h->y, h->mtp, h->d_hidden, h->results, h->outcomes, h->norm};
    void *table = h == &cpu ? (void *)h->table->data : NULL;
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        h->k.k_free(h->c, blocks[i]);
    h->k.k_table_free(h->table);
    h->k.k_batch_free(h->b);
    h->k.k_batch_free(h->drafts);
    h->k.k_pool_free(h->p);
    h->k.k_stream_free(h->s);
    h->k.k_context_free(h->c);
    free(table);
}

/* --- what both hold --- */

static const struct pool_view *pool_of_cuda(void) {
    return (const struct pool_view *)cuda.p; /* its first member */
}
static void assert_same(const void *d_got, const void *want, size_t bytes, const char *what) {
    uint8_t *got = malloc(bytes + 1);
    cuda.k.k_download(cuda.s, got, d_got, bytes);
    OK(cuda.k.k_stream_wait(cuda.s, 0, e));
    for (size_t i = 0; i < bytes; i++)
        if (got[i] != ((const uint8_t *)want)[i])
            fail_msg("%s: byte %zu of %zu is %u, expected %u", what, i, bytes, got[i],
                    ((const uint8_t *)want)[i]);
    free(got);
}

static void assert_same_slots(void) {
    struct slot got[SLOTS + 1];
    cuda.k.k_download(cuda.s, got, pool_of_cuda()->d_slots, sizeof got);
    OK(cuda.k.k_stream_wait(cuda.s, 0, e));
    for (uint32_t i = 0; i <= SLOTS; i++) {
        struct slot want = cpu.p->slots[i];
        const struct k_sampling *s = &got[i].sampling;
        if (want.open) {
            assert_ptr_equal(s->bias_ids, pool_of_cuda()->d_bias_ids + i * LOGIT_BIAS_MAX);
            assert_ptr_equal(s->bias, pool_of_cuda()->d_bias + i * LOGIT_BIAS_MAX);
            assert_ptr_equal(s->suppress, pool_of_cuda()->d_suppress + i * SUPPRESS_MAX);
        }
        want.sampling.bias_ids = s->bias_ids;
        want.sampling.bias = s->bias;
        want.sampling.suppress = s->suppress;
        assert_memory_equal(&got[i], &want, sizeof want);
    }
}
static void assert_same_pools(void) {
    const struct pool_view *v = pool_of_cuda();
    const struct pool_layout *l = &v->layout;
    const size_t slots = SLOTS + 1;
    assert_same_slots();
    assert_same(v->d_tables, cpu.p->tables, slots * TABLE * 4, "page tables");
    assert_same(v->d_counts, cpu.p->counts, slots * shape.vocab_size * 2, "counts");
    assert_same(v->d_hidden, cpu.p->hidden, slots * shape.hidden_size * 4, "hidden rows");
    assert_same(v->d_gdn, cpu.p->gdn, slots * l->gdn_slot_floats * 4, "states");
    assert_same(v->d_kv, cpu.p->kv, (PAGES + 1) * shape.n_attention_layers * l->page_bytes, "pages");
    assert_same(v->d_bias_ids, cpu.p->bias_ids, slots * LOGIT_BIAS_MAX * 4, "ids of biases");
    assert_same(v->d_bias, cpu.p->bias, slots * LOGIT_BIAS_MAX * 4, "biases");
    assert_same(v->d_suppress, cpu.p->suppress, slots * SUPPRESS_MAX * 4, "suppressed ids");
    assert_same(v->d_inv_freq, cpu.p->inv_freq, shape.rotary_dim / 2 * 4, "frequencies");
    assert_memory_equal(v->page_units, cpu.p->page_units, UNITS * l->page_unit_bytes);
}
static void assert_same_batch(const struct k_batch *d_b, const struct k_batch *b, uint32_t rows) {
    const struct batch_view *v = (const struct batch_view *)d_b; /* its first member */
    assert_same(v->d_plan, &b->plan, sizeof b->plan, "plan");
    assert_same(v->d_entries, b->entries, b->plan.n_entries * sizeof *b->entries, "entries");
    assert_same(v->d_row_id, b->row_id, rows * 4, "ids");
    assert_same(v->d_row_pos, b->row_pos, rows * 4, "positions");
    assert_same(v->d_row_entry, b->row_entry, rows * 4, "entries of rows");
    assert_same(v->d_row_rope, b->row_rope, rows * 12, "rope positions");
}
static void assert_same_batches(uint32_t rows) {
    const uint32_t drafts = options.drafts_max ? cpu.drafts->plan.n_rows : 0;
    assert_same_batch(cuda.b, cpu.b, rows);
    if (options.drafts_max)
        assert_same_batch(cuda.drafts, cpu.drafts, drafts);
    assert_same(cuda.d_hidden, cpu.d_hidden, drafts * shape.hidden_size * 4, "hidden rows of drafts");
    assert_same(cuda.x, cpu.x, rows * shape.hidden_size * 4, "embeddings");
    assert_same(cuda.y, cpu.y, rows * shape.hidden_size * 4, "final norm");
    assert_same(cuda.mtp, cpu.mtp, rows * 2 * shape.hidden_size * 4, "MTP input");
}

/* Bits that no operation would make. */
static void fill_pools(uint64_t seed) {
    const struct pool_view *v = pool_of_cuda();
    const struct pool_layout *l = &v->layout;
    const struct {
        void *d_to, *to;
        size_t floats;
    } parts[] = {{v->d_gdn, cpu.p->gdn, (SLOTS + 1) * l->gdn_slot_floats},
            {v->d_hidden, cpu.p->hidden, (SLOTS + 1ull) * shape.hidden_size},
            {v->d_kv, cpu.p->kv, (PAGES + 1) * shape.n_attention_layers * l->page_bytes / 4}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        float *from = random_floats(seed + i, parts[i].floats, 1);
        cuda.k.k_upload(cuda.s, parts[i].d_to, from, parts[i].floats * 4);
        OK(cuda.k.k_stream_wait(cuda.s, 0, e));
        memcpy(parts[i].to, from, parts[i].floats * 4);
        free(from);
    }
}

/* --- what happens to both --- */

/* The same call, with the objects of each. */
#define BOTH(call, ...)                                                                                      \
    do {                                                                                                     \
        cpu.k.call(cpu.s, cpu.p, __VA_ARGS__);                                                               \
        cuda.k.call(cuda.s, cuda.p, __VA_ARGS__);                                                            \
    } while (0)

static void open_slot(struct rng *r, uint32_t slot) {
    uint32_t ids[LOGIT_BIAS_MAX], suppress[SUPPRESS_MAX];
    float bias[LOGIT_BIAS_MAX];
    struct k_sampling s = {.temperature = rng_float(r, 1),
            .top_k = rng_u32(r),
            .top_p = 1,
            .repetition_penalty = rng_float(r, 2),
            .seed = (uint64_t)rng_u32(r) << 40,
            .first_sample_index = rng_u32(r) % 9,
            .n_bias = rng_u32(r) % 2 ? LOGIT_BIAS_MAX - rng_u32(r) % 30 : 0,
            .n_suppress = rng_u32(r) % (SUPPRESS_MAX + 1),
            .bias_ids = ids,
            .bias = bias,
            .suppress = suppress};
    for (uint32_t i = 0; i < LOGIT_BIAS_MAX; i++) {
        ids[i] = rng_u32(r) % shape.vocab_size;
        bias[i] = rng_float(r, 9);
    }
    for (uint32_t i = 0; i < SUPPRESS_MAX; i++)
        suppress[i] = rng_u32(r) % shape.vocab_size;
    BOTH(k_slot_open, slot, &s);
    memset(ids, 0xff, sizeof ids); /* copied when the call returned */
    memset(bias, 0xff, sizeof bias);
    memset(suppress, 0xff, sizeof suppress);
}

static void grant(struct rng *r, uint32_t slot) {
    uint32_t pages[TABLE];
    const uint32_t first = rng_u32(r) % TABLE, n = rng_u32(r) % (TABLE - first + 1);
    for (uint32_t i = 0; i < n; i++)
        pages[i] = rng_u32(r) % (PAGES + 1);
    BOTH(k_slot_grant, slot, first, n, pages);
    memset(pages, 0xff, sizeof pages);
}

static void memory(struct rng *r) {
    struct k_memory_op ops[6];
    const uint32_t n = 1 + rng_u32(r) % 6;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t slot[2] = {rng_u32(r) % (SLOTS + 1), rng_u32(r) % (SLOTS + 1)},
                       page[2] = {rng_u32(r) % (PAGES + 1), rng_u32(r) % (PAGES + 1)},
                       unit = rng_u32(r) % UNITS;
        ops[i] = (const struct k_memory_op[]){{K_MEM_ZERO_SLOT, slot[0], 0},
                {K_MEM_COPY_SLOT, slot[0], slot[1]}, {K_MEM_COPY_PAGE, page[0], page[1]},
                {K_MEM_SNAPSHOT_SLOT, slot[0], unit}, {K_MEM_RESTORE_SLOT, unit, slot[0]},
                {K_MEM_PAGE_OUT, page[0], unit}, {K_MEM_PAGE_IN, unit, page[0]}}[rng_u32(r) % 7];
    }
    BOTH(k_memory, ops, n);
    memset(ops, 0xff, sizeof ops);
}

/* What is in the host's units, also after the host has written there, shows in slots. */
static void look_at_units(void) {
    const size_t n = pool_of_cuda()->layout.slot_unit_bytes;
    OK(cuda.k.k_stream_wait(cuda.s, 0, e));
    for (uint32_t unit = 0; unit < UNITS; unit++)
        assert_memory_equal(cuda.k.k_pool_slot_unit(cuda.p, unit), cpu.k.k_pool_slot_unit(cpu.p, unit), n);
    memcpy(cuda.k.k_pool_slot_unit(cuda.p, 0), cuda.k.k_pool_slot_unit(cuda.p, 1), n);
    memcpy(cpu.k.k_pool_slot_unit(cpu.p, 0), cpu.k.k_pool_slot_unit(cpu.p, 1), n);
    for (uint32_t unit = 0; unit < UNITS; unit++) {
        const struct k_memory_op op = {K_MEM_RESTORE_SLOT, unit, unit};
        BOTH(k_memory, &op, 1);
    }
}

struct step {
    struct k_plan plan;
    struct k_entry entries[ENTRIES];
    uint32_t ids[ROWS], rope[3 * ROWS], n_ids, n_rope;
    struct k_result results[SAMPLES];
    struct k_outcome outcomes[ENTRIES];
};

/* An entry that goes on with drafts, of the plan or those that lie in its slot, and what is said of them. */
static void entry_speculates(struct rng *r, struct step *t, struct k_entry *e) {
    const uint32_t n = rng_u32(r) % (options.drafts_max + 1);
    e->n_rows = 1 + n;
    if (n > cpu.p->slots[e->slot].n_drafts || rng_u32(r) % 2) {
        e->drafts_at = t->n_ids;
        for (uint32_t i = 0; i < n; i++)
            t->ids[t->n_ids++] = rng_u32(r) % shape.vocab_size;
    }
}
/* Up to one entry a slot; few different ids, so that many rows of an entry have one. */
static struct step random_step(struct rng *r) {
    struct step t = {0};
    const uint32_t ids = rng_u32(r) % 2 ? 3 : shape.vocab_size,
                   base = rng_u32(r) % (shape.vocab_size - ids + 1);
    for (uint32_t slot = 1; slot <= SLOTS; slot++) {
        struct k_entry e = {.slot = slot,
                .kind = rng_u32(r) % 3 == 0 ? K_ENTRY_CONTINUE : K_ENTRY_PROMPT,
                .flags = (rng_u32(r) % 2 ? K_ENTRY_SAMPLE : 0) | (rng_u32(r) % 3 ? 0 : K_ENTRY_GENERATED),
                .row_begin = t.plan.n_rows,
                .first_pos = rng_u32(r) % 1000,
                .ids_at = t.n_ids,
                .id_after = rng_u32(r) % 2 ? UINT32_MAX : rng_u32(r) % shape.vocab_size,
                .rope_at = rng_u32(r) % 2 ? UINT32_MAX : t.n_rope,
                .drafts_at = UINT32_MAX,
                .sample_at = t.plan.n_samples,
                .outcome_at = t.plan.n_outcomes};
        if (rng_u32(r) % 4 == 0)
            continue;
        e.n_rows = e.kind == K_ENTRY_CONTINUE ? 1 : 1 + rng_u32(r) % (rng_u32(r) % 2 ? 4 : ROWS / ENTRIES);
        if (e.kind == K_ENTRY_CONTINUE && options.drafts_max)
            entry_speculates(r, &t, &e);
        for (uint32_t i = 0; e.kind == K_ENTRY_PROMPT && i < e.n_rows; i++)
            t.ids[t.n_ids++] = base + rng_u32(r) % ids;
        for (uint32_t i = 0; e.rope_at != UINT32_MAX && i < 3 * e.n_rows; i++)
            t.rope[t.n_rope++] = rng_u32(r);
        if (e.flags & K_ENTRY_SAMPLE) {
            const uint32_t n = e.kind == K_ENTRY_CONTINUE ? e.n_rows : 1, accepted = rng_u32(r) % n;
            for (uint32_t i = 0; i < n; i++)
                t.results[t.plan.n_samples++].id = rng_u32(r) % shape.vocab_size;
            t.outcomes[t.plan.n_outcomes++] =
                    (struct k_outcome){.n_samples = accepted + rng_u32(r) % 2, .n_accepted = accepted};
            e.n_draft_next = options.drafts_max ? rng_u32(r) % (options.drafts_max + 1) : 0;
        }
        t.entries[t.plan.n_entries++] = e;
        t.plan.n_rows += e.n_rows;
    }
    return t;
}
static void run_step(struct half *h, const struct step *t, bool sampled) {
    const struct library *k = &h->k;
    const struct k_result *results = sampled ? h->results : NULL;
    const struct k_outcome *outcomes = sampled ? h->outcomes : NULL;
    k->k_upload(h->s, h->results, t->results, sizeof t->results);
    k->k_upload(h->s, h->outcomes, t->outcomes, sizeof t->outcomes);
    k->k_batch_upload(h->s, h->b, &t->plan, t->entries, t->ids, t->n_ids, t->rope, t->n_rope);
    k->k_begin_step(h->s, h->p, h->b);
    k->k_embed(h->s, h->b, h->table, h->x);
    k->k_final_norm(h->s, h->p, h->b, h->x, h->norm, 1e-6f, h->y, /* keep= */ true);
    k->k_mtp_input(h->s, h->p, h->b, h->table, h->y, h->norm, h->norm, 1e-6f, results, h->mtp);
    k->k_end_step(h->s, h->p, h->b, results, outcomes);
    if (options.drafts_max && sampled) {
        k->k_draft_begin(h->s, h->p, h->b, h->outcomes, h->y, h->drafts, h->d_hidden);
        k->k_draft_take(h->s, h->p, h->drafts, h->results);
        k->k_draft_take(h->s, h->p, h->drafts, h->results + ENTRIES);
    }
    OK(k->k_stream_wait(h->s, 0, e));
}
static void step(struct rng *r) {
    const struct step t = random_step(r);
    const struct k_bounds tight = {t.plan.n_rows, t.plan.n_entries, UINT32_MAX};
    const bool sampled = rng_u32(r) % 4 != 0;
    cuda.k.k_batch_bounds(cuda.b, rng_u32(r) % 2 ? &tight : NULL);
    run_step(&cpu, &t, sampled);
    run_step(&cuda, &t, sampled);
    assert_same_batches(t.plan.n_rows);
}

static void assert_same_reading(void) {
    const struct k_shape *h = &shape;
    const size_t n = (size_t)h->gdn_v_heads * h->gdn_k_dim * h->gdn_v_dim, m = 3ull * gdn_channels(h);
    float *state[2] = {random_floats(1, n, 1), random_floats(2, n, 1)},
          *conv[2] = {random_floats(1, m, 1), random_floats(2, m, 1)};
    for (uint32_t slot = 0; slot <= SLOTS; slot++)
        for (uint32_t layer = 0; layer < shape.n_gdn_layers; layer++) {
            assert_int_equal(cpu.k.k_pool_read_gdn(cpu.s, cpu.p, slot, layer, state[0], conv[0]), 0);
            assert_int_equal(cuda.k.k_pool_read_gdn(cuda.s, cuda.p, slot, layer, state[1], conv[1]), 0);
            assert_same_floats(state[1], state[0], n, "a state, folded");
            /* Without drafts this library keeps a window with its oldest row first, whatever its position. */
            if (cpu.p->slots[slot].length % 3 == 0)
                assert_same_floats(conv[1], conv[0], m, "a convolution's window");
        }
    for (uint32_t i = 0; i < 2; i++)
        free(state[i]), free(conv[i]);
}

static void random_lives(void) {
    for (uint64_t seed = 0; seed < 3; seed++) {
        struct rng r = {seed};
        half_open(&cpu, linked_library());
        half_open(&cuda, opened_library());
        if (cuda.k.emu_seed)
            cuda.k.emu_seed(seed);
        fill_pools(seed);
        for (uint32_t slot = 1; slot <= SLOTS; slot++)
            open_slot(&r, slot);
        for (uint32_t round = 0; round < ROUNDS; round++) {
            const uint32_t slot = 1 + rng_u32(&r) % SLOTS;
            const uint32_t what = rng_u32(&r) % 6;
            if (what == 0)
                open_slot(&r, slot);
            if (what == 1)
                grant(&r, slot);
            if (what == 2)
                BOTH(k_slot_close, slot);
            step(&r);
            memory(&r);
            assert_same_pools();
        }
        look_at_units();
        assert_same_pools();
        assert_same_reading();
        half_close(&cpu);
        half_close(&cuda);
    }
}

/* States leave and come while nobody waits: as early as events let them, or as late. */
static void test_units_beside_the_stream(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 8; seed++) {
        struct rng r = {seed};
        eager_units = seed % 4;
        eager_stream = seed / 4;
        half_open(&cpu, linked_library());
        half_open(&cuda, opened_library());
        for (uint32_t round = 0; round < 8; round++) {
            fill_pools(seed * 8 + round); /* operations only spread what is there */
            for (uint32_t i = 0; i < 24; i++) {
                const uint32_t slot = rng_u32(&r) % (SLOTS + 1), unit = rng_u32(&r) % UNITS;
                const struct k_memory_op ops[] = {{K_MEM_SNAPSHOT_SLOT, slot, unit},
                        {K_MEM_RESTORE_SLOT, unit, slot}, {K_MEM_COPY_SLOT, slot, (slot + 1) % SLOTS},
                        {K_MEM_ZERO_SLOT, slot, 0}};
                const struct k_memory_op op = ops[rng_u32(&r) % 3 ? rng_u32(&r) % 2 : rng_u32(&r) % 4];
                BOTH(k_memory, &op, 1);
            }
            look_at_units();
            assert_same_pools();
        }
        half_close(&cpu);
        half_close(&cuda);
    }
    eager_units = eager_stream = 0;
}

static void test_random_lives(void **state) {
    (void)state;
    random_lives();
}
/* Without Gated DeltaNet: which operation folds a block that drafts completed is the library's choice. */
static void test_random_lives_with_drafts(void **state) {
    const uint32_t layers = shape.n_gdn_layers;
    (void)state;
    options.drafts_max = 5;
    shape.n_gdn_layers = 0;
    random_lives();
    options.drafts_max = 0;
    shape.n_gdn_layers = layers;
}

/* What kernels find, in the words of the CPU. */
static void test_faults_say_the_same(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 7; i++) {
        struct error said[2] = {{0}, {0}};
        options.drafts_max = i == 6; /* 5: more drafts than the pool takes; 6: than the slot has */
        half_open(&cpu, linked_library());
        half_open(&cuda, opened_library());
        for (uint32_t side = 0; side < 2; side++) {
            struct half *h = side ? &cuda : &cpu;
            struct k_plan plan = {.n_entries = 1, .n_rows = 2, .n_samples = 1};
            const uint32_t ids[2] = {1, i == 0 ? shape.vocab_size : 2};
            struct k_result results[1] = {{.id = i == 2 ? UINT32_MAX : 0}};
            const struct k_entry e = {.slot = 3,
                    .kind = i > 4 ? K_ENTRY_CONTINUE : K_ENTRY_PROMPT,
                    .drafts_at = UINT32_MAX,
                    .n_rows = 2,
                    .first_pos = i == 3 ? UINT32_MAX : 40,
                    .id_after = i == 1 ? shape.vocab_size + 5 : UINT32_MAX,
                    .rope_at = UINT32_MAX,
                    .flags = K_ENTRY_SAMPLE};
            struct k_memory_op op = {i == 4 ? 77 : K_MEM_ZERO_SLOT, 1, 1};
            h->k.k_upload(h->s, h->results, results, sizeof results);
            h->k.k_batch_bounds(h->b, &(struct k_bounds){2, 1, UINT32_MAX});
            h->k.k_batch_upload(h->s, h->b, &plan, &e, ids, 2, NULL, 0);
            h->k.k_memory(h->s, h->p, &op, 1);
            h->k.k_begin_step(h->s, h->p, h->b);
            h->k.k_mtp_input(h->s, h->p, h->b, h->table, h->x, h->norm, h->norm, 1e-6f, h->results, h->mtp);
            assert_int_equal(h->k.k_stream_wait(h->s, 0, &said[side]), -EINVAL);
            assert_int_equal(h->k.k_stream_error(h->s, NULL), -EINVAL); /* it stays */
        }
        assert_string_equal(said[1].text, said[0].text);
        half_close(&cpu);
        half_close(&cuda);
    }
    options.drafts_max = 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_units_beside_the_stream),
            cmocka_unit_test(test_random_lives),
            cmocka_unit_test(test_random_lives_with_drafts),
            cmocka_unit_test(test_faults_say_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
