/* gguf_text.c - fuzzes a tokenizer and a chat template out of GGUF metadata; a tokenizer that loads must work. */
#include "daemon/text/gguf_text.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = "Hello <|im_end|> \xc3\xa9 12\n";
    struct error e = {0};
    struct gguf g;
    struct tokenizer *t = NULL;
    struct chat_template template;
    uint32_t *ids = NULL;
    size_t n = 0;
    if (gguf_parse(data, size, "fuzz.gguf", &g, &e) < 0)
        return 0;
    (void)gguf_chat_template_load(&g, &template, &e);
    e = (struct error){0};
    int r = gguf_tokenizer_load(&g, &t, &e);
    gguf_done(&g);
    if (r < 0) {
        if (e.text[0] == '\0')
            abort(); /* every refusal has a sentence */
        return 0;
    }
    if (tokenizer_encode(t, text, sizeof(text) - 1, true, 64, &ids, &n, &e) == 0 && n == 0)
        abort();
    free(ids);
    tokenizer_free(t);
    return 0;
}
