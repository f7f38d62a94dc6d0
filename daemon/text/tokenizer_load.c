/* Reads tokenizer.json. What each part may say is in tokenizer.h; every refusal names the file and the item. */
#include "base/file.h"
#include "base/json_pull.h"
#include "base/limits.h"
#include "daemon/text/nfc.h"
#include "daemon/text/tokenizer_tables.h"

#define SEEN_MODEL         1u
#define SEEN_PRE_TOKENIZER 2u
#define SEEN_DECODER       4u
#define WORD_BYTES         64u /* entries up to this length are tried as whole words at load */

struct loading {
    struct tokenizer *t;
    struct json_pull json;
    struct error *e;
    uint32_t seen;
    uint32_t n_merges;
    char *pattern; /* of the Split, owned */
    size_t pattern_bytes;
    bool has_split, byte_level, use_regex, ignore_merges;
    struct added_object *added; /* (n_added), their contents owned */
    uint32_t n_added, added_size;
    struct byte_buffer scratch;
};

#define REFUSE(l, code, ...) json_pull_error(&(l)->json, code, (l)->e, __VA_ARGS__)

/* Takes the next value, which must be true or false. */
static int read_bool(struct loading *l, const char *what, bool *ret) {
    int r = json_pull_next(&l->json, l->e);
    if (r < 0)
        return r;
    if (r != PULL_TRUE && r != PULL_FALSE)
        return REFUSE(l, -EBADMSG, "%s is %s; it must be true or false", what, json_event_name(r));
    *ret = r == PULL_TRUE;
    return 0;
}

/* Takes the next value, which must be a string; it is then l->json.string. */
static int read_string(struct loading *l, const char *what) {
    int r = json_pull_next(&l->json, l->e);
    if (r < 0 || r == PULL_STRING)
        return r < 0 ? r : 0;
    return REFUSE(l, -EBADMSG, "%s is %s; it must be a string", what, json_event_name(r));
}

static int read_id(struct loading *l, const char *what, uint32_t *ret) {
    uint64_t id;
    int r = json_pull_next(&l->json, l->e);
    if (r < 0)
        return r;
    if (r != PULL_NUMBER)
        return REFUSE(l, -EBADMSG, "%s is %s; it must be a number", what, json_event_name(r));
    r = json_pull_u64(&l->json, &id, NULL);
    if (r < 0 || id >= TOKENIZER_VOCAB_MAX)
        return REFUSE(l, r == -EBADMSG ? -EBADMSG : -E2BIG, "%s is %.*s; ids go from 0 to %u", what,
                (int)(l->json.string_bytes < 40 ? l->json.string_bytes : 40), l->json.string,
                TOKENIZER_VOCAB_MAX - 1);
    *ret = (uint32_t)id;
    return 0;
}

/* Refuses every value but null (and, if may_be_empty, the empty string). */
static int read_null(struct loading *l, const char *what, bool may_be_empty) {
    int r = json_pull_next(&l->json, l->e);
    if (r < 0 || r == PULL_NULL)
        return r < 0 ? r : 0;
    if (may_be_empty && r == PULL_STRING && l->json.string_bytes == 0)
        return 0;
    return REFUSE(l, -ENOTSUP, "%s is set; only tokenizers without it are supported", what);
}

/* A setting of training or of batches, which changes no prompt of ours: it is noted and passed over. */
static int read_ignored(struct loading *l, unsigned which) {
    struct json_pull *json = &l->json;
    int r = json_pull_next(json, l->e);
    if (r < 0 || r == PULL_NULL)
        return r < 0 ? r : 0;
    l->t->ignored |= which;
    return r == PULL_OBJECT_BEGIN || r == PULL_ARRAY_BEGIN ? json_pull_leave(json, l->e) : 0;
}

/* None, as null or as a number that is zero. */
static int read_dropout(struct loading *l) {
    double value = 0;
    int r = json_pull_next(&l->json, l->e);
    if (r < 0 || r == PULL_NULL)
        return r < 0 ? r : 0;
    if (r == PULL_NUMBER)
        r = json_pull_double(&l->json, &value, l->e);
    else
        value = 1;
    if (r < 0 || value == 0)
        return r < 0 ? r : 0;
    return REFUSE(l, -ENOTSUP, "dropout is set; only tokenizers without it are supported");
}

