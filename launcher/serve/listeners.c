/* listeners.c - see listeners.h. */
#include "launcher/serve/listeners.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define BACKLOG 1024 /* connections that may wait while a coordinator restarts; the kernel may lower it */

union address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_un un;
    struct sockaddr_storage storage;
};

static void name_of(int fd, char *name, size_t size) {
    union address a = {0};
    socklen_t n = sizeof(a);
    char host[INET6_ADDRSTRLEN];
    if (getsockname(fd, &a.any, &n) < 0)
        snprintf(name, size, "fd %d", fd);
    else if (a.any.sa_family == AF_INET && inet_ntop(AF_INET, &a.in.sin_addr, host, sizeof(host)))
        snprintf(name, size, "%s:%u", host, ntohs(a.in.sin_port));
    else if (a.any.sa_family == AF_INET6 && inet_ntop(AF_INET6, &a.in6.sin6_addr, host, sizeof(host)))
        snprintf(name, size, "[%s]:%u", host, ntohs(a.in6.sin6_port));
    else if (a.any.sa_family == AF_UNIX && a.un.sun_path[0])
        snprintf(name, size, "unix:%.*s", (int)(sizeof(a.un.sun_path)), a.un.sun_path);
    else
        snprintf(name, size, "fd %d", fd);
}

static uint16_t port_of(int fd) {
    union address a = {0};
    socklen_t n = sizeof(a);
    if (getsockname(fd, &a.any, &n) < 0)
        return 0;
    return ntohs(a.any.sa_family == AF_INET6 ? a.in6.sin6_port : a.in.sin_port);
}

static bool is_open_to_network(int fd) {
    union address a = {0};
    socklen_t n = sizeof(a);
    if (getsockname(fd, &a.any, &n) < 0)
        return false;
    if (a.any.sa_family == AF_INET)
        return ntohl(a.in.sin_addr.s_addr) >> 24 != IN_LOOPBACKNET;
    return a.any.sa_family == AF_INET6 && !IN6_IS_ADDR_LOOPBACK(&a.in6.sin6_addr);
}

static struct listener *add(struct listeners *l, int fd) {
    struct listener *item = &l->items[l->n++];
    *item = (struct listener){.fd = fd, .open_to_network = is_open_to_network(fd)};
    name_of(fd, item->name, sizeof(item->name));
    return item;
}

static int refuse_tcp(int code, const char *host, uint16_t port, struct error *e) {
    switch (code) {
    case EADDRINUSE:
        return error_set(e, -code,
                "port %u of %s is in use by another program; choose another with --port N (0 = any free one)",
                port, host);
    case EACCES:
        return error_set(
                e, -code, "port %u may only be opened by root; choose one above 1023 with --port N", port);
    case EADDRNOTAVAIL:
        return error_set(e, -code,
                "%s is not an address of this machine; give one with --host (127.0.0.1 for this machine only)",
                host);
    default:
        return error_set(e, -code, "cannot listen on port %u of %s: %s", port, host, strerror(code));
    }
}

/* Returns the socket or a negative errno. SO_REUSEPORT stays off: a second service must not share our port. */
static int listen_on(const struct addrinfo *a, uint16_t port) {
    union address to = {0};
    memcpy(&to, a->ai_addr, a->ai_addrlen < sizeof(to) ? a->ai_addrlen : sizeof(to));
    if (to.any.sa_family == AF_INET6)
        to.in6.sin6_port = htons(port);
    else
        to.in.sin_port = htons(port);
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
    if (fd < 0)
        return -errno;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    /* "::" serves IPv4 as well, as people expect; any other IPv6 address is itself only. */
    int v6_only = a->ai_family == AF_INET6 && !IN6_IS_ADDR_UNSPECIFIED(&to.in6.sin6_addr);
    if (a->ai_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof(v6_only));
    if (bind(fd, &to.any, a->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        int code = errno;
        close(fd);
        return -code;
    }
    return fd;
}

int listeners_add_tcp(struct listeners *l, const char *host, uint16_t port, struct error *e) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV},
                    *found = NULL;
    bool all = !*host || strcmp(host, "*") == 0;
    hints.ai_family = all ? AF_INET6 : AF_UNSPEC;
    int r = getaddrinfo(all ? "::" : host, "0", &hints, &found);
    if (r != 0)
        return error_set(e,
                r == EAI_AGAIN    ? -EAGAIN
                : r == EAI_MEMORY ? -ENOMEM
                                  : -EINVAL,
                "--host %s: %s; give an address of this machine, e.g. 127.0.0.1 or 0.0.0.0", host,
                r == EAI_SYSTEM ? strerror(errno) : gai_strerror(r));
    int rc = 0, failed = 0;
    uint32_t before = l->n;
    for (struct addrinfo *a = found; a && rc == 0 && l->n < LISTENERS_MAX; a = a->ai_next) {
        int fd = listen_on(a, port);
        if (fd >= 0) {
            (void)add(l, fd);
            port = port_of(fd); /* the free one, for the other addresses too */
        } else if (fd == -EADDRNOTAVAIL || fd == -EAFNOSUPPORT) {
            failed = -fd; /* localhost on a machine without IPv6: another address may do */
        } else {
            rc = refuse_tcp(-fd, host, port, e);
        }
    }
    freeaddrinfo(found);
    if (rc == 0 && l->n == before && all && failed)
        return listeners_add_tcp(l, "0.0.0.0", port, e);
    if (rc == 0 && l->n == before)
        rc = refuse_tcp(failed ? failed : EADDRNOTAVAIL, host, port, e);
    return rc;
}

