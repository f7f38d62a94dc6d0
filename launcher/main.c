/* main.c - the shardd command: a table of verbs, and the help that teaches them. Only here a process ends. */
#include "launcher/verbs.h"

#include "launcher/programs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct verb_info {
    const char *name;
    unsigned verb; /* 0: the words are handed to shardd-checkpoint */
    int (*run)(const struct options *o);
    const char *usage;
    const char *summary;
    const char *about; /* examples, shown by `shardd VERB --help` */
};

static const struct verb_info verbs[] = {
        {"serve", VERB_SERVE, verb_serve, "shardd serve --model DIR [options]", "serve a model over gRPC",
                "Starts one worker process per rank and a coordinator that answers gRPC, watches them and restarts\n"
                "what dies. Settings come from the command line, then SHARDD_* variables\n"
                "(SHARDD_MAX_NUM_SEQS=32), then --config FILE, then the defaults below.\n"
                "\n"
                "  shardd serve --model ~/models/Qwen3.5-27B                  on this machine only, port 50051\n"
                "  shardd serve --model DIR -tp 4                             every layer split over 4 ranks\n"
                "  shardd serve --model DIR --host 0.0.0.0 --port 9000        for all who reach this machine\n"
                "  shardd serve --model DIR --uds /run/shardd/grpc.sock       for programs of this machine\n"
                "  shardd serve --config /etc/shardd.conf --print-config      what is in force, and from where\n"
                "\n"
                "SIGTERM or Ctrl-C: running requests get --shutdown-grace to finish; a second one stops at once.\n"},
        {"generate", VERB_GENERATE, verb_generate, "shardd generate [options] PROMPT",
                "stream one answer to stdout",
                "Asks a running service, or with --model DIR starts a private one for this answer. PROMPT - is read\n"
                "from stdin. The text goes to stdout, figures and errors to stderr.\n"
                "\n"
                "  shardd generate \"The capital of France is\"\n"
                "  shardd generate --chat --max-tokens 200 \"Write a haiku about memory.\"\n"
                "  shardd generate --model DIR -n 50 --temperature 0 \"Once upon a time\"     no service needed\n"
                "  git diff | shardd generate --chat --system \"Summarise this change.\" -\n"
                "\n"
                "Exit code: 0 done, 1 refused or failed, 2 wrong usage, 3 no service there, 130 Ctrl-C.\n"},
        {"chat", VERB_CHAT, verb_chat, "shardd chat [options]", "talk with the model in this terminal",
                "Keeps the conversation and streams each answer. Ctrl-C stops an answer, Ctrl-D leaves. /help lists\n"
                "the commands inside.\n"
                "\n"
                "  shardd chat\n"
                "  shardd chat --system \"Answer in one sentence.\" --temperature 0.3\n"
                "  shardd chat --model DIR                                    starts a private service meanwhile\n"},
        {"status", VERB_STATUS, verb_status, "shardd status [options]", "what a running service is doing",
                "  shardd status\n"
                "  shardd status --server unix:/run/shardd/grpc.sock --json\n"
                "\n"
                "Exit code: 0 serving, 1 there but not serving, 3 no service there.\n"},
        {"doctor", VERB_DOCTOR, verb_doctor, "shardd doctor [options]",
                "whether this machine can serve, and what to do where not",
                "Looks at the driver, the GPUs, the machine and the programs of shardd; with --model also at what\n"
                "that model takes and whether it fits. Each line is ok, note, warning or problem; a problem keeps\n"
                "serving from working. Changes nothing.\n"
                "\n"
                "  shardd doctor                                 before the first start, or when one fails\n"
                "  shardd doctor --model DIR                     does it fit, and with which lengths\n"
                "  shardd doctor --model DIR --device cpu        without the GPUs\n"
                "  shardd doctor --config /etc/shardd.conf --json    for programs\n"
                "\n"
                "Exit code: 0 serving would work, 1 it would not, 2 wrong usage.\n"},
        {"bench", VERB_BENCH, verb_bench, "shardd bench --model DIR [options] | --serve ADDRESS [options]",
                "measure a machine with a model, or a running service",
                "With --model: processes prompts and generates tokens, at depths and batches, without a service, and\n"
                "compares decoding with the speed of the memory. With --serve: sends requests to a running service\n"
                "and tells what its clients see.\n"
                "\n"
                "  shardd bench --model DIR --prompt 512,2048 --decode 128 --depth 0,8192 --batch 1,8,32\n"
                "  shardd synth /tmp/27b --config 27b --weights int4 --lm-head int8 --config-only\n"
                "  shardd bench --model /tmp/27b --load-format dummy          sizes and speed without a download\n"
                "  shardd bench --serve 127.0.0.1:50051 --concurrency 16 --requests 200\n"
                "  shardd bench --serve unix:/run/shardd/grpc.sock --rate 4 --goodput ttft:500,tpot:50 --json FILE\n"
                "\n"
                "Exit code: 0 measured, 1 failed (--serve: or a request did), 2 wrong usage, 3 no service there.\n"},
        {"inspect", 0, NULL, "shardd inspect DIR [options]",
                "what a checkpoint is, its size per rank, whether it fits", NULL},
        {"pack", 0, NULL, "shardd pack DIR [options]", "keep a model's weights in a file that starts map",
                NULL},
        {"synth", 0, NULL, "shardd synth DIR [options]", "write a synthetic checkpoint of any size", NULL},
        {"quantize", 0, NULL, "shardd quantize SRC DST [options]",
                "make a checkpoint with 4 or 8 bit weights", NULL},
        {"draft-vocab", 0, NULL, "shardd draft-vocab MODEL OUT FILE...",
                "count the ids that drafts are chosen among", NULL},
};
#define VERBS_N (sizeof(verbs) / sizeof(verbs[0]))

