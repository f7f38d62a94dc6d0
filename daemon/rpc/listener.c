/* listener.c - an accept loop of our own, for plaintext TCP and Unix sockets.
 *
 * The C core's listener never accepts again after one accept that failed for want of a descriptor. This one
 * waits a moment and goes on. It also takes sockets that another process opened, and limits the number of
 * connections.
 *
 * The core names such a connection by the number of its descriptor and by nothing else ("fd:17"), and a
 * number is used again. So the number itself says who may be trusted: local peers get even ones, others odd
 * ones. */
#include "daemon/rpc/rpc_internal.h"

#include "base/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG     1024
#define BACK_OFF_MS 100
#define ACCEPTS_MAX 64 /* of one socket before the others have their turn */

/* A connection that was given to the core, which closes it without telling. The inode tells whether the
 * descriptor is still that socket. */
struct connection {
    int fd;
    ino_t inode;
    char caller[RPC_CALLER_BYTES];
};

struct rpc_listener {
    grpc_server *server; /* borrowed */
    grpc_server_credentials *plaintext;
    pthread_t thread;
    bool running;
    int wake_fd;

    pthread_mutex_t mutex; /* protects what follows */
    int fds[RPC_LISTENERS_MAX];
    uint32_t n_fds;
    bool stopping, refusing;
    struct connection *connections; /* (connections_max); counted again only when full or asked */
    uint32_t n_connections, connections_max;

    bool starved, crowded; /* the accept thread's: said in the log once, not per try */
};

bool rpc_listener_fd_is_local(int fd) {
    return fd % 2 == 0;
}

static bool is_local(const struct sockaddr_storage *a) {
    if (a->ss_family == AF_UNIX)
        return true;
    if (a->ss_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
    if (a->ss_family != AF_INET6)
        return false;
    const struct in6_addr *six = &((const struct sockaddr_in6 *)a)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(six) || (IN6_IS_ADDR_V4MAPPED(six) && six->s6_addr[12] == 127);
}

/* Moves fd to a number of the wanted parity. Returns it, or -1 with fd closed. */
static int with_parity(int fd, bool local) {
    int other = fd;
    while (other >= 0 && rpc_listener_fd_is_local(other) != local) {
        int next = fcntl(fd, F_DUPFD_CLOEXEC, other + 1);
        if (other != fd)
            close(other);
        other = next;
    }
    if (other != fd)
        close(fd);
    return other;
}

static void forget_closed(struct rpc_listener *l) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < l->n_connections; i++) {
        struct stat st;
        if (fstat(l->connections[i].fd, &st) == 0 && S_ISSOCK(st.st_mode) &&
                st.st_ino == l->connections[i].inode)
            l->connections[kept++] = l->connections[i];
    }
    l->n_connections = kept;
}

/* See rpc_call_caller(). */
static void name_caller(int fd, const struct sockaddr_storage *a, char *ret, size_t bytes) {
    char host[INET6_ADDRSTRLEN] = "unknown";
    struct ucred peer;
    socklen_t n = sizeof(peer);
    const struct in6_addr *six = &((const struct sockaddr_in6 *)a)->sin6_addr;
    if (a->ss_family == AF_UNIX && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) == 0) {
        snprintf(ret, bytes, "uid %u", peer.uid);
        return;
    }
    if (a->ss_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)a)->sin_addr, host, sizeof(host));
    else if (a->ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(six))
        inet_ntop(AF_INET, &six->s6_addr[12], host, sizeof(host));
    else if (a->ss_family == AF_INET6)
        inet_ntop(AF_INET6, six, host, sizeof(host));
    snprintf(ret, bytes, "%s", a->ss_family != AF_UNIX && is_local(a) ? "loopback" : host);
}

