/* coordinator_main.c - shardd-coordinator: joins model, engine and gRPC services, and talks to the launcher.
 *
 * Threads: main waits for the end and keeps health up to date; the control thread reads the launcher's socket
 * (it must answer pings while main drains); engine, gRPC workers, accept loop and metrics have their own. The
 * order of the end: engine takes no more, calls have the grace to end, what still runs is aborted, gRPC lets peers hang
 * up, then the engine goes. */
#include "daemon/coordinator_options.h"

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "daemon/engine/engine.h"
#include "daemon/rpc/rpc.h"
#include "daemon/service/activity.h"
#include "daemon/service/service.h"
#include "proto/step/control.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define HEALTH_PERIOD_MS 100            /* at most; news of the engine come at once */
#define HOLD_NS          10000000000ull /* under the 20 s that gRPC clients wait for a handshake */
#define LAST_WORDS_MS    2000u          /* for the status of streams that the grace did not let end */
#define LINGER_MS        2000u
#define EXIT_USAGE       2 /* a mistake in the settings: starting again does not help */

struct coordinator {
    struct coordinator_options options;
    struct model *model;
    struct engine *engine;
    struct rpc_server *server;
    struct service service;
    struct metrics *metrics;
    int signal_fd;
    int stop_fd; /* eventfd: main should stop */
    int news_fd; /* eventfd: main should look at the engine's state */
    int quit_fd; /* eventfd: the control thread should end */
    pthread_t control_thread;
    bool control_running;
    bool announced; /* READY was sent for the present state, in announced_group */
    uint64_t announced_group;
    struct activity activity;
    bool clamped;              /* it was said that --max-model-len is more than there is */
    bool usage;                /* a setting is wrong: the exit code says so */
    pthread_mutex_t held_lock; /* protects the next three */
    int held[CONTROL_FDS_MAX]; /* listening sockets that wait for the workers; ours */
    uint32_t n_held;
    uint64_t held_until_ns;
    _Atomic bool stopping;
    _Atomic bool failed; /* the engine cannot go on: the exit code says so */
    _Atomic uint32_t grace_ms;
};

static void raise_event(int fd) {
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof(one));
    (void)n; /* full means raised */
}

static void tell_launcher(const struct coordinator *c, const struct control_message *m) {
    struct error e = {0};
    if (c->options.control_fd >= 0 && control_send(c->options.control_fd, m, &e) < 0)
        log_warning("cannot tell the launcher: %s", e.text);
}

/* The launcher repeats the sentence as the reason of our end. */
static void tell_fault(const struct coordinator *c, const struct error *e) {
    struct control_message m = {.kind = CONTROL_FAULT};
    snprintf(m.text, sizeof(m.text), "%.500s", e->text);
    tell_launcher(c, &m);
}

static void on_engine_message(void *user, const struct control_message *m) {
    struct coordinator *c = user;
    tell_launcher(c, m);
    if (m->kind == CONTROL_FAULT && m->a != CONTROL_FAULT_STAYS) {
        log_error("%s", m->text);
        atomic_store(&c->failed, true);
        atomic_store(&c->grace_ms, 0);
        raise_event(c->stop_fd);
    }
}

/* The engine says something at every change of its state: main looks at once. */
static void on_engine_log(void *user, int level, const char *text) {
    struct coordinator *c = user;
    log_message((enum log_level)level, "%s", text);
    raise_event(c->news_fd);
}

/* --- control --- */

static void add_listener(struct coordinator *c, int fd) {
    struct error e = {0};
    if (rpc_server_add_listener(c->server, fd, &e) < 0)
        log_error("%s", e.text);
}

/* A first start answers from the beginning: that it loads is an answer. A coordinator that replaces one leaves what
 * comes in the sockets' queues until it has its workers (main looks), so that a death is a pause and no refusal. */
static void take_listeners(struct coordinator *c, struct control_message *m) {
    bool hold = m->coord_epoch > 1;
    pthread_mutex_lock(&c->held_lock);
    for (uint32_t i = 0; i < m->n_fds; i++) {
        if (hold && c->n_held < CONTROL_FDS_MAX)
            c->held[c->n_held++] = m->fds[i];
        else
            add_listener(c, m->fds[i]);
    }
    c->held_until_ns = clock_ns() + HOLD_NS;
    pthread_mutex_unlock(&c->held_lock);
    m->n_fds = 0; /* ours now, or the server's */
    log_debug("listening on %s", m->text);
}

