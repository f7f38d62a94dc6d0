/* bits_ranks.c - the same tokens and log probabilities at every tensor-parallel size, number of threads and
 * instruction set, with graphs and without. */
#include "bits_test.h"

struct way {
    const char *name, *isa;
    uint32_t tp, threads;
    bool eager;
    enum rank_kv_dtype kv;
    enum k_dtype state;
};

static void check_ways(const char *model, const struct way *ways, size_t n) {
    static struct work expected, got;
    struct checkpoint *g = golden_open(model);
    uint32_t suppress[2] = {1, 2};
    work_init(&expected, g, suppress);
    work_init(&got, g, suppress);
    for (size_t i = 0; i < n; i++) {
        struct rank_options options = bits_options(ways[i].tp);
        options.threads = ways[i].threads;
        options.isa = ways[i].isa;
        options.eager = ways[i].eager;
        options.kv_dtype = ways[i].kv;
        options.state_dtype = ways[i].state;
        char path[512];
        struct offline *o = NULL;
        struct error e = {0};
        model_path(path, sizeof(path), model, NULL);
        options.model_dir = path;
        int r = offline_create(&options, &o, &e);
        if (r == -ENOTSUP && ways[i].isa) {
            print_message("%s: not on this processor\n", ways[i].name);
            continue;
        }
        must(r, &e);
        work_run(i == 0 ? &expected : &got, o);
        if (i > 0)
            same_work(&got, &expected, ways[i].name);
        offline_free(o);
    }
    checkpoint_free(g);
}

static void tensor_parallel(void **state) {
    (void)state;
    static const struct way ways[] = {
            {.name = "tp 1", .tp = 1, .threads = 1},
            {.name = "tp 2", .tp = 2, .threads = 1},
            {.name = "tp 4", .tp = 4, .threads = 1},
            {.name = "tp 8", .tp = 8, .threads = 1},
            {.name = "tp 2, 2 threads each", .tp = 2, .threads = 2},
            {.name = "tp 8, eager", .tp = 8, .threads = 1, .eager = true},
    };
    check_ways("tp8", ways, sizeof(ways) / sizeof(ways[0]));
}

static void tensor_parallel_f32_pages(void **state) {
    (void)state;
    static const struct way ways[] = {
            {.name = "tp 1", .tp = 1, .threads = 1, .kv = RANK_KV_F32},
            {.name = "tp 2", .tp = 2, .threads = 1, .kv = RANK_KV_F32},
            {.name = "tp 8", .tp = 8, .threads = 1, .kv = RANK_KV_F32},
    };
    check_ways("tp8", ways, sizeof(ways) / sizeof(ways[0]));
}

/* At tp 8 a kv head is on two ranks, each with its own codes of it. */
static void tensor_parallel_int8_pages(void **state) {
    (void)state;
    static const struct way ways[] = {
            {.name = "tp 1", .tp = 1, .threads = 1, .kv = RANK_KV_INT8},
            {.name = "tp 2", .tp = 2, .threads = 2, .kv = RANK_KV_INT8},
            {.name = "tp 4, avx2", .tp = 4, .threads = 1, .isa = "avx2", .kv = RANK_KV_INT8},
            {.name = "tp 8, eager", .tp = 8, .threads = 1, .eager = true, .kv = RANK_KV_INT8},
            {.name = "tp 1, plain", .tp = 1, .threads = 1, .isa = "plain", .kv = RANK_KV_INT8},
    };
    check_ways("tp8", ways, sizeof(ways) / sizeof(ways[0]));
}

static void tensor_parallel_f16_states(void **state) {
    (void)state;
    static const struct way ways[] = {
            {.name = "tp 1", .tp = 1, .threads = 1, .state = K_F16},
            {.name = "tp 2, eager", .tp = 2, .threads = 2, .eager = true, .state = K_F16},
            {.name = "tp 4, avx2", .tp = 4, .threads = 1, .isa = "avx2", .state = K_F16},
            {.name = "tp 8", .tp = 8, .threads = 1, .state = K_F16},
            {.name = "tp 1, plain", .tp = 1, .threads = 1, .isa = "plain", .state = K_F16},
    };
    check_ways("tp8", ways, sizeof(ways) / sizeof(ways[0]));
}

/* 3 query heads per kv head and 3 value heads per key head. (tp8 at tp 8 has more ranks than kv heads.) */
static void ratios_of_three(void **state) {
    (void)state;
    static const struct way ways[] = {
            {.name = "tp 1", .tp = 1, .threads = 1},
            {.name = "tp 2", .tp = 2, .threads = 1},
    };
    check_ways("small", ways, sizeof(ways) / sizeof(ways[0]));
}

static void instruction_sets(void **state) {
    (void)state;
    static const struct way ways[] = {
            {.name = "plain C", .tp = 1, .threads = 1, .isa = "plain"},
            {.name = "avx2", .tp = 1, .threads = 1, .isa = "avx2"},
            {.name = "avx512", .tp = 1, .threads = 1, .isa = "avx512"},
            {.name = "avx2, tp 4", .tp = 4, .threads = 1, .isa = "avx2"},
            {.name = "plain C, tp 2, 2 threads", .tp = 2, .threads = 2, .isa = "plain"},
    };
    check_ways("tp8", ways, sizeof(ways) / sizeof(ways[0]));
    check_ways("small", ways, 3);
    check_ways("real", ways, 3);
}

static void threads_and_graphs(void **state) {
    (void)state;
    static const struct way ways[] = {
            {.name = "1 thread", .tp = 1, .threads = 1},
            {.name = "1 thread, eager", .tp = 1, .threads = 1, .eager = true},
            {.name = "2 threads", .tp = 1, .threads = 2},
            {.name = "3 threads", .tp = 1, .threads = 3},
            {.name = "7 threads, eager", .tp = 1, .threads = 7, .eager = true},
    };
    check_ways("small", ways, sizeof(ways) / sizeof(ways[0]));
    check_ways("real", ways, sizeof(ways) / sizeof(ways[0]));
}

/* Raw logits of every row, and of the MTP layer, are the same bits on any number of ranks. */
static void raw_logits(void **state) {
    (void)state;
    struct checkpoint *g = golden_open("tp8");
    struct one_run first = {0};
    for (uint32_t tp = 1; tp <= 8; tp *= 2) {
        struct rank_options options = bits_options(tp);
        struct one_run r;
        struct error e = {0};
        options.mtp = true;
        options.logits_rows = ROWS_MAX;
        struct offline *o = model_start("tp8", &options);
        assert_true(offline_geometry(o)->has_mtp);
        run_start(&r, o, golden_ids(g, 65), 65, 8, true);
        must(offline_run(o, &r.s, 1, &e), &e);
        offline_free(o);
        if (tp == 1) {
            first = r;
            continue;
        }
        size_t bytes = (size_t)(65 + 7) * r.vocab * sizeof(float); /* the last token is sampled, not read */
        assert_memory_equal(r.s.logits, first.s.logits, bytes);
        assert_memory_equal(r.s.mtp_logits, first.s.mtp_logits, bytes);
        run_done(&r);
    }
    run_done(&first);
    checkpoint_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(tensor_parallel),
            cmocka_unit_test(tensor_parallel_f32_pages),
            cmocka_unit_test(tensor_parallel_int8_pages),
            cmocka_unit_test(tensor_parallel_f16_states),
            cmocka_unit_test(ratios_of_three),
            cmocka_unit_test(instruction_sets),
            cmocka_unit_test(threads_and_graphs),
            cmocka_unit_test(raw_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
