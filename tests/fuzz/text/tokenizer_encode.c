/* Any bytes as a prompt, in spans of changing trust. Byte 0 says where the spans end; the rest is the text.
 * Decoding gives the text back but for normalization, which a second round must leave alone, and control
 * tokens come from trusted bytes only. */
#include "base/utf8.h"
#include "daemon/text/nfc.h"
#include "daemon/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPANS 5

static struct tokenizer *load(void) {
    struct tokenizer *t = NULL;
    struct error e = {0};
    if (tokenizer_load(TESTS_DIR "/golden/tokenizer/tokenizer.json", &t, &e) < 0) {
        fprintf(stderr, "%s\n", e.text);
        exit(1);
    }
    return t;
}

static char *decode(const struct tokenizer *t, const uint32_t *ids, size_t n, size_t *ret_bytes) {
    struct detokenizer d;
    char *text = NULL;
    size_t size = 0;
    *ret_bytes = 0;
    detokenizer_init(&d, true);
    for (size_t i = 0; i < n; i++)
        if (detokenizer_add(&d, t, ids[i], &text, ret_bytes, &size) < 0)
            abort();
    if (detokenizer_end(&d, &text, ret_bytes, &size) < 0)
        abort();
    return text;
}

/* Without added tokens, decode(encode(text)) is NFC(text). */
static void check_plain(const struct tokenizer *t, const char *text, size_t bytes) {
    struct byte_buffer normal = {0};
    uint32_t *ids;
    size_t n, back_bytes;
    if (nfc_append(text, bytes, NULL, &normal, NULL) < 0 ||
            tokenizer_encode(t, text, bytes, false, SIZE_MAX, &ids, &n, NULL) < 0)
        abort();
    char *back = decode(t, ids, n, &back_bytes);
    if (back_bytes != normal.n || (back_bytes && memcmp(back, normal.data, back_bytes) != 0))
        abort();
    if (nfc_stable_prefix(text, bytes) == bytes && back_bytes != bytes)
        abort();
    free(normal.data);
    free(back);
    free(ids);
}

static void check_spans(const struct tokenizer *t, const char *text, size_t bytes, unsigned cuts) {
    struct text_span spans[SPANS];
    size_t step = bytes / SPANS, n, special_n = 0, trusted = 0;
    uint32_t *ids;
    for (size_t i = 0; i < SPANS; i++) {
        bool parse = cuts >> i & 1;
        spans[i] = (struct text_span){text + i * step, i + 1 < SPANS ? step : bytes - i * step, parse};
        trusted += parse ? spans[i].bytes : 0;
    }
    if (tokenizer_encode_spans(t, spans, SPANS, SIZE_MAX, &ids, &n, NULL) < 0)
        abort();
    for (size_t i = 0; i < n; i++) {
        size_t piece_bytes;
        bool special;
        if (!tokenizer_piece(t, ids[i], &piece_bytes, &special))
            abort();
        special_n += special ? piece_bytes : 0;
    }
    if (special_n > trusted)
        abort();
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static struct tokenizer *t;
    if (!t)
        t = load();
    if (bytes < 1)
        return 0;
    const char *text = (const char *)data + 1;
    uint32_t *ids = NULL;
    size_t n, bad;
    if (!utf8_valid(text, bytes - 1, &bad)) {
        if (tokenizer_encode(t, text, bytes - 1, true, SIZE_MAX, &ids, &n, NULL) != -EILSEQ || ids)
            abort();
        return 0;
    }
    check_plain(t, text, bytes - 1);
    check_spans(t, text, bytes - 1, data[0]);
    return 0;
}
