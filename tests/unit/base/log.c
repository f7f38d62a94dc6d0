/* What stands before a line of the log: it depends on what stderr is. */
#include "base/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* One line as a program with this stderr writes it. journal: JOURNAL_STREAM names our stderr, or another file. */
static void logged(char *line, size_t size, const char *journal) {
    char path[] = "/tmp/shardd-log-XXXXXX";
    int fd = mkstemp(path), old = dup(STDERR_FILENO);
    struct stat st;
    char stream[64];
    assert_true(fd >= 0 && old >= 0 && dup2(fd, STDERR_FILENO) >= 0 && fstat(fd, &st) == 0);
    snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)st.st_dev,
            (unsigned long long)st.st_ino + (strcmp(journal, "other") == 0));
    if (strcmp(journal, "none") == 0)
        unsetenv("JOURNAL_STREAM");
    else
        setenv("JOURNAL_STREAM", strcmp(journal, "broken") == 0 ? "1:x" : stream, 1);
    log_open("shardd-test[3]", LOG_LEVEL_INFO);
    log_warning("a line\nof %d", 7);
    dup2(old, STDERR_FILENO);
    ssize_t n = pread(fd, line, size - 1, 0);
    assert_true(n > 0);
    line[n] = '\0';
    close(fd);
    close(old);
    unlink(path);
}

static void test_the_journal_gets_levels(void **state) {
    (void)state;
    char line[256];
    logged(line, sizeof(line), "ours");
    assert_string_equal(line, "<4>shardd-test[3]: a line\\x0aof 7\n");
}

static void test_a_file_gets_times(void **state) {
    (void)state;
    static const char *const journals[] = {"none", "other", "broken"};
    for (size_t i = 0; i < 3; i++) {
        char line[256];
        int year, month, day, hour, minute, second, ms, used = 0;
        logged(line, sizeof(line), journals[i]);
        int n = sscanf(line, "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ warning shardd-test[3]: a line%n", &year, &month,
                &day, &hour, &minute, &second, &ms, &used);
        if (n != 7 || used == 0 || year < 2025 || line[19] != '.' || line[23] != 'Z')
            fail_msg("with the journal '%s': %s", journals[i], line);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_the_journal_gets_levels),
            cmocka_unit_test(test_a_file_gets_times),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