/* Takes connections on the sockets that were held, when it is time or when that is not to be waited for. */
static void open_held(struct coordinator *c, bool at_once) {
    pthread_mutex_lock(&c->held_lock);
    bool late = c->n_held > 0 && clock_ns() >= c->held_until_ns;
    if (late && !at_once)
        log_notice("the workers are not there yet: requests are refused until they are");
    for (uint32_t i = 0; (at_once || late) && i < c->n_held; i++)
        add_listener(c, c->held[i]);
    if (at_once || late)
        c->n_held = 0;
    pthread_mutex_unlock(&c->held_lock);
}

static void on_control(struct coordinator *c, struct control_message *m) {
    switch (m->kind) {
    case CONTROL_CHANNEL:
    case CONTROL_GROUP_LOST:
        if (engine_control(c->engine, m) < 0)
            log_error("the engine refused control message %u", m->kind);
        break;
    case CONTROL_LISTENERS:
        take_listeners(c, m);
        break;
    case CONTROL_PING:
        tell_launcher(c, &(struct control_message){.kind = CONTROL_PONG,
                                 .group_epoch = m->group_epoch,
                                 .coord_epoch = m->coord_epoch,
                                 .a = m->a});
        break;
    case CONTROL_STOP:
        atomic_store(&c->grace_ms, m->a < UINT32_MAX ? (uint32_t)m->a : UINT32_MAX);
        raise_event(c->stop_fd);
        break;
    default:
        log_debug("control message %u is not for a coordinator", m->kind);
    }
    control_close_fds(m);
}

/* One message, or the end of the launcher. Returns whether to go on reading. */
static bool read_control(struct coordinator *c) {
    struct control_message m;
    struct error e = {0};
    int r = control_receive(c->options.control_fd, /* block= */ false, &m, &e);
    if (r == -EAGAIN)
        return true;
    if (r == -EBADMSG) {
        log_error("%s", e.text);
        return true;
    }
    if (r < 0) {
        log_error("the launcher is gone (%s); stopping", e.text);
        atomic_store(&c->grace_ms, 0);
        raise_event(c->stop_fd);
        rpc_server_hurry(c->server);
        return false;
    }
    on_control(c, &m);
    return true;
}

/* While main drains, a second signal ends the waiting. */
static void read_signal(struct coordinator *c) {
    struct signalfd_siginfo info;
    if (read(c->signal_fd, &info, sizeof(info)) != sizeof(info))
        return;
    if (atomic_load(&c->stopping)) {
        log_notice("signal %u again: not waiting any longer", info.ssi_signo);
        rpc_server_hurry(c->server);
    } else {
        log_info("signal %u: stopping", info.ssi_signo);
        raise_event(c->stop_fd);
    }
}

static void *control_main(void *arg) {
    struct coordinator *c = arg;
    bool reading = c->options.control_fd >= 0;
    for (;;) {
        struct pollfd p[3] = {{.fd = c->quit_fd, .events = POLLIN}, {.fd = c->signal_fd, .events = POLLIN},
                {.fd = reading ? c->options.control_fd : -1, .events = POLLIN}};
        if (poll(p, 3, /* timeout= */ -1) < 0 && errno != EINTR)
            return NULL;
        if (p[0].revents)
            return NULL;
        if (p[1].revents)
            read_signal(c);
        if (p[2].revents)
            reading = read_control(c);
    }
}

/* --- main --- */