static int read_false(struct loading *l, const char *what) {
    bool value = false;
    int r = read_bool(l, what, &value);
    if (r < 0 || !value)
        return r;
    return REFUSE(l, -ENOTSUP, "%s is true; only false is supported", what);
}

/* How the current string is shown in a sentence: cut, and never more than it has. */
#define SHOWN(l) (int)((l)->json.string_bytes < 80 ? (l)->json.string_bytes : 80), (l)->json.string

static int unknown_key(struct loading *l, const char *where) {
    return REFUSE(l, -ENOTSUP, "%s has a key '%.*s' that is not supported", where, SHOWN(l));
}

/* --- the objects with a "type" --- */

enum part { PART_NORMALIZER, PART_PRE_TOKENIZER, PART_POST_PROCESSOR, PART_DECODER };
static const char *const part_names[] = {"normalizer", "pre_tokenizer", "post_processor", "decoder"};

/* All that such an object can say: which of it is allowed depends on the type, which may come last. */
struct part_object {
    char type[32];
    bool has_pattern, has_children, add_prefix_space, use_regex, invert, adds_tokens;
    char behavior[32];
};

static int read_part(struct loading *l, enum part part, unsigned depth);

static int read_name(struct loading *l, const char *what, char *ret, size_t size) {
    int r = read_string(l, what);
    if (r < 0)
        return r;
    if (l->json.string_bytes >= size || memchr(l->json.string, 0, l->json.string_bytes))
        return REFUSE(l, -ENOTSUP, "%s '%.*s' is not supported", what, SHOWN(l));
    memcpy(ret, l->json.string, l->json.string_bytes);
    ret[l->json.string_bytes] = 0;
    return 0;
}

/* {"Regex": "..."} */
static int read_pattern(struct loading *l) {
    int r = json_pull_expect(&l->json, PULL_OBJECT_BEGIN, l->e);
    if (r >= 0)
        r = json_pull_expect(&l->json, PULL_KEY, l->e);
    if (r < 0)
        return r;
    if (!json_pull_is(&l->json, "Regex"))
        return unknown_key(l, "the pattern of a Split");
    r = read_string(l, "the Regex of a Split");
    if (r < 0)
        return r;
    if (l->pattern)
        return REFUSE(l, -ENOTSUP, "there is a second Split pre-tokenizer; only one is supported");
    l->pattern = malloc(l->json.string_bytes + 1);
    if (!l->pattern)
        return -ENOMEM;
    memcpy(l->pattern, l->json.string, l->json.string_bytes);
    l->pattern_bytes = l->json.string_bytes;
    return json_pull_expect(&l->json, PULL_OBJECT_END, l->e);
}

/* The parts of a Sequence. */
static int read_parts(struct loading *l, enum part part, unsigned depth) {
    int r = json_pull_expect(&l->json, PULL_ARRAY_BEGIN, l->e);
    while (r >= 0) {
        r = json_pull_next(&l->json, l->e);
        if (r < 0 || r == PULL_ARRAY_END)
            return r < 0 ? r : 0;
        if (r != PULL_OBJECT_BEGIN)
            return REFUSE(
                    l, -EBADMSG, "a %s is %s; it must be an object", part_names[part], json_event_name(r));
        r = read_part(l, part, depth + 1);
    }
    return r;
}

/* The single template of a TemplateProcessing: anything but the sequence itself adds tokens. */
static int read_template(struct loading *l, bool *adds_tokens) {
    uint32_t n = 0;
    int r = json_pull_expect(&l->json, PULL_ARRAY_BEGIN, l->e);
    if (r < 0)
        return r;
    while ((r = json_pull_next(&l->json, l->e)) == PULL_OBJECT_BEGIN) {
        r = json_pull_expect(&l->json, PULL_KEY, l->e);
        if (r < 0)
            return r;
        n++;
        *adds_tokens = *adds_tokens || n > 1 || !json_pull_is(&l->json, "Sequence");
        r = json_pull_leave(&l->json, l->e);
        if (r < 0)
            return r;
    }
    if (r < 0 || r == PULL_ARRAY_END)
        return r < 0 ? r : 0;
    return REFUSE(l, -EBADMSG, "the single template of a post_processor holds %s; it must hold objects",
            json_event_name(r));
}

