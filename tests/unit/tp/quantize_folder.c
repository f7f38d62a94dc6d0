/* quantize_folder.c - whole runs of quantize over small synthetic models: what is written, read back through the
 * loader's own reader and decoded by hand; memory; and that a run which fails or is stopped leaves nothing behind. */
#include "checkpoint_test.h"
#include "tp/quantize/quantize.h"

#include "tp/checkpoint/quant_config.h"
#include "tp/synth/synth.h"

#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static char folder[TEST_FOLDER_SIZE];

static int make_folder(void **state) {
    (void)state;
    test_folder_make(folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    test_folder_remove(folder);
    return 0;
}

static const char *in_folder(const char *name) {
    static char paths[64][PATH_MAX]; /* more than a test holds at a time */
    static int next;
    next = (next + 1) % 64;
    assert_int_equal(file_path(folder, name, paths[next], NULL), 0);
    return paths[next];
}

static const char *synth(const char *config, uint32_t layers, enum tensor_dtype dtype, bool tied) {
    const char *dir = in_folder("source");
    struct synth_options o = {.dir = dir, .name = config, .dtype = dtype, .seed = 3};
    struct error e = {0};
    assert_int_equal(synth_config(config, &o.config), 0);
    if (layers)
        synth_config_set_layers(&o.config, layers);
    o.config.tie_word_embeddings = tied;
    o.config.mtp_layers = 1;
    if (synth_write(&o, NULL, &e) < 0)
        fail_msg("%s", e.text);
    return dir;
}

static struct quantize_options options(const char *source) {
    return (struct quantize_options){.source = source,
            .target = in_folder("target"),
            .weight_bits = 4,
            .head_bits = 16,
            .mtp_bits = 16,
            .group = 32,
            .threads = 2,
            .hessian_columns_max = 4096};
}

static void expect_failure(const struct quantize_options *o, int code, const char *text) {
    struct quantize_report report;
    struct error e = {0};
    assert_int_equal(quantize_run(o, &report, &e), code);
    if (!strstr(e.text, text))
        fail_msg("'%s' is not in '%s'", text, e.text);
    assert_int_equal(access(in_folder("target.part"), F_OK), -1);
}

static void run(const struct quantize_options *o, struct quantize_report *ret) {
    struct error e = {0};
    if (quantize_run(o, ret, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(access(in_folder("target.part"), F_OK), -1);
}

/* --- reading back --- */

static double widen(const struct tensor *t, uint64_t i) {
    uint32_t bits;
    float f;
    if (t->dtype == TENSOR_F32) {
        memcpy(&f, (const char *)t->data + 4 * i, 4);
        return (double)f;
    }
    uint16_t h = ((const uint16_t *)t->data)[i];
    if (t->dtype == TENSOR_BF16) {
        bits = (uint32_t)h << 16;
        memcpy(&f, &bits, 4);
        return (double)f;
    }
    double x = (h >> 10 & 31) ? ldexp(1024 + (h & 1023), (h >> 10 & 31) - 25) : ldexp(h & 1023, -24);
    return h & 0x8000 ? -x : x;
}

/* An element decoded from the parts by the format's definition, bit by bit. */
static double decode(const struct test_model *l, const char *module, uint32_t bits, uint32_t group,
        uint64_t r, uint64_t k) {
    char name[200];
    snprintf(name, sizeof(name), "%s.weight_packed", module);
    const struct tensor *packed = checkpoint_find(l->c, name);
    snprintf(name, sizeof(name), "%s.weight_scale", module);
    const struct tensor *scale = checkpoint_find(l->c, name);
    snprintf(name, sizeof(name), "%s.weight_zero_point", module);
    const struct tensor *zero = checkpoint_find(l->c, name);
    snprintf(name, sizeof(name), "%s.weight_shape", module);
    const struct tensor *shape = checkpoint_find(l->c, name);
    assert_true(packed && scale && shape);
    const uint32_t *words = packed->data;
    uint64_t columns = (uint64_t)((const int64_t *)shape->data)[1], groups = scale->dims[1], per = 32 / bits;
    assert_int_equal(packed->dims[1], columns / per);
    assert_int_equal(groups, columns / group);
    uint32_t mask = (1u << bits) - 1, z = 1u << (bits - 1);
    uint32_t code = words[r * (columns / per) + k / per] >> k % per * bits & mask;
    if (zero)
        z = ((const uint32_t *)zero->data)[r / per * groups + k / group] >> r % per * bits & mask;
    return widen(scale, r * groups + k / group) * ((double)code - z);
}

/* Is a matrix quantised with so many bits; do our reader and the definition agree; is it near the original? */
static void check_matrix(const struct test_model *l, const struct tensor *t, const struct tensor *original,
        const char *module, uint32_t bits, uint32_t group, double error_max) {
    uint8_t code;
    struct quant_group g;
    double miss = 0, total = 0;
    if (bits == 16) {
        assert_int_equal(t->dtype, original->dtype);
        assert_memory_equal(t->data, original->data, t->bytes);
        return;
    }
    assert_int_equal(t->dtype, TENSOR_QUANTISED);
    assert_int_equal(t->quant->group, group);
    for (uint32_t r = 0; r < t->dims[0]; r += 5)
        for (uint32_t k = r % 3; k < t->dims[1]; k += 3) {
            double value = decode(l, module, bits, group, r, k),
                   w = widen(original, r * original->dims[1] + k);
            t->quant->codes(t->quant, r, 1, k, 1, &code);
            t->quant->groups(t->quant, r, k / group, 1, &g);
            assert_true(value == (double)g.scale * ((double)code - g.zero));
            miss += (w - value) * (w - value);
            total += w * w;
        }
    assert_true(miss > 0 && sqrt(miss / total) < error_max);
}

static void check_model(const char *source, const struct quantize_options *o, bool tied) {
    struct test_model a, b;
    a = test_model_load(source);
    b = test_model_load(o->target);
    const double error_max = o->weight_bits == 8 ? 0.01 : 0.12;
    assert_int_equal(b.m.tie_word_embeddings, tied && o->head_bits == 16);
    const struct layer_tensors *x = &a.t->layers[0], *y = &b.t->layers[0];
    char name[100];
    snprintf(name, sizeof(name), "%slayers.0.linear_attn.in_proj_qkv", a.t->prefix);
    check_matrix(&b, y->gdn.in_qkv, x->gdn.in_qkv, name, o->weight_bits, o->group, error_max);
    check_matrix(&b, y->gdn.in_a, x->gdn.in_a, "", 16, 0, 0);
    check_matrix(&b, y->gdn.conv, x->gdn.conv, "", 16, 0, 0);
    x = &a.t->layers[3];
    y = &b.t->layers[3];
    snprintf(name, sizeof(name), "%slayers.3.self_attn.k_proj", a.t->prefix);
    check_matrix(&b, y->attention.k, x->attention.k, name, o->weight_bits, o->group, error_max);
    snprintf(name, sizeof(name), "%slayers.3.mlp.down_proj", a.t->prefix);
    check_matrix(&b, y->down, x->down, name, o->weight_bits, o->group, error_max);
    check_matrix(&b, b.t->embed, a.t->embed, "", 16, 0, 0);
    check_matrix(&b, b.t->lm_head, a.t->lm_head, "lm_head", o->head_bits, o->group, 0.12);
    check_matrix(&b, b.t->mtp.layer.attention.o, a.t->mtp.layer.attention.o, "mtp.layers.0.self_attn.o_proj",
            o->mtp_bits, o->group, 0.12);
    check_matrix(&b, b.t->mtp.fc, a.t->mtp.fc, "", 16, 0, 0);
    test_model_done(&a);
    test_model_done(&b);
}

/* What config.json says of modules, by the reader of the loader. */
static void check_config(const char *dir, const char *prefix, uint32_t bits, uint32_t head, uint32_t mtp) {
    struct quant_config *c = NULL;
    struct quant_scheme s;
    const char *excluded;
    struct error e = {0};
    char name[100];
    assert_int_equal(quant_config_load(dir, &c, &e), 0);
    assert_non_null(c);
    const struct {
        const char *module;
        bool prefixed;
        uint32_t bits;
    } modules[] = {{"layers.0.mlp.up_proj", true, bits}, {"layers.3.self_attn.q_proj", true, bits},
            {"layers.0.linear_attn.in_proj_a", true, 16}, {"layers.1.linear_attn.in_proj_b", true, 16},
            {"layers.2.linear_attn.conv1d", true, 16}, {"embed_tokens", true, 16}, {"lm_head", false, head},
            {"mtp.layers.0.mlp.gate_proj", false, mtp}, {"mtp.fc", false, 16}};
    for (size_t i = 0; i < sizeof(modules) / sizeof(modules[0]); i++) {
        snprintf(name, sizeof(name), "%s%s", modules[i].prefixed ? prefix : "", modules[i].module);
        assert_int_equal(quant_config_find(c, name, &s, &excluded, &e), 0);
        if ((modules[i].bits == 16) != (excluded != NULL) || (!excluded && s.bits != modules[i].bits))
            fail_msg("%s: %s, %u bits", name, excluded ? excluded : "quantised", s.bits);
    }
    quant_config_free(c);
}

static void check_run(struct quantize_options *o, enum tensor_dtype dtype, bool tied) {
    struct quantize_report report;
    struct test_model a;
    const char *source = synth("tiny", 4, dtype, tied);
    o->source = source;
    run(o, &report);
    assert_true(report.n_matrices > 20 && report.target_bytes < report.source_bytes);
    for (uint32_t i = 0; i < report.n_matrices; i++)
        assert_true(report.matrices[i].error > 0 && report.matrices[i].error < 0.12);
    quantize_report_done(&report);
    check_model(source, o, tied);
    a = test_model_load(source);
    check_config(o->target, a.t->prefix, o->weight_bits, o->head_bits, o->mtp_bits);
    test_model_done(&a);
    assert_int_equal(access(in_folder("target/tokenizer.json"), R_OK), 0);
    assert_int_equal(access(in_folder("target/generation_config.json"), R_OK), 0);
    test_folder_remove(o->source);
    test_folder_remove(o->target);
}

static void test_written_models(void **unused) {
    (void)unused;
    struct quantize_options o = options(NULL);
    check_run(&o, TENSOR_BF16, true);
    o.asymmetric = true;
    o.head_bits = 8;
    o.mtp_bits = 4;
    check_run(&o, TENSOR_F16, true);
    o.weight_bits = 8;
    o.group = 64;
    o.head_bits = 4;
    o.mtp_bits = 8;
    check_run(&o, TENSOR_F32, false);
    o.asymmetric = false;
    o.shard_bytes = 1000000; /* several files, a matrix's parts together */
    check_run(&o, TENSOR_BF16, false);
}

static void test_ignored_modules(void **unused) {
    (void)unused;
    static const char *const patterns[] = {"*.layers.3.*", "*.up_proj"};
    struct quantize_options o = options(synth("tiny", 4, TENSOR_BF16, true));
    struct quantize_report report;
    struct test_model b;
    o.ignore = patterns;
    o.n_ignore = 2;
    run(&o, &report);
    for (uint32_t i = 0; i < report.n_matrices; i++)
        assert_true(
                !strstr(report.matrices[i].name, "layers.3") && !strstr(report.matrices[i].name, "up_proj"));
    quantize_report_done(&report);
    b = test_model_load(o.target);
    assert_int_equal(b.t->layers[0].up->dtype, TENSOR_BF16);
    assert_int_equal(b.t->layers[0].gate->dtype, TENSOR_QUANTISED);
    assert_int_equal(b.t->layers[3].attention.q->dtype, TENSOR_BF16);
    test_model_done(&b);
    static const char *const everything[] = {"*"};
    test_folder_remove(o.target);
    o.ignore = everything;
    o.n_ignore = 1;
    expect_failure(&o, -EDOM, "nothing is left to quantise");
}

/* --- refusals --- */

static void write_text(const char *name, const char *text) {
    struct error e = {0};
    assert_int_equal(file_replace(in_folder(name), text, strlen(text), 0644, &e), 0);
}

static void test_refusals(void **unused) {
    (void)unused;
    struct quantize_options o = options(synth("tiny", 4, TENSOR_BF16, true));
    struct quantize_report report;
    struct error e = {0};
    assert_int_equal(mkdir(in_folder("target"), 0777), 0);
    write_text("target/x", "x");
    expect_failure(&o, -EEXIST, "has 'x' in it: name a new or an empty folder");
    unlink(in_folder("target/x")); /* an empty one is taken */
    assert_int_equal(mkdir(in_folder("target.part"), 0777), 0);
    assert_int_equal(quantize_run(&o, &report, &e), -EEXIST);
    assert_non_null(strstr(e.text, "target.part: is there: another run is writing it, or one was killed"));
    assert_int_equal(rmdir(in_folder("target.part")), 0); /* which a refusal must not take away */
    o.group = 96;
    expect_failure(&o, -EDOM, "not a multiple of --group-size 96");
    o.group = 32;
    run(&o, &report);
    quantize_report_done(&report);
    struct quantize_options again = o;
    again.source = o.target;
    again.target = in_folder("again");
    expect_failure(&again, -EINVAL, "quantised already: start from the original");
    again.source = in_folder("nowhere");
    expect_failure(&again, -ENOENT, "nowhere");
}

static void test_sequence_files(void **unused) {
    (void)unused;
    struct quantize_sequences s;
    struct error e = {0};
    write_text("a.jsonl",
            "{\"ids\":[1,2,3]}\n\n{\"x\":{},\"prompt_ids\":[4,5],\"reply_ids\":[6]}\r\n{\"ids\":[9]}\n");
    assert_int_equal(quantize_sequences_read(in_folder("a.jsonl"), 10, 100, &s, &e), 0);
    assert_int_equal(s.n, 2); /* one token alone predicts nothing */
    assert_int_equal(s.begin[2], 6);
    assert_int_equal(s.ids[5], 6);
    quantize_sequences_done(&s);
    assert_int_equal(quantize_sequences_read(in_folder("a.jsonl"), 10, 4, &s, &e), 0); /* what fits */
    assert_int_equal(s.n, 1);
    quantize_sequences_done(&s);
    const struct {
        const char *text, *sentence;
        int code;
    } bad[] = {{"{\"ids\":[1,2]}\n{\"ids\":[1,10]}\n", "a.jsonl, line 2: line 1 column", -EINVAL},
            {"{\"text\":\"hello\"}\n", "line 1: has neither \"ids\" nor \"prompt_ids\"", -EINVAL},
            {"{\"ids\":[1,\"2\"]}\n", "expected a number", -EINVAL}, {"{\"ids\":[1,2}\n", "line 1", -EBADMSG},
            {"[1,2]\n", "line 1", -EBADMSG}, {"\n", "no sequence of two tokens", -EINVAL}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        write_text("a.jsonl", bad[i].text);
        assert_int_equal(quantize_sequences_read(in_folder("a.jsonl"), 10, 100, &s, &e), bad[i].code);
        if (!strstr(e.text, bad[i].sentence))
            fail_msg("'%s' is not in '%s'", bad[i].sentence, e.text);
    }
}

/* --- running out of things --- */

/* Exit status of quantize in a process of its own that has a limit; 0, or minus its error. */
static int run_limited(const struct quantize_options *o, int resource, rlim_t limit) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct quantize_report report;
        struct error e = {0};
        struct rlimit all = {limit, limit};
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(resource, &all);
        int r = quantize_run(o, &report, &e);
        if (r == 0)
            quantize_report_done(&report);
        else
            fprintf(stderr, "%s\n", e.text);
        _exit(-r);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_no_room(void **unused) {
    (void)unused;
    struct quantize_options o = options(synth("tiny", 4, TENSOR_BF16, true));
    assert_int_equal(run_limited(&o, RLIMIT_FSIZE, 1000000), EFBIG); /* the weights' file */
    assert_int_equal(access(o.target, F_OK), -1);
    assert_int_equal(access(in_folder("target.part"), F_OK), -1);
    o.shard_bytes = 100000;
    assert_int_equal(run_limited(&o, RLIMIT_NOFILE, 12), EMFILE);
    assert_int_equal(access(in_folder("target.part"), F_OK), -1);
    o.shard_bytes = 0;
    assert_int_equal(run_limited(&o, RLIMIT_FSIZE, 100000000), 0);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

/* A model in two thirds of its size of memory that is not the file's. */
static void test_memory_is_bounded(void **unused) {
    (void)unused;
#ifdef SANITIZED
    skip(); /* a sanitizer's own memory passes any limit */
#else
    struct quantize_options o = options(synth("small", 0, TENSOR_F32, true));
    struct stat st;
    assert_int_equal(stat(in_folder("source/model.safetensors"), &st), 0);
    assert_true(st.st_size > 150000000);
    o.head_bits = 8;
    assert_int_equal(run_limited(&o, RLIMIT_DATA, (rlim_t)st.st_size * 2 / 3), 0);
    test_folder_remove(o.target);
    assert_int_not_equal(run_limited(&o, RLIMIT_DATA, 4u << 20), 0); /* the limit does limit */
    assert_int_equal(access(in_folder("target.part"), F_OK), -1);
#endif
}

/* --- interruption --- */

struct stopper {
    volatile int stop;
    uint64_t after; /* bytes */
};

static void stop_after(void *context, const char *what, uint64_t done, uint64_t total) {
    struct stopper *s = context;
    (void)what;
    assert_true(done <= total);
    if (done > s->after)
        s->stop = 1;
}

static const char SEQUENCES[] =
        "{\"ids\":[1,2,3,4,5,6,7,8,9,10,11,12]}\n{\"ids\":[30,29,28,27,26,25,24,23,22]}\n";

static void test_interruption(void **unused) {
    (void)unused;
    struct quantize_options o = options(synth("tiny", 4, TENSOR_BF16, true));
    struct stat st;
    assert_int_equal(stat(in_folder("source/model.safetensors"), &st), 0);
    write_text("s.jsonl", SEQUENCES);
    for (int i = 0; i < 6; i++) {
        struct stopper s = {.after = (uint64_t)st.st_size * (uint64_t)i / 7};
        o.stop = &s.stop;
        o.progress = stop_after;
        o.progress_context = &s;
        o.calibration = i % 2 ? in_folder("s.jsonl") : NULL;
        expect_failure(&o, -ECANCELED, "interrupted");
        assert_int_equal(access(o.target, F_OK), -1);
    }
}

/* --- sequences --- */

static void write_sequences(const char *name, uint32_t seed) {
    char text[40000];
    size_t at = 0;
    for (int i = 0; i < 16; i++) {
        at += (size_t)snprintf(text + at, sizeof(text) - at, "{\"ids\":[5");
        for (int k = 0; k < 70; k++) {
            seed = seed * 1664525u + 1013904223u;
            at += (size_t)snprintf(text + at, sizeof(text) - at, ",%u", (seed >> 16) % 256);
        }
        at += (size_t)snprintf(text + at, sizeof(text) - at, "]}\n");
    }
    write_text(name, text);
}

static double kl_of(
        struct quantize_options *o, bool calibrated, uint32_t columns_max, struct quantize_report *ret) {
    o->calibration = calibrated ? in_folder("calibration.jsonl") : NULL;
    o->evaluation = in_folder("evaluation.jsonl");
    o->hessian_columns_max = columns_max;
    run(o, ret);
    test_folder_remove(o->target);
    assert_int_equal(ret->evaluation_tokens, 16 * 71);
    assert_true(ret->n_layers == 4 && ret->has_mtp && ret->mtp_kl > 0);
    assert_true(ret->kl > 0 && ret->kl <= ret->kl_max && ret->top_1 > 0.02 && ret->top_1 <= 1);
    double kl = ret->kl;
    quantize_report_done(ret);
    return kl;
}

static void test_calibration_and_evaluation(void **unused) {
    (void)unused;
    struct quantize_options o = options(synth("tiny", 4, TENSOR_BF16, true));
    struct quantize_report report;
    write_sequences("calibration.jsonl", 1);
    write_sequences("evaluation.jsonl", 2);
    o.mtp_bits = 4;
    double plain = kl_of(&o, false, 4096, &report), fed_back = kl_of(&o, true, 4096, &report);
    assert_true(fed_back < 0.95 * plain);
    double weighted = kl_of(&o, true, 0, &report); /* too wide for error feedback: still works */
    assert_true(weighted < 1.1 * plain);
    o.threads = 1; /* the same bytes, the same figure */
    assert_true(kl_of(&o, true, 4096, &report) == fed_back);
    o.weight_bits = 8;
    o.head_bits = 8;
    assert_true(kl_of(&o, false, 4096, &report) < 0.1 * plain);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test_setup_teardown(test_written_models, make_folder, remove_folder),
            cmocka_unit_test_setup_teardown(test_ignored_modules, make_folder, remove_folder),
            cmocka_unit_test_setup_teardown(test_refusals, make_folder, remove_folder),
            cmocka_unit_test_setup_teardown(test_sequence_files, make_folder, remove_folder),
            cmocka_unit_test_setup_teardown(test_no_room, make_folder, remove_folder),
            cmocka_unit_test_setup_teardown(test_memory_is_bounded, make_folder, remove_folder),
            cmocka_unit_test_setup_teardown(test_interruption, make_folder, remove_folder),
            cmocka_unit_test_setup_teardown(test_calibration_and_evaluation, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
