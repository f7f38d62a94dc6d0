/* kernels.h - the contract between tp/ (what a rank does) and a kernels library (how it is computed).
 *
 * Called by tp/ only. kernels/cpu implements it in C and is the readable statement of what each operation means;
 * kernels/cuda implements the same contract on a GPU. A program links exactly one of them.
 *
 * Letters, fixed here once (all per rank unless "full" is said):
 *   R rows (tokens) of a step      H hidden_size (full)          V vocabulary (full)   P = tp (ranks)
 *   I intermediate_size / P        D attention head_dim          Hq, Hkv local query / kv heads
 *   Hk, Hv local GDN key / value heads     dk, dv their sizes     W conv_kernel (4)     C = GDN_BLOCK (16)
 *
 * Asynchrony. Operations take a stream and return when queued; arrays they name must stay alive until the stream
 * has passed them. All activations are fp32, row-major [R][columns], in device memory from k_alloc(). Row and
 * sequence counts given by the host are upper bounds (k_batch_bounds()): the true ones are in the batch on the device,
 * so a captured graph replays with new contents. Nothing allocates after creation; nothing here logs.
 *
 * Errors. Functions that can fail at creation return negative errno and fill struct error. Operations return
 * nothing: a fault is kept in the stream and fetched with k_stream_error().
 *
 * Numbers. A row's result depends on its sequence's earlier rows and the weights only: not on other rows, row
 * count, step boundaries, tp or threads, and is bit-identical on every instruction set:
 *   - A linear product splits its full K into 8 equal leaves. A leaf is one fp32 accumulator, k ascending, fma.
 *     Leaves are added as ((0+1)+(2+3))+((4+5)+(6+7)). A row-parallel linear at tp P holds 8/P consecutive leaves
 *     and computes that subtree; k_reduce_residual() adds the top of the tree in rank order.
 *   - A product of INT4 or INT8 weights with INT8 activations cuts a leaf into segments, wherever the weights' group
 *     (counted in the full K) or the activations' group of 128 (counted from the leaf's start) ends. A segment's sum
 *     n of (code - zero) * x is an exact integer; the leaf takes fma(n, scale_w * scale_x, leaf), then, with minimums,
 *     fma(sum of x, -minimum * scale_x, leaf); segments ascending. With float or bf16 activations a weight is
 *     scale * (code - zero), rounded, minus minimum, rounded, and the rule of dense weights holds.
 *   - A GPU has another order where weights or activations are floats (dense and FP8 weights, or activations that are
 *     not INT8): tensor cores add a leaf's products, which are exact, in an order of their own that is the same for
 *     every row count and grid. An output is within 2^-20 of the sum of |w x| of the exact one, so within (16 + leaf
 *     columns) * 2^-24 of kernels/cpu's; bits are promised per architecture, and all else said here holds.
 *   - Attention reduces leaves of 256 positions counted from 0, each from a fresh maximum, combined in index order.
 *   - KV in INT8: K (after norm and rope) and V of a token and kv head each become codes with one scale, max|x| / 127,
 *     that is NaN where an x is NaN or infinite; a code is x / scale rounded to nearest even, in [-127, 127], and 0
 *     where the scale is not above 0 (x all zeros, or none a number). Codes and scales are the same on every backend.
 *     Attention over them is sums of integers: q, and p times V's scale, become integers of 16 bits in units of their
 *     maximum / 32512, so that q . k and p v are exact sums, scaled once: see attention of each backend. q and p lose
 *     less than 2^-16 of their maximum there, which is a 250th of what V and K lose.
 *   - The sum of squares of a norm of n elements is 256 chains (16 where n <= 512) of every 256th (16th) element, fma;
 *     chain 16 a + l is lane l of accumulator a: a tree over accumulators as over leaves, then lanes l + (l + 8), then
 *     4, 2, 1. Softmax sums and all others have one written order too; exp and log are our own.
 * Every operation states where it rounds; what is not stated stays fp32. */
#pragma once

#include "base/error.h"
#include "base/limits.h"
#include "base/quant.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum k_dtype { K_F32 = 0, K_BF16 = 1, K_F16 = 2, K_INT8 = 3 }; /* K_INT8: pages of the KV cache only */
static inline size_t k_dtype_bytes(enum k_dtype t) {
    return t == K_F32 ? 4 : t == K_INT8 ? 1 : 2;
}

/* --- devices --- */

struct k_device { /* as it is now, for who chooses one or asks why it cannot be used */
    char name[128];
    char place[32];      /* CUDA: its PCI address; "" = none */
    char uuid[48];       /* CUDA: "GPU-8c25..." as nvidia-smi -L shows it; "" = none */
    uint64_t peers;      /* CUDA: bit i: its kernels reach the memory of device i (below 64) */
    uint32_t capability; /* CUDA: 86 = compute capability 8.6; 0 on a CPU */
    uint32_t units;      /* SMs; on a CPU, threads that this process may use */
    uint64_t memory_total, memory_free;
    struct error refused; /* why no context can be made; code 0 = one can. Set before: it is not opened */
};
struct k_platform {
    const char *kind; /* "cpu" or "cuda" */
    uint32_t driver,
            runtime; /* CUDA: 12040 = 12.4, the newest that the driver can do, and that of this build; else 0 */
    uint32_t n_devices;
};
/* What this library finds on this machine; the first `max` devices are described, in the order of
 * k_context_options.device; opened if `refused` is empty. 0, or why none can be used: *ret then has what is known. */
