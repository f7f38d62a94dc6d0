/* chat.c - `shardd chat`: a conversation in a terminal, or over a pipe.
 *
 * Lines are turns; a line that ends in \ goes on in the next. The conversation is kept here and sent whole
 * with each turn. Reasoning is shown dimmed on a terminal, and never sent back. */
#include "launcher/verbs.h"

#include "launcher/client/answer.h"
#include "launcher/client/interrupt.h"
#include "launcher/client/line_reader.h"
#include "launcher/client/request.h"
#include "launcher/client/session.h"

#include <errno.h>
#include <grpc/status.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TURNS_MAX 4096 /* messages of one request, see MESSAGES_MAX of base/limits.h */

struct chat {
    const struct options *o;
    struct session session;
    struct request_message turns[TURNS_MAX];
    size_t n;
    char *system; /* NULL = none */
    struct line_reader input;
    bool terminal;
    int code; /* of the worst that happened */
};

static void forget(struct chat *c) {
    while (c->n > 0)
        free(c->turns[--c->n].text);
}

/* Takes text over. */
static void remember(struct chat *c, const char *role, char *text) {
    if (text && c->n < TURNS_MAX)
        c->turns[c->n++] = (struct request_message){role, text};
    else
        free(text);
}

/* --- commands --- */

static const char help_text[] = "/reset        forget the conversation\n"
                                "/system TEXT  set the system message and forget the conversation\n"
                                "/save FILE    write the conversation as JSON\n"
                                "/quit         leave (Ctrl-D as well); Ctrl-C stops an answer\n"
                                "A line that ends in \\ goes on in the next one.\n";

static void save(struct chat *c, const char *path) {
    if (!*path) {
        fprintf(stderr, "/save needs a file: /save FILE\n");
        return;
    }
    json_t *list = json_array();
    if (c->system)
        json_array_append_new(list, json_pack("{s:s, s:s}", "role", "system", "content", c->system));
    for (size_t i = 0; i < c->n; i++)
        json_array_append_new(
                list, json_pack("{s:s, s:s}", "role", c->turns[i].role, "content", c->turns[i].text));
    if (json_dump_file(list, path, JSON_INDENT(2)) == 0)
        fprintf(stderr, "saved %zu messages to %s\n", json_array_size(list), path);
    else
        fprintf(stderr, "cannot write %s: %s\n", path, strerror(errno));
    json_decref(list);
}

/* True if the line was a command; *leave is set by /quit. */
static bool command(struct chat *c, const char *line, bool *leave) {
    if (line[0] != '/')
        return false;
    size_t n = strcspn(line, " \t");
    const char *rest = line + n + strspn(line + n, " \t");
    if (strncmp(line, "/quit", n) == 0 && n == 5) {
        *leave = true;
    } else if (strncmp(line, "/help", n) == 0 && n == 5) {
        fputs(help_text, stderr);
    } else if (strncmp(line, "/reset", n) == 0 && n == 6) {
        forget(c);
    } else if (strncmp(line, "/save", n) == 0 && n == 5) {
        save(c, rest);
    } else if (strncmp(line, "/system", n) == 0 && n == 7) {
        free(c->system);
        c->system = *rest ? strdup(rest) : NULL;
        forget(c);
    } else {
        fprintf(stderr, "there is no command %.*s; /help lists them\n", (int)n, line);
    }
    return true;
}

/* --- turns --- */

static int pack_turns(struct chat *c, uint8_t **request, size_t *bytes, struct error *e) {
    struct request_message *all = calloc(c->n + 1, sizeof(*all));
    struct request_input input = {.messages = all};
    if (!all)
        return error_set(e, -ENOMEM, "no memory for the conversation");
    if (c->system)
        all[input.n_messages++] = (struct request_message){"system", c->system};
    for (size_t i = 0; i < c->n; i++)
        all[input.n_messages++] = c->turns[i];
    int rc = request_pack(c->o, &input, request, bytes, e);
    free(all);
    return rc;
}

/* Keeps what was said, even when it was interrupted or was reasoning only; a turn that failed without a word
 * is taken back, so that it can be asked again. */
static void keep_answer(struct chat *c, struct answer *a, bool ok) {
    if (a->text_bytes > 0 || ok) {
        remember(c, "assistant", a->text ? a->text : strdup(""));
        a->text = NULL;
    } else {
        free(c->turns[--c->n].text);
    }
}

