/* keep.c - see keep.h. */
#include "tp/load/keep.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static int wait_for_answer(int fd, struct error *e) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int n;
    do
        n = poll(&p, 1, KEEP_ANSWER_MS);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return error_set(e, -errno, "cannot wait for the keeper of weights: %s", strerror(errno));
    return n == 0 ? error_set(e, -ETIMEDOUT, "the keeper of weights does not answer in %d ms", KEEP_ANSWER_MS)
                  : 0;
}

static int ask(const struct keep_link *l, uint32_t rank, struct keep *k, struct error *e) {
    struct control_message m = {.kind = CONTROL_TAKE, .a = rank};
    snprintf(m.text, sizeof(m.text), "%s", k->manifest);
    int r = control_send(l->fd, &m, e);
    r = r < 0 ? r : wait_for_answer(l->fd, e);
    r = r < 0 ? r : control_receive(l->fd, /* block= */ false, &m, e);
    if (r < 0) { /* an answer that came later would hold on to the memory */
        shutdown(l->fd, SHUT_RDWR);
        return r;
    }
    if (m.kind != CONTROL_KEPT || m.a != rank || m.n_fds > 1) {
        control_close_fds(&m);
        return error_set(e, -EBADMSG, "the keeper of weights answers with a message of kind %u", m.kind);
    }
    k->fd = m.n_fds ? m.fds[0] : -1;
    k->sum = m.b;
    return 0;
}

int keep_take(struct keep_link *l, uint32_t rank, struct keep *k, struct error *e) {
    k->fd = -1;
    pthread_mutex_lock(&l->lock);
    int r = ask(l, rank, k, e);
    pthread_mutex_unlock(&l->lock);
    return r;
}

int keep_put(struct keep_link *l, uint32_t rank, const struct keep *k, struct error *e) {
    struct control_message m = {.kind = CONTROL_PUT, .a = rank, .b = k->sum, .n_fds = 1, .fds = {k->fd}};
    snprintf(m.text, sizeof(m.text), "%s", k->manifest);
    return control_send(l->fd, &m, e);
}