int k_devices(struct k_platform *ret, struct k_device *devices, uint32_t max, struct error *e);
/* k_device.place of one device, which is not opened for it: no context is made, and no thread started there. */
void k_device_place(uint32_t device, char *ret, size_t size);

/* --- context, streams, events, graphs --- */

struct k_context; /* one device (or one set of CPU threads) as one rank sees it; no process globals */
struct k_stream;  /* an ordered queue of operations; used by one host thread at a time */
struct k_event;
struct k_graph;

/* What INT4 and INT8 weights are multiplied with. FP8 and dense weights take fp32 activations. */
enum k_activations {
    K_ACTIVATIONS_INT8, /* rounded to INT8 per row and 128 k of a K-leaf (from its start) with scale max|x| / 127 */
    K_ACTIVATIONS_BF16,  /* rounded to bf16, to nearest even, and weights widened to fp32 */
    K_ACTIVATIONS_FLOAT, /* fp32, and weights widened to fp32 */
};

/* How GPUs of a group reach each other for the sums of a step. */
enum k_all_reduce {
    K_ALL_REDUCE_AUTO,    /* the fastest that works, tried when the ranks meet */
    K_ALL_REDUCE_NCCL,    /* by NVIDIA's library */
    K_ALL_REDUCE_ONESHOT, /* by our kernels, which write into each other's memory */
    K_ALL_REDUCE_STAGED,  /* by our kernels, through memory of the host */
};

struct k_context_options {
    uint32_t device;  /* CUDA ordinal; ignored on the CPU */
    uint32_t threads; /* CPU threads of this rank, the calling one included; 0 = all this process may use */
    /* CPU: NULL = best of "avx512" "avx2" "plain"; "avx512-base": without VNNI. One that is absent is -ENOTSUP */
    const char *isa;
    enum k_activations activations;
    /* A GPU multiplies BF16 and FP8 weights with activations rounded to bf16, to nearest even, instead of fp32, as if
     * they were rounded before. All other weights, and kernels/cpu, where it would save nothing, stay as they are.
     * Many rows with BF16 weights are multiplied by cuBLASLt where the machine has it: then a row's bits depend on how
     * many rows the bounds of its step have, an output is within 2^-16 of the sum of |w x| of the exact one, and a
     * product writes all rows of the bounds, so that y must have room for them. */
    bool fast;
    bool own_products;            /* a GPU, for tests: never by cuBLASLt */
    enum k_all_reduce all_reduce; /* GPUs only */
    /* CPU, for tests of the host's side: operations are queued as on a device, and run when somebody waits for the
     * stream or for an event of it. */
    bool deferred;
};

int k_context_create(const struct k_context_options *options, struct k_context **ret, struct error *e);
struct k_context *k_context_free(struct k_context *c);     /* NULL ok; returns NULL */
const char *k_context_describe(const struct k_context *c); /* "cpu avx512, 2 threads"; owned by c */
uint64_t k_memory_free(const struct k_context *c);         /* bytes that k_alloc could still hand out */
/* Do other ranks on this machine take from the same memory (a CPU), so that what is free is for all of them? */
bool k_memory_shared(const struct k_context *c);
/* Rows of a step with which a prompt is read about as fast as with more: the default of who is not told. */
uint32_t k_step_rows(void);
/* Most drafts of a CONTINUE that this library has been taught: of k_pool_options. */
uint32_t k_drafts_max(void);
/* Do operations run behind the back of who queues them (a device), so that only k_mark() tells where they are? */
bool k_runs_behind(const struct k_context *c);

int k_stream_create(struct k_context *c, struct k_stream **ret, struct error *e);
struct k_stream *k_stream_free(struct k_stream *s);
/* Waits until all that is queued has run. 0, -ETIMEDOUT after timeout_ns (0 = no limit), or the stream's fault. */
int k_stream_wait(struct k_stream *s, uint64_t timeout_ns, struct error *e);
int k_stream_error(struct k_stream *s, struct error *e); /* 0 or the first fault; never blocks */

int k_event_create(struct k_context *c, struct k_event **ret, struct error *e);
struct k_event *k_event_free(struct k_event *ev);
/* From now on until the stream has passed this place the event is not done, whatever was recorded before. */
void k_event_record(struct k_stream *s, struct k_event *ev);
bool k_event_done(const struct k_event *ev);
int k_event_wait(struct k_event *ev, uint64_t timeout_ns);

/* Between begin and end operations are recorded, not run. A graph replays the recorded calls with the same
 * pointers; the CPU library records and replays too, so that a host decision taken inside a step shows in CI. */
int k_capture_begin(struct k_stream *s, struct error *e);
int k_capture_end(struct k_stream *s, struct k_graph **ret, struct error *e);
void k_graph_launch(struct k_stream *s, struct k_graph *g);
uint32_t k_graph_nodes(const struct k_graph *g); /* what a launch queues, each after another or beside it */
struct k_graph *k_graph_free(struct k_graph *g);

/* *word = value once all that was queued before has run, also in a graph. word is memory of k_host_alloc(), which the
 * host may read at any time, as an atomic. */
void k_mark(struct k_stream *s, uint32_t *word, uint32_t value);

