/* checkpoint_inspect.c - what inspect computes and says, and the shardd-checkpoint program with its exit
 * codes. */
#include "checkpoint_test.h"
#include "tp/synth/synth.h"
#include "tp/tools/inspect.h"

#include <jansson.h>
#include <sys/wait.h>

static char folder[TEST_FOLDER_SIZE], model[128];

static int make_model(void **state) {
    (void)state;
    struct synth_options o = {.dir = model, .name = "tiny", .dtype = TENSOR_BF16};
    struct error e = {0};
    test_folder_make(folder);
    snprintf(model, sizeof(model), "%s/tiny", folder);
    synth_config("tiny", &o.config);
    return synth_write(&o, NULL, &e);
}

static int remove_model(void **state) {
    (void)state;
    test_folder_remove(folder);
    return 0;
}

static struct inspection *inspected(uint32_t tp, uint32_t len, uint32_t seqs, uint64_t memory) {
    struct inspect_options o = {
            .dir = model, .tp = tp, .max_model_len = len, .max_num_seqs = seqs, .memory_bytes = memory};
    struct inspection *i = NULL;
    struct error e = {0};
    if (inspect_open(&o, &i, &e) < 0)
        fail_msg("%s", e.text);
    return i;
}

static void test_sizes(void **state) {
    (void)state;
    struct inspection *one = inspected(1, 4096, 4, 0), *two = inspected(2, 4096, 4, 0);
    assert_int_equal(one->n_attention_layers, 1);
    assert_int_equal(one->n_gdn_layers, 3);
    assert_true(one->options.memory_bytes > 0); /* asked of the machine */
    /* One attention layer, four KV heads of 32, K and V in BF16. */
    assert_int_equal(one->kv_token_bytes, 2 * 4 * 32 * 2);
    assert_int_equal(two->kv_token_bytes, one->kv_token_bytes / 2);
    assert_int_equal(one->kv_bytes, 4 * 4096 * one->kv_token_bytes);
    /* Three layers of at least the state itself: 16 heads of 32 x 32 floats. */
    assert_true(one->sequence_bytes > 3 * 16 * 32 * 32 * 4);
    assert_true(two->sequence_bytes < one->sequence_bytes);
    /* All matrices but the embedding, in their two bytes, without the vectors (the convolutions are the most
     * of them); two ranks have half of each, and some padding. */
    uint64_t matrices = one->tensors->bytes - one->embedding_bytes;
    assert_true(one->weight_bytes < matrices && one->weight_bytes > matrices - 40000);
    assert_true(two->weight_bytes * 2 >= one->weight_bytes); /* rows are padded to 16 */
    assert_true(two->weight_bytes * 2 < one->weight_bytes + one->weight_bytes / 50);
    assert_int_equal(one->embedding_bytes, 2048 * 256 * 2);
    assert_int_equal(two->total_bytes, two->rank_bytes * 2 + two->embedding_bytes);
    assert_true(one->one_sequence_bytes < one->total_bytes);
    inspect_free(one);
    inspect_free(two);
}

static void test_limits_of_the_model(void **state) {
    (void)state;
    struct inspection *own = inspected(1, 0, 1, 0), *more = inspected(1, 1000000, 1, 0);
    assert_int_equal(own->options.max_model_len, 8192);
    assert_int_equal(more->options.max_model_len, 8192);
    inspect_free(own);
    inspect_free(more);
    assert_null(inspect_free(NULL));
}

static void test_verdicts(void **state) {
    (void)state;
    char verdict[512];
    struct inspection *i = inspected(1, 4096, 8, 0);
    uint64_t all = i->total_bytes, one = i->one_sequence_bytes;
    inspect_free(i);

    i = inspected(1, 4096, 8, all);
    inspect_verdict(i, verdict, sizeof(verdict));
    assert_true(i->fits);
    assert_int_equal(strncmp(verdict, "fits: ", 6), 0);
    inspect_free(i);

    i = inspected(1, 4096, 8, all - 1);
    inspect_verdict(i, verdict, sizeof(verdict));
    assert_false(i->fits);
    assert_non_null(strstr(verdict, "does not fit: "));
    assert_non_null(strstr(verdict, "lower --max-num-seqs or --max-model-len"));
    inspect_free(i);

    i = inspected(1, 4096, 8, one - 1);
    inspect_verdict(i, verdict, sizeof(verdict));
    assert_non_null(strstr(verdict, "does not fit: one sequence of 4096 tokens needs"));
    inspect_free(i);
}

