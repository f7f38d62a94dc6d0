/* sample.cu - tokens, logprobs and outcomes from the logits of a round, bit for bit those of kernels/cpu/sample.c.
 *
 * Three passes over all samples at once, always queued; a block without work leaves at once, so that what a sample does
 * not ask for costs it a node of the graph and no more. In each the blocks of a sample share its vocabulary, and the
 * last of them to be done draws together what all have found (block_is_last()).
 *
 *   scan    changes logits, finds the highest: all of a greedy sample, or of a row whose id is known. Of 2048 parts of
 *           the vocabulary the highest logit is kept; the k-th of those is a bound that the k highest ids reach (top k,
 *           top logprobs).
 *   weigh   sums of e^x for logprobs; candidates for top k; for top p what ids weigh, in bins of 1/64 of x; without
 *           cuts the highest with noise.
 *   gather  for top p of the whole vocabulary: the highest with noise of the bins that stay, and as candidates the
 *           ids of the bin that the cut is in.
 *
 * Cuts are then exact on the candidates, some dozens: by one block, in a list, in whatever order they came. Where the
 * list is too short the same is done on the whole vocabulary: slower, and the same result.
 *
 *   grid    (blocks of a sample, samples); a block takes every gridDim.x-th of the 64 segments, a thread every 256th id
 *           of one
 *   bytes   scan reads 4 an id (and 2 for penalties; changed logits are written and read once more), weigh 4 where it
 *           has work (8 with logprobs and changes), gather 4; from L2 as long as there are few samples */
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/select.cuh"
#include "kernels/shared/constants.h"
#include "kernels/shared/counts.h"
#include "kernels/shared/drafts.h"
#include "kernels/shared/noise.h"

#include "base/mask.h"

#include <stddef.h>

#define BLOCKS         4     /* of an SM, at least */
#define STAGED         4096u /* e^x of a segment in shared memory at once */
#define SCAN_BATCH     16u   /* logits of a thread that are loaded before the first is used */
#define CHAINS         16u   /* of a segment's sum */
#define SEGMENT_GROUPS (SAMPLE_GROUPS / VOCAB_SEGMENTS)
#define NOT_FINITE     UINT64_MAX  /* as a key */
#define LOWEST_ORDER   0x00800000u /* of -FLT_MAX: below it is -inf */

static_assert(SEGMENT_GROUPS == BLOCK_THREADS / 8, "eight threads have a group's highest");

struct pass_shared {
    struct block_shared block;
    union {
        struct block_bins bins; /* scan has the first array of them only */
        float e[STAGED];
    };
};

/* --- what a block works on --- */

struct sample {
    const struct head_row *row;
    const struct k_entry *entry;
    const struct slot *slot;
    struct sample_state *state;
    struct sample_part *parts; /* [gridDim.x] */
    uint32_t index, result;    /* its sample index; its place in d_results */
    const uint32_t *d_mask;    /* NULL: none */
    const float *d_raw, *d_v;  /* logits; after changes */
    uint32_t vocab, segment;
    uint32_t own_first, own_rows; /* of the vocabulary, in this rank: the logits that it gives away */
};
static __device__ __forceinline__ struct sample sample_of(const struct sample_args &a, uint32_t i) {
    struct sample s;
    s.row = a.d_rows + i;
    s.entry = a.d_entries + s.row->entry;
    s.slot = a.p.d_slots + s.entry->slot;
    s.state = a.d_states + i;
    s.parts = a.d_parts + i * VOCAB_SEGMENTS;
    s.index = s.slot->sample_index + s.row->n_drafts;
    s.result = s.row->result;
    s.vocab = a.p.shape.vocab_size;
    s.d_mask = s.row->mask == UINT32_MAX ? NULL : a.d_masks + (uint64_t)s.row->mask * mask_words(s.vocab);
    s.segment = a.segment;
    s.own_first = a.p.shape.tp > 1 ? a.p.shape.vocab_first : 0;
    s.own_rows = a.p.shape.tp > 1 ? a.p.shape.vocab_rows : s.vocab;
    s.d_raw = a.d_raw + (uint64_t)i * s.vocab;
    s.d_v = s.row->sampled && (s.d_mask || sampling_changes(&s.slot->sampling, s.index))
                    ? a.d_changed + (uint64_t)i * s.vocab
                    : s.d_raw;
    return s;
}
static __device__ __forceinline__ uint32_t segment_first(const struct sample &s, uint32_t segment) {
    const uint64_t first = (uint64_t)segment * s.segment;
    return first < s.vocab ? (uint32_t)first : s.vocab;
}

