/* tokenize_main.c - shardd-tokenize: texts and conversations of a file as token ids, a JSON line each.
 *
 * Run by `shardd quantize` for --calibration and --eval files that hold no ids: tp/ knows no tokenizer.
 *
 *     shardd-tokenize MODEL_DIR FILE
 *
 * A FILE.jsonl has an object a line with "text" (or "prompt"), or "messages" and maybe "tools"; any other file is one
 * running text, cut into sequences. Exit status: 0 done, 1 failed, 2 wrong usage. */
#include "base/file.h"
#include "base/limits.h"
#include "daemon/text/chat_template.h"
#include "daemon/text/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX  MIB(256)
#define IDS_MAX         (1u << 20) /* of a line */
#define IDS_OF_TEXT_MAX (64u << 20)
#define SEQUENCE_IDS    2048u /* of a running text that is cut */

struct work {
    const char *model;
    struct tokenizer *tokenizer;
    struct chat_template template;
    struct error *e;
};

static void print_ids(const uint32_t *ids, size_t n) {
    printf("{\"ids\":[");
    for (size_t i = 0; i < n; i++)
        printf("%s%u", i ? "," : "", ids[i]);
    printf("]}\n");
}

static int print_spans(const struct work *w, const struct text_span *spans, size_t n) {
    uint32_t *ids = NULL;
    size_t n_ids = 0;
    int r = tokenizer_encode_spans(w->tokenizer, spans, n, IDS_MAX, &ids, &n_ids, w->e);
    if (r == 0)
        print_ids(ids, n_ids);
    free(ids);
    return r;
}

static int print_chat(struct work *w, const json_t *messages, const json_t *tools) {
    struct chat_rendered text = {0};
    const struct chat_options options = {.enable_thinking = -1, .tools = tools};
    if (w->template.kind == CHAT_TEMPLATE_NONE)
        return error_set(w->e, -ENOTSUP,
                "%s: has no chat template that is known, so \"messages\" cannot be rendered: give \"text\"",
                w->model);
    int r = chat_template_render(&w->template, messages, &options, &text, w->e);
    if (r == 0)
        r = print_spans(w, text.spans, text.n_spans);
    chat_rendered_done(&text);
    return r;
}

static int print_line(struct work *w, const char *line, size_t bytes, const char *name) {
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
        r = print_spans(w, &span, 1);
    } else if (json_is_array(messages)) {
        r = print_chat(w, messages, json_is_array(tools) ? tools : NULL);
    } else {
        r = error_set(w->e, -EINVAL, "has neither \"ids\", nor \"text\", nor \"messages\"");
    }
    json_decref(object);
    return r < 0 ? error_prefix(w->e, r, "%s", name) : 0;
}

static int print_lines(struct work *w, const char *path, const char *text) {
    uint32_t number = 0;
    int r = 0;
    for (const char *end; *text && r == 0; text = *end ? end + 1 : end) {
        char name[160];
        const char *base = strrchr(path, '/');
        end = strchrnul(text, '\n');
        snprintf(name, sizeof(name), "%.100s, line %u", base ? base + 1 : path, ++number);
        if (text + strspn(text, " \t\r") < end)
            r = print_line(w, text, (size_t)(end - text), name);
    }
    return r;
}

static int print_text(struct work *w, const char *text, size_t bytes) {
    uint32_t *ids = NULL;
    size_t n = 0;
    int r = tokenizer_encode(w->tokenizer, text, bytes, false, IDS_OF_TEXT_MAX, &ids, &n, w->e);
    for (size_t at = 0; r == 0 && at < n; at += SEQUENCE_IDS)
        print_ids(ids + at, n - at < SEQUENCE_IDS ? n - at : SEQUENCE_IDS);
    free(ids);
    return r;
}

static int run(struct work *w, const char *path) {
    char tokenizer[PATH_MAX], *text = NULL;
    size_t bytes = 0, n = strlen(path);
    bool lines = n > 6 && strcmp(path + n - 6, ".jsonl") == 0;
    int r = file_path(w->model, "tokenizer.json", tokenizer, w->e);
    if (r == 0)
        r = tokenizer_load(tokenizer, &w->tokenizer, w->e);
    if (r == 0)
        r = chat_template_load(w->model, &w->template, w->e);
    if (r == 0)
        r = file_read(path, FILE_BYTES_MAX, &text, &bytes, w->e);
    if (r == 0)
        r = lines ? print_lines(w, path, text) : print_text(w, text, bytes);
    if (r == 0 && fflush(stdout) != 0)
        r = error_set(w->e, -errno, "cannot write the ids: %s", strerror(errno));
    free(text);
    tokenizer_free(w->tokenizer);
    return r;
}

int main(int argc, char **argv) {
    struct error e = {0};
    bool help = argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    if (argc != 3 || argv[1][0] == '-') {
        fputs("usage: shardd-tokenize MODEL_DIR FILE.jsonl|FILE.txt    token ids of texts and conversations\n",
                help ? stdout : stderr);
        return help ? 0 : 2;
    }
    struct work w = {.model = argv[1], .e = &e};
    if (run(&w, argv[2]) < 0) {
        fprintf(stderr, "shardd-tokenize: %s\n", e.text);
        return 1;
    }
    return 0;
}
