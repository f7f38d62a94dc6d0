/* step.h - the step protocol, version 3: what the coordinator tells the workers, and what comes back.
 *
 * Shared by daemon/ (writer) and tp/ (reader); neither knows anything else of the other. A record is one
 * self-contained little-endian byte string:
 *
 *   struct step_header | section | section | ... | blob
 *
 * A section is struct step_section followed by `bytes` bytes of `count` fixed-size items; sections start at
 * multiples of 8. The blob area is the last section; items point into it by byte offset. Unknown section
 * types, unknown flags and sizes that do not add up are refused with a sentence (step_decode).
 *
 * Every rank reads the same record. Reading validates everything that does not need the pools (tp/ checks
 * slots and pages against its own). Nothing read from a record is trusted before step_decode() has returned
 * 0. */
#pragma once

#include "base/error.h"
#include "base/hash.h"
#include "base/limits.h"

#include <stddef.h>
#include <stdint.h>

#define STEP_MAGIC            0x54534853u /* "SHST" */
#define STEP_COMPLETION_MAGIC 0x43534853u /* "SHSC" */
#define STEP_PROTOCOL         3u
#define STEP_RECORD_MAX       (4u << 20) /* bytes of one record, header to blob end */
#define STEP_NONE             UINT32_MAX

enum step_type {
    STEP_TYPE_RESET = 1, /* finish what was committed, empty slots and pages, answer with geometry */
    STEP_TYPE_PLAN = 2,  /* one engine step */
    STEP_TYPE_PING = 3,  /* answer with an empty completion */
    STEP_TYPE_STOP = 4,  /* finish and exit 0 */
    STEP_TYPE_INDEX = 5, /* answer with what the next STEP_INDEX_RECORDS places of the rank's store hold */
};

struct step_header {
    uint32_t magic; /* "SHST" little-endian */
    uint16_t protocol, type;
    uint32_t record_bytes; /* of the whole record */
    uint32_t n_sections;
    uint64_t group_epoch, coord_epoch;
    uint64_t step; /* RESET is step 0; then the others count 1, 2, 3 ... until the next RESET */
};

enum step_section_type {
    STEP_SECTION_OPEN = 1,   /* struct step_open */
    STEP_SECTION_CLOSE = 2,  /* uint32_t slot */
    STEP_SECTION_MEMORY = 3, /* struct step_memory */
    STEP_SECTION_ENTRY = 4,  /* struct step_entry */
    STEP_SECTION_STORE = 5,  /* struct step_store */
    STEP_SECTION_BLOB = 15,  /* bytes; at most one, last */
};
struct step_section {
    uint32_t type, count, item_bytes, bytes;
};

/* Order within a step: CLOSE, OPEN, MEMORY, grants of ENTRY, compute. A plan may have no entries (closes
 * alone); its completion then has no outcomes. Only plans have sections. STORE goes on behind
 * the back of the steps. Slots run 1..SEQS_MAX and pages start at 1 in every section: the dummies are never named. */

#define STEP_SUPPRESS_MAX                                                                                    \
    (STOP_IDS_MAX + 16u)          /* ids one step_open may suppress: kernels have room for so many */
#define STEP_MEMORY_MAX     4096u /* memory operations of one step */
#define STEP_SLOT_PAGES_MAX (CONTEXT_MAX / PAGE_TOKENS)

struct step_open {
    uint32_t slot;
    uint32_t flags;    /* none defined: must be 0 */
    uint64_t sequence; /* for logs and checksums */
    float temperature, top_p, min_p;
    uint32_t top_k;
    float repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t min_tokens;
    uint64_t seed;
    uint32_t n_bias, bias_at; /* blob: n_bias x {uint32 id, float bias} */
    /* blob: uint32 ids, which end the sequence: up to min_tokens they are not sampled, and later no draft is accepted
     * behind one that was. */
    uint32_t n_suppress, suppress_at;
    /* Where the slot's count of samples begins: 0, or the tokens generated before where this is a replay. The rank
     * counts on by what it samples: the count keys the noise and ends min_tokens. */
    uint32_t first_sample_index;
    uint32_t reserved; /* 0 */
};

