/* options.c - see options.h. */
#include "tp/bench/options.h"

#include "base/sizes.h"
#include "tp/load/dummy_form.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const char bench_help[] =
        "shardd-worker-... bench: how fast this machine runs a model, step by step, without a service.\n"
        "`shardd bench --help` has the same options, and chooses the worker.\n"
        "\n"
        "  --prompt N,...          prompts to process, in tokens (default 512; 0: none)\n"
        "  --decode N              tokens to generate (default 128; 0: none)\n"
        "  --depth N,...           tokens that a sequence holds already (default 0)\n"
        "  --batch N,...           sequences that decode together (default 1)\n"
        "  --drafts N,...          guesses that each step of a sequence verifies, up to 15 (default 0): what a\n"
        "                          round of 1 + N rows costs; with 0 in the list also against a step without\n"
        "  --acceptance PART       of these guesses, so many are made right (default 0): from 0 to 1, e.g. 0.8\n"
        "  --mtp on|off            run the MTP layer in every step, and let it make the guesses of each next round\n"
        "                          (default off)\n"
        "  --repeat N              measurements of each test (default 5)\n"
        "  --json FILE             all figures as JSON; -: on stdout, and the table on stderr\n"
        "  --speed-memory SIZE     that the memory's speed is measured over (default 1GiB; 0: not measured)\n"
        "  --weights bf16|int4|int8|fp8, --lm-head bf16|int4|int8|fp8, --group-size N (128)\n"
        "                          of dummy weights; default as config.json says\n"
        "\n"
        "and --model, --load-format, --packed-cache, --tensor-parallel-size, --devices, --threads, --isa,\n"
        "--draft-vocab, --activations, --numerics, --max-num-batched-tokens, --kv-cache-dtype, --kv-cache-memory,\n"
        "--recurrent-state-dtype, --temperature, --top-k, --top-p, --min-p, --seed, --enforce-eager, --log-level as\n"
        "without `bench`.\n";

static const char *const own[] = {"--prompt", "--decode", "--depth", "--batch", "--drafts", "--acceptance",
        "--repeat", "--json", "--speed-memory", "--weights", "--lm-head", "--group-size"};
enum own_flag {
    PROMPT,
    DECODE,
    DEPTH,
    BATCH,
    DRAFTS,
    ACCEPTANCE,
    REPEAT,
    JSON,
    SPEED_MEMORY,
    WEIGHTS,
    LM_HEAD,
    GROUP_SIZE,
    OWN
};

/* "512,2048" into a list; zeros are left out where they mean none. */
static int parse_list(const char *flag, const char *text, uint32_t min, uint32_t max, struct bench_list *ret,
        struct error *e) {
    *ret = (struct bench_list){0};
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        const unsigned long v = strtoul(at, &end, 10);
        if (*at < '0' || *at > '9' || errno || v > max || v < min || (*end && *end != ','))
            return error_set(e, -EINVAL, "%s '%.64s': numbers from %u to %u with commas between are expected",
                    flag, text, min, max);
        if (ret->n == BENCH_LIST_MAX)
            return error_set(e, -EINVAL, "%s: more than %u numbers", flag, BENCH_LIST_MAX);
        ret->at[ret->n++] = (uint32_t)v;
        at = end;
        if (!*at)
            return 0;
    }
}

static int ascending(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void sort(struct bench_list *l) {
    qsort(l->at, l->n, sizeof(l->at[0]), ascending);
}

static void drop_zeros(struct bench_list *l) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < l->n; i++)
        if (l->at[i])
            l->at[n++] = l->at[i];
    l->n = n;
}

static int parse_form(const char *flag, const char *text, struct quant_matrix *form,
        const struct quant_matrix **ret, struct error *e) {
    static const char *const names[] = {"int4", "int8", "fp8"}; /* as enum quant_format */
    if (strcmp(text, "bf16") == 0) {
        *ret = &dummy_dense;
        return 0;
    }
    for (uint32_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) != 0)
            continue;
        form->format = (enum quant_format)i;
        form->label = names[i];
        *ret = form;
        return 0;
    }
    return error_set(e, -EINVAL, "%s '%.64s': bf16, int4, int8 or fp8 is expected", flag, text);
}

static int parse_number(
        const char *flag, const char *text, uint32_t min, uint32_t max, uint32_t *ret, struct error *e) {
    int r = count_parse_u32(text, min, max, ret, e);
    return r < 0 ? error_prefix(e, r, "%s", flag) : 0;
}

/* "0.8" as 800. */
static int parse_acceptance(const char *flag, const char *text, uint32_t *ret, struct error *e) {
    char *end;
    const double part = strtod(text, &end);
    if (end == text || *end || !(part >= 0 && part <= 1))
        return error_set(e, -EINVAL, "%s '%.64s': a number from 0 to 1 is expected", flag, text);
    *ret = (uint32_t)(1000 * part + 0.5);
    return 0;
}

