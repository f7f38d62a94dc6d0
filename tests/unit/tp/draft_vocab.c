/* The file of --draft-vocab: what it may hold, what is refused by line, and what is left of it. */
#include "tp/load/draft_vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char path[] = "/tmp/shardd-draft-vocab-XXXXXX";

static void put(const char *text, size_t n) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* n ids from `first` down, a line each, behind `before`. */
static void put_ids(const char *before, uint32_t first, uint32_t n) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    fputs(before, f);
    for (uint32_t i = 0; i < n; i++)
        fprintf(f, "%u\n", first - i);
    fclose(f);
    put(text, bytes);
    free(text);
}

static void test_whole_multiples_are_taken(void **state) {
    struct draft_vocab v, w;
    struct error e = {0};
    uint32_t place[1000];
    (void)state;
    put_ids("# counted\n\n  7 # \"a\"\r\n\t3\n", 999, 130);
    assert_int_equal(draft_vocab_read(path, 1000, &v, &e), 0);
    assert_int_equal(v.n, 128); /* of 132, the last four left out */
    assert_int_equal(v.ids[0], 3);
    assert_int_equal(v.ids[1], 7);
    assert_int_equal(v.ids[2], 999 - 125);
    assert_int_equal(v.ids[127], 999);
    draft_vocab_places(&v, 1000, place);
    assert_int_equal(place[7], 1);
    assert_int_equal(place[999], 127);
    assert_int_equal(place[0], UINT32_MAX);
    assert_int_equal(place[999 - 126], UINT32_MAX);
    put_ids("3\n7\n", 999, 126);
    assert_int_equal(draft_vocab_read(path, 1000, &w, &e), 0);
    assert_true(w.hash == v.hash); /* the same ids in another order are the same */
    draft_vocab_done(&w);
    put_ids("", 999, 128);
    assert_int_equal(draft_vocab_read(path, 1000, &w, &e), 0);
    assert_true(w.hash != v.hash);
    draft_vocab_done(&w);
    draft_vocab_done(&v);
}

static void refused(const char *part) {
    struct draft_vocab v;
    struct error e = {0};
    assert_true(draft_vocab_read(path, 1000, &v, &e) < 0);
    if (!strstr(e.text, part))
        fail_msg("'%s' does not say '%s'", e.text, part);
}
static void test_what_is_refused(void **state) {
    (void)state;
    put_ids("", 999, 63);
    refused("63 ids");
    put("", 0);
    refused("0 ids");
    put_ids("1000\n", 999, 64);
    refused("line 1: '1000'");
    put_ids("\n# x\n998\n", 999, 64);
    refused("line 5: id 998 is there twice");
    put_ids("-1\n", 999, 64);
    refused("line 1: '-1'");
    put_ids("1 2\n", 999, 64);
    refused("line 1: '1 2'");
    put_ids("99999999999999999999999\n", 999, 64);
    refused("line 1: '99999999999999999999999'");
    put("1\n\0002\n", 5);
    refused("no text");
    unlink(path);
    refused(path);
}

static int make_file(void **state) {
    (void)state;
    const int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_whole_multiples_are_taken),
            cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, make_file, NULL);
}
