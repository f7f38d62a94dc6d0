/* supervisor.c - see supervisor.h. A part (the rank group, or the coordinator) lives like this:
 *
 *   STARTING --all READY--> UP --death, stuck--> DYING --all reaped--> WAITING --back-off--> STARTING
 *       |                    |                     |                      |
 *       +--death--> DYING    +-----------------> STOPPED <----------------+   when the service stops
 *
 * A channel (a new ring, told to every child) is made whenever the group is UP and the coordinator runs and
 * one of them is new. A worker that dies before the first channel is a mistake in the model or the settings:
 * its sentence ends the service. Later deaths are repaired, unless they come too often without a moment of
 * service between. */
#include "launcher/serve/supervisor.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/sizes.h"
#include "launcher/serve/child.h"
#include "launcher/serve/keepers.h"
#include "proto/step/ring.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define MS            CLOCK_MS
#define SECOND        CLOCK_SECOND
#define PING_EVERY    SECOND
#define SERVED_AFTER  SECOND     /* a part that lived this long with a channel counts as having served */
#define BACKOFF_FIRST (500 * MS) /* doubled with each death that followed no service; the first is free */
#define BACKOFF_MAX   (30 * SECOND)
#define EOF_GRACE     (5 * SECOND)  /* from closing the control socket to the end of the process */
#define LINGER        (10 * SECOND) /* beyond the grace: the coordinator lets peers hang up */
#define WORKERS_STOP  (5 * SECOND)
#define NEVER         UINT64_MAX

#define CHILD_EXIT_USAGE 2 /* of workers and coordinator: a setting is wrong */

enum part_state { PART_WAITING, PART_STARTING, PART_UP, PART_DYING, PART_STOPPED, PART_STATES };
enum stop_stage { RUNNING, STOPPING_COORDINATOR, STOPPING_WORKERS, STOPPED };

/* The rank group or the coordinator: what dies and is restarted as one. */
struct part {
    const char *name;
    enum part_state state;
    struct child *children;
    uint32_t n;
    uint64_t epoch;
    uint64_t restart_ns;              /* WAITING: when to start */
    uint64_t deaths_ns[RESTARTS_MAX]; /* since it last served, within the window; oldest first */
    uint32_t deaths;
    char why[CONTROL_TEXT_MAX]; /* of the last death */
    bool misconfigured;         /* one of its processes ended saying that a setting is wrong */
};

struct supervisor {
    const struct service *service;
    struct child children[RANKS_MAX + 1]; /* workers, then the coordinator */
    struct part group, coordinator;
    struct keepers keepers;
    uint64_t channel_group, channel_coordinator; /* epochs of the last channel; 0 = none yet */
    uint64_t serving_group; /* epoch of the group that the coordinator last said it serves with */
    uint64_t channel_ns;
    enum stop_stage stop;
    uint64_t stop_deadline_ns;
    uint64_t next_ping_ns, watchdog_ns, next_watchdog_ns;
    uint64_t pings;
    uint64_t due_ns; /* when the loop meant to run again, at the latest */
    int signals;
    bool announced;  /* it served once */
    bool recovering; /* since a death, until everybody is back */
    uint32_t told_percent;
    int failed; /* negative errno: give up */
    struct error *error;
};

/* The only place that moves a part; what the drawing above does not have is a mistake of ours. */
static void part_enter(struct part *p, enum part_state to) {
    static const bool allowed[PART_STATES][PART_STATES] = {
            [PART_WAITING] = {[PART_STARTING] = true, [PART_STOPPED] = true},
            [PART_STARTING] = {[PART_UP] = true, [PART_DYING] = true, [PART_STOPPED] = true},
            [PART_UP] = {[PART_DYING] = true, [PART_STOPPED] = true},
            [PART_DYING] = {[PART_WAITING] = true, [PART_STOPPED] = true},
            [PART_STOPPED] = {[PART_STOPPED] = true},
    };
    assert(allowed[p->state][to]);
    p->state = to;
}

