/* ring.c - the shared-memory channel: order, wrapping, waiting, two processes, and peers that write nonsense. */
#include "proto/step/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define WAIT_LONG_NS 20000000000ull /* only a failing test waits this long */

struct pair {
    struct step_ring *coordinator, *ranks[RANKS_MAX];
    int fd;
};

static void pair_open(struct pair *p, uint32_t n) {
    memset(p, 0, sizeof(*p));
    assert_int_equal(step_ring_create(n, 5, 6, &p->fd, NULL), 0);
    assert_int_equal(step_ring_attach(p->fd, STEP_RING_COORDINATOR, &p->coordinator, NULL), 0);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(step_ring_attach(p->fd, i, &p->ranks[i], NULL), 0);
}

static void pair_close(struct pair *p) {
    for (uint32_t i = 0; i < RANKS_MAX; i++)
        step_ring_free(p->ranks[i]);
    step_ring_free(p->coordinator);
    close(p->fd);
}

static int put(struct step_ring *r, uint32_t bytes, uint32_t value) {
    void *record;
    int err = step_ring_reserve(r, bytes, &record);
    if (err < 0)
        return err;
    assert_int_equal((uintptr_t)record % 64, 0);
    memset(record, (int)(value & 0xff), bytes);
    step_ring_commit(r, bytes);
    return 0;
}

static void expect(struct step_ring *r, uint32_t bytes, uint32_t value) {
    const void *record;
    uint32_t n;
    assert_int_equal(step_ring_next(r, &record, &n), 0);
    assert_int_equal(n, bytes);
    assert_int_equal((uintptr_t)record % 64, 0);
    const uint8_t *p = record;
    for (uint32_t i = 0; i < n; i++) {
        if (p[i] != (value & 0xff))
            fail_msg("byte %u is %u", i, p[i]);
    }
    step_ring_release(r);
}

