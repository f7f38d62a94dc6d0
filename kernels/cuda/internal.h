/* internal.h - what the files of kernels/cuda share: the objects behind kernels.h, and how a failed call is told.
 *
 * Host code is C17 (.c); a .cu file has kernels and the functions that queue them (product.h). Pointers into device
 * memory are named d_...; the host never follows one. Rows and entries that the host knows are bounds: how many there
 * are stands in the batch's plan on the device, where kernels read it, so that a captured graph replays with new
 * contents. */
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/kept.h"
#include "kernels/cuda/mark.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/views.h"
#include "kernels/cuda/words.h"
#include "kernels/kernels.h"
#include "kernels/shared/constants.h"

#include <cuda_runtime_api.h>

/* Pinned buffers that what is loaded goes through, in turn (staging.c). */
#define STAGING_BUFFERS 4u
#define STAGING_BYTES   (16u << 20)
struct staging {
    uint8_t *buffer[STAGING_BUFFERS];  /* NULL: not needed yet */
    cudaEvent_t done[STAGING_BUFFERS]; /* its last copy */
    uint32_t next;
};

struct blas;
struct k_context {
    int device;
    struct device_size size;
    uint32_t threads; /* of the host, for packing; 0 = all that this process may use */
    enum k_activations activations;
    bool fast;
    enum k_all_reduce all_reduce;
    bool blas_known;     /* whether there is one to multiply prompts of BF16 weights with */
    struct blas *blas;   /* NULL: our own kernels do that */
    cudaStream_t stream; /* what is done at load: allocations, uploads */
    struct staging staging;
    struct kept kept; /* weights that outlive the process */
    char text[320];
};

/* Work that needs not wait for what the stream does meanwhile: stream_fork() .. stream_join(). */
struct branch {
    cudaStream_t stream;
    cudaEvent_t forked, joined;
};

/* The forms of its result that an operation has made for the product that is queued next. */
struct made {
    const float *d_from; /* NULL = there are none */
    const float *d_norm; /* NULL, or they are of the norm of it, with eps */
    float eps;
    const struct k_linear *w; /* whose leaves they follow */
    const struct k_batch *b;
    uint32_t rows;            /* its bound when they were made */
    const uint8_t *d_first;   /* where they begin in the workspace */
    struct activations codes; /* of which w takes none where d_codes is NULL */
    struct terms terms;       /* the same */
    enum terms_order order;
};

struct k_stream {
    struct k_context *context;
    cudaStream_t stream;
    struct branch branch;
    uint8_t *d_workspace;
    size_t workspace_bytes;
    /* 0 between kernels: of blocks done with a shared tile; [SPLIT_BLOCKS_MAX] for INT8 activations, and for terms;
     * behind them d_arrived[NEXT_RUNS_MAX] of struct next_codes, and d_words[NEXT_RUNS_MAX][ACTIVATION_RUN] */
    uint32_t *d_counters;
    /* 0 between kernels: leaves of a tile and kv head of attention that are in their parts; [ARRIVALS_MAX] */
    uint32_t *d_arrivals;
    struct made made;                /* forgotten when anything else is queued */
    const struct k_linear *expected; /* NULL, or what is most likely the next product */
    bool capturing;
    struct words words;      /* on their way to the device, before whatever is queued next */
    struct fault_view found; /* by kernels, and not yet in `fault` */
    struct error fault;      /* code 0 = none */
};

struct k_batch {
    struct batch_view view; /* first: what a test may look at */
    struct k_context *context;
    uint32_t entries_max, rows_max, masks_max, mask_words;
    struct k_bounds bounds; /* of what is queued next */
};

struct units;
struct k_pool {
    struct pool_view view; /* first: what a test may look at */
    struct k_context *context;
    struct k_pool_options options;
    struct units *units; /* of slots; NULL = there are none */
};

struct k_table {
    struct k_context *context;
    void *d_data; /* [rows][columns] of dtype */
    enum k_dtype dtype;
    uint32_t rows, columns;
};

struct k_linear {
    struct k_context *context;
    uint8_t *d_memory;           /* all panels, their strips' outputs, and the order */
    const uint32_t *d_order;     /* NULL, or [columns]: position k takes input order[k] */
    const struct k_linear *next; /* NULL, or what a step multiplies after it */
    const float *next_norm;      /* NULL, or [columns]: of the norm before that */
    uint32_t rows, columns, leaves, leaf_columns;
    uint32_t n_pieces, n_panels;
    struct panel panels[PIECES_MAX];
    bool halves; /* two pieces of equally many rows */
    bool for_library; /* context_library() may multiply it: one panel of BF16 whose strips are full, but the last */
    char name[96];
};

