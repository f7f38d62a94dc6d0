/* What a program answers, and all the ways in which it does not. */
#include "launcher/ask.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static int ask(const char *script, uint64_t timeout_ms, json_t **ret, struct error *e) {
    char *argv[] = {"/bin/sh", "-c", (char *)script, NULL};
    *ret = NULL;
    *e = (struct error){0};
    return ask_program(argv, timeout_ms, ret, e);
}

static void test_an_answer(void **state) {
    (void)state;
    json_t *o;
    struct error e;
    assert_int_equal(ask("echo noise >&2; echo '{\"a\": 7}'; exit 3", 20000, &o, &e), 0);
    assert_int_equal(json_integer_value(json_object_get(o, "a")), 7);
    json_decref(o);
    /* stdin is empty, not ours */
    assert_int_equal(ask("read x && echo '{\"read\": 1}' || echo '{\"read\": 0}'", 20000, &o, &e), 0);
    assert_int_equal(json_integer_value(json_object_get(o, "read")), 0);
    json_decref(o);
}

static void refused(const char *script, uint64_t timeout_ms, int code, const char *says) {
    json_t *o;
    struct error e;
    assert_int_equal(ask(script, timeout_ms, &o, &e), code);
    assert_null(o);
    if (!strstr(e.text, says))
        fail_msg("'%s' was refused with '%s'", script, e.text);
}

static void test_no_answer(void **state) {
    (void)state;
    refused("exit 4", 20000, -EPROTO, "it ended with 4");
    refused("kill -SEGV $$", 20000, -EPROTO, "signal 11");
    refused("echo 17", 20000, -EPROTO, "no answer");
    refused("echo '{\"a\": 1} {\"b\": 2}'", 20000, -EPROTO, "no answer");
    refused("printf '{\"a\": \"\\377\"}'", 20000, -EPROTO, "no answer");
    refused("head -c 3000000 /dev/zero", 20000, -EPROTO, "more than 1048576 bytes");
    refused("exec sleep 600", 1000, -ETIMEDOUT, "within 1 seconds");
    refused("exec >&-; exec sleep 600", 1000, -ETIMEDOUT, "within 1 seconds");
    char *argv[] = {"/no/such/program", NULL};
    struct error e = {0};
    json_t *o = NULL;
    assert_int_equal(ask_program(argv, 1000, &o, &e), -ENOENT);
    assert_non_null(strstr(e.text, "/no/such/program"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_an_answer),
            cmocka_unit_test(test_no_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