static int read_part_key(struct loading *l, enum part part, unsigned depth, struct part_object *o) {
    struct json_pull *json = &l->json;
    bool ignored;
    if (json_pull_is(json, "type"))
        return read_name(l, "a type", o->type, sizeof(o->type));
    if (json_pull_is(json, "pattern") && part == PART_PRE_TOKENIZER) {
        o->has_pattern = true;
        return read_pattern(l);
    }
    if (json_pull_is(json, "behavior") && part == PART_PRE_TOKENIZER)
        return read_name(l, "the behavior of a Split", o->behavior, sizeof(o->behavior));
    if (json_pull_is(json, "invert"))
        return read_bool(l, "invert", &o->invert);
    if (json_pull_is(json, "add_prefix_space"))
        return read_bool(l, "add_prefix_space", &o->add_prefix_space);
    if (json_pull_is(json, "use_regex"))
        return read_bool(l, "use_regex", &o->use_regex);
    if (json_pull_is(json, "trim_offsets"))
        return read_bool(l, "trim_offsets", &ignored);
    if (json_pull_is(json, "normalizers") || json_pull_is(json, "pretokenizers") ||
            json_pull_is(json, "processors") || json_pull_is(json, "decoders")) {
        o->has_children = true;
        return read_parts(l, part, depth);
    }
    if (json_pull_is(json, "single") && part == PART_POST_PROCESSOR)
        return read_template(l, &o->adds_tokens);
    if ((json_pull_is(json, "pair") || json_pull_is(json, "special_tokens")) && part == PART_POST_PROCESSOR)
        return json_pull_skip(json, l->e);
    return unknown_key(l, part_names[part]);
}

static int judge_pre_tokenizer(struct loading *l, const struct part_object *o) {
    if (strcmp(o->type, "Split") == 0) {
        if (!o->has_pattern || strcmp(o->behavior, "Isolated") != 0 || o->invert)
            return REFUSE(l, -ENOTSUP,
                    "a Split pre-tokenizer needs a Regex, behavior Isolated (it has '%s') and invert false",
                    o->behavior);
        if (l->byte_level)
            return REFUSE(l, -ENOTSUP,
                    "the Split pre-tokenizer comes after ByteLevel; only before it is supported");
        l->has_split = true;
        return 0;
    }
    if (strcmp(o->type, "ByteLevel") != 0)
        return REFUSE(l, -ENOTSUP, "pre_tokenizer '%s' is not supported; Split and ByteLevel are", o->type);
    if (o->add_prefix_space)
        return REFUSE(
                l, -ENOTSUP, "pre_tokenizer ByteLevel has add_prefix_space true; only false is supported");
    if (l->byte_level)
        return REFUSE(l, -ENOTSUP, "there is a second ByteLevel pre_tokenizer");
    if (l->has_split && o->use_regex)
        return REFUSE(l, -ENOTSUP,
                "pre_tokenizer ByteLevel has use_regex true after a Split; only false is supported");
    l->byte_level = true;
    l->use_regex = o->use_regex;
    return 0;
}

static int judge_part(struct loading *l, enum part part, const struct part_object *o) {
    if (strcmp(o->type, "Sequence") == 0 && o->has_children)
        return 0;
    switch (part) {
    case PART_NORMALIZER:
        if (strcmp(o->type, "NFC") != 0)
            return REFUSE(l, -ENOTSUP, "normalizer '%s' is not supported; NFC or null is", o->type);
        l->t->nfc = true;
        return 0;
    case PART_PRE_TOKENIZER:
        return judge_pre_tokenizer(l, o);
    case PART_POST_PROCESSOR:
        if (strcmp(o->type, "ByteLevel") == 0 ||
                (strcmp(o->type, "TemplateProcessing") == 0 && !o->adds_tokens))
            return 0;
        return REFUSE(l, -ENOTSUP, "post_processor '%s' %s; only one that adds nothing is", o->type,
                o->adds_tokens ? "adds tokens, which is not supported" : "is not supported");
    default:
        if (strcmp(o->type, "ByteLevel") != 0)
            return REFUSE(l, -ENOTSUP, "decoder '%s' is not supported; ByteLevel is", o->type);
        l->seen |= SEEN_DECODER;
        return 0;
    }
}

