/* worker.c - see worker.h: the main thread of a worker process. */
#include "tp/worker/worker.h"

#include "base/clock.h"
#include "base/log.h"
#include "proto/step/control.h"
#include "tp/worker/worker_rank.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOADING_TELL_MS 250
#define STOP_LEAST_MS   1000u /* a STOP without grace still lets the step in flight finish */
#define END_MS          500u  /* that ranks get to end by themselves once they are woken */
#define BLAME_OTHERS_MS 1000u /* after which a rank that another one's failure stopped speaks up itself */

struct worker {
    const struct worker_options *options;
    struct worker_rank ranks[RANKS_MAX];
    uint32_t n_ranks; /* started */
    int event_fd;
    struct keep_link keeper;
    void *comm;
    size_t comm_bytes;
    uint64_t group_epoch, coord_epoch;
    bool ready;          /* told */
    uint64_t stop_at_ns; /* 0 = not stopping */
    uint64_t own_up_ns;  /* when to report a rank that was only stopped by another one's failure; 0 = none */
    uint64_t bytes_told;
};

int worker_exit_status(int code) {
    return code == -EDOM ? WORKER_EXIT_USAGE : EXIT_FAILURE;
}

uint32_t worker_threads(const struct worker_options *o) {
    cpu_set_t set;
    if (o->rank.threads)
        return o->rank.threads;
    int cores = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    uint32_t each = (uint32_t)cores / o->rank.tp;
    return each ? each : 1;
}

/* --- set-up --- */

/* The memory that all ranks of the group share. The launcher's memfd is empty: every worker sets the same
 * size, which it computes from flags and configuration alone. */
static int map_comm(struct worker *w, struct error *e) {
    int r = rank_comm_bytes(&w->options->rank, &w->comm_bytes, e);
    if (r < 0 || w->comm_bytes == 0)
        return r;
    int flags = MAP_SHARED, fd = w->options->comm_fd;
    if (fd < 0) {
        flags |= MAP_ANONYMOUS;
    } else {
        struct stat st;
        if (fstat(fd, &st) < 0)
            return error_set(e, -errno, "--comm-fd %d: %s", fd, strerror(errno));
        if (st.st_size != 0 && (uint64_t)st.st_size != w->comm_bytes)
            return error_set(e, -EINVAL,
                    "the shared memory of the group has %lld bytes, this rank needs %zu: all ranks must have the same "
                    "--model, --tensor-parallel-size and --max-num-batched-tokens",
                    (long long)st.st_size, w->comm_bytes);
        if (ftruncate(fd, (off_t)w->comm_bytes) < 0)
            return error_set(e, -errno, "cannot size the shared memory of the group to %zu bytes: %s",
                    w->comm_bytes, strerror(errno));
    }
    void *p = mmap(NULL, w->comm_bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (p == MAP_FAILED)
        return error_set(e, -errno, "cannot map the shared memory of the group: %s", strerror(errno));
    w->comm = p;
    return 0;
}

static int start_ranks(struct worker *w, struct error *e) {
    int r = map_comm(w, e);
    if (r < 0)
        return r;
    struct rank_options o = w->options->rank;
    o.threads = worker_threads(w->options);
    o.comm_region = w->comm;
    o.comm_bytes = w->comm_bytes;
    o.keeper = w->keeper.fd >= 0 ? &w->keeper : NULL;
    for (uint32_t i = 0; i < w->options->n_ranks; i++) {
        o.rank = w->options->ranks[i];
        r = worker_rank_start(&w->ranks[i], &o, w->event_fd, e);
        w->n_ranks = i + 1; /* also a rank whose thread did not start has to be released */
        if (r < 0)
            return r;
    }
    return 0;
}

/* --- telling the launcher --- */

static int tell(struct worker *w, enum control_kind kind, uint64_t a, uint64_t b, const char *text) {
    struct control_message m = {
            .kind = kind, .group_epoch = w->group_epoch, .coord_epoch = w->coord_epoch, .a = a, .b = b};
    snprintf(m.text, sizeof(m.text), "%s", text);
    return control_send(w->options->control_fd, &m, NULL);
}

static void tell_loading(struct worker *w) {
    uint64_t done = 0, total = 0;
    for (uint32_t i = 0; i < w->n_ranks; i++) {
        done += atomic_load(&w->ranks[i].bytes_done);
        total += atomic_load(&w->ranks[i].bytes_total);
    }
    if (done == w->bytes_told)
        return;
    w->bytes_told = done;
    tell(w, CONTROL_LOADING, done, total, "weights");
}

static void tell_ready(struct worker *w) {
    char text[CONTROL_TEXT_MAX];
    size_t n = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i < w->n_ranks && n < sizeof(text); i++)
        n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s", i ? " | " : "", w->ranks[i].ready_text);
    w->ready = true;
    tell(w, CONTROL_READY, 0, 0, text);
}

