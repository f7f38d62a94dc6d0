/* `bench`: its flags; which tests run, in which order, and which do not fit; what a step must move; the JSON. Not the
 * speed. The ranks are real ones of a small dummy model. */
#include "tp/bench/gpu.h"
#include "tp/bench/report.h"
#include "tp/load/dummy_form.h"
#include "tp/synth/synth.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FAKE_NVML BIN_DIR "/../fakes/libnvidia-ml.so.1"

static char dir[] = "/tmp/shardd-bench-XXXXXX";

static int parse(char *const words[], struct bench_options *ret, struct error *e) {
    char *argv[32] = {"worker", "bench", "--model", dir, "--load-format", "dummy", "--threads", "1"};
    int n = 8;
    *e = (struct error){0};
    for (int i = 0; words[i]; i++)
        argv[n++] = words[i];
    return bench_options_parse(n, argv, ret, e);
}
#define PARSE(ret, e, ...) parse((char *[]){__VA_ARGS__, NULL}, ret, e)

static void refused(char *const words[], const char *part) {
    struct bench_options o;
    struct error e;
    assert_true(parse(words, &o, &e) < 0);
    if (!strstr(e.text, part))
        fail_msg("'%s' does not name '%s'", e.text, part);
    bench_options_done(&o);
}
#define REFUSED(part, ...) refused((char *[]){__VA_ARGS__, NULL}, part)

static void test_flags(void **state) {
    struct bench_options o;
    struct error e;
    (void)state;
    assert_int_equal(
            PARSE(&o, &e, "--prompt", "8,0,16", "--depth=70,0", "--batch", "1,2", "--weights", "int4",
                    "--lm-head", "bf16", "--group-size", "64", "--max-num-batched-tokens", "32"),
            0);
    assert_int_equal(o.prompts.n, 2);
    assert_int_equal(o.prompts.at[1], 16);
    assert_int_equal(o.depths.at[0], 0); /* ascending: the source only gets longer */
    assert_int_equal(o.depths.at[1], 70);
    assert_int_equal(o.weights->format, QUANT_INT4);
    assert_int_equal(o.weights->group, 64);
    assert_ptr_equal(o.head, &dummy_dense);
    assert_int_equal(o.worker.rank.max_num_batched_tokens, 32);
    const struct bench_needs n = bench_needs_of(&o);
    assert_int_equal(n.slots, 3);
    assert_int_equal(n.tokens, 70 + 128 + 1);
    assert_int_equal(n.pages, 2 + 2 * 4 - 1);
    bench_options_done(&o);
    REFUSED("--prompt", "--prompt", "1,x");
    REFUSED("--batch", "--batch", "0");
    REFUSED("--drafts", "--drafts", "16");
    REFUSED("--acceptance", "--acceptance", "1.01");
    REFUSED("--acceptance", "--acceptance", "nan");
    REFUSED("--repeat", "--repeat", "0");
    REFUSED("--weights", "--weights", "int5");
    REFUSED("nothing", "--prompt", "0", "--decode", "0");
    REFUSED("--decode", "--decode");
    REFUSED("--load-formt", "--load-formt", "dummy");
}

static void test_weights_are_for_dummies(void **state) {
    char *argv[] = {"worker", "bench", "--model", dir, "--weights", "int4"};
    struct bench_options o;
    struct error e = {0};
    (void)state;
    assert_true(bench_options_parse(6, argv, &o, &e) < 0);
    assert_non_null(strstr(e.text, "--load-format dummy"));
    bench_options_done(&o);
}

static void test_bytes_of_a_step(void **state) {
    const struct bench_cost c = {.weights = 1000, .kv = 10, .state = 7, .embedding = 3};
    (void)state;
    assert_true(bench_step_bytes(&c, 1, 0) == 1020);
    assert_true(bench_step_bytes(&c, 4, 99) == 1000 + 4 * (10.0 * 100 + 10));
}

struct seen {
    struct report report;
    uint32_t n;
};

static void on_test(void *user, const struct bench_test *t) {
    struct seen *s = user;
    s->n++;
    report_test(&s->report, t, NULL);
}

static double half_a_gigabyte(void *user) {
    (void)user;
    return 5e8;
}