/* Higher for a higher logit, then for a lower id; both zeros are equal. */
static __device__ __forceinline__ uint64_t key_of(float x, uint32_t id) {
    return halves(order_of_float(x + 0.0f), ~id);
}
static __device__ __forceinline__ uint32_t id_of(uint64_t key) {
    return ~(uint32_t)key;
}
static __device__ __forceinline__ float logit_of(uint64_t key) {
    return float_of_order((uint32_t)(key >> 32));
}
static __device__ __forceinline__ uint64_t higher(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}
/* What is sampled from: the logit of the distribution, counted from the highest. */
static __device__ __forceinline__ float scaled(float v, float top, float temperature) {
    return (v - top) / temperature;
}

/* --- a sample's end --- */

static __device__ void write_outcome(
        const struct sample_args &a, const struct k_entry *e, enum k_result_status status) {
    if (!a.d_outcomes)
        return;
    struct k_outcome o = {};
    o.status = status;
    o.n_samples = status == K_RESULT_OK;
    a.d_outcomes[e->outcome_at] = o;
}
/* A whole block: the result with nothing in it but the status. */
static __device__ void write_nothing(
        const struct sample_args &a, const struct sample &s, enum k_result_status status) {
    uint32_t *d_words = (uint32_t *)(a.d_results + s.result);
    for (uint32_t i = threadIdx.x; i < sizeof(struct k_result) / 4; i += BLOCK_THREADS)
        d_words[i] = 0;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    a.d_results[s.result].status = status;
    if (s.row->sampled)
        write_outcome(a, s.entry, status);
}
/* One thread. */
static __device__ void write_token(const struct sample_args &a, const struct sample &s, uint32_t id) {
    struct k_result *d_r = a.d_results + s.result;
    d_r->id = id;
    if (s.entry->top_logprobs != UINT32_MAX)
        d_r->logprob = s.d_raw[id] - s.state->lse;
}

/* --- scan --- */

/* The count of an id at this sample, which the drafts before it are part of. */
static __device__ __forceinline__ uint16_t count_at(const struct sample &s, uint32_t id, uint16_t count) {
    for (uint32_t i = 0; i < s.row->n_drafts; i++)
        count = s.slot->drafts[i] == id ? count_once_more(count, /* generated= */ true) : count;
    return count;
}
/* Bias, penalties, suppressed ids, mask of one segment. An id is one thread's throughout, so lists keep their order. */
static __device__ void change_segment(
        const struct sample_args &a, const struct sample &s, uint32_t first, uint32_t n) {
    const struct k_sampling *p = &s.slot->sampling;
    float *d_v = (float *)s.d_v + first;
    const uint64_t slot = s.entry->slot;
    const uint32_t *d_bias_ids = a.p.d_bias_ids + slot * LOGIT_BIAS_MAX,
                   *d_suppress = a.p.d_suppress + slot * SUPPRESS_MAX;
    const float *d_bias = a.p.d_bias + slot * LOGIT_BIAS_MAX;
    const uint16_t *d_counts = a.p.d_counts + slot * s.vocab + first;
    const uint32_t n_suppress = sampling_suppresses(p, s.index) ? p->n_suppress : 0;
    for (uint32_t k = threadIdx.x; k < n; k += BLOCK_THREADS)
        d_v[k] = s.d_raw[first + k];
    for (uint32_t i = 0; i < p->n_bias; i++) {
        const uint32_t k = d_bias_ids[i] - first;
        if (k < n && k % BLOCK_THREADS == threadIdx.x)
            d_v[k] = logit_bounded(d_v[k] + d_bias[i]);
    }
    for (uint32_t k = threadIdx.x; k < n && sampling_penalises(p); k += BLOCK_THREADS) {
        const uint16_t count = count_at(s, first + k, d_counts[k]);
        if (count)
            d_v[k] = count_penalise(
                    d_v[k], count, p->repetition_penalty, p->presence_penalty, p->frequency_penalty);
    }
    for (uint32_t i = 0; i < n_suppress; i++) {
        const uint32_t k = d_suppress[i] - first;
        if (k < n && k % BLOCK_THREADS == threadIdx.x)
            d_v[k] = -INFINITY;
    }
    for (uint32_t k = threadIdx.x; k < n && s.d_mask; k += BLOCK_THREADS)
        if (!mask_has(s.d_mask, first + k))
            d_v[k] = -INFINITY;
}

