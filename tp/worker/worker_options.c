/* worker_options.c - see worker_options.h. */
#include "tp/worker/worker_options.h"

#include "base/log.h"
#include "base/sizes.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE_MAX 63u /* as many as --probe tells of */

const char worker_help[] =
        "shardd-worker-cpu: holds one or several ranks of a model and computes what the coordinator plans.\n"
        "Started by `shardd serve`; by hand, --generate-ids runs a model without a service:\n"
        "\n"
        "  shardd-worker-cpu --model DIR --generate-ids 1,2,3 --max-tokens 20\n"
        "  shardd-worker-cpu --model DIR --generate-ids 1,2,3 --tensor-parallel-size 4 --temperature 0.8 --seed 7\n"
        "\n"
        "model and memory\n"
        "  --model DIR                  Hugging Face folder (config.json and *.safetensors), or a GGUF file\n"
        "  --load-format auto|safetensors|packed|dummy   packed: from a file of packed weights, which is made if it\n"
        "                               is not there; auto: from one if it is there; safetensors: never from one;\n"
        "                               dummy: seeded random weights of config.json's sizes, which are not the same\n"
        "                               at another --tensor-parallel-size\n"
        "  --packed-cache DIR           where packed files are kept; default beside the model, else the user's cache\n"
        "  --verify-weights             compare all checksums of the packed file first\n"
        "  --activations int8|bf16|float   what INT4 and INT8 weights are multiplied with (default int8)\n"
        "  --numerics exact|fast        fast: a GPU rounds to bf16 what BF16 and FP8 weights are multiplied with;\n"
        "                               prompts of BF16 weights by cuBLASLt, if it is there: their last bits then\n"
        "                               depend on how many tokens are read together\n"
        "  --all-reduce auto|nccl|oneshot|staged   how GPUs add what each has: auto: the fastest that works; nccl: by\n"
        "                               libnccl.so.2; oneshot: into each other's memory; staged: through the host's\n"
        "  --seed N                     of dummy weights, and of sampling with --generate-ids\n"
        "  --max-model-len N            longest sequence in tokens; 0 = the model's own\n"
        "  --max-num-seqs N             sequences that run at the same time (default 64)\n"
        "  --max-num-batched-tokens N   rows of one step; 0 = 512 on a CPU, 2048 on a GPU, fewer where they would\n"
        "                               take more than an eighth of the memory that weights leave\n"
        "  --kv-cache-dtype auto|bf16|fp32|int8   auto: fp32 when the checkpoint is fp32, else bf16\n"
        "  --recurrent-state-dtype fp32|fp16   what a sequence's recurrent state is kept as (default fp32)\n"
        "  --kv-cache-memory SIZE       of each rank for KV pages and states, such as 8GiB or 500MB, or a part of the\n"
        "                               free memory, such as 0.5; 0 = half of it\n"
        "  --prefix-cache on|off        host memory for the states after prefixes of prompts (default off)\n"
        "  --prefix-cache-memory SIZE   of each rank for them, or a part of what is free; 0: chosen for you\n"
        "  --prefix-cache-dir DIR       files of the ranks with what the prefix cache keeps over a restart\n"
        "  --prefix-cache-disk SIZE     of all of them (default 32GiB); made anew where it is another\n"
        "  --slot-units N, --page-units N   host memory units for states and pages, exactly so many (default 0)\n"
        "  --drafts-max N               tokens of a sequence that a step may guess and verify, up to 15 (default 0):\n"
        "                               each makes the state of a sequence some percent larger\n"
        "  --mtp on|off                 load the model's MTP layer and run it in every step, so that it can make\n"
        "                               those guesses (default off)\n"
        "  --draft-vocab FILE           it guesses among the ids of this file alone, an id a line, the most frequent\n"
        "                               first: less to multiply for each guess\n"
        "\n"
        "ranks\n"
        "  --tensor-parallel-size N     ranks of the group: 1, 2, 4 or 8\n"
        "  --ranks LIST                 those in this process, e.g. 0 or 0,1 (default: all)\n"
        "  --devices LIST               a GPU for each rank of the group, e.g. 0,1 as --probe counts them (default:\n"
        "                               rank 0 takes GPU 0, rank 1 takes GPU 1, ...); 0,0: two ranks share one\n"
        "  --threads N                  of each rank; 0 = the cores divided by the ranks\n"
        "  --isa avx512|avx2|plain      instruction set; default the best there is. Same results on all\n"
        "  --numa-bind node|core|off    node: the thread of a rank stays on the cores near its GPU; core: and on one\n"
        "                               of them once the model is loaded; off: where the system puts it\n"
        "  --enforce-eager              queue each operation instead of replaying recorded layers\n"
        "\n"
        "from the launcher\n"
        "  --control-fd N, --comm-fd N  its socket, and shared memory of the group: an empty memfd that every rank\n"
        "                               sizes alike\n"
        "  --keeper-fd N                socket to the keeper of this worker's weights\n"
        "  --keeper                     be one: hold the memory of a worker's weights and compute nothing\n"
        "  --log-level error|warning|notice|info|debug\n"
        "\n"
        "without a service\n"
        "  --plan SIZE                  prints what a rank would take of so much memory, and loads nothing: one JSON\n"
        "                               object, for `shardd doctor`\n"
        "  --generate-ids ID,ID,...     prints the ids that follow, with their log probabilities\n"
        "  --max-tokens N (16), --temperature X (0), --top-k N, --top-p X, --min-p X\n"
        "  --probe[=LIST]               prints what this program finds on this machine as one line of JSON; opens\n"
        "                               only the GPUs of the list, such as 0,GPU-8c25\n";

