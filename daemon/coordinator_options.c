/* coordinator_options.c - see coordinator_options.h. The launcher gives these flags; people use `shardd
 * serve`. */
#include "daemon/coordinator_options.h"

#include "daemon/engine/engine.h"

#include "base/limits.h"
#include "base/log.h"
#include "base/sizes.h"

#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOUR_MS 3600000u

enum {
    OPTION_MODEL = 256,
    OPTION_NAME,
    OPTION_LISTEN,
    OPTION_METRICS,
    OPTION_SEED,
    OPTION_LOG,
    OPTION_SPECULATION,
    OPTION_PREFIX_CACHE,
    OPTION_CONTROL,
    OPTION_HELP,
    OPTION_VERSION,
    OPTION_NUMBER /* and on: numbers[] */
};

static const struct number {
    const char *name;
    size_t target; /* offset of a uint32_t */
    uint32_t least, most, preset;
    const char *help;
} numbers[] = {
#define TARGET(field) offsetof(struct coordinator_options, field)
        {"max-num-seqs", TARGET(max_num_seqs), 1, SEQS_MAX, 64, "sequences that run at the same time"},
        {"max-num-batched-tokens", TARGET(max_num_batched_tokens), 0, STEP_ROWS_MAX, 0,
                "rows of one engine step; 0 = as many as the workers take"},
        {"max-model-len", TARGET(max_model_len), 0, CONTEXT_MAX, 0,
                "prompt and answer in tokens; 0 = what the workers allow"},
        {"max-queue", TARGET(max_queue), 1, LIVE_REQUESTS_MAX, 1024, "requests that may wait"},
        {"max-queue-tokens", TARGET(max_queue_tokens), 0, UINT32_MAX, 0,
                "prompt tokens of requests that may wait; 0 = no limit"},
        {"max-queue-time-ms", TARGET(max_queue_ms), 0, HOUR_MS, 0,
                "a request that has not begun by then is refused; 0 = no limit"},
        {"grpc-threads", TARGET(grpc_threads), 1, RPC_WORKERS_MAX, 2, "threads that talk to clients"},
        {"max-connections", TARGET(connections_max), 1, CONNECTIONS_MAX, CONNECTIONS_MAX,
                "client connections"},
        {"shutdown-grace-ms", TARGET(shutdown_grace_ms), 0, HOUR_MS, 30000,
                "how long running requests go on after SIGTERM"},
        {"step-timeout-ms", TARGET(step_timeout_ms), 0, HOUR_MS, 0,
                "a rank without progress for this long is stuck"},
        {"slow-reader-ms", TARGET(slow_reader_ms), 1, HOUR_MS, 20000,
                "a client that does not read for this long is cut off"},
        {"speculative-tokens", TARGET(speculative_tokens), 0, DRAFT_MAX, 0,
                "most drafts of a sequence in one step; 0 = none"},
        {"prefill-target-ms", TARGET(prefill_target_ms), 0, HOUR_MS, 500,
                "prompt rows of a step are limited to take this long; 0 = off"},
#undef TARGET
};
#define N_NUMBERS (sizeof(numbers) / sizeof(numbers[0]))

static void print_help(void) {
    printf("shardd-coordinator: the gRPC services and the scheduler of shardd. `shardd serve` starts it.\n\n"
           "  --model DIR              checkpoint folder\n"
           "  --served-model-name N    name that clients ask for; repeat for several\n"
           "  --control-fd N           control socket of the launcher\n"
           "  --listen ADDRESS         127.0.0.1:PORT, [::1]:PORT or unix:/path, without a launcher\n"
           "  --metrics-listen ADDRESS serve /metrics and /healthz over HTTP\n"
           "  --seed N                 of requests that bring none; 0 = drawn for each\n"
           "  --log-level LEVEL        error, warning, notice, info or debug\n"
           "  --speculation HOW        who makes drafts: auto, mtp, lookup or off\n"
           "  --prefix-cache on|off    what prompts begin with is kept (on)\n");
    for (size_t i = 0; i < N_NUMBERS; i++)
        printf("  --%-22s %s (%u)\n", numbers[i].name, numbers[i].help, numbers[i].preset);
}

static int parse_number(
        const char *name, const char *text, uint64_t least, uint64_t most, uint64_t *ret, struct error *e) {
    int r = count_parse(text, least, most, ret, e);
    return r < 0 ? error_prefix(e, r, "--%s", name) : 0;
}

static int take_number(struct coordinator_options *o, size_t i, const char *text, struct error *e) {
    uint64_t v = 0;
    int r = parse_number(numbers[i].name, text, numbers[i].least, numbers[i].most, &v, e);
    if (r == 0)
        *(uint32_t *)((char *)o + numbers[i].target) = (uint32_t)v;
    return r;
}

static int take_text(const char **list, size_t max, size_t *n, const char *text, struct error *e) {
    if (*n == max)
        return error_set(e, -E2BIG, "'%s' is one too many: at most %zu", text, max);
    list[(*n)++] = text;
    return 0;
}