static void test_create(void **state) {
    (void)state;
    struct pair p;
    int fd;
    assert_int_equal(step_ring_create(0, 1, 1, &fd, NULL), -EINVAL);
    assert_int_equal(step_ring_create(RANKS_MAX + 1, 1, 1, &fd, NULL), -EINVAL);
    pair_open(&p, 3);
    assert_true(fcntl(p.fd, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(ftruncate(p.fd, 0), -1); /* sealed */
    assert_int_equal(step_ring_ranks(p.ranks[2]), 3);
    assert_int_equal(step_ring_group_epoch(p.ranks[0]), 5);
    assert_int_equal(step_ring_coord_epoch(p.coordinator), 6);
    pair_close(&p);
}

/* Records of all sizes, more than the ring holds, in order, to every rank. */
static void test_order_and_wrap(void **state) {
    (void)state;
    struct pair p;
    pair_open(&p, 2);
    const void *record;
    uint32_t n, sizes[] = {1, 40, 63, 64, 65, 4096, 100000, 1u << 20, STEP_RECORD_MAX};
    assert_int_equal(step_ring_next(p.ranks[0], &record, &n), -EAGAIN);
    for (uint32_t i = 0; i < 90; i++) {
        uint32_t bytes = sizes[i * 5 % 9];
        assert_int_equal(put(p.coordinator, bytes, i), 0);
        expect(p.ranks[0], bytes, i);
        expect(p.ranks[1], bytes, i);
    }
    void *space;
    assert_int_equal(step_ring_reserve(p.coordinator, 5000, &space), 0);
    memset(space, 7, 100);
    step_ring_commit(p.coordinator, 100); /* less than reserved */
    assert_int_equal(put(p.coordinator, 200, 8), 0);
    for (int i = 0; i < 2; i++) {
        expect(p.ranks[i], 100, 7);
        expect(p.ranks[i], 200, 8);
    }
    assert_int_equal(step_ring_next(p.ranks[1], &record, &n), -EAGAIN);
    pair_close(&p);
}

static void test_slowest_rank_limits(void **state) {
    (void)state;
    struct pair p;
    uint32_t sent = 0;
    pair_open(&p, 2);
    while (put(p.coordinator, 1u << 20, sent) == 0) {
        expect(p.ranks[0], 1u << 20, sent);
        assert_true(++sent < 100);
    }
    assert_true(sent >= 8);
    void *record;
    assert_int_equal(step_ring_reserve(p.coordinator, 1u << 20, &record), -EAGAIN);
    while (step_ring_wait(p.coordinator, 0) == 0)
        ;
    expect(p.ranks[1], 1u << 20, 0); /* making room wakes the coordinator that asked for it */
    assert_int_equal(step_ring_wait(p.coordinator, WAIT_LONG_NS), 0);
    expect(p.ranks[1], 1u << 20, 1);
    assert_int_equal(put(p.coordinator, 1u << 20, sent), 0);
    assert_int_equal(step_ring_reserve(p.coordinator, STEP_RECORD_MAX + 1, &record), -EMSGSIZE);
    assert_int_equal(step_ring_reserve(p.ranks[0], 64, &record), -EINVAL);
    pair_close(&p);
}

struct answer { /* an entry with one token */
    struct step_outcome outcome;
    struct step_sample sample;
};

static void complete(struct step_ring *r, uint64_t step, uint32_t samples) {
    static struct answer body[SEQS_MAX];
    struct step_completion c = {.type = STEP_TYPE_PLAN, .step = step, .n_outcomes = samples};
    int err;
    for (uint32_t i = 0; i < samples; i++)
        body[i] = (struct answer){{.slot = i + 1, .n_samples = 1}, {.id = (uint32_t)step}};
    err = step_ring_complete(r, &c, body, samples * (uint32_t)sizeof(body[0]));
    assert_int_equal(err, 0);
}

static void test_completions(void **state) {
    (void)state;
    struct pair p;
    const struct step_completion *c;
    const void *body;
    pair_open(&p, 2);
    assert_int_equal(step_ring_completion(p.coordinator, 0, &c, &body), -EAGAIN);
    assert_int_equal(step_ring_completion(p.coordinator, 2, &c, &body), -EINVAL);
    for (uint64_t step = 1; step < 60; step++) {
        complete(p.ranks[1], step, step % 3 == 0 ? SEQS_MAX : 2);
        assert_int_equal(step_ring_completion(p.coordinator, 0, &c, &body), -EAGAIN);
        for (int again = 0; again < 2; again++) { /* valid until released */
            assert_int_equal(step_ring_completion(p.coordinator, 1, &c, &body), 0);
            assert_int_equal(c->step, step);
            assert_int_equal(c->rank, 1);
            assert_int_equal(c->group_epoch, 5);
            assert_int_equal(c->coord_epoch, 6);
            assert_int_equal(((const struct answer *)body)[1].outcome.slot, 2);
            assert_int_equal(((const struct answer *)body)[c->n_outcomes - 1].sample.id, step);
        }
        step_ring_completion_release(p.coordinator, 1);
    }
    pair_close(&p);
}

static void test_completion_ring_full(void **state) {
    (void)state;
    struct pair p;
    const struct step_completion *c;
    const void *body;
    static struct answer samples[SEQS_MAX];
    struct step_completion plan = {.type = STEP_TYPE_PLAN, .n_outcomes = SEQS_MAX};
    pair_open(&p, 1);
    for (uint32_t i = 0; i < SEQS_MAX; i++)
        samples[i].outcome.n_samples = 1;
    unsigned sent = 0;
    while (step_ring_complete(p.ranks[0], &plan, samples, sizeof(samples)) == 0)
        assert_true(++sent < 100);
    assert_true(sent >= 2);
    while (step_ring_wait(p.ranks[0], 0) == 0)
        ;
    assert_int_equal(step_ring_completion(p.coordinator, 0, &c, &body), 0);
    step_ring_completion_release(p.coordinator, 0);
    assert_int_equal(step_ring_wait(p.ranks[0], WAIT_LONG_NS), 0);
    assert_int_equal(step_ring_complete(p.ranks[0], &plan, samples, sizeof(samples)), 0);
    assert_int_equal(step_ring_complete(p.ranks[0], &plan, samples, STEP_COMPLETION_MAX), -EMSGSIZE);
    pair_close(&p);
}

static void test_wait(void **state) {
    (void)state;
    struct pair p;
    pair_open(&p, 1);
    assert_int_equal(step_ring_wait(p.coordinator, 0), -ETIMEDOUT);
    assert_int_equal(step_ring_wait(p.coordinator, 1000), -ETIMEDOUT);
    step_ring_kick(p.coordinator); /* a kick before the wait is not lost, and counts once */
    assert_int_equal(step_ring_wait(p.coordinator, WAIT_LONG_NS), 0);
    assert_int_equal(step_ring_wait(p.coordinator, 0), -ETIMEDOUT);
    assert_int_equal(step_ring_wait(p.ranks[0], 0), -ETIMEDOUT);
    step_ring_kick_all(p.coordinator);
    assert_int_equal(step_ring_wait(p.ranks[0], WAIT_LONG_NS), 0);
    assert_int_equal(put(p.coordinator, 64, 1), 0);
    assert_int_equal(step_ring_wait(p.ranks[0], WAIT_LONG_NS), 0);
    expect(p.ranks[0], 64, 1);
    complete(p.ranks[0], 1, 1);
    assert_int_equal(step_ring_wait(p.coordinator, WAIT_LONG_NS), 0);
    pair_close(&p);
}

static void *kick_later(void *arg) {
    step_ring_kick(arg);
    return NULL;
}

static void test_kick_from_thread(void **state) {
    (void)state;
    struct pair p;
    pthread_t t;
    pair_open(&p, 1);
    for (int i = 0; i < 200; i++) {
        assert_int_equal(pthread_create(&t, NULL, kick_later, p.coordinator), 0);
        assert_int_equal(step_ring_wait(p.coordinator, WAIT_LONG_NS), 0);
        pthread_join(t, NULL);
        assert_int_equal(step_ring_wait(p.coordinator, 0), -ETIMEDOUT);
    }
    pair_close(&p);
}

struct waiter {
    struct step_ring *ring;
    atomic_bool done;
    int result;
};
static void *wait_long(void *arg) {
    struct waiter *w = arg;
    w->result = step_ring_wait(w->ring, WAIT_LONG_NS);
    atomic_store(&w->done, true);
    return NULL;
}

/* Wakes that come late, for a wait that is over, do not end the next one: its thread sleeps again after each. */
static void test_wakes_for_the_wait_before(void **state) {
    (void)state;
    enum { BYTES = 4096 };
    struct pair p;
    pthread_t t;
    pair_open(&p, 1);
    struct waiter w = {.ring = p.coordinator};
    uint32_t *words = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, p.fd, 0);
    assert_true(words != MAP_FAILED);
    assert_int_equal(pthread_create(&t, NULL, wait_long, &w), 0);
    for (int late = 0; late < 5 && !atomic_load(&w.done);) /* it sleeps on one of the words */
        for (size_t i = 0; i < BYTES / sizeof(*words); i++)
            late += (int)syscall(SYS_futex, &words[i], FUTEX_WAKE, 1, NULL, NULL, 0);
    assert_false(atomic_load(&w.done));
    step_ring_kick(p.ranks[0]);
    pthread_join(t, NULL);
    assert_int_equal(w.result, 0);
    munmap(words, BYTES);
    pair_close(&p);
}

static void *wait_shortly(void *arg) {
    struct waiter *w = arg;
    w->result = step_ring_wait(w->ring, 300000000u);
    atomic_store(&w->done, true);
    return NULL;
}

/* Nor do they put its end off, however many come: it ends at its own time. */
static void test_late_wakes_do_not_prolong_a_wait(void **state) {
    (void)state;
    enum { BYTES = 4096, PATIENCE_S = 60 };
    struct pair p;
    pthread_t t;
    pair_open(&p, 1);
    struct waiter w = {.ring = p.coordinator};
    uint32_t *words = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, p.fd, 0);
    assert_true(words != MAP_FAILED);
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    assert_int_equal(pthread_create(&t, NULL, wait_shortly, &w), 0);
    do {
        for (size_t i = 0; i < BYTES / sizeof(*words); i++)
            syscall(SYS_futex, &words[i], FUTEX_WAKE, 1, NULL, NULL, 0);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (!atomic_load(&w.done) && now.tv_sec - start.tv_sec < PATIENCE_S);
    if (!atomic_load(&w.done))
        step_ring_kick(p.ranks[0]);
    pthread_join(t, NULL);
    assert_int_equal(w.result, -ETIMEDOUT);
    munmap(words, BYTES);
    pair_close(&p);
}

#define FORK_STEPS 3000u

/* A rank in another process: checks every record and answers each with its sum. Ends with the process. */
static int rank_process(int fd, uint32_t rank) {
    struct step_ring *r;
    if (step_ring_attach(fd, rank, &r, NULL) < 0)
        return 1;
    for (uint32_t step = 1; step <= FORK_STEPS; step++) {
        const void *record;
        uint32_t bytes;
        while (step_ring_next(r, &record, &bytes) == -EAGAIN) {
            if (step_ring_wait(r, WAIT_LONG_NS) < 0)
                return 2;
        }
        uint64_t sum = 0;
        for (uint32_t i = 0; i < bytes; i++)
            sum += ((const uint8_t *)record)[i];
        step_ring_progress(r, step, rank, 7, true);
        step_ring_release(r);
        struct step_completion c = {.type = STEP_TYPE_PLAN, .step = step, .checksum = sum};
        while (step_ring_complete(r, &c, NULL, 0) == -EAGAIN)
            step_ring_wait(r, WAIT_LONG_NS);
    }
    step_ring_free(r);
    return 0;
}

static uint32_t fork_bytes(uint32_t step) {
    return 1 + step * 977 % 20000;
}

static void test_two_processes(void **state) {
    (void)state;
    int fd, status;
    pid_t pids[2];
    struct step_ring *r;
    assert_int_equal(step_ring_create(2, 1, 1, &fd, NULL), 0);
    for (uint32_t i = 0; i < 2; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0)
            _exit(rank_process(fd, i));
    }
    assert_int_equal(step_ring_attach(fd, STEP_RING_COORDINATOR, &r, NULL), 0);
    uint32_t sent = 0, got[2] = {0, 0};
    while (got[0] < FORK_STEPS || got[1] < FORK_STEPS) {
        while (sent < FORK_STEPS && put(r, fork_bytes(sent + 1), sent + 1) == 0)
            sent++;
        bool any = false;
        for (uint32_t i = 0; i < 2; i++) {
            const struct step_completion *c;
            const void *body;
            while (step_ring_completion(r, i, &c, &body) == 0) {
                got[i]++;
                assert_int_equal(c->step, got[i]);
                assert_int_equal(c->checksum, (uint64_t)fork_bytes(got[i]) * (got[i] & 0xff));
                step_ring_completion_release(r, i);
                any = true;
            }
        }
        if (!any)
            assert_int_equal(step_ring_wait(r, WAIT_LONG_NS), 0);
    }
    for (uint32_t i = 0; i < 2; i++) {
        struct step_progress progress;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        step_ring_progress_read(r, i, &progress);
        assert_int_equal(progress.step, FORK_STEPS);
        assert_int_equal(progress.changes, FORK_STEPS);
        assert_int_equal(progress.layer, i);
        assert_int_equal(progress.operation, 7);
        assert_true(progress.busy);
    }
    step_ring_free(r);
    close(fd);
}

