/* Inboxes of ranks that are processes: how their descriptors are passed, strangers' among them; which way is taken
 * where one is not there, and that nothing of it is left when a group ends. In the emulation. */
#include "kernels/cuda/comm_pass.h"
#include "tests/unit/kernels/processes.h"
#include "tests/unit/kernels_cuda/sides.h"

#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>

static __typeof__(&pass_open) open_socket;
static __typeof__(&pass_all) pass;

static int find_pass(void **state) {
    void *so = dlopen(CUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    (void)state;
    if (!so)
        fail_msg("%s", dlerror());
    *(void **)&open_socket = dlsym(so, "pass_open");
    *(void **)&pass = dlsym(so, "pass_all");
    return open_socket && pass ? 0 : -1;
}

static uint32_t open_fds(void) {
    uint32_t n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}
static int file_of(uint32_t number) {
    const int fd = memfd_create("inbox", MFD_CLOEXEC);
    return fd >= 0 && write(fd, &number, sizeof number) == sizeof number ? fd : -1;
}
static bool file_is(int fd, uint32_t number) {
    uint32_t found;
    return pread(fd, &found, sizeof found, 0) == sizeof found && found == number;
}

/* --- passing --- */

/* Of processes that run at the same time: where each takes descriptors, and who it is. */
struct party {
    struct pass_peer peers[RANKS_MAX];
    uint32_t n;
    atomic_uint open, stranger_done;
};
static void wait_until(atomic_uint *count, uint32_t n) {
    while (atomic_load(count) < n)
        usleep(100);
}
/* 0: it has got exactly one descriptor of each peer, the peer's. */
static int rank_passes(struct party *p, uint32_t rank) {
    struct pass_peer peers[RANKS_MAX];
    struct error e = {0};
    int socket = -1, fds[RANKS_MAX], wrong = 0;
    const int own = file_of(rank);
    const uint32_t before = open_fds();
    if (own < 0 || open_socket(&socket, &p->peers[rank].address, &e) < 0)
        return 1;
    p->peers[rank].pid = getpid();
    atomic_fetch_add(&p->open, 1);
    wait_until(&p->open, p->n);
    wait_until(&p->stranger_done, 1);
    memcpy(peers, p->peers, sizeof peers);
    peers[rank].pid = 0;
    if (pass(socket, rank, own, peers, p->n, 60, fds, &e) < 0)
        return 2;
    for (uint32_t r = 0; r < RANKS_MAX; r++) {
        wrong += r < p->n && r != rank ? !file_is(fds[r], r) : fds[r] != -1;
        if (fds[r] >= 0)
            close(fds[r]);
    }
    close(socket);
    return wrong ? 3 : open_fds() != before ? 4 : 0;
}
/* Comes before everybody, says that it is each of them, and has a file of its own. */
static int stranger_sends(struct party *p) {
    struct pass_address own;
    struct error e = {0};
    int socket = -1, fds[RANKS_MAX], file = file_of(99), failures = 0;
    wait_until(&p->open, p->n);
    if (file < 0 || open_socket(&socket, &own, &e) < 0)
        return 1;
    for (uint32_t said = 0; said < p->n + 1; said++) {
        failures += pass(socket, said, file, p->peers, p->n, 0, fds, &e) != -ETIMEDOUT;
        failures += fds[0] != -1;
    }
    failures += sendto(socket, "x", 1, 0, (struct sockaddr *)&p->peers[0].address.name,
                        p->peers[0].address.bytes) != 1;
    atomic_store(&p->stranger_done, 1);
    return failures;
}
/* Fills everybody's queue before they begin. */
static int stranger_floods(struct party *p) {
    const int from = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    wait_until(&p->open, p->n);
    for (uint32_t r = 0; r < p->n; r++) {
        const struct pass_address *to = &p->peers[r].address;
        while (sendto(from, &r, sizeof r, 0, (const struct sockaddr *)&to->name, to->bytes) == sizeof r)
            ;
        if (errno != EAGAIN)
            return 1;
    }
    atomic_store(&p->stranger_done, 1);
    close(from);
    return 0;
}
static int flooded_main(void *party, uint32_t i) {
    struct party *p = party;
    return i < p->n ? rank_passes(p, i) : stranger_floods(p);
}
static int party_main(void *party, uint32_t i) {
    struct party *p = party;
    return i < p->n ? rank_passes(p, i) : stranger_sends(p);
}
static void party_meets(int (*main_of)(void *party, uint32_t i)) {
    struct party *p = shared_memory(sizeof *p);
    p->n = 3;
    processes_run_well(p->n + 1, main_of, p);
    munmap(p, sizeof *p);
}
static void test_everybody_gets_one_of_each_and_none_of_a_stranger(void **state) {
    (void)state;
    party_meets(party_main);
}
static void test_a_flood_is_drained(void **state) {
    (void)state;
    party_meets(flooded_main);
}
static void test_a_peer_that_does_not_come_is_named(void **state) {
    struct pass_peer peers[2] = {0};
    struct error e = {0};
    int socket = -1, fds[RANKS_MAX];
    const int own = file_of(0);
    const uint32_t before = open_fds();
    (void)state;
    assert_int_equal(open_socket(&socket, &peers[1].address, &e), 0);
    peers[1].pid = getppid();
    assert_int_equal(pass(socket, 0, own, peers, 2, 0, fds, &e), -ETIMEDOUT);
    assert_non_null(strstr(e.text, "rank 0 was passed no memory by rank 1"));
    close(socket);
    assert_int_not_equal(pass(own, 0, own, peers, 2, 0, fds, &e), 0); /* no socket */
    assert_int_equal(open_fds(), before);
    close(own);
}

/* --- groups --- */

struct group {
    uint32_t tp;
    const char *peers, *shared, *ipc; /* of the machine (emu_control.h) */
    const char *says;                 /* of the way that is taken */
    const char *pairs;                /* says rank 0 of what lies between them */
    struct k_shape shape;
    size_t bytes;
    void *region;
};
static bool maps_device_memory(void) {
    char line[512];
    bool found = false;
    FILE *f = fopen("/proc/self/maps", "re");
    while (f && !found && fgets(line, sizeof line, f))
        found = strstr(line, "memfd:cuda_emu") != NULL;
    if (f)
        fclose(f);
    return found;
}
static int group_rank(void *group, uint32_t rank) {
    const struct group *g = group;
    setenv("CUDA_EMU_PEERS", g->peers, 1);
    setenv("CUDA_EMU_SHARED", g->shared, 1);
    setenv("CUDA_EMU_IPC", g->ipc, 1);
    const struct library k = opened_library();
    const struct k_context_options o = {.device = rank % 2, .threads = 1};
    struct k_shape shape = g->shape;
    struct k_context *c = NULL;
    struct k_comm *m = NULL;
    struct error e = {0};
    shape.rank = rank;
    shape.vocab_first = rank * shape.vocab_rows;
    if (k.k_context_create(&o, &c, &e) < 0)
        return 1;
    const uint32_t before = open_fds();
    if (k.k_comm_create(c, &shape, 4, g->region, g->bytes, &m, &e) < 0 || k.k_comm_meet(m, &e) < 0)
        return 2;
    const bool maps = maps_device_memory(),
               on_devices = *g->peers == '1' && (*g->shared == '1' || *g->ipc == '1'),
               held = open_fds() != before && on_devices &&
                      *g->shared == '1'; /* what is mapped needs no descriptor */
    if (!strstr(k.k_comm_describe(m), g->says) || (rank == 0 && !strstr(k.k_comm_describe(m), g->pairs))) {
        print_message("'%s' does not say '%s'\n", k.k_comm_describe(m), g->says);
        return 3;
    }
    k.k_comm_free(m);
    const int left = on_devices && !maps    ? 4
                     : held                 ? 5
                     : maps_device_memory() ? 6
                     : open_fds() != before ? 7
                                            : 0;
    k.k_context_free(c);
    return left;
}
static void group_meets(uint32_t tp, const char *peers, const char *shared, const char *ipc, const char *says,
        const char *pairs) {
    struct group g = {.tp = tp,
            .peers = peers,
            .shared = shared,
            .ipc = ipc,
            .says = says,
            .pairs = pairs,
            .shape = {.tp = tp, .hidden_size = 64, .vocab_size = 64, .vocab_rows = 64 / tp}};
    g.bytes = opened_library().k_comm_region_bytes(&g.shape, 4);
    g.region = shared_memory(g.bytes);
    processes_run_well(tp, group_rank, &g);
    munmap(g.region, g.bytes);
}
static void test_nothing_is_left_of_a_group(void **state) {
    (void)state;
    group_meets(2, "1", "1", "1", "ranks write into each other's memory", " 0-1");
    group_meets(4, "1", "1", "1", "ranks write into each other's memory", " 2-3");
    group_meets(2, "1", "0", "1", "by CUDA IPC (device 0: cuMemCreate: operation not supported)", " 0-1");
    group_meets(2, "1", "0", "0",
            "ranks meet in memory of the host (by descriptors: device 0: cuMemCreate: operation not supported; by CUDA "
            "IPC: device 0 may not open memory of device 1",
            " 0-1");
    group_meets(2, "2", "1", "1", "ranks meet in memory of the host (rank 0 waited in vain for rank 1",
            "; what is written gets lost: 0-1 (");
    group_meets(2, "0", "1", "1", "ranks meet in memory of the host (device 0 cannot reach device 1",
            "; out of reach: 0-1 (");
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_everybody_gets_one_of_each_and_none_of_a_stranger),
            cmocka_unit_test(test_a_flood_is_drained),
            cmocka_unit_test(test_a_peer_that_does_not_come_is_named),
            cmocka_unit_test(test_nothing_is_left_of_a_group),
    };
    return cmocka_run_group_tests(tests, find_pass, NULL);
}
