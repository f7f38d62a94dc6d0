/* processes.h - for tests of ranks: a process for each, as they are served, and memory that all of them see.
 *
 * Included by tests. Each process is forked from the test's, which must not have opened a device: one
 * that has cannot be forked any more. */
#pragma once

#include "base/limits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* Zeroed, and released with munmap(). */
static inline void *shared_memory(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    return p;
}
/* Runs one(user, i) for i < n <= RANKS_MAX at the same time; codes[i] is what it returned. All must end by
 * themselves. */
static inline void processes_run(
        uint32_t n, int (*one)(void *user, uint32_t i), void *user, int codes[RANKS_MAX]) {
    pid_t children[RANKS_MAX];
    assert_true(n <= RANKS_MAX);
    for (uint32_t i = 0; i < n; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0)
            _exit(one(user, i));
    }
    for (uint32_t i = 0; i < n; i++) {
        int status = 0;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_true(WIFEXITED(status));
        codes[i] = WEXITSTATUS(status);
    }
}
static inline void processes_run_well(uint32_t n, int (*one)(void *user, uint32_t i), void *user) {
    int codes[RANKS_MAX];
    processes_run(n, one, user, codes);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(codes[i], 0);
}