static void expect_no_ring(int fd) {
    struct step_ring *r = NULL;
    struct error e = {0};
    assert_int_equal(step_ring_attach(fd, 0, &r, &e), -EBADMSG);
    assert_null(r);
    assert_true(e.text[0] != 0);
}

static void test_attach_refuses(void **state) {
    (void)state;
    struct step_ring *r;
    struct stat st;
    struct error e;
    int good, fd;
    assert_int_equal(step_ring_create(2, 1, 1, &good, NULL), 0);
    assert_int_equal(fstat(good, &st), 0);
    assert_int_equal(step_ring_attach(good, 2, &r, &e), -EINVAL);
    assert_true(step_ring_attach(-1, 0, &r, &e) < 0);

    fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
    expect_no_ring(fd);
    close(fd);
    fd = memfd_create("t", MFD_CLOEXEC | MFD_ALLOW_SEALING); /* not sealed */
    assert_int_equal(ftruncate(fd, st.st_size), 0);
    expect_no_ring(fd);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK), 0); /* sealed, but zeros */
    expect_no_ring(fd);
    uint8_t head[64];
    assert_int_equal(pread(good, head, sizeof(head), 0), sizeof(head));
    assert_int_equal(pwrite(fd, head, sizeof(head), 0), sizeof(head));
    assert_int_equal(step_ring_attach(fd, 0, &r, &e), 0); /* the same words: fine */
    step_ring_free(r);
    head[8]++; /* version */
    assert_int_equal(pwrite(fd, head, sizeof(head), 0), sizeof(head));
    expect_no_ring(fd);
    head[8]--;
    head[12] = 1; /* ranks that do not make this size */
    assert_int_equal(pwrite(fd, head, sizeof(head), 0), sizeof(head));
    expect_no_ring(fd);
    head[12] = 200;
    assert_int_equal(pwrite(fd, head, sizeof(head), 0), sizeof(head));
    expect_no_ring(fd);
    close(fd);
    fd = memfd_create("t", MFD_CLOEXEC | MFD_ALLOW_SEALING); /* too small */
    assert_int_equal(ftruncate(fd, 4096), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK), 0);
    expect_no_ring(fd);
    close(fd);
    close(good);
}