enum flag {
    FLAG_MODEL = 256,
    FLAG_RANKS,
    FLAG_TP,
    FLAG_DEVICES,
    FLAG_THREADS,
    FLAG_ISA,
    FLAG_MAX_MODEL_LEN,
    FLAG_MAX_NUM_SEQS,
    FLAG_MAX_NUM_BATCHED_TOKENS,
    FLAG_KV_CACHE_DTYPE,
    FLAG_KV_CACHE_MEMORY,
    FLAG_RECURRENT_STATE_DTYPE,
    FLAG_PREFIX_CACHE,
    FLAG_PREFIX_CACHE_MEMORY,
    FLAG_PREFIX_CACHE_DIR,
    FLAG_PREFIX_CACHE_DISK,
    FLAG_SLOT_UNITS,
    FLAG_PAGE_UNITS,
    FLAG_DRAFTS_MAX,
    FLAG_MTP,
    FLAG_DRAFT_VOCAB,
    FLAG_LOAD_FORMAT,
    FLAG_PACKED_CACHE,
    FLAG_VERIFY_WEIGHTS,
    FLAG_ACTIVATIONS,
    FLAG_NUMERICS,
    FLAG_ALL_REDUCE,
    FLAG_SEED,
    FLAG_NUMA_BIND,
    FLAG_ENFORCE_EAGER,
    FLAG_CONTROL_FD,
    FLAG_COMM_FD,
    FLAG_KEEPER_FD,
    FLAG_KEEPER,
    FLAG_LOG_LEVEL,
    FLAG_PLAN,
    FLAG_GENERATE_IDS,
    FLAG_MAX_TOKENS,
    FLAG_TEMPERATURE,
    FLAG_TOP_K,
    FLAG_TOP_P,
    FLAG_MIN_P,
    FLAG_PROBE,
    FLAG_HELP,
};