/* One object whose BEGIN was taken. */
static int read_part(struct loading *l, enum part part, unsigned depth) {
    struct part_object o = {.use_regex = true};
    int r;
    if (depth > 4)
        return REFUSE(l, -E2BIG, "the %s nests too deep", part_names[part]);
    while ((r = json_pull_next(&l->json, l->e)) == PULL_KEY) {
        r = read_part_key(l, part, depth, &o);
        if (r < 0)
            return r;
    }
    return r < 0 ? r : judge_part(l, part, &o);
}

static int read_part_or_null(struct loading *l, enum part part) {
    int r = json_pull_next(&l->json, l->e);
    if (r < 0 || r == PULL_NULL)
        return r < 0 ? r : 0;
    if (r != PULL_OBJECT_BEGIN)
        return REFUSE(l, -EBADMSG, "the %s is %s; it must be an object or null", part_names[part],
                json_event_name(r));
    return read_part(l, part, 0);
}

/* --- the model --- */

static int add_piece(struct loading *l, uint32_t id, const char *data, size_t bytes, uint8_t flags) {
    int r = vocab_add(&l->t->vocab, id, data, bytes, flags);
    if (r == -EEXIST)
        return REFUSE(l, -EBADMSG, "id %u is given twice", id);
    if (r == -E2BIG)
        return REFUSE(l, r, "the entry with id %u is longer than %u bytes, or all are longer than %u", id,
                TOKEN_BYTES_MAX, TOKENIZER_BYTES_MAX);
    if (r >= 0 && bytes > l->t->longest_piece)
        l->t->longest_piece = (uint32_t)bytes;
    return r;
}

static int read_vocab(struct loading *l) {
    int r = json_pull_expect(&l->json, PULL_OBJECT_BEGIN, l->e);
    if (r < 0)
        return r;
    while ((r = json_pull_next(&l->json, l->e)) == PULL_KEY) {
        bool in_alphabet;
        uint32_t id;
        l->scratch.n = 0;
        r = vocab_from_alphabet(l->json.string, l->json.string_bytes, &l->scratch, &in_alphabet);
        if (r >= 0 && !in_alphabet) /* decodes to itself, and no merge can make it */
            r = byte_buffer_add(&l->scratch, l->json.string, l->json.string_bytes);
        if (r >= 0)
            r = read_id(l, "an id of the vocabulary", &id);
        if (r >= 0)
            r = add_piece(l, id, l->scratch.data, l->scratch.n, 0);
        if (r >= 0 && in_alphabet)
            r = vocab_index(&l->t->vocab, id);
        if (r == -EEXIST)
            return REFUSE(l, -EBADMSG, "the vocabulary has the entry of id %u twice", id);
        if (r < 0)
            return r;
    }
    if (r < 0)
        return r;
    for (unsigned byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        if (!vocab_find(&l->t->vocab, &c, 1, &l->t->bpe.byte_ids[byte]))
            return REFUSE(l, -ENOTSUP,
                    "the vocabulary has no entry for byte 0x%02x; only byte-level vocabularies are supported",
                    byte);
    }
    return 0;
}

/* One half of a merge, appended to scratch as bytes. */
static int read_half(struct loading *l, const char *text, size_t bytes, uint32_t *ret_id) {
    size_t before = l->scratch.n;
    bool in_alphabet;
    int r = vocab_from_alphabet(text, bytes, &l->scratch, &in_alphabet);
    if (r < 0)
        return r;
    if (bytes == 0 || !in_alphabet ||
            !vocab_find(&l->t->vocab, l->scratch.data + before, l->scratch.n - before, ret_id))
        return REFUSE(l, -EBADMSG, "merge %u names '%.*s', which is not in the vocabulary", l->n_merges,
                (int)(bytes < 80 ? bytes : 80), text);
    return 0;
}

