/* Any bytes as tokenizer.json: refused with a sentence, or loaded, and then it encodes and decodes. */
#include "daemon/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char sample[] = "Hello <|end|> it's\t\n 123 ab abc \xc3\xa9 e\xcc\x81 \xe4\xbd\xa0";

static void use(const struct tokenizer *t) {
    uint32_t *ids = NULL;
    size_t n = 0, used = 0, size = 0;
    char *text = NULL;
    struct detokenizer d;
    struct error e = {0};
    if (tokenizer_encode(t, sample, sizeof(sample) - 1, true, 1000, &ids, &n, &e) < 0)
        return;
    detokenizer_init(&d, true);
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= tokenizer_vocab_size(t) || detokenizer_add(&d, t, ids[i], &text, &used, &size) < 0)
            abort();
    free(ids);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("tokenizer.json", MFD_CLOEXEC);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    }
    if (fd < 0 || ftruncate(fd, 0) < 0 || pwrite(fd, data, bytes, 0) != (ssize_t)bytes)
        return 0;
    struct tokenizer *t = NULL;
    struct error e = {0};
    if (tokenizer_load(path, &t, &e) < 0) {
        if (e.text[0] == 0 || t)
            abort();
        return 0;
    }
    use(t);
    tokenizer_free(t);
    return 0;
}
