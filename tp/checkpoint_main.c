/* checkpoint_main.c - shardd-checkpoint: looks at checkpoints and makes them. `shardd inspect`, `synth`, `quantize` and
 * `pack` run it. Exit status: 0 done (inspect: and it fits), 1 it failed or does not fit, 2 wrong usage. */
#include "tp/synth/synth.h"
#include "tp/tools/arguments.h"
#include "tp/tools/inspect.h"
#include "tp/tools/pack_verb.h"
#include "tp/tools/quantize_verb.h"

#include "base/file.h"
#include "base/sizes.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EXIT_OK     0
#define EXIT_FAILED 1
#define EXIT_USAGE  2

#define INSPECT_LEN_DEFAULT  8192u
#define INSPECT_SEQS_DEFAULT 8u

static const char USAGE[] =
        "usage: shardd inspect DIR [options]    what a checkpoint is, its size per rank, whether it fits\n"
        "       shardd synth DIR [options]      write a checkpoint with random weights\n"
        "       shardd quantize SRC DST [options]   make a checkpoint with 4 or 8 bit weights\n"
        "       shardd pack DIR [options]       make its packed file, for fast starts\n"
        "\n"
        "`shardd inspect --help` and so on show the options.\n"
        "Exit status: 0 done, 1 failed or does not fit, 2 wrong usage.\n";

static const char INSPECT_HELP[] =
        "usage: shardd inspect DIR [options]\n"
        "\n"
        "Says what the checkpoint in DIR is (config.json and *.safetensors of a Qwen3.5 model, or a GGUF\n"
        "file), checks that every tensor is there and has its shape, and computes what each rank needs.\n"
        "Reads headers only, unless told to verify.\n"
        "\n"
        "  --tensor-parallel-size, -tp N\n"
        "                             ranks to split it over, all on this machine: 1, 2, 4, 8 (default 1)\n"
        "  --max-model-len N          tokens of a sequence, at most the model's own limit (default 8192;\n"
        "                             0: that limit)\n"
        "  --max-num-seqs N           sequences at the same time (default 8)\n"
        "  --memory SIZE              to fit into, e.g. 24GB (default: what this machine has available)\n"
        "  --verify                   compare the checksums of its packed file, if it has one: reads it all\n"
        "  --packed-cache DIR         where that is (default: beside the model, or in ~/.cache/shardd)\n"
        "  --json                     print one JSON object\n"
        "\n"
        "Exit status: 0 it is valid and fits, 1 it does not, 2 wrong usage.\n"
        "\n"
        "  shardd inspect models/Qwen3.5-27B --tensor-parallel-size 2 --max-model-len 32768\n";

static const char SYNTH_HELP[] =
        "usage: shardd synth DIR [options]\n"
        "\n"
        "Writes a complete model folder with seeded random weights: config.json, generation_config.json,\n"
        "weights, tokenizer. It serves like any other model; what it says is noise. The same options give\n"
        "the same bytes.\n"
        "\n"
        "  --config NAME|FILE.json    0.8b, 2b, 4b, 9b, 27b (the published sizes), tiny (5 million\n"
        "                             parameters), small (50 million), or a model's config.json (default\n"
        "                             tiny)\n"
        "  --layers N                 another number of layers; every fourth is attention\n"
        "  --vocab N                  another vocabulary\n"
        "  --dtype bf16|f16|f32       of the matrices (default bf16)\n"
        "  --weights int4|int8        the matrices of the layers as integers, in the layout of\n"
        "                             compressed-tensors, or as Q4_0 or Q8_0 (default: as --dtype says)\n"
        "  --group-size 32|64|128     columns per scale of those (default 128; GGUF: 32)\n"
        "  --lm-head int4|int8        the head too, which is then its own and not the embedding\n"
        "  --config-only              no weights, only the files beside them: for --load-format dummy, which\n"
        "                             makes weights of that form up in memory\n"
        "  --mtp, --no-mtp            with or without the layer for speculation (default: as configured)\n"
        "  --seed N                   (default 0)\n"
        "  --format safetensors|gguf  (default safetensors)\n"
        "  --shard-size SIZE          start another file after so much, e.g. 500MB (default 4GB)\n"
        "  --tokenizer DIR            copy that model folder's tokenizer (default: make one that has a\n"
        "                             token per byte)\n"
        "\n"
        "DIR must be new or empty. Exit status: 0 written, 1 failed, 2 wrong usage.\n"
        "\n"
        "  shardd synth /tmp/tiny\n"
        "  shardd synth /tmp/wide --config 27b --layers 4 --tokenizer models/Qwen3.5-27B\n"
        "  shardd synth /tmp/27b --config 27b --weights int4 --lm-head int8 --config-only\n";