/* Device memory, zeroed, 64-byte aligned; NULL = out of memory. */
void *k_alloc(struct k_context *c, size_t bytes);
void k_free(struct k_context *c, void *p);
void *k_host_alloc(struct k_context *c, size_t bytes); /* pinned host memory, zeroed */
void k_host_free(struct k_context *c, void *p);
void k_upload(struct k_stream *s, void *device_to, const void *host_from, size_t bytes);
void k_download(struct k_stream *s, void *host_to, const void *device_from, size_t bytes);
/* Bytes per second that the device's memory gives when nothing else uses it, the roof of what a step can do: measured
 * here and now over `bytes` of device memory, whose contents are lost. A CPU reads them with all threads of the
 * context; a GPU copies one half onto the other, read and written both counted. Waits for the stream; 0 after a
 * fault. */
double k_memory_speed(struct k_stream *s, void *memory, size_t bytes);

/* --- weights --- */

/* Some rows of a checkpoint matrix, full K unless the caller has moved to a shard's first column. One of three:
 *   dense     data != NULL: element (r, k) is at data + (r * row_stride + k) * size(dtype); the shard's first row and
 *             first column are already in data
 *   quantised quant != NULL: rows first_row.. and columns first_column.. of that matrix
 *   tiles     tiles != NULL: the same of a whole matrix in the native layout; used where they lie, not copied
 * None of them: sizes only (dtype tells them), for k_linear_bytes() and k_linear_dummy(). */
struct k_matrix_view {
    const void *data;
    uint64_t row_stride; /* elements */
    const struct quant_matrix *quant;
    const struct k_tiles *tiles;
    uint32_t first_row, first_column; /* quant and tiles */
    uint32_t rows;
    enum k_dtype dtype; /* dense */
    /* NULL, or [rows]: row r is this row of data (or of quant), first_row not added */
    const uint32_t *row_order;
};

/* One linear: pieces stacked along the output, all with the same K. Output columns are the pieces' rows in order,
 * unpadded. leaves = K-leaves this rank holds (8 column-parallel, 8/P row-parallel); columns % leaves == 0. */
struct k_linear_spec {
    const struct k_matrix_view *pieces;
    uint32_t n_pieces; /* 1..8 */
    uint32_t columns;  /* local K */
    uint32_t leaves;   /* 1, 2, 4 or 8 */
    /* NULL, or [columns]: position k multiplies input order[k]; quantised pieces are in positions already, dense ones
     * are put into this order when they are packed; copied */
    const uint32_t *order;
    const char *name; /* for errors; copied */
};

struct k_linear; /* an opaque weight pack: canonical tiles of 16 output rows */

/* Packed size, parts of tiles included; no allocation. */
size_t k_linear_bytes(const struct k_linear_spec *spec);
int k_linear_pack(
        struct k_context *c, const struct k_linear_spec *spec, struct k_linear **ret, struct error *e);
/* Seeded weights straight in the packed form, uniform in [-scale, scale], views' data ignored. */
int k_linear_dummy(struct k_context *c, const struct k_linear_spec *spec, uint64_t seed, float scale,
        struct k_linear **ret, struct error *e);
struct k_linear *k_linear_free(struct k_linear *l);
uint32_t k_linear_rows(const struct k_linear *l);
/* Only speed: `next` is what a step multiplies after l, so that its beginning can be fetched early (NULL: unknown);
 * norm is what its operation normalises x with (NULL: it does not, or unknown); both must live as long as l is used.
 * gate_up: l itself serves k_norm_gate_up. */
void k_linear_then(struct k_linear *l, const struct k_linear *next, const float *norm, bool gate_up);

/* A whole matrix in tiles, rows padded to strips of 16, K in 8 leaves. One copy serves every tp, since a row-parallel
 * shard takes whole leaves and a column-parallel one whole strips. It lies in memory of the caller (a packed file);
 * which of the layouts of kernels/layout/layout.h its bytes follow, the caller knows. A view of tiles must start at a
 * multiple of 16 rows and of K/8 columns, and be of the native layout where a linear is made of it. */
struct k_tiles {
    const void *data; /* 64-byte aligned; mapped read-only memory will do */
    uint32_t rows, columns;
    enum k_dtype dtype; /* dense */
    bool quantised;     /* then the fields below hold, as in struct quant_matrix */
    enum quant_format format;
    enum quant_scale scale;
    uint32_t group;
    bool zeros, minimums;
};
/* The layout that this library computes with. */
struct k_layout;
const struct k_layout *k_layout_native(void);

/* A vector of weights, turned into fp32 on the device (norms, A_log, dt_bias, conv taps). offset is added in fp32
 * to every element: 1.0f for zero-centred norms. */
int k_vector_load(struct k_context *c, const void *data, enum k_dtype dtype, uint32_t n, float offset,
        float **ret, struct error *e); /* release with k_free */
/* Convolution taps [channels][W] of a checkpoint as k_gdn_weights wants them, [W][channels]. */
int k_taps_load(struct k_context *c, const void *data, enum k_dtype dtype, uint32_t channels, uint32_t w,
        float **ret, struct error *e); /* release with k_free */

/* A full embedding table [rows][columns], whose rows are looked up by token id; replicated on every rank.
 * mapped: `data` is the caller's and can be read as long as the table lives (a mapped checkpoint). A CPU uses it where
 * it lies, so that ranks of a machine share its pages; a GPU copies it. Otherwise `data` is memory of k_host_alloc()
 * that the table takes over when it was made: used in place, or copied and released. */