static const struct option flags[] = {
        {"model", required_argument, NULL, FLAG_MODEL},
        {"ranks", required_argument, NULL, FLAG_RANKS},
        {"tensor-parallel-size", required_argument, NULL, FLAG_TP},
        {"devices", required_argument, NULL, FLAG_DEVICES},
        {"threads", required_argument, NULL, FLAG_THREADS},
        {"isa", required_argument, NULL, FLAG_ISA},
        {"max-model-len", required_argument, NULL, FLAG_MAX_MODEL_LEN},
        {"max-num-seqs", required_argument, NULL, FLAG_MAX_NUM_SEQS},
        {"max-num-batched-tokens", required_argument, NULL, FLAG_MAX_NUM_BATCHED_TOKENS},
        {"kv-cache-dtype", required_argument, NULL, FLAG_KV_CACHE_DTYPE},
        {"kv-cache-memory", required_argument, NULL, FLAG_KV_CACHE_MEMORY},
        {"recurrent-state-dtype", required_argument, NULL, FLAG_RECURRENT_STATE_DTYPE},
        {"prefix-cache", required_argument, NULL, FLAG_PREFIX_CACHE},
        {"prefix-cache-memory", required_argument, NULL, FLAG_PREFIX_CACHE_MEMORY},
        {"prefix-cache-dir", required_argument, NULL, FLAG_PREFIX_CACHE_DIR},
        {"prefix-cache-disk", required_argument, NULL, FLAG_PREFIX_CACHE_DISK},
        {"slot-units", required_argument, NULL, FLAG_SLOT_UNITS},
        {"page-units", required_argument, NULL, FLAG_PAGE_UNITS},
        {"drafts-max", required_argument, NULL, FLAG_DRAFTS_MAX},
        {"mtp", required_argument, NULL, FLAG_MTP},
        {"draft-vocab", required_argument, NULL, FLAG_DRAFT_VOCAB},
        {"load-format", required_argument, NULL, FLAG_LOAD_FORMAT},
        {"packed-cache", required_argument, NULL, FLAG_PACKED_CACHE},
        {"verify-weights", no_argument, NULL, FLAG_VERIFY_WEIGHTS},
        {"activations", required_argument, NULL, FLAG_ACTIVATIONS},
        {"numerics", required_argument, NULL, FLAG_NUMERICS},
        {"all-reduce", required_argument, NULL, FLAG_ALL_REDUCE},
        {"seed", required_argument, NULL, FLAG_SEED},
        {"numa-bind", required_argument, NULL, FLAG_NUMA_BIND},
        {"enforce-eager", no_argument, NULL, FLAG_ENFORCE_EAGER},
        {"control-fd", required_argument, NULL, FLAG_CONTROL_FD},
        {"comm-fd", required_argument, NULL, FLAG_COMM_FD},
        {"keeper-fd", required_argument, NULL, FLAG_KEEPER_FD},
        {"keeper", no_argument, NULL, FLAG_KEEPER},
        {"log-level", required_argument, NULL, FLAG_LOG_LEVEL},
        {"plan", required_argument, NULL, FLAG_PLAN},
        {"generate-ids", required_argument, NULL, FLAG_GENERATE_IDS},
        {"max-tokens", required_argument, NULL, FLAG_MAX_TOKENS},
        {"temperature", required_argument, NULL, FLAG_TEMPERATURE},
        {"top-k", required_argument, NULL, FLAG_TOP_K},
        {"top-p", required_argument, NULL, FLAG_TOP_P},
        {"min-p", required_argument, NULL, FLAG_MIN_P},
        {"probe", optional_argument, NULL, FLAG_PROBE},
        {"help", no_argument, NULL, FLAG_HELP},
        {NULL, 0, NULL, 0},
};

static const char *name_of(int flag) {
    for (const struct option *o = flags; o->name; o++)
        if (o->val == flag)
            return o->name;
    return "?";
}

static int parse_u64(int flag, const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct error *e) {
    int r = count_parse(text, min, max, ret, e);
    return r < 0 ? error_prefix(e, r, "--%s", name_of(flag)) : 0;
}

static int parse_u32(int flag, const char *text, uint32_t min, uint32_t max, uint32_t *ret, struct error *e) {
    int r = count_parse_u32(text, min, max, ret, e);
    return r < 0 ? error_prefix(e, r, "--%s", name_of(flag)) : 0;
}

