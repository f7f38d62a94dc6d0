/* quantize_verb.c - `shardd quantize`: its options, its progress and Ctrl-C. Called by checkpoint_main.c; part of
 * shardd-checkpoint. Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted. */
#include "tp/tools/quantize_verb.h"

#include "base/sizes.h"
#include "tp/quantize/quantize.h"
#include "tp/tools/arguments.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EXIT_OK          0
#define EXIT_FAILED      1
#define EXIT_USAGE       2
#define EXIT_INTERRUPTED 130

#define SHARD_BYTES_DEFAULT 4000000000u
/* A hessian of 8192 columns and its row bands take 0.3 GB, its factor minutes of two cores. */
#define HESSIAN_COLUMNS_DEFAULT 8192u
#define THREADS_MAX             256u
#define IGNORE_MAX              64u

static const char HELP[] =
        "usage: shardd quantize SRC DST [options]\n"
        "\n"
        "Makes a checkpoint with 4 or 8 bit weights from the model folder SRC (BF16, F16 or F32), in the\n"
        "format of compressed-tensors (pack-quantized), which transformers, vLLM and shardd read. Weights\n"
        "are streamed, so memory does not grow with the model. DST appears when it is whole; until then it\n"
        "is called DST.part. The tokenizer and all other files are copied.\n"
        "\n"
        "  --weights int4|int8           of the linears of all layers (default int4)\n"
        "  --group-size 32|64|128        columns that share a scale (default 128)\n"
        "  --lm-head bf16|int8|int4      of the head; bf16: as it is (default). A model whose head is its\n"
        "                                embedding gets a head of its own, and tie_word_embeddings false\n"
        "  --mtp bf16|int8|int4          of the layer for speculation; bf16: as it is (default). mtp.fc stays\n"
        "                                as it is\n"
        "  --symmetric, --asymmetric     without or with a zero point per group (default --symmetric)\n"
        "  --ignore PATTERN              leave modules as they are, e.g. '*.layers.0.*', '*.down_proj'; may be\n"
        "                                given several times. vLLM wants q_proj, k_proj and v_proj alike,\n"
        "                                gate_proj and up_proj, in_proj_qkv and in_proj_z\n"
        "  --calibration FILE            run the model over these sequences, layer by layer, and round so that\n"
        "                                its outputs change least: error feedback (GPTQ) where a linear has at\n"
        "                                most --feedback-columns inputs, else errors weighted by the inputs\n"
        "  --feedback-columns N          (default 8192; memory 4 N^2 bytes)\n"
        "  --eval FILE                   compare with the original over these sequences: KL, likeliest token\n"
        "  --activations float|bf16|int8   what quantised weights are multiplied with meanwhile (default float)\n"
        "  --report FILE.json            write the figures to this file too\n"
        "  --threads N                   (default: all that this process may use)\n"
        "  --shard-size SIZE             of an output file, e.g. 500MB (default 4GB)\n"
        "\n"
        "A sequence file is running text, or, named .jsonl, has a JSON object a line: \"text\", or \"messages\"\n"
        "(and \"tools\") as in a chat, or token ids: \"ids\", or \"prompt_ids\" and maybe \"reply_ids\". Of a\n"
        "sequence 2048 tokens are used, of a file at most 65536.\n"
        "\n"
        "in_proj_a, in_proj_b, conv1d, norms, the embedding and the vision part always stay as they are.\n"
        "\n"
        "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted; after a failure nothing is left.\n"
        "\n"
        "  shardd quantize models/Qwen3.5-27B models/Qwen3.5-27B-int4\n"
        "  shardd quantize SRC DST --weights int4 --group-size 32 --lm-head int8 --calibration prompts.jsonl\n";

static volatile int stopped;

static void on_signal(int number) {
    (void)number;
    stopped = 1;
}