/* This thread's highest of a segment; NOT_FINITE where infinity or NaN is. All that a thread reads of it is asked for
 * at once: with four loads on their way a step of many samples waited for memory most of the time. */
static __device__ uint64_t highest_raw(const struct sample &s, uint32_t first, uint32_t n, float *d_logits) {
    uint64_t best = 0;
    for (uint32_t begin = threadIdx.x; begin < n; begin += SCAN_BATCH * BLOCK_THREADS) {
        float v[SCAN_BATCH];
#pragma unroll
        for (uint32_t j = 0; j < SCAN_BATCH; j++) {
            const uint32_t k = begin + j * BLOCK_THREADS;
            v[j] = k < n ? s.d_raw[first + k] : 0.0f;
        }
#pragma unroll
        for (uint32_t j = 0; j < SCAN_BATCH; j++) {
            const uint32_t k = begin + j * BLOCK_THREADS;
            const bool finite = (bits_of_float(v[j]) & 0x7f800000u) != 0x7f800000u;
            if (k < n)
                best = higher(best, finite ? key_of(v[j], first + k) : NOT_FINITE);
            if (d_logits && first + k - s.own_first < s.own_rows && k < n)
                d_logits[first + k - s.own_first] = v[j];
        }
    }
    return best;
}
static __device__ uint64_t highest_changed(const struct sample &s, uint32_t first, uint32_t n) {
    uint64_t best = 0;
#pragma unroll 4
    for (uint32_t k = threadIdx.x; k < n; k += BLOCK_THREADS)
        best = higher(best, key_of(s.d_v[first + k], first + k));
    return best;
}
/* The highest orders of a segment's groups: eight threads have one. */
static __device__ void put_groups(uint32_t *d_maxima, uint32_t segment, uint64_t best) {
    uint32_t order = (uint32_t)(best >> 32);
    for (int d = 1; d < 8; d *= 2) {
        const uint32_t other = __shfl_xor_sync(ALL_LANES, order, d);
        order = other > order ? other : order;
    }
    if (threadIdx.x % 8 == 0)
        d_maxima[segment * SEGMENT_GROUPS + threadIdx.x / 8] = order;
}

struct group_maxima {
    static constexpr bool MASSES = false;
    const uint32_t *d_orders;
    __device__ bool at(uint32_t j, uint32_t *key, uint64_t *) const {
        *key = d_orders[j];
        return *key >= LOWEST_ORDER;
    }
};
/* An order that at least k of the logits reach; 0: that cannot be said. */
static __device__ uint32_t reached_by(const uint32_t *d_maxima, uint32_t k, struct pass_shared *shared) {
    if (k > SAMPLE_GROUPS)
        return 0;
    const struct group_maxima groups = {d_maxima};
    const struct selected r = select_lowest(groups, SAMPLE_GROUPS, k, 1.0f, &shared->bins, &shared->block);
    return r.total < k ? 0 : r.key;
}

