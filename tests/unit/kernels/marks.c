/* Marks: a word of the host's is written when what was queued before it has run, also by a graph that is replayed. */
#include "tests/unit/kernels/fixture.h"

enum { BYTES = 4096 };

static void test_in_order(void **state) {
    struct k_context *c = context(NULL, 1);
    struct k_stream *s = NULL;
    struct k_graph *g = NULL;
    (void)state;
    OK(k_stream_create(c, &s, e));
    uint32_t *word = k_host_alloc(c, 2 * sizeof *word);
    uint8_t *from = k_host_alloc(c, BYTES), *to = k_host_alloc(c, BYTES), *d = k_alloc(c, BYTES);
    memset(from, 7, BYTES);
    k_upload(s, d, from, BYTES);
    k_download(s, to, d, BYTES);
    k_mark(s, &word[1], 0xdeadbeef);
    OK(k_stream_wait(s, 0, e));
    assert_int_equal(word[0], 0);
    assert_int_equal(word[1], 0xdeadbeef);
    assert_memory_equal(to, from, BYTES);

    OK(k_capture_begin(s, e));
    k_mark(s, &word[0], 41);
    k_mark(s, &word[0], 42);
    OK(k_capture_end(s, &g, e));
    assert_int_equal(k_graph_nodes(g), 2);
    OK(k_stream_wait(s, 0, e));
    assert_int_equal(word[0], 0);
    for (uint32_t i = 0; i < 3; i++) {
        word[0] = 1;
        k_graph_launch(s, g);
        OK(k_stream_wait(s, 0, e));
        assert_int_equal(word[0], 42);
    }
    k_graph_free(g);
    k_free(c, d);
    k_host_free(c, word);
    k_host_free(c, from);
    k_host_free(c, to);
    k_stream_free(s);
    k_context_free(c);
}

/* What a machine has is said without a context, and a context can be made where nothing is refused. */
static void test_devices(void **state) {
    struct k_platform p;
    struct k_device d = {0};
    (void)state;
    OK(k_devices(&p, NULL, 0, e));
    assert_true(p.n_devices > 0);
    OK(k_devices(&p, &d, 1, e));
    assert_int_equal(d.refused.code, 0);
    assert_true(d.units > 0);
    assert_true(d.name[0]);
    assert_true(d.memory_free > 0 && d.memory_free <= d.memory_total);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_in_order), cmocka_unit_test(test_devices)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
