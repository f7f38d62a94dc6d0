/* The option table and its four sources: flags, environment, file, defaults; what wins, what is refused and
 * how. */
#include "launcher/options/options.h"
#include "base/file.h"

#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char *no_environment[] = {NULL};

static int load(struct options *o, enum verb verb, char *const argv[], char *const env[], struct error *e) {
    int n = 0;
    while (argv[n])
        n++;
    *e = (struct error){0};
    options_init(o, verb);
    return options_load(o, argv, n, env, e);
}
#define LOAD(o, verb, env, e, ...) load(o, verb, (char *[]){__VA_ARGS__, NULL}, env, e)

/* Expects a refusal whose sentence has both texts. */
static void refused(enum verb verb, char *const argv[], const char *a, const char *b) {
    struct options o;
    struct error e;
    assert_true(load(&o, verb, argv, no_environment, &e) < 0);
    if (!strstr(e.text, a) || !strstr(e.text, b))
        fail_msg("'%s' names neither or only one of '%s' and '%s'", e.text, a, b);
    options_done(&o);
}
#define REFUSED(verb, a, b, ...) refused(verb, (char *[]){__VA_ARGS__, NULL}, a, b)

static char *write_file(const char *text) {
    char *path = strdup("/tmp/shardd-options-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    return path;
}

static void file_refused(const char *text, const char *a, const char *b) {
    char *path = write_file(text);
    struct options o;
    struct error e = {0};
    options_init(&o, VERB_SERVE);
    assert_true(options_read_file(&o, path, &e) < 0);
    if (!strstr(e.text, a) || !strstr(e.text, b))
        fail_msg("'%s' names neither or only one of '%s' and '%s'", e.text, a, b);
    options_done(&o);
    unlink(path);
    free(path);
}

static void test_table_is_whole(void **state) {
    (void)state;
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        assert_int_equal(info->id, i);
        assert_non_null(info->name);
        assert_true(info->verbs != 0);
        assert_non_null(info->help);
        assert_true(info->type == OPTION_SWITCH || info->holder);
        assert_true(info->type != OPTION_CHOICE || info->choices);
        struct option_value v = {0};
        struct error e = {0};
        if (info->preset && option_parse(info, info->name, info->preset, &v, &e) < 0)
            fail_msg("the preset of --%s: %s", info->name, e.text);
        for (size_t k = 0; k < i; k++) {
            if ((info->verbs & option_table[k].verbs) == 0)
                continue;
            assert_string_not_equal(info->name, option_table[k].name);
            if (info->alias && option_table[k].alias)
                assert_string_not_equal(info->alias, option_table[k].alias);
        }
    }
}

static void test_flags_in_all_spellings(void **state) {
    (void)state;
    struct options o;
    struct error e;
    assert_int_equal(LOAD(&o, VERB_SERVE, no_environment, &e, "--model", "/m", "-tp", "4", "--max_num_seqs=7",
                             "--served-model-name", "a", "--served-model-name=b", "--kv-cache-memory",
                             "1.5GiB", "--step-timeout", "250ms", "--", "--not-an-option"),
            0);
    assert_string_equal(options_text(&o, OPT_MODEL), "/m");
    assert_int_equal(options_number(&o, OPT_TENSOR_PARALLEL_SIZE), 4);
    assert_int_equal(options_number(&o, OPT_MAX_NUM_SEQS), 7);
    assert_int_equal(o.values[OPT_SERVED_MODEL_NAME].n_texts, 2);
    assert_string_equal(o.values[OPT_SERVED_MODEL_NAME].texts[0], "a");
    assert_string_equal(o.values[OPT_SERVED_MODEL_NAME].texts[1], "b");
    assert_int_equal(options_number(&o, OPT_KV_CACHE_MEMORY), 1610612736);
    assert_int_equal(options_number(&o, OPT_STEP_TIMEOUT), 250);
    assert_int_equal(o.n_positional, 1);
    assert_string_equal(o.positional[0], "--not-an-option");
    options_done(&o);
}