static int take_speculation(struct coordinator_options *o, const char *text, struct error *e) {
    static const struct {
        const char *name;
        uint32_t drafters;
    } ways[] = {{"auto", ENGINE_DRAFTS_OF_MODEL | ENGINE_DRAFTS_OF_LOOKUP}, {"mtp", ENGINE_DRAFTS_OF_MODEL},
            {"lookup", ENGINE_DRAFTS_OF_LOOKUP}, {"off", 0}};
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        if (strcmp(text, ways[i].name) == 0) {
            o->drafters = ways[i].drafters;
            return 0;
        }
    }
    return error_set(e, -EINVAL, "--speculation %s: give auto, mtp, lookup or off", text);
}

static int take(struct coordinator_options *o, int option, const char *text, struct error *e) {
    uint64_t v = 0;
    int r = 0;
    switch (option) {
    case OPTION_MODEL:
        o->model = text;
        return 0;
    case OPTION_NAME:
        if (model_check_name(text, strlen(text), e) < 0)
            return -EINVAL;
        return take_text(o->names, SERVED_NAMES_MAX, &o->n_names, text, e);
    case OPTION_LISTEN:
        return take_text(o->listen, RPC_LISTENERS_MAX, &o->n_listen, text, e);
    case OPTION_METRICS:
        o->metrics_listen = text;
        return 0;
    case OPTION_SEED:
        return parse_number("seed", text, 0, UINT64_MAX, &o->seed, e);
    case OPTION_CONTROL:
        r = parse_number("control-fd", text, 3, 1023, &v, e);
        if (r == 0)
            o->control_fd = (int)v;
        return r;
    case OPTION_LOG:
        o->log_level = log_level_parse(text);
        return o->log_level < 0 ? error_set(e, -EINVAL,
                                          "--log-level %s: give error, warning, notice, info or debug", text)
                                : 0;
    case OPTION_SPECULATION:
        return take_speculation(o, text, e);
    case OPTION_PREFIX_CACHE:
        o->prefix_cache = strcmp(text, "on") == 0;
        return o->prefix_cache || strcmp(text, "off") == 0
                       ? 0
                       : error_set(e, -EINVAL, "--prefix-cache %s: give on or off", text);
    case OPTION_HELP:
        print_help();
        return 1;
    case OPTION_VERSION:
        printf("shardd-coordinator %s\n", SHARDD_VERSION);
        return 1;
    default:
        if (option >= OPTION_NUMBER)
            return take_number(o, (size_t)(option - OPTION_NUMBER), text, e);
        return error_set(e, -EINVAL, "unknown or incomplete option; --help lists them");
    }
}

#define FIXED_OPTIONS 11 /* before numbers[] */

int coordinator_options_parse(int argc, char **argv, struct coordinator_options *ret, struct error *e) {
    struct option table[FIXED_OPTIONS + N_NUMBERS + 1] = {
            {"model", required_argument, NULL, OPTION_MODEL},
            {"served-model-name", required_argument, NULL, OPTION_NAME},
            {"listen", required_argument, NULL, OPTION_LISTEN},
            {"metrics-listen", required_argument, NULL, OPTION_METRICS},
            {"seed", required_argument, NULL, OPTION_SEED},
            {"log-level", required_argument, NULL, OPTION_LOG},
            {"control-fd", required_argument, NULL, OPTION_CONTROL},
            {"speculation", required_argument, NULL, OPTION_SPECULATION},
            {"prefix-cache", required_argument, NULL, OPTION_PREFIX_CACHE},
            {"help", no_argument, NULL, OPTION_HELP},
            {"version", no_argument, NULL, OPTION_VERSION},
    };
    struct coordinator_options o = {.control_fd = -1,
            .prefix_cache = true,
            .log_level = LOG_LEVEL_INFO,
            .drafters = ENGINE_DRAFTS_OF_MODEL | ENGINE_DRAFTS_OF_LOOKUP};
    ret->control_fd = -1;
    for (size_t i = 0; i < N_NUMBERS; i++) {
        table[FIXED_OPTIONS + i] =
                (struct option){numbers[i].name, required_argument, NULL, OPTION_NUMBER + (int)i};
        *(uint32_t *)((char *)&o + numbers[i].target) = numbers[i].preset;
    }
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, "", table, NULL)) != -1;) {
        int r = take(&o, option, optarg, e);
        ret->control_fd = o.control_fd; /* for telling the launcher what is wrong */
        if (r < 0 && option == '?')
            return error_prefix(e, r, "%s", argv[optind - 1]);
        if (r != 0)
            return r;
    }
    if (optind < argc)
        return error_set(e, -EINVAL, "'%s' belongs to no option; --help lists them", argv[optind]);
    if (!o.model)
        return error_set(e, -EINVAL, "--model DIR is missing");
    if (o.control_fd < 0 && o.n_listen == 0)
        return error_set(e, -EINVAL, "nowhere to listen: give --listen, or --control-fd under a launcher");
    *ret = o;
    return 0;
}