/* What is known when all logits were seen, and what is left to do. */
static __device__ void scan_end(const struct sample_args &a, const struct sample &s, const uint32_t *d_maxima,
        struct pass_shared *shared) {
    const struct k_sampling *p = &s.slot->sampling;
    const bool mine = threadIdx.x < gridDim.x, changed = s.d_v != s.d_raw,
               logprobs = s.entry->top_logprobs != UINT32_MAX;
    const uint64_t raw_best = block_max(mine ? s.parts[threadIdx.x].raw_best : 0, &shared->block),
                   best = block_max(mine ? s.parts[threadIdx.x].best : 0, &shared->block);
    const enum k_result_status status = raw_best == NOT_FINITE      ? K_RESULT_NOT_FINITE
                                        : best >> 32 < LOWEST_ORDER ? K_RESULT_NO_TOKEN
                                                                    : K_RESULT_OK;
    write_nothing(a, s, status);
    if (status != K_RESULT_OK)
        return;
    const float top = logit_of(best);
    const bool known = s.row->scored || p->temperature == 0, cuts_k = !known && sampling_cuts_k(p, s.vocab);
    const uint32_t listed = logprobs && s.entry->top_logprobs > 0
                                    ? reached_by(d_maxima, s.entry->top_logprobs, shared)
                                    : 0,
                   low = cuts_k ? reached_by(d_maxima + (changed ? SAMPLE_GROUPS : 0), p->top_k, shared) : 0;
    if (threadIdx.x != 0)
        return;
    struct sample_state *d = s.state;
    d->raw_top = logit_of(raw_best);
    d->top = top;
    d->top_low = listed;
    d->low = low ? scaled(float_of_order(low), top, p->temperature) : -INFINITY;
    d->whole = cuts_k && low == 0 && s.vocab > SAMPLE_LIST;
    d->left = logprobs ? LEFT_LOGPROBS : 0;
    if (known)
        write_token(a, s, s.row->scored ? (s.row->id < s.vocab ? s.row->id : 0) : id_of(best));
    else
        d->left |= cuts_k ? LEFT_TOP_K : p->top_p < 1.0f ? LEFT_TOP_P : LEFT_NOISE;
}

__global__ void __launch_bounds__(BLOCK_THREADS, BLOCKS) scan_kernel(const struct sample_args a) {
    struct pass_shared *shared = (struct pass_shared *)dynamic_shared();
    const uint32_t i = blockIdx.y;
    if (i >= a.d_round->n_rows)
        return;
    const struct sample s = sample_of(a, i);
    const bool changed = s.d_v != s.d_raw;
    float *d_logits =
            s.row->logits_at == UINT32_MAX ? NULL : a.d_logits + (uint64_t)s.row->logits_at * s.own_rows;
    uint32_t *d_maxima = a.d_maxima + (uint64_t)i * 2 * SAMPLE_GROUPS;
    uint64_t raw_best = 0, best = 0;
    for (uint32_t segment = blockIdx.x; segment < VOCAB_SEGMENTS; segment += gridDim.x) {
        const uint32_t first = segment_first(s, segment), n = segment_first(s, segment + 1) - first;
        const uint64_t raw = highest_raw(s, first, n, d_logits);
        raw_best = higher(raw_best, raw);
        put_groups(d_maxima, segment, raw);
        if (!changed)
            continue;
        change_segment(a, s, first, n);
        const uint64_t own = highest_changed(s, first, n);
        best = higher(best, own);
        put_groups(d_maxima + SAMPLE_GROUPS, segment, own);
    }
    if (!s.row->sampled && !s.row->scored)
        return;
    raw_best = block_max(raw_best, &shared->block);
    best = changed ? block_max(best, &shared->block) : raw_best;
    if (threadIdx.x == 0) {
        s.parts[blockIdx.x].raw_best = raw_best;
        s.parts[blockIdx.x].best = best;
    }
    if (block_is_last(&s.state->arrived[PASS_SCAN], gridDim.x, &shared->block))
        scan_end(a, s, d_maxima, shared);
}

/* --- cuts, on candidates or on the whole vocabulary --- */

struct cut { /* what stays: a higher order, or this one and an id up to last_id */
    uint32_t order, last_id;
};
struct candidates {
    const float *d_v;
    const uint32_t *d_ids; /* NULL: candidate j is id j */
    uint32_t n;
    float top, temperature;
};
static __device__ __forceinline__ uint32_t candidate_id(const struct candidates &c, uint32_t j) {
    return c.d_ids ? c.d_ids[j] : j;
}
static __device__ __forceinline__ bool stays(const struct cut &cut, uint32_t order, uint32_t id) {
    return order > cut.order || (order == cut.order && id <= cut.last_id);
}

/* Candidates that still stay, by order; by mass: they weigh e^x. */
template <bool BY_MASS> struct by_order {
    static constexpr bool MASSES = BY_MASS;
    struct candidates c;
    struct cut cut;
    __device__ bool at(uint32_t j, uint32_t *key, uint64_t *mass) const {
        const uint32_t id = candidate_id(c, j);
        const float x = scaled(c.d_v[id], c.top, c.temperature);
        *key = order_of_float(x);
        if (!stays(cut, *key, id))
            return false;
        if (BY_MASS)
            *mass = mass_of(f32_exp(x));
        return true;
    }
};
/* Those of one order, the lowest id first. */
struct by_id {
    static constexpr bool MASSES = false;
    struct by_order<false> all;
    uint32_t order;
    __device__ bool at(uint32_t j, uint32_t *key, uint64_t *mass) const {
        if (!all.at(j, key, mass) || *key != order)
            return false;
        *key = ~candidate_id(all.c, j);
        return true;
    }
};