static void catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal};
    static const int ends[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
        struct sigaction before;
        if (sigaction(ends[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN) /* nohup(1) ignores one */
            sigaction(ends[i], &action, NULL);
    }
    action.sa_handler = SIG_IGN; /* a file size limit comes back as EFBIG */
    sigaction(SIGXFSZ, &action, NULL);
}

__attribute__((format(printf, 1, 2))) static int usage_error(const char *format, ...) {
    va_list ap;
    fprintf(stderr, "shardd quantize: ");
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fprintf(stderr, " (`shardd quantize --help` shows the options)\n");
    return EXIT_USAGE;
}

/* --- progress --- */

struct progress {
    struct timespec begin, last;
    bool terminal, shown;
};

static double seconds_between(const struct timespec *a, const struct timespec *b) {
    return (double)(b->tv_sec - a->tv_sec) + (double)(b->tv_nsec - a->tv_nsec) / 1e9;
}

/* A line that is rewritten on a terminal; else one every ten seconds. */
static void show_progress(void *context, const char *what, uint64_t done, uint64_t total) {
    struct progress *p = context;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (seconds_between(&p->last, &now) < (p->terminal ? 0.2 : 10))
        return;
    p->last = now;
    p->shown = true;
    double seconds = seconds_between(&p->begin, &now) + 1e-9, rate = (double)done / seconds;
    double left = rate > 0 ? (double)(total - done) / rate : 0;
    fprintf(stderr, "%s%s  %s of %s, %s/min, %.0f:%02.0f left%s", p->terminal ? "\r\033[K" : "", what,
            size_print_as(done, total, (char[SIZE_TEXT_MAX]){0}), SIZE_TEXT(total),
            SIZE_TEXT((uint64_t)(rate * 60)), (double)((int)left / 60), (double)((int)left % 60),
            p->terminal ? "" : "\n");
}

/* --- options --- */

struct flags {
    struct quantize_options o;
    const char *report;
    const char *ignore[IGNORE_MAX];
};

enum {
    WEIGHTS = 256,
    GROUP_SIZE,
    LM_HEAD,
    MTP,
    SYMMETRIC,
    ASYMMETRIC,
    IGNORE,
    CALIBRATION,
    FEEDBACK,
    EVAL,
    ACTIVATIONS,
    REPORT,
    THREADS,
    SHARD_SIZE,
    HELP_FLAG
};

static int parse_bits(const char *text, bool as_is, uint32_t *ret) {
    if (strcmp(text, "int4") == 0)
        *ret = 4;
    else if (strcmp(text, "int8") == 0)
        *ret = 8;
    else if (as_is && strcmp(text, "bf16") == 0)
        *ret = 16;
    else
        return -EINVAL;
    return 0;
}

static int parse_activations(const char *text, enum quantize_activations *ret) {
    static const char *const names[] = {
            [QUANTIZE_FLOAT] = "float", [QUANTIZE_BF16] = "bf16", [QUANTIZE_INT8] = "int8"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) != 0)
            continue;
        *ret = (enum quantize_activations)i;
        return 0;
    }
    return -EINVAL;
}

static int set_flag(int flag, const char *value, struct flags *f, struct error *e) {
    struct quantize_options *o = &f->o;
    switch (flag) {
    case WEIGHTS:
        return parse_bits(value, false, &o->weight_bits);
    case GROUP_SIZE:
        return argument_group_size(value, &o->group, e);
    case LM_HEAD:
        return parse_bits(value, true, &o->head_bits);
    case MTP:
        return parse_bits(value, true, &o->mtp_bits);
    case SYMMETRIC:
    case ASYMMETRIC:
        o->asymmetric = flag == ASYMMETRIC;
        return 0;
    case IGNORE:
        if (o->n_ignore == IGNORE_MAX)
            return error_set(e, -E2BIG, "it may be given %d times", IGNORE_MAX);
        f->ignore[o->n_ignore++] = value;
        return 0;
    case CALIBRATION:
        o->calibration = value;
        return 0;
    case FEEDBACK:
        return count_parse_u32(value, 0, 65536, &o->hessian_columns_max, e);
    case EVAL:
        o->evaluation = value;
        return 0;
    case ACTIVATIONS:
        return parse_activations(value, &o->activations);
    case REPORT:
        f->report = value;
        return 0;
    case THREADS:
        return count_parse_u32(value, 1, THREADS_MAX, &o->threads, e);
    case SHARD_SIZE:
        return size_parse(value, 1, UINT64_MAX, &o->shard_bytes, e);
    default:
        return 1;
    }
}