/* Runs the tests of some flags; the caller's report. */
static struct seen run(char *const words[]) {
    struct bench_options o;
    struct group g;
    struct seen s = {0};
    struct error e;
    if (parse(words, &o, &e) < 0)
        fail_msg("%s", e.text);
    const struct bench_needs needs = bench_needs_of(&o);
    struct rank_options rank = o.worker.rank;
    rank.max_num_seqs = needs.slots;
    rank.drafts_max = needs.drafts;
    rank.max_num_batched_tokens = 48;
    rank.max_model_len = 300;
    rank.pages = 12;
    if (group_start(&rank, &g, &e) < 0)
        fail_msg("%s", e.text);
    const struct bench_run r = {.options = &o,
            .group = &g,
            .cost = bench_cost_of(&g),
            .memory_rate = half_a_gigabyte,
            .on_test = on_test,
            .user = &s};
    s.report = (struct report){.options = &o, .group = &g, .cost = r.cost, .table = fopen("/dev/null", "w")};
    report_begin(&s.report);
    if (bench_run_all(&r, &e) < 0)
        fail_msg("%s", e.text);
    fclose(s.report.table);
    group_stop(&g);
    bench_options_done(&o);
    return s;
}

static double number(const json_t *o, const char *name) {
    const json_t *v = json_object_get(o, name);
    if (!json_is_number(v))
        fail_msg("no number '%s'", name);
    return json_number_value(v);
}

static void expect_test(const json_t *o, const char *kind, uint32_t tokens, uint32_t depth, uint32_t batch) {
    assert_string_equal(json_string_value(json_object_get(o, "kind")), kind);
    assert_true(number(o, "tokens") == tokens && number(o, "depth") == depth && number(o, "batch") == batch);
    const json_t *rates = json_object_get(o, "tokens_per_second");
    assert_int_equal(json_array_size(json_object_get(rates, "samples")), 2);
    assert_true(number(rates, "mean") > 0 && number(o, "step_ms") > 0);
    assert_true(
            json_is_null(json_object_get(o, "host_us")) && json_is_null(json_object_get(o, "graph_nodes")));
    if (strcmp(kind, "decode") != 0)
        return;
    const double round = number(o, "drafts") > 0 ? number(o, "tokens_per_round") : 1;
    assert_true(fabs(number(o, "bytes_per_token") * batch * round - number(o, "bytes_per_step")) < 1e-3);
    assert_true(fabs(number(o, "part_of_memory") - number(o, "bytes_per_second") / 5e8) < 1e-9);
}

/* Depths that end within a page and at its end, prompts of one step and of several, decoding over a page's end. */
static void test_runs(void **state) {
    char *words[] = {"--prompt", "5,100", "--decode", "70", "--depth", "0,64,100,2000", "--batch", "1,3",
            "--repeat", "2", NULL};
    static const uint32_t depths[] = {0, 64, 100};
    (void)state;
    struct seen s = run(words);
    const json_t *tests = json_object_get(s.report.root, "tests");
    assert_int_equal(s.n, 16);
    assert_int_equal(json_array_size(tests), 16);
    for (uint32_t d = 0; d < 3; d++) {
        expect_test(json_array_get(tests, 4 * d), "prompt", 5, depths[d], 1);
        expect_test(json_array_get(tests, 4 * d + 1), "prompt", 100, depths[d], 1);
        expect_test(json_array_get(tests, 4 * d + 2), "decode", 70, depths[d], 1);
        expect_test(json_array_get(tests, 4 * d + 3), "decode", 70, depths[d], 3);
    }
    assert_true(number(json_array_get(tests, 1), "steps") == 3);
    for (uint32_t i = 12; i < 16; i++)
        assert_non_null(json_object_get(json_array_get(tests, i), "skipped"));
    /* A longer context is more to read. */
    assert_true(number(json_array_get(tests, 10), "bytes_per_step") >
                number(json_array_get(tests, 2), "bytes_per_step"));
    report_done(&s.report);
}

/* Rounds over a page's end; and of more rows than a step has. */
static void test_drafts(void **state) {
    char *words[] = {"--prompt", "0", "--decode", "30", "--depth", "50", "--batch", "2,4", "--drafts",
            "0,3,15", "--repeat", "2", NULL};
    static const uint32_t drafts[] = {0, 3, 15};
    (void)state;
    struct seen s = run(words);
    const json_t *tests = json_object_get(s.report.root, "tests");
    assert_int_equal(s.n, 6);
    for (uint32_t i = 0; i < 5; i++) {
        expect_test(json_array_get(tests, i), "decode", 30, 50, i < 3 ? 2 : 4);
        assert_true(number(json_array_get(tests, i), "drafts") == drafts[i % 3]);
        assert_true(number(json_array_get(tests, i), "steps") == 30);
    }
    assert_non_null(strstr(json_string_value(json_object_get(json_array_get(tests, 5), "skipped")), "rows"));
    report_done(&s.report);
}

/* What is right is known beforehand, and the ranks must have accepted as much: over ends of pages and of blocks, with
 * drafts of the MTP layer made meanwhile, and with two ranks. */
