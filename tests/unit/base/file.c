/* file.c - bounded reads, mappings, replacing writes. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/shardd-file-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    char path[PATH_MAX];
    (void)state;
    static const char *const names[] = {"a", "fifo", "empty"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        unlink(path);
    }
    return rmdir(folder); /* fails if a temporary file was left */
}

static const char *in_folder(const char *name) {
    static char path[PATH_MAX];
    assert_int_equal(file_path(folder, name, path, NULL), 0);
    return path;
}

static void test_replace_and_read(void **state) {
    (void)state;
    char *data = NULL;
    size_t n = 0;
    struct stat st;
    struct error e = {0};
    assert_int_equal(file_replace(in_folder("a"), "first", 5, 0644, &e), 0);
    assert_int_equal(file_replace(in_folder("a"), "second", 6, 0600, &e), 0);
    assert_int_equal(file_read(in_folder("a"), 6, &data, &n, &e), 0);
    assert_int_equal(n, 6);
    assert_string_equal(data, "second");
    free(data);
    assert_int_equal(stat(in_folder("a"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(file_read(in_folder("a"), 5, &data, &n, &e), -EFBIG);
    assert_non_null(strstr(e.text, "/a: has 6 bytes, at most 5 are read"));
}

static void test_what_is_not_a_file(void **state) {
    (void)state;
    char *data = NULL;
    size_t n = 0;
    struct error e = {0};
    assert_int_equal(file_read(in_folder("none"), 10, &data, &n, &e), -ENOENT);
    assert_non_null(strstr(e.text, "/none: cannot open: No such file or directory"));
    assert_int_equal(file_read(folder, 10, &data, &n, &e), -EISDIR);
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    assert_int_equal(file_read(in_folder("fifo"), 10, &data, &n, &e), -EINVAL);
    assert_non_null(strstr(e.text, "/fifo: is not a regular file"));
    assert_null(data);
}

static void test_map(void **state) {
    (void)state;
    struct file_map m = {0};
    struct error e = {0};
    assert_int_equal(file_replace(in_folder("a"), "mapped", 6, 0644, &e), 0);
    assert_int_equal(file_map(in_folder("a"), &m, &e), 0);
    assert_int_equal(m.bytes, 6);
    /* Replacing the file does not touch the mapping. */
    assert_int_equal(file_replace(in_folder("a"), "xxxxxx", 6, 0644, &e), 0);
    assert_memory_equal(m.data, "mapped", 6);
    file_unmap(&m);
    assert_null(m.data);
    file_unmap(&m);
    assert_int_equal(file_replace(in_folder("empty"), "", 0, 0644, &e), 0);
    assert_int_equal(file_map(in_folder("empty"), &m, &e), 0);
    assert_null(m.data);
    assert_int_equal(m.bytes, 0);
    file_unmap(&m);
}

static void test_failed_replace_leaves_nothing(void **state) {
    (void)state;
    struct error e = {0};
    char path[PATH_MAX];
    assert_int_equal(file_path(folder, "no/such/folder", path, &e), 0);
    assert_int_equal(file_replace(path, "x", 1, 0644, &e), -ENOENT);
    assert_non_null(strstr(e.text, "/no/such/folder: cannot create a file beside it"));
}

static void test_long_path(void **state) {
    (void)state;
    char *name = malloc(PATH_MAX + 1), path[PATH_MAX];
    struct error e = {0};
    assert_non_null(name);
    memset(name, 'n', PATH_MAX);
    name[PATH_MAX] = '\0';
    assert_int_equal(file_path(folder, name, path, &e), -ENAMETOOLONG);
    free(name);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_replace_and_read),
            cmocka_unit_test(test_what_is_not_a_file),
            cmocka_unit_test(test_map),
            cmocka_unit_test(test_failed_replace_leaves_nothing),
            cmocka_unit_test(test_long_path),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