/* Keeps the smallest set of highest ones that weighs `target`, 0: top_p of all. */
template <bool BY_MASS>
static __device__ void keep_heaviest(const struct candidates &c, struct cut *cut, uint64_t target,
        float top_p, struct pass_shared *shared) {
    const struct by_order<BY_MASS> source = { c, *cut };
    const struct selected r = select_lowest(source, c.n, target, top_p, &shared->bins, &shared->block);
    const uint32_t equal = equals_wanted(r.target, r.mass, r.n);
    struct cut kept = {r.key, r.key == cut->order ? cut->last_id : UINT32_MAX};
    if (equal < r.n) {
        const struct by_id ties = {{c, *cut}, r.key};
        kept.last_id = ~select_lowest(ties, c.n, equal, 1.0f, &shared->bins, &shared->block).key;
    }
    *cut = kept;
}

/* x with the sample's noise as a key, or 0: min_p takes it out, or it is -inf. */
static __device__ __forceinline__ uint64_t noisy_key(
        float x, uint32_t id, float min_p, struct gumbel_key noise) {
    if (order_of_float(x) < LOWEST_ORDER || (min_p > 0 && f32_exp(x) < min_p))
        return 0;
    return key_of(x + gumbel_noise(id, noise), id);
}
static __device__ __forceinline__ struct gumbel_key noise_of(const struct sample &s) {
    return gumbel_key_of(s.slot->sampling.seed, s.index, s.row->position);
}

/* All that is left when the candidates are known; certain: the highest key of ids that stay in any case. */
static __device__ void choose(const struct sample_args &a, const struct sample &s, const uint32_t *d_list,
        struct pass_shared *shared, uint64_t certain) {
    const struct k_sampling *p = &s.slot->sampling;
    const struct sample_state *d = s.state;
    const bool whole = d->whole || d->n_list > SAMPLE_LIST;
    const struct candidates c = {
            s.d_v, whole ? NULL : d_list, whole ? s.vocab : d->n_list, d->top, p->temperature};
    const struct gumbel_key noise = noise_of(s);
    struct cut cut = {LOWEST_ORDER, UINT32_MAX};
    uint64_t best = certain;
    if (d->left & LEFT_TOP_K)
        keep_heaviest<false>(c, &cut, p->top_k, 1.0f, shared);
    if (p->top_p < 1.0f)
        keep_heaviest<true>(c, &cut, whole ? d->target_all : d->target, p->top_p, shared);
    for (uint32_t j = threadIdx.x; j < c.n; j += BLOCK_THREADS) {
        const uint32_t id = candidate_id(c, j);
        const float x = scaled(c.d_v[id], c.top, c.temperature);
        if (stays(cut, order_of_float(x), id))
            best = higher(best, noisy_key(x, id, p->min_p, noise));
    }
    best = block_max(best, &shared->block);
    if (threadIdx.x == 0)
        write_token(a, s, id_of(best));
}

/* --- weigh --- */

/* Higher for a lower x. */
static __device__ __forceinline__ uint32_t mass_bin(float x) {
    const float below = 0.0f - x * 64.0f;
    return below < (float)(MASS_BINS - 1) ? (uint32_t)below : MASS_BINS - 1;
}

/* sum of e^(x - top): 16 chains of every 16th element, then a tree. The first half warp has the sum. */
static __device__ float sum_segment(const float *d_x, uint32_t n, float top, float *shared) {
    float sum = 0.0f;
    for (uint32_t first = 0; first < n; first += STAGED) {
        const uint32_t m = n - first < STAGED ? n - first : STAGED;
        __syncthreads();
        for (uint32_t k = threadIdx.x; k < m; k += BLOCK_THREADS)
            shared[k] = f32_exp(d_x[first + k] - top);
        __syncthreads();
        if (threadIdx.x < CHAINS) {
#pragma unroll 8
            for (uint32_t k = threadIdx.x; k < m; k += CHAINS)
                sum = sum + shared[k];
        }
    }
    if (threadIdx.x < 32)
        for (int d = CHAINS / 2; d > 0; d /= 2)
            sum = sum + __shfl_xor_sync(ALL_LANES, sum, d);
    return sum;
}
/* ln sum e^raw: the tree over segments, two a lane. The first warp has it. */
static __device__ float log_of_sums(const float *d_sums, float top) {
    const uint32_t lane = threadIdx.x % 32;
    float sum = d_sums[2 * lane] + d_sums[2 * lane + 1];
    for (int d = 1; d < 32; d *= 2)
        sum = sum + __shfl_xor_sync(ALL_LANES, sum, d);
    return top + f32_log(sum);
}

