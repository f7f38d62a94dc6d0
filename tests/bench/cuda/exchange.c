/* Time of a sum over ranks, between GPUs of this machine: a process and a card for each rank.
 *
 * Usage: bench-cuda-exchange [ranks [way ...]]. Ranks: 2; ways of --all-reduce: auto, oneshot, staged and nccl. What
 * each says of itself; then a line per size: microseconds of k_reduce_residual() for each, and the bytes of the message
 * per second. Sums are nodes of a graph, back to back, with nothing between them; all ranks begin at the same time, and
 * rank 0 looks at its clock. Sums are checked first. Median of ROUNDS. Rank r has card r; where there are fewer cards
 * nothing is measured. */
#include "kernels/kernels.h"
#include "tests/bench/cuda/timing.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define COLUMNS  5120u
#define ROWS_MAX 2048u
#define LEAST    2e-3 /* seconds of one graph, about */

static const uint32_t sizes[] = {1, 4, 8, 16, 32, 64, 128, 256, 1024, ROWS_MAX};
#define SIZES (sizeof sizes / sizeof *sizes)

static const struct way {
    const char *name;
    enum k_all_reduce value;
} all_ways[] = {
        {"oneshot", K_ALL_REDUCE_ONESHOT}, {"staged", K_ALL_REDUCE_STAGED}, {"nccl", K_ALL_REDUCE_NCCL}};
#define WAYS (sizeof all_ways / sizeof *all_ways)

/* Shared by the ranks' processes. */
struct shared {
    atomic_uint arrived;
    uint32_t tp;
    double seconds[SIZES][WAYS];     /* of one sum; 0 = not measured */
    char text[WAYS][ERROR_TEXT_MAX]; /* what a way says of itself, or why there is none */
};
struct bench {
    struct shared *shared;
    struct k_context *c;
    struct k_stream *s;
    struct k_batch *b;
    struct k_comm *m;
    float *d_part, *d_x;
    uint32_t rank, tp, met;
};

static void meet(struct bench *b) {
    atomic_fetch_add(&b->shared->arrived, 1);
    b->met += b->tp;
    while (atomic_load(&b->shared->arrived) < b->met)
        ;
}

static void rows_are(struct bench *b, uint32_t rows) {
    const struct k_plan plan = {.n_rows = rows};
    const struct k_bounds bounds = {.rows = rows, .entries = 1, .context = 1};
    struct k_entry none = {0};
    struct error e;
    k_batch_bounds(b->b, &bounds);
    k_batch_upload(b->s, b->b, &plan, &none, NULL, 0, NULL, 0);
    must(k_stream_wait(b->s, 0, &e), &e);
}
/* Parts are small integers, so that the sum over ranks has no rounding. */
static float part_of(uint32_t rank, size_t i) {
    return (float)(i % 1021 + 1000 * rank);
}
static void check(struct bench *b, uint32_t rows) {
    const size_t n = (size_t)rows * COLUMNS;
    float *x = calloc(n, sizeof *x);
    struct error e;
    if (!x)
        exit(1);
    k_upload(b->s, b->d_x, x, n * sizeof *x);
    k_reduce_residual(b->s, b->m, b->b, b->d_part, b->d_x, COLUMNS);
    k_download(b->s, x, b->d_x, n * sizeof *x);
    must(k_stream_wait(b->s, 0, &e), &e);
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (uint32_t r = 0; r < b->tp; r++)
            sum += part_of(r, i);
        if (x[i] != sum) {
            fprintf(stderr, "rank %u, %u rows: element %zu is %g and should be %g\n", b->rank, rows, i, x[i],
                    sum);
            exit(1);
        }
    }
    free(x);
}
static double seconds_of(struct bench *b, uint32_t n) {
    struct k_graph *g = NULL;
    struct error e;
    double seconds[ROUNDS];
    must(k_capture_begin(b->s, &e), &e);
    for (uint32_t i = 0; i < n; i++)
        k_reduce_residual(b->s, b->m, b->b, b->d_part, b->d_x, COLUMNS);
    must(k_capture_end(b->s, &g, &e), &e);
    for (int i = -1; i < ROUNDS; i++) {
        meet(b);
        const uint64_t t = clock_ns();
        k_graph_launch(b->s, g);
        must(k_stream_wait(b->s, 0, &e), &e);
        if (i >= 0)
            seconds[i] = (double)(clock_ns() - t) * 1e-9 / n;
    }
    k_graph_free(g);
    return median(seconds);
}