/* --- arguments --- */

__attribute__((format(printf, 2, 3))) static int usage_error(const char *verb, const char *format, ...) {
    va_list ap;
    fprintf(stderr, "shardd %s: ", verb);
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fprintf(stderr, " (`shardd %s --help` shows the options)\n", verb);
    return EXIT_USAGE;
}

static int failed(const char *verb, const struct error *e) {
    fprintf(stderr, "shardd %s: %s\n", verb, e->text);
    return e->code == -EDOM ? EXIT_USAGE : EXIT_FAILED; /* -EDOM: no such setting, or none of this model */
}

/* --- inspect --- */

static int run_inspect(int argc, char **argv) {
    enum { TP = 256, LEN, SEQS, MEMORY, VERIFY, CACHE, JSON, HELP };
    static const struct option flags[] = {
            {"tensor-parallel-size", required_argument, NULL, TP},
            {"tp", required_argument, NULL, TP},
            {"max-model-len", required_argument, NULL, LEN},
            {"max-num-seqs", required_argument, NULL, SEQS},
            {"memory", required_argument, NULL, MEMORY},
            {"verify", no_argument, NULL, VERIFY},
            {"packed-cache", required_argument, NULL, CACHE},
            {"json", no_argument, NULL, JSON},
            {"help", no_argument, NULL, HELP},
            {NULL, 0, NULL, 0},
    };
    struct inspect_options o = {
            .tp = 1, .max_model_len = INSPECT_LEN_DEFAULT, .max_num_seqs = INSPECT_SEQS_DEFAULT};
    bool json = false;
    struct error e = {0};
    int flag, at = 0;
    while ((flag = arguments_next(argc, argv, flags, &at)) != -1) {
        int r = 0;
        switch (flag) {
        case TP:
            r = count_parse_u32(optarg, 1, 1024, &o.tp, &e);
            break;
        case LEN:
            r = count_parse_u32(optarg, 0, CONTEXT_MAX, &o.max_model_len, &e);
            break;
        case SEQS:
            r = count_parse_u32(optarg, 1, SEQS_MAX, &o.max_num_seqs, &e);
            break;
        case MEMORY:
            r = size_parse(optarg, 1, UINT64_MAX, &o.memory_bytes, &e);
            break;
        case VERIFY:
            o.verify = true;
            break;
        case CACHE:
            o.cache_dir = optarg;
            break;
        case JSON:
            json = true;
            break;
        case 'h':
        case HELP:
            fputs(INSPECT_HELP, stdout);
            return EXIT_OK;
        default:
            return usage_error("inspect", "%s", arguments_wrong(flag, argv, (char[ARGUMENT_TEXT_MAX]){0}));
        }
        if (r < 0)
            return usage_error("inspect", "--%s: %s", flags[at].name, e.text);
    }
    if (argc - optind != 1)
        return usage_error("inspect", "name one model folder");
    o.dir = argv[optind];

    struct inspection *i = NULL;
    if (inspect_open(&o, &i, &e) < 0)
        return failed("inspect", &e);
    if (json)
        inspect_print_json(i, stdout);
    else
        inspect_print(i, stdout);
    bool good = i->fits && !i->packed_damaged;
    inspect_free(i);
    return good ? EXIT_OK : EXIT_FAILED;
}

/* --- synth --- */

struct progress {
    struct timespec begin, last;
    bool shown;
};

static double seconds_between(const struct timespec *a, const struct timespec *b) {
    return (double)(b->tv_sec - a->tv_sec) + (double)(b->tv_nsec - a->tv_nsec) / 1e9;
}

static void show_progress(void *context, const char *file, uint64_t done, uint64_t total) {
    struct progress *p = context;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (seconds_between(&p->last, &now) < 0.2)
        return;
    p->last = now;
    p->shown = true;
    uint64_t rate = (uint64_t)((double)done / (seconds_between(&p->begin, &now) + 1e-9));
    fprintf(stderr, "\r\033[K%s  %s of %s, %s/s", file, size_print_as(done, total, (char[SIZE_TEXT_MAX]){0}),
            SIZE_TEXT(total), SIZE_TEXT(rate));
}