static int set_own(struct bench_options *o, enum own_flag flag, const char *text, struct error *e) {
    const char *name = own[flag];
    int r;
    switch (flag) {
    case PROMPT:
        r = parse_list(name, text, 0, CONTEXT_MAX, &o->prompts, e);
        drop_zeros(&o->prompts);
        return r;
    case DEPTH:
        r = parse_list(name, text, 0, CONTEXT_MAX, &o->depths, e);
        sort(&o->depths);
        return r;
    case BATCH:
        return parse_list(name, text, 1, SEQS_MAX - 1, &o->batches, e);
    case DRAFTS:
        r = parse_list(name, text, 0, DRAFT_MAX, &o->drafts, e);
        sort(&o->drafts);
        return r;
    case DECODE:
        return parse_number(name, text, 0, CONTEXT_MAX, &o->decode, e);
    case ACCEPTANCE:
        return parse_acceptance(name, text, &o->acceptance, e);
    case REPEAT:
        return parse_number(name, text, 1, BENCH_REPEAT_MAX, &o->repeat, e);
    case JSON:
        o->json = text;
        return 0;
    case SPEED_MEMORY:
        r = size_parse(text, 0, UINT64_MAX, &o->memory_bytes, e);
        return r < 0 ? error_prefix(e, r, "%s", name) : 0;
    case WEIGHTS:
        return parse_form(name, text, &o->weights_form, &o->weights, e);
    case LM_HEAD:
        return parse_form(name, text, &o->head_form, &o->head, e);
    case GROUP_SIZE:
        r = parse_number(name, text, 16, MODEL_DIM_MAX, &o->weights_form.group, e);
        o->head_form.group = o->weights_form.group;
        return r == 0 && o->weights_form.group % 16 != 0
                       ? error_set(e, -EINVAL, "%s: groups are multiples of 16 columns", name)
                       : r;
    case OWN:
        break;
    }
    return -EINVAL;
}

/* The flag of ours that a word is, with its value behind '=' or NULL; OWN = none. */
static enum own_flag own_flag_of(const char *word, const char **ret_value) {
    const size_t n = strcspn(word, "=");
    *ret_value = word[n] == '=' ? word + n + 1 : NULL;
    for (uint32_t i = 0; i < OWN; i++)
        if (strlen(own[i]) == n && strncmp(own[i], word, n) == 0)
            return (enum own_flag)i;
    return OWN;
}

static int check(const struct bench_options *o, struct error *e) {
    if (o->worker.help || o->worker.probe)
        return 0;
    if (o->prompts.n == 0 && o->decode == 0)
        return error_set(e, -EINVAL, "--prompt 0 and --decode 0 leave nothing to measure");
    if ((o->weights || o->head) && !o->worker.rank.dummy)
        return error_set(e, -EINVAL, "%s is for dummy weights: add --load-format dummy, or drop it",
                o->weights ? "--weights" : "--lm-head");
    if (o->worker.n_ranks != o->worker.rank.tp)
        return error_set(e, -EINVAL, "bench runs all ranks in this process; leave out --ranks");
    return 0;
}

int bench_options_parse(int argc, char **argv, struct bench_options *ret, struct error *e) {
    const struct quant_matrix form = {.scale = QUANT_SCALE_BF16, .group = 128};
    char **rest = calloc((size_t)argc + 1, sizeof(rest[0]));
    int n = 0, r = 0;
    *ret = (struct bench_options){.prompts = {{512}, 1},
            .depths = {{0}, 1},
            .batches = {{1}, 1},
            .drafts = {{0}, 1},
            .decode = 128,
            .repeat = 5,
            .memory_bytes = 1ull << 30,
            .weights_form = form,
            .head_form = form};
    if (!rest)
        return error_set(e, -ENOMEM, "out of memory for the command line");
    rest[n++] = argv[0];
    for (int i = 2; i < argc && r == 0; i++) {
        const char *value;
        const enum own_flag flag = own_flag_of(argv[i], &value);
        if (flag == OWN) {
            rest[n++] = argv[i];
            continue;
        }
        if (!value && i + 1 < argc)
            value = argv[++i];
        r = value ? set_own(ret, flag, value, e)
                  : error_set(e, -EINVAL, "%s: its value is missing", own[flag]);
    }
    if (r == 0)
        r = worker_options_read(n, rest, &ret->worker, e);
    free(rest);
    return r < 0 ? r : check(ret, e);
}

void bench_options_done(struct bench_options *o) {
    worker_options_done(&o->worker);
}