enum step_memory_kind { /* same order and meaning as enum k_memory_kind of kernels.h */
    STEP_MEMORY_ZERO_SLOT,
    STEP_MEMORY_COPY_SLOT,
    STEP_MEMORY_COPY_PAGE,
    STEP_MEMORY_SNAPSHOT_SLOT,
    STEP_MEMORY_RESTORE_SLOT,
    STEP_MEMORY_PAGE_OUT,
    STEP_MEMORY_PAGE_IN,
    STEP_MEMORY_KINDS,
};
struct step_memory {
    uint32_t kind, a, b, reserved;
};

enum step_entry_kind { STEP_ENTRY_PROMPT = 0, STEP_ENTRY_CONTINUE = 1 };
enum step_entry_flags {
    STEP_ENTRY_SAMPLE = 1u << 0, /* sample after the last row; where there are drafts, after every row */
    /* With SAMPLE or scores: report the logprob of each sampled or scored id, and top_logprobs more. */
    STEP_ENTRY_LOGPROB = 1u << 1,
    /* PROMPT: all rows are tokens that this sequence generated itself before (replay after a preemption or a
     * group restart). They count as output for the presence and frequency penalties, and are G positions.
     * Rows of one entry are either all given or all generated. */
    STEP_ENTRY_GENERATED = 1u << 2,
};
/* A CONTINUE has 1 + drafts rows: row 0 is the slot's last id at the slot's length, the others are drafts that may be
 * wrong. A draft is accepted when it is the id sampled at the row before it, that row was accepted, and neither has an
 * id that ends the sequence; what comes after
 * the first that is not leaves no trace. So the entry gives 1 to n_rows tokens and the slot's length grows by as many,
 * which only the ranks know until the completion; pages are granted for all rows. */
struct step_entry {
    uint32_t slot, kind, flags, n_rows;
    uint32_t first_pos; /* KV index of the first row. CONTINUE: ignored, the slot knows */
    uint32_t ids_at;    /* PROMPT: blob offset of n_rows uint32 ids; CONTINUE: STEP_NONE */
    uint32_t id_after;  /* PROMPT: id after the chunk; STEP_NONE = unknown */
    uint32_t rope_at;   /* blob offset of 3*n_rows uint32; STEP_NONE = KV index */
    /* With n_masks: blob offset of so many masks (base/mask.h) of mask_words words each, from which the entry's samples
     * are taken: one for all of them, or one for each. STEP_NONE otherwise. */
    uint32_t mask_at;
    uint32_t top_logprobs; /* 0..TOP_LOGPROBS_MAX */
    /* CONTINUE of more than one row: blob offset of n_rows - 1 drafts; STEP_NONE: those that lie in the slot, which its
     * last step left there. STEP_NONE otherwise. */
    uint32_t drafts_at;
    uint32_t page_first, n_pages, pages_at; /* grant: page table [page_first, +n_pages) = blob uint32 */
    uint32_t replay; /* 1: these rows were computed before the last group restart (statistics only) */
    /* With SAMPLE: drafts that the rank's own drafter leaves in the slot; at most drafts_max. */
    uint32_t n_draft_next;
    uint32_t n_masks, mask_words; /* at most MASKS_MAX masks in a step */
    /* PROMPT, with LOGPROB: of its first rows so many are scored: the logprob of the id after each is reported. A row
     * that is sampled is not scored, nor is the last one with id_after unknown. At most SCORES_MAX in a step. */
    uint32_t n_scores;
    uint32_t reserved; /* 0 */
};

_Static_assert(sizeof(struct step_header) == 40, "no padding");
_Static_assert(sizeof(struct step_open) == 80, "no padding");
_Static_assert(sizeof(struct step_entry) == 80, "no padding");

/* A rank's store is a file of places for pages and for states, of which host units are written and read back, one
 * after another in the order of the plans. A unit is named by nothing else from the plan that has it written or read
 * until the completion that counts it as done, and no plan that names it before is in flight. */