/* A built-in name, or else a file. */
static int load_config(const char *name, struct model_config *ret, struct error *e) {
    char *text = NULL;
    size_t bytes = 0;
    if (synth_config(name, ret) == 0)
        return 0;
    int r = file_read(name, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r == -ENOENT)
        return error_set(e, -EDOM, "--config %s: there is no such file, and the names are %s", name,
                synth_config_names);
    if (r == 0)
        r = model_config_parse(text, bytes, name, ret, e);
    free(text);
    return r;
}

struct synth_flags {
    struct synth_options o;
    const char *config;
    uint32_t layers, vocab; /* 0 = as the configuration says */
    int mtp;                /* 1, 0, or -1 = as the configuration says */
};

static int set_dtype(const char *text, enum tensor_dtype *ret) {
    static const struct {
        const char *name;
        enum tensor_dtype dtype;
    } names[] = {{"bf16", TENSOR_BF16}, {"f16", TENSOR_F16}, {"fp16", TENSOR_F16}, {"f32", TENSOR_F32},
            {"fp32", TENSOR_F32}};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (strcmp(names[i].name, text) == 0) {
            *ret = names[i].dtype;
            return 0;
        }
    return -EINVAL;
}

static int set_bits(const char *text, uint32_t *ret) {
    *ret = strcmp(text, "int4") == 0 ? 4 : strcmp(text, "int8") == 0 ? 8 : 0;
    return *ret ? 0 : -EINVAL;
}

static int set_format(const char *text, enum synth_format *ret) {
    if (strcmp(text, "safetensors") != 0 && strcmp(text, "gguf") != 0)
        return -EINVAL;
    *ret = text[0] == 'g' ? SYNTH_GGUF : SYNTH_SAFETENSORS;
    return 0;
}

enum {
    CONFIG = 256,
    LAYERS,
    VOCAB,
    DTYPE,
    FORMAT,
    SHARD_SIZE,
    MTP,
    NO_MTP,
    WEIGHTS,
    GROUP_SIZE,
    LM_HEAD,
    CONFIG_ONLY,
    SEED,
    TOKENIZER,
    SYNTH_HELP_FLAG
};

/* 0, -EINVAL for a bad value, 1 when the flag is not one of ours. */
static int set_synth_flag(int flag, const char *value, struct synth_flags *f, struct error *e) {
    switch (flag) {
    case CONFIG:
        f->config = value;
        return 0;
    case LAYERS:
        return count_parse_u32(value, 1, MODEL_LAYERS_MAX, &f->layers, e);
    case VOCAB:
        return count_parse_u32(value, 1, TOKENIZER_VOCAB_MAX, &f->vocab, e);
    case DTYPE:
        return set_dtype(value, &f->o.dtype);
    case FORMAT:
        return set_format(value, &f->o.format);
    case WEIGHTS:
        return set_bits(value, &f->o.weight_bits);
    case LM_HEAD:
        return set_bits(value, &f->o.head_bits);
    case CONFIG_ONLY:
        f->o.config_only = true;
        return 0;
    case GROUP_SIZE:
        return argument_group_size(value, &f->o.group_size, e);
    case SHARD_SIZE:
        return size_parse(value, 1, UINT64_MAX, &f->o.shard_bytes, e);
    case MTP:
    case NO_MTP:
        f->mtp = flag == MTP;
        return 0;
    case SEED:
        return count_parse(value, 0, UINT64_MAX, &f->o.seed, e);
    case TOKENIZER:
        f->o.tokenizer_dir = value;
        return 0;
    default:
        return 1;
    }
}

