/* load.c - how fast a model is loaded, from its checkpoint and from its packed file, against a plain read of the same
 * bytes; and whether a token takes as long from the mapped file as from memory of our own.
 *
 *   bench-tp-load MODEL [THREADS]     THREADS 0: all cores
 *
 * Writes the packed file beside the model if it is not there. "cold" is after posix_fadvise(DONTNEED) of every file of
 * the folder, "warm" right after that. Loading is everything up to the first step: pools, scratch, fingerprint too. */
#include "tp/worker/offline.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PROMPT     16u
#define NEW        24u
#define READ_BYTES (4u << 20)

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const struct error *e) {
    fprintf(stderr, "%s\n", e->text);
    exit(EXIT_FAILURE);
}

/* Every regular file of a folder is read to its end, or dropped from the page cache. */
static uint64_t over_files(const char *dir, const char *end, bool drop) {
    static char buffer[READ_BYTES];
    uint64_t bytes = 0;
    DIR *d = opendir(dir);
    for (struct dirent *at; d && (at = readdir(d));) {
        char path[4352];
        struct stat st;
        size_t n = strlen(at->d_name), m = strlen(end);
        snprintf(path, sizeof(path), "%s/%s", dir, at->d_name);
        if (n < m || strcmp(at->d_name + n - m, end) != 0 || stat(path, &st) < 0 || !S_ISREG(st.st_mode))
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        if (drop) {
            fdatasync(fd);
            posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        } else {
            for (ssize_t got; (got = read(fd, buffer, sizeof(buffer))) > 0;)
                bytes += (uint64_t)got;
        }
        close(fd);
    }
    if (d)
        closedir(d);
    return bytes;
}

static void line(const char *what, const char *state, double seconds, uint64_t bytes) {
    printf("%-34s %-5s %8.2f s %8.2f GB %8.2f GB/s\n", what, state, seconds, (double)bytes / 1e9,
            (double)bytes / 1e9 / seconds);
    fflush(stdout);
}

static void plain_read(const char *dir, const char *end, const char *what, const char *state) {
    double begin = now_s();
    uint64_t bytes = over_files(dir, end, false);
    line(what, state, now_s() - begin, bytes);
}

static struct rank_options options_of(const char *dir, uint32_t threads, enum rank_packed packed) {
    return (struct rank_options){.model_dir = dir,
            .tp = 1,
            .threads = threads,
            .max_model_len = 256,
            .max_num_seqs = 1,
            .max_num_batched_tokens = 64,
            .packed = packed};
}

static double decode(struct offline *o) {
    struct step_sample samples[NEW];
    uint32_t prompt[PROMPT];
    struct error e = {0};
    double best = 0;
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = i * 3 + 1;
    for (int again = 0; again < 3; again++) {
        struct offline_sequence s = {.prompt = prompt,
                .n_prompt = PROMPT,
                .max_tokens = 1,
                .stop_id = STEP_NONE,
                .sampling = offline_greedy(),
                .samples = samples};
        double begin = now_s();
        if (offline_run(o, &s, 1, &e) < 0)
            die(&e);
        double prefill = now_s() - begin;
        s.max_tokens = NEW;
        begin = now_s();
        if (offline_run(o, &s, 1, &e) < 0)
            die(&e);
        double rate = (NEW - 1) / (now_s() - begin - prefill);
        best = rate > best ? rate : best;
    }
    return best;
}

static void load(
        const char *dir, uint32_t threads, enum rank_packed packed, const char *state, bool then_decode) {
    const struct rank_options options = options_of(dir, threads, packed);
    const char *what =
            packed == RANK_PACKED_NEVER ? "load, packing in memory" : "load, mapping the packed file";
    struct offline *o = NULL;
    struct error e = {0};
    double begin = now_s();
    if (offline_create(&options, &o, &e) < 0)
        die(&e);
    line(what, state, now_s() - begin, offline_rank(o, 0)->weights.bytes);
    if (then_decode)
        printf("%-34s %-5s %8.2f tokens/s\n", "  then decoding", "", decode(o));
    offline_free(o);
}

static void make(const char *dir, uint32_t threads) {
    const struct rank_options options = options_of(dir, threads, RANK_PACKED_MAKE);
    struct rank *r = NULL;
    struct error e = {0};
    double begin = now_s();
    if (rank_create(&options, &r, &e) < 0)
        die(&e);
    printf("%s\n", r->weights_from);
    line("making or opening the packed file", "", now_s() - begin, r->weights.bytes);
    rank_free(r);
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: bench-tp-load MODEL [THREADS]\n");
        return 2;
    }
    const char *dir = argv[1];
    uint32_t threads = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    make(dir, threads);
    over_files(dir, "", true);
    plain_read(dir, ".safetensors", "read() of the checkpoint", "cold");
    plain_read(dir, ".safetensors", "read() of the checkpoint", "warm");
    over_files(dir, "", true);
    load(dir, threads, RANK_PACKED_NEVER, "cold", false);
    load(dir, threads, RANK_PACKED_NEVER, "warm", true);
    over_files(dir, "", true);
    plain_read(dir, ".bin", "read() of the packed file", "cold");
    plain_read(dir, ".bin", "read() of the packed file", "warm");
    over_files(dir, "", true);
    load(dir, threads, RANK_PACKED_AUTO, "cold", false);
    load(dir, threads, RANK_PACKED_AUTO, "warm", true);
    return 0;
}
