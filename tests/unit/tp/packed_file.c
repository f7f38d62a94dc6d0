/* packed_file.c - packed files: the same bits as the checkpoint at every tp, from one file that one rank makes; and
 * what is refused, by name. */
#include "bits_test.h"
#include "tests/lib/gptq_checkpoint.h"
#include "tp/load/packed.h"
#include "tp/load/packed_format.h"
#include "tp/tools/pack_verb.h"

#include <dirent.h>
#include <getopt.h>

#define GROUP  32u
#define LENGTH 65u
#define NEW    6u

static char dense[64], quantised[64], cache[64], home[64]; /* folders */

/* --- folders and files --- */

static void empty(const char *folder) {
    DIR *d = opendir(folder);
    for (struct dirent *at; d && (at = readdir(d));) {
        char path[512];
        snprintf(path, sizeof(path), "%s/%s", folder, at->d_name);
        if (at->d_name[0] != '.' && unlink(path) < 0 && errno == EISDIR) {
            empty(path);
            rmdir(path);
        }
    }
    if (d)
        closedir(d);
}

/* Every matrix INT4, gate and up reordered for down; in_proj_a and in_proj_b stay dense. */
static void choose(const char *name, struct gptq_choice *ret) {
    ret->quantise = strstr(name, "_proj.weight") || strstr(name, "in_proj_qkv") || strstr(name, "in_proj_z");
    if (strstr(name, "down_proj")) {
        ret->segments = 1;
        ret->seed = 5;
    }
}

static int make_folders(void **state) {
    (void)state;
    char golden[512], *const folders[] = {dense, quantised, cache, home};
    struct seeded_model m = {0};
    for (int i = 0; i < 4; i++) {
        snprintf(folders[i], sizeof(dense), "/tmp/shardd-packed-XXXXXX");
        if (!mkdtemp(folders[i]))
            return -1;
    }
    setenv("HOME", home, 1);
    unsetenv("XDG_CACHE_HOME");
    const struct gptq_options how = {.group = GROUP, .form = GPTQ_STORED, .choose = choose};
    snprintf(golden, sizeof(golden), "%s/golden/seeded/tp8_512", TESTS_DIR);
    int r = seeded_model_read(golden, &m);
    if (r == 0)
        r = seeded_model_write(&m, golden, SEEDED_BF16, dense);
    seeded_model_done(&m);
    return r < 0 ? r : gptq_write(dense, quantised, &how);
}

static int remove_folders(void **state) {
    (void)state;
    const char *const folders[] = {dense, quantised, cache, home};
    for (int i = 0; i < 4; i++) {
        empty(folders[i]);
        if (i == 3) {
            char path[128];
            snprintf(path, sizeof(path), "%s/.cache/shardd", home);
            empty(path);
            rmdir(path);
            snprintf(path, sizeof(path), "%s/.cache", home);
            rmdir(path);
        }
        rmdir(folders[i]);
    }
    return 0;
}

static void packed_path_in(const char *folder, char *path, size_t size) {
    snprintf(path, size, "%s/shardd-packed-%s.bin", folder, k_layout_native()->name);
}

static bool exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

/* --- running --- */

static struct rank_options options_for(const char *model, uint32_t tp, enum rank_packed packed) {
    struct rank_options o = test_options(model, tp);
    o.packed = packed;
    o.logits_rows = ROWS_MAX;
    o.mtp = true;
    return o;
}

static void run(const struct rank_options *options, bool mapped, struct one_run *ret) {
    static uint32_t ids[LENGTH];
    struct offline *o = NULL;
    struct error e = {0};
    for (uint32_t i = 0; i < LENGTH; i++)
        ids[i] = (i * 29 + 3) % 1000;
    must(offline_create(options, &o, &e), &e);
    for (uint32_t i = 0; i < options->tp; i++)
        if ((offline_rank(o, i)->packed != NULL) != mapped)
            fail_msg("rank %u: packed file %s: %s", i, mapped ? "not used" : "used",
                    offline_rank(o, i)->weights_from);
    run_start(ret, o, ids, LENGTH, NEW, true);
    must(offline_run(o, &ret->s, 1, &e), &e);
    offline_free(o);
}