static __device__ __forceinline__ void append(uint32_t *d_list, uint32_t *d_n, uint32_t id) {
    const uint32_t at = atomicAdd(d_n, 1u);
    if (at < SAMPLE_LIST)
        d_list[at] = id;
}

/* The list of top logprobs: the highest key below the last one, again and again. */
static __device__ void list_top(const struct sample_args &a, const struct sample &s, const uint32_t *d_list,
        struct pass_shared *shared) {
    const bool whole = s.state->n_top_list > SAMPLE_LIST;
    const uint32_t n = whole ? s.vocab : s.state->n_top_list, asked = s.entry->top_logprobs < TOP_LOGPROBS_MAX
                                                                              ? s.entry->top_logprobs
                                                                              : TOP_LOGPROBS_MAX;
    struct k_result *d_r = a.d_results + s.result;
    const float lse = s.state->lse;
    uint64_t last = UINT64_MAX;
    uint32_t found = 0;
    for (; found < asked; found++) {
        uint64_t best = 0;
        for (uint32_t j = threadIdx.x; j < n; j += BLOCK_THREADS) {
            const uint32_t id = whole ? j : d_list[j];
            const uint64_t key = key_of(s.d_raw[id], id);
            best = key < last ? higher(best, key) : best;
        }
        last = block_max(best, &shared->block);
        if (last == 0)
            break;
        if (threadIdx.x == 0) {
            d_r->top_ids[found] = id_of(last);
            d_r->top_logprobs[found] = s.d_raw[id_of(last)] - lse;
        }
    }
    if (threadIdx.x == 0)
        d_r->n_top = found;
}

/* This thread's part of what is left for the token; returns its highest with noise. */
static __device__ uint64_t weigh_segment(const struct sample &s, uint32_t first, uint32_t n, uint32_t left,
        uint32_t *d_list, struct block_bins *bins) {
    const struct k_sampling *p = &s.slot->sampling;
    const float top = s.state->top, low = s.state->low;
    const struct gumbel_key noise = noise_of(s);
    uint64_t best = 0;
    for (uint32_t k = threadIdx.x; k < n; k += BLOCK_THREADS) {
        const float x = scaled(s.d_v[first + k], top, p->temperature);
        if (left & LEFT_NOISE) {
            best = higher(best, noisy_key(x, first + k, p->min_p, noise));
        } else if (left & LEFT_TOP_K) {
            if (x >= low && order_of_float(x) >= LOWEST_ORDER)
                append(d_list, &s.state->n_list, first + k);
        } else {
            const uint64_t mass = mass_of(f32_exp(x));
            if (mass)
                mass_add(bins, mass_bin(x), mass);
        }
    }
    return best;
}
/* This block's part of the token. */
static __device__ void weigh_token(const struct sample &s, uint32_t left, uint32_t *d_list,
        uint64_t *d_masses, struct pass_shared *shared) {
    struct block_bins *bins = &shared->bins;
    uint64_t best = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < MASS_BINS && left & LEFT_TOP_P; i += BLOCK_THREADS)
        bins->mass_low[i] = bins->mass_high[i] = 0;
    __syncthreads();
    for (uint32_t segment = blockIdx.x; segment < VOCAB_SEGMENTS; segment += gridDim.x) {
        const uint32_t first = segment_first(s, segment), n = segment_first(s, segment + 1) - first;
        best = higher(best, weigh_segment(s, first, n, left, d_list, bins));
    }
    best = block_max(best, &shared->block); /* and all masses are there */
    if (threadIdx.x == 0)
        s.parts[blockIdx.x].best = best;
    for (uint32_t i = threadIdx.x; i < MASS_BINS && left & LEFT_TOP_P; i += BLOCK_THREADS) {
        const uint64_t mass = halves(bins->mass_high[i], bins->mass_low[i]);
        if (mass)
            atomicAdd((unsigned long long *)&d_masses[i], (unsigned long long)mass);
    }
}

