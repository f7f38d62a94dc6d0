/* text_test.h - what the tests of the text folder share: files, a seeded generator, tokenizers to test with. */
#pragma once

#include "base/file.h"
#include "daemon/text/tokenizer.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define GOLDEN_DIR TESTS_DIR "/golden/"
#define QWEN3_GZ   TESTS_DIR "/../../shared/data/tokenizers/qwen3/tokenizer.json.gz"

/* Every use of these is in a test; a test that needs only some of them would otherwise warn. */
#define TEST_HELPER static __attribute__((unused))

TEST_HELPER char *read_all(const char *path, size_t *ret_bytes) {
    char *data = NULL;
    struct error e = {0};
    if (file_read(path, 64u << 20, &data, ret_bytes, &e) < 0)
        fail_msg("%s", e.text);
    return data;
}

/* xorshift64*: the same numbers on every machine. */
TEST_HELPER uint64_t next_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

TEST_HELPER size_t random_below(uint64_t *state, size_t n) {
    return (size_t)((next_random(state) >> 16) % n);
}

TEST_HELPER struct tokenizer *load_own(void) {
    struct tokenizer *t = NULL;
    struct error e = {0};
    if (tokenizer_load(GOLDEN_DIR "tokenizer/tokenizer.json", &t, &e) < 0)
        fail_msg("%s", e.text);
    return t;
}

/* The published Qwen3 tokenizer, unpacked beside the system's temporary files; NULL (and a line) where it is
 * not. */
TEST_HELPER struct tokenizer *load_qwen3(void) {
    if (access(QWEN3_GZ, R_OK) != 0) {
        print_message("%s is not here: nothing was compared with the Qwen3 tokenizer\n", QWEN3_GZ);
        return NULL;
    }
    char path[] = "/tmp/shardd-test-XXXXXX", buffer[1 << 16];
    struct tokenizer *t = NULL;
    struct error e = {0};
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    FILE *unpacked = popen("gzip -dc '" QWEN3_GZ "'", "r");
    assert_non_null(unpacked);
    for (size_t n; (n = fread(buffer, 1, sizeof(buffer), unpacked)) > 0;)
        assert_int_equal(file_write_all(fd, buffer, n), 0);
    assert_int_equal(pclose(unpacked), 0);
    close(fd);
    int r = tokenizer_load(path, &t, &e);
    unlink(path);
    if (r < 0)
        fail_msg("%s", e.text);
    return t;
}