static void test_who_wins(void **state) {
    (void)state;
    char *path = write_file(
            "[server]\nport = 1\nhost = ::1\nmax-queue = 2\n[engine]\nthreads = 3 ; with a comment\n");
    char flag[PATH_MAX];
    snprintf(flag, sizeof(flag), "--config=%s", path);
    char *env[] = {
            "SHARDD_PORT=4", "SHARDD_MAX_QUEUE=5", "SHARDD_MODEL=/e", "UNRELATED=1", "SHARDD_HOST=", NULL};
    struct options o;
    struct error e;
    assert_int_equal(LOAD(&o, VERB_SERVE, env, &e, flag, "--port", "6"), 0);
    assert_int_equal(options_number(&o, OPT_PORT), 6);
    assert_int_equal(o.values[OPT_PORT].source, OPTION_COMMAND_LINE);
    assert_int_equal(options_number(&o, OPT_MAX_QUEUE), 5);
    assert_string_equal(o.values[OPT_MAX_QUEUE].where, "SHARDD_MAX_QUEUE");
    assert_string_equal(options_text(&o, OPT_HOST), "::1"); /* an empty variable is no setting */
    assert_int_equal(options_number(&o, OPT_THREADS), 3);
    snprintf(flag, sizeof(flag), "%s:6", path);
    assert_string_equal(o.values[OPT_THREADS].where, flag);
    assert_int_equal(o.values[OPT_GRPC_THREADS].source, OPTION_DEFAULT);
    options_done(&o);
    unlink(path);
    free(path);
}

static void test_the_printed_configuration_says_the_same(void **state) {
    (void)state;
    struct options o, again;
    struct error e;
    assert_int_equal(
            LOAD(&o, VERB_SERVE, no_environment, &e, "--model", "/m", "--port", "7", "--served-model-name",
                    "a", "--served-model-name", "b", "--kv-cache-memory", "3MiB"),
            0);
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    options_print_config(out, &o);
    fclose(out);
    assert_non_null(strstr(text, "; --port"));
    assert_non_null(strstr(text, "; default"));
    char *path = write_file(text);
    options_init(&again, VERB_SERVE);
    e = (struct error){0};
    if (options_read_file(&again, path, &e) < 0)
        fail_msg("%s", e.text);
    for (size_t i = 0; i < OPTIONS_N; i++) {
        if (!option_table[i].section || !(option_table[i].verbs & VERB_SERVE))
            continue;
        assert_int_equal(o.values[i].number, again.values[i].number);
        assert_int_equal(o.values[i].n_texts, again.values[i].n_texts);
        assert_int_equal(o.values[i].text == NULL, again.values[i].text == NULL);
        if (o.values[i].text)
            assert_string_equal(o.values[i].text, again.values[i].text);
    }
    options_done(&o);
    options_done(&again);
    free(text);
    unlink(path);
    free(path);
}

/* Each value of a setting that may be given several times has an origin of its own. */
static void test_the_printed_origins(void **state) {
    (void)state;
    char *path = write_file("[server]\nserved-model-name = a\n\nserved-model-name = b\n"), flag[PATH_MAX];
    snprintf(flag, sizeof(flag), "--config=%s", path);
    struct options o;
    struct error e;
    assert_int_equal(LOAD(&o, VERB_SERVE, no_environment, &e, flag), 0);
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    options_print_config(out, &o);
    fclose(out);
    for (int line = 2; line <= 4; line += 2) {
        char origin[PATH_MAX];
        snprintf(origin, sizeof(origin), "; %s:%d\n", path, line);
        const char *found = strstr(text, line == 2 ? "served-model-name = a " : "served-model-name = b ");
        assert_non_null(found);
        const char *end = strchr(found, '\n');
        if (!strstr(found, origin) || strstr(found, origin) > end)
            fail_msg("line %d is shown as: %.*s", line, (int)(end - found), found);
    }
    options_done(&o);
    free(text);
    unlink(path);
    free(path);
}