static int add_merge(struct loading *l, uint32_t left, uint32_t right) {
    uint32_t id;
    if (!vocab_find(&l->t->vocab, l->scratch.data, l->scratch.n, &id))
        return REFUSE(l, -EBADMSG, "merge %u makes an entry that is not in the vocabulary", l->n_merges);
    int r = bpe_add_merge(&l->t->bpe, left, right, l->n_merges, id);
    if (r == -EEXIST)
        return REFUSE(l, -EBADMSG, "merge %u is there twice", l->n_merges);
    if (r < 0)
        return r;
    if (++l->n_merges >= TOKENIZER_VOCAB_MAX)
        return REFUSE(l, -E2BIG, "there are more than %u merges", TOKENIZER_VOCAB_MAX - 1);
    return 0;
}

/* "a b" */
static int read_merge_string(struct loading *l) {
    uint32_t left, right;
    const char *text = l->json.string, *space = memchr(text, ' ', l->json.string_bytes);
    size_t first = space ? (size_t)(space - text) : 0, second = l->json.string_bytes - first - 1;
    if (!space || memchr(space + 1, ' ', second))
        return REFUSE(l, -EBADMSG, "merge %u is not two entries with a space between them", l->n_merges);
    l->scratch.n = 0;
    int r = read_half(l, text, first, &left);
    if (r >= 0)
        r = read_half(l, space + 1, second, &right);
    return r < 0 ? r : add_merge(l, left, right);
}

/* ["a", "b"], BEGIN taken */
static int read_merge_pair(struct loading *l) {
    uint32_t halves[2];
    int r = 0;
    l->scratch.n = 0;
    for (unsigned i = 0; i < 2 && r >= 0; i++) {
        r = read_string(l, "half of a merge");
        if (r >= 0)
            r = read_half(l, l->json.string, l->json.string_bytes, &halves[i]);
    }
    if (r >= 0)
        r = json_pull_expect(&l->json, PULL_ARRAY_END, l->e);
    return r < 0 ? r : add_merge(l, halves[0], halves[1]);
}

static int read_merges(struct loading *l) {
    if (l->t->vocab.n_pieces == 0 || l->n_merges > 0)
        return REFUSE(l, -ENOTSUP, "the merges come before the vocabulary or are there twice");
    int r = json_pull_expect(&l->json, PULL_ARRAY_BEGIN, l->e);
    while (r >= 0) {
        r = json_pull_next(&l->json, l->e);
        if (r < 0 || r == PULL_ARRAY_END)
            return r < 0 ? r : 0;
        if (r == PULL_STRING)
            r = read_merge_string(l);
        else if (r == PULL_ARRAY_BEGIN)
            r = read_merge_pair(l);
        else
            r = REFUSE(l, -EBADMSG, "merge %u is %s; it must be a string or two", l->n_merges,
                    json_event_name(r));
    }
    return r;
}

static int read_model_key(struct loading *l) {
    struct json_pull *json = &l->json;
    if (json_pull_is(json, "type")) {
        int r = read_string(l, "the type of the model");
        if (r < 0 || json_pull_is(json, "BPE"))
            return r;
        return REFUSE(l, -ENOTSUP, "the model is of type '%.*s'; BPE is supported", SHOWN(l));
    }
    if (json_pull_is(json, "vocab"))
        return read_vocab(l);
    if (json_pull_is(json, "merges"))
        return read_merges(l);
    if (json_pull_is(json, "dropout"))
        return read_dropout(l);
    if (json_pull_is(json, "unk_token"))
        return read_null(l, "unk_token", false);
    if (json_pull_is(json, "continuing_subword_prefix"))
        return read_null(l, "continuing_subword_prefix", true);
    if (json_pull_is(json, "end_of_word_suffix"))
        return read_null(l, "end_of_word_suffix", true);
    if (json_pull_is(json, "fuse_unk"))
        return read_false(l, "fuse_unk");
    if (json_pull_is(json, "byte_fallback"))
        return read_false(l, "byte_fallback");
    if (json_pull_is(json, "ignore_merges"))
        return read_bool(l, "ignore_merges", &l->ignore_merges);
    return unknown_key(l, "the model");
}

