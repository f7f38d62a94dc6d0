/* tokenize_main.c - shardd-tokenize: texts and conversations of a file as token ids, a JSON line each; or how often
 * each id is in them.
 *
 * Run by `shardd quantize` for --calibration and --eval files that hold no ids, and as `shardd draft-vocab`, since tp/
 * knows no tokenizer.
 *
 *     shardd-tokenize MODEL_DIR FILE
 *     shardd-tokenize draft-vocab MODEL_DIR OUT FILE... [--ids N]
 *
 * A FILE.jsonl has an object a line with "text" (or "prompt"), or "messages" and maybe "tools"; any other file is one
 * running text, cut into sequences. Exit status: 0 done, 1 failed, 2 wrong usage. */
#include "base/file.h"
#include "base/limits.h"
#include "base/sizes.h"
#include "daemon/text/chat_template.h"
#include "daemon/text/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DRAFT_IDS       32768u /* of a draft vocabulary, if nobody says */
#define DRAFT_IDS_LEAST 64u
#define FILE_BYTES_MAX  MIB(256)
#define IDS_MAX         (1u << 20) /* of a line */
#define IDS_OF_TEXT_MAX (64u << 20)
#define SEQUENCE_IDS    2048u /* of a running text that is cut */

struct work {
    const char *model;
    struct tokenizer *tokenizer;
    struct chat_template template;
    uint64_t *counts; /* [vocab] of ids in all files; NULL: they are printed */
    uint32_t vocab;
    uint64_t n_tokens;
    struct error *e;
};

static void tell_ids(struct work *w, const uint32_t *ids, size_t n) {
    w->n_tokens += n;
    if (w->counts) {
        for (size_t i = 0; i < n; i++)
            w->counts[ids[i]]++;
        return;
    }
    printf("{\"ids\":[");
    for (size_t i = 0; i < n; i++)
        printf("%s%u", i ? "," : "", ids[i]);
    printf("]}\n");
}

static int tell_spans(struct work *w, const struct text_span *spans, size_t n) {
    uint32_t *ids = NULL;
    size_t n_ids = 0;
    int r = tokenizer_encode_spans(w->tokenizer, spans, n, IDS_MAX, &ids, &n_ids, w->e);
    if (r == 0)
        tell_ids(w, ids, n_ids);
    free(ids);
    return r;
}

static int tell_chat(struct work *w, const json_t *messages, const json_t *tools) {
    struct chat_rendered text = {0};
    const struct chat_options options = {.enable_thinking = -1, .tools = tools};
    if (w->template.kind == CHAT_TEMPLATE_NONE)
        return error_set(w->e, -ENOTSUP,
                "%s: has no chat template that is known, so \"messages\" cannot be rendered: give \"text\"",
                w->model);
    int r = chat_template_render(&w->template, messages, &options, &text, w->e);
    if (r == 0)
        r = tell_spans(w, text.spans, text.n_spans);
    chat_rendered_done(&text);
    return r;
}

static int tell_line(struct work *w, const char *line, size_t bytes, const char *name) {
    json_t *object = NULL;
    int r = chat_json_loads(line, bytes, false, name, &object, w->e);
    if (r < 0)
        return r;
    const json_t *text = json_object_get(object, "text"), *messages = json_object_get(object, "messages"),
                 *tools = json_object_get(object, "tools");
    if (!text)
        text = json_object_get(object, "prompt");
    if (json_is_string(text)) {
        const struct text_span span = {json_string_value(text), json_string_length(text), false};
        r = tell_spans(w, &span, 1);
    } else if (json_is_array(messages)) {
        r = tell_chat(w, messages, json_is_array(tools) ? tools : NULL);
    } else {
        r = error_set(w->e, -EINVAL, "has neither \"ids\", nor \"text\", nor \"messages\"");
    }
    json_decref(object);
    return r < 0 ? error_prefix(w->e, r, "%s", name) : 0;
}

