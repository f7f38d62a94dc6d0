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

/* Marks with nothing between them, as a library may send them together: more than fit into a launch, the same word
 * again, and none of them part of a graph that is captured after them. */
static void test_many_at_once(void **state) {
    enum { MARKS = 50 };
    struct k_context *c = context(NULL, 1);
    struct k_stream *s = NULL;
    struct k_event *done = NULL;
    struct k_graph *g = NULL;
    (void)state;
    OK(k_stream_create(c, &s, e));
    OK(k_event_create(c, &done, e));
    uint32_t *word = k_host_alloc(c, 2 * MARKS * sizeof *word);
    for (uint32_t round = 1; round < 3; round++) {
        for (uint32_t i = 0; i < MARKS; i++) /* in no order, each other one */
            k_mark(s, &word[i * 7 % MARKS * 2], round * 100 + i * 7 % MARKS);
        k_mark(s, &word[6], 1);
        k_mark(s, &word[6], round);
        k_event_record(s, done);
        assert_int_equal(k_event_wait(done, 60ull * 1000000000), 0);
        for (uint32_t i = 0; i < MARKS; i++) {
            assert_int_equal(word[2 * i], i == 3 ? round : round * 100 + i);
            assert_int_equal(word[2 * i + 1], 0);
        }
    }
    k_mark(s, &word[0], 5);
    OK(k_capture_begin(s, e));
    k_mark(s, &word[1], 6);
    OK(k_capture_end(s, &g, e));
    assert_int_equal(k_graph_nodes(g), 1);
    OK(k_stream_wait(s, 0, e));
    assert_int_equal(word[0], 5);
    word[0] = 7;
    k_graph_launch(s, g);
    OK(k_stream_wait(s, 0, e));
    assert_int_equal(word[0], 7);
    assert_int_equal(word[1], 6);
    k_graph_free(g);
    k_event_free(done);
    k_host_free(c, word);
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
    struct k_device closed = {.refused = {-ECANCELED, "not asked for"}};
    OK(k_devices(&p, &closed, 1, e));
    assert_int_equal(closed.refused.code, -ECANCELED);
    assert_string_equal(closed.refused.text, "not asked for");
    assert_string_equal(closed.name, d.name);
    assert_string_equal(closed.uuid, d.uuid);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_in_order), cmocka_unit_test(test_many_at_once),
            cmocka_unit_test(test_devices)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
