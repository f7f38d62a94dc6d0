/* synth.h - writes a complete model folder with seeded random weights: for tests, for measuring at any size,
 * for trying the service without a download.
 *
 * Called by the checkpoint tool and by tests. The text such a model writes means nothing, but it is a sound
 * model: weights are scaled so that activations stay near 1, norms and decays are spread so that a mistake in
 * any of them shows. A value is a function of the seed, the tensor's name and the element's index only: the
 * same options give the same bytes, and a GGUF file holds the same model as the safetensors files of that
 * seed. Memory is bounded by a few MB whatever the size. config.json is written last: a folder without it was
 * not finished. */
#pragma once

#include "base/error.h"
#include "tp/checkpoint/model_config.h"
#include "tp/checkpoint/safetensors.h"

#include <stdbool.h>
#include <stdint.h>

enum synth_format { SYNTH_SAFETENSORS, SYNTH_GGUF };

struct synth_options {
    const char *dir; /* made if it is not there; must be empty */
    /* What to write; mtp_layers says whether with MTP; eos ids are chosen by synth. */
    struct model_config config;
    const char *name;        /* "tiny": goes into general.name of a GGUF file */
    enum tensor_dtype dtype; /* F32, BF16 or F16; A_log and the GDN norm are F32 always, as published */
    /* 0, or 4 or 8: the matrices of the layers as integers with a scale per group_size columns: BF16 in the layout of
     * compressed-tensors; in a GGUF file Q4_0 or Q8_0, whose groups are 32 columns. It is another model than the dense
     * one of that seed, and than that of the other format. */
    uint32_t weight_bits, group_size;
    uint32_t head_bits; /* with weight_bits: the head likewise, and not tied to the embedding; 0 = dense */
    bool config_only;   /* all but the weights: for --load-format dummy, which makes them up */
    enum synth_format format;
    uint64_t shard_bytes; /* safetensors: a new file after about this many bytes of tensors; 0 = one file */
    uint64_t seed;
    const char *tokenizer_dir; /* copied from; NULL = a byte-level tokenizer is made */
    /* Called now and then; NULL ok. */
    void (*progress)(void *context, const char *file, uint64_t done, uint64_t total);
    void *progress_context;
};

struct synth_report {
    uint64_t bytes, parameters; /* of the tensors, MTP included */
    uint32_t tensors, files;
};

/* 0; -EEXIST: the folder has something in it; -ENOSPC: too little room (checked first, both sizes named);
 * -EDOM: the options do not go together; -EINVAL: the tokenizer does not fit; or what a write returned. After a failure
 * nothing is left behind. ret may be NULL. */
int synth_write(const struct synth_options *options, struct synth_report *ret, struct error *e);

/* A built-in configuration: the published sizes "0.8b" "2b" "4b" "9b" "27b", and "tiny" and "small", which
 * are split over 1, 2, 4 or 8 ranks in tests. -ENOENT: no such name. */
int synth_config(const char *name, struct model_config *ret);
/* Another depth: every fourth layer is attention. */
void synth_config_set_layers(struct model_config *m, uint32_t n_layers);
/* The published sizes, "tiny" and "small", for messages. */
extern const char synth_config_names[];