static int fault(struct worker *w, const struct worker_rank *r) {
    log_error("rank %u: %s", r->options.rank, r->e.text);
    tell(w, CONTROL_FAULT, r->options.rank, 0, r->e.text);
    return worker_exit_status(r->e.code);
}

/* What failed ranks mean for the process: an exit status, or -1 to go on. */
static int look_at_failures(struct worker *w) {
    const struct worker_rank *stopped = NULL; /* by another rank, here or in another process */
    for (uint32_t i = 0; i < w->n_ranks; i++) {
        const struct worker_rank *r = &w->ranks[i];
        if (atomic_load(&r->state) != WORKER_RANK_FAILED)
            continue;
        if (r->e.code != -ECANCELED)
            return fault(w, r);
        stopped = r;
    }
    if (!stopped)
        return -1;
    if (!w->own_up_ns)
        w->own_up_ns = clock_ns() + BLAME_OTHERS_MS * 1000000ull;
    return clock_ns() >= w->own_up_ns ? fault(w, stopped) : -1;
}

/* What the ranks' states mean for the process: an exit status, or -1 to go on. */
static int look_at_ranks(struct worker *w) {
    uint32_t ready = 0, stopped = 0;
    for (uint32_t i = 0; i < w->n_ranks; i++) {
        uint32_t state = atomic_load(&w->ranks[i].state);
        ready += state == WORKER_RANK_READY;
        stopped += state == WORKER_RANK_STOPPED;
    }
    if (ready == w->n_ranks && !w->ready)
        tell_ready(w);
    return stopped == w->n_ranks ? EXIT_SUCCESS : look_at_failures(w);
}

/* --- listening to the launcher --- */

static int take_channel(struct worker *w, struct control_message *m, struct error *e) {
    if (m->n_fds != 1)
        return error_set(e, -EBADMSG, "a channel with %u descriptors, 1 is expected", m->n_fds);
    for (uint32_t i = 0; i < w->n_ranks; i++) {
        struct step_ring *ring = NULL;
        int r = step_ring_attach(m->fds[0], w->ranks[i].options.rank, &ring, e);
        if (r < 0)
            return r;
        if (step_ring_ranks(ring) != w->options->rank.tp) {
            r = error_set(e, -EINVAL, "the step ring is for %u ranks, --tensor-parallel-size is %u",
                    step_ring_ranks(ring), w->options->rank.tp);
            step_ring_free(ring);
            return r;
        }
        worker_rank_channel(&w->ranks[i], ring);
    }
    w->group_epoch = m->group_epoch;
    w->coord_epoch = m->coord_epoch;
    return 0;
}

static void begin_stop(struct worker *w, uint64_t grace_ms) {
    if (w->stop_at_ns)
        return;
    w->stop_at_ns = clock_ns() + (grace_ms > STOP_LEAST_MS ? grace_ms : STOP_LEAST_MS) * 1000000u;
    for (uint32_t i = 0; i < w->n_ranks; i++)
        worker_rank_stop(&w->ranks[i]);
}

/* One message. An exit status, or -1 to go on. */
static int on_control(struct worker *w) {
    struct control_message m;
    struct error e = {0};
    int r = control_receive(w->options->control_fd, /* block= */ false, &m, &e);
    if (r == -EAGAIN)
        return -1;
    if (r == -EPIPE) {
        log_notice("the launcher is gone: stopping");
        return EXIT_FAILURE;
    }
    if (r == -EBADMSG) {
        log_warning("ignoring a message of the launcher: %s", e.text);
        return -1;
    }
    if (r < 0) { /* it would fail again at once, for ever */
        log_error("the launcher cannot be heard: %s: stopping", e.text);
        return EXIT_FAILURE;
    }
    switch (m.kind) {
    case CONTROL_CHANNEL:
        r = take_channel(w, &m, &e);
        if (r < 0) {
            log_error("%s", e.text);
            tell(w, CONTROL_FAULT, 0, 0, e.text);
        }
        break;
    case CONTROL_PING:
        tell(w, CONTROL_PONG, m.a, 0, "");
        break;
    case CONTROL_STOP:
        begin_stop(w, m.a);
        break;
    default:
        log_warning("ignoring a control message of kind %u", m.kind);
    }
    control_close_fds(&m);
    return r < 0 ? EXIT_FAILURE : -1;
}

