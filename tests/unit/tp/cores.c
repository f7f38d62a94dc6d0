/* Which cores a rank takes on machines that are made up: a folder in place of /. */
#include "tp/worker/cores.h"

#include <ftw.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#define PLACE  "00000000:B3:00.0" /* as CUDA has it */
#define DEVICE "/sys/bus/pci/devices/0000:b3:00.0"

static char root[] = "/tmp/shardd-cores-XXXXXX";

static void put(const char *name, const char *text) {
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s%s", root, name);
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0777);
        *slash = '/';
    }
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}
static void device(const char *node, const char *cores) {
    put(DEVICE "/numa_node", node);
    put(DEVICE "/local_cpulist", cores);
}
static cpu_set_t set_of(int first, int last) {
    cpu_set_t s;
    CPU_ZERO(&s);
    for (int i = first; i <= last; i++)
        CPU_SET(i, &s);
    return s;
}
static bool near(const cpu_set_t *allowed, cpu_set_t *ret) {
    int node = -7;
    const bool found = cores_near(root, PLACE, allowed, ret, &node);
    assert_int_equal(node, found ? 1 : -7);
    return found;
}

static void test_cores_of_the_node(void **state) {
    (void)state;
    cpu_set_t all = set_of(0, 63), given = set_of(30, 40), far = set_of(0, 15), inside = set_of(17, 18), got;
    device("1\n", "16-31,48-63\n");
    assert_true(near(&all, &got));
    assert_int_equal(CPU_COUNT(&got), 32);
    assert_true(CPU_ISSET(16, &got) && CPU_ISSET(31, &got) && CPU_ISSET(63, &got) && !CPU_ISSET(32, &got));
    assert_true(near(&given, &got)); /* never more than the process was given */
    assert_int_equal(CPU_COUNT(&got), 2);
    assert_true(CPU_ISSET(30, &got) && CPU_ISSET(31, &got));
    assert_false(near(&far, &got));    /* none */
    assert_false(near(&inside, &got)); /* all: there is nothing to choose */
}

static void test_nothing_is_told(void **state) {
    (void)state;
    cpu_set_t all = set_of(0, 63), got;
    int node;
    device("-1\n", "0-63\n"); /* a virtual machine */
    assert_false(near(&all, &got));
    static const char *const broken[] = {"", "\n", "x\n", "3-\n", "3-1\n", "1,\n", "1 2\n", "-4\n"};
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        device("1\n", broken[i]);
        assert_false(near(&all, &got));
    }
    device("1\n", "5,9-10,4000000000-4000000001\n"); /* as far as the set reaches */
    assert_true(near(&all, &got));
    assert_int_equal(CPU_COUNT(&got), 3);
    assert_false(cores_near(root, "", &all, &got, &node)); /* a CPU */
    assert_false(cores_near(root, "somewhere", &all, &got, &node));
    assert_false(cores_near(root, "0000:65:00.0", &all, &got, &node)); /* another one */
}

static void test_a_core_for_each_rank(void **state) {
    (void)state;
    cpu_set_t set = set_of(8, 15), two = set_of(40, 41);
    char name[128], line[16];
    assert_int_equal(cores_one(root, &set, 0, 1), 9);
    assert_int_equal(cores_one(root, &set, 6, 7), 15);
    assert_int_equal(cores_one(root, &set, 0, 8), 8); /* all are wanted */
    assert_int_equal(cores_one(root, &set, 7, 8), 15);
    for (int i = 0; i < 16; i++) { /* two threads a core, 0 and 1 of the first */
        snprintf(name, sizeof(name), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", i);
        snprintf(line, sizeof(line), "%d-%d\n", i / 2 * 2, i / 2 * 2 + 1);
        put(name, line);
    }
    assert_int_equal(cores_one(root, &set, 0, 1), 10);
    assert_int_equal(cores_one(root, &set, 3, 4), 14);
    assert_int_equal(cores_one(root, &set, 0, 5), -1); /* fewer cores than ranks */
    CPU_CLR(8, &set);                                  /* its sibling is the first that may be used */
    assert_int_equal(cores_one(root, &set, 0, 4), 9);
    assert_int_equal(cores_one(root, &two, 0, 1), 41); /* not described: each is a core */
}

static void test_the_thread_itself(void **state) {
    (void)state;
    cpu_set_t before, after;
    char text[128] = "x";
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    cores_go_near("ffff:ff:1f.7", text, sizeof(text)); /* no such device */
    assert_string_equal(text, "");
    assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
    cores_stay(0, 1, text, sizeof(text));
    assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
    assert_int_equal(CPU_COUNT(&after), 1);
    assert_int_equal(text[0] != '\0', CPU_COUNT(&before) > 1);
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
}

static int make_root(void **state) {
    (void)state;
    return mkdtemp(root) ? 0 : -1;
}
static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    return remove(path);
}
static int remove_root(void **state) {
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_cores_of_the_node),
            cmocka_unit_test(test_nothing_is_told),
            cmocka_unit_test(test_a_core_for_each_rank),
            cmocka_unit_test(test_the_thread_itself),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