enum step_stored { STEP_STORED_PAGE, STEP_STORED_STATE, STEP_STORED_KINDS };
struct step_record { /* what a place of the store holds; also a part of an answer to INDEX */
    uint32_t what;   /* enum step_stored: the places of each count from 0 */
    uint32_t place;
    uint32_t length;   /* rows that a state stands for; 0 for a page */
    uint32_t reserved; /* 0 */
    uint64_t key[2];   /* what it holds: a hash of all ids up to its end, and of their salt */
    uint64_t base[2];  /* of a state: the key of the last full page of its rows */
};
enum step_store_kind { STEP_STORE_WRITE, STEP_STORE_READ };
struct step_store {
    uint32_t kind, unit;
    struct step_record record; /* READ: fails where the place holds anything else */
};
#define STEP_STORE_MAX     32u /* on their way at once: what completions can tell of */
#define STEP_INDEX_RECORDS 2048u
_Static_assert(sizeof(struct step_record) == 48 && sizeof(struct step_store) == 56, "no padding");

/* A decoded record: pointers into the record's own bytes. */
struct step_plan {
    const struct step_header *header;
    const struct step_open *opens;
    const uint32_t *closes;
    const struct step_memory *memory;
    const struct step_entry *entries;
    const struct step_store *stores;
    const uint8_t *blob;
    uint32_t n_opens, n_closes, n_memory, n_entries, n_stores, blob_bytes;
    uint32_t n_rows, n_outcomes, n_masks, n_scores; /* summed over the entries */
};

/* Checks a record of `bytes` bytes (8-byte aligned) completely and fills *ret. What only the pools know stays
 * with the reader: ids below the vocabulary, slots and pages that exist, slots that are open. -EBADMSG with a
 * sentence when it is malformed, -EPROTONOSUPPORT when it is of another protocol version. Limits:
 * STEP_ROWS_MAX rows, SEQS_MAX entries, each slot at most once per section. */
int step_decode(const void *record, uint32_t bytes, struct step_plan *ret, struct error *e);

/* Builds one record in a caller's buffer. begin, then any number of add_*; blob data is copied at once. end
 * writes the header and returns the record's size. Any add after the buffer is full makes end return
 * -EMSGSIZE. No allocation. Items are kept in section order internally, so opens/closes/entries may be added
 * in any order. */
struct step_writer; /* (begin keeps nothing of the record before; the memory need not be cleared) */
size_t step_writer_bytes(void); /* size to allocate for a struct step_writer (64-byte aligned) */
void step_begin(struct step_writer *w, enum step_type type, uint64_t group_epoch, uint64_t coord_epoch,
        uint64_t step);
uint32_t step_blob(
        struct step_writer *w, const void *data, uint32_t bytes); /* returns its offset; STEP_NONE = full */
void step_add_open(struct step_writer *w, const struct step_open *open);
void step_add_close(struct step_writer *w, uint32_t slot);
void step_add_memory(struct step_writer *w, enum step_memory_kind kind, uint32_t a, uint32_t b);
void step_add_entry(struct step_writer *w, const struct step_entry *entry);
void step_add_store(struct step_writer *w, const struct step_store *store);
uint32_t step_writer_size(
        const struct step_writer *w); /* bytes that step_end will write; UINT32_MAX = too many */
int step_end(struct step_writer *w, void *record, uint32_t capacity);

/* --- completions --- */

/* What a rank answers to each record, in order. */
enum step_status { STEP_STATUS_OK = 0, STEP_STATUS_FAULT = 1 };

struct step_completion {
    uint32_t magic;          /* "SHSC" */
    uint16_t protocol, type; /* type of the record it answers */
    uint32_t bytes;          /* of the whole completion */
    uint32_t rank;
    uint64_t group_epoch, coord_epoch, step;
    uint32_t status; /* enum step_status; FAULT: a sentence of n_outcomes bytes follows instead of outcomes */
    uint32_t n_outcomes;   /* INDEX: struct step_record */
    uint64_t checksum;     /* step_checksum() of all outcomes, the same on every rank */
    uint64_t compute_ns;   /* measured on the rank */
    uint64_t stored;       /* STORE operations done since RESET, which waits for those before it */
    uint64_t store_failed; /* of the last 64 of them; bit 0: the last */
};
/* Follows, n_outcomes of them: one for each entry with SAMPLE or scores, in entry order, and after each its scores and
 * its tokens. Rank 0 sends them; other ranks send n_outcomes = 0. */
