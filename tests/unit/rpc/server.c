/* server.c - the rpc layer against a real client: kinds of calls, ends of calls, poking, stalled readers,
 * shutdown. */
#include "daemon/rpc/rpc.h"

#include "base/log.h"
#include "tests/unit/rpc/client.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#define STREAM_MESSAGES 50u

static _Atomic uint32_t closes;
static void *_Atomic held_worker;
static _Atomic bool go;
static _Atomic uint64_t seen_deadline_ns;

static void put(struct rpc_call *c, const void *data, size_t n) {
    void *out = rpc_call_message(c, n);
    if (n > 0)
        memcpy(out, data, n);
}

static void echo_on_call(struct rpc_call *c) {
    size_t n = 0;
    const void *data = rpc_call_request(c, &n);
    atomic_store(&seen_deadline_ns, rpc_call_deadline_ns(c));
    if (!data) {
        struct rpc_status s = {.status = RPC_INVALID_ARGUMENT,
                .code = "no_message",
                .retryable = true,
                .retry_after_ms = 1234,
                .text = "say something"};
        rpc_call_finish(c, &s);
        return;
    }
    put(c, data, n);
    rpc_call_finish(c, NULL);
}

static void peer_on_call(struct rpc_call *c) {
    put(c, rpc_call_peer_is_local(c) ? "local" : "other", 5);
    rpc_call_finish(c, NULL);
}

/* Sends one number per wake, by itself: the last send wakes the next. */
static void count_on_wake(struct rpc_call *c) {
    uint32_t *n = rpc_call_state(c);
    if (!n || !rpc_call_can_send(c))
        return;
    put(c, n, sizeof(*n));
    if (++*n < STREAM_MESSAGES)
        rpc_call_send(c);
    else
        rpc_call_finish(c, NULL);
}

static void count_on_call(struct rpc_call *c) {
    rpc_call_set_state(c, calloc(1, sizeof(uint32_t)));
    count_on_wake(c);
}

static void count_on_close(struct rpc_call *c) {
    free(rpc_call_state(c));
    atomic_fetch_add(&closes, 1);
}

/* Says nothing until another thread pokes. */
static void hold_on_call(struct rpc_call *c) {
    atomic_store(&held_worker, rpc_call_worker(c));
}

static void hold_on_wake(struct rpc_call *c) {
    if (!atomic_load(&go) || !rpc_call_can_send(c))
        return;
    put(c, "poked", 5);
    rpc_call_finish(c, NULL);
}

static void hold_on_close(struct rpc_call *c) {
    (void)c;
    atomic_fetch_add(&closes, 1);
}

/* Never stops sending; a reader that does not read gets stuck. */
static void flood_on_wake(struct rpc_call *c) {
    if (!rpc_call_can_send(c))
        return;
    memset(rpc_call_message(c, 1u << 20), 'x', 1u << 20);
    rpc_call_send(c);
}

static void chat_on_message(struct rpc_call *c) {
    size_t n = 0;
    const void *data = rpc_call_request(c, &n);
    if (!data) {
        rpc_call_finish(c, NULL);
        return;
    }
    put(c, data, n);
    rpc_call_send(c);
}

static const struct rpc_method methods[] = {
        {.path = "/t/Echo", .on_call = echo_on_call},
        {.path = "/t/Peer", .on_call = peer_on_call},
        {.path = "/t/Count",
                .kind = RPC_SERVER_STREAM,
                .on_call = count_on_call,
                .on_wake = count_on_wake,
                .on_close = count_on_close},
        {.path = "/t/Hold",
                .kind = RPC_SERVER_STREAM,
                .on_call = hold_on_call,
                .on_wake = hold_on_wake,
                .on_close = hold_on_close},
        {.path = "/t/Flood",
                .kind = RPC_SERVER_STREAM,
                .on_call = flood_on_wake,
                .on_wake = flood_on_wake,
                .on_close = hold_on_close},
        {.path = "/t/Chat", .kind = RPC_BIDI, .on_message = chat_on_message, .on_close = hold_on_close},
};

