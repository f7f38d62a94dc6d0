/* pretokenize.h - cuts text into the words that BPE works on, as the tokenizer.json's Split regex says.
 *
 * Used by tokenizer.c. The two patterns of the Qwen family are recognised and walked by hand: several times
 * as fast as a regex, and with Unicode 16 where PCRE2 10.42 has Unicode 14. Any other pattern runs on PCRE2,
 * with its JIT where the system allows one. A splitter is immutable and shared by threads; a splitter_run
 * belongs to one call. */
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

extern const char PATTERN_QWEN2[];  /* Qwen2, Qwen2.5, Qwen3: a word is letters */
extern const char PATTERN_QWEN35[]; /* Qwen3.5: a word is letters and marks */
extern const char PATTERN_GPT2[];   /* ByteLevel with use_regex */

struct splitter;
/* pattern NULL: no splitting. by_hand false: PCRE2 also for the known patterns (the tests compare both).
 * -EINVAL: not a regular expression (the sentence has PCRE2's message and offset). */
int splitter_new(const char *pattern, size_t bytes, bool by_hand, struct splitter **ret, struct error *e);
struct splitter *splitter_free(struct splitter *s);

struct splitter_run {
    const struct splitter *splitter;
    void *match_data, *match_context, *jit_stack; /* NULL where not needed */
};
int splitter_run_begin(const struct splitter *s, struct splitter_run *ret);
void splitter_run_end(struct splitter_run *run);
/* The end of the word that begins at at < bytes, in the text (valid UTF-8) as a whole. -EINVAL: the pattern
 * needs too many steps on this text; -ENOMEM. */
int splitter_next(struct splitter_run *run, const char *text, size_t bytes, size_t at, size_t *ret_end,
        struct error *e);