static void bench_open(struct bench *b, const struct way *way, void *region, size_t bytes, struct error *e) {
    const struct k_context_options o = {.device = b->rank, .all_reduce = way->value};
    const struct k_shape shape = {
            .tp = b->tp, .rank = b->rank, .hidden_size = COLUMNS, .vocab_size = 64, .vocab_rows = 64 / b->tp};
    const size_t n = (size_t)ROWS_MAX * COLUMNS;
    float *part = malloc(n * sizeof *part);
    must(k_context_create(&o, &b->c, e), e);
    must(k_stream_create(b->c, &b->s, e), e);
    must(k_batch_create(b->c, 1, ROWS_MAX, &b->b, e), e);
    must(k_comm_create(b->c, &shape, ROWS_MAX, region, bytes, &b->m, e), e);
    b->d_part = k_alloc(b->c, n * sizeof *part);
    b->d_x = k_alloc(b->c, n * sizeof *part);
    if (!part || !b->d_part || !b->d_x)
        exit(1);
    for (size_t i = 0; i < n; i++)
        part[i] = part_of(b->rank, i);
    k_upload(b->s, b->d_part, part, n * sizeof *part);
    must(k_stream_wait(b->s, 0, e), e);
    free(part);
}
static int rank_main(struct shared *shared, uint32_t rank, uint32_t w, void *region, size_t bytes) {
    struct bench b = {.shared = shared, .rank = rank, .tp = shared->tp};
    struct error e;
    bench_open(&b, &all_ways[w], region, bytes, &e);
    const bool there = k_comm_meet(b.m, &e) == 0;
    if (rank == 0)
        snprintf(shared->text[w], sizeof shared->text[w], "%s", there ? k_comm_describe(b.m) : e.text);
    for (uint32_t i = 0; i < SIZES && there; i++) {
        rows_are(&b, sizes[i]);
        check(&b, sizes[i]);
        const double once = seconds_of(&b, 8);
        if (rank == 0)
            shared->seconds[i][w] = once;
        meet(&b);
        const double n = LEAST / shared->seconds[i][w];
        const double seconds = seconds_of(&b, n > 1000 ? 1000 : n < 8 ? 8 : (uint32_t)n);
        meet(&b);
        if (rank == 0)
            shared->seconds[i][w] = seconds;
    }
    k_comm_free(b.m);
    k_batch_free(b.b);
    k_free(b.c, b.d_part), k_free(b.c, b.d_x);
    k_stream_free(b.s);
    k_context_free(b.c);
    return 0;
}

static void *map(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        exit(1);
    return p;
}
/* A process that has a card open cannot be forked any more. */
static int cards(void) {
    int status = 0, n = 0;
    const pid_t child = fork();
    if (child == 0)
        _exit(cudaGetDeviceCount(&n) == cudaSuccess ? n : 0);
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}
static int run(struct shared *shared, uint32_t w) {
    const struct k_shape shape = {.tp = shared->tp, .hidden_size = COLUMNS, .vocab_size = 64};
    const size_t bytes = k_comm_region_bytes(&shape, ROWS_MAX);
    void *region = map(bytes);
    pid_t children[RANKS_MAX];
    int failed = 0;
    atomic_store(&shared->arrived, 0);
    for (uint32_t r = 0; r < shared->tp; r++) {
        children[r] = fork();
        if (children[r] == 0)
            _exit(rank_main(shared, r, w, region, bytes));
    }
    for (uint32_t r = 0; r < shared->tp; r++) {
        int status = 0;
        failed |= waitpid(children[r], &status, 0) != children[r] || status != 0;
    }
    munmap(region, bytes);
    return failed;
}

int main(int argc, char **argv) {
    struct shared *shared = map(sizeof *shared);
    const int n = cards();
    int failed = 0;
    shared->tp = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 2;
    if (n < (int)shared->tp) {
        printf("%u cards are needed, and %d are here\n", shared->tp, n);
        return 0;
    }
    for (uint32_t w = 0; w < WAYS; w++) {
        bool asked = argc < 3;
        for (int i = 2; i < argc; i++)
            asked = asked || strcmp(argv[i], all_ways[w].name) == 0;
        failed |= asked ? run(shared, w) : 0;
        if (asked)
            printf("%-8s %s\n", all_ways[w].name, shared->text[w]);
    }
    for (uint32_t i = 0; i < SIZES; i++) {
        const double bytes = (double)sizes[i] * COLUMNS * sizeof(float);
        printf("%4u rows, %8.0f KB:", sizes[i], bytes / 1000);
        for (uint32_t w = 0; w < WAYS; w++)
            if (shared->seconds[i][w] > 0)
                printf("  %s %8.2f us %6.1f GB/s", all_ways[w].name, shared->seconds[i][w] * 1e6,
                        bytes / shared->seconds[i][w] * 1e-9);
        printf("\n");
    }
    return failed;
}
