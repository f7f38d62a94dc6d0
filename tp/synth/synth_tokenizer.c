/* synth_tokenizer.c - the tokenizer of a synthetic model: copied from a folder, or made.
 *
 * The made one is Qwen3.5's in form (regex, NFC, byte level, its added tokens with their own properties)
 * without any merge: text becomes one token per byte. Every other id has a word of its own that encoding
 * never gives, so whatever a random model samples has a text. The added tokens take the last ids. */
#include "tp/synth/synth_chat_template.h"
#include "tp/synth/synth_parts.h"

#include "base/file.h"
#include "base/json_pull.h"
#include "base/utf8.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define IM_END      "<|im_end|>"
#define END_OF_TEXT "<|endoftext|>"
#define FIRST_WORD  256u

static const struct {
    const char *text;
    bool special;
} ADDED[] = {
        {END_OF_TEXT, true},
        {"<|im_start|>", true},
        {IM_END, true},
        {"<|object_ref_start|>", true},
        {"<|object_ref_end|>", true},
        {"<|box_start|>", true},
        {"<|box_end|>", true},
        {"<|quad_start|>", true},
        {"<|quad_end|>", true},
        {"<|vision_start|>", true},
        {"<|vision_end|>", true},
        {"<|vision_pad|>", true},
        {"<|image_pad|>", true},
        {"<|video_pad|>", true},
        {"<tool_call>", false},
        {"</tool_call>", false},
        {"<|fim_prefix|>", false},
        {"<|fim_middle|>", false},
        {"<|fim_suffix|>", false},
        {"<|fim_pad|>", false},
        {"<|repo_name|>", false},
        {"<|file_sep|>", false},
        {"<tool_response>", false},
        {"</tool_response>", false},
        {"<think>", false},
        {"</think>", false},
};
#define ADDED_COUNT ((uint32_t)(sizeof(ADDED) / sizeof(*ADDED)))

/* As it stands in the file: backslashes twice. */
static const char REGEX[] =
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{L}\\\\p{M}]+|\\\\p{N}| "
        "?[^\\\\s\\\\p{L}\\\\p{M}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+";

/* --- making --- */

