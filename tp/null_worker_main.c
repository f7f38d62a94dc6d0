/* null_worker_main.c - shardd-worker-null: a worker that follows control.h and the step protocol and computes
 * nothing.
 *
 * For tests, for faults on request (it dies or hangs at a step), and for measuring the coordinator. The
 * launcher starts it like any worker. The main thread owns the control socket; one thread per rank serves its
 * step ring. Exit: 0 after CONTROL_STOP, STEP_TYPE_STOP or the end of the launcher; 1 on an error; 42 when it
 * was told to die. */
#include "base/log.h"
#include "proto/step/control.h"
#include "proto/step/null_rank.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define EXIT_TOLD_TO_DIE 42
#define SERVE_NS         200000000u /* a rank looks at least this often whether its channel was replaced */

struct rank {
    struct worker *worker;
    struct null_rank *null_rank;
    pthread_t thread;
    bool running;
    uint32_t number;
};

struct worker {
    struct null_rank_options options;
    struct rank ranks[RANKS_MAX];
    uint32_t n_ranks;
    int control_fd;
    int event_fd; /* a rank's thread ended: `ended` says why */
    _Atomic int ended;
    _Atomic bool channel_over; /* the threads return */
    int ring_fd;
    uint64_t group_epoch, coord_epoch;
};

static const char *const usage =
        "shardd-worker-null --ranks LIST --tensor-parallel-size N --control-fd FD [options]\n"
        "A worker that computes nothing: for tests and for measuring the coordinator.\n"
        "  --slots S --pages P --slot-units U --page-units U --max-model-len L --rows R --vocab-size V\n"
        "                              what it claims to have\n"
        "  --id-first I --id-count C   sampled ids lie in [I, I+C)\n"
        "  --drafts-max D --draft-odds P --has-mtp 0|1   drafts that it takes and makes, right in P of 100 cases\n"
        "  --step-us D --row-ns D      time of a step, and of each of its rows\n"
        "  --die-at-step N --hang-at-step N --fault-at-step N --lie-at-step N\n"
        "  --fault-epochs K            the four above only in group epochs up to K (default 1)\n"
        "  --fingerprint F             of the weights it does not have\n";

/* --- command line --- */

static int parse_number(const char *text, uint64_t max, uint64_t *ret) {
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 0);
    if (errno != 0 || end == text || *end != 0 || text[0] == '-' || v > max)
        return -EINVAL;
    *ret = v;
    return 0;
}

static int parse_ranks(struct worker *w, const char *list) {
    char copy[64];
    if (strlen(list) >= sizeof(copy))
        return -EINVAL;
    memcpy(copy, list, strlen(list) + 1);
    char *save = NULL;
    w->n_ranks = 0;
    for (char *item = strtok_r(copy, ",", &save); item != NULL; item = strtok_r(NULL, ",", &save)) {
        uint64_t rank;
        if (w->n_ranks == RANKS_MAX || parse_number(item, RANKS_MAX - 1, &rank) < 0)
            return -EINVAL;
        w->ranks[w->n_ranks++].number = (uint32_t)rank;
    }
    return w->n_ranks > 0 ? 0 : -EINVAL;
}

enum null_option {
    OPTION_RANKS = 1,
    OPTION_TP,
    OPTION_CONTROL_FD,
    OPTION_SLOTS,
    OPTION_PAGES,
    OPTION_UNITS,
    OPTION_PAGE_UNITS,
    OPTION_MAX_MODEL_LEN,
    OPTION_ROWS,
    OPTION_VOCAB,
    OPTION_ID_FIRST,
    OPTION_ID_COUNT,
    OPTION_DRAFTS_MAX,
    OPTION_DRAFT_ODDS,
    OPTION_HAS_MTP,
    OPTION_STEP_US,
    OPTION_ROW_NS,
    OPTION_DIE,
    OPTION_HANG,
    OPTION_FAULT,
    OPTION_LIE,
    OPTION_EPOCHS,
    OPTION_FINGERPRINT,
    OPTION_HELP,
};
static const struct option options[] = {
        {"ranks", required_argument, NULL, OPTION_RANKS},
        {"tensor-parallel-size", required_argument, NULL, OPTION_TP},
        {"control-fd", required_argument, NULL, OPTION_CONTROL_FD},
        {"slots", required_argument, NULL, OPTION_SLOTS},
        {"pages", required_argument, NULL, OPTION_PAGES},
        {"slot-units", required_argument, NULL, OPTION_UNITS},
        {"page-units", required_argument, NULL, OPTION_PAGE_UNITS},
        {"max-model-len", required_argument, NULL, OPTION_MAX_MODEL_LEN},
        {"rows", required_argument, NULL, OPTION_ROWS},
        {"vocab-size", required_argument, NULL, OPTION_VOCAB},
        {"id-first", required_argument, NULL, OPTION_ID_FIRST},
        {"id-count", required_argument, NULL, OPTION_ID_COUNT},
        {"drafts-max", required_argument, NULL, OPTION_DRAFTS_MAX},
        {"draft-odds", required_argument, NULL, OPTION_DRAFT_ODDS},
        {"has-mtp", required_argument, NULL, OPTION_HAS_MTP},
        {"step-us", required_argument, NULL, OPTION_STEP_US},
        {"row-ns", required_argument, NULL, OPTION_ROW_NS},
        {"die-at-step", required_argument, NULL, OPTION_DIE},
        {"hang-at-step", required_argument, NULL, OPTION_HANG},
        {"fault-at-step", required_argument, NULL, OPTION_FAULT},
        {"lie-at-step", required_argument, NULL, OPTION_LIE},
        {"fault-epochs", required_argument, NULL, OPTION_EPOCHS},
        {"fingerprint", required_argument, NULL, OPTION_FINGERPRINT},
        {"help", no_argument, NULL, OPTION_HELP},
        {NULL, 0, NULL, 0},
};

