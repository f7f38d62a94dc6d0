/* step_decode.c - hostile step records: decoded or refused, never read outside. What is decoded is walked in
 * full. */
#include "proto/step/step.h"

#include <stdlib.h>
#include <string.h>

static volatile uint64_t sink; /* so that no read is optimised away */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t walk(const struct step_plan *p) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < p->n_opens; i++) {
        const struct step_open *o = &p->opens[i];
        for (uint32_t k = 0; k < o->n_bias * 8; k++)
            sum += p->blob[o->bias_at + k];
        for (uint32_t k = 0; k < o->n_suppress * 4; k++)
            sum += p->blob[o->suppress_at + k];
    }
    for (uint32_t i = 0; i < p->n_closes; i++)
        sum += p->closes[i];
    for (uint32_t i = 0; i < p->n_memory; i++)
        sum += p->memory[i].a;
    for (uint32_t i = 0; i < p->n_entries; i++) {
        const struct step_entry *t = &p->entries[i];
        for (uint32_t k = 0; t->kind == STEP_ENTRY_PROMPT && k < t->n_rows * 4; k++)
            sum += p->blob[t->ids_at + k];
        for (uint32_t k = 0; t->drafts_at != STEP_NONE && k < (t->n_rows - 1) * 4; k++)
            sum += p->blob[t->drafts_at + k];
        for (uint32_t k = 0; t->rope_at != STEP_NONE && k < t->n_rows * 12; k++)
            sum += p->blob[t->rope_at + k];
        for (uint32_t k = 0; k < t->n_pages * 4; k++)
            sum += p->blob[t->pages_at + k];
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct step_plan p;
    struct error e;
    if (size > STEP_RECORD_MAX)
        return 0;
    /* An exact copy, so that the sanitizer sees one byte too far. */
    uint8_t *record = malloc(size > 0 ? size : 1);
    if (record == NULL)
        return 0;
    memcpy(record, data, size);
    if (step_decode(record, (uint32_t)size, &p, &e) == 0)
        sink += walk(&p);
    sink += (uint64_t)step_completion_check(record, (uint32_t)size, &e);
    /* Most inputs die at the header: repair it and look at what comes after. */
    if (size >= sizeof(struct step_header)) {
        struct step_header *h = (struct step_header *)record;
        h->magic = STEP_MAGIC;
        h->protocol = STEP_PROTOCOL;
        h->type = STEP_TYPE_PLAN;
        h->step = 1;
        h->record_bytes = (uint32_t)size;
        if (step_decode(record, (uint32_t)size, &p, &e) == 0)
            sink += walk(&p);
    }
    if (size >= sizeof(struct step_completion)) {
        struct step_completion *c = (struct step_completion *)record;
        c->magic = STEP_COMPLETION_MAGIC;
        c->protocol = STEP_PROTOCOL;
        c->type = STEP_TYPE_PLAN;
        c->rank = 0;
        c->status = STEP_STATUS_OK;
        c->bytes = (uint32_t)size;
        if (step_completion_check(record, (uint32_t)size, &e) == 0) {
            const struct step_outcome *o = (const struct step_outcome *)(c + 1);
            for (uint32_t i = 0; i < c->n_outcomes; i++, o = step_outcome_next(o))
                sink += step_checksum(STEP_CHECKSUM_SEED, o, step_outcome_samples(o));
        }
    }
    free(record);
    return 0;
}