/* A peer scribbles over the whole mapping, again and again: every answer is allowed, no read outside is. */
static void test_scribbling_peer(void **state) {
    (void)state;
    uint64_t x = 88172645463325252ull;
    struct stat st;
    for (int round = 0; round < 300; round++) {
        struct pair p;
        pair_open(&p, 2);
        assert_int_equal(fstat(p.fd, &st), 0);
        uint8_t *raw = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, p.fd, 0);
        assert_true(raw != MAP_FAILED);
        for (int i = 0; i < 3; i++)
            assert_int_equal(put(p.coordinator, 500, 3), 0);
        complete(p.ranks[0], 1, 3);
        for (size_t at = 64; at < 8192; at += 4) { /* the shared words and the first frames */
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            uint32_t v = (uint32_t)(x >> (round % 3 == 0 ? 40 : 8));
            if (x % 5 == 0)
                memcpy(raw + at, &v, 4);
        }
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        memcpy(raw + 4096 + (16u << 20), &x, 8);
        const struct step_completion *c;
        const void *body;
        uint32_t bytes;
        int err = step_ring_next(p.ranks[1], &body, &bytes);
        assert_true(err == 0 || err == -EAGAIN || err == -EBADMSG);
        err = step_ring_completion(p.coordinator, 0, &c, &body);
        assert_true(err == 0 || err == -EAGAIN || err == -EBADMSG);
        err = put(p.coordinator, 1000, 1);
        assert_true(err == 0 || err == -EAGAIN || err == -EBADMSG);
        munmap(raw, (size_t)st.st_size);
        pair_close(&p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_create),
            cmocka_unit_test(test_order_and_wrap),
            cmocka_unit_test(test_slowest_rank_limits),
            cmocka_unit_test(test_completions),
            cmocka_unit_test(test_completion_ring_full),
            cmocka_unit_test(test_wait),
            cmocka_unit_test(test_kick_from_thread),
            cmocka_unit_test(test_wakes_for_the_wait_before),
            cmocka_unit_test(test_late_wakes_do_not_prolong_a_wait),
            cmocka_unit_test(test_two_processes),
            cmocka_unit_test(test_attach_refuses),
            cmocka_unit_test(test_scribbling_peer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