/* The bin that the top-p cut is in. */
static __device__ void find_bin(
        const struct sample &s, const uint64_t *d_masses, struct pass_shared *shared) {
    const uint32_t per = MASS_BINS / BLOCK_THREADS, first = threadIdx.x * per;
    uint64_t own = 0, total;
    for (uint32_t i = 0; i < per; i++)
        own += d_masses[first + i];
    uint64_t before = block_before(own, &shared->block, &total);
    const uint64_t target = mass_wanted(s.slot->sampling.top_p, total);
    if (before >= target || target > before + own)
        return;
    uint32_t bin = first;
    for (; before + d_masses[bin] < target; bin++)
        before += d_masses[bin];
    s.state->bin = bin;
    s.state->target = target - before;
    s.state->target_all = target;
}

/* The highest key that the blocks of a pass have found. */
static __device__ uint64_t best_of_parts(const struct sample &s, struct pass_shared *shared) {
    return block_max(threadIdx.x < gridDim.x ? s.parts[threadIdx.x].best : 0, &shared->block);
}

static __device__ void weigh_end(const struct sample_args &a, const struct sample &s, uint32_t left,
        uint32_t *const *d_lists, struct pass_shared *shared) {
    const uint32_t i = blockIdx.y;
    if (left & LEFT_LOGPROBS) {
        if (threadIdx.x < 32) {
            const float lse = log_of_sums(a.d_sums + i * VOCAB_SEGMENTS, s.state->raw_top);
            if (threadIdx.x == 0)
                s.state->lse = lse;
        }
        __syncthreads();
        list_top(a, s, d_lists[0], shared);
    }
    if (left & LEFT_TOP_P) {
        find_bin(s, a.d_masses + (uint64_t)i * MASS_BINS, shared);
    } else if (left & LEFT_TOP_K) {
        choose(a, s, d_lists[1], shared, /* certain= */ 0);
    } else {
        const uint64_t best = left & LEFT_NOISE ? best_of_parts(s, shared) : 0;
        if (threadIdx.x == 0) /* a greedy one is known; its logprob is not */
            write_token(a, s, left & LEFT_NOISE ? id_of(best) : a.d_results[s.result].id);
    }
}

__global__ void __launch_bounds__(BLOCK_THREADS, BLOCKS) weigh_kernel(const struct sample_args a) {
    struct pass_shared *shared = (struct pass_shared *)dynamic_shared();
    const uint32_t i = blockIdx.y;
    if (i >= a.d_round->n_rows || a.d_states[i].left == 0)
        return;
    const struct sample s = sample_of(a, i);
    const uint32_t left = s.state->left, listed = s.state->top_low;
    uint32_t *const d_lists[2] = {a.d_lists + (uint64_t)i * 2 * SAMPLE_LIST,
            a.d_lists + (uint64_t)i * 2 * SAMPLE_LIST + SAMPLE_LIST};
    for (uint32_t segment = blockIdx.x; segment < VOCAB_SEGMENTS && left & LEFT_LOGPROBS;
            segment += gridDim.x) {
        const uint32_t first = segment_first(s, segment), n = segment_first(s, segment + 1) - first;
        const float sum = sum_segment(s.d_raw + first, n, s.state->raw_top, shared->e);
        if (threadIdx.x == 0)
            a.d_sums[i * VOCAB_SEGMENTS + segment] = sum;
        for (uint32_t k = threadIdx.x; k < n && s.entry->top_logprobs > 0; k += BLOCK_THREADS)
            if (order_of_float(s.d_raw[first + k] + 0.0f) >= listed)
                append(d_lists[0], &s.state->n_top_list, first + k);
    }
    if (left & (LEFT_NOISE | LEFT_TOP_P) || (left & LEFT_TOP_K && !s.state->whole))
        weigh_token(s, left, d_lists[1], a.d_masses + (uint64_t)i * MASS_BINS, shared);
    if (block_is_last(&s.state->arrived[PASS_WEIGH], gridDim.x, &shared->block))
        weigh_end(a, s, left, d_lists, shared);
}