/* --- failed calls --- */

/* Fills *e with call, file, line and device, and returns a negative errno. */
int cuda_failed(const struct k_context *c, cudaError_t r, const char *call, const char *file, int line,
        struct error *e);
/* Leaves the function with what a failed call of the CUDA runtime is worth. */
#define CUDA_TRY(c, call, e)                                                                                 \
    do {                                                                                                     \
        const cudaError_t cuda_try_ = (call);                                                                \
        if (cuda_try_ != cudaSuccess)                                                                        \
            return cuda_failed((c), cuda_try_, #call, __FILE__, __LINE__, (e));                              \
    } while (0)
/* The same where there is nothing to return: the stream keeps the first fault. True = it went well. */
#define CUDA_QUEUED(s, call) (words_send(s), stream_queued((s), (call), #call, __FILE__, __LINE__))
bool stream_queued(struct k_stream *s, cudaError_t r, const char *call, const char *file, int line);

/* Keeps the first fault. */
void stream_fault(struct k_stream *s, int code, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
void stream_refused(struct k_stream *s, const struct error *e);
/* What goes to s->branch.stream between the two may run beside what goes to s->stream. False: a fault was kept. */
bool stream_fork(struct k_stream *s);
bool stream_join(struct k_stream *s);
/* bytes of scratch on the device, from the start of the workspace; NULL and a fault when it is too small. */
void *stream_scratch(struct k_stream *s, size_t bytes);

/* Makes a device the one that this thread's calls mean, ready for our kernels; a negative errno and why it cannot be
 * used. *ret holds what is known of it. */
int device_open(int device, struct cudaDeviceProp *ret, struct error *e);

/* Whether a library multiplies many rows with BF16 weights; it is looked for when this is asked first. */
bool context_library(struct k_context *c);
/* Makes the context's device the one that this thread's calls mean. */
int context_enter(const struct k_context *c, struct error *e);
bool stream_enter(struct k_stream *s);
/* to[bytes] on the device = from, done when it returns. */
int context_upload(struct k_context *c, void *d_to, const void *from, size_t bytes, struct error *e);
/* The same, there after staging_finish(); `from` was read when it returns. */
int context_send(struct k_context *c, void *d_to, const void *from, size_t bytes, struct error *e);
/* The same of what is made in place: the next buffer, STAGING_BYTES long, once it is free; a copy of it to the device;
 * and, after the last, that all are there. */
int staging_take(struct k_context *c, uint8_t **ret, struct error *e);
int staging_send(struct k_context *c, void *d_to, size_t bytes, struct error *e);
int staging_finish(struct k_context *c, struct error *e);
void staging_free(struct k_context *c);

/* Memory for weights: a part of what is kept, while that is open, or k_alloc(). k_free() releases both. */
void *weights_alloc(struct k_context *c, size_t bytes);
/* Does what weights_alloc() gives hold its weights already, so that nothing is to be sent there, nor could be? */
bool weights_there(const struct k_context *c);
bool weights_kept(const struct k_context *c, const void *d_p); /* a part of what is kept */
void kept_done(struct k_context *c);

/* Scratch of a product of up to `rows` rows and `columns` columns that writes up to `outputs` beside its result. */
uint64_t product_scratch_bytes(uint64_t columns, uint64_t rows, uint64_t outputs);
/* Room at the end of the workspace for what made_wanted() gives away; terms: for them beside INT8. */
uint64_t made_scratch_bytes(uint64_t columns, uint64_t rows, bool terms);
/* A result that an operation could leave in other forms besides: d_from[rows][columns], or the norm of it, made in
 * pieces of so many columns; terms: it could make those too; scratch: bytes of it that the operation uses; d_read:
 * NULL, or what it reads itself at the end of the workspace while it makes them. */
struct made_of {
    const struct k_batch *b;
    const float *d_from, *d_norm;
    float eps;
    uint32_t columns, piece;
    bool terms;
    uint64_t scratch;
    const uint8_t *d_read;
};
/* Whether w, if it is what multiplies it next, would take it; then where it goes. The operation puts *ret into s->made
 * when it is queued. */
bool made_wanted(
        const struct k_stream *s, const struct k_linear *w, const struct made_of *of, struct made *ret);
/* Scratch of k_gdn_step() for a step of up to `rows` rows. */
uint64_t gdn_scratch_bytes(const struct k_shape *h, uint32_t rows);
/* Scratch of k_head_sample(). */
uint64_t head_scratch_bytes(const struct k_shape *h);
/* Scratch of the attention mixer for steps of up to `rows` rows. */
uint64_t attention_scratch_bytes(const struct k_shape *h, uint32_t rows);
