/* descriptors.c - any bytes as a descriptor set and as a symbol; any symbol against the real set. */
#include "daemon/service/descriptors.h"

#include "shardd_descriptor_set.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void look(const struct descriptor_set *d, ProtobufCBinaryData name) {
    int files[DESCRIPTOR_FILES_MAX];
    int found[] = {descriptor_find_symbol(d, name), descriptor_find_file(d, name)};
    for (int i = 0; i < 2; i++) {
        if (found[i] >= (int)d->n_files)
            abort();
        if (found[i] >= 0 && descriptor_with_imports(d, found[i], files) > d->n_files)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct descriptor_set d;
    if (size == 0)
        return 0;
    size_t name = data[0] < size ? data[0] : size - 1; /* the first byte says how long the symbol is */
    ProtobufCBinaryData symbol = {.len = name, .data = (uint8_t *)(uintptr_t)data + 1};
    if (!descriptor_set_read(shardd_descriptor_set, shardd_descriptor_set_bytes, &d))
        abort();
    look(&d, symbol);
    if (descriptor_set_read(data + 1 + name, size - 1 - name, &d))
        look(&d, symbol);
    return 0;
}