/* --- gather --- */

__global__ void __launch_bounds__(BLOCK_THREADS, BLOCKS) gather_kernel(const struct sample_args a) {
    struct pass_shared *shared = (struct pass_shared *)dynamic_shared();
    const uint32_t i = blockIdx.y;
    if (i >= a.d_round->n_rows || !(a.d_states[i].left & LEFT_TOP_P))
        return;
    const struct sample s = sample_of(a, i);
    const struct k_sampling *p = &s.slot->sampling;
    const struct gumbel_key noise = noise_of(s);
    const float top = s.state->top;
    const uint32_t bin_of_cut = s.state->bin;
    uint32_t *d_list = a.d_lists + (uint64_t)i * 2 * SAMPLE_LIST + SAMPLE_LIST;
    uint64_t best = 0;
    for (uint32_t segment = blockIdx.x; segment < VOCAB_SEGMENTS; segment += gridDim.x) {
        const uint32_t first = segment_first(s, segment), n = segment_first(s, segment + 1) - first;
        for (uint32_t k = threadIdx.x; k < n; k += BLOCK_THREADS) {
            const float x = scaled(s.d_v[first + k], top, p->temperature);
            const uint32_t bin = mass_bin(x);
            if (bin < bin_of_cut)
                best = higher(best, noisy_key(x, first + k, p->min_p, noise));
            else if (bin == bin_of_cut)
                append(d_list, &s.state->n_list, first + k);
        }
    }
    best = block_max(best, &shared->block);
    if (threadIdx.x == 0)
        s.parts[blockIdx.x].best = best;
    if (!block_is_last(&s.state->arrived[PASS_GATHER], gridDim.x, &shared->block))
        return;
    best = best_of_parts(s, shared);
    choose(a, s, d_list, shared, best);
}

/* --- outcomes --- */

/* A block an entry, every thread for itself: there is little to look at. */
__global__ void __launch_bounds__(BLOCK_THREADS) outcomes_kernel(const struct outcome_args a) {
    const uint32_t i = blockIdx.x, n = a.p.shape.hidden_size;
    if (i >= a.d_plan->n_entries || !(a.d_entries[i].flags & K_ENTRY_SAMPLE))
        return;
    const struct k_entry e = a.d_entries[i];
    const struct k_outcome o = outcome_of(&e, a.d_results + e.sample_at, a.p.d_slots + e.slot);
    const uint32_t row = entry_accepted_row(&e, &o);
    if (threadIdx.x == 0)
        a.d_outcomes[e.outcome_at] = o;
    if (row + 1 == e.n_rows)
        return;
    for (uint32_t k = threadIdx.x; k < n; k += BLOCK_THREADS)
        a.p.d_hidden[(uint64_t)e.slot * n + k] = a.d_hidden[((uint64_t)e.row_begin + row) * n + k];
}
cudaError_t queue_outcomes(cudaStream_t s, const struct outcome_args *a, uint32_t entries_bound) {
    return K_LAUNCH(outcomes_kernel, dim3(entries_bound), BLOCK_THREADS, 0, s, *a);
}

/* --- launching --- */

/* Of one sample: all segments at once where there are few samples, otherwise what fills a device once. */
static uint32_t blocks_of(uint32_t rows) {
    return rows <= 8    ? VOCAB_SEGMENTS
           : rows <= 16 ? VOCAB_SEGMENTS / 2
           : rows <= 32 ? VOCAB_SEGMENTS / 4
                        : VOCAB_SEGMENTS / 8;
}
cudaError_t queue_samples(cudaStream_t s, const struct sample_args *a, uint32_t rows_bound) {
    const dim3 grid(blocks_of(rows_bound), rows_bound);
    /* A scan only counts, and leaves room for more blocks. */
    const size_t all = sizeof(struct pass_shared),
                 counts = offsetof(struct pass_shared, bins) + offsetof(struct block_bins, mass_low);
    cudaError_t r = K_LAUNCH(scan_kernel, grid, BLOCK_THREADS, counts, s, *a);
    if (r == cudaSuccess)
        r = K_LAUNCH(weigh_kernel, grid, BLOCK_THREADS, all, s, *a);
    if (r == cudaSuccess)
        r = K_LAUNCH(gather_kernel, grid, BLOCK_THREADS, all, s, *a);
    return r;
}
