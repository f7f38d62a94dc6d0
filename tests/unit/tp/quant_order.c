/* quant_order.c - act-order through whole models: the same bits as the same weights sorted by hand, on any number of
 * ranks, with INT8 and with float activations; close to the dequantised model; refused where it cannot be undone. */
#include "bits_test.h"
#include "tests/lib/gptq_checkpoint.h"

#define GROUP       32u
#define LENGTH      65u
#define NEW         8u
#define SEGMENTS    4u /* K/4 of o_proj and out_proj are whole groups: tp 1, 2 and 4 can undo such an order */
#define DENSE_ERROR 1e-4
#define INT8_ERROR  0.35

static char source[64]; /* the dense model */
static char made[64];   /* what a test makes of it */

/* --- what becomes of the matrices --- */

static bool has(const char *name, const char *part) {
    return strstr(name, part) != NULL;
}

static uint64_t seed_of(const char *text, size_t n) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return h | 1;
}

/* One seed for the matrices of a linear: the name up to "mlp." or "attn.", or the whole name of others. */
static uint64_t linear_seed(const char *name) {
    static const char *const ends[] = {"mlp.", "attn."};
    for (size_t i = 0; i < 2; i++) {
        const char *at = strstr(name, ends[i]);
        if (at)
            return seed_of(name, (size_t)(at - name) + strlen(ends[i]));
    }
    return seed_of(name, strlen(name));
}

static bool is_matrix(const char *name) {
    static const char *const parts[] = {"_proj.weight", "in_proj_qkv.weight", "in_proj_z.weight"};
    for (size_t i = 0; i < 3; i++)
        if (has(name, parts[i]))
            return true;
    return false;
}

/* Only down_proj has an order; gate is quantised, up stays dense. */
static void choose_down(const char *name, struct gptq_choice *ret) {
    char down[SEEDED_NAME];
    const char *mlp = strstr(name, "mlp.");
    if (!mlp || !is_matrix(name))
        return;
    snprintf(down, sizeof(down), "%.*smlp.down_proj.weight", (int)(mlp - name), name);
    ret->quantise = !has(name, "up_proj");
    if (has(name, "down_proj")) {
        ret->segments = 1;
        ret->seed = seed_of(down, strlen(down));
    } else {
        ret->row_seed = seed_of(down, strlen(down));
        ret->row_group = GROUP;
    }
}

/* Everything, with an order of its own for each linear. */
static void choose_all(const char *name, struct gptq_choice *ret) {
    bool end = has(name, "lm_head") || has(name, "mtp.fc.");
    if (!is_matrix(name) && !end)
        return;
    ret->quantise = true;
    ret->segments = has(name, "o_proj") || has(name, "out_proj") ? SEGMENTS : 1;
    ret->seed = has(name, "o_proj") || has(name, "out_proj") || has(name, "down_proj")
                        ? seed_of(name, strlen(name))
                        : linear_seed(name);
}

static void choose_mixed_o(const char *name, struct gptq_choice *ret) {
    choose_all(name, ret);
    if (has(name, "o_proj"))
        ret->segments = 1;
}

static void choose_two_orders(const char *name, struct gptq_choice *ret) {
    choose_all(name, ret);
    if (has(name, "k_proj"))
        ret->seed++;
}

/* --- folders --- */

static void empty(const char *folder) {
    static const char *const names[] = {"config.json", "generation_config.json", "model.safetensors"};
    char path[128];
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        unlink(path);
    }
}

static int make_folders(void **state) {
    (void)state;
    char golden[512];
    struct seeded_model m = {0};
    snprintf(source, sizeof(source), "/tmp/shardd-order-XXXXXX");
    snprintf(made, sizeof(made), "/tmp/shardd-order-XXXXXX");
    snprintf(golden, sizeof(golden), "%s/golden/seeded/tp8_512", TESTS_DIR);
    if (!mkdtemp(source) || !mkdtemp(made) || seeded_model_read(golden, &m) < 0)
        return -1;
    int r = seeded_model_write(&m, golden, SEEDED_BF16, source);
    seeded_model_done(&m);
    return r;
}

static int remove_folders(void **state) {
    (void)state;
    empty(source);
    empty(made);
    return rmdir(source) | rmdir(made);
}

/* --- running --- */

struct way {
    uint32_t tp, threads;
    bool float_activations;
};

static struct rank_options options_of(const struct way *w) {
    struct rank_options o = test_options(made, w->tp);
    o.threads = w->threads;
    o.activations = w->float_activations ? K_ACTIVATIONS_FLOAT : K_ACTIVATIONS_INT8;
    o.logits_rows = ROWS_MAX;
    o.mtp = true;
    o.packed = RANK_PACKED_NEVER;
    return o;
}

static void run(enum gptq_form form, void (*choose)(const char *, struct gptq_choice *),
        const struct way *way, struct one_run *ret) {
    const struct gptq_options how = {.group = GROUP, .form = form, .choose = choose};
    const struct rank_options options = options_of(way);
    static uint32_t ids[LENGTH];
    struct offline *o = NULL;
    struct error e = {0};
    for (uint32_t i = 0; i < LENGTH; i++)
        ids[i] = (i * 37 + 11) % 1000;
    assert_int_equal(gptq_write(source, made, &how), 0);
    must(offline_create(&options, &o, &e), &e);
    run_start(ret, o, ids, LENGTH, NEW, true);
    must(offline_run(o, &ret->s, 1, &e), &e);
    offline_free(o);
}

