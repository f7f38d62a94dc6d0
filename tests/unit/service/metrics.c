/* metrics.c - /metrics and /healthz over a bare socket. */
#include "tests/unit/service/harness.h"

#include <arpa/inet.h>
#include <sys/socket.h>

static struct metrics *metrics;
static uint16_t port;

static int set_up(void **state) {
    struct error e = {0};
    unsigned number;
    harness_up(state);
    assert_int_equal(metrics_start(&harness->service, harness->server, "127.0.0.1:0", &metrics, &e), 0);
    assert_int_equal(sscanf(metrics_address(metrics), "127.0.0.1:%u", &number), 1);
    port = (uint16_t)number;
    return 0;
}

static int tear_down(void **state) {
    metrics = metrics_stop(metrics);
    return harness_down(state);
}

static int connect_to_it(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

static void get(const char *request, char *answer, size_t size) {
    int fd = connect_to_it();
    char text[256];
    int n = snprintf(text, sizeof(text), "%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", request);
    assert_int_equal(send(fd, text, (size_t)n, MSG_NOSIGNAL), n);
    size_t used = 0;
    for (ssize_t r; (r = recv(fd, answer + used, size - 1 - used, 0)) > 0;)
        used += (size_t)r;
    answer[used] = '\0';
    close(fd);
}

static void test_metrics(void **state) {
    (void)state;
    char answer[131072];
    get("GET /metrics", answer, sizeof(answer));
    assert_non_null(strstr(answer, "HTTP/1.1 200"));
    assert_non_null(strstr(answer, "text/plain; version=0.0.4"));
    assert_non_null(strstr(answer, "\nshardd_up 1\n"));
    assert_non_null(strstr(
            answer, "\n# TYPE shardd_requests_refused_total counter\nshardd_requests_refused_total 0\n"));
    Shardd__V1__GenerateRequest bad = text_request("");
    free(generate(&bad));
    get("GET /metrics", answer, sizeof(answer));
    assert_non_null(strstr(answer, "\nshardd_requests_refused_total 1\n"));
    assert_non_null(strstr(answer, "\nshardd_grpc_connections 1\n"));
    assert_int_equal(answer[strlen(answer) - 1], '\n'); /* whole */
}

/* What vLLM has a name for is there under both names; each bound of vLLM's is one of ours. */
static void test_names_of_vllm(void **state) {
    (void)state;
    static const uint64_t bounds[] = {1000000, 2000000, 10000000};
    static char answer[131072];
    for (int i = 0; i < ENGINE_HISTOGRAMS; i++)
        histogram_init(&fake_histograms[i], bounds, 3);
    histogram_add(&fake_histograms[ENGINE_INTER_TOKEN_NS], 1500000);
    fake_finished[ENGINE_FINISH_STOP_ID] = 2;
    fake_finished[ENGINE_FINISH_REQUESTED] = 3;
    get("GET /metrics", answer, sizeof(answer));
    assert_non_null(strstr(answer, "\nshardd_inter_token_latency_seconds_bucket{le=\"0.002\"} 1\n"));
    assert_non_null(
            strstr(answer, "\nvllm:inter_token_latency_seconds_bucket{model_name=\"test\",engine=\"0\","
                           "le=\"0.01\"} 1\nvllm:inter_token_latency_seconds_bucket{model_name=\"test\","
                           "engine=\"0\",le=\"+Inf\"} 1\n"));
    assert_non_null(strstr(answer, "\nshardd_requests_finished_total{reason=\"stop_string\"} 3\n"));
    assert_non_null(strstr(answer, "\nvllm:request_success_total{model_name=\"test\",engine=\"0\","
                                   "finished_reason=\"stop\"} 5\n"));
    assert_non_null(strstr(answer, "\nvllm:kv_cache_usage_perc{model_name=\"test\",engine=\"0\"} 0\n"));
}

/* Clients that say nothing, and ones that ask and read nothing: all of them still have their places
 * when another one gets its answer, so it did not wait for one of theirs. */
static void test_slow_clients_delay_nobody(void **state) {
    (void)state;
    enum { SLOW = 100 };
    static const char ask_text[] = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    int slow[SLOW];
    char answer[131072], byte;
    for (int i = 0; i < SLOW; i++) {
        slow[i] = connect_to_it();
        if (i % 2 == 0)
            assert_true(send(slow[i], ask_text, strlen(ask_text), MSG_NOSIGNAL) > 0);
    }
    get("GET /metrics", answer, sizeof(answer));
    assert_non_null(strstr(answer, "HTTP/1.1 200"));
    for (int i = 0; i < SLOW; i++) {
        if (i % 2 == 1)
            assert_int_equal(
                    recv(slow[i], &byte, 1, MSG_PEEK | MSG_DONTWAIT), -1); /* not closed: that would be 0 */
        close(slow[i]);
    }
}

static void test_health(void **state) {
    (void)state;
    char answer[4096];
    get("GET /healthz", answer, sizeof(answer));
    assert_non_null(strstr(answer, "HTTP/1.1 200"));
    service_set_health(&harness->service, false, harness->server);
    get("GET /healthz", answer, sizeof(answer));
    assert_non_null(strstr(answer, "HTTP/1.1 503"));
    get("GET /metrics", answer, sizeof(answer));
    assert_non_null(strstr(answer, "\nshardd_up 0\n"));
}

static void test_anything_else(void **state) {
    (void)state;
    char answer[4096];
    get("GET /", answer, sizeof(answer));
    assert_non_null(strstr(answer, "HTTP/1.1 404"));
    get("DELETE /metrics", answer, sizeof(answer));
    assert_non_null(strstr(answer, "HTTP/1.1 405"));
}

static void test_port_in_use(void **state) {
    (void)state;
    struct metrics *second = NULL;
    struct error e = {0};
    assert_int_equal(metrics_start(&harness->service, harness->server, metrics_address(metrics), &second, &e),
            -EADDRINUSE);
    assert_non_null(strstr(e.text, "--metrics-listen"));
    assert_null(metrics_stop(NULL));
}

int main(void) {
    log_open("unit-service-metrics", LOG_LEVEL_ERROR);
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {T(test_metrics), T(test_names_of_vllm),
            T(test_slow_clients_delay_nobody), T(test_health), T(test_anything_else), T(test_port_in_use)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
