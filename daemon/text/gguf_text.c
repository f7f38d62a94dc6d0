/* gguf_text.c - see gguf_text.h. Names of the added tokens' properties are lost in the metadata: all of Qwen's are
 * matched in the text as it came (normalized false), and a control token is a special one. */
#include "daemon/text/gguf_text.h"

#include "base/buffer.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "daemon/text/output_parser.h"
#include "daemon/text/pretokenize.h"

#include <stdio.h>

/* What the list of types says of a token. */
enum token_type { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4, TOKEN_UNUSED = 5 };

static const struct {
    const char *name, *pattern;
} PRE_TOKENIZERS[] = {{"qwen35", PATTERN_QWEN35}, {"qwen2", PATTERN_QWEN2}};

struct writing {
    const struct gguf *g;
    const struct gguf_value *tokens, *types, *merges;
    const char *pattern;
    struct byte_buffer json;
    struct error *e;
};

/* --- JSON --- */

static int put(struct writing *w, const char *text) {
    return byte_buffer_text(&w->json, text);
}

static int put_string(struct writing *w, const char *text, uint64_t bytes) {
    static const char hex[] = "0123456789abcdef";
    int r = put(w, "\"");
    for (uint64_t i = 0; i < bytes && r == 0; i++) {
        const unsigned char c = (unsigned char)text[i];
        const char escaped[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
        r = c < 0x20 || c == '"' || c == '\\' ? byte_buffer_add(&w->json, escaped, 6)
                                              : byte_buffer_add(&w->json, &text[i], 1);
    }
    return r < 0 ? r : put(w, "\"");
}

static int put_number(struct writing *w, uint64_t number) {
    char text[24];
    snprintf(text, sizeof(text), "%llu", (unsigned long long)number);
    return put(w, text);
}

/* --- the parts --- */

/* The tags of thinking and tools are tokens of their own in every model that has them, whatever type a converter
 * gave them. */
static bool is_added(struct gguf_string text, uint64_t type) {
    return type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED ||
           output_parser_is_tag(text.data, (size_t)text.bytes);
}

/* One token of the kind that is asked for, with what the list needs before it. */
static int put_token(struct writing *w, uint64_t id, struct gguf_string text, uint64_t type, bool first) {
    int r = first ? 0 : put(w, ",");
    if (r == 0 && is_added(text, type)) {
        r = put(w, "{\"id\":");
        if (r == 0)
            r = put_number(w, id);
        if (r == 0)
            r = put(w, type == TOKEN_CONTROL ? ",\"special\":true,\"content\":"
                                             : ",\"special\":false,\"content\":");
        if (r == 0)
            r = put_string(w, text.data, text.bytes);
        return r < 0 ? r : put(w, "}");
    }
    if (r == 0)
        r = put_string(w, text.data, text.bytes);
    if (r == 0)
        r = put(w, ":");
    return r < 0 ? r : put_number(w, id);
}

static int put_tokens(struct writing *w, bool added) {
    const unsigned char *at = w->tokens->data;
    bool first = true;
    for (uint64_t id = 0; id < w->tokens->n; id++) {
        const struct gguf_string text = gguf_next_string(&at);
        uint64_t type = 0;
        int r = gguf_array_u64(w->types, id, &type);
        if (r < 0 || (type != TOKEN_NORMAL && type != TOKEN_UNUSED && !is_added(text, type)))
            return error_set(w->e, -ENOTSUP,
                    "%s: tokenizer.ggml.token_type: token %llu is of a type that is not supported",
                    w->g->file, (unsigned long long)id);
        if (!utf8_valid(text.data, text.bytes, NULL))
            return error_set(w->e, -EBADMSG, "%s: tokenizer.ggml.tokens: token %llu is not UTF-8", w->g->file,
                    (unsigned long long)id);
        bool is_used = type != TOKEN_UNUSED || is_added(text, type);
        if (!is_used || is_added(text, type) != added)
            continue;
        r = put_token(w, id, text, type, first);
        if (r < 0)
            return r;
        first = false;
    }
    return 0;
}

static int put_merges(struct writing *w) {
    const unsigned char *at = w->merges->data;
    int r = 0;
    for (uint64_t i = 0; i < w->merges->n && r == 0; i++) {
        const struct gguf_string text = gguf_next_string(&at);
        if (!utf8_valid(text.data, text.bytes, NULL))
            return error_set(w->e, -EBADMSG, "%s: tokenizer.ggml.merges: merge %llu is not UTF-8", w->g->file,
                    (unsigned long long)i);
        r = i ? put(w, ",") : 0;
        if (r == 0)
            r = put_string(w, text.data, text.bytes);
    }
    return r;
}

static int put_all(struct writing *w) {
    int r = put(w, "{\"version\":\"1.0\",\"added_tokens\":[");
    if (r == 0)
        r = put_tokens(w, /* added= */ true);
    if (r == 0)
        r = put(w,
                "],\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
                "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"invert\":false,\"pattern\":{\"Regex\":");
    if (r == 0)
        r = put_string(w, w->pattern, strlen(w->pattern));
    if (r == 0)
        r = put(w, "}},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},"
                   "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{");
    if (r == 0)
        r = put_tokens(w, /* added= */ false);
    if (r == 0)
        r = put(w, "},\"merges\":[");
    if (r == 0)
        r = put_merges(w);
    return r < 0 ? r : put(w, "]}}");
}

/* --- the metadata --- */

static int require_false(const struct gguf *g, const char *key, struct error *e) {
    bool value = false;
    int r = gguf_find(g, key) ? gguf_get_bool(g, key, &value, e) : 0;
    if (r == 0 && value)
        r = error_set(e, -ENOTSUP, "%s: %s is true; only false is supported", g->file, key);
    return r;
}

static int read_kind(struct writing *w) {
    struct gguf_string model, pre;
    int r = gguf_get_string(w->g, "tokenizer.ggml.model", &model, w->e);
    if (r == 0)
        r = gguf_get_string(w->g, "tokenizer.ggml.pre", &pre, w->e);
    if (r < 0)
        return r;
    if (!gguf_string_is(model, "gpt2"))
        return error_set(w->e, -ENOTSUP, "%s: tokenizer.ggml.model is '%.*s': only gpt2 is supported",
                w->g->file, model.bytes < 60 ? (int)model.bytes : 60, model.data);
    for (size_t i = 0; i < sizeof(PRE_TOKENIZERS) / sizeof(*PRE_TOKENIZERS); i++)
        if (gguf_string_is(pre, PRE_TOKENIZERS[i].name))
            w->pattern = PRE_TOKENIZERS[i].pattern;
    if (!w->pattern)
        return error_set(w->e, -ENOTSUP,
                "%s: tokenizer.ggml.pre is '%.*s': only qwen35 and qwen2 are supported; put the model's "
                "tokenizer.json beside the file",
                w->g->file, pre.bytes < 60 ? (int)pre.bytes : 60, pre.data);
    return 0;
}

static int read_metadata(struct writing *w) {
    int r = read_kind(w);
    if (r == 0)
        r = require_false(w->g, "tokenizer.ggml.add_bos_token", w->e);
    if (r == 0)
        r = require_false(w->g, "tokenizer.ggml.add_eos_token", w->e);
    if (r == 0)
        r = require_false(w->g, "tokenizer.ggml.add_space_prefix", w->e);
    if (r == 0)
        r = gguf_get_array(w->g, "tokenizer.ggml.tokens", GGUF_STRING, &w->tokens, w->e);
    if (r == 0)
        r = gguf_get_array(w->g, "tokenizer.ggml.token_type", GGUF_I32, &w->types, w->e);
    if (r == 0)
        r = gguf_get_array(w->g, "tokenizer.ggml.merges", GGUF_STRING, &w->merges, w->e);
    if (r < 0)
        return r;
    if (w->tokens->n != w->types->n || w->tokens->n > TOKENIZER_VOCAB_MAX)
        return error_set(w->e, w->tokens->n > TOKENIZER_VOCAB_MAX ? -E2BIG : -EBADMSG,
                "%s: tokenizer.ggml.tokens has %llu entries and token_type %llu: they must be as many, and at most "
                "%u",
                w->g->file, (unsigned long long)w->tokens->n, (unsigned long long)w->types->n,
                TOKENIZER_VOCAB_MAX);
    return 0;
}

int gguf_tokenizer_load(const struct gguf *g, struct tokenizer **ret, struct error *e) {
    struct writing w = {.g = g, .e = e};
    int r = read_metadata(&w);
    if (r == 0) {
        r = put_all(&w);
        if (r == -ENOMEM)
            error_set(e, r, "%s: not enough memory to load its tokenizer", g->file);
    }
    if (r == 0)
        r = tokenizer_parse(w.json.data, w.json.n, g->file, ret, e);
    free(w.json.data);
    return r;
}

int gguf_chat_template_load(const struct gguf *g, struct chat_template *ret, struct error *e) {
    static const char key[] = "tokenizer.chat_template";
    struct gguf_string text;
    if (!gguf_find(g, key))
        return chat_template_recognise(NULL, 0, ret, e);
    int r = gguf_get_string(g, key, &text, e);
    if (r == 0)
        r = chat_template_recognise(text.data, text.bytes, ret, e);
    if (r == 0 && ret->kind == CHAT_TEMPLATE_NONE)
        error_prefix(e, -ENOTSUP, "%s: %s", g->file, key);
    return r;
}