/* EXIT_OK: go on; -1: help was shown. */
static int read_options(int argc, char **argv, struct flags *f) {
    static const struct option flags[] = {
            {"weights", required_argument, NULL, WEIGHTS},
            {"group-size", required_argument, NULL, GROUP_SIZE},
            {"lm-head", required_argument, NULL, LM_HEAD},
            {"mtp", required_argument, NULL, MTP},
            {"symmetric", no_argument, NULL, SYMMETRIC},
            {"asymmetric", no_argument, NULL, ASYMMETRIC},
            {"ignore", required_argument, NULL, IGNORE},
            {"calibration", required_argument, NULL, CALIBRATION},
            {"feedback-columns", required_argument, NULL, FEEDBACK},
            {"eval", required_argument, NULL, EVAL},
            {"activations", required_argument, NULL, ACTIVATIONS},
            {"report", required_argument, NULL, REPORT},
            {"threads", required_argument, NULL, THREADS},
            {"shard-size", required_argument, NULL, SHARD_SIZE},
            {"help", no_argument, NULL, HELP_FLAG},
            {NULL, 0, NULL, 0},
    };
    struct error e = {0};
    int flag, at = 0;
    while ((flag = arguments_next(argc, argv, flags, &at)) != -1) {
        if (flag == 'h' || flag == HELP_FLAG) {
            fputs(HELP, stdout);
            return -1;
        }
        int r = set_flag(flag, optarg, f, &e);
        if (r > 0)
            return usage_error("%s", arguments_wrong(flag, argv, (char[ARGUMENT_TEXT_MAX]){0}));
        if (e.text[0])
            return usage_error("--%s: %s", flags[at].name, e.text);
        if (r < 0)
            return usage_error("--%s: '%s' is not a value that it takes", flags[at].name, optarg);
    }
    if (argc - optind != 2)
        return usage_error("name the model's folder and the folder to write");
    f->o.source = argv[optind];
    f->o.target = argv[optind + 1];
    return EXIT_OK;
}

static int write_report(const struct flags *f, const struct quantize_report *report) {
    FILE *file = fopen(f->report, "we");
    if (file)
        quantize_report_print_json(report, &f->o, file);
    if (!file || fclose(file) != 0) {
        fprintf(stderr, "shardd quantize: %s: cannot write the report: %s\n", f->report, strerror(errno));
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

int run_quantize(int argc, char **argv) {
    struct flags f = {.o = {.weight_bits = 4,
                              .head_bits = 16,
                              .mtp_bits = 16,
                              .group = 128,
                              .hessian_columns_max = HESSIAN_COLUMNS_DEFAULT,
                              .shard_bytes = SHARD_BYTES_DEFAULT,
                              .stop = &stopped,
                              .progress = show_progress}};
    struct progress progress = {.terminal = isatty(STDERR_FILENO)};
    struct quantize_report report = {0};
    struct error e = {0};
    char paths[2][QUANTIZE_FD_PATH_MAX];
    int code = read_options(argc, argv, &f);
    if (code != EXIT_OK)
        return code < 0 ? EXIT_OK : code;
    f.o.ignore = f.ignore;
    f.o.progress_context = &progress;
    clock_gettime(CLOCK_MONOTONIC, &progress.begin);
    progress.last = progress.begin;
    catch_signals();
    int r = quantize_ids_of(f.o.source, &f.o.calibration, paths[0], &e);
    if (r == 0)
        r = quantize_ids_of(f.o.source, &f.o.evaluation, paths[1], &e);
    if (r == 0)
        r = quantize_run(&f.o, &report, &e);
    if (progress.shown && progress.terminal)
        fprintf(stderr, "\r\033[K");
    if (r < 0) {
        fprintf(stderr, "shardd quantize: %s\n", e.text);
        return r == -ECANCELED ? EXIT_INTERRUPTED
               : r == -EDOM    ? EXIT_USAGE
                               : EXIT_FAILED; /* no such setting */
    }
    quantize_report_print(&report, &f.o, stdout);
    code = f.report ? write_report(&f, &report) : EXIT_OK;
    quantize_report_done(&report);
    return code;
}
