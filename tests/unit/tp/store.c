/* store.c - the store of a rank: what is written comes back, after a restart too; what is torn, damaged, of another
 * kind or made up does not. */
#include "tp/worker/store.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE_BYTES  1000u
#define STATE_BYTES 9001u

static char folder[64];
static uint8_t page[PAGE_BYTES], state[STATE_BYTES];

static bool starts_with_length(const void *unit, uint32_t length) {
    return *(const uint8_t *)unit == (uint8_t)length;
}

static struct store_options options(void) {
    return (struct store_options){.dir = folder,
            .bytes = 200000,
            .identity = 7,
            .tp = 1,
            .unit_bytes = {PAGE_BYTES, STATE_BYTES},
            .state_may_be = starts_with_length};
}

static struct step_store operation(enum step_store_kind kind, uint32_t what, uint32_t place) {
    return (struct step_store){.kind = kind,
            .record = {.what = what,
                    .place = place,
                    .length = what == STEP_STORED_STATE ? 5 : 0,
                    .key = {place, what}}};
}

/* Whether it succeeds. */
static bool run(struct store *s, const struct step_store *op, void *unit) {
    uint64_t before, done, failed;
    store_progress(s, &before, &failed);
    store_queue(s, op, unit);
    do {
        usleep(100);
        store_progress(s, &done, &failed);
    } while (done == before);
    return (failed & 1) == 0;
}

static struct store *open_store(const struct store_options *o) {
    struct store *s = NULL;
    struct error e = {0};
    if (store_open(o, &s, &e) < 0)
        fail_msg("%s", e.text);
    return s;
}

static int setup(void **unused) {
    (void)unused;
    snprintf(folder, sizeof(folder), "/tmp/shardd-store-%d", (int)getpid());
    memset(page, 0xa5, sizeof(page));
    memset(state, 5, sizeof(state));
    return 0;
}

static int teardown(void **unused) {
    char command[128];
    (void)unused;
    const uint64_t identities[] = {7, 8};
    for (int i = 0; i < 2; i++) {
        snprintf(command, sizeof(command), "%s/prefix-%016llx-r0of1", folder,
                (unsigned long long)identities[i]);
        unlink(command);
    }
    rmdir(folder);
    return 0;
}

static void path_of(char *ret, size_t bytes) {
    snprintf(ret, bytes, "%s/prefix-%016llx-r0of1", folder, 7ull);
}

static bool holds(const struct store_options *o, uint32_t what, uint32_t place) {
    uint8_t unit[STATE_BYTES] = {0};
    struct store *s = open_store(o);
    struct step_store op = operation(STEP_STORE_READ, what, place);
    bool right = run(s, &op, unit);
    if (right)
        assert_memory_equal(unit, what == STEP_STORED_PAGE ? page : state, o->unit_bytes[what]);
    store_free(s);
    return right;
}

static void fill(void) {
    struct store_options o = options();
    struct store *s = open_store(&o);
    assert_true(store_places(s, STEP_STORED_PAGE) >= 20 && store_places(s, STEP_STORED_STATE) >= 5);
    for (uint32_t i = 0; i < 3; i++) {
        struct step_store p = operation(STEP_STORE_WRITE, STEP_STORED_PAGE, 2 * i);
        struct step_store t = operation(STEP_STORE_WRITE, STEP_STORED_STATE, i);
        assert_true(run(s, &p, page) && run(s, &t, state));
    }
    store_free(s);
}

static void test_comes_back(void **unused) {
    (void)unused;
    struct store_options o = options();
    struct step_record all[40];
    struct error e = {0};
    struct stat st;
    fill();
    assert_true(holds(&o, STEP_STORED_PAGE, 4) && holds(&o, STEP_STORED_STATE, 2));
    assert_false(holds(&o, STEP_STORED_PAGE, 1));
    struct store *s = open_store(&o), *second = NULL;
    assert_int_equal(store_list(s, 0, 40, all), 6);
    assert_int_equal(store_list(s, 0, 3, all), 2);
    assert_int_equal(all[1].place, 2);
    assert_int_equal(store_list(s, store_places(s, STEP_STORED_PAGE), 1, all), 1);
    assert_int_equal(all[0].what, STEP_STORED_STATE);
    assert_int_equal(store_open(&o, &second, &e), -EBUSY);
    assert_int_equal(stat(folder, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    struct step_store other = operation(STEP_STORE_READ, STEP_STORED_PAGE, 0);
    other.record.key[0]++;
    assert_false(run(s, &other, page));
    store_reset(s);
    uint64_t done, failed;
    store_progress(s, &done, &failed);
    assert_true(done == 0 && failed == 0);
    store_free(s);
    chmod(folder, 0770);
    assert_int_equal(store_open(&o, &second, &e), -EPERM);
    chmod(folder, 0700);
    o.identity = 8;
    assert_false(holds(&o, STEP_STORED_PAGE, 0));
    o = options();
    o.bytes *= 2; /* another size begins anew */
    assert_false(holds(&o, STEP_STORED_PAGE, 0));
}

/* Each byte of the title and the heads, and some of what is in places: nothing that was not written comes back. */
static void test_damaged(void **unused) {
    (void)unused;
    struct store_options o = options();
    char path[128];
    path_of(path, sizeof(path));
    for (uint32_t at = 0; at < 4096 + 300; at += at < 80 ? 7 : at < 4096 ? 4096 - at : 11) {
        fill();
        int fd = open(path, O_RDWR);
        uint8_t byte;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 0x41;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        close(fd);
        bool title = at < 64, first = at >= 4096 && at < 4096 + 80;
        assert_int_equal(holds(&o, STEP_STORED_PAGE, 0), !title && !first);
        assert_int_equal(holds(&o, STEP_STORED_STATE, 1), !title);
    }
    fill();
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    int fd = open(path, O_RDWR);
    for (off_t at = 4096 * 2; at < st.st_size; at += 512) /* bytes of places */
        assert_int_equal(pwrite(fd, "x", 1, at), 1);
    close(fd);
    assert_false(holds(&o, STEP_STORED_PAGE, 4) || holds(&o, STEP_STORED_STATE, 2));
    fill();
    assert_int_equal(truncate(path, st.st_size - 1), 0);
    assert_false(holds(&o, STEP_STORED_PAGE, 0));
    fill();
    state[0] = 6; /* a sum that is right over a state that cannot be */
    struct store *s = open_store(&o);
    struct step_store t = operation(STEP_STORE_WRITE, STEP_STORED_STATE, 0);
    assert_true(run(s, &t, state));
    t.kind = STEP_STORE_READ;
    assert_false(run(s, &t, state));
    state[0] = 5;
    store_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test_setup_teardown(test_comes_back, setup, teardown),
            cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