static int read_model(struct loading *l) {
    if (l->seen & SEEN_MODEL)
        return REFUSE(l, -EBADMSG, "there is a second model");
    l->seen |= SEEN_MODEL;
    int r = json_pull_expect(&l->json, PULL_OBJECT_BEGIN, l->e);
    if (r < 0)
        return r;
    while ((r = json_pull_next(&l->json, l->e)) == PULL_KEY) {
        r = read_model_key(l);
        if (r < 0)
            return r;
    }
    return r < 0 ? r : 0;
}

/* --- added tokens --- */

struct added_object {
    char *content; /* owned */
    size_t bytes;
    uint32_t id;
    bool has_id, normalized, special;
};

static int read_added_key(struct loading *l, struct added_object *o) {
    struct json_pull *json = &l->json;
    if (json_pull_is(json, "id")) {
        o->has_id = true;
        return read_id(l, "the id of an added token", &o->id);
    }
    if (json_pull_is(json, "content")) {
        int r = read_string(l, "the content of an added token");
        if (r < 0)
            return r;
        if (o->content || json->string_bytes == 0 || json->string_bytes > TOKEN_BYTES_MAX)
            return REFUSE(l, -EBADMSG,
                    "the content of an added token is empty, there twice or longer than %u bytes",
                    TOKEN_BYTES_MAX);
        o->content = malloc(json->string_bytes);
        if (!o->content)
            return -ENOMEM;
        memcpy(o->content, json->string, json->string_bytes);
        o->bytes = json->string_bytes;
        return 0;
    }
    if (json_pull_is(json, "single_word"))
        return read_false(l, "single_word of an added token");
    if (json_pull_is(json, "lstrip"))
        return read_false(l, "lstrip of an added token");
    if (json_pull_is(json, "rstrip"))
        return read_false(l, "rstrip of an added token");
    if (json_pull_is(json, "normalized"))
        return read_bool(l, "normalized of an added token", &o->normalized);
    if (json_pull_is(json, "special"))
        return read_bool(l, "special of an added token", &o->special);
    return unknown_key(l, "an added token");
}

/* The list comes before the model in the file, so its tokens wait until the vocabulary is there. */
static int keep_added(struct loading *l, const struct added_object *o) {
    if (!o->has_id || !o->content)
        return REFUSE(l, -EBADMSG, "an added token has no id or no content");
    if (l->n_added == TOKENIZER_VOCAB_MAX)
        return REFUSE(l, -E2BIG, "there are more than %u added tokens", TOKENIZER_VOCAB_MAX);
    if (l->n_added == l->added_size) {
        uint32_t size = l->added_size ? l->added_size * 2 : 32;
        struct added_object *added = reallocarray(l->added, size, sizeof(*added));
        if (!added)
            return -ENOMEM;
        l->added = added;
        l->added_size = size;
    }
    l->added[l->n_added++] = *o;
    return 0;
}

static int read_added_tokens(struct loading *l) {
    int r = json_pull_expect(&l->json, PULL_ARRAY_BEGIN, l->e);
    while (r >= 0) {
        struct added_object o = {0};
        r = json_pull_next(&l->json, l->e);
        if (r < 0 || r == PULL_ARRAY_END)
            return r < 0 ? r : 0;
        if (r != PULL_OBJECT_BEGIN)
            return REFUSE(l, -EBADMSG, "an added token is %s; it must be an object", json_event_name(r));
        while ((r = json_pull_next(&l->json, l->e)) == PULL_KEY) {
            r = read_added_key(l, &o);
            if (r < 0)
                break;
        }
        if (r >= 0)
            r = keep_added(l, &o);
        if (r < 0)
            free(o.content);
    }
    return r;
}

