/* Any bytes as a chunk of a service: refused, or printed as one line of valid JSON. */
#include "launcher/client/chunk_json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Shardd__V1__GenerateChunk *chunk = shardd__v1__generate_chunk__unpack(NULL, bytes, data);
    if (!chunk)
        return 0;
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    if (!out || !chunk_print_json(out, chunk))
        abort();
    fclose(out);
    json_t *o = json_loads(text, JSON_ALLOW_NUL, NULL);
    if (!o || strchr(text, '\n') != text + n - 1)
        abort();
    json_decref(o);
    free(text);
    shardd__v1__generate_chunk__free_unpacked(chunk, NULL);
    return 0;
}
