/* metrics.c - /metrics in the Prometheus text format and /healthz, over plain HTTP.
 *
 * libmicrohttpd's own thread serves it, with sockets that never block and epoll (select would fail at descriptors
 * beyond 1023, which a coordinator with many clients has). A scrape reads a snapshot of the engine and touches no
 * request; its text is copied, so a reader that takes none of it holds 16 KB and one place of CONNECTIONS_TOP. */
#include "daemon/rpc/rpc.h"
#include "daemon/service/service.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_MAX 16384
/* One that sends or reads nothing holds its place until the timeout: many more places than scrapers. */
#define CONNECTIONS_TOP 256
#define TIMEOUT_SECONDS 10

struct metrics {
    struct service *service;
    struct rpc_server *server;
    struct MHD_Daemon *http;
};

struct line {
    const char *name, *kind, *help;
    double value;
};

static size_t write_lines(char *text, size_t size, const struct line *lines, size_t n_lines) {
    size_t used = 0;
    for (size_t i = 0; i < n_lines; i++) {
        int n = snprintf(text + used, size - used,
                "# HELP shardd_%s %s\n# TYPE shardd_%s %s\nshardd_%s %.17g\n", lines[i].name, lines[i].help,
                lines[i].name, lines[i].kind, lines[i].name, lines[i].value);
        if (n < 0 || (size_t)n >= size - used)
            break;
        used += (size_t)n;
    }
    return used;
}

static size_t write_metrics(const struct metrics *m, char *text, size_t size) {
    struct engine_stats s;
    engine_stats(m->service->options.engine, &s);
    struct line lines[] = {
            {"up", "gauge", "1 while a request sent now would run.", atomic_load(&m->service->serving)},
            {"requests_running", "gauge", "Sequences in steps.", s.running},
            {"requests_waiting", "gauge", "Requests in the queue.", s.waiting},
            {"requests_suspected", "gauge",
                    "Requests that were computed at a death and have not run alone since.", s.suspects},
            {"requests_total", "counter", "Requests taken by the engine.", (double)s.requests_total},
            {"requests_refused_total", "counter", "Calls that ended with a refusal.",
                    (double)atomic_load(&m->service->refused_total)},
            {"requests_cancelled_total", "counter", "Streams that clients left.",
                    (double)atomic_load(&m->service->cancelled_total)},
            {"prompt_tokens_total", "counter", "Prompt tokens taken.", (double)s.prompt_tokens_total},
            {"generated_tokens_total", "counter", "Tokens generated.", (double)s.generated_tokens_total},
            {"chunks_total", "counter", "Messages of tokens sent.",
                    (double)atomic_load(&m->service->chunks_total)},
            {"kv_pages", "gauge", "KV pages of 64 tokens.", s.pages_total},
            {"kv_pages_free", "gauge", "KV pages not in use.", s.pages_free},
            {"steps_total", "counter", "Engine steps.", (double)s.steps_total},
            {"step_plan_seconds_total", "counter", "Time of the engine thread for its steps.",
                    (double)s.step_plan_ns_total / 1e9},
            {"preemptions_total", "counter", "Sequences that gave up their place for want of memory.",
                    (double)s.preemptions_total},
            {"replays_total", "counter", "Sequences replayed after a restart of the workers.",
                    (double)s.replays_total},
            {"dropped_records_total", "counter", "Records of another epoch.",
                    (double)s.dropped_records_total},
            {"step_errors_total", "counter", "Steps that the workers reported as failed.",
                    (double)s.step_errors_total},
            {"group_epoch", "gauge", "Starts of the worker group.", (double)s.group_epoch},
            {"grpc_calls_total", "counter", "gRPC calls.", (double)rpc_server_calls_total(m->server)},
            {"grpc_calls_live", "gauge", "gRPC calls that have not ended.", rpc_server_live_calls(m->server)},
            {"grpc_connections", "gauge", "Open client connections.", rpc_server_connections(m->server)},
    };
    return write_lines(text, size, lines, sizeof(lines) / sizeof(lines[0]));
}

static enum MHD_Result answer(
        struct MHD_Connection *c, unsigned status, const char *type, const char *text, size_t bytes) {
    struct MHD_Response *r =
            MHD_create_response_from_buffer(bytes, (void *)(uintptr_t)text, MHD_RESPMEM_MUST_COPY);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    enum MHD_Result result = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return result;
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *c, const char *url, const char *method,
        const char *version, const char *upload, size_t *upload_bytes, void **state) {
    struct metrics *m = user;
    (void)version;
    (void)upload;
    (void)state;
    static const char plain[] = "text/plain; charset=utf-8";
    if (*upload_bytes > 0) { /* nobody wants it */
        *upload_bytes = 0;
        return MHD_YES;
    }
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return answer(c, MHD_HTTP_METHOD_NOT_ALLOWED, plain, "only GET\n", 9);
    if (strcmp(url, "/healthz") == 0) {
        bool up = atomic_load(&m->service->serving);
        return answer(c, up ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, plain,
                up ? "ok\n" : "not serving\n", up ? 3 : 12);
    }
    if (strcmp(url, "/metrics") != 0)
        return answer(c, MHD_HTTP_NOT_FOUND, plain, "look at /metrics or /healthz\n", 29);
    char text[TEXT_MAX];
    size_t bytes = write_metrics(m, text, sizeof(text));
    return answer(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", text, bytes);
}

int metrics_start(struct service *s, struct rpc_server *server, const char *address, struct metrics **ret,
        struct error *e) {
    int fd = -1;
    char name[160];
    int r = rpc_listen(address, &fd, name, sizeof(name), e);
    if (r < 0)
        return error_prefix(e, r, "--metrics-listen");
    struct metrics *m = calloc(1, sizeof(*m));
    if (m) {
        m->service = s;
        m->server = server;
        m->http = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC, 0, NULL, NULL, on_request, m,
                MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_TOP,
                MHD_OPTION_CONNECTION_TIMEOUT, TIMEOUT_SECONDS, MHD_OPTION_END);
    }
    if (!m || !m->http) {
        close(fd);
        free(m);
        return error_set(e, -EIO, "cannot serve metrics on %s", address);
    }
    *ret = m;
    return 0;
}

struct metrics *metrics_stop(struct metrics *m) {
    if (!m)
        return NULL;
    MHD_stop_daemon(m->http); /* closes the socket */
    free(m);
    return NULL;
}