/* Notes the connection; false when there are too many. */
static bool admit(struct rpc_listener *l, int fd, const struct sockaddr_storage *peer) {
    struct stat st;
    if (fstat(fd, &st) < 0)
        return false;
    pthread_mutex_lock(&l->mutex);
    if (l->n_connections == l->connections_max)
        forget_closed(l);
    bool room = l->n_connections < l->connections_max;
    if (room) {
        struct connection *c = &l->connections[l->n_connections++];
        *c = (struct connection){.fd = fd, .inode = st.st_ino};
        name_caller(fd, peer, c->caller, sizeof(c->caller));
    }
    pthread_mutex_unlock(&l->mutex);
    return room;
}

static void hand_over(struct rpc_listener *l, int fd, const struct sockaddr_storage *peer) {
    if (l->refusing) { /* closing is an answer: left in the backlog the peer would wait for one */
        close(fd);
        return;
    }
    if (peer->ss_family == AF_INET || peer->ss_family == AF_INET6) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* tokens must not wait for each other */
    }
    fd = with_parity(fd, is_local(peer));
    if (fd < 0)
        return;
    if (!admit(l, fd, peer)) {
        close(fd);
        if (!l->crowded)
            log_warning("%u connections are open, new ones are closed; raise the limit or "
                        "look for a leak in a client",
                    l->connections_max);
        l->crowded = true;
        return;
    }
    l->crowded = false;
    grpc_server_add_channel_from_fd(l->server, fd, l->plaintext);
}

/* Takes what waits at one socket. False when the process or the system has no descriptor or memory left. */
static bool accept_some(struct rpc_listener *l, int listening) {
    for (int i = 0; i < ACCEPTS_MAX; i++) {
        struct sockaddr_storage peer = {0};
        socklen_t bytes = sizeof(peer);
        int fd = accept4(listening, (struct sockaddr *)&peer, &bytes, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            hand_over(l, fd, &peer);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            if (!l->starved)
                log_error("cannot accept a connection: %s; trying again every %d ms (raise LimitNOFILE)",
                        strerror(errno), BACK_OFF_MS);
            l->starved = true;
            return false;
        }
        if (errno == EINTR || errno == ECONNABORTED)
            continue;
        break; /* EAGAIN; or an error of one connection, which the next poll shows again if it stays */
    }
    if (l->starved)
        log_notice("accepting connections again");
    l->starved = false;
    return true;
}

static void *accept_main(void *arg) {
    struct rpc_listener *l = arg;
    bool back_off = false;
    for (;;) {
        struct pollfd p[RPC_LISTENERS_MAX + 1] = {{.fd = l->wake_fd, .events = POLLIN}};
        pthread_mutex_lock(&l->mutex);
        bool stopping = l->stopping;
        uint32_t n = l->n_fds;
        for (uint32_t i = 0; i < n; i++)
            p[i + 1] = (struct pollfd){.fd = l->fds[i], .events = POLLIN};
        pthread_mutex_unlock(&l->mutex);
        if (stopping)
            return NULL;
        if (poll(p, back_off ? 1 : n + 1, back_off ? BACK_OFF_MS : -1) < 0 && errno != EINTR)
            log_error("poll: %s", strerror(errno));
        uint64_t count;
        if (p[0].revents && read(l->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
            log_error("eventfd: %s", strerror(errno));
        bool waited = back_off;
        back_off = false;
        for (uint32_t i = 1; i <= n; i++)
            if ((waited || p[i].revents) && !accept_some(l, p[i].fd))
                back_off = true;
    }
}

int rpc_listener_create(
        grpc_server *server, uint32_t connections_max, struct rpc_listener **ret, struct error *e) {
    struct rpc_listener *l = calloc(1, sizeof(*l));
    struct connection *connections = calloc(connections_max, sizeof(*connections));
    int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!l || !connections || wake_fd < 0) {
        int r = wake_fd < 0 ? -errno : -ENOMEM;
        if (wake_fd >= 0)
            close(wake_fd);
        free(connections);
        free(l);
        return error_set(e, r, "cannot prepare the accept loop: %s", strerror(-r));
    }
    l->server = server;
    l->plaintext = grpc_insecure_server_credentials_create();
    l->wake_fd = wake_fd;
    l->connections = connections;
    l->connections_max = connections_max;
    pthread_mutex_init(&l->mutex, NULL);
    *ret = l;
    return 0;
}

int rpc_listener_start(struct rpc_listener *l, struct error *e) {
    int r = pthread_create(&l->thread, NULL, accept_main, l);
    if (r != 0)
        return error_set(e, -r, "cannot start the accept thread: %s", strerror(r));
    l->running = true;
    return 0;
}

static void wake(struct rpc_listener *l) {
    uint64_t one = 1;
    ssize_t n = write(l->wake_fd, &one, sizeof(one));
    (void)n; /* full means that it is awake */
}

int rpc_listener_add(struct rpc_listener *l, int fd, struct error *e) {
    int listening = 0, flags = fcntl(fd, F_GETFL);
    socklen_t bytes = sizeof(listening);
    if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes) < 0 || !listening ||
            fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        close(fd);
        return error_set(e, -ENOTSOCK, "descriptor %d is not a listening socket", fd);
    }
    pthread_mutex_lock(&l->mutex);
    bool room = l->n_fds < RPC_LISTENERS_MAX && !l->stopping;
    if (room)
        l->fds[l->n_fds++] = fd;
    pthread_mutex_unlock(&l->mutex);
    if (!room) {
        close(fd);
        return error_set(e, -E2BIG, "more than %u listening sockets", RPC_LISTENERS_MAX);
    }
    wake(l);
    return 0;
}