struct fixture {
    struct rpc_server *server;
    char address[64];
    struct client client;
};

static int set_up_with(void **state, const struct rpc_server_options *o, const char *address) {
    struct fixture *f = calloc(1, sizeof(*f));
    struct error e = {0};
    int fd;
    atomic_store(&closes, 0);
    atomic_store(&held_worker, NULL);
    atomic_store(&go, false);
    assert_int_equal(rpc_server_create(o, methods, sizeof(methods) / sizeof(methods[0]), &f->server, &e), 0);
    assert_int_equal(rpc_server_start(f->server, &e), 0);
    assert_int_equal(rpc_listen(address, &fd, f->address, sizeof(f->address), &e), 0);
    assert_int_equal(rpc_server_add_listener(f->server, fd, &e), 0);
    f->client = client_open(f->address, NULL);
    *state = f;
    return 0;
}

static int set_up(void **state) {
    return set_up_with(
            state, &(struct rpc_server_options){.n_workers = 2, .send_stall_ms = 200}, "127.0.0.1:0");
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    client_close(&f->client);
    rpc_server_free(f->server);
    free(f);
    return 0;
}

static void test_unary(void **state) {
    struct fixture *f = *state;
    struct client_call *c = client_call(&f->client, "/t/Echo", "hello", 5, 0);
    struct client_bytes b = client_next(c);
    assert_string_equal(b.data, "hello");
    assert_int_equal(client_finish(c), GRPC_STATUS_OK);
    assert_true(atomic_load(&seen_deadline_ns) == 0);
    free(b.data);
    client_free(c);
}

static void test_no_message_is_refused_with_trailers(void **state) {
    struct fixture *f = *state;
    struct client_call *c = client_call(&f->client, "/t/Echo", NULL, 0, 60000);
    client_half_close(c);
    assert_int_equal(client_finish(c), GRPC_STATUS_INVALID_ARGUMENT);
    assert_string_equal(c->text, "say something");
    assert_string_equal(c->code, "no_message");
    assert_string_equal(c->retryable, "true");
    assert_string_equal(c->retry_after, "1234");
    assert_string_equal(c->pushback, "1234");
    assert_true(atomic_load(&seen_deadline_ns) > 0);
    client_free(c);
}

static void test_unknown_method(void **state) {
    struct fixture *f = *state;
    struct client_call *c = client_call(&f->client, "/t/Nothing", "x", 1, 0);
    assert_int_equal(client_finish(c), GRPC_STATUS_UNIMPLEMENTED);
    assert_non_null(strstr(c->text, "/t/Nothing"));
    assert_string_equal(c->code, "unknown_method");
    client_free(c);
}

static uint32_t read_count(struct client_call *c) {
    uint32_t n = 0, v;
    for (;;) {
        struct client_bytes b = client_next(c);
        if (!b.data)
            return n;
        assert_int_equal(b.n, sizeof(v));
        memcpy(&v, b.data, sizeof(v));
        assert_int_equal(v, n++);
        free(b.data);
    }
}

static void test_stream_is_in_order_and_whole(void **state) {
    struct fixture *f = *state;
    struct client_call *c = client_call(&f->client, "/t/Count", "x", 1, 0);
    assert_int_equal(read_count(c), STREAM_MESSAGES);
    assert_int_equal(client_finish(c), GRPC_STATUS_OK);
    client_free(c);
}

static void wait_for_close(uint32_t n) {
    while (atomic_load(&closes) < n)
        usleep(200);
}

static void test_poke_from_another_thread(void **state) {
    struct fixture *f = *state;
    struct client_call *c = client_call(&f->client, "/t/Hold", "x", 1, 0);
    while (!atomic_load(&held_worker))
        usleep(200);
    rpc_worker_poke(atomic_load(&held_worker)); /* nothing to say yet */
    atomic_store(&go, true);
    rpc_worker_poke(atomic_load(&held_worker));
    struct client_bytes b = client_next(c);
    assert_string_equal(b.data, "poked");
    free(b.data);
    assert_int_equal(client_finish(c), GRPC_STATUS_OK);
    client_free(c);
    wait_for_close(1);
}

