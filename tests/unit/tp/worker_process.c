/* worker_process.c - the worker program as the launcher and the coordinator see it: control messages,
 * channels and their replacement, epochs, several processes and several ranks in one, and every way to end. */
#include "model_test.h"

#include "proto/step/control.h"
#include "proto/step/ring.h"
#include "tp/worker/meeting.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define PATIENCE_MS 60000
#define COMM_FD     4

extern char **environ;

struct process {
    pid_t pid;
    int control;
};

struct group { /* what a launcher and a coordinator hold */
    struct process processes[2];
    uint32_t n, tp;
    int comm;
    struct step_ring *ring;
    struct step_writer *writer;
    uint64_t coord_epoch, step;
};

static const uint32_t prompt[] = {5, 6, 7, 8, 9, 10, 11, 12};

/* --- launcher --- */

static struct process spawn_worker(const char *model, const char *ranks, const char *tp, int comm) {
    char path[512];
    int pair[2];
    struct error e = {0};
    struct process p = {0};
    posix_spawn_file_actions_t actions;
    if (model[0] == '/')
        snprintf(path, sizeof(path), "%s", model);
    else
        model_path(path, sizeof(path), model, NULL);
    char *argv[] = {BIN_DIR "/shardd-worker-cpu", "--model", path, "--ranks", (char *)ranks,
            "--tensor-parallel-size", (char *)tp, "--threads", "1", "--max-num-seqs", "4", "--max-model-len",
            "256", "--max-num-batched-tokens", "64", "--kv-cache-memory", "67108864", "--control-fd", "3",
            comm >= 0 ? "--comm-fd" : NULL, "4", NULL};
    must(control_pair(pair, &e), &e);
    posix_spawn_file_actions_init(&actions);
    /* Far away first, so that neither overwrites the other on the way to its place. */
    int control = fcntl(pair[1], F_DUPFD_CLOEXEC, 100),
        memory = comm >= 0 ? fcntl(comm, F_DUPFD_CLOEXEC, 100) : -1;
    posix_spawn_file_actions_adddup2(&actions, control, CONTROL_FD);
    if (memory >= 0)
        posix_spawn_file_actions_adddup2(&actions, memory, COMM_FD);
    assert_int_equal(posix_spawn(&p.pid, argv[0], &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(pair[1]);
    close(control);
    if (memory >= 0)
        close(memory);
    p.control = pair[0];
    return p;
}

static void tell(const struct process *p, enum control_kind kind, uint64_t a) {
    struct error e = {0};
    const struct control_message m = {.kind = kind, .a = a};
    must(control_send(p->control, &m, &e), &e);
}

/* The next message that is not about loading; fails when the worker closes its socket instead. */
static struct control_message hear(const struct process *p) {
    for (;;) {
        struct pollfd fd = {.fd = p->control, .events = POLLIN};
        struct control_message m;
        struct error e = {0};
        if (poll(&fd, 1, PATIENCE_MS) != 1)
            fail_msg("the worker says nothing");
        must(control_receive(p->control, true, &m, &e), &e);
        if (m.kind != CONTROL_LOADING)
            return m;
    }
}

static int exit_status(struct process *p) {
    int status = 0;
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    close(p->control);
    p->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void send_channel(struct group *g) {
    int fd = -1;
    struct error e = {0};
    must(step_ring_create(g->tp, 7, ++g->coord_epoch, &fd, &e), &e);
    struct step_ring *ring = NULL;
    must(step_ring_attach(fd, STEP_RING_COORDINATOR, &ring, &e), &e);
    for (uint32_t i = 0; i < g->n; i++) {
        struct control_message m = {
                .kind = CONTROL_CHANNEL, .group_epoch = 7, .coord_epoch = g->coord_epoch, .n_fds = 1};
        m.fds[0] = fd;
        must(control_send(g->processes[i].control, &m, &e), &e);
    }
    close(fd);
    step_ring_free(g->ring);
    g->ring = ring;
    g->step = 0;
}

static void group_start(struct group *g, const char *model, uint32_t tp, uint32_t processes) {
    *g = (struct group){.tp = tp, .n = processes, .comm = -1};
    if (tp > 1)
        g->comm = memfd_create("test-comm", MFD_CLOEXEC);
    g->writer = aligned_alloc(64, (step_writer_bytes() + 63) / 64 * 64);
    for (uint32_t i = 0; i < processes; i++)
        g->processes[i] =
                spawn_worker(model, processes == tp ? (i ? "1" : "0") : "0,1", tp == 1 ? "1" : "2", g->comm);
    for (uint32_t i = 0; i < processes; i++) {
        struct control_message m = hear(&g->processes[i]);
        if (m.kind != CONTROL_READY)
            fail_msg("process %u: message %u instead of READY: %s", i, m.kind, m.text);
        assert_non_null(strstr(m.text, "cpu"));
    }
}

static void group_done(struct group *g) {
    for (uint32_t i = 0; i < g->n; i++) {
        if (g->processes[i].pid)
            tell(&g->processes[i], CONTROL_STOP, 0);
    }
    for (uint32_t i = 0; i < g->n; i++) {
        if (g->processes[i].pid)
            assert_int_equal(exit_status(&g->processes[i]), 0);
    }
    step_ring_free(g->ring);
    free(g->writer);
    if (g->comm >= 0)
        close(g->comm);
}

/* --- coordinator --- */

static void commit(struct group *g) {
    void *place = NULL;
    uint32_t bytes = step_writer_size(g->writer);
    assert_int_equal(step_ring_reserve(g->ring, bytes, &place), 0);
    assert_int_equal(step_end(g->writer, place, bytes), bytes);
    step_ring_commit(g->ring, bytes);
}

static void begin(struct group *g, enum step_type type) {
    step_begin(g->writer, type, 7, g->coord_epoch, type == STEP_TYPE_RESET ? 0 : ++g->step);
}

struct answer {
    struct step_completion completion;
    uint8_t body[4096];
};

static void receive(struct group *g, uint32_t rank, struct answer *a) {
    const struct step_completion *c;
    const void *body;
    for (int waited = 0;; waited += 100) {
        int r = step_ring_completion(g->ring, rank, &c, &body);
        if (r == 0)
            break;
        assert_int_equal(r, -EAGAIN);
        if (waited > PATIENCE_MS)
            fail_msg("rank %u does not answer", rank);
        step_ring_wait(g->ring, 100000000);
    }
    size_t bytes = c->bytes - sizeof(*c);
    assert_true(bytes <= sizeof(a->body));
    a->completion = *c;
    memcpy(a->body, body, bytes);
    step_ring_completion_release(g->ring, rank);
}

static void reset(struct group *g) {
    g->step = 0;
    begin(g, STEP_TYPE_RESET);
    commit(g);
    for (uint32_t rank = 0; rank < g->tp; rank++) {
        struct answer a;
        struct step_geometry geometry;
        receive(g, rank, &a);
        memcpy(&geometry, a.body, sizeof(geometry));
        assert_int_equal(a.completion.status, STEP_STATUS_OK);
        assert_int_equal(a.completion.coord_epoch, g->coord_epoch);
        assert_int_equal(geometry.rank, rank);
        assert_int_equal(geometry.tp, g->tp);
        assert_int_equal(geometry.slots, 4);
        assert_int_equal(geometry.rows_max, 64);
        assert_int_equal(geometry.max_model_len, 256);
    }
}

static struct step_entry plain_entry(uint32_t kind) {
    return (struct step_entry){.slot = 1,
            .kind = kind,
            .flags = STEP_ENTRY_SAMPLE | STEP_ENTRY_LOGPROB,
            .n_rows = 1,
            .ids_at = STEP_NONE,
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE};
}

static void plan_prompt(struct group *g) {
    struct step_open o = offline_greedy();
    struct step_entry t = plain_entry(STEP_ENTRY_PROMPT);
    static const uint32_t page = 1;
    begin(g, STEP_TYPE_PLAN);
    o.slot = 1;
    step_add_open(g->writer, &o);
    t.n_rows = sizeof(prompt) / sizeof(prompt[0]);
    t.ids_at = step_blob(g->writer, prompt, sizeof(prompt));
    t.n_pages = 1;
    t.pages_at = step_blob(g->writer, &page, sizeof(page));
    step_add_entry(g->writer, &t);
    commit(g);
}

static void plan_continue(struct group *g) {
    struct step_entry t = plain_entry(STEP_ENTRY_CONTINUE);
    begin(g, STEP_TYPE_PLAN);
    step_add_entry(g->writer, &t);
    commit(g);
}

/* The sample of rank 0; the other ranks must have the same checksum. */
static struct step_sample sample_of(struct group *g) {
    struct answer a;
    struct step_sample s;
    receive(g, 0, &a);
    if (a.completion.status != STEP_STATUS_OK)
        fail_msg("rank 0: %.*s", (int)a.completion.n_outcomes, a.body);
    assert_int_equal(a.completion.n_outcomes, 1);
    memcpy(&s, a.body + sizeof(struct step_outcome), sizeof(s));
    for (uint32_t rank = 1; rank < g->tp; rank++) {
        struct answer b;
        receive(g, rank, &b);
        assert_int_equal(b.completion.status, STEP_STATUS_OK);
        assert_int_equal(b.completion.n_outcomes, 0);
        assert_true(b.completion.checksum == a.completion.checksum);
    }
    return s;
}

/* What one process and one thread make of the prompt, without any of this. */
static void expected_tokens(const char *model, struct step_sample *samples, uint32_t n) {
    struct rank_options options = test_options(NULL, 1);
    struct error e = {0};
    options.kv_dtype = RANK_KV_AUTO;
    struct offline *o = model_start(model, &options);
    struct one_run r;
    run_start(&r, o, prompt, sizeof(prompt) / sizeof(prompt[0]), n, false);
    must(offline_run(o, &r.s, 1, &e), &e);
    memcpy(samples, r.s.samples, n * sizeof(samples[0]));
    run_done(&r);
    offline_free(o);
}

#define TOKENS 5u

static void generate(struct group *g, const struct step_sample *expected) {
    plan_prompt(g);
    for (uint32_t i = 1; i < TOKENS; i++) /* all steps at once: the worker need not wait for the answers */
        plan_continue(g);
    for (uint32_t i = 0; i < TOKENS; i++) {
        struct step_sample s = sample_of(g);
        assert_int_equal(s.id, expected[i].id);
        assert_memory_equal(&s.logprob, &expected[i].logprob, sizeof(float));
    }
}

/* --- tests --- */

static void generates_in_every_arrangement(void **state) {
    (void)state;
    static const uint32_t arrangements[][2] = {{1, 1}, {2, 2}, {2, 1}}; /* tp, processes */
    struct step_sample expected[TOKENS];
    expected_tokens("tp8", expected, TOKENS);
    for (size_t i = 0; i < 3; i++) {
        struct group g;
        group_start(&g, "tp8", arrangements[i][0], arrangements[i][1]);
        send_channel(&g);
        reset(&g);
        generate(&g, expected);
        reset(&g);
        generate(&g, expected); /* RESET left nothing behind */
        group_done(&g);
    }
}

static void answers_pings(void **state) {
    (void)state;
    struct group g;
    group_start(&g, "small", 1, 1);
    for (uint64_t i = 100; i < 105; i++) {
        tell(&g.processes[0], CONTROL_PING, i);
        struct control_message m = hear(&g.processes[0]);
        assert_int_equal(m.kind, CONTROL_PONG);
        assert_int_equal(m.a, i);
    }
    send_channel(&g);
    begin(&g, STEP_TYPE_RESET);
    commit(&g);
    struct answer a;
    receive(&g, 0, &a);
    begin(&g, STEP_TYPE_PING);
    commit(&g);
    receive(&g, 0, &a);
    assert_int_equal(a.completion.type, STEP_TYPE_PING);
    group_done(&g);
}

/* A new coordinator: what the old one committed is executed first, then the new channel counts. */
static void replaces_the_channel(void **state) {
    (void)state;
    struct group g;
    struct step_sample expected[TOKENS];
    expected_tokens("tp8", expected, TOKENS);
    group_start(&g, "tp8", 2, 2);
    send_channel(&g);
    for (int i = 0; i < 3; i++) {
        reset(&g);
        plan_prompt(&g); /* nobody will read the answers */
        plan_continue(&g);
        send_channel(&g);
        reset(&g);
        generate(&g, expected);
    }
    group_done(&g);
}

static void drops_other_epochs(void **state) {
    (void)state;
    struct group g;
    struct answer a;
    group_start(&g, "small", 1, 1);
    send_channel(&g);
    reset(&g);
    uint64_t epoch = g.coord_epoch;
    g.coord_epoch = epoch - 1; /* a record of the coordinator before */
    plan_prompt(&g);
    g.coord_epoch = epoch;
    begin(&g, STEP_TYPE_PING);
    commit(&g);
    receive(&g, 0, &a);
    assert_int_equal(a.completion.type, STEP_TYPE_PING); /* and not the plan's answer */
    plan_prompt(&g);                                     /* slot 1 is still free */
    sample_of(&g);
    group_done(&g);
}

static void refuses_and_goes_on(void **state) {
    (void)state;
    struct group g;
    struct answer a;
    group_start(&g, "tp8", 2, 1);
    send_channel(&g);
    reset(&g);
    plan_continue(&g);
    for (uint32_t rank = 0; rank < 2; rank++) {
        receive(&g, rank, &a);
        assert_int_equal(a.completion.status, STEP_STATUS_FAULT);
        assert_non_null(memmem(a.body, a.completion.n_outcomes, "slot 1 is not open", 18));
    }
    plan_prompt(&g);
    sample_of(&g);
    group_done(&g);
}

static void stops_on_a_record(void **state) {
    (void)state;
    struct group g;
    struct answer a;
    group_start(&g, "small", 1, 1);
    send_channel(&g);
    reset(&g);
    begin(&g, STEP_TYPE_STOP);
    commit(&g);
    receive(&g, 0, &a);
    assert_int_equal(a.completion.type, STEP_TYPE_STOP);
    assert_int_equal(exit_status(&g.processes[0]), 0);
    group_done(&g);
}

static void ends_with_the_launcher(void **state) {
    (void)state;
    struct group g;
    group_start(&g, "small", 1, 1);
    int status = 0;
    close(g.processes[0].control);
    assert_int_equal(waitpid(g.processes[0].pid, &status, 0), g.processes[0].pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    g.processes[0].pid = 0;
    group_done(&g);
}

/* The other rank is gone, so this one waits in a collective that nobody will finish. */
static void stops_while_it_waits_for_a_dead_rank(void **state) {
    (void)state;
    struct group g;
    group_start(&g, "tp8", 2, 2);
    send_channel(&g);
    reset(&g);
    kill(g.processes[1].pid, SIGKILL);
    assert_int_equal(exit_status(&g.processes[1]), -SIGKILL);
    plan_prompt(&g);
    tell(&g.processes[0], CONTROL_PING, 1); /* the main thread still answers */
    assert_int_equal(hear(&g.processes[0]).kind, CONTROL_PONG);
    group_done(&g);
}

/* Damaged weights: the rank that sees it says so, the others end too, nobody hangs. */
static void a_fault_ends_the_group(void **state) {
    (void)state;
    struct group g;
    group_start(&g, "tp8", 2, 2);
    send_channel(&g);
    reset(&g);
    /* "aborted", the second word behind the ranks' meeting: what a rank that fails tells the others */
    assert_int_equal(pwrite(g.comm, &(uint32_t){1}, sizeof(uint32_t), (off_t)meeting_bytes() + 4), 4);
    plan_prompt(&g);
    bool named = false;
    for (uint32_t i = 0; i < 2; i++) {
        struct control_message m = hear(&g.processes[i]);
        assert_int_equal(m.kind, CONTROL_FAULT);
        named |= strstr(m.text, "the group of ranks was stopped") != NULL;
        assert_int_equal(exit_status(&g.processes[i]), 1);
    }
    assert_true(named);
    group_done(&g);
}

static void says_why_it_cannot_start(void **state) {
    (void)state;
    struct process p = spawn_worker("no-such-model", "0", "1", -1);
    struct control_message m = hear(&p);
    assert_int_equal(m.kind, CONTROL_FAULT);
    assert_non_null(strstr(m.text, "no-such-model"));
    assert_int_equal(exit_status(&p), 1);

    p = spawn_worker("small", "1", "1", -1);
    m = hear(&p);
    assert_int_equal(m.kind, CONTROL_FAULT);
    assert_non_null(strstr(m.text, "--ranks"));
    assert_int_equal(exit_status(&p), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(generates_in_every_arrangement),
            cmocka_unit_test(answers_pings),
            cmocka_unit_test(replaces_the_channel),
            cmocka_unit_test(drops_other_epochs),
            cmocka_unit_test(refuses_and_goes_on),
            cmocka_unit_test(stops_on_a_record),
            cmocka_unit_test(ends_with_the_launcher),
            cmocka_unit_test(stops_while_it_waits_for_a_dead_rank),
            cmocka_unit_test(a_fault_ends_the_group),
            cmocka_unit_test(says_why_it_cannot_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