/* A name is never suggested to who has just given it. */
static void test_the_nearest_name(void **state) {
    (void)state;
    for (size_t i = 0; i < OPTIONS_N; i++)
        for (int in_file = 0; in_file < 2; in_file++) {
            const char *name = option_table[i].name;
            const char *near = option_nearest(name, strlen(name), VERB_SERVE, in_file);
            if (near && strcmp(near, name) == 0)
                fail_msg("'%s' is said to be near to itself", name);
            if (near && in_file && !option_is_in_file(option_find(near, strlen(near), VERB_SERVE)))
                fail_msg("'%s' cannot be in a file", near);
        }
    assert_string_equal(option_nearest("max-num-seq", 11, VERB_SERVE, true), "max-num-seqs");
    assert_null(option_nearest("configg", 7, VERB_SERVE, true));
    assert_string_equal(option_nearest("configg", 7, VERB_SERVE, false), "config");
}

static void test_refused_flags(void **state) {
    (void)state;
    REFUSED(VERB_SERVE, "unknown option --max-num-sequences", "--max-num-seqs", "--max-num-sequences", "4");
    REFUSED(VERB_SERVE, "unknown option --batched-tokens", "--max-num-batched-tokens", "--batched-tokens",
            "4");
    REFUSED(VERB_SERVE, "unknown option --xyzzy", "", "--xyzzy");
    REFUSED(VERB_SERVE, "--port needs a value", "--port N", "--port");
    REFUSED(VERB_SERVE, "--port", "'-1' is not a whole number", "--port", "-1");
    REFUSED(VERB_SERVE, "--port", "0 to 65535", "--port", "99999");
    REFUSED(VERB_SERVE, "--port", "given twice", "--port", "1", "--port", "2");
    REFUSED(VERB_SERVE, "--max-queue", "'18446744073709551616'", "--max-queue", "18446744073709551616");
    REFUSED(VERB_SERVE, "--kv-cache-memory", "8GiB", "--kv-cache-memory", "12 parsecs");
    REFUSED(VERB_SERVE, "--kv-cache-memory", "is no size", "--kv-cache-memory", "1e300T");
    REFUSED(VERB_SERVE, "--kv-cache-memory: 9999999T is out of range", "at most", "--kv-cache-memory",
            "9999999T");
    REFUSED(VERB_SERVE, "--kv-cache-memory", "1.5 is no part", "--kv-cache-memory", "1.5");
    REFUSED(VERB_SERVE, "--step-timeout", "is not understood", "--step-timeout", " 3s");
    REFUSED(VERB_SERVE, "--step-timeout", "no unit", "--step-timeout", "0x10");
    REFUSED(VERB_GENERATE, "--temperature", "not a number", "--temperature", " 1");
    REFUSED(VERB_GENERATE, "--temperature", "not a number", "--temperature", "0x1");
    REFUSED(VERB_SERVE, "--step-timeout", "500ms", "--step-timeout", "soon");
    REFUSED(VERB_SERVE, "--device", "auto|cpu|cuda", "--device", "tpu");
    REFUSED(VERB_SERVE, "--model", "empty", "--model", "");
    REFUSED(VERB_SERVE, "--print-config", "neither true nor false", "--print-config=maybe");
    REFUSED(VERB_GENERATE, "--temperature", "not a number", "--temperature", "warm");
    REFUSED(VERB_GENERATE, "--temperature", "not a number", "--temperature", "nan");
    REFUSED(VERB_GENERATE, "--temperature", "0 to 100", "--temperature", "-3");
    REFUSED(VERB_STATUS, "unknown option --max-tokens", "", "--max-tokens", "4");
}

static void test_contradictions(void **state) {
    (void)state;
    REFUSED(VERB_SERVE, "--tensor-parallel-size 3", "1, 2, 4 or 8", "-tp", "3");
    REFUSED(VERB_SERVE, "--ranks-per-process 2", "--tensor-parallel-size 1", "--ranks-per-process", "2");
    REFUSED(VERB_SERVE, "--max-num-batched-tokens 8", "--max-num-seqs 9", "--max-num-batched-tokens", "8",
            "--max-num-seqs", "9");
    REFUSED(VERB_GENERATE, "--server", "--model", "--server", "x:1", "--model", "/m", "hi");
    REFUSED(VERB_GENERATE, "--chat", "--prompt-token-ids", "--chat", "--prompt-token-ids", "1");
    REFUSED(VERB_GENERATE, "--min-tokens 5", "--max-tokens 4", "--min-tokens", "5", "--max-tokens", "4",
            "hi");
    REFUSED(VERB_GENERATE, "--system", "--chat", "--system", "s", "hi");
    REFUSED(VERB_GENERATE, "--logprobs", "--json", "--logprobs", "3", "hi");
    REFUSED(VERB_GENERATE, "--top-p", "1 turns it off", "--top-p", "0", "hi");
    REFUSED(VERB_GENERATE, "--max-num-seqs", "--model DIR", "--max-num-seqs", "3", "hi");
}

