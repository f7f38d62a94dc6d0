/* prompt.c - where the messages of a chat end: the first, the last, and those in between that are far enough apart. */
#include "daemon/service/prompt.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define BEGIN  9u /* the id that a message begins with */
#define TOKENS 200000u

static uint32_t ids[TOKENS];

/* n messages of so many tokens each. */
static struct prompt chat(uint32_t n, uint32_t tokens) {
    struct prompt p = {.ids = ids, .n = (size_t)n * tokens};
    for (uint32_t i = 0; i < n * tokens; i++)
        ids[i] = i % tokens == 0 ? BEGIN : 10 + i % 7;
    prompt_find_messages(&p);
    return p;
}

static void test_few(void **state) {
    (void)state;
    struct prompt p = chat(1, 3000);
    assert_int_equal(p.shared_end + p.turn_end + p.n_message_ends, 0);
    p = chat(3, 511); /* the first is too short to be marked by its length */
    assert_int_equal(p.shared_end, 511);
    assert_int_equal(p.turn_end, 1022);
    assert_int_equal(p.n_message_ends, 1);
    assert_int_equal(p.message_ends[0], 1022);
    p = chat(4, 512);
    assert_int_equal(p.n_message_ends, 3);
    assert_int_equal(p.message_ends[0], 512);
}

/* However many there are, the marks are ends of messages from all over the chat, never too many, never too near. */
static void test_many(void **state) {
    (void)state;
    const uint32_t tokens[] = {1, 17, 300, 512, 700, 1999};
    for (uint32_t k = 0; k < 6; k++) {
        for (uint32_t n = 2; n <= TOKENS / tokens[k] && n <= 3000; n += 1 + n / 3) {
            struct prompt p = chat(n, tokens[k]);
            uint32_t before = 0, all = (n - 1) * tokens[k];
            assert_int_equal(p.turn_end, all);
            for (uint32_t i = 0; i < p.n_message_ends; before = p.message_ends[i++]) {
                assert_int_equal(p.message_ends[i] % tokens[k], 0);
                assert_true(p.message_ends[i] >= before + 512 && p.message_ends[i] <= all);
            }
            assert_true(p.n_message_ends <= MESSAGE_ENDS_MAX);
            if (all > 16 * 2000) /* half of them at least are in use */
                assert_true(p.n_message_ends >= MESSAGE_ENDS_MAX / 2 && before >= all - all / 4);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_few),
            cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
