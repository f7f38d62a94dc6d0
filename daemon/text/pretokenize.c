/* Two ways of cutting a text into words: by hand for the patterns of the Qwen family, and by PCRE2.
 * tests/unit/text/unicode.c holds them against each other. A splitter owns its compiled pattern, a run its
 * match data. */
#include "daemon/text/pretokenize.h"

#include "base/buffer.h"
#include "daemon/text/unicode_class.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define MATCH_LIMIT     10000000u /* steps of one word; the known patterns need about one for each character */
#define HEAP_LIMIT_KIB  65536u
#define JIT_STACK_START (32u << 10)
#define JIT_STACK_MAX   (8u << 20)

const char PATTERN_QWEN2[] =
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
        "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char PATTERN_QWEN35[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}"
                              "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char PATTERN_GPT2[] =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

struct splitter {
    enum { SPLIT_NOTHING, SPLIT_QWEN2, SPLIT_QWEN35, SPLIT_REGEX } kind;
    pcre2_code *code;
    bool jit;
};

/* --- by hand ---
 * The alternatives of the patterns, in their order. X is [\p{L}] or [\p{L}\p{M}]. */

/* The length of (?i:s|t|re|ve|m|ll|d) at text, or 0; U+017F is the one other character that folds to one of
 * these. */
static size_t contraction(const char *text, size_t left) {
    if (left == 0)
        return 0;
    char a = text[0] | 0x20;
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 1;
    if (left < 2)
        return 0;
    char b = text[1] | 0x20;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return 2;
    return memcmp(text, "\xc5\xbf", 2) == 0 ? 2 : 0;
}

struct walk {
    const char *text;
    size_t bytes;
    bool marks; /* X has \p{M} */
};

static enum unicode_class class_at(const struct walk *w, size_t at, size_t *ret_len) {
    enum unicode_class c = unicode_class_of(unicode_decode(w->text + at, ret_len));
    if (c == UNICODE_MARK)
        return w->marks ? UNICODE_LETTER : UNICODE_OTHER;
    return c;
}

/* Past all characters of the class. */
static size_t run_of(const struct walk *w, size_t at, enum unicode_class class) {
    size_t len;
    while (at < w->bytes && class_at(w, at, &len) == class)
        at += len;
    return at;
}

static bool is_newline(char c) {
    return c == '\r' || c == '\n';
}

static size_t run_of_newlines(const struct walk *w, size_t at) {
    while (at < w->bytes && is_newline(w->text[at]))
        at++;
    return at;
}

/* \s*[\r\n]+ | \s+(?!\S) | \s+ */
static size_t white_space(const struct walk *w, size_t at) {
    size_t end = at, len, last = at, after_newline = 0;
    while (end < w->bytes && class_at(w, end, &len) == UNICODE_SPACE) {
        if (is_newline(w->text[end]))
            after_newline = end + 1;
        last = end;
        end += len;
    }
    if (after_newline)
        return after_newline;
    return end == w->bytes || last == at ? end : last;
}

static size_t next_by_hand(const struct walk *w, size_t at) {
    size_t len, next_len;
    char first = w->text[at];
    if (first == '\'') {
        size_t letters = contraction(w->text + at + 1, w->bytes - at - 1);
        if (letters)
            return at + 1 + letters;
    }
    enum unicode_class class = class_at(w, at, &len);
    if (class == UNICODE_LETTER)
        return run_of(w, at + len, UNICODE_LETTER);
    if (class == UNICODE_NUMBER)
        return at + len;
    enum unicode_class next = at + len < w->bytes ? class_at(w, at + len, &next_len) : UNICODE_SPACE;
    if (next == UNICODE_LETTER && !is_newline(first))
        return run_of(w, at + len, UNICODE_LETTER);
    if (class == UNICODE_OTHER || (first == ' ' && next == UNICODE_OTHER))
        return run_of_newlines(w, run_of(w, at + len, UNICODE_OTHER));
    return white_space(w, at);
}

/* --- by PCRE2 --- */

/* PCRE2's \s has U+180E, which is not White_Space in today's Unicode: \s is spelled out. */
static int spell_out(const char *pattern, size_t bytes, struct byte_buffer *out) {
    int r = 0;
    for (size_t i = 0; i < bytes && r >= 0; i++) {
        if (pattern[i] != '\\' || i + 1 == bytes) {
            r = byte_buffer_add(out, pattern + i, 1);
            continue;
        }
        i++;
        if (pattern[i] == 's')
            r = byte_buffer_text(out, "\\p{White_Space}");
        else if (pattern[i] == 'S')
            r = byte_buffer_text(out, "\\P{White_Space}");
        else
            r = byte_buffer_add(out, pattern + i - 1, 2);
    }
    return r;
}