static void test_one_of_two_limits_follows_the_other(void **state) {
    (void)state;
    struct options o;
    struct error e;
    assert_int_equal(LOAD(&o, VERB_SERVE, no_environment, &e, "--max-num-batched-tokens", "16"), 0);
    assert_int_equal(options_number(&o, OPT_MAX_NUM_SEQS), 16);
    options_done(&o);
    assert_int_equal(LOAD(&o, VERB_SERVE, no_environment, &e, "--max-num-seqs", "1000"), 0);
    assert_int_equal(
            options_number(&o, OPT_MAX_NUM_BATCHED_TOKENS), 0); /* the worker's choice, at least these */
    options_done(&o);
}

/* Who names a drafter wants drafts; who says how many, gets as many. */
static void test_speculation(void **state) {
    (void)state;
    struct options o;
    struct error e;
    assert_int_equal(LOAD(&o, VERB_SERVE, no_environment, &e, "--port", "0"), 0);
    assert_int_equal(options_number(&o, OPT_SPECULATIVE_TOKENS), 0);
    options_done(&o);
    assert_int_equal(LOAD(&o, VERB_SERVE, no_environment, &e, "--speculation", "lookup"), 0);
    assert_int_equal(options_number(&o, OPT_SPECULATIVE_TOKENS), 7);
    options_done(&o);
    assert_int_equal(LOAD(&o, VERB_SERVE, no_environment, &e, "--speculation", "off"), 0);
    assert_int_equal(options_number(&o, OPT_SPECULATIVE_TOKENS), 0);
    options_done(&o);
    assert_int_equal(
            LOAD(&o, VERB_SERVE, no_environment, &e, "--speculation", "mtp", "--speculative-tokens", "2"), 0);
    assert_int_equal(options_number(&o, OPT_SPECULATIVE_TOKENS), 2);
    options_done(&o);
    REFUSED(VERB_SERVE, "--speculative-tokens", "16", "--speculative-tokens", "16");
}

/* --devices says how many ranks there are and that GPUs serve, where nobody else does. */
static void test_devices(void **state) {
    (void)state;
    struct options o;
    struct error e;
    assert_int_equal(LOAD(&o, VERB_SERVE, no_environment, &e, "--devices", "0,GPU-8c25"), 0);
    assert_int_equal(options_number(&o, OPT_TENSOR_PARALLEL_SIZE), 2);
    assert_string_equal(options_text(&o, OPT_DEVICE), "cuda");
    options_done(&o);
    assert_int_equal(LOAD(&o, VERB_DOCTOR, no_environment, &e, "--devices", "3", "--device", "auto"), 0);
    assert_int_equal(options_number(&o, OPT_TENSOR_PARALLEL_SIZE), 1);
    assert_string_equal(options_text(&o, OPT_DEVICE), "auto");
    options_done(&o);
    char *environment[] = {"SHARDD_DEVICES=0,1", NULL};
    assert_int_equal(LOAD(&o, VERB_SERVE, environment, &e, "--device", "cpu"), 0); /* a flag wins */
    assert_int_equal(options_number(&o, OPT_TENSOR_PARALLEL_SIZE), 1);
    options_done(&o);
    assert_int_equal(
            LOAD(&o, VERB_SERVE, no_environment, &e, "--devices", "0,1", "--device", "cpu"), -EINVAL);
    assert_non_null(strstr(e.text, "--devices 0,1 names GPUs, and --device cpu takes none"));
    options_done(&o);
    assert_int_equal(LOAD(&o, VERB_SERVE, no_environment, &e, "--devices", "0,1,2"), -EINVAL);
    assert_non_null(strstr(e.text, "names 3 GPUs"));
    options_done(&o);
}