struct k_table;
/* What the table takes for itself: 0 where it is used where it lies, and that is the caller's. */
uint64_t k_table_bytes(enum k_dtype dtype, uint32_t rows, uint32_t columns, bool mapped);
int k_table_load(struct k_context *c, const void *data, enum k_dtype dtype, uint32_t rows, uint32_t columns,
        bool mapped, struct k_table **ret, struct error *e);
struct k_table *k_table_free(struct k_table *t); /* NULL ok; returns NULL */

/* --- weights that outlive their process --- */

/* What weights of a context take between k_keep_begin() and k_keep_end() (linears, vectors, taps, tables; in whatever
 * order, each at the next multiple of K_KEEP_ALIGN bytes) lies in one piece of device memory that another process can
 * map: it lives as long as somebody holds its descriptor, also when this process is dead. -ENOTSUP: there is no such
 * memory here (a CPU maps packed files instead). After a failure the context is as before. */
#define K_KEEP_ALIGN 256u
static inline uint64_t k_keep_bytes(uint64_t bytes) { /* what one of them takes */
    return (bytes + K_KEEP_ALIGN - 1) / K_KEEP_ALIGN * K_KEEP_ALIGN;
}
int k_keep_begin(struct k_context *c, uint64_t bytes, struct error *e);
/* Instead of it: the memory of a process before, by its descriptor, which stays the caller's. Weights that are loaded
 * by the same calls in the same order are there already: what they are loaded from is not looked at, and may be NULL.
 * -ESTALE: they are not as they were, by the sum that k_keep_end() gave. */
int k_keep_adopt(struct k_context *c, uint64_t bytes, int fd, uint64_t sum, struct error *e);
struct k_kept {
    int fd;       /* the caller's to close; -1: adopted, so that the caller has one */
    uint64_t sum; /* of all bytes */
};
/* Weights are loaded; from here on no kernel can write to them. -EINVAL: they took more or fewer bytes than were
 * announced. */
int k_keep_end(struct k_context *c, struct k_kept *ret, struct error *e);

/* --- geometry and pools --- */

/* Ids in one of the VOCAB_SEGMENTS segments of a vocabulary. Where 64 does not divide it the last segments have fewer
 * or none: nothing stands for the ids that are not there. An even number then, so that a rank begins at a strip of 16
 * rows at every tp. */
static inline uint32_t k_vocab_segment(uint32_t vocab) {
    const uint32_t n = vocab / VOCAB_SEGMENTS;
    return vocab % VOCAB_SEGMENTS == 0 ? n : (n + 2) & ~1u;
}

struct k_shape { /* what one rank holds; filled by tp/ from the model and the sharding table */
    uint32_t tp, rank;
    uint32_t hidden_size, vocab_size; /* full */
    /* This rank's rows of lm_head: 64/tp segments of the vocabulary, cut where it ends. May be none: then it has no
     * head. */
    uint32_t vocab_first, vocab_rows;
    uint32_t q_heads, kv_heads, head_dim, rotary_dim;
    uint32_t gdn_k_heads, gdn_v_heads, gdn_k_dim, gdn_v_dim, conv_kernel;
    uint32_t intermediate_size;
    uint32_t n_attention_layers; /* KV layers, the MTP layer last if the model has one */
    uint32_t n_gdn_layers;
    float rms_eps;
    double rope_theta;
};

/* Pool: everything that belongs to sequences. Slot 0 and page 0 are dummies for padded rows and never opened.
 *   KV      [layer][page][kv_head][K|V][64][head_dim] in kv_dtype (rounded to nearest even when written); with K_INT8
 *           each kv head of a page goes on with its scales, [K|V][64] fp32
 *   GDN     per slot and layer: S0 [Hv][dk][dv], ring of C + drafts_max rows (k after L2 norm [Hk][dk], Delta [Hv][dv],
 *           G [Hv]), conv window: ring of W-1 + drafts_max pre-conv rows of 2*Hk*dk + Hv*dv; all fp32 but S0, which
 *           state_dtype says: a fold computes in fp32 and with K_F16 rounds each number of the new S0 to nearest even,
 *           and rows read what was rounded, whoever folds. The row of position p is row p % rows of its ring. So rows
 *           of drafts lie beside all that is needed without them, and one that was not accepted is written over by the
 *           row that takes its position.
 *           S0 is the state after the last block that was folded into it, and only blocks whose last row was accepted
 *           are: a step folds a block that is complete at its beginning, and computes what lies behind a block that
 *           its drafts complete against a folded state that it does not keep. The same fold later gives the same bits.
 *   slots   length, last sampled id, drafts, sample index, page table, sampling parameters, token counts, MTP hidden
 *   units   host memory units for SWAP and SNAPSHOT, each as large as one slot's GDN state or one page */
struct k_pool;
struct k_pool_options {
    uint32_t slots;           /* without the dummy; 1..SEQS_MAX */
    uint32_t pages;           /* without the dummy */
    uint32_t pages_per_slot;  /* page table length: ceil(max_model_len / 64) */
    uint32_t slot_units;      /* host units for slot snapshots; may be 0 */
    uint32_t page_units;      /* host units for pages; may be 0 */
    enum k_dtype kv_dtype;    /* K_F32, K_BF16 or K_INT8 */
    enum k_dtype state_dtype; /* of S0: K_F32 or K_F16 */
    uint32_t drafts_max; /* rows of a CONTINUE beside the first; 0..DRAFT_MAX, each makes a slot larger */
};