static void same_bits(const struct one_run *a, const struct one_run *b) {
    size_t bytes = (size_t)(LENGTH + NEW - 1) * a->vocab * sizeof(float);
    assert_memory_equal(a->s.logits, b->s.logits, bytes);
    assert_memory_equal(a->s.mtp_logits, b->s.mtp_logits, bytes);
}

static void check_model(const char *model) {
    char path[128];
    struct one_run expected, got;
    struct rank_options o = options_for(model, 1, RANK_PACKED_AUTO);
    packed_path_in(model, path, sizeof(path));
    run(&o, false, &expected);
    assert_false(exists(path));                  /* auto makes none */
    o = options_for(model, 4, RANK_PACKED_MAKE); /* four ranks want it at once */
    run(&o, true, &got);
    assert_true(exists(path));
    same_bits(&got, &expected);
    run_done(&got);
    for (uint32_t tp = 1; tp <= 8; tp *= 2) {
        o = options_for(model, tp, RANK_PACKED_AUTO);
        o.verify_packed = tp == 1;
        run(&o, true, &got);
        same_bits(&got, &expected);
        run_done(&got);
    }
    o = options_for(model, 1, RANK_PACKED_NEVER);
    run(&o, false, &got);
    same_bits(&got, &expected);
    run_done(&got);
    run_done(&expected);
    unlink(path);
}

static void a_dense_model_has_the_same_bits(void **state) {
    (void)state;
    check_model(dense);
}

static void a_quantised_model_has_the_same_bits(void **state) {
    (void)state;
    check_model(quantised);
}

/* --- where it is --- */

static void it_is_made_in_the_folder_that_is_named(void **state) {
    (void)state;
    char path[512], deep[128];
    struct rank *r = NULL;
    struct error e = {0};
    snprintf(deep, sizeof(deep), "%s/deep/er", home);
    struct rank_options o = options_for(quantised, 1, RANK_PACKED_MAKE);
    o.packed_cache = deep;
    must(rank_create(&o, &r, &e), &e);
    assert_non_null(strstr(r->weights_from, deep));
    snprintf(path, sizeof(path), "%s", packed_name(r->packed));
    rank_free(r);
    assert_true(exists(path));
    unlink(path);
    rmdir(deep);
    snprintf(deep, sizeof(deep), "%s/deep", home);
    rmdir(deep);
    packed_path_in(quantised, path, sizeof(path));
    assert_false(exists(path));
}

/* --- what is refused --- */

struct opened { /* a packed file of the quantised model, and its fingerprint */
    char path[128];
    uint64_t fingerprint;
};

static struct opened make_one(void) {
    struct opened o;
    struct rank *r = NULL;
    struct error e = {0};
    const struct rank_options options = options_for(quantised, 1, RANK_PACKED_MAKE);
    must(rank_create(&options, &r, &e), &e);
    packed_path_in(quantised, o.path, sizeof(o.path));
    o.fingerprint = packed_fingerprint(quantised, r->fingerprint);
    rank_free(r);
    return o;
}

static void change(const char *path, off_t at, const void *bytes, size_t n) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, n, at), n);
    close(fd);
}

/* The header with a field changed and its sum made right again, as another program would have written it. */
static void change_header(const char *path, void (*edit)(struct packed_header *)) {
    struct packed_header h;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &h, sizeof(h), 0), sizeof(h));
    edit(&h);
    h.header_sum = packed_sum_of(&h, offsetof(struct packed_header, header_sum));
    assert_int_equal(pwrite(fd, &h, sizeof(h), 0), sizeof(h));
    close(fd);
}

static void refused(const struct opened *o, int code, const char *word) {
    struct packed *p = NULL;
    struct error e = {0};
    int r = packed_open(o->path, k_layout_native(), o->fingerprint, &p, &e);
    if (r != code || !strstr(e.text, word) || !strstr(e.text, o->path))
        fail_msg("expected %d '%s', got %d '%s'", code, word, r, e.text);
}

