/* metrics.c - /metrics in the Prometheus text format and /healthz, over plain HTTP.
 *
 * libmicrohttpd's own thread serves it, with sockets that never block and epoll (select would fail at descriptors
 * beyond 1023, which a coordinator with many clients has). A scrape reads a snapshot of the engine and touches no
 * request; its text is its own, so a reader that takes none of it holds some 50 KB and one place of CONNECTIONS_TOP. */
#include "daemon/service/metrics_text.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One that sends or reads nothing holds its place until the timeout: many more places than scrapers. */
#define CONNECTIONS_TOP 256
#define TIMEOUT_SECONDS 10

struct metrics {
    struct service *service;
    struct rpc_server *server;
    struct MHD_Daemon *http;
    char address[160];
};

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
    struct byte_buffer text;
    int r = metrics_text(m->service, m->server, &text);
    enum MHD_Result result =
            r < 0 ? answer(c, MHD_HTTP_SERVICE_UNAVAILABLE, plain, "no memory\n", 10)
                  : answer(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", text.data, text.n);
    free(text.data);
    return result;
}

int metrics_start(struct service *s, struct rpc_server *server, const char *address, struct metrics **ret,
        struct error *e) {
    int fd = -1;
    struct metrics *m = calloc(1, sizeof(*m));
    if (!m)
        return error_set(e, -ENOMEM, "no memory to serve metrics");
    int r = rpc_listen(address, &fd, m->address, sizeof(m->address), e);
    if (r == 0) {
        m->service = s;
        m->server = server;
        m->http = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_ITC, 0, NULL, NULL, on_request, m,
                MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_TOP,
                MHD_OPTION_CONNECTION_TIMEOUT, TIMEOUT_SECONDS, MHD_OPTION_END);
    }
    if (r < 0) {
        free(m);
        return error_prefix(e, r, "--metrics-listen");
    }
    if (!m->http) {
        close(fd);
        free(m);
        return error_set(e, -EIO, "cannot serve metrics on %s", address);
    }
    *ret = m;
    return 0;
}

const char *metrics_address(const struct metrics *m) {
    return m->address;
}

struct metrics *metrics_stop(struct metrics *m) {
    if (!m)
        return NULL;
    MHD_stop_daemon(m->http); /* closes the socket */
    free(m);
    return NULL;
}