/* The number of 32 bits that the option sets; NULL: it is none. */
static uint32_t *small_number(struct null_rank_options *o, int option) {
    switch (option) {
    case OPTION_TP:
        return &o->tp;
    case OPTION_SLOTS:
        return &o->slots;
    case OPTION_PAGES:
        return &o->pages;
    case OPTION_UNITS:
        return &o->slot_units;
    case OPTION_PAGE_UNITS:
        return &o->page_units;
    case OPTION_MAX_MODEL_LEN:
        return &o->max_model_len;
    case OPTION_ROWS:
        return &o->rows_max;
    case OPTION_VOCAB:
        return &o->vocab_size;
    case OPTION_ID_FIRST:
        return &o->id_first;
    case OPTION_ID_COUNT:
        return &o->id_count;
    case OPTION_DRAFTS_MAX:
        return &o->drafts_max;
    case OPTION_DRAFT_ODDS:
        return &o->draft_odds;
    default:
        return NULL;
    }
}

static void set_option(struct worker *w, int option, uint64_t v) {
    struct null_rank_options *o = &w->options;
    uint32_t *small = small_number(o, option);
    if (small != NULL)
        *small = (uint32_t)v;
    switch (option) {
    case OPTION_CONTROL_FD:
        w->control_fd = (int)v;
        break;
    case OPTION_HAS_MTP:
        o->has_mtp = o->model_has_mtp = (uint32_t)v;
        break;
    case OPTION_STEP_US:
        o->step_ns = v * 1000;
        break;
    case OPTION_ROW_NS:
        o->row_ns = v;
        break;
    case OPTION_DIE:
        o->die_at_step = v;
        break;
    case OPTION_HANG:
        o->hang_at_step = v;
        break;
    case OPTION_FAULT:
        o->fault_at_step = v;
        break;
    case OPTION_LIE:
        o->lie_at_step = v;
        break;
    case OPTION_EPOCHS:
        o->fault_epochs = v;
        break;
    case OPTION_FINGERPRINT:
        o->fingerprint = v;
        break;
    default:
        break;
    }
}

static int parse_options(struct worker *w, int argc, char **argv) {
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        bool wide = c == OPTION_FINGERPRINT || (c >= OPTION_DIE && c <= OPTION_EPOCHS);
        uint64_t v = 0;
        if (c == OPTION_HELP) {
            fputs(usage, stdout);
            exit(0);
        }
        if (c == '?' || (c != OPTION_RANKS && parse_number(optarg, wide ? UINT64_MAX : INT32_MAX, &v) < 0) ||
                (c == OPTION_RANKS && parse_ranks(w, optarg) < 0)) {
            if (c != '?')
                log_error("%s: \"%s\" is not a possible value", argv[optind - 2], optarg);
            return -EINVAL;
        }
        set_option(w, c, v);
    }
    if (optind < argc || w->n_ranks == 0) {
        log_error("--ranks is missing or \"%s\" is no option; --help lists them",
                optind < argc ? argv[optind] : "");
        return -EINVAL;
    }
    return 0;
}

/* --- ranks --- */

static void *rank_main(void *arg) {
    struct rank *k = arg;
    struct worker *w = k->worker;
    struct step_ring *ring = NULL;
    struct error e = {0};
    int r = step_ring_attach(w->ring_fd, k->number, &ring, &e);
    while (r >= 0 && !atomic_load(&w->channel_over)) {
        r = null_rank_serve(k->null_rank, ring, SERVE_NS, &e);
        if (r == -ETIMEDOUT)
            r = 0;
        /* Hangs with its progress word saying that it is busy; only a new channel or the end gets it out. */
        while (r == -EDEADLK && !atomic_load(&w->channel_over))
            usleep(10000);
    }
    if (r < 0 && r != -EDEADLK) {
        if (r != -ECANCELED && r != -ESHUTDOWN)
            log_error("rank %u: %s", k->number, e.text);
        atomic_store(&w->ended, r);
        uint64_t one = 1;
        if (write(w->event_fd, &one, sizeof(one)) < 0)
            log_error("rank %u: cannot tell the main thread: %s", k->number, strerror(errno));
    }
    step_ring_free(ring);
    return NULL;
}

