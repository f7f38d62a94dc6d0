/* bench.c - `shardd bench`: becomes the `bench` of a worker, which has the ranks, or measures a service. */
#include "launcher/bench/service.h"
#include "launcher/pass.h"
#include "launcher/programs.h"
#include "launcher/serve/gpu.h"
#include "launcher/verbs.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* The worker program. A GPU that cannot be measured is told, so that nobody takes a CPU's figures for its; *gpu has a
 * worker where GPUs are measured. */
static int find_worker(const struct options *o, char ret[PATH_MAX], struct gpu *gpu, struct error *e) {
    const char *libexec = options_text(o, OPT_LIBEXEC_DIR), *device = options_text(o, OPT_DEVICE);
    const bool automatic = strcmp(device, "auto") == 0;
    if (strcmp(device, "null") == 0)
        return error_set(e, -EINVAL, "--device null computes nothing that could be measured");
    if (strcmp(device, "cpu") == 0 || (automatic && !gpu_seen()))
        return program_find("shardd-worker-cpu", libexec, ret, e);
    int rc = gpu_find(libexec, options_text(o, OPT_DEVICES),
            (uint32_t)options_number(o, OPT_TENSOR_PARALLEL_SIZE), gpu, e);
    if (rc == 0) {
        snprintf(ret, PATH_MAX, "%s", gpu->worker);
        return 0;
    }
    gpu->worker[0] = '\0';
    if (!automatic)
        return error_prefix(e, rc, "--device cuda");
    fprintf(stderr, "shardd bench: the CPU is measured although there is a GPU: %s\n", e->text);
    return program_find("shardd-worker-cpu", libexec, ret, e);
}

static void bench_command(
        struct argv *a, const struct options *o, const char *worker, const struct gpu *gpu) {
    char devices[DEVICES_TEXT];
    argv_add(a, "%s", worker);
    argv_add(a, "bench");
    argv_add_flag(a, "--model", "%s", options_text(o, OPT_MODEL));
    if (gpu->worker[0])
        argv_add_flag(a, "--devices", "%s", devices_text(&gpu->ranks, devices));
    if (options_given(o, OPT_THREADS))
        argv_add_flag(a, "--threads", "%s", options_text(o, OPT_THREADS));
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const bool ranks = i == OPT_TENSOR_PARALLEL_SIZE; /* which --devices may have set */
        if ((option_table[i].to & (TO_WORKER | TO_BENCH)) && (ranks || options_given(o, option_table[i].id)))
            pass_value(a, &option_table[i], &o->values[i]);
    }
}

static int become_worker(const struct options *o) {
    struct argv a = {0};
    struct gpu gpu = {0};
    struct error e = {0};
    char worker[PATH_MAX];
    int rc = find_worker(o, worker, &gpu, &e);
    if (rc < 0) {
        fprintf(stderr, "shardd bench: %s\n", e.text);
        gpu_done(&gpu);
        return rc == -EINVAL ? EXIT_USAGE : EXIT_FAILED;
    }
    bench_command(&a, o, worker, &gpu);
    gpu_done(&gpu);
    if (a.failed)
        errno = ENOMEM;
    else
        execv(worker, a.words);
    fprintf(stderr, "shardd bench: cannot run %s: %s\n", worker, strerror(errno));
    argv_done(&a);
    return EXIT_FAILED;
}

int verb_bench(const struct options *o) {
    return options_given(o, OPT_ASKED_SERVICE) ? bench_service(o) : become_worker(o);
}
