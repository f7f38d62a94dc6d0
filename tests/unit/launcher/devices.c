/* Which GPU each rank takes, of what a probe says. */
#include "launcher/devices.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static json_t *probe_of(const char *devices) {
    char text[2048];
    snprintf(text, sizeof(text), "{\"devices\": [%s]}", devices);
    json_t *probe = json_loads(text, 0, NULL);
    assert_non_null(probe);
    return probe;
}

#define WELL(uuid, memory) "{\"usable\": true, \"uuid\": \"" uuid "\", \"memory_free\": " #memory "}"
#define LOST(uuid)         "{\"usable\": false, \"uuid\": \"" uuid "\", \"reason\": \"it is lost\"}"
#define FOUR               WELL("GPU-8c25", 100) "," LOST("GPU-8c77") "," WELL("GPU-f11a", 60) "," WELL("GPU-0a", 90)

static void chooses(const char *devices, const char *list, uint32_t n, const char *expected) {
    json_t *probe = probe_of(devices);
    struct devices d;
    struct error e = {0};
    char text[DEVICES_TEXT];
    if (devices_choose(probe, list, n, &d, &e) < 0)
        fail_msg("%s", e.text);
    assert_string_equal(devices_text(&d, text), expected);
    json_decref(probe);
}

static void refuses(const char *devices, const char *list, uint32_t n, int code, const char *why) {
    json_t *probe = probe_of(devices);
    struct devices d;
    struct error e = {0};
    assert_int_equal(devices_choose(probe, list, n, &d, &e), code);
    if (!strstr(e.text, why))
        fail_msg("'%s' does not say '%s'", e.text, why);
    assert_int_equal(d.n, n); /* doctor looks at them all the same */
    json_decref(probe);
}

static void test_the_first_that_can_be_used(void **state) {
    (void)state;
    chooses(FOUR, NULL, 1, "0");
    chooses(FOUR, NULL, 2, "0,2");
    chooses(LOST("GPU-1") "," WELL("GPU-2", 1), NULL, 1, "1");
    refuses(FOUR, NULL, 4, -ENODEV,
            "needs 4 GPUs and 3 of the 4 that CUDA shows here can be used, for GPU 1: it is lost");
    refuses(WELL("GPU-1", 1), NULL, 2, -ENODEV, "needs 2 GPUs and CUDA shows 1 here; lower it");
    refuses(LOST("GPU-1"), NULL, 1, -ENODEV, "it is lost");
    setenv("CUDA_VISIBLE_DEVICES", "3", 1);
    refuses(WELL("GPU-1", 1), NULL, 2, -ENODEV, "CUDA shows 1 here (CUDA_VISIBLE_DEVICES is 3)");
    unsetenv("CUDA_VISIBLE_DEVICES");
}

static void test_those_that_are_named(void **state) {
    (void)state;
    chooses(FOUR, "2,0", 2, "2,0");
    chooses(FOUR, "3,3", 2, "3,3");
    chooses(FOUR, "GPU-f1,gpu-8C25", 2, "2,0");
    refuses(FOUR, "GPU-8c", 1, -EINVAL, "2 GPUs have a UUID that begins so");
    refuses(FOUR, "GPU-9", 1, -EINVAL, "no GPU that CUDA shows here");
    refuses(FOUR, "0,1", 2, -ENODEV, "--devices 1: it is lost");
    refuses(FOUR, "0,4", 2, -EINVAL, "there is no GPU 4; CUDA shows 4 here");
    refuses(FOUR, "0,", 2, -EINVAL, "'' is no GPU");
    refuses(FOUR, "0x1", 1, -EINVAL, "'0x1' is no GPU");
    refuses(FOUR, "-1", 1, -EINVAL, "'-1' is no GPU");
    refuses(FOUR, "0", 2, -EINVAL, "names 1 GPU and --tensor-parallel-size is 2");
}

static void test_memory_of_the_least(void **state) {
    (void)state;
    json_t *probe = probe_of(FOUR);
    struct devices d = {.n = 2, .at = {0, 2}};
    assert_int_equal(devices_memory_least(probe, &d), 60);
    d.at[1] = 0;
    assert_int_equal(devices_memory_least(probe, &d), 50); /* two share it */
    assert_int_equal(devices_sharers(&d, 0), 2);
    assert_int_equal(devices_sharers(&d, 2), 0);
    d.at[0] = d.at[1] = 7;
    assert_int_equal(devices_memory_least(probe, &d), 0);
    json_decref(probe);
}

static void test_a_probe_that_says_anything(void **state) {
    (void)state;
    static const char *const devices[] = {"", "null", "7, []", "{\"usable\": 1, \"uuid\": 3}"};
    for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
        json_t *probe = probe_of(devices[i]);
        struct devices d;
        struct error e;
        assert_true(devices_choose(probe, NULL, 8, &d, &e) < 0);
        assert_true(devices_choose(probe, "GPU-1", 1, &d, &e) < 0);
        assert_true(devices_choose(probe, "0", 1, &d, &e) < 0);
        json_decref(probe);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_the_first_that_can_be_used),
            cmocka_unit_test(test_those_that_are_named),
            cmocka_unit_test(test_memory_of_the_least),
            cmocka_unit_test(test_a_probe_that_says_anything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