static void stop_ranks(struct worker *w) {
    atomic_store(&w->channel_over, true);
    for (uint32_t i = 0; i < w->n_ranks; i++) {
        if (w->ranks[i].running)
            pthread_join(w->ranks[i].thread, NULL);
        w->ranks[i].running = false;
    }
    if (w->ring_fd >= 0)
        close(w->ring_fd);
    w->ring_fd = -1;
}

static int take_channel(struct worker *w, struct control_message *m) {
    if (m->n_fds != 1) {
        log_error("a channel came with %u descriptors instead of 1", m->n_fds);
        return -EBADMSG;
    }
    stop_ranks(w);
    w->ring_fd = m->fds[0];
    m->n_fds = 0;
    w->group_epoch = m->group_epoch;
    w->coord_epoch = m->coord_epoch;
    atomic_store(&w->channel_over, false);
    for (uint32_t i = 0; i < w->n_ranks; i++) {
        int r = pthread_create(&w->ranks[i].thread, NULL, rank_main, &w->ranks[i]);
        if (r != 0) {
            log_error("cannot start the thread of rank %u: %s", w->ranks[i].number, strerror(r));
            return -r;
        }
        w->ranks[i].running = true;
    }
    return 0;
}

static int create_ranks(struct worker *w) {
    for (uint32_t i = 0; i < w->n_ranks; i++) {
        struct null_rank_options o = w->options;
        struct error e;
        o.rank = w->ranks[i].number;
        int r = null_rank_create(&o, &w->ranks[i].null_rank, &e);
        if (r < 0) {
            log_error("%s", e.text);
            return r;
        }
        w->ranks[i].worker = w;
    }
    return 0;
}

/* --- control --- */

static int tell(struct worker *w, uint32_t kind, uint64_t a, const char *text) {
    struct error e;
    struct control_message m = {
            .kind = kind, .a = a, .group_epoch = w->group_epoch, .coord_epoch = w->coord_epoch};
    snprintf(m.text, sizeof(m.text), "%s", text);
    int r = control_send(w->control_fd, &m, &e);
    if (r < 0 && r != -EPIPE)
        log_error("%s", e.text);
    return r;
}

/* 0: go on; 1: the end that was asked for; negative: an error. */
static int take_message(struct worker *w) {
    struct control_message m;
    struct error e;
    int r = control_receive(w->control_fd, /* block= */ true, &m, &e);
    if (r == -EPIPE)
        return 1;
    if (r < 0) {
        log_error("%s", e.text);
        return r;
    }
    if (m.kind == CONTROL_CHANNEL)
        r = take_channel(w, &m);
    else if (m.kind == CONTROL_PING)
        r = tell(w, CONTROL_PONG, m.a, "");
    else if (m.kind == CONTROL_STOP)
        r = 1;
    control_close_fds(&m);
    return r;
}

static int serve(struct worker *w) {
    int r = tell(w, CONTROL_READY, 0, "null worker: no weights to load");
    while (r == 0) {
        struct pollfd p[2] = {{.fd = w->control_fd, .events = POLLIN}, {.fd = w->event_fd, .events = POLLIN}};
        if (poll(p, 2, /* timeout= */ -1) < 0 && errno != EINTR) {
            log_error("cannot wait for the launcher: %s", strerror(errno));
            return -errno;
        }
        int ended = atomic_load(&w->ended);
        if (ended == -ECANCELED)
            _exit(EXIT_TOLD_TO_DIE); /* as a crash: no farewell to anybody */
        if (ended == -ESHUTDOWN)
            return 1;
        if (ended != 0) {
            tell(w, CONTROL_FAULT, 0, "a rank of the null worker cannot go on");
            return ended;
        }
        if (p[0].revents != 0)
            r = take_message(w);
    }
    return r == -EPIPE ? 1 : r;
}

int main(int argc, char **argv) {
    struct worker w = {
            .control_fd = CONTROL_FD,
            .event_fd = -1,
            .ring_fd = -1,
            .options = {.tp = 1,
                    .slots = 64,
                    .pages = 4096,
                    .max_model_len = 32768,
                    .rows_max = 8192,
                    .vocab_size = 248320,
                    .fault_epochs = 1,
                    .fingerprint = 0x6e756c6c},
    };
    log_open("shardd-worker-null", LOG_LEVEL_INFO);
    int r = parse_options(&w, argc, argv);
    if (r < 0)
        return 2;
    w.event_fd = eventfd(0, EFD_CLOEXEC);
    if (w.event_fd < 0) {
        log_error("cannot create an eventfd: %s", strerror(errno));
        return 1;
    }
    r = create_ranks(&w);
    if (r == 0)
        r = serve(&w);
    stop_ranks(&w);
    for (uint32_t i = 0; i < w.n_ranks; i++)
        null_rank_free(w.ranks[i].null_rank);
    close(w.event_fd);
    return r < 0 ? 1 : 0;
}