static int write_model(struct synth_flags *f) {
    struct error e = {0};
    struct synth_report report = {0};
    struct progress progress = {0};
    if (load_config(f->config, &f->o.config, &e) < 0)
        return failed("synth", &e);
    if (f->layers)
        synth_config_set_layers(&f->o.config, f->layers);
    if (f->vocab)
        f->o.config.vocab_size = f->vocab;
    if (f->mtp >= 0)
        f->o.config.mtp_layers = (uint32_t)f->mtp;
    if (!f->o.group_size)
        f->o.group_size = f->o.format == SYNTH_GGUF ? 32 : 128;
    if (f->o.head_bits)
        f->o.config.tie_word_embeddings = false;
    const char *slash = strrchr(f->config, '/');
    f->o.name = slash ? slash + 1 : f->config;
    if (isatty(STDERR_FILENO)) {
        clock_gettime(CLOCK_MONOTONIC, &progress.begin);
        f->o.progress = show_progress;
        f->o.progress_context = &progress;
    }
    int r = synth_write(&f->o, &report, &e);
    if (progress.shown)
        fprintf(stderr, "\r\033[K");
    if (r < 0)
        return failed("synth", &e);
    if (f->o.config_only)
        printf("%s: %.3f billion parameters in %s, which are not there: serve and bench it with --load-format dummy\n",
                f->o.dir, (double)report.parameters / 1e9, SIZE_TEXT(report.bytes));
    else
        printf("%s: %.3f billion parameters, %u tensors in %u file%s, %s\n", f->o.dir,
                (double)report.parameters / 1e9, report.tensors, report.files, report.files == 1 ? "" : "s",
                SIZE_TEXT(report.bytes));
    return EXIT_OK;
}

static int run_synth(int argc, char **argv) {
    static const struct option flags[] = {
            {"config", required_argument, NULL, CONFIG},
            {"layers", required_argument, NULL, LAYERS},
            {"vocab", required_argument, NULL, VOCAB},
            {"dtype", required_argument, NULL, DTYPE},
            {"format", required_argument, NULL, FORMAT},
            {"shard-size", required_argument, NULL, SHARD_SIZE},
            {"mtp", no_argument, NULL, MTP},
            {"no-mtp", no_argument, NULL, NO_MTP},
            {"weights", required_argument, NULL, WEIGHTS},
            {"group-size", required_argument, NULL, GROUP_SIZE},
            {"lm-head", required_argument, NULL, LM_HEAD},
            {"config-only", no_argument, NULL, CONFIG_ONLY},
            {"seed", required_argument, NULL, SEED},
            {"tokenizer", required_argument, NULL, TOKENIZER},
            {"help", no_argument, NULL, SYNTH_HELP_FLAG},
            {NULL, 0, NULL, 0},
    };
    struct synth_flags f = {.config = "tiny", .mtp = -1};
    f.o.dtype = TENSOR_BF16;
    f.o.shard_bytes = 4000000000;
    struct error e = {0};
    int flag, at = 0;
    while ((flag = arguments_next(argc, argv, flags, &at)) != -1) {
        if (flag == 'h' || flag == SYNTH_HELP_FLAG) {
            fputs(SYNTH_HELP, stdout);
            return EXIT_OK;
        }
        int r = set_synth_flag(flag, optarg, &f, &e);
        if (r > 0)
            return usage_error("synth", "%s", arguments_wrong(flag, argv, (char[ARGUMENT_TEXT_MAX]){0}));
        if (e.text[0])
            return usage_error("synth", "--%s: %s", flags[at].name, e.text);
        if (r < 0)
            return usage_error("synth", "--%s: '%s' is not a value that it takes", flags[at].name, optarg);
    }
    if (argc - optind != 1)
        return usage_error("synth", "name one folder to write");
    f.o.dir = argv[optind];
    return write_model(&f);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fputs(USAGE, stderr);
        return EXIT_USAGE;
    }
    arguments_normalise(argc - 1, argv + 1);
    if (strcmp(argv[1], "inspect") == 0)
        return run_inspect(argc - 1, argv + 1);
    if (strcmp(argv[1], "synth") == 0)
        return run_synth(argc - 1, argv + 1);
    if (strcmp(argv[1], "quantize") == 0)
        return run_quantize(argc - 1, argv + 1);
    if (strcmp(argv[1], "pack") == 0)
        return pack_main(argc - 1, argv + 1);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        fputs(USAGE, stdout);
        return EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("shardd-checkpoint %s\n", SHARDD_VERSION);
        return EXIT_OK;
    }
    fprintf(stderr, "shardd-checkpoint: '%s' is none of inspect, synth, quantize and pack\n%s", argv[1],
            USAGE);
    return EXIT_USAGE;
}