static int parse_real(int flag, const char *text, double low, double high, double *ret, struct error *e) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= low && v <= high))
        return error_set(
                e, -EINVAL, "--%s '%s': a number from %g to %g is expected", name_of(flag), text, low, high);
    *ret = v;
    return 0;
}

static int parse_float(int flag, const char *text, double low, double high, float *ret, struct error *e) {
    double v = 0;
    int r = parse_real(flag, text, low, high, &v, e);
    if (r == 0)
        *ret = (float)v;
    return r;
}

/* "1,2,3" into at most max numbers. */
static int parse_list(int flag, const char *text, uint32_t max_value, uint32_t max, uint32_t *list,
        uint32_t *ret_n, struct error *e) {
    uint32_t n = 0;
    for (const char *p = text;; p++) {
        char *end;
        errno = 0;
        unsigned long long v = strtoull(p, &end, 10);
        if (errno || end == p || *p == '-' || v > max_value || (*end && *end != ','))
            return error_set(e, -EINVAL, "--%s '%s': numbers from 0 to %u with commas between are expected",
                    name_of(flag), text, max_value);
        if (n == max)
            return error_set(e, -EINVAL, "--%s: more than %u numbers", name_of(flag), max);
        list[n++] = (uint32_t)v;
        p = end;
        if (!*p)
            break;
    }
    *ret_n = n;
    return 0;
}

static int parse_kv_dtype(const char *text, enum rank_kv_dtype *ret, struct error *e) {
    if (strcmp(text, "auto") == 0)
        *ret = RANK_KV_AUTO;
    else if (strcmp(text, "bf16") == 0)
        *ret = RANK_KV_BF16;
    else if (strcmp(text, "fp32") == 0 || strcmp(text, "f32") == 0)
        *ret = RANK_KV_F32;
    else if (strcmp(text, "int8") == 0)
        *ret = RANK_KV_INT8;
    else
        return error_set(
                e, -EINVAL, "--kv-cache-dtype '%s': this worker has auto, bf16, fp32 and int8", text);
    return 0;
}

static int parse_state_dtype(const char *text, enum k_dtype *ret, struct error *e) {
    if (strcmp(text, "fp32") == 0)
        *ret = K_F32;
    else if (strcmp(text, "fp16") == 0)
        *ret = K_F16;
    else
        return error_set(e, -EINVAL, "--recurrent-state-dtype '%s': this worker has fp32 and fp16", text);
    return 0;
}

/* 0 leaves the choice to the rank. */
static int parse_memory(int flag, const char *text, uint64_t *ret_bytes, double *ret_part, struct error *e) {
    int r = size_or_part_parse(text, UINT64_MAX, ret_bytes, ret_part, e);
    return r < 0 ? error_prefix(e, r, "--%s", name_of(flag)) : 0;
}

static int parse_bytes(int flag, const char *text, uint64_t *ret, struct error *e) {
    int r = size_parse(text, 1, INT64_MAX, ret, e);
    return r < 0 ? error_prefix(e, r, "--%s", name_of(flag)) : 0;
}

static int parse_generate(struct worker_options *o, const char *text, struct error *e) {
    free(o->prompt);
    o->prompt = calloc(WORKER_PROMPT_MAX, sizeof(o->prompt[0]));
    if (!o->prompt)
        return error_set(e, -ENOMEM, "out of memory for the prompt");
    return parse_list(FLAG_GENERATE_IDS, text, UINT32_MAX - 1, WORKER_PROMPT_MAX, o->prompt, &o->n_prompt, e);
}

static int parse_load_format(const char *text, struct rank_options *o, struct error *e) {
    static const struct {
        const char *name;
        bool dummy;
        enum rank_packed packed;
    } formats[] = {{"auto", false, RANK_PACKED_AUTO}, {"safetensors", false, RANK_PACKED_NEVER},
            {"packed", false, RANK_PACKED_MAKE}, {"dummy", true, RANK_PACKED_NEVER}};
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        if (strcmp(text, formats[i].name) != 0)
            continue;
        o->dummy = formats[i].dummy;
        o->packed = formats[i].packed;
        return 0;
    }
    return error_set(e, -EINVAL, "--load-format '%s': auto, safetensors, packed or dummy is expected", text);
}