static void same_bits(const struct one_run *a, const struct one_run *b) {
    size_t bytes = (size_t)(LENGTH + NEW - 1) * a->vocab * sizeof(float);
    for (uint32_t i = 0; i < NEW; i++)
        assert_int_equal(a->s.samples[i].id, b->s.samples[i].id);
    assert_memory_equal(a->s.logits, b->s.logits, bytes);
    assert_memory_equal(a->s.mtp_logits, b->s.mtp_logits, bytes);
}

/* Of the prompt's rows: both read the same ids there. */
static double prompt_error(const struct one_run *a, const struct one_run *b) {
    size_t n = (size_t)LENGTH * a->vocab;
    double main = max_abs_error(a->s.logits, b->s.logits, n),
           mtp = max_abs_error(a->s.mtp_logits, b->s.mtp_logits, n);
    return main > mtp ? main : mtp;
}

/* --- tests --- */

static void down_is_as_if_sorted(void **state) {
    (void)state;
    static const struct way ways[] = {
            {1, 2, false}, {2, 1, false}, {4, 1, false}, {8, 1, false}, {1, 1, true}, {8, 1, true}};
    struct one_run sorted[2];
    run(GPTQ_SORTED, choose_down, &(struct way){1, 1, false}, &sorted[0]);
    run(GPTQ_SORTED, choose_down, &(struct way){1, 1, true}, &sorted[1]);
    assert_true(prompt_error(&sorted[0], &sorted[1]) > 0); /* the flag does something */
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        struct one_run got;
        run(GPTQ_STORED, choose_down, &ways[i], &got);
        same_bits(&got, &sorted[ways[i].float_activations]);
        run_done(&got);
    }
    run_done(&sorted[0]);
    run_done(&sorted[1]);
}

static void every_order_is_close_to_dense(void **state) {
    (void)state;
    struct one_run dense, exact, rounded;
    run(GPTQ_DENSE, choose_all, &(struct way){1, 2, false}, &dense);
    run(GPTQ_STORED, choose_all, &(struct way){1, 2, true}, &exact);
    run(GPTQ_STORED, choose_all, &(struct way){1, 2, false}, &rounded);
    double e_exact = prompt_error(&exact, &dense), e_rounded = prompt_error(&rounded, &dense);
    print_message("largest logit error: %.2e with float activations, %.2e with int8\n", e_exact, e_rounded);
    assert_true(e_exact < DENSE_ERROR);
    assert_true(e_rounded < INT8_ERROR);
    run_done(&dense);
    run_done(&exact);
    run_done(&rounded);
}

static void every_order_has_the_same_bits_on_any_ranks(void **state) {
    (void)state;
    static const struct way ways[] = {
            {1, 2, false}, {2, 1, false}, {4, 1, false}, {4, 2, true}, {2, 1, true}};
    struct one_run first[2];
    run(GPTQ_STORED, choose_all, &(struct way){1, 1, false}, &first[0]);
    run(GPTQ_STORED, choose_all, &(struct way){1, 1, true}, &first[1]);
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        struct one_run got;
        run(GPTQ_STORED, choose_all, &ways[i], &got);
        same_bits(&got, &first[ways[i].float_activations]);
        run_done(&got);
    }
    run_done(&first[0]);
    run_done(&first[1]);
}

static void refused(
        void (*choose)(const char *, struct gptq_choice *), uint32_t tp, const char *const *words) {
    const struct gptq_options how = {.group = GROUP, .form = GPTQ_STORED, .choose = choose};
    const struct rank_options options = options_of(&(struct way){tp, 1, false});
    struct offline *o = NULL;
    struct error e = {0};
    assert_int_equal(gptq_write(source, made, &how), 0);
    assert_int_equal(offline_create(&options, &o, &e), -ENOTSUP);
    for (; *words; words++)
        if (!strstr(e.text, *words))
            fail_msg("'%s' is not in: %s", *words, e.text);
}

static void what_cannot_be_undone_is_refused(void **state) {
    (void)state;
    static const char *const o_proj[] = {
            "model.safetensors", "self_attn.o_proj", "desc_act false", "--tensor-parallel-size 1", NULL};
    static const char *const out_proj[] = {
            "model.safetensors", "linear_attn.out_proj", "desc_act false", NULL};
    static const char *const orders[] = {"model.safetensors", "k_proj", "q_proj", "desc_act false", NULL};
    struct one_run one;
    refused(choose_mixed_o, 2, o_proj);
    refused(choose_all, 8, out_proj); /* its groups are whole in quarters, not in eighths */
    refused(choose_two_orders, 1, orders);
    run(GPTQ_STORED, choose_mixed_o, &(struct way){1, 1, false}, &one); /* one rank can undo any order */
    run_done(&one);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(down_is_as_if_sorted),
            cmocka_unit_test(every_order_is_close_to_dense),
            cmocka_unit_test(every_order_has_the_same_bits_on_any_ranks),
            cmocka_unit_test(what_cannot_be_undone_is_refused),
    };
    return cmocka_run_group_tests(tests, make_folders, remove_folders);
}