static void test_refused_files(void **state) {
    (void)state;
    file_refused("[engine]\nmax-num-seq = 3\n", ":2: there is no setting 'max-num-seq'", "'max-num-seqs'");
    file_refused("\n\n[engin]\nthreads = 3\n", ":4: there is no section [engin]", "[engine]");
    file_refused("[server]\nthreads = 3\n", ":2: 'threads' belongs to section [engine]", "[server]");
    file_refused("port = 1\nport = 2\n", ":2:", "given twice");
    file_refused("[server]\nport = none\n", ":2: port: 'none' is not a whole number", "");
    file_refused("[server]\nport\n", ":2:", "name = value");
    file_refused("[server]\nconfig = x\n", ":2:", "'config' is for the command line only");
    file_refused("[server]\nserver = x:1\n", ":2:", "write [server] in a line of its own");
    file_refused("port = 1\nengine = 3\n", ":2:", "write [engine] in a line of its own");
    file_refused("[server]\nconfigg = x\n", ":2:", "`shardd serve --help` lists them");
    file_refused("[server]\nport = 1\n\n[engine]\nthreads = 2\n[server]\nport = 3\n",
            ":7: 'port' is given twice", ":2");
    file_refused("[model]\n  model = /m\n  seed = -1\n", ":3:", "seed");
    char *line = calloc(1, 9000);
    memset(line, 'x', 8999);
    memcpy(line, "host = ", 7);
    file_refused(line, ":1: the line is longer", "");
    free(line);
    struct options o;
    struct error e = {0};
    options_init(&o, VERB_SERVE);
    assert_int_equal(options_read_file(&o, "/no/such/file", &e), -ENOENT);
    assert_non_null(strstr(e.text, "/no/such/file"));
    assert_int_equal(options_read_file(&o, "/dev/zero", &e), -EINVAL);
    options_done(&o);
}