/* Joins the accept thread: after it no connection is on its way to the core. */
static void stop_accepting(struct rpc_listener *l) {
    pthread_mutex_lock(&l->mutex);
    l->stopping = true;
    pthread_mutex_unlock(&l->mutex);
    wake(l);
    if (l->running)
        pthread_join(l->thread, NULL);
    l->running = false;
}

void rpc_listener_refuse(struct rpc_listener *l) {
    bool was_running = l->running;
    struct error e;
    stop_accepting(l);
    l->refusing = true;
    l->stopping = false;
    if (was_running && rpc_listener_start(l, &e) < 0)
        log_warning("%s; new connections wait until the end", e.text);
}

void rpc_listener_stop(struct rpc_listener *l) {
    stop_accepting(l);
    for (uint32_t i = 0; i < l->n_fds; i++)
        close(l->fds[i]);
    l->n_fds = 0;
}

struct rpc_listener *rpc_listener_free(struct rpc_listener *l) {
    if (!l)
        return NULL;
    rpc_listener_stop(l);
    grpc_server_credentials_release(l->plaintext);
    close(l->wake_fd);
    pthread_mutex_destroy(&l->mutex);
    free(l->connections);
    free(l);
    return NULL;
}

int rpc_listener_caller(struct rpc_listener *l, int fd, char *ret, size_t bytes) {
    int r = -ENOENT;
    pthread_mutex_lock(&l->mutex);
    for (uint32_t i = l->n_connections; r < 0 && i > 0; i--) { /* the newest that has this number */
        if (l->connections[i - 1].fd == fd) {
            snprintf(ret, bytes, "%s", l->connections[i - 1].caller);
            r = 0;
        }
    }
    pthread_mutex_unlock(&l->mutex);
    return r;
}

uint32_t rpc_listener_connections(struct rpc_listener *l) {
    pthread_mutex_lock(&l->mutex);
    forget_closed(l);
    uint32_t n = l->n_connections;
    pthread_mutex_unlock(&l->mutex);
    return n;
}