static void test_acceptance(void **state) {
    char *one[] = {"--prompt", "0", "--decode", "30", "--depth", "0,64", "--batch", "1,2", "--drafts", "3,0",
            "--acceptance", "0.8", "--mtp", "on", "--repeat", "2", NULL};
    char *two[] = {"--prompt", "70", "--decode", "10", "--batch", "3", "--drafts", "15", "--acceptance", "1",
            "--repeat", "2", "--tensor-parallel-size", "2", "--temperature", "0.7", NULL};
    (void)state;
    struct seen s = run(one);
    const json_t *tests = json_object_get(s.report.root, "tests");
    assert_true(json_is_true(json_object_get(s.report.root, "mtp")));
    assert_int_equal(s.n, 8);
    for (uint32_t i = 0; i < 8; i += 2) {
        const json_t *plain = json_array_get(tests, i), *t = json_array_get(tests, i + 1);
        expect_test(t, "decode", 30, i < 4 ? 0 : 64, i % 4 ? 2 : 1);
        assert_true(number(plain, "drafts") == 0 && number(t, "drafts") == 3);
        assert_true(number(t, "acceptance") == 0.8);
        assert_true(fabs(number(t, "tokens_per_round") - 3.4) < 0.04);
        const double ratio = number(t, "step_ms") / number(plain, "step_ms");
        assert_true(fabs(number(t, "round_of_plain") / ratio - 1) < 1e-9);
        assert_null(json_object_get(plain, "speed_up"));
        assert_true(number(t, "speed_up") > 0);
    }
    report_done(&s.report);
    s = run(two);
    const json_t *t = json_array_get(json_object_get(s.report.root, "tests"), 1);
    assert_true(number(t, "tokens_per_round") == 16);
    assert_true(json_is_null(json_object_get(t, "speed_up"))); /* against which? */
    report_done(&s.report);
}

static void test_two_ranks_and_too_little_room(void **state) {
    char *words[] = {"--prompt", "0", "--decode", "3", "--batch", "2,13", "--repeat", "2",
            "--tensor-parallel-size", "2", "--temperature", "0.7", NULL};
    (void)state;
    struct seen s = run(words);
    const json_t *tests = json_object_get(s.report.root, "tests");
    assert_int_equal(s.n, 2);
    expect_test(json_array_get(tests, 0), "decode", 3, 0, 2);
    assert_non_null(strstr(json_string_value(json_object_get(json_array_get(tests, 1), "skipped")), "pages"));
    report_done(&s.report);
}

static void test_what_the_driver_says(void **state) {
    (void)state;
    setenv("FAKE_NVML", "two,ecc-off", 1);
    json_t *gpu = bench_gpu(FAKE_NVML), *load = bench_gpu_load(FAKE_NVML);
    const json_t *cards = json_object_get(gpu, "cards");
    assert_int_equal(json_array_size(cards), 2);
    assert_true(json_is_string(json_object_get(gpu, "driver")));
    assert_true(number(json_array_get(cards, 1), "power_limit_mw") > 0);
    assert_true(number(json_array_get(cards, 1), "ecc_enabled") == 0);
    assert_int_equal(json_array_size(load), 2);
    assert_true(number(json_array_get(load, 0), "sm_clock_mhz") > 0);
    char *line = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&line, &bytes);
    bench_gpu_print(out, gpu);
    bench_gpu_print(out, NULL);
    fclose(out);
    assert_string_equal(line,
            "NVIDIA RTX A6000, driver 570.86.15: at most 300 W, SM 2100 MHz, memory 8001 MHz, ECC off\n");
    free(line);
    json_decref(gpu);
    json_decref(load);
    assert_null(bench_gpu("/no/such/library.so"));
    assert_null(bench_gpu_load("/no/such/library.so"));
    setenv("FAKE_NVML", "unloaded", 1);
    assert_null(bench_gpu(FAKE_NVML));
}

static int make_model(void **state) {
    struct synth_options o = {.dir = dir,
            .name = "tiny",
            .dtype = TENSOR_BF16,
            .weight_bits = 4,
            .head_bits = 8,
            .group_size = 64,
            .config_only = true};
    struct error e = {0};
    (void)state;
    return synth_config("tiny", &o.config) < 0 || !mkdtemp(dir) || synth_write(&o, NULL, &e) < 0;
}

static int remove_model(void **state) {
    static const char *const names[] = {"config.json", "generation_config.json", "tokenizer.json",
            "tokenizer_config.json", "chat_template.jinja"};
    char path[256];
    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    return rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_flags),
            cmocka_unit_test(test_weights_are_for_dummies),
            cmocka_unit_test(test_bytes_of_a_step),
            cmocka_unit_test(test_runs),
            cmocka_unit_test(test_drafts),
            cmocka_unit_test(test_acceptance),
            cmocka_unit_test(test_what_the_driver_says),
            cmocka_unit_test(test_two_ranks_and_too_little_room),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
