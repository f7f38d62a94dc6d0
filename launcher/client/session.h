/* session.h - what generate and chat ask: a running service, or a private one that lives as long as they do. */
#pragma once

#include "launcher/client/client.h"
#include "launcher/client/private_service.h"
#include "launcher/options/options.h"

struct session {
    struct private_service service;
    struct client *client;
};

/* Takes SIGINT and SIGTERM (interrupt.h) and connects. 0 or an exit code of verbs.h, told on stderr. */
int session_open(struct session *s, const struct options *o);
void session_close(struct session *s);