static void test_cancel_and_deadline_close_the_call(void **state) {
    struct fixture *f = *state;
    struct client_call *c = client_call(&f->client, "/t/Hold", "x", 1, 0);
    while (!atomic_load(&held_worker))
        usleep(200);
    client_cancel(c);
    assert_int_equal(client_finish(c), GRPC_STATUS_CANCELLED);
    client_free(c);
    wait_for_close(1);
    c = client_call(&f->client, "/t/Hold", "x", 1, 1000); /* the server must have seen it by then */
    assert_int_equal(client_finish(c), GRPC_STATUS_DEADLINE_EXCEEDED);
    client_free(c);
    wait_for_close(2);
}

static void test_hang_up_closes_the_call(void **state) {
    struct fixture *f = *state;
    struct client other = client_open(f->address, NULL);
    struct client_call *c = client_call(&other, "/t/Hold", "x", 1, 0);
    while (!atomic_load(&held_worker))
        usleep(200);
    assert_int_equal(rpc_server_live_calls(f->server), 1);
    client_cancel(c);
    client_finish(c);
    client_free(c);
    client_close(&other);
    wait_for_close(1);
}

static void test_bidi(void **state) {
    struct fixture *f = *state;
    struct client_call *c = client_call(&f->client, "/t/Chat", NULL, 0, 0);
    for (int i = 0; i < 3; i++) {
        char text[8];
        snprintf(text, sizeof(text), "n%d", i);
        client_send(c, text, 2);
        struct client_bytes b = client_next(c);
        assert_string_equal(b.data, text);
        free(b.data);
    }
    client_half_close(c);
    struct client_bytes b = client_next(c);
    assert_null(b.data);
    assert_int_equal(client_finish(c), GRPC_STATUS_OK);
    client_free(c);
}

/* Nothing is read, so flow control stops the stream; the clock ends it, and the client hears why. */
static void test_reader_that_never_reads(void **state) {
    struct fixture *f = *state;
    struct client_call *c = client_call(&f->client, "/t/Flood", "x", 1, 0);
    wait_for_close(1);
    for (struct client_bytes b; (b = client_next(c)).data;) /* what was on its way */
        free(b.data);
    assert_int_equal(client_finish(c), GRPC_STATUS_RESOURCE_EXHAUSTED);
    client_free(c);
    c = client_call(&f->client, "/t/Echo", "alive", 5, 0);
    struct client_bytes b = client_next(c);
    assert_non_null(b.data);
    assert_string_equal(b.data, "alive");
    free(b.data);
    client_finish(c);
    client_free(c);
}

static void test_message_too_large(void **state) {
    struct fixture *f = *state;
    size_t n = REQUEST_BYTES_MAX + 1;
    char *big = calloc(1, n);
    struct client_call *c = client_call(&f->client, "/t/Echo", big, n, 0);
    assert_int_equal(client_finish(c), GRPC_STATUS_RESOURCE_EXHAUSTED);
    client_free(c);
    c = client_call(&f->client, "/t/Echo", big, n - 1, 0);
    struct client_bytes b = client_next(c);
    assert_int_equal(b.n, n - 1);
    free(b.data);
    assert_int_equal(client_finish(c), GRPC_STATUS_OK);
    client_free(c);
    free(big);
}

/* Nothing may unpack what a client packed, 0.9 MB of gzip is 970 MB. The size limit alone would answer
 * otherwise. */
static void test_gzip_is_refused(void **state) {
    struct fixture *f = *state;
    size_t n = 8u << 20;
    char *zeros = calloc(1, n);
    struct client_call *c = client_call_gzip(&f->client, "/t/Echo", zeros, n, 0, true);
    assert_int_equal(client_finish(c), GRPC_STATUS_UNIMPLEMENTED);
    client_free(c);
    free(zeros);
}

