/* listeners.h - the sockets that clients connect to. The supervisor opens and keeps them: while a coordinator
 * is being restarted, connections wait in their backlog. */
#pragma once

#include "base/error.h"
#include "proto/step/control.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define LISTENERS_MAX CONTROL_FDS_MAX
#define LISTENER_NAME 128

struct listener {
    int fd;
    char name[LISTENER_NAME]; /* "127.0.0.1:50051", "[::1]:50051", "unix:/run/shardd.sock" */
    bool open_to_network;     /* reachable from other machines */
    char path[108];           /* Unix socket that we made and will remove; "" = none */
    dev_t device;             /* of path, to remove only our own */
    ino_t inode;
};

struct listeners {
    struct listener items[LISTENERS_MAX];
    uint32_t n;
};

/* TCP on every address that host resolves to ("*" and "" = all). port 0 takes a free one, the same for all
 * addresses. Sentences name the address, the port and the flag that changes it. */
int listeners_add_tcp(struct listeners *l, const char *host, uint16_t port, struct error *e);
/* Unix stream socket, mode 0660. The file of a dead service is replaced, a living one's is not. */
int listeners_add_unix(struct listeners *l, const char *path, struct error *e);
/* Sockets handed over by systemd, if any: returns how many were taken. */
int listeners_add_systemd(struct listeners *l, struct error *e);
/* All of them in one CONTROL_LISTENERS message; the fds stay ours. */
void listeners_message(const struct listeners *l, struct control_message *m);
/* Closes all and removes our socket files. */
void listeners_close(struct listeners *l);