/* Bytes of one slot, one page and the fixed part, so that the caller can print a budget before creating. The dummies,
 * slot 0 and page 0, are in the fixed part: a pool is fixed + slots * slot + pages * page. */
struct k_pool_cost {
    uint64_t slot_bytes, page_bytes, fixed_bytes;
    uint64_t slot_unit_bytes,
            page_unit_bytes; /* of the host; in fixed_bytes as well where that is the same */
    /* Of the device, where the host's is another: what a pool that has slot units takes beside all that. */
    uint64_t unit_stages_bytes;
};
void k_pool_cost(const struct k_shape *shape, const struct k_pool_options *options, struct k_pool_cost *ret);
/* -ENOTSUP where drafts_max is more than k_drafts_max(). */
int k_pool_create(struct k_context *c, const struct k_shape *shape, const struct k_pool_options *options,
        struct k_pool **ret, struct error *e);
struct k_pool *k_pool_free(struct k_pool *p);
/* The bytes of a host unit, which threads of the host may read and write while no operation that names it is queued.
 * Of a slot's NULL where the device has failed and they are not what they should be. */
void *k_pool_slot_unit(const struct k_pool *p, uint32_t unit);
void *k_pool_page_unit(const struct k_pool *p, uint32_t unit);
/* Whether bytes from elsewhere may be the state after `length` rows: a slot that is restored from others may lead
 * beyond its rings. */
bool k_slot_unit_may_be(const void *unit, uint32_t length);

/* --- communicator --- */

struct k_comm;
/* region is shared by all ranks of the group (same bytes mapped in each, zeroed once before the first create),
 * k_comm_region_bytes() long. tp == 1 needs no region (NULL, 0). rows_max bounds R. */
size_t k_comm_region_bytes(const struct k_shape *shape, uint32_t rows_max);
int k_comm_create(struct k_context *c, const struct k_shape *shape, uint32_t rows_max, void *region,
        size_t region_bytes, struct k_comm **ret, struct error *e);
/* Waits until every rank of the group has made its own, and finds the way to each; before the first step, and before
 * anything collective is captured. -ECANCELED where the group is stopped meanwhile. */
int k_comm_meet(struct k_comm *m, struct error *e);
/* After they have met: how the ranks reach each other, and what was measured of it; owned by m. "" at tp 1. */
const char *k_comm_describe(const struct k_comm *m);
struct k_comm *k_comm_free(struct k_comm *m);
/* Makes every rank that waits, now or later, in a collective give up: the streams get -ECANCELED. Any thread. */
void k_comm_abort(struct k_comm *m);

/* --- the batch of a step --- */

enum k_entry_kind {
    K_ENTRY_PROMPT = 0, /* ids and positions are given */
    K_ENTRY_CONTINUE =
            1, /* row 0 is the slot's last sampled id at the slot's length, the others are drafts */
};
enum k_entry_flags {
    K_ENTRY_SAMPLE = 1u << 0, /* sample after the last row, with drafts after every row; see k_outcome */
    K_ENTRY_LOGITS = 1u << 1, /* copy the last row's raw logits to the logits buffer (tests, offline use) */
    K_ENTRY_LOGITS_ALL = 1u << 2, /* ... of every row */
    K_ENTRY_GENERATED = 1u << 3,  /* PROMPT: the ids were generated before (a replay): they count as output */
    K_ENTRY_DRAFT = 1u << 4,      /* made by k_draft_begin(): a row of the MTP layer, which samples a draft */
    K_ENTRY_MASK = 1u << 5,       /* with SAMPLE: mask_at is the mask of its samples */
    K_ENTRY_MASKS = 1u << 6,      /* ... of its first sample, and those after it have the masks after it */
};

/* One entry of the plan, in device memory. Rows of an entry are consecutive. Entries are in plan order. */
struct k_entry {
    uint32_t slot;
    uint32_t kind; /* enum k_entry_kind */
    uint32_t flags;
    uint32_t n_rows;    /* PROMPT: >= 1; CONTINUE: 1 + drafts, of which the pool takes drafts_max */
    uint32_t row_begin; /* first row in the batch */
    uint32_t first_pos; /* PROMPT: KV index of the first row; ignored for CONTINUE */
    uint32_t ids_at;    /* PROMPT: index of its first id in ids[] */
    uint32_t id_after;  /* PROMPT: the id after the chunk, for the MTP layer; UINT32_MAX = not known yet */
    uint32_t rope_at;   /* index of 3*n_rows rope positions in rope[]; UINT32_MAX = same as KV index */
    /* 0..TOP_LOGPROBS_MAX, reported beside the sampled id; UINT32_MAX = no logprobs at all */
    uint32_t top_logprobs;
    /* CONTINUE: index of n_rows - 1 drafts in ids[]; UINT32_MAX = those that lie in the slot. */
    uint32_t drafts_at;
    uint32_t n_draft_next; /* drafts that k_draft_take() leaves in the slot; 0 = none */
    /* With K_ENTRY_SAMPLE: index of its first result (of 1, or one per row with drafts) and of its outcome. */
    uint32_t sample_at, outcome_at;
    uint16_t mask_at; /* of those that k_batch_upload_masks() brought */
    /* PROMPT: of its first rows so many are scored: result sample_at - n_scores + i is the logprob of the id after row
     * i, and the list of top logprobs. None of them is a row that is sampled; with id_after unknown not the last. */
    uint16_t n_scores;
};

