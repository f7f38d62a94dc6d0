/* generate.c - `shardd generate PROMPT`: one answer, streamed to stdout. */
#include "launcher/verbs.h"

#include "base/limits.h"
#include "launcher/client/answer.h"
#include "launcher/client/request.h"
#include "launcher/client/session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES 65536

static int read_stdin(char **ret, size_t *ret_bytes, struct error *e) {
    size_t n = 0, room = 0;
    char *text = NULL;
    for (;;) {
        if (room - n < READ_BYTES) {
            room += room + READ_BYTES;
            char *more = realloc(text, room + 1);
            if (!more) {
                free(text);
                return error_set(e, -ENOMEM, "no memory for the prompt");
            }
            text = more;
        }
        ssize_t got = read(STDIN_FILENO, text + n, room - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        n += (size_t)got;
        if (n > REQUEST_BYTES_MAX) {
            free(text);
            return error_set(e, -E2BIG,
                    "the prompt on stdin is longer than the %u bytes that a service takes",
                    REQUEST_BYTES_MAX);
        }
    }
    text[n] = '\0';
    *ret = text;
    *ret_bytes = n;
    return 0;
}

/* The words of the command line, joined by blanks as a shell would show them; "-" = stdin. */
static int read_prompt(const struct options *o, char **ret, size_t *ret_bytes, struct error *e) {
    if (o->n_positional == 0)
        return error_set(
                e, -EINVAL, "no prompt is given: shardd generate \"PROMPT\", or - to read it from stdin");
    if (o->n_positional == 1 && strcmp(o->positional[0], "-") == 0)
        return read_stdin(ret, ret_bytes, e);
    size_t n = 0;
    for (size_t i = 0; i < o->n_positional; i++)
        n += strlen(o->positional[i]) + 1;
    char *text = malloc(n);
    if (!text)
        return error_set(e, -ENOMEM, "no memory for the prompt");
    size_t used = 0;
    for (size_t i = 0; i < o->n_positional; i++) {
        size_t length = strlen(o->positional[i]);
        memcpy(text + used, o->positional[i], length);
        used += length;
        text[used++] = ' ';
    }
    text[--used] = '\0';
    *ret = text;
    *ret_bytes = used;
    return 0;
}

static int make_request(
        const struct options *o, char *prompt, size_t bytes, uint8_t **ret, size_t *ret_n, struct error *e) {
    struct request_message messages[2];
    struct request_input input = {.text = prompt, .text_bytes = bytes};
    uint32_t *ids = NULL;
    int rc = 0;
    if (options_number(o, OPT_CHAT)) {
        if (options_given(o, OPT_SYSTEM))
            messages[input.n_messages++] = (struct request_message){"system", o->values[OPT_SYSTEM].text};
        messages[input.n_messages++] = (struct request_message){"user", prompt};
        input.messages = messages;
        if (strlen(prompt) != bytes)
            rc = error_set(e, -EINVAL, "the prompt holds a zero byte, which a chat message cannot");
    } else if (options_number(o, OPT_PROMPT_TOKEN_IDS)) {
        rc = request_parse_ids(prompt, &ids, &input.n_ids, e);
        input.ids = ids;
    }
    if (rc == 0)
        rc = request_pack(o, &input, ret, ret_n, e);
    free(ids);
    return rc;
}

static int ask(const struct options *o, const uint8_t *request, size_t bytes) {
    struct session session;
    int code = session_open(&session, o);
    if (code != 0)
        return code;
    struct answer a = {
            .json = options_number(o, OPT_JSON) != 0, .ids = options_number(o, OPT_TOKEN_IDS) != 0};
    a.reasoning = isatty(STDOUT_FILENO);
    struct client_status status;
    answer_run(&a, session.client, request, bytes, options_number(o, OPT_TIMEOUT), &status);
    if (a.n_tokens && !options_number(o, OPT_QUIET))
        answer_print_figures(&a);
    code = client_report(session.client, &status);
    answer_done(&a);
    session_close(&session);
    return code;
}

int verb_generate(const struct options *o) {
    struct error e = {0};
    char *prompt = NULL;
    uint8_t *request = NULL;
    size_t prompt_bytes = 0, bytes = 0;
    int code = EXIT_USAGE, rc = read_prompt(o, &prompt, &prompt_bytes, &e);
    if (rc == 0)
        rc = make_request(o, prompt, prompt_bytes, &request, &bytes, &e);
    if (rc < 0)
        fprintf(stderr, "shardd generate: %s\n", e.text);
    else
        code = ask(o, request, bytes);
    free(prompt);
    free(request);
    return code;
}
