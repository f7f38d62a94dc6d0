/* store.h - the rank's store: a file with what host units held, so that prefixes outlive the worker.
 *
 * `DIR/prefix-IDENTITY-rRofT`: a page that says what it is, a head for each place, then the places themselves, of two
 * sizes. It is as large as it may become from the start, and sparse. IDENTITY stands for everything that the bytes
 * depend on, so a folder serves several models. One thread writes and reads, in order; the rank's thread only queues. A
 * record is written as: no head, bytes, head; so one that was interrupted is not there, and a sum over the bytes tells
 * what the file system lost. Nothing in the file is trusted: a head that cannot be is no record, and bytes that do not
 * match their head are not handed out. */
#pragma once

#include "base/error.h"
#include "proto/step/step.h"

#include <stdbool.h>
#include <stdint.h>

struct store;

struct store_options {
    const char *dir; /* made where it is missing, for nobody else to read */
    uint64_t bytes;  /* that the file may have; 0 = 32 GiB */
    uint64_t identity;
    uint32_t rank, tp;
    uint64_t unit_bytes[STEP_STORED_KINDS];
    bool (*state_may_be)(const void *unit, uint32_t length); /* asked of what was read */
    void (*note)(void *user,
            const char *text); /* a sentence for the log; may be NULL. From the store's thread, too */
    void *user;
};

/* -EBUSY where another process has the file. */
int store_open(const struct store_options *o, struct store **ret, struct error *e);
struct store *store_free(struct store *s); /* after what is queued; NULL ok */
uint32_t store_places(const struct store *s, enum step_stored what);
/* unit: the bytes of the unit, nobody else's until the operation is done; NULL: the device has failed, and so does the
 * operation. At most STEP_STORE_MAX may be on their way. */
void store_queue(struct store *s, const struct step_store *op, void *unit);
/* As struct step_completion has it. */
void store_progress(struct store *s, uint64_t *ret_done, uint64_t *ret_failed);
/* Waits for what is queued, and counts from 0 again. */
void store_reset(struct store *s);
/* The records in n places from `first`, where those of states come after those of pages; returns how many. Nothing may
 * be queued. */
uint32_t store_list(const struct store *s, uint32_t first, uint32_t n, struct step_record *ret);