static int tell_lines(struct work *w, const char *path, const char *text) {
    uint32_t number = 0;
    int r = 0;
    for (const char *end; *text && r == 0; text = *end ? end + 1 : end) {
        char name[160];
        const char *base = strrchr(path, '/');
        end = strchrnul(text, '\n');
        snprintf(name, sizeof(name), "%.100s, line %u", base ? base + 1 : path, ++number);
        if (text + strspn(text, " \t\r") < end)
            r = tell_line(w, text, (size_t)(end - text), name);
    }
    return r;
}

static int tell_text(struct work *w, const char *text, size_t bytes) {
    uint32_t *ids = NULL;
    size_t n = 0;
    int r = tokenizer_encode(w->tokenizer, text, bytes, false, IDS_OF_TEXT_MAX, &ids, &n, w->e);
    for (size_t at = 0; r == 0 && at < n; at += SEQUENCE_IDS)
        tell_ids(w, ids + at, n - at < SEQUENCE_IDS ? n - at : SEQUENCE_IDS);
    free(ids);
    return r;
}

static int load(struct work *w) {
    char tokenizer[PATH_MAX];
    int r = file_path(w->model, "tokenizer.json", tokenizer, w->e);
    if (r == 0)
        r = tokenizer_load(tokenizer, &w->tokenizer, w->e);
    return r < 0 ? r : chat_template_load(w->model, &w->template, w->e);
}

static int tell_file(struct work *w, const char *path) {
    char *text = NULL;
    size_t bytes = 0, n = strlen(path);
    bool lines = n > 6 && strcmp(path + n - 6, ".jsonl") == 0;
    int r = file_read(path, FILE_BYTES_MAX, &text, &bytes, w->e);
    if (r == 0)
        r = lines ? tell_lines(w, path, text) : tell_text(w, text, bytes);
    free(text);
    return r;
}

static int print_file(struct work *w, const char *path) {
    int r = load(w);
    if (r == 0)
        r = tell_file(w, path);
    if (r == 0 && fflush(stdout) != 0)
        r = error_set(w->e, -errno, "cannot write the ids: %s", strerror(errno));
    return r;
}

/* --- draft-vocab --- */

static const char HELP[] =
        "usage: shardd draft-vocab MODEL OUT FILE... [--ids N]\n"
        "\n"
        "Counts the tokens of texts with the tokenizer of the model folder MODEL, and writes the N most frequent\n"
        "ids to OUT, for `shardd serve --draft-vocab OUT`. Control tokens are among them, whatever is counted; where\n"
        "the texts have fewer different ids, the lowest others follow, which tokenizers learnt first.\n"
        "\n"
        "  --ids N    ids to write (default 32768); the worker takes whole multiples of 64\n"
        "\n"
        "A FILE.jsonl has an object a line with \"text\" (or \"prompt\"), or \"messages\" and maybe \"tools\" as a\n"
        "chat has them; any other file is one running text. Give texts like those that are asked for.\n"
        "\n"
        "Exit status: 0 done, 1 failed, 2 wrong usage.\n";