static bool part_has_child(const struct part *p) {
    for (uint32_t i = 0; i < p->n; i++)
        if (child_alive(&p->children[i]))
            return true;
    return false;
}

/* Workers have worked once there was a channel; READY of the coordinator comes a moment after it answers
 * requests. */
static bool never_worked(const struct supervisor *s, const struct part *p) {
    return p == &s->group ? !s->channel_group : !s->announced;
}

static bool is_serving(const struct supervisor *s) {
    return s->group.state == PART_UP && s->coordinator.state == PART_UP &&
           s->channel_group == s->group.epoch && s->channel_coordinator == s->coordinator.epoch;
}

static void give_up(struct supervisor *s, int code, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
static void give_up(struct supervisor *s, int code, const char *format, ...) {
    if (s->failed)
        return;
    va_list ap;
    va_start(ap, format);
    s->failed = error_setv(s->error, code, format, ap);
    va_end(ap);
}

static struct control_message message(const struct supervisor *s, enum control_kind kind) {
    return (struct control_message){
            .kind = kind, .group_epoch = s->group.epoch, .coord_epoch = s->coordinator.epoch};
}

/* --- starting --- */

static int start_worker(struct supervisor *s, uint32_t i, int comm, struct error *e) {
    const struct service *v = s->service;
    int keeper, rc = keepers_link(&s->keepers, i, &keeper, e);
    if (rc < 0)
        return rc;
    const struct child_fds fds = {{comm, keeper}, keeper >= 0 ? 2 : 1};
    rc = child_spawn(&s->group.children[i], v->worker_argv[i], v->environment, fds, e);
    if (keeper >= 0)
        close(keeper);
    return rc;
}

static int start_group(struct supervisor *s) {
    struct error e = {0};
    int comm = memfd_create("shardd-comm", MFD_CLOEXEC); /* the workers size it; a new one per epoch */
    int rc = comm < 0
                     ? error_set(&e, -errno, "cannot make shared memory for the workers: %s", strerror(errno))
                     : 0;
    s->group.epoch++;
    part_enter(&s->group, PART_STARTING);
    s->told_percent = 0;
    for (uint32_t i = 0; i < s->group.n && rc == 0; i++)
        rc = start_worker(s, i, comm, &e);
    if (comm >= 0)
        close(comm);
    if (rc < 0)
        give_up(s, rc, "%s", e.text);
    return rc;
}

static int start_coordinator(struct supervisor *s) {
    struct error e = {0};
    struct child *c = s->coordinator.children;
    s->coordinator.epoch++;
    part_enter(&s->coordinator, PART_STARTING);
    int rc = child_spawn(
            c, s->service->coordinator_argv, s->service->environment, (struct child_fds){.n = 0}, &e);
    if (rc == 0) {
        struct control_message m;
        listeners_message(s->service->listeners, &m);
        m.group_epoch = s->group.epoch;
        m.coord_epoch = s->coordinator.epoch;
        rc = control_send(c->control, &m, &e);
    }
    if (rc < 0)
        give_up(s, rc, "%s", e.text);
    return rc;
}

/* A ring of its own for this pair of epochs, told to everybody. */
static void connect_parts(struct supervisor *s) {
    bool up = s->group.state == PART_UP &&
              (s->coordinator.state == PART_STARTING || s->coordinator.state == PART_UP);
    if (!up || (s->channel_group == s->group.epoch && s->channel_coordinator == s->coordinator.epoch))
        return;
    struct error e = {0};
    int ring, rc = step_ring_create(s->service->tp, s->group.epoch, s->coordinator.epoch, &ring, &e);
    if (rc < 0) {
        give_up(s, rc, "%s", e.text);
        return;
    }
    struct control_message m = message(s, CONTROL_CHANNEL);
    m.n_fds = 1;
    m.fds[0] = ring;
    for (uint32_t i = 0; i <= s->group.n; i++)
        (void)child_send(&s->children[i], &m); /* one that cannot take it is dying: its pidfd will tell */
    close(ring);
    s->channel_group = s->group.epoch;
    s->channel_coordinator = s->coordinator.epoch;
    s->channel_ns = clock_ns();
    log_debug("channel of group epoch %llu, coordinator epoch %llu", (unsigned long long)s->group.epoch,
            (unsigned long long)s->coordinator.epoch);
}

static void announce(struct supervisor *s) {
    if (!is_serving(s))
        return;
    if (!s->announced) {
        s->announced = true;
        printf("serving %s\ntry:  %s\n", s->service->title, s->service->try_it);
        fflush(stdout);
        sd_notifyf(0, "READY=1\nSTATUS=serving %s", s->service->title);
    } else if (s->recovering && s->serving_group == s->group.epoch) {
        log_notice("serving again");
        sd_notifyf(0, "STATUS=serving %s", s->service->title);
    }
    if (s->serving_group == s->group.epoch)
        s->recovering = false;
}

/* --- dying --- */

/* Something of the part is dead or must die: all of it goes, and is started again once every process is
 * reaped. */
static void part_lost(struct supervisor *s, struct part *p, const char *why) {
    if (p->state == PART_DYING || p->state == PART_WAITING || p->state == PART_STOPPED)
        return;
    snprintf(p->why, sizeof(p->why), "%s", why);
    bool served = p->state == PART_UP && s->announced && s->channel_ns &&
                  clock_ns() - s->channel_ns >= SERVED_AFTER;
    if (served)
        p->deaths = 0;
    part_enter(p, PART_DYING);
    s->recovering = true;
    for (uint32_t i = 0; i < p->n; i++)
        child_kill(&p->children[i]);
}

static void group_lost(struct supervisor *s, uint32_t rank, uint32_t end_signal, const char *why) {
    if (s->group.state == PART_DYING || s->group.state == PART_WAITING)
        return;
    if (s->stop < STOPPING_WORKERS && s->channel_group) {
        log_error("%s; restarting the rank group", why);
        sd_notifyf(0, "STATUS=recovering: %.300s", why);
    }
    struct control_message m = message(s, CONTROL_GROUP_LOST);
    m.a = rank;
    m.b = end_signal;
    snprintf(m.text, sizeof(m.text), "%s", why);
    (void)child_send(s->coordinator.children, &m);
    part_lost(s, &s->group, why);
}

static void coordinator_lost(struct supervisor *s, const char *why) {
    if (s->coordinator.state == PART_DYING || s->coordinator.state == PART_WAITING)
        return;
    if (s->stop == RUNNING && s->announced) {
        log_error("%s; restarting it", why);
        sd_notifyf(0, "STATUS=recovering: %.300s", why);
    }
    part_lost(s, &s->coordinator, why);
}

static void forget_old_deaths(struct part *p, uint64_t now, uint64_t window_ns) {
    uint32_t old = 0;
    while (old < p->deaths && now - p->deaths_ns[old] > window_ns)
        old++;
    p->deaths -= old;
    memmove(p->deaths_ns, p->deaths_ns + old, p->deaths * sizeof(p->deaths_ns[0]));
}

static uint64_t backoff_ns(uint32_t deaths) {
    if (deaths < 2)
        return 0;
    uint64_t ns = deaths < 10 ? BACKOFF_FIRST << (deaths - 2) : BACKOFF_MAX;
    return ns < BACKOFF_MAX ? ns : BACKOFF_MAX;
}

/* All of its processes are reaped: start again now, later, or never. */
static void part_reaped(struct supervisor *s, struct part *p) {
    uint64_t now = clock_ns();
    bool stopping = s->stop >= STOPPING_WORKERS || (s->stop == STOPPING_COORDINATOR && p == &s->coordinator);
    if (stopping) {
        part_enter(p, PART_STOPPED);
        return;
    }
    if (never_worked(s, p)) { /* a mistake in the model or the settings, not an accident */
        give_up(s, p->misconfigured ? -EINVAL : -EIO, "%s", p->why);
        return;
    }
    forget_old_deaths(p, now, s->service->restart_window_ms * MS);
    if (p->deaths >= s->service->max_restarts) {
        give_up(s, -EIO,
                "%s; giving up after %u restarts in a row that did not come to serve (--max-restarts)",
                p->why, p->deaths);
        return;
    }
    p->deaths_ns[p->deaths++] = now;
    if (p == &s->group && p->deaths > 1) /* it may be the weights that it dies of */
        keepers_end(&s->keepers);
    part_enter(p, PART_WAITING);
    p->restart_ns = now + backoff_ns(p->deaths);
}

static void on_death(struct supervisor *s, struct child *c, const char *how) {
    bool coordinator = c == s->coordinator.children;
    struct part *p = coordinator ? &s->coordinator : &s->group;
    char why[CONTROL_TEXT_MAX + 128];
    p->misconfigured |= c->exit_code == CHILD_EXIT_USAGE && !c->killed;
    if (c->fault[0] && never_worked(s, p)) /* the sentence says it all */
        snprintf(why, sizeof(why), "%s", c->fault);
    else if (c->fault[0])
        snprintf(why, sizeof(why), "%s: %s", c->name, c->fault);
    else
        snprintf(why, sizeof(why), "%s %s%s", c->name, how, c->ready ? "" : " while it was starting");
    if (coordinator)
        coordinator_lost(s, why);
    else if (s->stop < STOPPING_WORKERS) /* later each of them ends for itself */
        group_lost(s, s->service->worker_rank[c - s->group.children], c->end_signal, why);
    if (!part_has_child(p))
        part_reaped(s, p);
}

/* --- listening to children --- */

static void tell_progress(struct supervisor *s) {
    uint64_t done = 0, total = 0;
    for (uint32_t i = 0; i < s->group.n; i++) {
        done += s->group.children[i].loaded;
        total += s->group.children[i].to_load;
    }
    uint32_t percent = total ? (uint32_t)(done * 100.0 / (double)total) : 0;
    if (percent < s->told_percent + 10)
        return;
    s->told_percent = percent - percent % 10;
    log_info("loading: %u %% of %s", percent, SIZE_TEXT(total));
    sd_notifyf(0, "STATUS=loading: %u %%\nEXTEND_TIMEOUT_USEC=120000000", percent);
}

static void worker_ready(struct supervisor *s, struct child *c, const char *text) {
    if (*text)
        log_info("%s: %s", c->name, text);
    for (uint32_t i = 0; i < s->group.n; i++)
        if (!s->group.children[i].ready)
            return;
    if (s->group.state == PART_STARTING)
        part_enter(&s->group, PART_UP);
    connect_parts(s);
    announce(s);
}

static void coordinator_ready(struct supervisor *s, const struct control_message *m) {
    if (*m->text)
        log_info("coordinator: %s", m->text);
    s->serving_group = m->group_epoch;
    if (s->coordinator.state == PART_STARTING)
        part_enter(&s->coordinator, PART_UP);
    connect_parts(s);
    announce(s);
}

static void on_message(struct supervisor *s, struct child *c, const struct control_message *m) {
    bool coordinator = c == s->coordinator.children;
    char why[CONTROL_TEXT_MAX];
    switch (m->kind) {
    case CONTROL_READY:
        c->ready = true;
        if (coordinator)
            coordinator_ready(s, m);
        else
            worker_ready(s, c, m->text);
        break;
    case CONTROL_LOADING:
        c->loaded = m->a;
        c->to_load = m->b;
        tell_progress(s);
        break;
    case CONTROL_FAULT:
        if (coordinator && m->a == CONTROL_FAULT_STAYS) { /* its log line has said it */
            sd_notifyf(0, "STATUS=not serving: %.300s", m->text);
            break;
        }
        snprintf(c->fault, sizeof(c->fault), "%s", *m->text ? m->text : "it gave no reason");
        break;
    case CONTROL_PONG:
        if (m->a == c->ping)
            c->ping_ns = 0;
        break;
    case CONTROL_STUCK: /* of this channel only: an older one is repaired already */
        if (coordinator && m->group_epoch == s->group.epoch && s->group.state == PART_UP) {
            snprintf(why, sizeof(why), "rank %llu makes no progress%s%.300s", (unsigned long long)m->a,
                    *m->text ? ": " : "", m->text);
            group_lost(s, (uint32_t)m->a, /* end_signal= */ 0, why);
        }
        break;
    default:
        log_warning("%s sent a control message of kind %u: ignoring it", c->name, m->kind);
    }
}

static void listen_to(struct supervisor *s, struct child *c) {
    struct control_message m;
    struct error e;
    while (c->control >= 0 && c->eof_ns == 0) {
        int rc = control_receive(c->control, /* block= */ false, &m, &e);
        if (rc == -EAGAIN)
            return;
        if (rc == -EBADMSG) {
            log_warning("%s: %s: ignoring the message", c->name, e.text);
            continue;
        }
        if (rc < 0) {
            c->eof_ns = clock_ns(); /* it is exiting: its pidfd will tell how */
            if (rc != -EPIPE)
                log_warning("%s: %s", c->name, e.text);
            return;
        }
        on_message(s, c, &m);
        control_close_fds(&m);
    }
}

static void reap(struct supervisor *s) {
    char how[128];
    for (uint32_t i = 0; i <= s->group.n; i++) {
        struct child *c = &s->children[i];
        if (!child_ended(c))
            continue;
        listen_to(s, c); /* what it said before it died is the reason of its death */
        if (child_reap(c, how, sizeof(how)))
            on_death(s, c, how);
    }
    keepers_reap(&s->keepers);
}

/* --- time --- */

static void ping_children(struct supervisor *s, uint64_t now) {
    s->next_ping_ns = now + PING_EVERY;
    for (uint32_t i = 0; i <= s->group.n; i++) {
        struct child *c = &s->children[i];
        if (!c->ready || c->ping_ns || c->eof_ns || !child_alive(c))
            continue;
        struct control_message m = message(s, CONTROL_PING);
        m.a = c->ping = ++s->pings;
        if (child_send(c, &m))
            c->ping_ns = now;
    }
}

static void check_silence(struct supervisor *s, uint64_t now) {
    uint64_t limit = s->service->step_timeout_ms * MS;
    for (uint32_t i = 0; i <= s->group.n; i++) {
        struct child *c = &s->children[i];
        if (!child_alive(c) || c->killed)
            continue;
        if (c->eof_ns && now - c->eof_ns > EOF_GRACE)
            child_kill(c);
        if (!c->ping_ns || now - c->ping_ns <= limit)
            continue;
        char why[128];
        snprintf(why, sizeof(why), "%s does not answer for %llu ms", c->name,
                (unsigned long long)(limit / MS));
        c->ping_ns = 0;
        if (c == s->coordinator.children)
            coordinator_lost(s, why);
        else
            group_lost(s, s->service->worker_rank[i], /* end_signal= */ 0, why);
    }
}

/* The loop was not run when it meant to: everything was stopped (a paused machine, a closed laptop, SIGSTOP to all), or
 * there is no processor time to be had. Children were not run either, so what they owe is counted from now. */
static void forgive_stall(struct supervisor *s, uint64_t now) {
    uint64_t slack = s->service->step_timeout_ms * MS / 4;
    if (!s->due_ns || now <= s->due_ns + slack)
        return;
    log_notice("this process did not run for %.1f s: nobody is blamed for that time",
            (double)(now - s->due_ns) / 1e9);
    for (uint32_t i = 0; i <= s->group.n; i++) {
        if (s->children[i].ping_ns)
            s->children[i].ping_ns = now;
        if (s->children[i].eof_ns)
            s->children[i].eof_ns = now;
    }
}

static void restart_due(struct supervisor *s, uint64_t now) {
    if (s->failed || s->stop >= STOPPING_WORKERS)
        return;
    if (s->group.state == PART_WAITING && now >= s->group.restart_ns)
        (void)start_group(s);
    if (s->coordinator.state == PART_WAITING && now >= s->coordinator.restart_ns && start_coordinator(s) == 0)
        connect_parts(s);
}

static void feed_watchdog(struct supervisor *s, uint64_t now) {
    if (!s->watchdog_ns || now < s->next_watchdog_ns)
        return;
    s->next_watchdog_ns = now + s->watchdog_ns / 2;
    sd_notify(0, "WATCHDOG=1");
}

/* --- stopping --- */

static void stop_workers(struct supervisor *s) {
    s->stop = STOPPING_WORKERS;
    s->stop_deadline_ns = clock_ns() + WORKERS_STOP;
    struct control_message m = message(s, CONTROL_STOP);
    for (uint32_t i = 0; i < s->group.n; i++)
        if (child_alive(&s->group.children[i]) && !child_send(&s->group.children[i], &m))
            child_kill(&s->group.children[i]);
    if (!part_has_child(&s->group))
        part_enter(&s->group, PART_STOPPED);
}

static void stop_at_once(struct supervisor *s) {
    for (uint32_t i = 0; i <= s->group.n; i++)
        child_kill(&s->children[i]);
    s->stop = STOPPING_WORKERS;
    s->stop_deadline_ns = NEVER;
    if (!part_has_child(&s->group))
        part_enter(&s->group, PART_STOPPED);
}

static void begin_stop(struct supervisor *s, const char *signal_name) {
    uint64_t grace = s->service->grace_ms;
    /* Without a channel nobody is being served, and a child that loads does not listen. (READY is no measure:
     * it comes a moment after the first request can be answered.) */
    if (!s->channel_group) {
        log_notice("%s: stopping", signal_name);
        stop_at_once(s);
        return;
    }
    log_notice("%s: stopping; running requests have %.1f s, a second signal stops at once", signal_name,
            (double)grace / 1e3);
    sd_notifyf(0, "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=%llu",
            (unsigned long long)(grace * 1000 + (LINGER + WORKERS_STOP) / 1000));
    s->stop = STOPPING_COORDINATOR;
    s->stop_deadline_ns = clock_ns() + grace * MS + LINGER;
    struct control_message m = message(s, CONTROL_STOP);
    m.a = grace;
    if (!child_alive(s->coordinator.children))
        part_enter(&s->coordinator, PART_STOPPED);
    else if (!child_send(s->coordinator.children, &m))
        child_kill(s->coordinator.children);
}

static void advance_stop(struct supervisor *s, uint64_t now) {
    if (s->stop == STOPPING_COORDINATOR && s->coordinator.state == PART_STOPPED)
        stop_workers(s);
    if (s->stop == STOPPING_WORKERS && s->group.state == PART_STOPPED)
        s->stop = STOPPED;
    if (s->stop == RUNNING || s->stop == STOPPED || now < s->stop_deadline_ns)
        return;
    struct part *late = s->stop == STOPPING_COORDINATOR ? &s->coordinator : &s->group;
    log_warning("%s did not stop in time: killing it", late->name);
    for (uint32_t i = 0; i < late->n; i++)
        child_kill(&late->children[i]);
    s->stop_deadline_ns = NEVER;
}

static void on_signal(struct supervisor *s) {
    struct signalfd_siginfo info;
    while (read(s->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        const char *name = info.ssi_signo == SIGINT ? "SIGINT" : "SIGTERM";
        if (info.ssi_signo == SIGHUP) {
            log_notice(
                    "SIGHUP: ignoring it; settings are read at start, so restart the service to change them");
        } else if (s->stop == RUNNING) {
            begin_stop(s, name);
        } else {
            log_notice("%s again: stopping at once", name);
            stop_at_once(s);
        }
    }
}

/* --- the loop --- */

static int wait_ms(const struct supervisor *s, uint64_t now) {
    uint64_t due = s->next_ping_ns;
    if (s->group.state == PART_WAITING && s->group.restart_ns < due)
        due = s->group.restart_ns;
    if (s->coordinator.state == PART_WAITING && s->coordinator.restart_ns < due)
        due = s->coordinator.restart_ns;
    if (s->stop != RUNNING && s->stop_deadline_ns < due)
        due = s->stop_deadline_ns;
    if (s->watchdog_ns && s->next_watchdog_ns < due)
        due = s->next_watchdog_ns;
    /* A pause of ours that falls into this wait goes unnoticed: short waits keep it well below the limit. */
    uint64_t look_ns = s->service->step_timeout_ms * MS / 4;
    if (due > now + look_ns)
        due = now + look_ns;
    return due <= now ? 0 : (int)((due - now + MS - 1) / MS);
}

static void wait_for_events(struct supervisor *s) {
    struct pollfd fds[1 + 2 * (RANKS_MAX + 1) + RANKS_MAX];
    nfds_t n = 0;
    fds[n++] = (struct pollfd){.fd = s->signals, .events = POLLIN};
    for (uint32_t i = 0; i <= s->group.n; i++) {
        const struct child *c = &s->children[i];
        if (c->pidfd >= 0)
            fds[n++] = (struct pollfd){.fd = c->pidfd, .events = POLLIN};
        if (c->control >= 0 && !c->eof_ns)
            fds[n++] = (struct pollfd){.fd = c->control, .events = POLLIN};
    }
    n += keepers_watch(&s->keepers, fds + n);
    uint64_t now = clock_ns();
    int ms = wait_ms(s, now);
    s->due_ns = now + (uint64_t)ms * MS;
    (void)poll(fds, n, ms);
}

static void kill_all(struct supervisor *s) {
    for (uint32_t i = 0; i <= s->group.n; i++)
        child_kill(&s->children[i]);
    for (uint32_t i = 0; i <= s->group.n; i++)
        child_end(&s->children[i]);
    keepers_end(&s->keepers);
}

static void run(struct supervisor *s) {
    while (s->stop != STOPPED && !s->failed) {
        wait_for_events(s);
        forgive_stall(s, clock_ns());
        on_signal(s);
        /* What a child said before it died comes first: its FAULT is the reason of its death. */
        for (uint32_t i = 0; i <= s->group.n; i++)
            listen_to(s, &s->children[i]);
        reap(s);
        uint64_t now = clock_ns();
        if (now >= s->next_ping_ns)
            ping_children(s, now);
        check_silence(s, now);
        restart_due(s, now);
        feed_watchdog(s, now);
        advance_stop(s, now);
    }
}

static int open_signals(struct supervisor *s) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0 ||
            (s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
        return error_set(s->error, -errno, "cannot take signals: %s", strerror(errno));
    return 0;
}

int supervisor_run(const struct service *service, struct error *e) {
    struct supervisor s = {.service = service, .signals = -1, .error = e};
    uint64_t watchdog_us = 0;
    int rc = open_signals(&s);
    if (rc < 0)
        return rc;
    s.group = (struct part){.name = "the rank group", .children = s.children, .n = service->n_workers};
    s.coordinator =
            (struct part){.name = "the coordinator", .children = &s.children[service->n_workers], .n = 1};
    for (uint32_t i = 0; i < service->n_workers; i++) {
        char name[sizeof(s.children[i].name)];
        snprintf(name, sizeof(name), "worker of rank %u", service->worker_rank[i]);
        child_init(&s.children[i], name);
    }
    child_init(s.coordinator.children, "coordinator");
    keepers_init(&s.keepers, service);
    if (sd_watchdog_enabled(0, &watchdog_us) > 0)
        s.watchdog_ns = watchdog_us * 1000;
    s.next_ping_ns = clock_ns() + PING_EVERY;
    sd_notify(0, "STATUS=loading");
    if (start_group(&s) == 0 && start_coordinator(&s) == 0)
        run(&s);
    kill_all(&s);
    close(s.signals);
    return s.failed;
}