/* The device arrays that tp/ uploads for a step; capacities were fixed at creation. */
struct k_plan {
    uint32_t n_entries, n_rows, n_samples, n_outcomes; /* the true counts, on the device */
};

struct k_batch; /* device-resident: plan, entries, ids, rope, and the per-row arrays that k_begin_step derives */
int k_batch_create(
        struct k_context *c, uint32_t entries_max, uint32_t rows_max, struct k_batch **ret, struct error *e);
struct k_batch *k_batch_free(struct k_batch *b);

/* Masks of the vocabulary for samples: bit id % 32 of word id / 32 says whether the id may be sampled. Room for so many
 * of mask_words(vocab_size) words each; a batch has none until then. */
int k_batch_create_masks(struct k_batch *b, uint32_t vocab_size, uint32_t masks_max, struct error *e);
/* Queues the upload of what the entries of the next plan name; the host array must stay alive until the stream has
 * passed it. An entry that names another one is a fault (-EINVAL) of k_batch_upload(), and the step empty. */
void k_batch_upload_masks(struct k_stream *s, struct k_batch *b, const uint32_t *masks, uint32_t n_masks);

/* What operations will at most see of the batch, for those that are queued from now on, also into a graph. Results
 * never depend on it: a device launches for it, and not for all that the batch was created for. More than that, or
 * NULL, means that. A plan beyond its bounds is a fault (-EINVAL) and its step empty: found by k_batch_upload(), or
 * by k_begin_step() where a graph of smaller bounds is launched or an entry continues a longer sequence. */
struct k_bounds {
    uint32_t rows, entries;
    uint32_t context; /* KV index of the last row of the longest entry, plus 1; the MTP layer sees one more */
};
void k_batch_bounds(struct k_batch *b, const struct k_bounds *bounds);
/* Queues the upload of one step's plan; the host arrays must stay alive until the stream has passed it. */
void k_batch_upload(struct k_stream *s, struct k_batch *b, const struct k_plan *plan,
        const struct k_entry *entries, const uint32_t *ids, uint32_t n_ids, const uint32_t *rope,
        uint32_t n_rope);

/* --- slots and memory operations --- */

struct k_sampling { /* a slot's parameters; every field is valid (validated by the coordinator and by tp/) */
    float temperature;                         /* 0 = greedy */
    uint32_t top_k;                            /* 0 = off */
    float top_p;                               /* (0, 1]; 1 = off */
    float min_p;                               /* [0, 1]; 0 = off */
    float repetition_penalty;                  /* > 0; 1 = off; over prompt and output */
    float presence_penalty, frequency_penalty; /* 0 = off; over output */
    uint64_t seed;
    /* Where the slot's count of samples begins: tokens generated before, in a replay. */
    uint32_t first_sample_index;
    uint32_t min_tokens; /* before it suppress[], ids that end the sequence, have logit -inf */
    uint32_t n_bias, n_suppress;
    const uint32_t *bias_ids; /* [n_bias] host pointers, copied when the call returns */
    const float *bias;        /* [n_bias] added to the logit */
    const uint32_t *suppress; /* [n_suppress] */
};

enum k_memory_kind {
    K_MEM_ZERO_SLOT, /* a: slot; state zero, length 0 */
    K_MEM_COPY_SLOT, /* a -> b: state, length, drafts, counts; not page table, sampling parameters or sample index */
    K_MEM_COPY_PAGE,     /* a -> b: all layers */
    K_MEM_SNAPSHOT_SLOT, /* slot a -> slot unit b: state, length, MTP hidden, which ids were seen */
    K_MEM_RESTORE_SLOT,  /* slot unit a -> slot b; the ids seen count as prompt of the slot's sequence */
    K_MEM_PAGE_OUT,      /* page a -> page unit b */
    K_MEM_PAGE_IN,       /* page unit a -> page b */
};
struct k_memory_op {
    uint32_t kind, a, b;
};

/* Each is queued on the stream in order. Arguments were checked by tp/: slots, pages and units exist.
 * Opening sets length 0 and forgets token counts and sampling; state, MTP hidden and page table stay as they were
 * until ZERO, COPY, RESTORE and k_slot_grant(). More than LOGIT_BIAS_MAX biases or STOP_IDS_MAX + 16 suppressed ids
 * are a fault (-EINVAL). Closing clears the page table. */
void k_slot_open(struct k_stream *s, struct k_pool *p, uint32_t slot, const struct k_sampling *sampling);
void k_slot_close(struct k_stream *s, struct k_pool *p, uint32_t slot);
/* Sets page table entries [first, first + n) of the slot. Host array copied when the call returns. */
void k_slot_grant(struct k_stream *s, struct k_pool *p, uint32_t slot, uint32_t first, uint32_t n,
        const uint32_t *pages);
void k_memory(struct k_stream *s, struct k_pool *p, const struct k_memory_op *ops, uint32_t n);

/* --- the operations of a step --- */