static void other_version(struct packed_header *h) {
    h->version++;
}
static void other_layout(struct packed_header *h) {
    memcpy(h->layout, "cuda-mma-1", 11);
}
static void other_weights(struct packed_header *h) {
    h->fingerprint ^= 1;
}
static void many_entries(struct packed_header *h) {
    h->n_entries = 0x7fffffff;
}
static void long_names(struct packed_header *h) {
    h->names_bytes = UINT64_MAX;
}
static void data_beyond(struct packed_header *h) {
    h->data_at = h->file_bytes * 2;
}

static void bad_files_are_refused_by_name(void **state) {
    (void)state;
    static const struct {
        void (*edit)(struct packed_header *);
        int code;
        const char *word;
    } headers[] = {{other_version, -ENOTSUP, "version 3"}, {other_layout, -ENOTSUP, "cuda-mma-1"},
            {other_weights, -ESTALE, "other weights"}, {many_entries, -EBADMSG, "table"},
            {long_names, -EBADMSG, "table"}, {data_beyond, -EBADMSG, "table"}};
    struct opened o;
    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
        o = make_one(); /* the last one was damaged: it is made anew */
        change_header(o.path, headers[i].edit);
        refused(&o, headers[i].code, headers[i].word);
    }
    o = make_one();
    change(o.path, 40, "\xff", 1); /* in the fingerprint, sum not made right */
    refused(&o, -EBADMSG, "header is damaged");
    o = make_one();
    change(o.path, sizeof(struct packed_header) + 9, "\xff", 1);
    refused(&o, -EBADMSG, "table is damaged");
    o = make_one();
    change(o.path, 0, "X", 1);
    refused(&o, -EBADMSG, "not a packed file");
    o = make_one();
    assert_int_equal(truncate(o.path, 3 << 20), 0);
    refused(&o, -EBADMSG, "cut short");
    assert_int_equal(truncate(o.path, 50), 0);
    refused(&o, -EBADMSG, "cut short");
    unlink(o.path);
    refused(&o, -ENOENT, "cannot open");
}

/* Each entry of the table with each of its bytes changed and the sums made right: never more than a refusal. */
static void hostile_tables_do_no_harm(void **state) {
    (void)state;
    struct opened o = make_one();
    struct packed_header h;
    int fd = open(o.path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &h, sizeof(h), 0), sizeof(h));
    uint64_t bytes = h.n_entries * sizeof(struct packed_entry) + h.names_bytes;
    uint8_t *table = malloc(bytes);
    assert_non_null(table);
    assert_int_equal(pread(fd, table, bytes, sizeof(h)), bytes);
    for (uint64_t at = 0; at < bytes; at += at < sizeof(struct packed_entry) ? 1 : 17) {
        for (int how = 0; how < 3; how++) {
            struct packed *p = NULL;
            uint8_t old = table[at];
            table[at] = how == 0 ? 0xff : how == 1 ? (uint8_t)(old + 1) : 0;
            h.table_sum = packed_sum_of(table, bytes);
            h.header_sum = packed_sum_of(&h, offsetof(struct packed_header, header_sum));
            assert_int_equal(pwrite(fd, table, bytes, sizeof(h)), bytes);
            assert_int_equal(pwrite(fd, &h, sizeof(h), 0), sizeof(h));
            if (packed_open(o.path, k_layout_native(), o.fingerprint, &p, NULL) == 0)
                packed_verify(p, NULL, NULL, NULL);
            packed_free(p);
            table[at] = old;
        }
    }
    close(fd);
    free(table);
    unlink(o.path);
}