/* The launcher hears it before any client can: a client that sees "serving" may stop the service at once. */
static void look_at_engine(struct coordinator *c) {
    struct engine_stats s;
    engine_stats(c->engine, &s);
    bool serving = strcmp(s.state, "serving") == 0;
    if (serving && (!c->announced || c->announced_group != s.group_epoch)) {
        struct control_message m = {
                .kind = CONTROL_READY, .group_epoch = s.group_epoch, .coord_epoch = s.coord_epoch};
        snprintf(m.text, sizeof(m.text), "serving '%.100s', %u tokens of context, %u sequences at a time",
                c->model->names[0], s.max_model_len, s.max_num_seqs);
        if (c->options.control_fd < 0)
            log_info("%s", m.text);
        if (c->options.max_model_len > s.max_model_len && !c->clamped)
            log_warning(
                    "--max-model-len %u is clamped to %u tokens: the model knows no more, or the memory for KV pages "
                    "holds no more (--kv-cache-memory)",
                    c->options.max_model_len, s.max_model_len);
        c->clamped = true;
        tell_launcher(c, &m);
    }
    char line[ERROR_TEXT_MAX];
    if (activity_line(&c->activity, &s, clock_ns(), line, sizeof(line)))
        log_info("%s", line);
    c->announced = serving;
    c->announced_group = s.group_epoch;
    service_set_health(&c->service, serving, c->server);
    open_held(c, /* at_once= */ serving);
}

static int open_listeners(struct coordinator *c, struct error *e) {
    for (size_t i = 0; i < c->options.n_listen; i++) {
        int fd;
        char name[160];
        int r = rpc_listen(c->options.listen[i], &fd, name, sizeof(name), e);
        if (r == 0)
            r = rpc_server_add_listener(c->server, fd, e);
        if (r < 0)
            return r;
        printf("listening on %s\n", name);
        fflush(stdout);
    }
    return 0;
}

static int start_engine(struct coordinator *c, struct error *e) {
    const struct coordinator_options *o = &c->options;
    struct engine_options options = {
            .max_num_seqs = o->max_num_seqs,
            .max_num_batched_tokens = o->max_num_batched_tokens ? o->max_num_batched_tokens : STEP_ROWS_MAX,
            .max_model_len = o->max_model_len,
            .max_queue = o->max_queue,
            .max_queue_tokens = o->max_queue_tokens,
            .max_queue_ms = o->max_queue_ms,
            .prefill_target_ms = o->prefill_target_ms,
            .speculative_tokens = o->speculative_tokens,
            .drafters = o->drafters,
            .prefix_cache = o->prefix_cache,
            .step_timeout_ms = o->step_timeout_ms,
            .slow_reader_ms = o->slow_reader_ms,
            .launcher = {.fn = on_engine_message, .user = c},
            .log = on_engine_log,
            .log_user = c,
    };
    int r = engine_create(&options, &c->engine, e);
    return r < 0 ? r : engine_start(c->engine, e);
}

static int start_server(struct coordinator *c, struct error *e) {
    struct service_options options = {.model = c->model, .engine = c->engine, .seed = c->options.seed};
    struct rpc_server_options rpc = {.n_workers = c->options.grpc_threads,
            .connections_max = c->options.connections_max,
            .send_stall_ms = c->options.slow_reader_ms,
            .debug = c->options.log_level >= LOG_LEVEL_DEBUG};
    const struct rpc_method *methods;
    service_init(&c->service, &options);
    size_t n = service_methods(&c->service, &methods);
    int r = rpc_server_create(&rpc, methods, n, &c->server, e);
    if (r == 0)
        r = rpc_server_start(c->server, e);
    if (r == 0)
        r = open_listeners(c, e);
    if (r == 0 && c->options.metrics_listen)
        r = metrics_start(&c->service, c->server, c->options.metrics_listen, &c->metrics, e);
    if (r == 0 && c->metrics)
        log_info("metrics are at http://%s/metrics", metrics_address(c->metrics));
    c->usage = r == -EINVAL; /* an address that is none; one that is taken is an accident */
    if (r < 0)
        return r;
    r = pthread_create(&c->control_thread, NULL, control_main, c);
    if (r != 0)
        return error_set(e, -r, "cannot start the control thread: %s", strerror(r));
    c->control_running = true;
    return 0;
}

/* The grace is over: what still runs or waits ends with a status that says why and that trying again helps. */
static void end_streams(struct coordinator *c) {
    uint32_t n = engine_abort_all(c->engine);
    if (n > 0)
        log_notice(
                "the grace of %.1f s is over: %u requests are ended, their clients are told to send them again",
                atomic_load(&c->grace_ms) / 1e3, n);
    rpc_server_last_words(c->server, LAST_WORDS_MS);
}