static void test_refusals(void **state) {
    (void)state;
    struct inspect_options o = {.dir = "/no/such/model", .tp = 1, .max_num_seqs = 1};
    struct inspection *i = NULL;
    struct error e = {0};
    assert_int_equal(inspect_open(&o, &i, &e), -ENOENT);
    assert_string_equal(e.text, "/no/such/model/config.json: cannot open: No such file or directory");
    o.dir = model;
    o.tp = 3;
    assert_int_equal(inspect_open(&o, &i, &e), -EDOM);
    assert_non_null(strstr(e.text, "--tensor-parallel-size 3: must be 1, 2, 4 or 8"));
    assert_null(i);
}

static void test_parts(void **state) {
    (void)state;
    struct inspection *i = inspected(1, 1024, 2, 0);
    uint64_t bytes = 0;
    uint32_t matrices = 0;
    for (uint32_t k = 0; k < i->n_parts; k++) {
        const struct inspect_part *p = &i->parts[k];
        assert_string_equal(p->stored, "BF16");
        bytes += p->bytes;
        matrices += p->matrices;
    }
    assert_int_equal(i->n_parts, i->tensors->has_mtp ? 6 : 5);
    assert_int_equal(matrices, 3 * 8 + 7 + 2 + (i->tensors->has_mtp ? 8 : 0));
    assert_true(bytes < i->tensors->bytes + i->tensors->mtp_bytes); /* vectors are not matrices */
    assert_true(bytes > i->tensors->bytes - 200000);
    inspect_free(i);
}

static void test_json(void **state) {
    (void)state;
    char *text = NULL;
    size_t bytes = 0;
    struct inspection *i = inspected(4, 1024, 2, 0);
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    inspect_print_json(i, out);
    fclose(out);
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    json_t *memory = json_object_get(root, "memory"), *about = json_object_get(root, "model");
    assert_int_equal(json_integer_value(json_object_get(memory, "ranks")), 4);
    assert_int_equal(json_integer_value(json_object_get(memory, "needed_bytes")), i->total_bytes);
    assert_string_equal(json_string_value(json_object_get(about, "architecture")), "qwen3_5");
    assert_int_equal(
            json_integer_value(json_object_get(about, "parameters")), model_config_parameters(&i->config));
    assert_true(json_is_true(json_object_get(root, "fits")));
    json_t *part = json_array_get(json_object_get(root, "matrices"), 0);
    assert_string_equal(json_string_value(json_object_get(part, "part")), "delta net");
    assert_string_equal(json_string_value(json_object_get(part, "stored")), "BF16");
    assert_int_equal(json_integer_value(json_object_get(part, "matrices")), 3 * 5);
    json_decref(root);
    free(text);
    inspect_free(i);
}

/* What is printed of the model as it is and with one piece of its configuration changed. */
static void prints(const char *from, const char *to, const char *line) {
    char *text = NULL, path[PATH_MAX];
    size_t bytes = 0;
    char *old = test_get(model, "config.json", &bytes), *config = test_changed(old, from, to);
    struct error e = {0};
    test_put_text(model, "config.json", config);
    struct inspection *i = inspected(1, 1024, 1, 0);
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    inspect_print(i, out);
    fclose(out);
    if (!strstr(text, line))
        fail_msg("%s -> %s: no '%s' in\n%s", from, to, line, text);
    inspect_free(i);
    assert_int_equal(file_path(model, "config.json", path, &e), 0);
    test_put_text(model, "config.json", old);
    free(text), free(old), free(config);
}

static void test_head_and_mtp(void **state) {
    (void)state;
    prints("{", "{", "vocabulary 2048, a head of its own\n");
    prints("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true",
            "vocabulary 2048, a head of its own (although tie_word_embeddings is true)\n");
    prints("{", "{", "\n  MTP layer     1.58 MB\n");
    prints("\"mtp_num_hidden_layers\": 1", "\"mtp_num_hidden_layers\": 0",
            "\n  MTP layer     none\n  not used      15");
}

/* --- the program --- */

