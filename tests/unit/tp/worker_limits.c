/* worker_limits.c - what a worker decides before it loads: flags, the memory budget, the fingerprint. And
 * what it does when weights make its numbers meaningless. */
#include "model_test.h"

#include "tp/load/fingerprint.h"
#include "tp/worker/worker_options.h"

/* --- flags --- */

static int parse(struct worker_options *o, struct error *e, const char *line) {
    static char words[512];
    char *argv[32] = {"shardd-worker-cpu"}, *rest = words, *word;
    int argc = 1;
    snprintf(words, sizeof(words), "%s", line);
    while (argc < 31 && (word = strsep(&rest, " ")))
        if (*word)
            argv[argc++] = word;
    return worker_options_parse(argc, argv, o, e);
}

static void good_flags(void **state) {
    (void)state;
    struct worker_options o;
    struct error e = {0};
    must(parse(&o, &e,
                 "--model /m --ranks 2,3 --tensor-parallel-size 4 --threads 5 --isa avx2 --max-model-len 1000 "
                 "--max-num-seqs 7 --max-num-batched-tokens 99 --kv-cache-dtype fp32 --kv-cache-memory 0.25 "
                 "--load-format dummy --seed 18446744073709551615 --control-fd 3 --comm-fd 4 --enforce-eager"),
            &e);
    assert_string_equal(o.rank.model_dir, "/m");
    assert_int_equal(o.n_ranks, 2);
    assert_int_equal(o.ranks[1], 3);
    assert_int_equal(o.rank.tp, 4);
    assert_int_equal(o.rank.threads, 5);
    assert_int_equal(o.rank.max_model_len, 1000);
    assert_int_equal(o.rank.max_num_seqs, 7);
    assert_int_equal(o.rank.max_num_batched_tokens, 99);
    assert_int_equal(o.rank.kv_dtype, RANK_KV_F32);
    assert_true(o.rank.kv_cache_fraction == 0.25);
    assert_true(o.rank.dummy && o.rank.eager);
    assert_true(o.rank.seed == UINT64_MAX);
    assert_int_equal(o.control_fd, 3);
    assert_int_equal(o.comm_fd, 4);
    worker_options_done(&o);

    must(parse(&o, &e,
                 "--model /m --generate-ids 7,8,9 --tensor-parallel-size 2 --kv-cache-memory 5000000000 "
                 "--load-format packed --packed-cache /c --verify-weights --activations float"),
            &e);
    assert_int_equal(o.n_prompt, 3);
    assert_int_equal(o.prompt[2], 9);
    assert_int_equal(o.n_ranks, 2); /* all of them */
    assert_true(o.rank.kv_cache_bytes == 5000000000u);
    assert_int_equal(o.rank.packed, RANK_PACKED_MAKE);
    assert_string_equal(o.rank.packed_cache, "/c");
    assert_true(o.rank.verify_packed && !o.rank.dummy && !o.rank.fast);
    assert_int_equal(o.rank.activations, K_ACTIVATIONS_FLOAT);
    worker_options_done(&o);

    must(parse(&o, &e, "--model /m --generate-ids 7 --activations bf16 --numerics fast --all-reduce staged"),
            &e);
    assert_int_equal(o.rank.activations, K_ACTIVATIONS_BF16);
    assert_int_equal(o.rank.all_reduce, K_ALL_REDUCE_STAGED);
    assert_true(o.rank.fast);
    worker_options_done(&o);

    assert_false(worker_only_plans(&o));
    must(parse(&o, &e, "--model /m --tensor-parallel-size 2 --plan 24GB"), &e);
    assert_true(worker_only_plans(&o));
    assert_true(o.rank.memory_bytes == 24000000000u);
    assert_int_equal(o.ranks[0], 0);
    assert_int_equal(o.rank.devices[1], 1); /* a device for each */
    worker_options_done(&o);
    must(parse(&o, &e, "--model /m --generate-ids 7 --tensor-parallel-size 2 --devices 3,0"), &e);
    assert_true(o.rank.devices[0] == 3 && o.rank.devices[1] == 0);
    worker_options_done(&o);
}