/* Derives per-row ids, positions, slot and sequence from the entries; CONTINUE rows take position and ids from the
 * slot, drafts from there or from the plan; more than the slot has are a fault (-EINVAL). Counts PROMPT ids for the
 * repetition penalty. Must be first. */
void k_begin_step(struct k_stream *s, struct k_pool *p, struct k_batch *b);

/* x[R][H] = table[id][H] (full table). */
void k_embed(struct k_stream *s, const struct k_batch *b, const struct k_table *table, float *x);

/* y[R][n] = W (x * rsqrt(mean(x^2) + eps) * w), w already carries the +1 of zero-centred norms. */
void k_norm_project(struct k_stream *s, const struct k_batch *b, const float *x, const float *norm, float eps,
        const struct k_linear *w, float *y);

/* One GDN mixer after its projections. in[R][qkv | z | b | a] with qkv = 2*Hk*dk + Hv*dv, z = Hv*dv, b = Hv, a = Hv
 * (columns in that order, as the pieces of the projection). Convolution + SiLU, L2 norms, the block form of
 * docs/architecture.md (C = 16 counted from position 0), gated RMS norm. out[R][Hv*dv], input of out_proj. */
struct k_gdn_weights {
    const float *conv;    /* [W][2*Hk*dk + Hv*dv] taps, newest last: of k_taps_load() */
    const float *a_log;   /* [Hv] */
    const float *dt_bias; /* [Hv] */
    const float *norm;    /* [dv], plain (not zero-centred) */
};
void k_gdn_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, uint32_t gdn_layer,
        const struct k_gdn_weights *w, const float *in, float *out);

/* One full-attention mixer after its projections. in[R][q+gate | k | v]: per query head D query then D gate columns
 * (Hq * 2D), then Hkv * D, then Hkv * D. q/k norm, partial rope (cos and sin in fp32), write K and V to the pages,
 * causal attention, times sigmoid(gate). out[R][Hq*D], input of o_proj. kv_shift: 0 for main layers; 1 for the MTP
 * layer, whose entry made from (h_t, x_{t+1}) is stored and roped at index t+1 and attends to indices 1..t+1. */
struct k_attention_weights {
    const float *q_norm, *k_norm; /* [D], +1 applied */
};
void k_attention_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, uint32_t attention_layer,
        uint32_t kv_shift, const struct k_attention_weights *w, const float *in, float *out);

/* y[R][I] = silu(G n) * (U n), n = norm(x); w stacks gate rows then up rows (2 pieces of I rows). */
void k_norm_gate_up(struct k_stream *s, const struct k_batch *b, const float *x, const float *norm, float eps,
        const struct k_linear *w, float *y);

/* part[R][H]: this rank's subtree of the row-parallel product W in. */
void k_project_partial(
        struct k_stream *s, const struct k_batch *b, const struct k_linear *w, const float *in, float *part);

/* x[R][H] += top of the tree over ranks of part. Collective: every rank calls it with the same batch. */
void k_reduce_residual(struct k_stream *s, struct k_comm *m, const struct k_batch *b, const float *part,
        float *x, uint32_t hidden_size);

/* x[R][H] += W in, of all ranks: k_project_partial() and k_reduce_residual() as one. part[R][H] is room for this rank's
 * subtree; a rank that is alone may leave it as it is. */
void k_project_residual(struct k_stream *s, struct k_comm *m, const struct k_batch *b,
        const struct k_linear *w, const float *in, float *part, float *x);

/* y[R][H] = norm(x). For the final norm. keep: the last row of each entry becomes the slot's MTP hidden; with drafts
 * k_head_sample() corrects it. */
void k_final_norm(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const float *x,
        const float *norm, float eps, float *y, bool keep);

struct k_result;
struct k_outcome;

/* MTP input: y[R][2H] = [norm_e(E[x_{t+1}]) ; norm_h(h_t)] where x_{t+1} is the id in results just sampled for the row.
 * A row that was not sampled has the next row's id, or the entry's id_after where it is the last (UINT32_MAX: id 0); a
 * PROMPT's last row has its id_after where that is known. hidden is post-final-norm. */
void k_mtp_input(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const struct k_table *table,
        const float *hidden, const float *norm_embedding, const float *norm_hidden, float eps,
        const struct k_result *results, float *y);
/* y[R][n] = W x, no norm (mtp.fc). */
void k_project(
        struct k_stream *s, const struct k_batch *b, const float *x, const struct k_linear *w, float *y);

/* --- head and sampling --- */

enum k_result_status {
    K_RESULT_OK,
    K_RESULT_NOT_FINITE, /* the model gave a logit that is NaN or infinite: its weights or this slot's cache are bad */
    K_RESULT_NO_TOKEN, /* every id of the vocabulary is suppressed or masked */
};
struct k_result { /* one per sampled row, device memory, downloaded by tp/ */
    uint32_t id;  /* 0 where status is not K_RESULT_OK; the slot goes on with it like with any other id */
    /* natural log, of the raw model distribution (before penalties, temperature and filters); 0 if the entry asked for
     * no logprobs */
    float logprob;
    uint32_t n_top;  /* top_logprobs filled, highest first, equal ones by id */
    uint32_t status; /* enum k_result_status; concerns this sample alone */
    uint32_t top_ids[TOP_LOGPROBS_MAX];
    float top_logprobs[TOP_LOGPROBS_MAX];
};