static const struct verb_info *find_verb(const char *name) {
    for (size_t i = 0; i < VERBS_N; i++)
        if (strcmp(verbs[i].name, name) == 0)
            return &verbs[i];
    return NULL;
}

static void print_overview(FILE *out) {
    fprintf(out, "shardd " SHARDD_VERSION
                 " - serves Qwen3.5 models over gRPC, whole or split over several ranks\n\n"
                 "usage: shardd VERB [options]\n\n");
    for (size_t i = 0; i < VERBS_N; i++)
        fprintf(out, "  %-10s %s\n", verbs[i].name, verbs[i].summary);
    fprintf(out, "  %-10s %s\n  %-10s %s\n", "version", "the version of this program", "help",
            "this page; `shardd help VERB` for one verb");
    fprintf(out, "\nA first try, with no model at hand:\n"
                 "  shardd synth /tmp/tiny --config tiny       a small model with random weights\n"
                 "  shardd serve --model /tmp/tiny &\n"
                 "  shardd generate \"Hello\"\n"
                 "  shardd status\n");
}

static int run_program(const char *program, char *const argv[], int n) {
    struct error e;
    char path[PATH_MAX];
    if (program_find(program, NULL, path, &e) < 0) {
        fprintf(stderr, "shardd %s: %s\n", argv[0], e.text);
        return EXIT_FAILED;
    }
    char **words = calloc((size_t)n + 2, sizeof(*words));
    if (!words) {
        fprintf(stderr, "shardd %s: no memory\n", argv[0]);
        return EXIT_FAILED;
    }
    words[0] = path;
    memcpy(words + 1, argv, (size_t)n * sizeof(*words));
    execv(path, words);
    fprintf(stderr, "shardd %s: cannot run %s: %s\n", argv[0], path, strerror(errno));
    free(words);
    return EXIT_FAILED;
}

static int run_verb(const struct verb_info *v, char *const argv[], int n) {
    if (!v->verb)
        return run_program(
                strcmp(v->name, "draft-vocab") == 0 ? "shardd-tokenize" : "shardd-checkpoint", argv, n);
    struct options o;
    struct error e = {0};
    options_init(&o, v->verb);
    int code, rc = options_load(&o, argv + 1, n - 1, environ, &e);
    if (rc == 0 && options_number(&o, OPT_HELP)) {
        printf("usage: %s\n\n%s", v->usage, v->about);
        options_print_help(stdout, v->verb);
        code = EXIT_OK;
    } else if (rc < 0) {
        fprintf(stderr, "shardd %s: %s (`shardd %s --help` shows the options)\n", v->name, e.text, v->name);
        code = EXIT_USAGE;
    } else {
        code = v->run(&o);
    }
    options_done(&o);
    return code;
}

static int unknown_verb(const char *name) {
    fprintf(stderr, "shardd: there is no verb '%s'; `shardd help` lists them\n", name);
    return EXIT_USAGE;
}

int main(int argc, char *argv[]) {
    const char *word = argc > 1 ? argv[1] : "";
    if (strcmp(word, "version") == 0 || strcmp(word, "--version") == 0) {
        puts("shardd " SHARDD_VERSION);
        return EXIT_OK;
    }
    bool help = strcmp(word, "help") == 0;
    if (help && argc > 2) {
        char *words[] = {argv[2], "--help", NULL};
        const struct verb_info *v = find_verb(argv[2]);
        return v ? run_verb(v, words, 2) : unknown_verb(argv[2]);
    }
    if (help || strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        print_overview(stdout);
        return EXIT_OK;
    }
    if (argc < 2) {
        print_overview(stderr);
        return EXIT_USAGE;
    }
    const struct verb_info *v = find_verb(word);
    return v ? run_verb(v, argv + 1, argc - 1) : unknown_verb(word);
}
