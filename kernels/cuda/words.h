/* words.h - a few words from the host to the device as kernel arguments: in the stream's order, one node for several
 * arrays, and nothing of the host's must stay alive. */
#pragma once

#include "kernels/kernels.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WORDS_MAX   1000u
#define WORDS_PARTS 4u
struct words_args {
    uint32_t *d_to[WORDS_PARTS];
    uint32_t end[WORDS_PARTS]; /* of the part's words, counted from the first part's */
    uint32_t words[WORDS_MAX];
};
cudaError_t queue_words(cudaStream_t s, const struct words_args *a);

/* What is put is collected, and sent when there is no more room or words_send() is called. Begins as {0}. */
struct words {
    struct words_args args;
    uint32_t parts, used;
};
void words_put(struct k_stream *s, struct words *w, void *d_to, const void *from, uint64_t n_words);
void words_send(struct k_stream *s, struct words *w);

#ifdef __cplusplus
}
#endif
