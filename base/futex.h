/* futex.h - sleeping on a word of memory that another thread or process changes.
 *
 * Header only. `shared`: the word lies in memory of several processes. Both may come back early or late (signals, a
 * wake that was meant for a wait before): the caller looks at the word again. */
#pragma once

#include "base/clock.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Sleeps while *word is `seen`, until deadline_ns of clock_ns() (0 = no limit). 0 when it was woken; -1 and errno
 * otherwise: EAGAIN (the word had moved), ETIMEDOUT, EINTR. */
static inline int futex_wait_until(_Atomic uint32_t *word, uint32_t seen, uint64_t deadline_ns, bool shared) {
    const struct timespec t = {
            .tv_sec = (time_t)(deadline_ns / CLOCK_SECOND), .tv_nsec = (long)(deadline_ns % CLOCK_SECOND)};
    const int operation = FUTEX_WAIT_BITSET | (shared ? 0 : FUTEX_PRIVATE_FLAG);
    return (int)syscall(
            SYS_futex, word, operation, seen, deadline_ns ? &t : NULL, NULL, FUTEX_BITSET_MATCH_ANY);
}
/* The same for at most timeout_ns from now on (0 = no limit). */
static inline int futex_wait(_Atomic uint32_t *word, uint32_t seen, uint64_t timeout_ns, bool shared) {
    return futex_wait_until(word, seen, timeout_ns ? clock_ns() + timeout_ns : 0, shared);
}
static inline void futex_wake_all(_Atomic uint32_t *word, bool shared) {
    syscall(SYS_futex, word, shared ? FUTEX_WAKE : FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* What a thread that spins does between two looks. */
static inline void spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}