static int parse_activations(const char *text, enum k_activations *ret, struct error *e) {
    static const char *const names[] = {
            [K_ACTIVATIONS_INT8] = "int8", [K_ACTIVATIONS_BF16] = "bf16", [K_ACTIVATIONS_FLOAT] = "float"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) != 0)
            continue;
        *ret = (enum k_activations)i;
        return 0;
    }
    return error_set(e, -EINVAL, "--activations '%s': int8, bf16 or float is expected", text);
}

static int parse_bind(const char *text, enum cores_bind *ret, struct error *e) {
    static const char *const names[] = {[CORES_NODE] = "node", [CORES_CORE] = "core", [CORES_OFF] = "off"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) != 0)
            continue;
        *ret = (enum cores_bind)i;
        return 0;
    }
    return error_set(e, -EINVAL, "--numa-bind '%s': node, core or off is expected", text);
}

static int parse_switch(int flag, const char *text, bool *ret, struct error *e) {
    *ret = strcmp(text, "on") == 0;
    if (!*ret && strcmp(text, "off") != 0)
        return error_set(e, -EINVAL, "--%s '%s': on or off is expected", name_of(flag), text);
    return 0;
}

static int parse_numerics(const char *text, bool *ret_fast, struct error *e) {
    *ret_fast = strcmp(text, "fast") == 0;
    if (!*ret_fast && strcmp(text, "exact") != 0)
        return error_set(e, -EINVAL, "--numerics '%s': exact or fast is expected", text);
    return 0;
}

static int parse_all_reduce(const char *text, enum k_all_reduce *ret, struct error *e) {
    static const char *const names[] = {[K_ALL_REDUCE_AUTO] = "auto",
            [K_ALL_REDUCE_NCCL] = "nccl",
            [K_ALL_REDUCE_ONESHOT] = "oneshot",
            [K_ALL_REDUCE_STAGED] = "staged"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) != 0)
            continue;
        *ret = (enum k_all_reduce)i;
        return 0;
    }
    return error_set(e, -EINVAL, "--all-reduce '%s': auto, nccl, oneshot or staged is expected", text);
}