/* Of an entry's samples. A draft is accepted when it was sampled at the row before it, that one was, and neither id is
 * in suppress[]; so the tokens are results sample_at .. + n_samples - 1, and without drafts one. */
struct k_outcome {
    uint32_t status;     /* enum k_result_status: that of the first accepted row without a token, else OK */
    uint32_t n_samples;  /* tokens: n_accepted + 1, or n_accepted where status is not OK */
    uint32_t n_accepted; /* drafts */
    uint32_t reserved;
};

/* logits = head(hidden) for the last row of each sampling entry (and the rows whose logits were asked for); each
 * rank multiplies its vocabulary rows (head is NULL where it has none). Then per sample, in this order: bias;
 * penalties; suppress and mask; temperature; top_k; top_p; min_p; token = argmax(logit/T + Gumbel(seed, sample_index,
 * position, token id)), ties to the lower id. logsumexp over 64 fixed vocabulary segments in a fixed tree; top_p mass
 * in 64-bit fixed point. Every rank ends with the same results[].
 * Scored rows (n_scores of k_entry) have results like samples, and nothing else comes of them.
 * A logit that bias or penalties take out of the range of fp32 stays at its end (+-FLT_MAX), so only suppressing and
 * masks take an id out of the distribution, and a token is always one of it.
 * Row i of a CONTINUE takes the drafts before it as given: its sample index is the slot's plus i, and they count.
 * outcomes NULL: nobody asks what became of the samples (MTP head). Otherwise the slot's MTP hidden of an entry with
 * drafts becomes that of the last accepted row.
 * logits, if not NULL: [logits_rows_max][vocab_rows] raw local logits of the rows that asked, in row order. */
void k_head_sample(struct k_stream *s, struct k_pool *p, struct k_comm *m, const struct k_batch *b,
        const struct k_linear *head, const float *hidden, struct k_result *results,
        struct k_outcome *outcomes, float *logits, uint32_t logits_rows_max);

/* Commits the step to the slots: length += rows of a PROMPT, 1 + n_accepted of a CONTINUE; where the entry sampled, the
 * last id, the token counts and sample index += n_samples (results and outcomes are NULL when no entry samples).
 * The slot has no drafts now. Always the last operation of a step, but for drafts. */
void k_end_step(struct k_stream *s, struct k_pool *p, const struct k_batch *b, const struct k_result *results,
        const struct k_outcome *outcomes);

/* --- drafts of the MTP layer, behind k_end_step() ---
 *
 * They have a batch of their own, which nobody uploads: a row for each entry of the step that has n_draft_next, sampled
 * with the parameters, counts and noise that the slot's next samples will have, so that a draft is accepted as often as
 * the two distributions allow, at any temperature. No result of the model depends on a draft. The operations of a step
 * run over that batch:
 *
 *   k_draft_begin                                               the MTP layer has run over the step's rows already
 *   k_head_sample or k_draft_sample, k_draft_take               the first draft
 *   k_mtp_input, k_project, the layer (kv_shift 1), k_final_norm, and these two again               each one more
 *
 * Where a draft's position has no page, those after it are copies of it: nothing is made from its place on. */

/* Makes d of what became of b; d_hidden[row][H] = hidden[R][H], the MTP layer's, of each entry's last accepted row. */
void k_draft_begin(struct k_stream *s, struct k_pool *p, const struct k_batch *b,
        const struct k_outcome *outcomes, const float *hidden, struct k_batch *d, float *d_hidden);
/* A head with the rows of some ids alone: the product with the whole head is most of what a draft takes, and most
 * tokens of a text are few of the vocabulary. Ranks share the rows evenly, whatever ids they are of: rank r has n / tp
 * from row r * n / tp on. */
struct k_draft_head {
    const struct k_linear *head; /* [n / tp][H] */
    const uint32_t *place;       /* device, [V]: the row of an id, below n, or UINT32_MAX: it has none */
    uint32_t n;                  /* a multiple of tp, at most V */
};
/* k_head_sample() of a batch of drafts, which can be these ids only: all others have the logit K_DRAFT_ABSENT. */
#define K_DRAFT_ABSENT -1e30f
void k_draft_sample(struct k_stream *s, struct k_pool *p, struct k_comm *m, const struct k_batch *d,
        const struct k_draft_head *h, const float *d_hidden, struct k_result *results);
/* The samples of d are the next drafts of their slots, as far as n_draft_next goes; its rows move on by one. */
void k_draft_take(struct k_stream *s, struct k_pool *p, struct k_batch *d, const struct k_result *results);

/* Scratch that the operations above need for rows_max rows; asked once, handed over once. */
size_t k_workspace_bytes(const struct k_shape *shape, uint32_t rows_max, uint32_t samples_max);
void k_stream_set_workspace(struct k_stream *s, void *device_memory, size_t bytes);

/* --- looking in (tests, inspect) --- */

/* Copies a slot's recurrent state at its current length, folded (S after the last position), [Hv][dk][dv] fp32, and
 * its conv window [2*Hk*dk + Hv*dv][W-1], oldest first. Synchronous. */
int k_pool_read_gdn(
        struct k_stream *s, struct k_pool *p, uint32_t slot, uint32_t gdn_layer, float *state, float *conv);

#ifdef __cplusplus
}
#endif
