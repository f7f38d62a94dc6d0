/* words.h - a few words from the host to the device as kernel arguments: in the stream's order, one node for several
 * arrays, and nothing of the host's must stay alive.
 *
 * What is put waits in the stream until something else is queued there (CUDA_QUEUED), so that the marks, slots and plan
 * of a step are one launch: a launch costs the host some 3 us. The addresses may be pinned memory of the host. */
#pragma once

#include "kernels/kernels.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WORDS_MAX   976u /* a plan of 64 entries and what comes with it */
#define WORDS_PARTS 16u
struct words_args {
    uint32_t *d_to[WORDS_PARTS];
    uint32_t end[WORDS_PARTS]; /* of the part's words, counted from the first part's */
    uint32_t words[WORDS_MAX];
};
cudaError_t queue_words(cudaStream_t s, const struct words_args *a);

struct words { /* that wait; begins as {0} */
    struct words_args args;
    uint32_t parts, used;
};
/* Sent at once where there is no more room, or where the stream is being captured. */
void words_put(struct k_stream *s, void *d_to, const void *from, uint64_t n_words);
/* All that wait, before something else is queued. */
void words_send(struct k_stream *s);

#ifdef __cplusplus
}
#endif