static int compile(struct splitter *s, const char *pattern, size_t bytes, struct error *e) {
    struct byte_buffer spelled = {0};
    int code = 0;
    PCRE2_SIZE offset = 0;
    int r = spell_out(pattern, bytes, &spelled);
    if (r < 0)
        goto finish;
    s->code = pcre2_compile((PCRE2_SPTR)(spelled.data ? spelled.data : ""), spelled.n,
            PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &offset, NULL);
    if (!s->code) {
        PCRE2_UCHAR message[160] = {0};
        pcre2_get_error_message(code, message, sizeof(message));
        r = error_set(e, -EINVAL,
                "the regular expression is not one that PCRE2 takes: %s (near character %zu)",
                (const char *)message, (size_t)offset);
        goto finish;
    }
    /* Refused where memory may not become executable (systemd's MemoryDenyWriteExecute=): then it is
     * interpreted. */
    s->jit = pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE) == 0;
finish:
    free(spelled.data);
    return r;
}

static bool is_pattern(const char *pattern, size_t bytes, const char *known) {
    return bytes == strlen(known) && memcmp(pattern, known, bytes) == 0;
}

int splitter_new(const char *pattern, size_t bytes, bool by_hand, struct splitter **ret, struct error *e) {
    struct splitter *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    if (!pattern)
        s->kind = SPLIT_NOTHING;
    else if (by_hand && is_pattern(pattern, bytes, PATTERN_QWEN2))
        s->kind = SPLIT_QWEN2;
    else if (by_hand && is_pattern(pattern, bytes, PATTERN_QWEN35))
        s->kind = SPLIT_QWEN35;
    else {
        s->kind = SPLIT_REGEX;
        int r = compile(s, pattern, bytes, e);
        if (r < 0) {
            splitter_free(s);
            return r;
        }
    }
    *ret = s;
    return 0;
}

struct splitter *splitter_free(struct splitter *s) {
    if (!s)
        return NULL;
    pcre2_code_free(s->code);
    free(s);
    return NULL;
}

int splitter_run_begin(const struct splitter *s, struct splitter_run *ret) {
    struct splitter_run run = {.splitter = s};
    if (s->kind == SPLIT_REGEX) {
        run.match_data = pcre2_match_data_create(1, NULL);
        pcre2_match_context *context = run.match_context = pcre2_match_context_create(NULL);
        run.jit_stack = s->jit ? pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, NULL) : NULL;
        if (!run.match_data || !run.match_context || (s->jit && !run.jit_stack)) {
            splitter_run_end(&run);
            return -ENOMEM;
        }
        pcre2_set_match_limit(context, MATCH_LIMIT);
        pcre2_set_heap_limit(context, HEAP_LIMIT_KIB);
        if (run.jit_stack)
            pcre2_jit_stack_assign(context, NULL, run.jit_stack);
    }
    *ret = run;
    return 0;
}

void splitter_run_end(struct splitter_run *run) {
    pcre2_match_data_free(run->match_data);
    pcre2_match_context_free(run->match_context);
    pcre2_jit_stack_free(run->jit_stack);
    *run = (struct splitter_run){0};
}

/* Isolated: matches are words, and so is what lies between two of them. An empty match splits nothing. */
static int next_by_regex(struct splitter_run *run, const char *text, size_t bytes, size_t at, size_t *ret_end,
        struct error *e) {
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int r = pcre2_match(
            run->splitter->code, (PCRE2_SPTR)text, bytes, at, options, run->match_data, run->match_context);
    if (r == PCRE2_ERROR_NOMATCH) {
        *ret_end = bytes;
        return 0;
    }
    if (r < 0) {
        PCRE2_UCHAR message[160] = {0};
        pcre2_get_error_message(r, message, sizeof(message));
        return error_set(e, -EINVAL, "the pre-tokenizer gave up at byte %zu of the text: %s", at,
                (const char *)message);
    }
    const PCRE2_SIZE *match = pcre2_get_ovector_pointer(run->match_data);
    if (match[0] > at)
        *ret_end = match[0];
    else
        *ret_end = match[1] > at ? match[1] : bytes; /* \K can make a match that ends before it begins */
    return 0;
}

int splitter_next(struct splitter_run *run, const char *text, size_t bytes, size_t at, size_t *ret_end,
        struct error *e) {
    struct walk walk = {text, bytes, run->splitter->kind == SPLIT_QWEN35};
    switch (run->splitter->kind) {
    case SPLIT_NOTHING:
        *ret_end = bytes;
        return 0;
    case SPLIT_QWEN2:
    case SPLIT_QWEN35:
        *ret_end = next_by_hand(&walk, at);
        return 0;
    default:
        return next_by_regex(run, text, bytes, at, ret_end, e);
    }
}