/* The model may have the token under this id already; then it must be the same one. */
static int enter_added(struct loading *l, const struct added_object *o) {
    struct tokenizer *t = l->t;
    bool in_alphabet;
    uint32_t model_id;
    uint8_t flags = PIECE_ADDED | (o->special ? PIECE_SPECIAL : 0);
    l->scratch.n = 0;
    int r = vocab_from_alphabet(o->content, o->bytes, &l->scratch, &in_alphabet);
    if (r >= 0 && !in_alphabet)
        r = byte_buffer_add(&l->scratch, o->content, o->bytes);
    if (r < 0)
        return r;
    if (in_alphabet && vocab_find(&t->vocab, l->scratch.data, l->scratch.n, &model_id) && model_id != o->id)
        return REFUSE(l, -EBADMSG, "added token '%.*s' has id %u, but the vocabulary has it with id %u",
                (int)(o->bytes < 80 ? o->bytes : 80), o->content, o->id, model_id);
    if (vocab_has(&t->vocab, o->id)) {
        const struct piece *p = &t->vocab.pieces[o->id];
        if ((p->flags & PIECE_ADDED) || p->bytes != l->scratch.n ||
                memcmp(vocab_bytes(&t->vocab, o->id), l->scratch.data, l->scratch.n) != 0)
            return REFUSE(l, -EBADMSG, "id %u of added token '%.*s' belongs to another entry", o->id,
                    (int)(o->bytes < 80 ? o->bytes : 80), o->content);
        t->vocab.pieces[o->id].flags |= flags;
        return 0;
    }
    return add_piece(l, o->id, l->scratch.data, l->scratch.n, flags);
}

/* A token of the normalized kind is looked for by its own NFC. */
static int enter_match(struct loading *l, const struct added_object *o) {
    struct tokenizer *t = l->t;
    if (!o->normalized)
        return added_tokens_add(&t->raw, o->content, o->bytes, o->id);
    l->scratch.n = 0;
    int r = t->nfc ? nfc_append(o->content, o->bytes, NULL, &l->scratch, NULL)
                   : byte_buffer_add(&l->scratch, o->content, o->bytes);
    return r < 0 ? r : added_tokens_add(&t->normal, l->scratch.data, l->scratch.n, o->id);
}

static int enter_all_added(struct loading *l) {
    uint32_t id;
    for (uint32_t i = 0; i < l->n_added; i++) {
        int r = enter_added(l, &l->added[i]);
        if (r >= 0)
            r = enter_match(l, &l->added[i]);
        if (r < 0)
            return r;
        if (l->added[i].bytes > l->t->longest_piece)
            l->t->longest_piece = (uint32_t)l->added[i].bytes;
    }
    int r = added_tokens_sort(&l->t->raw, &id);
    if (r >= 0)
        r = added_tokens_sort(&l->t->normal, &id);
    return r == -EEXIST ? REFUSE(l, -EBADMSG, "the added token with id %u is there twice", id) : r;
}

/* --- the file --- */

static int read_top_key(struct loading *l) {
    struct json_pull *json = &l->json;
    if (json_pull_is(json, "version")) {
        int r = read_string(l, "the version");
        if (r < 0 || json_pull_is(json, "1.0"))
            return r;
        return REFUSE(l, -ENOTSUP, "the version is '%.*s'; 1.0 is supported", SHOWN(l));
    }
    if (json_pull_is(json, "truncation"))
        return read_ignored(l, IGNORED_TRUNCATION);
    if (json_pull_is(json, "padding"))
        return read_ignored(l, IGNORED_PADDING);
    if (json_pull_is(json, "added_tokens"))
        return read_added_tokens(l);
    if (json_pull_is(json, "normalizer"))
        return read_part_or_null(l, PART_NORMALIZER);
    if (json_pull_is(json, "pre_tokenizer"))
        return read_part_or_null(l, PART_PRE_TOKENIZER);
    if (json_pull_is(json, "post_processor"))
        return read_part_or_null(l, PART_POST_PROCESSOR);
    if (json_pull_is(json, "decoder"))
        return read_part_or_null(l, PART_DECODER);
    if (json_pull_is(json, "model"))
        return read_model(l);
    return unknown_key(l, "the file");
}