static int parse_model_flag(struct worker_options *o, int flag, char *text, struct error *e) {
    struct rank_options *r = &o->rank;
    switch (flag) {
    case FLAG_MODEL:
        r->model_dir = text;
        return 0;
    case FLAG_ISA:
        r->isa = text;
        return 0;
    case FLAG_MAX_MODEL_LEN:
        return parse_u32(flag, text, 0, CONTEXT_MAX, &r->max_model_len, e);
    case FLAG_MAX_NUM_SEQS:
        return parse_u32(flag, text, 1, SEQS_MAX, &r->max_num_seqs, e);
    case FLAG_MAX_NUM_BATCHED_TOKENS:
        return parse_u32(flag, text, 0, STEP_ROWS_MAX, &r->max_num_batched_tokens, e);
    case FLAG_KV_CACHE_DTYPE:
        return parse_kv_dtype(text, &r->kv_dtype, e);
    case FLAG_RECURRENT_STATE_DTYPE:
        return parse_state_dtype(text, &r->state_dtype, e);
    case FLAG_KV_CACHE_MEMORY:
        return parse_memory(flag, text, &r->kv_cache_bytes, &r->kv_cache_fraction, e);
    case FLAG_PREFIX_CACHE:
        return parse_switch(flag, text, &r->prefix_cache, e);
    case FLAG_PREFIX_CACHE_MEMORY:
        return parse_memory(flag, text, &r->prefix_bytes, &r->prefix_fraction, e);
    case FLAG_PREFIX_CACHE_DIR:
        r->prefix_dir = text;
        return 0;
    case FLAG_PREFIX_CACHE_DISK:
        return parse_bytes(flag, text, &r->prefix_disk_bytes, e);
    case FLAG_SLOT_UNITS:
        return parse_u32(flag, text, 0, 65536, &r->slot_units, e);
    case FLAG_PAGE_UNITS:
        return parse_u32(flag, text, 0, 1u << 24, &r->page_units, e);
    case FLAG_DRAFTS_MAX:
        return parse_u32(flag, text, 0, DRAFT_MAX, &r->drafts_max, e);
    case FLAG_MTP:
        return parse_switch(flag, text, &r->mtp, e);
    case FLAG_DRAFT_VOCAB:
        r->draft_vocab = text;
        return 0;
    case FLAG_LOAD_FORMAT:
        return parse_load_format(text, r, e);
    case FLAG_PACKED_CACHE:
        r->packed_cache = text;
        return 0;
    case FLAG_VERIFY_WEIGHTS:
        r->verify_packed = true;
        return 0;
    case FLAG_ACTIVATIONS:
        return parse_activations(text, &r->activations, e);
    case FLAG_NUMERICS:
        return parse_numerics(text, &r->fast, e);
    case FLAG_ALL_REDUCE:
        return parse_all_reduce(text, &r->all_reduce, e);
    case FLAG_SEED:
        return parse_u64(flag, text, 0, UINT64_MAX, &r->seed, e);
    case FLAG_NUMA_BIND:
        return parse_bind(text, &r->bind, e);
    case FLAG_ENFORCE_EAGER:
        r->eager = true;
        return 0;
    default:
        return -ENOENT;
    }
}

static int parse_flag(struct worker_options *o, int flag, char *text, struct error *e) {
    switch (flag) {
    case FLAG_RANKS:
        return parse_list(flag, text, RANKS_MAX - 1, RANKS_MAX, o->ranks, &o->n_ranks, e);
    case FLAG_TP:
        return parse_u32(flag, text, 1, RANKS_MAX, &o->rank.tp, e);
    case FLAG_DEVICES:
        return parse_list(flag, text, DEVICE_MAX, RANKS_MAX, o->rank.devices, &o->n_devices, e);
    case FLAG_THREADS:
        return parse_u32(flag, text, 0, 1024, &o->rank.threads, e);
    case FLAG_CONTROL_FD:
        return parse_u32(flag, text, 3, 1023, (uint32_t *)&o->control_fd, e);
    case FLAG_COMM_FD:
        return parse_u32(flag, text, 3, 1023, (uint32_t *)&o->comm_fd, e);
    case FLAG_KEEPER_FD:
        return parse_u32(flag, text, 3, 1023, (uint32_t *)&o->keeper_fd, e);
    case FLAG_KEEPER:
        o->keeper = true;
        return 0;
    case FLAG_LOG_LEVEL:
        o->log_level = log_level_parse(text);
        return o->log_level < 0 ? error_set(e, -EINVAL, "--log-level '%s' is not a level", text) : 0;
    case FLAG_PLAN:
        return parse_bytes(flag, text, &o->rank.memory_bytes, e);
    case FLAG_GENERATE_IDS:
        return parse_generate(o, text, e);
    case FLAG_MAX_TOKENS:
        return parse_u32(flag, text, 1, NEW_TOKENS_MAX, &o->max_tokens, e);
    case FLAG_TEMPERATURE:
        return parse_float(flag, text, 0, 100, &o->temperature, e);
    case FLAG_TOP_K:
        return parse_u32(flag, text, 0, UINT32_MAX, &o->top_k, e);
    case FLAG_TOP_P:
        return parse_float(flag, text, 1e-6, 1, &o->top_p, e);
    case FLAG_MIN_P:
        return parse_float(flag, text, 0, 1, &o->min_p, e);
    case FLAG_PROBE:
        o->probe = true;
        o->probe_list = text;
        return 0;
    case FLAG_HELP:
        o->help = true;
        return 0;
    default:
        return parse_model_flag(o, flag, text, e);
    }
}