static int poll_timeout(const struct worker *w) {
    uint64_t at = w->stop_at_ns, now = clock_ns();
    if (w->own_up_ns && (!at || w->own_up_ns < at))
        at = w->own_up_ns;
    if (at)
        return now >= at ? 0 : (int)((at - now) / 1000000u) + 1;
    return w->ready ? -1 : LOADING_TELL_MS;
}

static int listen_until_end(struct worker *w) {
    for (;;) {
        struct pollfd fds[] = {
                {.fd = w->options->control_fd, .events = POLLIN}, {.fd = w->event_fd, .events = POLLIN}};
        int n = poll(fds, 2, poll_timeout(w));
        if (n < 0 && errno != EINTR) {
            log_error("poll: %s", strerror(errno));
            return EXIT_FAILURE;
        }
        uint64_t ignored;
        if (n > 0 && fds[1].revents && read(w->event_fd, &ignored, sizeof(ignored)) < 0 && errno != EAGAIN) {
            log_error("eventfd: %s", strerror(errno));
            return EXIT_FAILURE;
        }
        if (!w->ready)
            tell_loading(w);
        int status = look_at_ranks(w);
        if (status >= 0)
            return status;
        status = n > 0 && fds[0].revents ? on_control(w) : -1;
        if (status >= 0)
            return status;
        if (w->stop_at_ns && clock_ns() >= w->stop_at_ns) {
            log_warning("a rank did not finish its step in time: stopping without it");
            return EXIT_SUCCESS;
        }
    }
}

static bool all_ended(const struct worker *w) {
    for (uint32_t i = 0; i < w->n_ranks; i++) {
        uint32_t state = atomic_load(&w->ranks[i].state);
        if (w->ranks[i].started && state != WORKER_RANK_FAILED && state != WORKER_RANK_STOPPED)
            return false;
    }
    return true;
}

/* Wakes every rank from whatever it waits for and gives it a moment to end. */
static bool end_ranks(struct worker *w) {
    uint64_t until = clock_ns() + END_MS * 1000000ull;
    for (uint32_t i = 0; i < w->n_ranks; i++) {
        worker_rank_stop(&w->ranks[i]);
        worker_rank_abort(&w->ranks[i]);
    }
    while (!all_ended(w) && clock_ns() < until) {
        struct pollfd fd = {.fd = w->event_fd, .events = POLLIN};
        uint64_t ignored;
        if (poll(&fd, 1, END_MS) > 0 && read(w->event_fd, &ignored, sizeof(ignored)) < 0)
            continue;
    }
    return all_ended(w);
}

int worker_serve(const struct worker_options *options) {
    struct error e = {0};
    struct worker *w = calloc(1, sizeof(*w));
    if (!w)
        return EXIT_FAILURE;
    w->options = options;
    w->keeper.fd = options->keeper_fd;
    pthread_mutex_init(&w->keeper.lock, NULL);
    w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int r = w->event_fd < 0 ? error_set(&e, -errno, "cannot make an eventfd: %s", strerror(errno))
                            : start_ranks(w, &e);
    int status = EXIT_FAILURE;
    if (r < 0) {
        log_error("%s", e.text);
        tell(w, CONTROL_FAULT, 0, 0, e.text);
        status = worker_exit_status(r);
    } else
        status = listen_until_end(w);
    if (!end_ranks(w))
        return status; /* their threads still use w; the process ends with them */
    for (uint32_t i = 0; i < w->n_ranks; i++)
        worker_rank_done(&w->ranks[i]);
    if (w->comm)
        munmap(w->comm, w->comm_bytes);
    if (w->event_fd >= 0)
        close(w->event_fd);
    pthread_mutex_destroy(&w->keeper.lock);
    free(w);
    return status;
}
