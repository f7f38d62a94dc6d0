/* tokenizer_tables.h - what a loaded tokenizer is made of; shared by tokenizer.c and tokenizer_load.c only. */
#pragma once

#include "daemon/text/added_tokens.h"
#include "daemon/text/bpe.h"
#include "daemon/text/pretokenize.h"
#include "daemon/text/tokenizer.h"
#include "daemon/text/vocab.h"

enum tokenizer_ignored { IGNORED_TRUNCATION = 1, IGNORED_PADDING = 2 }; /* that the file sets */

struct tokenizer {
    struct vocab vocab;
    struct bpe bpe; /* points into vocab */
    struct splitter *splitter;
    struct added_tokens raw;    /* normalized: false; looked for in the text as it came */
    struct added_tokens normal; /* normalized: true; looked for in what the normalizer made */
    bool nfc;
    uint32_t longest_piece; /* bytes */
    unsigned ignored;       /* of enum tokenizer_ignored */
};
