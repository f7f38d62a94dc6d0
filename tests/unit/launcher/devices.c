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

/* A machine of n cards that NVLink connects as `bridges` says: pairs of digits, "02 13"; '!': the last pair one way. */
static json_t *machine(uint32_t n, const char *bridges) {
    json_t *devices = json_array();
    for (uint32_t i = 0; i < n; i++) {
        json_t *d = json_pack("{s:b, s:[]}", "usable", 1, "nvlinks");
        for (const char *at = bridges; at[0] && at[1]; at += 2 + (at[2] == ' ')) {
            const uint32_t a = (uint32_t)(at[0] - '0'), b = (uint32_t)(at[1] - '0');
            if (a == i || (b == i && at[2] != '!'))
                json_array_append_new(json_object_get(d, "nvlinks"), json_integer(a == i ? b : a));
            at += at[2] == '!';
        }
        json_array_append_new(devices, d);
    }
    return json_pack("{s:o}", "devices", devices);
}
static void pairs(uint32_t n_cards, const char *bridges, uint32_t ranks, const char *expected) {
    json_t *probe = machine(n_cards, bridges);
    struct devices d, better;
    struct error e;
    char text[DEVICES_TEXT];
    assert_int_equal(devices_choose(probe, NULL, ranks, &d, &e), 0);
    assert_string_equal(devices_text(&d, text), expected);
    assert_false(devices_better(probe, &d, &better));
    json_decref(probe);
}
static void test_bridged_pairs_are_siblings(void **state) {
    (void)state;
    pairs(4, "", 4, "0,1,2,3");
    pairs(4, "02 13", 4, "0,2,1,3");
    pairs(4, "02 13", 2, "0,2");
    pairs(4, "23", 2, "2,3");
    pairs(4, "23", 1, "0");
    pairs(4, "12", 4, "1,2,0,3");
    pairs(3, "12", 2, "1,2");
    pairs(8, "07 16 25 34", 8, "0,7,1,6,2,5,3,4");
    pairs(8, "46 57", 4, "4,6,5,7");
    pairs(8, "46", 4, "4,6,0,1");
    pairs(4, "01 02 03 12 13 23", 4, "0,1,2,3"); /* a switch */
    pairs(4, "01 02 13", 4, "0,2,1,3");          /* 0 and 1 have others, too */
    pairs(4, "02!", 4, "0,1,2,3");               /* what cannot be */
}
static void prefers(uint32_t n_cards, const char *bridges, const char *list, const char *better) {
    json_t *probe = machine(n_cards, bridges);
    struct devices d, found;
    struct error e;
    char text[DEVICES_TEXT];
    assert_int_equal(devices_choose(probe, list, devices_named(list), &d, &e), 0);
    assert_string_equal(devices_text(&d, text), list); /* as somebody wants it */
    assert_int_equal(devices_better(probe, &d, &found), better != NULL);
    if (better)
        assert_string_equal(devices_text(&found, text), better);
    json_decref(probe);
}
static void test_an_order_that_is_given_stays(void **state) {
    (void)state;
    prefers(4, "02 13", "0,1,2,3", "0,2,1,3");
    prefers(4, "02 13", "3,1,0,2", NULL);
    prefers(4, "02 13", "0,1", NULL); /* these two have none */
    prefers(4, "", "3,2,1,0", NULL);
    prefers(4, "02 13", "0,0,2,2", NULL);
    prefers(8, "07 16", "6,7,0,1", "0,7,1,6");
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
            cmocka_unit_test(test_bridged_pairs_are_siblings),
            cmocka_unit_test(test_an_order_that_is_given_stays),
            cmocka_unit_test(test_memory_of_the_least),
            cmocka_unit_test(test_a_probe_that_says_anything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