static int check_devices(struct worker_options *o, struct error *e) {
    if (o->n_devices && o->n_devices != o->rank.tp)
        return error_set(e, -EINVAL,
                "--devices names %u GPUs, --tensor-parallel-size is %u: one for each rank", o->n_devices,
                o->rank.tp);
    for (uint32_t i = 0; i < o->rank.tp && !o->n_devices; i++)
        o->rank.devices[i] = i;
    return 0;
}

static int check_ranks(struct worker_options *o, struct error *e) {
    if (o->n_ranks == 0)
        for (uint32_t i = 0; i < o->rank.tp; i++)
            o->ranks[o->n_ranks++] = i;
    for (uint32_t i = 0; i < o->n_ranks; i++) {
        if (o->ranks[i] >= o->rank.tp)
            return error_set(e, -EINVAL, "--ranks: rank %u is not below --tensor-parallel-size %u",
                    o->ranks[i], o->rank.tp);
        for (uint32_t j = 0; j < i; j++)
            if (o->ranks[j] == o->ranks[i])
                return error_set(e, -EINVAL, "--ranks: rank %u is there twice", o->ranks[i]);
    }
    return 0;
}

static int check(struct worker_options *o, struct error *e) {
    if (o->help || o->probe || o->keeper)
        return 0;
    if (!o->rank.model_dir)
        return error_set(e, -EINVAL, "--model DIR is missing: the folder of a Hugging Face checkpoint");
    int r = check_devices(o, e);
    return r < 0 ? r : check_ranks(o, e);
}

/* What it takes to serve, or to generate. */
static int check_run(const struct worker_options *o, struct error *e) {
    if (o->help || o->probe || worker_only_plans(o))
        return 0;
    if (o->keeper)
        return o->control_fd >= 0
                       ? 0
                       : error_set(e, -EINVAL, "--keeper is for `shardd serve`, which gives a --control-fd");
    if (o->prompt && o->n_ranks != o->rank.tp)
        return error_set(e, -EINVAL, "--generate-ids runs all ranks in this process; leave out --ranks");
    if (!o->prompt && o->control_fd < 0)
        return error_set(e, -EINVAL,
                "this program is started by `shardd serve`; to run it by hand, add --generate-ids "
                "ID,ID,... (see --help)");
    if (!o->prompt && o->n_ranks < o->rank.tp && o->comm_fd < 0)
        return error_set(e, -EINVAL, "--comm-fd is missing: %u of %u ranks are elsewhere",
                o->rank.tp - o->n_ranks, o->rank.tp);
    return 0;
}

int worker_options_read(int argc, char **argv, struct worker_options *ret, struct error *e) {
    *ret = (struct worker_options){.rank = {.tp = 1},
            .control_fd = -1,
            .comm_fd = -1,
            .keeper_fd = -1,
            .log_level = LOG_LEVEL_INFO,
            .max_tokens = 16,
            .top_p = 1};
    opterr = 0;
    optind = 1;
    for (;;) {
        int flag = getopt_long(argc, argv, "", flags, NULL);
        if (flag == -1)
            break;
        if (flag == '?' || flag == ':')
            return error_set(
                    e, -EINVAL, "'%s': unknown flag, or its value is missing (see --help)", argv[optind - 1]);
        int r = parse_flag(ret, flag, optarg, e);
        if (r < 0)
            return r;
    }
    if (optind < argc)
        return error_set(e, -EINVAL, "'%s' is no flag (see --help)", argv[optind]);
    return check(ret, e);
}

int worker_options_parse(int argc, char **argv, struct worker_options *ret, struct error *e) {
    int r = worker_options_read(argc, argv, ret, e);
    return r < 0 ? r : check_run(ret, e);
}

void worker_options_done(struct worker_options *o) {
    free(o->prompt);
    o->prompt = NULL;
}