/* Makes room at path: a socket that nobody answers on is left from a killed service. */
static int remove_stale(const char *path, const struct sockaddr_un *to, struct error *e) {
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : error_set(e, -errno, "--uds %s: %s", path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return error_set(
                e, -EEXIST, "--uds %s: a file that is not a socket is there; choose another path", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set(e, -errno, "--uds %s: %s", path, strerror(errno));
    int code = connect(fd, (const struct sockaddr *)to, sizeof(*to)) < 0 ? errno : 0;
    close(fd);
    if (code == 0 || code == EAGAIN || code == EINPROGRESS)
        return error_set(e, -EADDRINUSE,
                "--uds %s: another program is listening on this socket; choose another path", path);
    if (code == ECONNREFUSED && unlink(path) == 0)
        return 0;
    code = code == ECONNREFUSED ? errno : code;
    return error_set(e, -code, "--uds %s: cannot replace the socket file: %s", path, strerror(code));
}

int listeners_add_unix(struct listeners *l, const char *path, struct error *e) {
    union address to = {.un.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(to.un.sun_path))
        return error_set(e, -ENAMETOOLONG,
                "--uds %s: a socket's path has at most %zu bytes; choose a shorter one", path,
                sizeof(to.un.sun_path) - 1);
    if (l->n >= LISTENERS_MAX)
        return error_set(e, -E2BIG, "--uds %s: there are %d listeners already", path, LISTENERS_MAX);
    snprintf(to.un.sun_path, sizeof(to.un.sun_path), "%s", path);
    int rc = remove_stale(path, &to.un, e);
    if (rc < 0)
        return rc;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(0117);
    bool bound = fd >= 0 && bind(fd, &to.any, sizeof(to.un)) == 0;
    int code = errno;
    umask(mask);
    struct stat st = {0};
    if (!bound || listen(fd, BACKLOG) < 0 || stat(path, &st) < 0) {
        code = bound ? errno : code;
        if (fd >= 0)
            close(fd);
        return error_set(e, -code, "--uds %s: %s%s", path, strerror(code),
                code == ENOENT ? "; its folder must exist" : "");
    }
    struct listener *item = add(l, fd);
    snprintf(item->path, sizeof(item->path), "%s", path);
    item->device = st.st_dev;
    item->inode = st.st_ino;
    return 0;
}

int listeners_add_systemd(struct listeners *l, struct error *e) {
    int n = sd_listen_fds(1);
    if (n < 0)
        return error_set(e, n, "the sockets handed over by systemd cannot be taken: %s", strerror(-n));
    if ((uint32_t)n > LISTENERS_MAX - l->n)
        return error_set(e, -E2BIG, "systemd handed over %d sockets; at most %d are taken", n, LISTENERS_MAX);
    for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + n; fd++) {
        if (sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1) <= 0)
            return error_set(e, -EINVAL,
                    "fd %d handed over by systemd is not a listening stream socket: use ListenStream=", fd);
        if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
            return error_set(e, -errno, "fd %d handed over by systemd: %s", fd, strerror(errno));
        (void)add(l, fd);
    }
    return n;
}

void listeners_message(const struct listeners *l, struct control_message *m) {
    *m = (struct control_message){.kind = CONTROL_LISTENERS, .n_fds = l->n};
    size_t used = 0;
    for (uint32_t i = 0; i < l->n; i++) {
        m->fds[i] = l->items[i].fd;
        int n = snprintf(m->text + used, sizeof(m->text) - used, "%s%s", i ? "\n" : "", l->items[i].name);
        if (n > 0 && used + (size_t)n < sizeof(m->text))
            used += (size_t)n;
    }
}

void listeners_close(struct listeners *l) {
    for (uint32_t i = 0; i < l->n; i++) {
        struct listener *item = &l->items[i];
        struct stat st;
        if (item->path[0] && stat(item->path, &st) == 0 && st.st_dev == item->device &&
                st.st_ino == item->inode)
            (void)unlink(item->path);
        close(item->fd);
    }
    l->n = 0;
}
