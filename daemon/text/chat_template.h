/* chat_template.h - the Qwen3.5 chat format, in C, recognised by the SHA-256 of the checkpoint's template (with ends
 * of lines as Jinja2 reads them).
 *
 * Called by gRPC workers; stateless. The conversation is given as jansson values of the OpenAI shape (the
 * gRPC layer builds them from protobuf): messages [{role, content: string|null|[{type:"text", text}],
 * reasoning_content?, tool_calls?: [{function: {name, arguments: object}}]}], tools [object]. Output is a
 * list of spans, so that only what the template itself wrote may become control tokens. */
#pragma once

#include "base/error.h"
#include "daemon/text/tokenizer.h"

#include <jansson.h>

/* The format. Templates that differ only in whether they think by default are of one kind. */
enum chat_template_kind { CHAT_TEMPLATE_NONE = 0, CHAT_TEMPLATE_QWEN35 };

struct chat_template {
    enum chat_template_kind kind;
    const char *name; /* "qwen3.5", "qwen3.5-small", "shardd-qwen3.5"; static; "" for NONE */
    bool thinks_by_default;
};

/* template_text may be NULL (no template in the checkpoint). Unknown text gives kind NONE and 0; *e then says
 * which SHA-256 was not recognised. */
int chat_template_recognise(
        const char *template_text, size_t bytes, struct chat_template *ret, struct error *e);
/* Reads chat_template.jinja, else chat_template of tokenizer_config.json in the model folder. No such thing =
 * NONE. */
int chat_template_load(const char *model_dir, struct chat_template *ret, struct error *e);

struct chat_options {
    int enable_thinking; /* -1 = not given, 0, 1 */
    bool add_generation_prompt;
    const json_t *tools; /* array or NULL */
};

struct chat_rendered {
    char *text; /* the whole text, NUL-terminated, owned */
    size_t bytes;
    struct text_span *spans; /* cover text in order; owned */
    size_t n_spans;
    bool thinking_open; /* the generation prompt left a <think> block open */
};
/* -EINVAL with the template's own sentence (e.g. "System message must be at the beginning.") on what the
 * template refuses. */
int chat_template_render(const struct chat_template *t, const json_t *messages,
        const struct chat_options *options, struct chat_rendered *ret, struct error *e);
void chat_rendered_done(struct chat_rendered *r);

/* Python's json.dumps(value, ensure_ascii=False) with the separators of transformers' tojson. malloc'ed;
 * NULL: no memory. */
char *chat_json_dumps(const json_t *value);
/* Reads JSON that a client sent (tools, arguments) so that it prints as Python would print it: integers of
 * any length keep their digits (one beyond 64 bits is a json string with a mark that only chat_json_dumps()
 * and chat_template_render() know), keys their order. A key that is there twice is refused with unique; else
 * the last one counts, as in Python. Deeper than JSON_DEPTH_MAX, U+0000 in a string, or anything else that is
 * not JSON: -EINVAL, and the sentence begins with what. */
int chat_json_loads(
        const char *text, size_t bytes, bool unique, const char *what, json_t **ret, struct error *e);
