/* worker_main.c - the worker program (shardd-worker-cpu, shardd-worker-cuda): command line, log, and one of its ways to
 * run. */
#include "base/log.h"
#include "proto/step/control.h"
#include "tp/bench/bench.h"
#include "tp/worker/keeper.h"
#include "tp/worker/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The launcher shows this sentence to the person who typed the flags. */
static void tell_launcher(int fd, const char *text) {
    struct control_message m = {.kind = CONTROL_FAULT};
    memcpy(m.text, text, strnlen(text, sizeof(m.text) - 1));
    if (fd >= 0)
        control_send(fd, &m, NULL);
}

int main(int argc, char **argv) {
    struct worker_options options;
    struct error e = {0};
    char ident[32] = "shardd-worker";
    /* CUDA loads a kernel when it is used first, unless told: that would take device memory while others are served. */
    setenv("CUDA_MODULE_LOADING", "EAGER", /* overwrite= */ 0);
    /* Ranks of a host find each other on it; NCCL would listen on a network, to whoever comes. */
    setenv("NCCL_SOCKET_IFNAME", "=lo", /* overwrite= */ 0);
    if (argc > 1 && strcmp(argv[1], "bench") == 0)
        return bench_main(argc, argv);
    int r = worker_options_parse(argc, argv, &options, &e);
    if (r == 0 && options.keeper)
        snprintf(ident, sizeof(ident), "shardd-keeper[%u]", options.ranks[0]);
    else if (r == 0 && !options.prompt && !options.probe && !options.help)
        snprintf(ident, sizeof(ident), "shardd-worker[%u]", options.ranks[0]);
    log_open(ident, r == 0 ? (enum log_level)options.log_level : LOG_LEVEL_INFO);
    int status = EXIT_FAILURE;
    if (r < 0) {
        log_error("%s", e.text);
        tell_launcher(options.control_fd, e.text);
        status = WORKER_EXIT_USAGE;
    } else if (options.help) {
        fputs(worker_help, stdout);
        status = EXIT_SUCCESS;
    } else if (options.probe)
        status = worker_probe(options.probe_list);
    else if (options.keeper)
        status = keeper_run(options.control_fd);
    else if (worker_only_plans(&options))
        status = worker_plan(&options);
    else
        status = options.prompt ? worker_generate(&options) : worker_serve(&options);
    worker_options_done(&options);
    return status;
}