/* Bytes that stand for themselves in the byte-level alphabet; the others are moved to U+0100 and up. */
static bool is_shown_as_itself(unsigned byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

static void print_byte_tokens(struct synth_buffer *b) {
    uint32_t id = 0, moved = 0;
    for (int pass = 0; pass < 2; pass++)
        for (unsigned byte = 0; byte < 256; byte++) {
            char text[4];
            if (is_shown_as_itself(byte) != (pass == 0))
                continue;
            size_t n = utf8_encode(pass == 0 ? byte : 0x100 + moved++, text);
            const char *escape = byte == '"' || byte == '\\' ? "\\" : "";
            synth_print(b, "%s      \"%s%.*s\": %u", id ? ",\n" : "", escape, (int)n, text, id);
            id++;
        }
}

/* Word n: a space and letters, counted aa, ab, ... zz, aaa, ... */
static void print_word(struct synth_buffer *b, uint32_t n, uint32_t id) {
    char letters[8];
    size_t at = sizeof(letters);
    for (n += 27; n > 0; n = (n - 1) / 26)
        letters[--at] = (char)('a' + (n - 1) % 26);
    synth_print(b, ",\n      \"\xC4\xA0%.*s\": %u", (int)(sizeof(letters) - at), letters + at, id);
}

static void print_tokenizer(struct synth_buffer *b, uint32_t vocab_size) {
    const uint32_t first_added = vocab_size - ADDED_COUNT;
    static const char level[] =
            "\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": false, \"use_regex\": "
            "false";
    synth_print(b, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  "
                   "\"added_tokens\": [");
    for (uint32_t i = 0; i < ADDED_COUNT; i++)
        synth_print(b,
                "%s\n    {\"id\": %u, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, "
                "\"rstrip\": false, \"normalized\": false, \"special\": %s}",
                i ? "," : "", first_added + i, ADDED[i].text, ADDED[i].special ? "true" : "false");
    synth_print(b,
            "\n  ],\n  \"normalizer\": {\"type\": \"NFC\"},\n  \"pre_tokenizer\": {\"type\": \"Sequence\", ");
    synth_print(
            b, "\"pretokenizers\": [\n    {\"type\": \"Split\", \"pattern\": {\"Regex\": \"%s\"}, ", REGEX);
    synth_print(b, "\"behavior\": \"Isolated\", \"invert\": false},\n    {%s}\n  ]},\n", level);
    synth_print(b, "  \"post_processor\": {%s},\n  \"decoder\": {%s},\n", level, level);
    synth_print(b, "  \"model\": {\n    \"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, ");
    synth_print(
            b, "\"continuing_subword_prefix\": \"\", \"end_of_word_suffix\": \"\", \"fuse_unk\": false, ");
    synth_print(b, "\"byte_fallback\": false, \"ignore_merges\": false,\n    \"vocab\": {\n");
    print_byte_tokens(b);
    for (uint32_t id = FIRST_WORD; id < first_added; id++)
        print_word(b, id - FIRST_WORD, id);
    synth_print(b, "\n    },\n    \"merges\": []\n  }\n}\n");
}

static int write_buffer(
        const struct synth_options *o, const char *name, struct synth_buffer *b, struct error *e) {
    char path[PATH_MAX];
    int r = b->failed ? error_set(e, -ENOMEM, "%s: out of memory", name) : file_path(o->dir, name, path, e);
    if (r == 0)
        r = file_replace(path, b->data, b->n, 0644, e);
    free(b->data);
    *b = (struct synth_buffer){0};
    return r;
}

static int make_tokenizer(const struct synth_options *o, struct error *e) {
    struct synth_buffer b = {0};
    char path[PATH_MAX];
    if (o->config.vocab_size < FIRST_WORD + ADDED_COUNT)
        return error_set(e, -EDOM,
                "a vocabulary of %u has no room for the %u tokens of a byte-level tokenizer",
                o->config.vocab_size, FIRST_WORD + ADDED_COUNT);
    print_tokenizer(&b, o->config.vocab_size);
    int r = write_buffer(o, "tokenizer.json", &b, e);
    if (r < 0)
        return r;
    synth_print(
            &b, "{\n  \"add_bos_token\": false,\n  \"add_prefix_space\": false,\n  \"bos_token\": null,\n");
    synth_print(&b, "  \"eos_token\": \"%s\",\n  \"pad_token\": \"%s\",\n  \"unk_token\": null,\n", IM_END,
            END_OF_TEXT);
    synth_print(&b, "  \"model_max_length\": %u,\n  \"split_special_tokens\": false,\n",
            o->config.max_position_embeddings);
    synth_print(&b, "  \"tokenizer_class\": \"Qwen2Tokenizer\"\n}\n");
    r = write_buffer(o, "tokenizer_config.json", &b, e);
    if (r == 0)
        r = file_path(o->dir, "chat_template.jinja", path, e);
    return r < 0 ? r : file_replace(path, synth_chat_template, synth_chat_template_bytes, 0644, e);
}

/* --- copying --- */

static int copy_file(const struct synth_options *o, const char *name, bool required, struct error *e) {
    char from[PATH_MAX], to[PATH_MAX], *data = NULL;
    size_t bytes = 0;
    int r = file_path(o->tokenizer_dir, name, from, e);
    if (r == 0)
        r = file_path(o->dir, name, to, e);
    if (r == 0)
        r = file_read(from, TOKENIZER_BYTES_MAX, &data, &bytes, e);
    if (r == -ENOENT && !required)
        return 0;
    if (r == 0)
        r = file_replace(to, data, bytes, 0644, e);
    free(data);
    return r;
}

int synth_write_tokenizer(const struct synth_options *o, struct error *e) {
    if (!o->tokenizer_dir)
        return make_tokenizer(o, e);
    int r = copy_file(o, "tokenizer.json", true, e);
    if (r == 0)
        r = copy_file(o, "tokenizer_config.json", false, e);
    return r < 0 ? r : copy_file(o, "chat_template.jinja", false, e);
}