static int read_document(struct loading *l) {
    int r = json_pull_expect(&l->json, PULL_OBJECT_BEGIN, l->e);
    if (r < 0)
        return r;
    while ((r = json_pull_next(&l->json, l->e)) == PULL_KEY) {
        r = read_top_key(l);
        if (r < 0)
            return r;
    }
    if (r >= 0)
        r = json_pull_expect(&l->json, PULL_DOCUMENT_END, l->e);
    if (r < 0)
        return r;
    if (!(l->seen & SEEN_MODEL) || l->t->vocab.n_pieces == 0)
        return REFUSE(l, -EBADMSG, "there is no model with a vocabulary");
    if (!l->byte_level)
        return REFUSE(
                l, -ENOTSUP, "there is no ByteLevel pre_tokenizer; only byte-level tokenizers are supported");
    if (!(l->seen & SEEN_DECODER))
        return REFUSE(l, -ENOTSUP, "there is no ByteLevel decoder; only byte-level tokenizers are supported");
    return 0;
}

static int make_splitter(struct loading *l) {
    const char *pattern = l->has_split ? l->pattern : l->use_regex ? PATTERN_GPT2 : NULL;
    size_t bytes = l->has_split ? l->pattern_bytes : l->use_regex ? strlen(PATTERN_GPT2) : 0;
    int r = splitter_new(pattern, bytes, /* by_hand= */ true, &l->t->splitter, l->e);
    return r == -ENOMEM ? r : r < 0 ? error_prefix(l->e, r, "%s: the Split pre_tokenizer", l->json.file) : 0;
}

/* Marks the entries that BPE makes of their own bytes: most words of a text are then one lookup. */
static int mark_words(struct tokenizer *t, bool ignore_merges) {
    struct bpe_scratch scratch = {0};
    struct id_buffer ids = {0};
    int r = 0;
    for (uint32_t slot = 0; slot < t->vocab.n_slots && r >= 0; slot++) {
        if (t->vocab.slots[slot] == 0)
            continue;
        uint32_t id = t->vocab.slots[slot] - 1;
        struct piece *p = &t->vocab.pieces[id];
        if (p->bytes == 0 || (p->bytes > WORD_BYTES && !ignore_merges))
            continue;
        ids.n = 0;
        if (!ignore_merges)
            r = bpe_encode(&t->bpe, &scratch, vocab_bytes(&t->vocab, id), p->bytes, &ids);
        if (ignore_merges || (ids.n == 1 && ids.data[0] == id))
            p->flags |= PIECE_WORD;
    }
    free(ids.data);
    bpe_scratch_done(&scratch);
    return r;
}

static int load(struct loading *l) {
    int r = read_document(l);
    if (r >= 0)
        r = make_splitter(l);
    if (r >= 0)
        r = bpe_finish(&l->t->bpe);
    if (r >= 0)
        r = mark_words(l->t, l->ignore_merges);
    if (r >= 0)
        r = enter_all_added(l);
    return r;
}

int tokenizer_parse(
        const char *text, size_t bytes, const char *file, struct tokenizer **ret, struct error *e) {
    struct loading l = {.e = e};
    int r = -ENOMEM;
    json_pull_init(&l.json, text, bytes, file);
    l.t = calloc(1, sizeof(*l.t));
    if (l.t) {
        l.t->bpe.vocab = &l.t->vocab;
        r = load(&l);
    }
    if (r == -ENOMEM)
        error_set(e, r, "%s: not enough memory to load it", file);
    else if (r == -EINVAL)
        r = -EBADMSG;
    json_pull_done(&l.json);
    for (uint32_t i = 0; i < l.n_added; i++)
        free(l.added[i].content);
    free(l.added);
    free(l.pattern);
    free(l.scratch.data);
    if (r < 0) {
        tokenizer_free(l.t);
        return r;
    }
    *ret = l.t;
    return 0;
}

int tokenizer_load(const char *path, struct tokenizer **ret, struct error *e) {
    char *text = NULL;
    size_t bytes;
    int r = file_read(path, TOKENIZER_BYTES_MAX, &text, &bytes, e);
    if (r < 0)
        return r == -EFBIG ? error_set(e, -E2BIG, "%s: larger than %u bytes", path, TOKENIZER_BYTES_MAX) : r;
    r = tokenizer_parse(text, bytes, path, ret, e);
    free(text);
    return r;
}