static void test_long_lines_are_whole(void **state) {
    (void)state;
    char line[3001] = "model = /";
    memset(line + 9, 'x', sizeof(line) - 10);
    char *path = write_file(line);
    struct options o;
    struct error e = {0};
    options_init(&o, VERB_SERVE);
    if (options_read_file(&o, path, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(strlen(options_text(&o, OPT_MODEL)), sizeof(line) - 9);
    options_done(&o);
    unlink(path);
    free(path);
}

static void test_zero_bytes_in_a_file(void **state) {
    (void)state;
    char path[] = "/tmp/shardd-options-XXXXXX";
    int fd = mkstemp(path);
    assert_int_equal(write(fd, "port = 1\n\0port = 2\n", 19), 19);
    close(fd);
    struct options o;
    struct error e = {0};
    options_init(&o, VERB_SERVE);
    assert_int_equal(options_read_file(&o, path, &e), -EINVAL);
    assert_non_null(strstr(e.text, "zero byte"));
    options_done(&o);
    unlink(path);
}

static void test_the_environment(void **state) {
    (void)state;
    struct options o;
    struct error e;
    char *kubernetes[] = {"SHARDD_PORT=tcp://10.0.0.7:50051", NULL};
    assert_int_equal(LOAD(&o, VERB_SERVE, kubernetes, &e, "--host", "::"), -EINVAL);
    assert_non_null(strstr(e.text, "Kubernetes"));
    options_done(&o);
    assert_int_equal(LOAD(&o, VERB_SERVE, kubernetes, &e, "--port", "1"), 0);
    options_done(&o);
    char *bad[] = {"SHARDD_MAX_QUEUE=many", NULL};
    assert_int_equal(LOAD(&o, VERB_SERVE, bad, &e, "--port", "1"), -EINVAL);
    assert_non_null(strstr(e.text, "SHARDD_MAX_QUEUE: 'many'"));
    options_done(&o);
    /* A client takes its server from there, and nothing that sets up a service. */
    char *both[] = {"SHARDD_SERVER=h:1", "SHARDD_MODEL=/m", NULL};
    assert_int_equal(LOAD(&o, VERB_GENERATE, both, &e, "hi"), 0);
    assert_string_equal(options_text(&o, OPT_SERVER), "h:1");
    assert_false(options_given(&o, OPT_MODEL));
    options_done(&o);
    /* A flag wins over it without being called a contradiction. */
    assert_int_equal(LOAD(&o, VERB_GENERATE, both, &e, "--model", "/m", "hi"), 0);
    options_done(&o);
}

static void test_help_shows_every_option(void **state) {
    (void)state;
    static const unsigned verbs[] = {VERB_SERVE, VERB_GENERATE, VERB_CHAT, VERB_STATUS, VERB_DOCTOR};
    for (size_t v = 0; v < sizeof(verbs) / sizeof(verbs[0]); v++) {
        char *text = NULL;
        size_t bytes = 0;
        FILE *out = open_memstream(&text, &bytes);
        options_print_help(out, verbs[v]);
        fclose(out);
        for (size_t i = 0; i < OPTIONS_N; i++) {
            char name[80];
            snprintf(name, sizeof(name), "  --%s", option_table[i].name);
            if (option_table[i].verbs & verbs[v])
                assert_non_null(strstr(text, name));
        }
        free(text);
    }
}

static char *read_project_file(const char *name) {
    char path[PATH_MAX], *text = NULL;
    size_t bytes = 0;
    struct error e = {0};
    snprintf(path, sizeof(path), "%s/../%s", TESTS_DIR, name);
    if (file_read(path, 1 << 20, &text, &bytes, &e) < 0)
        fail_msg("%s", e.text);
    return text;
}

/* deploy/shardd.conf: every setting of a file, commented out, at its default. */
static void test_the_sample_file_is_complete(void **state) {
    (void)state;
    char *text = read_project_file("deploy/shardd.conf");
    for (char *at = text; *at; at++) /* ";name = value" is a setting, "; text" a comment */
        if (*at == ';' && (at == text || at[-1] == '\n') && at[1] != ' ' && at[1] != '\n')
            *at = ' ';
    char *path = write_file(text);
    struct options o;
    struct error e = {0};
    options_init(&o, VERB_SERVE);
    if (options_read_file(&o, path, &e) < 0)
        fail_msg("%s", e.text);
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        if (!info->section || !(info->verbs & VERB_SERVE))
            continue;
        if (!options_given(&o, info->id))
            fail_msg("deploy/shardd.conf lacks %s", info->name);
        if (info->preset)
            assert_string_equal(options_text(&o, info->id), info->preset);
    }
    options_done(&o);
    unlink(path);
    free(path);
    free(text);
}

static void test_the_documentation_is_complete(void **state) {
    (void)state;
    char *configuration = read_project_file("docs/configuration.md"), *cli = read_project_file("docs/cli.md");
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        char name[80];
        bool setting = (info->verbs & VERB_SERVE) && info->section;
        snprintf(name, sizeof(name), setting ? "| `%s` |" : "`--%s", info->name);
        if (info->id != OPT_HELP && !strstr(configuration, name) && (setting || !strstr(cli, name)))
            fail_msg("docs/ does not tell of --%s", info->name);
    }
    free(configuration);
    free(cli);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_table_is_whole),
            cmocka_unit_test(test_flags_in_all_spellings),
            cmocka_unit_test(test_who_wins),
            cmocka_unit_test(test_the_printed_configuration_says_the_same),
            cmocka_unit_test(test_the_printed_origins),
            cmocka_unit_test(test_the_nearest_name),
            cmocka_unit_test(test_refused_flags),
            cmocka_unit_test(test_contradictions),
            cmocka_unit_test(test_one_of_two_limits_follows_the_other),
            cmocka_unit_test(test_speculation),
            cmocka_unit_test(test_devices),
            cmocka_unit_test(test_refused_files),
            cmocka_unit_test(test_zero_bytes_in_a_file),
            cmocka_unit_test(test_long_lines_are_whole),
            cmocka_unit_test(test_the_environment),
            cmocka_unit_test(test_help_shows_every_option),
            cmocka_unit_test(test_the_sample_file_is_complete),
            cmocka_unit_test(test_the_documentation_is_complete),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
