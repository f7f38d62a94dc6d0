/* pack_verb.c - see pack_verb.h: the command line around packed_make(). */
#include "tp/tools/pack_verb.h"

#include "base/clock.h"
#include "base/sizes.h"
#include "tp/load/fingerprint.h"
#include "tp/load/packed.h"
#include "tp/tools/arguments.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXIT_OK     0
#define EXIT_FAILED 1
#define EXIT_USAGE  2

static const char HELP[] =
        "usage: shardd pack DIR [options]\n"
        "\n"
        "Writes the weights of the model in DIR as the kernels take them, so that a start only maps the file.\n"
        "One file serves every --tensor-parallel-size. `shardd serve --load-format packed` does the same at its\n"
        "first start. Where the file is there already and of these weights, nothing is done.\n"
        "\n"
        "  --packed-cache DIR   where to put it (default: in the model's folder, or in ~/.cache/shardd where that\n"
        "                       cannot be written to)\n"
        "  --layout NAME        for which kernels: cpu-2 or cuda-mma-2; any host makes either, no GPU is needed\n"
        "                       (default: cpu-2). A GPU maps cuda-mma-2 only\n"
        "  --verify             compare all checksums of the file afterwards\n"
        "  --threads N          (default: all cores)\n"
        "\n"
        "Exit status: 0 the file is there, 1 failed, 2 wrong usage.\n"
        "\n"
        "  shardd pack models/Qwen3.5-27B\n"
        "  shardd pack models/Qwen3.5-27B --layout cuda-mma-2\n";

struct pack {
    const char *model, *cache;
    const struct k_layout *layout; /* NULL = the native one */
    bool verify;
    uint32_t threads;
    struct model_config config;
    struct checkpoint *checkpoint;
    struct model_tensors *tensors;
    struct packed *packed;
};

struct progress {
    double begin, last;
    const char *verb;
    bool terminal, shown;
};

static double now_s(void) {
    return (double)clock_ns() * 1e-9;
}

/* On a terminal one line that is written over; into a log a line every ten seconds. */
static void show(void *user, uint64_t done, uint64_t total, const char *what) {
    struct progress *p = user;
    double now = now_s();
    if (now - p->last < (p->terminal ? 0.2 : 10.0))
        return;
    p->last = now;
    p->shown = p->terminal;
    fprintf(stderr, "%s%s %s of %s, %s/s: %s%s", p->terminal ? "\r\033[K" : "", p->verb,
            size_print_as(done, total, (char[SIZE_TEXT_MAX]){0}), SIZE_TEXT(total),
            SIZE_TEXT((uint64_t)((double)done / (now - p->begin + 1e-9))), what, p->terminal ? "" : "\n");
}

static void tell(void *user, const char *text) {
    (void)user;
    fprintf(stderr, "%s\n", text);
}

static struct progress progress_begin(const char *verb) {
    double now = now_s();
    return (struct progress){.begin = now, .last = now, .verb = verb, .terminal = isatty(STDERR_FILENO)};
}

static void progress_end(const struct progress *p) {
    if (p->shown)
        fputs("\r\033[K", stderr);
}

static int open_model(struct pack *p, struct error *e) {
    int r = model_config_load(p->model, &p->config, e);
    if (r == 0)
        r = checkpoint_open(p->model, &p->checkpoint, e);
    if (r == 0)
        r = model_tensors_resolve(p->checkpoint, &p->config, &p->tensors, e);
    return r;
}

static int pack(struct pack *p, struct error *e) {
    int r = open_model(p, e);
    if (r < 0)
        return r;
    struct progress progress = progress_begin("packing");
    const struct packed_request q = {.model = p->model,
            .cache_dir = p->cache,
            .fingerprint = packed_fingerprint(p->model, fingerprint_model(&p->config, p->checkpoint, 0)),
            .layout = p->layout,
            .threads = p->threads,
            .config = &p->config,
            .checkpoint = p->checkpoint,
            .tensors = p->tensors,
            .progress = show,
            .note = tell,
            .user = &progress};
    bool there = packed_look(&q, &p->packed, NULL);
    if (!there)
        r = packed_make(&q, &p->packed, e);
    progress_end(&progress);
    if (r < 0)
        return r;
    printf("%s: %u matrices, %s, %s", packed_name(p->packed), packed_matrices(p->packed),
            SIZE_TEXT(packed_bytes(p->packed)), there ? "there already" : "packed");
    if (!there)
        printf(" in %.1f s", now_s() - progress.begin);
    if (p->verify) {
        progress = progress_begin("comparing");
        r = packed_verify(p->packed, show, &progress, e);
        progress_end(&progress);
        if (r == 0)
            printf(", checksums right");
    }
    printf("\n");
    return r;
}

int pack_main(int argc, char **argv) {
    enum { CACHE = 256, LAYOUT, VERIFY, THREADS, HELP_FLAG };
    static const struct option flags[] = {
            {"packed-cache", required_argument, NULL, CACHE},
            {"layout", required_argument, NULL, LAYOUT},
            {"verify", no_argument, NULL, VERIFY},
            {"threads", required_argument, NULL, THREADS},
            {"help", no_argument, NULL, HELP_FLAG},
            {NULL, 0, NULL, 0},
    };
    struct pack p = {0};
    struct error e = {0};
    int flag;
    while ((flag = arguments_next(argc, argv, flags, NULL)) != -1) {
        switch (flag) {
        case CACHE:
            p.cache = optarg;
            break;
        case LAYOUT:
            p.layout = k_layout_find(optarg);
            if (!p.layout) {
                fprintf(stderr, "shardd pack: --layout '%s': %s or %s is expected\n", optarg,
                        k_layout_cpu.name, k_layout_cuda_mma.name);
                return EXIT_USAGE;
            }
            break;
        case VERIFY:
            p.verify = true;
            break;
        case THREADS:
            if (count_parse_u32(optarg, 0, 1024, &p.threads, &e) < 0) {
                fprintf(stderr, "shardd pack: --threads: %s\n", e.text);
                return EXIT_USAGE;
            }
            break;
        case 'h':
        case HELP_FLAG:
            fputs(HELP, stdout);
            return EXIT_OK;
        default:
            fprintf(stderr, "shardd pack: %s (`shardd pack --help` shows the options)\n",
                    arguments_wrong(flag, argv, (char[ARGUMENT_TEXT_MAX]){0}));
            return EXIT_USAGE;
        }
    }
    if (argc - optind != 1) {
        fputs("shardd pack: name one model folder (`shardd pack --help` shows the options)\n", stderr);
        return EXIT_USAGE;
    }
    p.model = argv[optind];
    int r = pack(&p, &e);
    if (r < 0)
        fprintf(stderr, "shardd pack: %s\n", e.text);
    packed_free(p.packed);
    model_tensors_free(p.tensors);
    checkpoint_free(p.checkpoint);
    return r < 0 ? EXIT_FAILED : EXIT_OK;
}
