/* inspect.h - what a checkpoint is, what it costs, and whether this machine can serve it.
 *
 * Called by the checkpoint tool (`shardd inspect`). Reads headers only: a model of any size is inspected in a
 * moment. Sizes are those of the CPU worker's own packing and pools, computed by the same functions that it
 * loads with. */
#pragma once

#include "base/error.h"
#include "tp/checkpoint/tensor_names.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define INSPECT_PARTS_MAX 48u

struct inspect_options {
    const char *dir;
    bool verify;            /* compare the checksums of the packed file, if there is one */
    const char *cache_dir;  /* of packed files; NULL = the usual places */
    uint32_t tp;            /* ranks, all on this machine */
    uint32_t max_model_len; /* tokens; 0, or more than it takes = the model's own limit */
    uint32_t max_num_seqs;
    uint64_t memory_bytes; /* to fit into; 0 = what this machine has available now */
};

struct inspect_part { /* the matrices of one part of the model that are stored alike */
    const char *part; /* "mlp" */
    char stored[64];  /* "gptq int4 g128", "BF16" */
    uint32_t matrices;
    uint64_t bytes; /* in the checkpoint, scales and zeros included */
};

struct inspection {
    struct inspect_options options; /* with the zeros filled in */
    struct model_config config;
    struct checkpoint *checkpoint;
    struct model_tensors *tensors;
    uint32_t n_attention_layers, n_gdn_layers;
    uint64_t dtype_tensors[TENSOR_DTYPES]; /* how many of each */
    struct inspect_part parts[INSPECT_PARTS_MAX];
    uint32_t n_parts;
    char packed[ERROR_TEXT_MAX + 64]; /* with verify: what was found */
    bool packed_damaged;

    /* Per rank, rank 0's. */
    uint64_t weight_bytes;       /* packed matrices, and what is copied of a GGUF file */
    uint64_t kv_token_bytes;     /* KV of one token */
    uint64_t kv_page_bytes;      /* of PAGE_TOKENS */
    uint64_t sequence_bytes;     /* state, sampling and page table of a sequence */
    uint64_t scratch_bytes;      /* at the default --max-num-batched-tokens */
    uint64_t pages, kv_bytes;    /* for max_num_seqs sequences of max_model_len tokens */
    uint64_t rank_bytes;         /* all of these */
    uint64_t embedding_bytes;    /* the mapped table, once for all ranks; 0 where each has its copy */
    uint64_t total_bytes;        /* all ranks and the table */
    uint64_t one_sequence_bytes; /* the same for one sequence: the least that serves at this length */
    bool fits;
};

/* 0, also when it does not fit; an error when the folder is not a model that can be served. */
int inspect_open(const struct inspect_options *options, struct inspection **ret, struct error *e);
struct inspection *inspect_free(struct inspection *i); /* NULL ok; returns NULL */
void inspect_print(const struct inspection *i, FILE *out);
void inspect_print_json(const struct inspection *i, FILE *out);
/* The last word: "fits: ..." or "does not fit: ... ". */
void inspect_verdict(const struct inspection *i, char *to, size_t size);