/* False when there is nobody left to talk to. */
static bool turn(struct chat *c, char *line) {
    uint8_t *request = NULL;
    size_t bytes = 0;
    struct error e;
    struct client_status status;
    struct answer a = {.reasoning = isatty(STDOUT_FILENO)};
    if (c->n + 3 > TURNS_MAX) {
        fprintf(stderr, "the conversation has %zu messages; /reset starts a new one\n", c->n);
        free(line);
        return true;
    }
    remember(c, "user", line);
    if (pack_turns(c, &request, &bytes, &e) < 0) {
        fprintf(stderr, "shardd chat: %s\n", e.text);
        c->code = EXIT_USAGE;
        return false;
    }
    interrupt_reset();
    answer_run(&a, c->session.client, request, bytes, options_number(c->o, OPT_TIMEOUT), &status);
    free(request);
    if (a.n_tokens && c->terminal && !options_number(c->o, OPT_QUIET))
        answer_print_figures(&a);
    int code = client_report(c->session.client, &status);
    if (code != EXIT_OK && code != EXIT_INTERRUPTED)
        c->code = code;
    keep_answer(c, &a, code == EXIT_OK);
    answer_done(&a);
    interrupt_reset();
    if (interrupt_ends())
        c->code = EXIT_INTERRUPTED;
    return code != EXIT_UNREACHABLE && !interrupt_ends();
}

/* The next line, or NULL when there is no more. Ctrl-C drops what was typed; over a pipe it ends the
 * conversation. */
static char *read_line(struct chat *c, const char *prompt) {
    for (;;) {
        char *line = NULL;
        if (c->terminal) {
            fputs(prompt, stdout);
            fflush(stdout);
        }
        int rc = line_reader_next(&c->input, &line);
        if (rc == -EINTR && c->terminal && !interrupt_ends()) {
            interrupt_reset();
            putchar('\n');
            continue;
        }
        if (rc == -EINTR)
            c->code = EXIT_INTERRUPTED;
        else if (rc < 0 && rc != -ENODATA)
            fprintf(stderr, "shardd chat: cannot read what you say: %s\n", strerror(-rc));
        return line;
    }
}

/* A whole turn: lines joined while they end in a backslash. */
static char *read_turn(struct chat *c) {
    char *text = read_line(c, "> ");
    size_t n = text ? strlen(text) : 0;
    while (n > 0 && text[n - 1] == '\\') {
        char *more = read_line(c, ". ");
        text[n - 1] = '\n';
        if (!more)
            break;
        char *joined = NULL;
        if (asprintf(&joined, "%s%s", text, more) < 0)
            joined = NULL;
        free(more);
        free(text);
        if (!joined)
            return NULL;
        text = joined;
        n = strlen(text);
    }
    return text;
}

static void talk(struct chat *c) {
    bool leave = false;
    char *line;
    while (!leave && (line = read_turn(c))) {
        if (line[strspn(line, " \t\n")] == '\0' || command(c, line, &leave))
            free(line);
        else if (!turn(c, line))
            break;
    }
    if (c->terminal && !leave)
        putchar('\n');
}

int verb_chat(const struct options *o) {
    struct chat *c = calloc(1, sizeof(*c));
    if (!c) {
        fprintf(stderr, "shardd chat: no memory\n");
        return EXIT_FAILED;
    }
    if (o->n_positional) {
        fprintf(stderr, "shardd chat: '%s' is too much; it reads what you say from stdin\n",
                o->positional[0]);
        free(c);
        return EXIT_USAGE;
    }
    c->o = o;
    c->input.fd = STDIN_FILENO;
    c->terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    if (options_given(o, OPT_SYSTEM))
        c->system = strdup(options_text(o, OPT_SYSTEM));
    int code = session_open(&c->session, o);
    if (code == 0) {
        if (c->terminal)
            fprintf(stderr, "Talking with %s. /help for commands, Ctrl-D leaves.\n",
                    client_address(c->session.client));
        talk(c);
        code = c->code;
        session_close(&c->session);
    }
    forget(c);
    free(c->system);
    line_reader_done(&c->input);
    free(c);
    return code;
}