/* Exit status of `shardd-checkpoint <arguments>`; what it wrote, both streams, in out. */
static int run(const char *arguments, char *out, size_t size) {
    char command[1024];
    snprintf(command, sizeof(command), "'%s/shardd-checkpoint' %s 2>&1", BIN_DIR, arguments);
    FILE *from = popen(command, "re");
    assert_non_null(from);
    size_t n = fread(out, 1, size - 1, from);
    out[n] = '\0';
    int status = pclose(from);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void expect(const char *arguments, int code, const char *part) {
    static char out[16384];
    int found = run(arguments, out, sizeof(out));
    if (found != code || !strstr(out, part))
        fail_msg("shardd-checkpoint %s\n  exit %d: %s\n  expected %d: ...%s...", arguments, found, out, code,
                part);
}

static void test_program(void **state) {
    (void)state;
    char arguments[512];
    if (access(BIN_DIR "/shardd-checkpoint", X_OK) != 0)
        skip(); /* only this test was built */
    expect("", 2, "usage: shardd inspect DIR");
    expect("--help", 0, "usage: shardd inspect DIR");
    expect("--version", 0, "shardd-checkpoint " SHARDD_VERSION);
    expect("frobnicate", 2, "'frobnicate' is none of inspect, synth, quantize and pack");
    expect("inspect --help", 0, "--tensor-parallel-size");
    expect("synth --help", 0, "--shard-size");
    expect("inspect", 2, "name one model folder");
    expect("inspect a b", 2, "name one model folder");
    expect("inspect --frob x", 2, "frob");
    expect("inspect --max-num-seqs none x", 2, "--max-num-seqs: 'none' is not a whole number");
    expect("inspect --memory 12XB x", 2, "--memory: '12XB' is no size: write it like 8GiB");
    expect("inspect --memory 0.5 x", 2, "--memory: '0.5' is no size");
    expect("inspect --memory 0 x", 2, "--memory: 0 is out of range; at least 1 byte");
    expect("inspect --memory 17000000TiB x", 2, "out of range");
    expect("synth --group-size 7 x", 2, "--group-size: '7' is out of range; it takes 32 to 128");
    expect("synth --shard-size 1.5 x", 2, "--shard-size: '1.5' is no size");
    expect("quantize --shard-size -1 x y", 2, "--shard-size: '-1' is no size");
    expect("quantize --group-size 96 x y", 2, "--group-size: 96 is none of 32, 64 and 128");
    expect("pack --threads 1K x", 2, "--threads: '1K' is not a whole number");
    expect("inspect /no/such/model", 1, "/no/such/model/config.json: cannot open");
    snprintf(arguments, sizeof(arguments), "inspect %s", model);
    expect(arguments, 0, "fits: ");
    snprintf(arguments, sizeof(arguments), "inspect %s --memory 1MB", model);
    expect(arguments, 1, "does not fit: ");
    snprintf(arguments, sizeof(arguments), "inspect %s --tensor-parallel-size 16", model);
    expect(arguments, 2, "sizes that work: 1, 2, 4, 8");
    snprintf(arguments, sizeof(arguments), "inspect %s --verify", model);
    expect(arguments, 0, "packed file     none; `shardd pack` makes it");
    expect("pack", 2, "name one model folder");
    expect("pack --threads x y", 2, "--threads: 'x' is not a whole number");
    expect("pack /no/such/model", 1, "/no/such/model/config.json: cannot open");
    snprintf(arguments, sizeof(arguments), "pack %s --verify", model);
    expect(arguments, 0, ", checksums right");
    expect(arguments, 0, "there already, checksums right");
    snprintf(arguments, sizeof(arguments), "inspect %s --verify", model);
    expect(arguments, 0, "MB, checksums right");
    expect("synth", 2, "name one folder to write");
    expect("synth --config 27c /tmp/x", 2, "--config 27c: there is no such file, and the names are 0.8b, 2b");
    expect("synth --dtype int4 /tmp/x", 2, "'int4' is not a value");
    expect("synth --layers 0 /tmp/x", 2, "'0' is out of range; it takes 1 to 256");
    snprintf(arguments, sizeof(arguments), "synth %s", model);
    expect(arguments, 1, "name a new or an empty folder");
    /* A configuration file of its own, and back. */
    snprintf(arguments, sizeof(arguments),
            "synth %s/again --config %s/config.json --layers 8 --no-mtp --vocab 512", folder, model);
    expect(arguments, 0, "tensors in 1 file");
    snprintf(arguments, sizeof(arguments), "inspect %s/again", folder);
    expect(arguments, 0, "8 layers, 6 gated delta net and 2 attention");
    snprintf(arguments, sizeof(arguments), "%s/again", folder);
    test_folder_remove(arguments);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_sizes),
            cmocka_unit_test(test_limits_of_the_model),
            cmocka_unit_test(test_verdicts),
            cmocka_unit_test(test_refusals),
            cmocka_unit_test(test_parts),
            cmocka_unit_test(test_json),
            cmocka_unit_test(test_head_and_mtp),
            cmocka_unit_test(test_program),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
