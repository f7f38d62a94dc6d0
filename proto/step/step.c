/* step.c - builds step records (the coordinator) and the small things both sides share.
 *
 * A writer keeps the items of each section apart until step_end copies them into the record in section order.
 * It is one block of memory that the caller owns and uses again for every step. */
#include "proto/step/step.h"

#include "base/hash.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "records are little-endian and read in place");
_Static_assert(sizeof(struct step_section) == 16, "items of every section start at a multiple of 8");
_Static_assert(sizeof(struct step_geometry) % 8 == 0, "a geometry needs no padding at its end");

struct step_writer {
    struct step_header header;
    uint32_t n_opens, n_closes, n_memory, n_entries, n_stores, blob_bytes;
    bool full;
    struct step_open opens[SEQS_MAX];
    uint32_t closes[SEQS_MAX];
    struct step_memory memory[STEP_MEMORY_MAX];
    struct step_entry entries[SEQS_MAX];
    struct step_store stores[STEP_STORE_MAX];
    uint8_t blob[STEP_RECORD_MAX];
};

size_t step_writer_bytes(void) {
    return (sizeof(struct step_writer) + 63) & ~(size_t)63;
}

void step_begin(struct step_writer *w, enum step_type type, uint64_t group_epoch, uint64_t coord_epoch,
        uint64_t step) {
    w->header = (struct step_header){
            .magic = STEP_MAGIC,
            .protocol = STEP_PROTOCOL,
            .type = (uint16_t)type,
            .group_epoch = group_epoch,
            .coord_epoch = coord_epoch,
            .step = step,
    };
    w->n_opens = w->n_closes = w->n_memory = w->n_entries = w->n_stores = w->blob_bytes = 0;
    w->full = false;
}

uint32_t step_blob(struct step_writer *w, const void *data, uint32_t bytes) {
    uint32_t at = (w->blob_bytes + 3) & ~3u;
    if (bytes > STEP_RECORD_MAX - at) {
        w->full = true;
        return STEP_NONE;
    }
    memset(w->blob + w->blob_bytes, 0, at - w->blob_bytes);
    memcpy(w->blob + at, data, bytes);
    w->blob_bytes = at + bytes;
    return at;
}

void step_add_open(struct step_writer *w, const struct step_open *open) {
    if (w->n_opens == SEQS_MAX)
        w->full = true;
    else
        w->opens[w->n_opens++] = *open;
}

void step_add_close(struct step_writer *w, uint32_t slot) {
    if (w->n_closes == SEQS_MAX)
        w->full = true;
    else
        w->closes[w->n_closes++] = slot;
}

void step_add_memory(struct step_writer *w, enum step_memory_kind kind, uint32_t a, uint32_t b) {
    if (w->n_memory == STEP_MEMORY_MAX)
        w->full = true;
    else
        w->memory[w->n_memory++] = (struct step_memory){.kind = kind, .a = a, .b = b};
}

void step_add_entry(struct step_writer *w, const struct step_entry *entry) {
    if (w->n_entries == SEQS_MAX)
        w->full = true;
    else
        w->entries[w->n_entries++] = *entry;
}

void step_add_store(struct step_writer *w, const struct step_store *store) {
    if (w->n_stores == STEP_STORE_MAX)
        w->full = true;
    else
        w->stores[w->n_stores++] = *store;
}

static uint32_t section_size(uint32_t bytes) {
    return bytes == 0 ? 0 : (uint32_t)sizeof(struct step_section) + ((bytes + 7) & ~7u);
}

uint32_t step_writer_size(const struct step_writer *w) {
    /* Cannot overflow: every count is bounded and the blob is at most STEP_RECORD_MAX. */
    uint32_t bytes = (uint32_t)sizeof(struct step_header);
    bytes += section_size(w->n_opens * (uint32_t)sizeof(struct step_open));
    bytes += section_size(w->n_closes * (uint32_t)sizeof(uint32_t));
    bytes += section_size(w->n_memory * (uint32_t)sizeof(struct step_memory));
    bytes += section_size(w->n_entries * (uint32_t)sizeof(struct step_entry));
    bytes += section_size(w->n_stores * (uint32_t)sizeof(struct step_store));
    bytes += section_size(w->blob_bytes);
    return w->full || bytes > STEP_RECORD_MAX ? UINT32_MAX : bytes;
}

static uint8_t *write_section(struct step_header *h, uint8_t *at, uint32_t type, const void *items,
        uint32_t count, uint32_t item_bytes) {
    if (count == 0)
        return at;
    uint32_t bytes = count * item_bytes;
    uint32_t padded = (bytes + 7) & ~7u;
    struct step_section section = {.type = type, .count = count, .item_bytes = item_bytes, .bytes = bytes};
    memcpy(at, &section, sizeof(section));
    at += sizeof(section);
    memcpy(at, items, bytes);
    memset(at + bytes, 0, padded - bytes);
    h->n_sections++;
    return at + padded;
}

int step_end(struct step_writer *w, void *record, uint32_t capacity) {
    uint32_t size = step_writer_size(w);
    if (size > capacity || size > STEP_RECORD_MAX)
        return -EMSGSIZE;
    w->header.n_sections = 0;
    w->header.record_bytes = size;
    uint8_t *at = (uint8_t *)record + sizeof(w->header);
    at = write_section(&w->header, at, STEP_SECTION_OPEN, w->opens, w->n_opens, sizeof(w->opens[0]));
    at = write_section(&w->header, at, STEP_SECTION_CLOSE, w->closes, w->n_closes, sizeof(w->closes[0]));
    at = write_section(&w->header, at, STEP_SECTION_MEMORY, w->memory, w->n_memory, sizeof(w->memory[0]));
    at = write_section(&w->header, at, STEP_SECTION_ENTRY, w->entries, w->n_entries, sizeof(w->entries[0]));
    at = write_section(&w->header, at, STEP_SECTION_STORE, w->stores, w->n_stores, sizeof(w->stores[0]));
    at = write_section(&w->header, at, STEP_SECTION_BLOB, w->blob, w->blob_bytes, 1);
    assert(at == (uint8_t *)record + size);
    memcpy(record, &w->header, sizeof(w->header));
    return (int)size;
}

static uint64_t checksum_word(uint64_t sum, uint32_t word) {
    for (unsigned i = 0; i < 4; i++)
        sum = (sum ^ (word >> (8 * i) & 0xff)) * FNV1A_PRIME;
    return sum;
}
uint64_t step_checksum(uint64_t sum, const struct step_outcome *outcome, const struct step_sample *samples) {
    sum = checksum_word(sum, outcome->slot);
    sum = checksum_word(sum, outcome->status);
    sum = checksum_word(sum, outcome->n_samples);
    sum = checksum_word(sum, outcome->n_accepted);
    for (uint32_t i = 0; i < outcome->n_samples; i++)
        sum = checksum_word(sum, samples[i].id);
    return sum;
}

const char *step_type_name(uint32_t type) {
    switch (type) {
    case STEP_TYPE_RESET:
        return "reset";
    case STEP_TYPE_PLAN:
        return "plan";
    case STEP_TYPE_PING:
        return "ping";
    case STEP_TYPE_STOP:
        return "stop";
    case STEP_TYPE_INDEX:
        return "index";
    default:
        return "unknown record";
    }
}
