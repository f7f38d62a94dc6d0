/* packed_open.c - fuzzes the reader of packed files: the input is header, table and names, of which magic, version,
 * length, fingerprint and checksums are made right, so that what lies behind them is reached. What is accepted must be
 * readable to its last byte. */
#include "tp/load/packed.h"
#include "tp/load/packed_format.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define FINGERPRINT 77u
#define DATA_BYTES  65536u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static int file;
static char path[64];

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    file = memfd_create("packed", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, PACKED_DATA + DATA_BYTES) < 0)
        abort();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
    return 0;
}

static void make_right(uint8_t *bytes, size_t size) {
    struct packed_header h;
    memcpy(&h, bytes, sizeof(h));
    memcpy(h.magic, PACKED_MAGIC, sizeof(h.magic));
    h.version = PACKED_VERSION;
    h.header_bytes = sizeof(h);
    memset(h.layout, 0, sizeof(h.layout));
    memcpy(h.layout, k_layout_native()->name, strlen(k_layout_native()->name));
    h.fingerprint = FINGERPRINT;
    h.file_bytes = PACKED_DATA + DATA_BYTES;
    h.entry_bytes = sizeof(struct packed_entry);
    uint64_t table = (uint64_t)h.n_entries * sizeof(struct packed_entry);
    if (h.names_bytes < size && table + h.names_bytes <= size - sizeof(h))
        h.table_sum = packed_sum_of(bytes + sizeof(h), table + h.names_bytes);
    h.header_sum = packed_sum_of(&h, offsetof(struct packed_header, header_sum));
    memcpy(bytes, &h, sizeof(h));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t bytes[DATA_BYTES];
    struct packed *p = NULL;
    struct error e = {0};
    if (size < sizeof(struct packed_header) || size > sizeof(bytes))
        return 0;
    memset(bytes, 0, sizeof(bytes));
    memcpy(bytes, data, size);
    make_right(bytes, size);
    if (pwrite(file, bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        abort();
    if (packed_open(path, k_layout_native(), FINGERPRINT, &p, &e) < 0) {
        if (e.text[0] == '\0' || p)
            abort();
        return 0;
    }
    const struct k_tiles *t = packed_find(p, "a");
    if (t) {
        const struct k_matrix_view whole = {.tiles = t, .rows = t->rows};
        packed_fetch(&whole, t->columns, K_LEAVES);
    }
    if (packed_verify(p, NULL, NULL, &e) < 0 && e.code != -EBADMSG)
        abort();
    packed_free(p);
    return 0;
}
