/* safetensors_check.c - fuzzes the reader of safetensors files. The first eight bytes are the header's
 * length: where they make no sense the target writes what does, so that mutations reach the header itself. */
#include "tp/checkpoint/safetensors.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct error e = {0};
    int r = safetensors_check(data, size, "fuzz.safetensors", &e);
    if (r < 0 && e.text[0] == '\0')
        abort(); /* every refusal has a sentence */
    if (r == 0 || size < 9)
        return 0;

    uint8_t *fixed = malloc(size);
    if (!fixed)
        return 0;
    memcpy(fixed, data, size);
    uint64_t header = 0;
    for (size_t i = 8; i < size && header == 0; i++)
        if (data[i] == '\n') /* the seeds have one after the header */
            header = i - 8 + 1;
    for (unsigned i = 0; i < 8; i++)
        fixed[i] = (uint8_t)(header >> (8 * i));
    safetensors_check(fixed, size, "fuzz.safetensors", &e);
    free(fixed);
    return 0;
}