static void damaged_tiles_are_found_on_demand(void **state) {
    (void)state;
    struct opened o = make_one();
    struct packed *p = NULL;
    struct rank *r = NULL;
    struct error e = {0};
    uint8_t byte;
    must(packed_open(o.path, k_layout_native(), o.fingerprint, &p, &e), &e);
    must(packed_verify(p, NULL, NULL, &e), &e);
    off_t at = (off_t)packed_bytes(p) - 100;
    packed_free(p);
    int fd = open(o.path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    close(fd);
    byte ^= 1;
    change(o.path, at, &byte, 1);
    struct rank_options options = options_for(quantised, 1, RANK_PACKED_MAKE);
    options.verify_packed = true;
    assert_int_equal(rank_create(&options, &r, &e), -EBADMSG);
    assert_non_null(strstr(e.text, o.path));
    assert_non_null(strstr(e.text, "mtp.layers.0.mlp.down_proj.weight"));
    unlink(o.path);
}

/* A file for other kernels stands beside this worker's own: it is named where it is the only one, and never used. */
static void a_file_of_another_layout_is_named(void **state) {
    (void)state;
    char path[128], other[128], *argv[] = {"pack", quantised, "--layout", "cuda-mma-2", "--verify", NULL};
    struct opened o = make_one();
    struct packed *p = NULL;
    struct rank *r = NULL;
    struct error e = {0};
    struct rank_options options = options_for(quantised, 1, RANK_PACKED_AUTO);
    unlink(o.path);
    optind = 1;
    assert_int_equal(pack_main(5, argv), 0);
    snprintf(other, sizeof(other), "%s/shardd-packed-cuda-mma-2.bin", quantised);
    must(packed_open(other, &k_layout_cuda_mma, o.fingerprint, &p, &e), &e);
    assert_non_null(packed_find(p, "mtp.layers.0.mlp.down_proj.weight"));
    packed_free(p);
    packed_path_in(quantised, path, sizeof(path));
    assert_int_equal(rename(other, path), 0); /* in the place of another: the header tells */
    assert_int_equal(packed_open(path, k_layout_native(), o.fingerprint, &p, &e), -ENOTSUP);
    assert_non_null(strstr(e.text, "holds layout cuda-mma-2, cpu-2 is wanted"));
    assert_int_equal(rename(path, other), 0);
    must(rank_create(&options, &r, &e), &e);
    assert_null(r->packed);
    assert_non_null(strstr(r->weights_from, other));
    assert_non_null(strstr(r->weights_from, "holds layout cuda-mma-2, cpu-2 is wanted"));
    rank_free(r);
    o = make_one(); /* its own beside it */
    assert_true(exists(o.path) && exists(other));
    must(rank_create(&options, &r, &e), &e);
    assert_non_null(r->packed);
    rank_free(r);
    unlink(o.path);
    unlink(other);
}

/* A changed weight, and a configuration that reads the same bytes otherwise, are other weights. */
static void changed_weights_are_noticed(void **state) {
    (void)state;
    char path[128], config[128], text[16384];
    struct one_run before, after;
    struct rank_options o = options_for(quantised, 1, RANK_PACKED_MAKE);
    run(&o, true, &before);
    packed_path_in(quantised, path, sizeof(path));
    snprintf(config, sizeof(config), "%s/config.json", quantised);
    FILE *f = fopen(config, "re");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    text[n] = '\0';
    char *v1 = strstr(text, "\"checkpoint_format\":\"gptq\"");
    assert_non_null(v1);
    f = fopen(config, "we"); /* zeros now count from 0 */
    assert_non_null(f);
    fprintf(f, "%.*s\"checkpoint_format\":\"gptq_v2\"%s", (int)(v1 - text), text,
            v1 + strlen("\"checkpoint_format\":\"gptq\""));
    fclose(f);
    o.packed = RANK_PACKED_AUTO;
    struct rank *r = NULL;
    struct error e = {0};
    must(rank_create(&o, &r, &e), &e);
    assert_null(r->packed);
    assert_non_null(strstr(r->weights_from, "other weights"));
    rank_free(r);
    o.packed = RANK_PACKED_MAKE; /* makes it again */
    run(&o, true, &after);
    assert_memory_not_equal(after.s.logits, before.s.logits, before.vocab * sizeof(float));
    run_done(&before);
    run_done(&after);
    f = fopen(config, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(a_dense_model_has_the_same_bits),
            cmocka_unit_test(a_quantised_model_has_the_same_bits),
            cmocka_unit_test(it_is_made_in_the_folder_that_is_named),
            cmocka_unit_test(bad_files_are_refused_by_name),
            cmocka_unit_test(hostile_tables_do_no_harm),
            cmocka_unit_test(damaged_tiles_are_found_on_demand),
            cmocka_unit_test(a_file_of_another_layout_is_named),
            cmocka_unit_test(changed_weights_are_noticed),
    };
    return cmocka_run_group_tests(tests, make_folders, remove_folders);
}