enum step_sample_status { /* same order and meaning as enum k_result_status of kernels.h */
    STEP_SAMPLE_OK,
    STEP_SAMPLE_NOT_FINITE, /* a logit of the model is NaN or infinite: weights or this sequence's cache are damaged */
    STEP_SAMPLE_NO_TOKEN, /* every id is suppressed or masked */
    STEP_SAMPLE_STATUSES,
};
struct step_outcome {
    uint32_t slot;
    uint32_t status; /* enum step_sample_status; not OK: after these tokens the sequence has to end */
    /* Tokens that follow: n_accepted + 1, or n_accepted where status is not OK; 0 of an entry without SAMPLE. */
    uint32_t n_samples;
    uint32_t n_accepted; /* drafts */
    uint32_t n_scores; /* scores, which come before the tokens: as many as the entry asks for, or 0: not OK */
    uint32_t reserved; /* 0 */
};
struct step_sample { /* or score */
    uint32_t id;
    float logprob;
    uint32_t n_top, reserved;
    uint32_t top_ids[TOP_LOGPROBS_MAX];
    float top_logprobs[TOP_LOGPROBS_MAX];
};
_Static_assert(sizeof(struct step_completion) == 80, "no padding");
_Static_assert(
        sizeof(struct step_outcome) % 8 == 0 && sizeof(struct step_sample) % 8 == 0, "each is aligned");

/* The scores and the tokens of an outcome, and the outcome after it (of which there may be none). */
static inline const struct step_sample *step_outcome_scores(const struct step_outcome *o) {
    return (const struct step_sample *)(const void *)(o + 1);
}
static inline const struct step_sample *step_outcome_samples(const struct step_outcome *o) {
    return step_outcome_scores(o) + o->n_scores;
}
static inline const struct step_outcome *step_outcome_next(const struct step_outcome *o) {
    return (const struct step_outcome *)(const void *)(step_outcome_samples(o) + o->n_samples);
}

struct step_geometry { /* body of the completion of RESET, from every rank; n_outcomes = 0 */
    uint32_t rank, tp;
    uint32_t slots, pages, pages_per_slot; /* usable, dummies not counted; ids run 1..slots, 1..pages */
    uint32_t slot_units, page_units;
    uint32_t stored[STEP_STORED_KINDS]; /* places of the store */
    uint32_t rows_max, entries_max;
    uint32_t vocab_size;    /* logits; ids from 0 to vocab_size-1 */
    uint32_t max_model_len; /* tokens of one sequence that pools and model allow */
    uint32_t has_mtp;       /* the ranks hold an MTP layer and run it: one more attention layer of KV */
    uint32_t model_has_mtp; /* the checkpoint has a whole MTP layer, whether the ranks run it or not */
    uint32_t drafts_max;  /* rows of a CONTINUE beside the first, and most of n_draft_next; up to DRAFT_MAX */
    uint64_t fingerprint; /* of the weights and the configuration: the same on every rank */
    uint64_t weight_bytes, pool_bytes;
    char device[96]; /* for GetServerInfo: "cpu avx512, 2 threads" */
};

/* FNV-1a over little-endian slot, status, n_samples, n_accepted and the ids of one outcome: what
 * step_completion.checksum holds. Start with STEP_CHECKSUM_SEED. */
#define STEP_CHECKSUM_SEED FNV1A_START
uint64_t step_checksum(uint64_t sum, const struct step_outcome *outcome, const struct step_sample *samples);
const char *step_type_name(uint32_t type);

/* Checks a completion of `bytes` bytes (8-byte aligned): header, sizes, that outcomes, sentence or geometry
 * fit exactly. Whether it answers the right record is the coordinator's to check. 0 or -EBADMSG with a
 * sentence. */
int step_completion_check(const void *completion, uint32_t bytes, struct error *e);
#define STEP_COMPLETION_MAX                                                                                  \
    ((uint32_t)(sizeof(struct step_completion) + SEQS_MAX * sizeof(struct step_outcome) +                    \
                STEP_ROWS_MAX * sizeof(struct step_sample)))
#define STEP_FAULT_TEXT_MAX 512u