/* A socket file that nobody listens on any more is left over from a process that was killed. */
static int remove_stale(const char *path, const struct sockaddr_un *a, struct error *e) {
    struct stat st;
    if (lstat(path, &st) < 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return error_set(
                e, -EEXIST, "%s is there and is not a socket; remove it or choose another path", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_set(e, -errno, "socket: %s", strerror(errno));
    bool alive = connect(fd, (const struct sockaddr *)a, sizeof(*a)) == 0 || errno != ECONNREFUSED;
    close(fd);
    if (alive)
        return error_set(
                e, -EADDRINUSE, "%s is in use by another process; stop it or choose another path", path);
    unlink(path);
    return 0;
}

static int listen_unix(const char *path, int *ret_fd, struct error *e) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (path[0] == '\0' || strlen(path) >= sizeof(a.sun_path))
        return error_set(
                e, -EINVAL, "unix:%s: a socket path has 1 to %zu bytes", path, sizeof(a.sun_path) - 1);
    memcpy(a.sun_path, path, strlen(path) + 1);
    int r = remove_stale(path, &a, e);
    if (r < 0)
        return r;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set(e, -errno, "socket: %s", strerror(errno));
    mode_t before = umask(0117); /* owner and group */
    r = bind(fd, (const struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, BACKLOG) < 0 ? -errno : 0;
    umask(before);
    if (r < 0) {
        close(fd);
        return error_set(e, r, "cannot listen on unix:%s: %s", path, strerror(-r));
    }
    *ret_fd = fd;
    return 0;
}

/* "host:port" or "[host]:port" -> its halves. */
static int split_address(
        const char *address, char *host, size_t host_bytes, const char **ret_port, struct error *e) {
    const char *colon = strrchr(address, ':');
    size_t n = colon ? (size_t)(colon - address) : 0;
    const char *from = address;
    if (n >= 2 && address[0] == '[' && address[n - 1] == ']') {
        from++;
        n -= 2;
    }
    if (!colon || n == 0 || n >= host_bytes || colon[1] == '\0')
        return error_set(e, -EINVAL,
                "'%s' is not an address; write 127.0.0.1:50051, [::1]:50051 or unix:/path", address);
    char *end;
    unsigned long number = strtoul(colon + 1, &end, 10); /* getaddrinfo would take 65537 for 1 */
    if (*end || colon[1] < '0' || colon[1] > '9' || number > 65535)
        return error_set(e, -EINVAL, "'%s': the port must be a number from 0 to 65535", address);
    memcpy(host, from, n);
    host[n] = '\0';
    *ret_port = colon + 1;
    return 0;
}

static int bind_first(const struct addrinfo *list, int *ret_fd) {
    int r = -EADDRNOTAVAIL;
    for (const struct addrinfo *a = list; a; a = a->ai_next) {
        int on = 1, fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) {
            r = -errno;
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)); /* past TIME_WAIT, not a live listener */
        if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) {
            *ret_fd = fd;
            return 0;
        }
        r = -errno;
        close(fd);
    }
    return r;
}

static void name_of(int fd, char *name, size_t bytes) {
    struct sockaddr_storage a = {0};
    socklen_t n = sizeof(a);
    char host[INET6_ADDRSTRLEN + 16], port[16];
    name[0] = '\0';
    if (getsockname(fd, (struct sockaddr *)&a, &n) == 0 &&
            getnameinfo((struct sockaddr *)&a, n, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(name, bytes, a.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

int rpc_listen(const char *address, int *ret_fd, char *ret_name, size_t name_bytes, struct error *e) {
    if (strncmp(address, "unix:", 5) == 0) {
        int r = listen_unix(address + 5, ret_fd, e);
        if (r == 0)
            snprintf(ret_name, name_bytes, "%s", address);
        return r;
    }
    char host[256];
    const char *port = NULL;
    int r = split_address(address, host, sizeof(host), &port, e);
    if (r < 0)
        return r;
    struct addrinfo hints = {
            .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    int g = getaddrinfo(host, port, &hints, &list);
    if (g != 0)
        return error_set(e, -EINVAL, "cannot find the address '%s': %s", address, gai_strerror(g));
    r = bind_first(list, ret_fd);
    freeaddrinfo(list);
    if (r == -EADDRINUSE)
        return error_set(e, r, "%s is in use by another process; stop it or choose another port", address);
    if (r < 0)
        return error_set(e, r, "cannot listen on %s: %s", address, strerror(-r));
    name_of(*ret_fd, ret_name, name_bytes);
    return 0;
}