static void test_peer_is_local(void **state) {
    struct fixture *f = *state;
    struct client_call *c = client_call(&f->client, "/t/Peer", "x", 1, 0);
    struct client_bytes b = client_next(c);
    assert_string_equal(b.data, "local");
    free(b.data);
    client_finish(c);
    client_free(c);
}

struct load {
    const char *address;
    uint32_t messages, ok;
};

static void *load_main(void *arg) {
    struct load *l = arg;
    struct client client = client_open(l->address, NULL);
    struct client_call *calls[20];
    for (int i = 0; i < 20; i++)
        calls[i] = client_call(&client, "/t/Count", "x", 1, 0);
    for (int i = 0; i < 20; i++) {
        l->messages += read_count(calls[i]);
        l->ok += client_finish(calls[i]) == GRPC_STATUS_OK;
        client_free(calls[i]);
    }
    client_close(&client);
    return NULL;
}

/* Everything that was accepted before the stop must arrive whole. */
static void test_shutdown_under_load(void **state) {
    (void)state;
    for (int run = 0; run < 20; run++) {
        void *own = NULL;
        set_up_with(&own, &(struct rpc_server_options){.n_workers = 2}, "127.0.0.1:0");
        struct fixture *f = own;
        struct load loads[2];
        pthread_t threads[2];
        for (int i = 0; i < 2; i++) {
            loads[i] = (struct load){.address = f->address};
            pthread_create(&threads[i], NULL, load_main, &loads[i]);
        }
        while (rpc_server_calls_total(f->server) < 40)
            usleep(50);
        rpc_server_stop(f->server, 60000, 10000);
        for (int i = 0; i < 2; i++) {
            pthread_join(threads[i], NULL);
            assert_int_equal(loads[i].ok, 20);
            assert_int_equal(loads[i].messages, 20 * STREAM_MESSAGES);
        }
        tear_down(&own);
    }
}

static void *stop_main(void *arg) {
    rpc_server_stop(arg, 3600000, 3600000);
    return NULL;
}

/* A call that never ends does not hold a hurried server. */
static void test_stop_in_a_hurry(void **state) {
    struct fixture *f = *state;
    struct client_call *c = client_call(&f->client, "/t/Hold", "x", 1, 0);
    pthread_t thread;
    while (!atomic_load(&held_worker))
        usleep(200);
    pthread_create(&thread, NULL, stop_main, f->server);
    while (!rpc_server_draining(f->server))
        usleep(200);
    rpc_server_hurry(f->server);
    pthread_join(thread, NULL);
    assert_int_equal(client_finish(c), GRPC_STATUS_UNAVAILABLE);
    client_free(c);
    assert_int_equal(atomic_load(&closes), 1);
    assert_int_equal(rpc_server_live_calls(f->server), 0);
    rpc_worker_poke(atomic_load(&held_worker)); /* does nothing any more */
}

static void test_free_without_start(void **state) {
    (void)state;
    struct rpc_server *s = NULL;
    struct error e = {0};
    assert_int_equal(rpc_server_create(&(struct rpc_server_options){.n_workers = 3}, methods, 1, &s, &e), 0);
    assert_null(rpc_server_free(s));
    assert_int_equal(
            rpc_server_create(&(struct rpc_server_options){.n_workers = 0}, methods, 1, &s, &e), -EINVAL);
}

int main(void) {
    log_open("unit-rpc-server", LOG_LEVEL_ERROR);
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
            cmocka_unit_test_setup_teardown(test_unary, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_no_message_is_refused_with_trailers, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_unknown_method, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_stream_is_in_order_and_whole, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_poke_from_another_thread, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_cancel_and_deadline_close_the_call, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_hang_up_closes_the_call, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_bidi, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_reader_that_never_reads, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_message_too_large, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_gzip_is_refused, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_peer_is_local, set_up, tear_down),
            cmocka_unit_test_setup_teardown(test_stop_in_a_hurry, set_up, tear_down),
            cmocka_unit_test(test_shutdown_under_load),
            cmocka_unit_test(test_free_without_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