struct counted {
    uint64_t n; /* UINT64_MAX: a control token */
    uint32_t id;
};
static int more_often(const void *a, const void *b) {
    const struct counted *x = a, *y = b;
    if (x->n != y->n)
        return x->n < y->n ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* The ids of the tokenizer, the most frequent first; returns how many. */
static uint32_t sort_ids(const struct work *w, struct counted *ret) {
    uint32_t n = 0;
    for (uint32_t id = 0; id < w->vocab; id++) {
        size_t bytes;
        bool special = false;
        if (!tokenizer_piece(w->tokenizer, id, &bytes, &special))
            continue;
        ret[n++] = (struct counted){special ? UINT64_MAX : w->counts[id], id};
    }
    qsort(ret, n, sizeof(ret[0]), more_often);
    return n;
}

static int write_vocab(const struct work *w, const char *path, uint32_t n_ids) {
    struct counted *all = calloc(w->vocab, sizeof(all[0]));
    char *text = NULL;
    size_t bytes = 0;
    uint64_t covered = 0;
    FILE *f = all ? open_memstream(&text, &bytes) : NULL;
    if (!f) {
        free(all);
        return error_set(w->e, -ENOMEM, "out of memory for %u ids", w->vocab);
    }
    const uint32_t n = sort_ids(w, all), taken = n < n_ids ? n : n_ids;
    for (uint32_t i = 0; i < taken; i++)
        covered += w->counts[all[i].id];
    const double part = w->n_tokens ? 100.0 * (double)covered / (double)w->n_tokens : 0;
    fprintf(f, "# %u of %u ids, the most frequent first: %.2f %% of %llu tokens counted\n", taken, n, part,
            (unsigned long long)w->n_tokens);
    for (uint32_t i = 0; i < taken; i++)
        fprintf(f, "%u\n", all[i].id);
    const bool whole = ferror(f) == 0;
    int r = fclose(f) == 0 && whole ? file_replace(path, text, bytes, 0644, w->e)
                                    : error_set(w->e, -ENOMEM, "out of memory for %u ids", taken);
    if (r == 0)
        printf("%s: %u of %u ids, %.2f %% of %llu tokens\n", path, taken, n, part,
                (unsigned long long)w->n_tokens);
    free(text);
    free(all);
    return r;
}

static int count_files(struct work *w, char *const files[], int n, const char *out, uint32_t n_ids) {
    int r = load(w);
    if (r < 0)
        return r;
    w->vocab = tokenizer_vocab_size(w->tokenizer);
    w->counts = calloc(w->vocab, sizeof(w->counts[0]));
    if (!w->counts)
        return error_set(w->e, -ENOMEM, "out of memory for %u counts", w->vocab);
    for (int i = 0; i < n && r == 0; i++)
        r = tell_file(w, files[i]);
    return r < 0 ? r : write_vocab(w, out, n_ids);
}

static int usage_error(const char *what) {
    fprintf(stderr, "shardd draft-vocab: %s (`shardd draft-vocab --help` shows the options)\n", what);
    return 2;
}

/* MODEL OUT FILE... with --ids N anywhere among them. */
static int draft_vocab(struct work *w, int argc, char **argv) {
    uint32_t n_ids = DRAFT_IDS;
    int n = 0;
    for (int i = 0; i < argc; i++) {
        const char *value = strncmp(argv[i], "--ids=", 6) == 0 ? argv[i] + 6 : NULL;
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(HELP, stdout);
            return 0;
        }
        if (strcmp(argv[i], "--ids") == 0 && ++i == argc)
            return usage_error("--ids: its value is missing");
        if (!value && i > 0 && strcmp(argv[i - 1], "--ids") == 0)
            value = argv[i];
        if (value && count_parse_u32(value, DRAFT_IDS_LEAST, UINT32_MAX, &n_ids, w->e) < 0)
            return usage_error("--ids: a number from 64 is expected");
        if (!value && argv[i][0] == '-')
            return usage_error("there is no such option");
        if (!value)
            argv[n++] = argv[i];
    }
    if (n < 3)
        return usage_error("name a model folder, the file to write, and texts to count");
    w->model = argv[0];
    return count_files(w, argv + 2, n - 2, argv[1], n_ids) < 0 ? 1 : 0;
}

int main(int argc, char **argv) {
    struct error e = {0};
    struct work w = {.e = &e};
    const bool counts = argc > 1 && strcmp(argv[1], "draft-vocab") == 0;
    const bool help = argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    int status;
    if (counts) {
        status = draft_vocab(&w, argc - 2, argv + 2);
    } else if (argc != 3 || argv[1][0] == '-') {
        fputs("usage: shardd-tokenize MODEL_DIR FILE.jsonl|FILE.txt    token ids of texts and conversations\n"
              "       shardd-tokenize draft-vocab MODEL_DIR OUT FILE...    the most frequent ids of texts\n",
                help ? stdout : stderr);
        return help ? 0 : 2;
    } else {
        w.model = argv[1];
        status = print_file(&w, argv[2]) < 0 ? 1 : 0;
    }
    if (status == 1)
        fprintf(stderr, "%s: %s\n", counts ? "shardd draft-vocab" : "shardd-tokenize", e.text);
    tokenizer_free(w.tokenizer);
    free(w.counts);
    return status;
}