static void bad_flags(void **state) {
    (void)state;
    static const struct {
        const char *line, *says;
    } cases[] = {
            {"", "--model"},
            {"--model /m", "--generate-ids"},
            {"--model /m --control-fd 3 --tensor-parallel-size 2 --ranks 0", "--comm-fd"},
            {"--model /m --plan 0", "--plan"},
            {"--model /m --control-fd 3 --ranks 1", "rank 1"},
            {"--model /m --control-fd 3 --tensor-parallel-size 2 --ranks 0,0", "twice"},
            {"--model /m --control-fd 3 --ranks 0,", "--ranks"},
            {"--model /m --control-fd 3 --devices 0,1",
                    "--devices names 2 GPUs, --tensor-parallel-size is 1"},
            {"--model /m --control-fd 3 --devices GPU-1", "--devices"},
            {"--model /m --control-fd 3 --ranks -1", "--ranks"},
            {"--model /m --control-fd 3 --tensor-parallel-size 0", "--tensor-parallel-size"},
            {"--model /m --control-fd 3 --tensor-parallel-size 9", "--tensor-parallel-size"},
            {"--model /m --control-fd 3 --max-num-seqs 1025", "--max-num-seqs"},
            {"--model /m --control-fd 3 --max-num-seqs x", "--max-num-seqs"},
            {"--model /m --control-fd 3 --max-num-batched-tokens 8193", "--max-num-batched-tokens"},
            {"--model /m --control-fd 3 --max-model-len -5", "--max-model-len"},
            {"--model /m --control-fd 3 --kv-cache-dtype int4", "int4"},
            {"--model /m --control-fd 3 --recurrent-state-dtype bf16",
                    "--recurrent-state-dtype 'bf16': this worker has fp32 and fp16"},
            {"--model /m --control-fd 3 --kv-cache-memory 1.5", "--kv-cache-memory"},
            {"--model /m --control-fd 3 --kv-cache-memory 8gb", "--kv-cache-memory: '8gb' is no size"},
            {"--model /m --control-fd 3 --kv-cache-memory 0.0", "--kv-cache-memory"},
            {"--model /m --control-fd 3 --max-num-seqs 0",
                    "--max-num-seqs: '0' is out of range; it takes 1 to 1024"},
            {"--model /m --control-fd 3 --max-num-seqs +1", "--max-num-seqs"},
            {"--model /m --control-fd 3 --max-num-batched-tokens -1", "--max-num-batched-tokens"},
            {"--model /m --control-fd 1", "--control-fd: '1' is out of range"},
            {"--model /m --generate-ids 1 --max-tokens 0", "--max-tokens"},
            {"--model /m --control-fd 3 --load-format gguf", "--load-format"},
            {"--model /m --control-fd 3 --activations fp8", "--activations 'fp8': int8, bf16 or float"},
            {"--model /m --control-fd 3 --numerics best", "--numerics 'best': exact or fast"},
            {"--model /m --control-fd 3 --all-reduce ring", "--all-reduce 'ring': auto, nccl, oneshot"},
            {"--model /m --control-fd 3 --seed 18446744073709551616", "--seed"},
            {"--model /m --generate-ids 1,2,x", "--generate-ids"},
            {"--model /m --generate-ids 4294967295", "--generate-ids"},
            {"--model /m --generate-ids 1 --temperature nan", "--temperature"},
            {"--model /m --generate-ids 1 --top-p 0", "--top-p"},
            {"--model /m --generate-ids 1 --tensor-parallel-size 2 --ranks 0", "--ranks"},
            {"--model /m --unknown", "--unknown"},
            {"--model", "--model"},
            {"stray --model /m --control-fd 3", "stray"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct worker_options o;
        struct error e = {0};
        if (parse(&o, &e, cases[i].line) == 0)
            fail_msg("'%s' was taken", cases[i].line);
        if (!strstr(e.text, cases[i].says))
            fail_msg("'%s' was refused with '%s'", cases[i].line, e.text);
        worker_options_done(&o);
    }
}

/* --- budget --- */

static struct k_shape small_shape(void) {
    return (struct k_shape){.tp = 1,
            .hidden_size = 1024,
            .vocab_size = 6400,
            .vocab_rows = 6400,
            .q_heads = 8,
            .kv_heads = 2,
            .head_dim = 256,
            .rotary_dim = 64,
            .gdn_k_heads = 16,
            .gdn_v_heads = 16,
            .gdn_k_dim = 128,
            .gdn_v_dim = 128,
            .conv_kernel = 4,
            .intermediate_size = 3584,
            .n_attention_layers = 6,
            .n_gdn_layers = 18,
            .rms_eps = 1e-6f,
            .rope_theta = 1e7};
}

static struct budget_request small_request(void) {
    return (struct budget_request){.memory_bytes = 8000000000,
            .weight_bytes = 1500000000,
            .scratch_bytes = 100000000,
            .pool_fraction = 0.5,
            .max_num_seqs = 64,
            .max_model_len = 4096,
            .kv_dtype = K_BF16};
}

static void budget_that_fits(void **state) {
    (void)state;
    struct k_shape shape = small_shape();
    struct budget_request q = small_request();
    struct budget b;
    struct error e = {0};
    q.max_num_seqs = 4;
    must(budget_make(&shape, &q, &b, &e), &e);
    assert_int_equal(b.pool.slots, 4);
    assert_int_equal(b.pool.pages_per_slot, 64);
    assert_int_equal(b.pool.pages, 256); /* what four full sequences take, no more */
    assert_int_equal(b.max_model_len, 4096);
    assert_null(strstr(b.text, "clamped"));
    assert_null(strstr(b.text, "states of prefixes"));
    q.unit_stages_bytes = q.scratch_bytes / 2;
    q.extra_positions = 1;
    must(budget_make(&shape, &q, &b, &e), &e);
    assert_int_equal(b.pool.pages_per_slot, 65);
    assert_non_null(strstr(b.text, "100 MB (to move states of prefixes 50.0 MB)"));
}

/* Slot 0 and page 0 are counted, once: beside them a pool has a few words. */
static void budget_counts_the_dummies_once(void **state) {
    (void)state;
    const struct k_shape shape = small_shape();
    const uint64_t page = PAGE_TOKENS * 2ull * shape.kv_heads * shape.head_dim * 2 * shape.n_attention_layers;
    for (uint32_t n = 1; n < 100; n += 49) {
        const struct k_pool_options o = {
                .slots = n, .pages = 3 * n, .pages_per_slot = 64, .kv_dtype = K_BF16};
        struct k_pool_cost cost;
        const uint64_t bytes = budget_pool_bytes(&shape, &o, &cost);
        assert_true(cost.page_bytes == page);
        const uint64_t parts = (n + 1) * cost.slot_bytes + (3ull * n + 1) * page;
        assert_true(bytes >= parts && bytes < parts + 1024);
    }
}

static void budget_is_clamped(void **state) {
    (void)state;
    struct k_shape shape = small_shape();
    struct budget_request q = small_request();
    struct budget b;
    struct error e = {0};
    q.max_num_seqs = 1024;
    q.max_model_len = 262144;
    must(budget_make(&shape, &q, &b, &e), &e);
    assert_true(b.pool.slots >= 1 && b.pool.slots < 1024);
    assert_true(b.pool.pages >= 1);
    assert_true(b.pool_bytes <= 3200000000);
    assert_true(b.max_model_len <= b.pool.pages * PAGE_TOKENS);
    assert_true(b.pool.pages_per_slot <= b.pool.pages);
    assert_non_null(strstr(b.text, "max-num-seqs 1024 clamped"));
    for (uint64_t pool = 80000000; pool < 4000000000;
            pool = pool * 3 + 1) { /* any size gives pools that are of use */
        q.pool_bytes = pool;
        must(budget_make(&shape, &q, &b, &e), &e);
        assert_true(b.pool.slots >= 1 && b.pool.pages >= 1 && b.pool.pages_per_slot <= b.pool.pages);
        assert_true(b.max_model_len >= 1 && b.max_model_len <= b.pool.pages_per_slot * PAGE_TOKENS);
        assert_true(b.pool_bytes <= q.memory_bytes - q.weight_bytes - q.scratch_bytes);
    }
}

/* A device's reserve and embedding are counted and told. */
static void budget_of_a_device(void **state) {
    (void)state;
    struct k_shape shape = small_shape();
    struct budget_request q = small_request();
    struct budget b, without;
    struct error e = {0};
    q.max_num_seqs = 4;
    q.max_model_len = 262144;
    q.pool_fraction = 1;
    must(budget_make(&shape, &q, &without, &e), &e);
    assert_null(strstr(without.text, "graphs"));
    q.reserve_bytes = 300000000;
    q.embedding_bytes = 500000000;
    must(budget_make(&shape, &q, &b, &e), &e);
    assert_true(b.pool_bytes < without.pool_bytes);
    assert_true(q.weight_bytes + q.scratch_bytes + q.reserve_bytes + b.pool_bytes <= q.memory_bytes);
    if (!strstr(b.text, "weights 1.50 GB (embedding 500 MB)") || !strstr(b.text, "for graphs 300 MB"))
        fail_msg("%s", b.text);
    q.reserve_bytes = q.memory_bytes;
    assert_int_equal(budget_make(&shape, &q, &b, &e), -ENOMEM);
    assert_non_null(strstr(e.text, "for graphs"));
}

/* What was asked for is refused when it is too little, and the sentence's number is the smallest that works. */
static void budget_that_is_asked_too_small(void **state) {
    (void)state;
    struct k_shape shape = small_shape();
    struct budget_request q = small_request();
    struct budget b;
    struct error e = {0};
    static const uint64_t little[] = {1, 1000, 1u << 20};
    unsigned long long least = 0;
    for (size_t i = 0; i < 3; i++) {
        q.pool_bytes = little[i];
        assert_int_equal(budget_make(&shape, &q, &b, &e), -EDOM);
        const char *at = strstr(e.text, "; at least ");
        assert_non_null(at);
        assert_int_equal(sscanf(at, "; at least %llu (", &least), 1);
        assert_non_null(strstr(e.text, "for one sequence of 64 tokens"));
    }
    q.pool_bytes = least - 1;
    assert_int_equal(budget_make(&shape, &q, &b, &e), -EDOM);
    q.pool_bytes = least;
    must(budget_make(&shape, &q, &b, &e), &e);
    assert_int_equal(b.pool.slots, 1);
    assert_int_equal(b.max_model_len, 64);
    assert_non_null(strstr(b.text, "max-model-len 4096 clamped to 64"));
    q.pool_bytes = 0;
    q.pool_fraction = 1e-6;
    must(budget_make(&shape, &q, &b, &e), &e); /* a default is raised */
    q.fraction_asked = true;
    assert_int_equal(budget_make(&shape, &q, &b, &e), -EDOM);
    assert_non_null(strstr(e.text, "1e-06 of 6.40 GB is 6.40 kB; at least"));
    q.pool_bytes = UINT64_MAX;
    must(budget_make(&shape, &q, &b, &e), &e);
    assert_true(b.pool_bytes <= 6400000000);
    assert_non_null(strstr(b.text, "kv-cache-memory 18446744 TB clamped to 6.40 GB"));
}

static void budget_that_does_not_fit(void **state) {
    (void)state;
    struct k_shape shape = small_shape();
    struct budget_request q = small_request();
    struct budget b;
    struct error e = {0};
    q.memory_bytes = 1600000001;
    assert_int_equal(budget_make(&shape, &q, &b, &e), -ENOMEM);
    assert_non_null(strstr(e.text, "does not fit"));
    q.weight_bytes = UINT64_MAX - 5;
    assert_int_equal(budget_make(&shape, &q, &b, &e), -ENOMEM);
}

/* A rank refuses before it loads, not after. */
static void rank_refuses_too_little_memory(void **state) {
    (void)state;
    char path[512];
    struct rank *rank = NULL;
    struct error e = {0};
    model_path(path, sizeof(path), "small", NULL);
    struct rank_options options = test_options(path, 1);
    options.memory_bytes = 100000;
    assert_int_equal(rank_create(&options, &rank, &e), -ENOMEM);
    assert_non_null(strstr(e.text, "does not fit"));
}

/* Host memory for states of prefixes: none, some for each sequence, as many as fit into half of what is asked for
 * (their pages get the other half) and at least one, and no more than there is. */
static void states_of_prefixes(void **state) {
    (void)state;
    char path[512];
    struct error e = {0};
    model_path(path, sizeof(path), "small", NULL);
    struct k_pool_cost cost;
    const struct {
        bool on;
        uint64_t bytes, units; /* bytes: in units */
        double fraction;
        uint32_t exactly;
    } cases[] = {{false, 0, 0, 0, 0}, {false, 9, 0, 0, 3}, {true, 0, 32, 0, 0}, {true, 9, 4, 0, 0},
            {true, 1, 1, 0, 0}, {true, 9, 5, 0, 5}, {true, 1ull << 40, 4096, 0, 0}, {true, 0, 4096, 0.9, 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct rank *rank = NULL;
        struct rank_options options = test_options(path, 1);
        options.prefix_cache = cases[i].on;
        options.prefix_fraction = cases[i].fraction;
        options.slot_units = cases[i].exactly;
        if (i > 0)
            options.prefix_bytes = cases[i].bytes * cost.slot_unit_bytes;
        must(rank_create(&options, &rank, &e), &e);
        k_pool_cost(&rank->shard.shape, &rank->budget.pool, &cost);
        const uint32_t units = cases[i].exactly ? cases[i].exactly : (uint32_t)cases[i].units;
        assert_in_range(
                rank->budget.pool.slot_units, units < 4096 ? units : 100, units); /* as there is memory */
        assert_true(!strstr(rank->budget.text, "states of prefixes") == (!cases[i].on || cases[i].exactly));
        const uint64_t page_bytes = rank->budget.pool.page_units * cost.page_unit_bytes;
        if (cases[i].bytes == 9 && !cases[i].exactly)
            assert_in_range(page_bytes, 4 * cost.slot_unit_bytes, 5 * cost.slot_unit_bytes);
        else if (cases[i].bytes < 9)
            assert_true((page_bytes > 0) == (cases[i].fraction > 0));
        rank_free(rank);
    }
}

/* rank_plan() says what rank_create() then does: with exactly as much as it calls the least a rank starts, with a byte
 * less it does not. */
static void a_plan_is_what_a_rank_does(void **state) {
    (void)state;
    char path[512];
    model_path(path, sizeof(path), "small", NULL);
    struct rank_options options = test_options(path, 1);
    struct rank_plan plan, again;
    struct rank *rank = NULL;
    struct error e = {0};
    must(rank_plan(&options, &plan, &e), &e);
    assert_true(plan.fits);
    assert_int_equal(plan.max_model_len, 512);
    assert_int_equal(plan.max_num_seqs, 8);
    assert_true(plan.mapped_bytes > 0 && plan.embedding_bytes == 0);
    must(rank_create(&options, &rank, &e), &e);
    assert_string_equal(plan.budget.text, rank->budget.text);
    assert_true(plan.weight_bytes == rank->weights.bytes);
    rank_free(rank);

    options.kv_cache_bytes = 0;
    options.memory_bytes = plan.least_bytes;
    must(rank_plan(&options, &again, &e), &e);
    assert_true(again.fits && again.budget.pool.slots == 1 && again.budget.pool.pages == 1);
    must(rank_create(&options, &rank, &e), &e);
    rank_free(rank);
    options.memory_bytes--;
    must(rank_plan(&options, &again, &e), &e);
    assert_false(again.fits);
    assert_non_null(strstr(again.why.text, "does not fit"));
    assert_int_equal(rank_create(&options, &rank, &e), -ENOMEM);

    options.kv_cache_fraction = 1;
    options.memory_bytes = plan.wanted_bytes;
    must(rank_plan(&options, &again, &e), &e);
    assert_true(again.fits && again.budget.pool.slots == 8 && again.budget.pool.pages == 64);
    options.memory_bytes--;
    must(rank_plan(&options, &again, &e), &e);
    assert_true(again.fits && again.budget.pool.pages < 64);

    options.tp = 3;
    assert_true(rank_plan(&options, &again, &e) < 0);
    assert_non_null(strstr(e.text, "3"));
    options.model_dir = "/no/such/model";
    assert_true(rank_plan(&options, &again, &e) < 0);
}

static void kv_dtype_follows_the_checkpoint(void **state) {
    (void)state;
    struct rank_options options = test_options(NULL, 1);
    options.kv_dtype = RANK_KV_AUTO;
    struct offline *o = model_start("small", &options);
    assert_int_equal(offline_rank(o, 0)->budget.pool.kv_dtype, K_BF16);
    offline_free(o);
    options.kv_dtype = RANK_KV_F32;
    o = model_start("small", &options);
    assert_int_equal(offline_rank(o, 0)->budget.pool.kv_dtype, K_F32);
    offline_free(o);
    options.kv_dtype = RANK_KV_INT8;
    o = model_start("small", &options);
    assert_int_equal(offline_rank(o, 0)->budget.pool.kv_dtype, K_INT8);
    offline_free(o);
}
/* A page of INT8 is a byte an element, and a scale of 4 for each token, head and K or V. */
static void int8_pages_are_codes_and_scales(void **state) {
    (void)state;
    char path[512];
    struct rank_plan bf16, int8;
    struct error e = {0};
    model_path(path, sizeof(path), "small", NULL);
    struct rank_options options = test_options(path, 1);
    options.kv_dtype = RANK_KV_BF16;
    must(rank_plan(&options, &bf16, &e), &e);
    options.kv_dtype = RANK_KV_INT8;
    must(rank_plan(&options, &int8, &e), &e);
    struct offline *o = model_start("small", &options);
    const struct k_shape *h = &offline_rank(o, 0)->shard.shape;
    const uint64_t rows = 2ull * h->n_attention_layers * h->kv_heads * PAGE_TOKENS;
    assert_int_equal(bf16.pool.page_bytes, rows * h->head_dim * 2);
    assert_int_equal(int8.pool.page_bytes, rows * (h->head_dim + 4));
    assert_true(int8.budget.pool.kv_dtype == K_INT8 && int8.wanted_bytes < bf16.wanted_bytes);
    offline_free(o);
}

/* A slot of fp16 states is smaller by half of S0, so more of them fit; the sentence says so. */
static void fp16_states_take_half(void **state) {
    (void)state;
    char path[512];
    struct rank_plan exact, half;
    struct error e = {0};
    model_path(path, sizeof(path), "small", NULL);
    struct rank_options options = test_options(path, 1);
    must(rank_plan(&options, &exact, &e), &e);
    options.state_dtype = K_F16;
    must(rank_plan(&options, &half, &e), &e);
    struct offline *o = model_start("small", &options);
    const struct k_shape *h = &offline_rank(o, 0)->shard.shape;
    const uint64_t s0 = (uint64_t)h->n_gdn_layers * h->gdn_v_heads * h->gdn_k_dim * h->gdn_v_dim;
    assert_int_equal(exact.pool.slot_bytes - half.pool.slot_bytes, s0 * 2);
    assert_int_equal(offline_rank(o, 0)->budget.pool.state_dtype, K_F16);
    assert_non_null(strstr(half.budget.text, "slots of fp16 "));
    assert_null(strstr(exact.budget.text, "fp16"));
    offline_free(o);
}

/* --- fingerprint and bad weights --- */

static uint64_t fingerprint_at(const char *dir, uint32_t tp) {
    struct rank_options options = test_options(dir, tp);
    struct offline *o = model_start("tp8", &options);
    uint64_t fingerprint = offline_geometry(o)->fingerprint;
    offline_free(o);
    return fingerprint;
}

static void fingerprint_tells_models_apart(void **state) {
    (void)state;
    char dir[64];
    uint64_t original = fingerprint_at(NULL, 1);
    assert_true(original == fingerprint_at(NULL, 4)); /* of the model, not of a shard */
    changed_model(dir, sizeof(dir), "model.language_model.layers.2.mlp.down_proj.weight", 0x11, 2);
    assert_true(original != fingerprint_at(dir, 1));
    remove_model(dir);
}

/* Weights that are no numbers: the sequence ends with a sentence, the ranks agree about it and go on. */
static void weights_that_are_no_numbers(void **state) {
    (void)state;
    static const uint32_t prompt[] = {1, 2, 3};
    for (uint32_t tp = 1; tp <= 4; tp *= 4) {
        char dir[64];
        struct error e = {0};
        struct one_run r;
        changed_model(dir, sizeof(dir), "model.language_model.norm.weight", 0xff, 2);
        struct rank_options options = test_options(dir, tp);
        struct offline *o = model_start("tp8", &options);
        run_start(&r, o, prompt, 3, 2, false);
        assert_true(offline_run(o, &r.s, 1, &e) < 0);
        if (!strstr(e.text, "sequence 0: a logit is not a finite number"))
            fail_msg("'%s' does not name the sequence and the reason", e.text);
        for (uint32_t i = 0; i < tp; i++)
            assert_false(step_exec_failed(offline_exec(o, i), NULL));
        must(offline_reset(o, &e), &e);
        run_done(&r);
        offline_free(o);
        remove_model(dir);
    }
}

/* What the kernels themselves refuse is final: every rank ends with the sentence, none hangs, and they stay failed. */
static void a_fault_of_one_device_is_final(void **state) {
    (void)state;
    static const uint32_t prompt[] = {1, 2, 3};
    static const uint32_t ids[1000];
    for (uint32_t tp = 1; tp <= 4; tp *= 4) {
        struct error e = {0};
        struct one_run r;
        struct rank_options options = test_options(NULL, tp);
        struct offline *o = model_start("tp8", &options);
        struct rank *last = offline_rank(o, tp - 1);
        const struct k_sampling too_much = {
                .top_p = 1, .repetition_penalty = 1, .n_suppress = 1000, .suppress = ids};
        k_slot_open(last->stream, last->pool, 1, &too_much);
        run_start(&r, o, prompt, 3, 2, false);
        assert_true(offline_run(o, &r.s, 1, &e) < 0);
        if (!strstr(e.text, "slot 1") || !strstr(e.text, "suppressed ids"))
            fail_msg("'%s' does not name the slot and the reason", e.text);
        assert_true(offline_run(o, &r.s, 1, &e) < 0);
        assert_true(step_exec_failed(offline_exec(o, tp - 1), NULL));
        assert_int_equal(offline_answer(o, tp - 1)->completion.status, STEP_STATUS_FAULT);
        run_done(&r);
        offline_free(o);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(good_flags),
            cmocka_unit_test(bad_flags),
            cmocka_unit_test(budget_that_fits),
            cmocka_unit_test(budget_counts_the_dummies_once),
            cmocka_unit_test(budget_is_clamped),
            cmocka_unit_test(budget_of_a_device),
            cmocka_unit_test(budget_that_is_asked_too_small),
            cmocka_unit_test(budget_that_does_not_fit),
            cmocka_unit_test(rank_refuses_too_little_memory),
            cmocka_unit_test(states_of_prefixes),
            cmocka_unit_test(a_plan_is_what_a_rank_does),
            cmocka_unit_test(kv_dtype_follows_the_checkpoint),
            cmocka_unit_test(int8_pages_are_codes_and_scales),
            cmocka_unit_test(fp16_states_take_half),
            cmocka_unit_test(fingerprint_tells_models_apart),
            cmocka_unit_test(weights_that_are_no_numbers),
            cmocka_unit_test(a_fault_of_one_device_is_final),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