static void serve(struct coordinator *c) {
    struct pollfd p[2] = {{.fd = c->stop_fd, .events = POLLIN}, {.fd = c->news_fd, .events = POLLIN}};
    do {
        uint64_t count;
        if (p[1].revents && read(c->news_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
            log_error("eventfd: %s", strerror(errno));
        p[0].revents = p[1].revents = 0;
        look_at_engine(c);
        if (poll(p, 2, HEALTH_PERIOD_MS) < 0 && errno != EINTR) {
            log_error("poll: %s", strerror(errno));
            break;
        }
    } while (!p[0].revents);
    atomic_store(&c->stopping, true);
    open_held(c, /* at_once= */ true); /* who waits is told */
    log_info("draining: %u calls are live", rpc_server_live_calls(c->server));
    engine_drain(c->engine);
    service_set_health(&c->service, false, c->server);
    if (!rpc_server_drain(c->server, atomic_load(&c->grace_ms)))
        end_streams(c);
    rpc_server_stop(c->server, 0, LINGER_MS);
}

static int open_events(struct coordinator *c, struct error *e) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    c->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    c->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->signal_fd < 0 || c->stop_fd < 0 || c->quit_fd < 0 || c->news_fd < 0)
        return error_set(e, -errno, "cannot open signalfd or eventfd: %s", strerror(errno));
    /* Non-blocking: the engine thread must not wait for a launcher that does not read. */
    if (c->options.control_fd >= 0 && (fcntl(c->options.control_fd, F_SETFL, O_NONBLOCK) < 0 ||
                                              fcntl(c->options.control_fd, F_SETFD, FD_CLOEXEC) < 0))
        return error_set(e, -errno, "--control-fd %d: %s", c->options.control_fd, strerror(errno));
    return 0;
}

static void stop_all(struct coordinator *c) {
    c->metrics = metrics_stop(c->metrics);
    if (c->server)
        rpc_server_stop(c->server, 0, 0);
    if (c->control_running) {
        raise_event(c->quit_fd);
        pthread_join(c->control_thread, NULL);
    }
    c->engine = engine_free(c->engine); /* pokes of its last streams end at closed workers */
    c->server = rpc_server_free(c->server);
    c->model = model_free(c->model);
    int fds[] = {c->signal_fd, c->stop_fd, c->quit_fd, c->news_fd};
    for (size_t i = 0; i < 4; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* Before any thread: signals are taken by the control thread only. */
static void block_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

int main(int argc, char **argv) {
    struct coordinator c = {.signal_fd = -1,
            .stop_fd = -1,
            .quit_fd = -1,
            .news_fd = -1,
            .held_lock = PTHREAD_MUTEX_INITIALIZER};
    struct error e = {0};
    log_open("shardd-coordinator", LOG_LEVEL_INFO);
    int r = coordinator_options_parse(argc, argv, &c.options, &e);
    if (r != 0) {
        if (r < 0)
            log_error("%s", e.text);
        if (r < 0)
            tell_fault(&c, &e);
        return r < 0 ? EXIT_USAGE : 0;
    }
    log_set_level((enum log_level)c.options.log_level);
    block_signals();
    json_object_seed(0);
    atomic_store(&c.grace_ms, c.options.shutdown_grace_ms);
    r = open_events(&c, &e);
    if (r == 0)
        r = model_load(c.options.model, c.options.names, c.options.n_names, &c.model, &e);
    if (r == 0 && tokenizer_ignored(c.model->tokenizer))
        log_info("tokenizer.json sets %s, which is not used: prompts are taken as they are, whole",
                tokenizer_ignored(c.model->tokenizer));
    if (r == 0 && c.model->template.kind == CHAT_TEMPLATE_NONE)
        log_warning("chat messages are refused: %s", c.model->template_error.text);
    if (r == 0)
        r = start_engine(&c, &e);
    if (r == 0)
        r = start_server(&c, &e);
    if (r == 0) {
        serve(&c);
        log_info("stopped");
    } else {
        log_error("%s", e.text);
        tell_fault(&c, &e);
    }
    stop_all(&c);
    if (r < 0 && c.usage)
        return EXIT_USAGE;
    return r < 0 || atomic_load(&c.failed) ? EXIT_FAILURE : EXIT_SUCCESS;
}
