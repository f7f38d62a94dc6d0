/* exposition.c - the text format of metrics to the letter, and the line of the log. */
#include "daemon/service/exposition.h"

#include "daemon/service/activity.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

static void expect(struct exposition *x, const char *text) {
    assert_int_equal(x->error, 0);
    assert_int_equal(byte_buffer_add(&x->text, "", 1), 0);
    assert_string_equal(x->text.data, text);
    free(x->text.data);
}

static void test_samples(void **state) {
    (void)state;
    struct exposition x = {0};
    struct exposition_labels two = {{{"a", "1"}, {"b", "say \"\\o/\"\nor not"}}};
    exposition_family(&x, "up", "gauge", "Whether it is up.");
    exposition_sample(&x, NULL, 1);
    exposition_sample(&x, &two, 0.1);
    exposition_sample(&x, &two, 18014398509481984.0);
    expect(&x, "# HELP up Whether it is up.\n"
               "# TYPE up gauge\n"
               "up 1\n"
               "up{a=\"1\",b=\"say \\\"\\\\o/\\\"\\nor not\"} 0.10000000000000001\n"
               "up{a=\"1\",b=\"say \\\"\\\\o/\\\"\\nor not\"} 18014398509481984\n");
}

static void test_histogram(void **state) {
    (void)state;
    static const uint64_t bounds[] = {500000, 1000000000, 2500000000}, fewer[] = {7, 1000000000, 1000000001};
    struct histogram h;
    struct exposition x = {0};
    struct exposition_labels one = {{{"m", "x"}}};
    histogram_init(&h, bounds, 3);
    histogram_add(&h, 500000);
    histogram_add(&h, 499500000);
    histogram_add(&h, 9000000000);
    exposition_family(&x, "t", "histogram", "Time.");
    exposition_histogram(&x, NULL, &h, 1e9, NULL, 0);
    exposition_histogram(&x, &one, &h, 1e9, fewer, 3); /* those that it has */
    expect(&x, "# HELP t Time.\n"
               "# TYPE t histogram\n"
               "t_bucket{le=\"0.0005\"} 1\n"
               "t_bucket{le=\"1.0\"} 2\n"
               "t_bucket{le=\"2.5\"} 2\n"
               "t_bucket{le=\"+Inf\"} 3\n"
               "t_sum 9.5\n"
               "t_count 3\n"
               "t_bucket{m=\"x\",le=\"1.0\"} 2\n"
               "t_bucket{m=\"x\",le=\"+Inf\"} 3\n"
               "t_sum{m=\"x\"} 9.5\n"
               "t_count{m=\"x\"} 3\n");
}

static void test_activity(void **state) {
    (void)state;
    const uint64_t second = 1000000000;
    struct activity a = {0};
    struct engine_stats s = {.pages_total = 200, .pages_free = 150, .steps_total = 7};
    char line[256] = "";
    assert_false(activity_line(&a, &s, 100 * second, line, sizeof(line)));
    s.steps_total = 8; /* busy, and too early */
    assert_false(activity_line(&a, &s, 104 * second, line, sizeof(line)));
    s.steps_total = 20;
    s.prompt_rows_total = 1000;
    s.generated_tokens_total = 55;
    s.running = 3;
    s.waiting = 2;
    assert_true(activity_line(&a, &s, 105 * second, line, sizeof(line)));
    assert_string_equal(line,
            "prompts 200.0 tokens/s, answers 11.0 tokens/s, 3 running, 2 waiting, 25 % of KV "
            "pages in use");
    assert_false(activity_line(&a, &s, 120 * second, line, sizeof(line))); /* idle */
    s.steps_total = 21;
    s.preemptions_total = 2;
    s.drafters[0].proposed[0] = s.drafters[1].proposed[2] = 20;
    s.drafters[0].accepted[0] = 14;
    assert_true(activity_line(&a, &s, 130 * second, line, sizeof(line)));
    assert_string_equal(line, "prompts 0.0 tokens/s, answers 0.0 tokens/s, 3 running, 2 waiting, 25 % of KV "
                              "pages in use, 35 % of drafts accepted, 2 put back");
    s.steps_total = 22;
    s.preemptions_total = 3;
    assert_true(activity_line(&a, &s, 140 * second, line, 20)); /* cut, and no further */
    assert_int_equal(strlen(line), 19);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_samples), cmocka_unit_test(test_histogram),
            cmocka_unit_test(test_activity)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
