/* coordinator_options.h - the command line of shardd-coordinator. Used by coordinator_main.c only. */
#pragma once

#include "base/error.h"
#include "daemon/rpc/rpc.h"
#include "daemon/service/model.h"

struct coordinator_options {
    const char *model;
    const char *names[SERVED_NAMES_MAX];
    size_t n_names;
    const char *listen[RPC_LISTENERS_MAX]; /* for use without a launcher */
    size_t n_listen;
    const char *metrics_listen; /* NULL = off */
    int control_fd;             /* -1 = no launcher */
    uint32_t max_num_seqs, max_num_batched_tokens, max_model_len, max_queue, max_queue_tokens, max_queue_ms;
    uint32_t grpc_threads, shutdown_grace_ms, step_timeout_ms, slow_reader_ms, prefill_target_ms;
    uint32_t connections_max, speculative_tokens;
    uint32_t drafters; /* enum engine_drafts */
    bool prefix_cache;
    uint64_t seed;
    int log_level;
};

/* Strings stay argv's; ret->control_fd is set on failure too. Returns 0, 1 when --help or --version was answered, or a
 * negative errno with the sentence. */
int coordinator_options_parse(int argc, char **argv, struct coordinator_options *ret, struct error *e);
