/* exchange_large.cu - sums over ranks of many elements: in chunks, with a signal behind each (exchange.h), so that a
 * value is sent as it is and not beside its epoch.
 *
 *   two ranks   some blocks push chunks of the part into the other's inbox and signal them; others, when the other's
 *               chunk is there, add the two in the order of ranks, and the sum to x. Sends 4 bytes an element, and
 *               moves 20 at home.
 *   more        rank r owns every chunk c with c % TP = r. Some blocks push parts to the chunks' owners; others add
 *               what came of the rank's own chunks in the order of the tree over ranks, and push the sum to everybody;
 *               others add the owners' sums to x. Sends 8 (TP - 1) / TP bytes an element, as a ring does.
 *
 * A block has one role, so that the link is busy while sums are made. A thread moves 16 bytes at a time, side by side
 * with its neighbours. Blocks that push parts wait for nobody, those of a later role for those of earlier ones only,
 * and a grid begins with the earlier: nobody waits for a block that cannot begin. */
#include "kernels/cuda/exchange.cuh"
#include "kernels/cuda/launch.cuh"

#define LARGE_THREADS 512u
#define LARGE_STEP    (LARGE_THREADS * 4)             /* floats that a block moves at once */
#define LARGE_BLOCKS  K_BLOCKS_TOGETHER               /* of a role */
#define LARGE_CHUNKS  (EXCHANGE_BLOCKS * GROUPS_EACH) /* for each owner, at most */
#define BATCH         4u                              /* of what a thread loads before it stores */
#define SUMS_BLOCKS   1024u
#define GROUPS_EACH   4u /* of a block, about: few signals, and a link that is busy early */

static_assert(3 * LARGE_BLOCKS <= EXCHANGE_LARGE_BLOCKS, "every block has an epoch");
static_assert(LARGE_CHUNKS <= EXCHANGE_GROUPS, "every group has a signal");
static_assert(
        EXCHANGE_LARGE_FLOATS / LARGE_CHUNKS <= EXCHANGE_CHUNK_MOST && EXCHANGE_CHUNK_MOST % LARGE_STEP == 0,
        "an inbox has room for the last chunks");

/* An exchange of n floats: chunks of which a block moves `in_group` together, to as many owners. */
struct large {
    const float *d_part;
    float *d_x;
    uint32_t epoch, n, chunk, in_group, groups;
};
static __device__ __forceinline__ struct large large_of(
        const struct exchange_add_args &a, uint32_t in_group) {
    struct large l;
    const uint32_t most = LARGE_CHUNKS * in_group;
    const uint64_t first = (uint64_t)a.first_row * a.columns;
    l.d_part = a.d_part + first;
    l.d_x = a.d_x + first;
    l.epoch = a.view.d_large_epochs[blockIdx.x] + 1;
    l.n = rows_here(a.d_plan, a.first_row, a.rows) * a.columns;
    l.chunk = ((l.n + most - 1) / most + LARGE_STEP - 1) / LARGE_STEP * LARGE_STEP;
    l.in_group = in_group;
    l.groups = l.n == 0 ? 0 : (l.n + l.chunk * in_group - 1) / (l.chunk * in_group);
    return l;
}
static __device__ __forceinline__ uint32_t begin_of(const struct large &l, uint32_t group, uint32_t k) {
    return (group * l.in_group + k) * l.chunk;
}
/* All blocks have the same epoch between kernels, whatever grids there are. */
static __device__ __forceinline__ void large_end(const struct exchange_view &v, const struct large &l) {
    __syncthreads();
    if (threadIdx.x == 0)
        v.d_large_epochs[blockIdx.x] = l.epoch;
    for (uint32_t k = gridDim.x + threadIdx.x; blockIdx.x == 0 && k < EXCHANGE_LARGE_BLOCKS;
            k += LARGE_THREADS)
        v.d_large_epochs[k] = l.epoch;
}
/* Floats of chunk k of a group; 0: there is none. */
static __device__ __forceinline__ uint32_t floats_of(const struct large &l, uint32_t group, uint32_t k) {
    const uint32_t begin = begin_of(l, group, k);
    return begin >= l.n ? 0 : l.n - begin < l.chunk ? l.n - begin : l.chunk;
}

/* --- inboxes --- */

/* What is sent: a rank's part of a chunk to its owner, or the chunk's sum by its owner. */
enum sent { PARTS, SUMS };

static __device__ __forceinline__ uint32_t *signal_of(const struct exchange_view &v, const struct large &l,
        enum sent sent, uint32_t inbox_of, uint32_t from, uint32_t group) {
    uint32_t *d_signals = (uint32_t *)exchange_large_inbox(v.inbox[inbox_of], v.tp, l.epoch);
    return d_signals + (sent * RANKS_MAX + from) * EXCHANGE_GROUPS + group;
}
static __device__ __forceinline__ float4 *place_of(const struct exchange_view &v, const struct large &l,
        enum sent sent, uint32_t inbox_of, uint32_t from, uint32_t group) {
    float *d_data = (float *)(exchange_large_inbox(v.inbox[inbox_of], v.tp, l.epoch) + EXCHANGE_SIGNAL_BYTES);
    const uint32_t slot = l.in_group == 1 ? group : (sent * l.in_group + from) * l.groups + group;
    return (float4 *)(d_data + (uint64_t)slot * l.chunk);
}
/* Every thread has written what it pushes of the group: rank threadIdx.x is told. */
static __device__ __forceinline__ void tell(
        const struct exchange_view &v, const struct large &l, enum sent sent, uint32_t group, bool who) {
    __syncthreads();
    if (threadIdx.x < v.tp && threadIdx.x != v.rank && who)
        signal_peer(signal_of(v, l, sent, threadIdx.x, v.rank, group), l.epoch);
}
/* Waits for all ranks of which thread r says `who`; false: one does not come. *shared_late: 0 at first. */
static __device__ __forceinline__ bool hear(const struct exchange_view &v, const struct large &l,
        enum sent sent, uint32_t group, bool who, uint32_t *shared_late) {
    if (threadIdx.x < v.tp && threadIdx.x != v.rank && who) {
        const uint32_t *d_signal = signal_of(v, l, sent, v.rank, threadIdx.x, group);
        uint64_t began = 0;
        bool there = false;
        do {
            for (uint32_t spin = 0; spin < SPINS && !there; spin++) {
                there = load_signal(d_signal) == l.epoch;
                if (!there)
                    spin_pause();
            }
        } while (!there && wait_goes_on(v, &began, threadIdx.x, l.epoch));
        if (!there)
            *shared_late = 1;
    }
    __syncthreads();
    return *(volatile uint32_t *)shared_late == 0;
}

static __device__ __forceinline__ float4 add4(float4 a, float4 b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
static __device__ __forceinline__ float4 load4(const float *d_p, uint32_t i) {
    return ((const float4 *)d_p)[i];
}
static __device__ __forceinline__ float4 load4_below(const float *d_p, uint32_t i, uint32_t n) {
    return i < n ? load4(d_p, i) : float4{};
}
static __device__ __forceinline__ void add_to_x(
        const struct large &l, uint32_t begin, uint32_t i, float4 sum) {
    float4 *d_x = (float4 *)(l.d_x + begin) + i;
    *d_x = add4(*d_x, sum);
}

/* --- two ranks --- */

static __device__ __forceinline__ void push_chunk(
        const struct exchange_view &v, const struct large &l, uint32_t to, uint32_t group, uint32_t k) {
    const uint32_t n = floats_of(l, group, k) / 4;
    float4 *d_to = place_of(v, l, PARTS, to, v.rank, group);
    for (uint32_t first = threadIdx.x; first < n; first += BATCH * LARGE_THREADS) {
        float4 x[BATCH];
#pragma unroll
        for (uint32_t b = 0; b < BATCH; b++)
            x[b] = load4_below(l.d_part + begin_of(l, group, k), first + b * LARGE_THREADS, n);
#pragma unroll
        for (uint32_t b = 0; b < BATCH; b++)
            if (first + b * LARGE_THREADS < n)
                d_to[first + b * LARGE_THREADS] = x[b];
    }
}
static __device__ __forceinline__ bool take_parts(
        const struct exchange_view &v, const struct large &l, uint32_t group, uint32_t *shared_late) {
    const uint32_t n = floats_of(l, group, 0) / 4, begin = begin_of(l, group, 0);
    const float4 *d_come = place_of(v, l, PARTS, v.rank, 1 - v.rank, group);
    if (!hear(v, l, PARTS, group, true, shared_late))
        return false;
    for (uint32_t first = threadIdx.x; first < n; first += BATCH * LARGE_THREADS) {
        float4 own[BATCH], come[BATCH], x[BATCH];
#pragma unroll
        for (uint32_t b = 0; b < BATCH; b++) {
            const uint32_t i = first + b * LARGE_THREADS;
            own[b] = load4_below(l.d_part + begin, i, n);
            x[b] = load4_below(l.d_x + begin, i, n);
            come[b] = i < n ? load_of_others(d_come + i) : float4{};
        }
#pragma unroll
        for (uint32_t b = 0; b < BATCH; b++)
            if (first + b * LARGE_THREADS < n)
                ((float4 *)(l.d_x + begin))[first + b * LARGE_THREADS] =
                        add4(x[b], v.rank == 0 ? add4(own[b], come[b]) : add4(come[b], own[b]));
    }
    return true;
}
__global__ void __launch_bounds__(LARGE_THREADS)
        exchange_large_pair_kernel(const struct exchange_add_args a) {
    __shared__ uint32_t late;
    const struct exchange_view &v = a.view;
    const struct large l = large_of(a, 1);
    const uint32_t role = blockIdx.x / LARGE_BLOCKS;
    bool there = true;
    if (l.n == 0 || *v.d_poisoned)
        return;
    if (threadIdx.x == 0)
        late = 0;
    __syncthreads();
    for (uint32_t g = blockIdx.x % LARGE_BLOCKS; g < l.groups && there; g += LARGE_BLOCKS)
        if (role == 0) {
            push_chunk(v, l, 1 - v.rank, g, 0);
            tell(v, l, PARTS, g, true);
        } else {
            there = take_parts(v, l, g, &late);
        }
    large_end(v, l);
}

/* --- more --- */

template <uint32_t TP>
static __device__ __forceinline__ void push_parts(
        const struct exchange_view &v, const struct large &l, uint32_t group) {
    for (uint32_t k = 1; k < TP; k++) /* not all to the same first */
        push_chunk(v, l, (v.rank + k) % TP, group, (v.rank + k) % TP);
    tell(v, l, PARTS, group, floats_of(l, group, threadIdx.x) != 0);
}
/* The sum of the rank's own chunk, to x and to everybody. */
template <uint32_t TP>
static __device__ __forceinline__ bool push_sums(
        const struct exchange_view &v, const struct large &l, uint32_t group, uint32_t *shared_late) {
    const uint32_t n = floats_of(l, group, v.rank) / 4, begin = begin_of(l, group, v.rank);
    if (!hear(v, l, PARTS, group, n != 0, shared_late))
        return false;
    for (uint32_t i = threadIdx.x; i < n; i += LARGE_THREADS) {
        float4 sum[TP];
#pragma unroll
        for (uint32_t r = 0; r < TP; r++)
            sum[r] = r == v.rank ? load4(l.d_part + begin, i)
                                 : load_of_others(place_of(v, l, PARTS, v.rank, r, group) + i);
#pragma unroll
        for (uint32_t d = 1; d < TP; d *= 2)
#pragma unroll
            for (uint32_t r = 0; r < TP; r += 2 * d)
                sum[r] = add4(sum[r], sum[r + d]);
        for (uint32_t r = 0; r < TP; r++)
            if (r != v.rank)
                place_of(v, l, SUMS, r, v.rank, group)[i] = sum[0];
        add_to_x(l, begin, i, sum[0]);
    }
    tell(v, l, SUMS, group, n != 0);
    return true;
}
template <uint32_t TP>
static __device__ __forceinline__ bool take_sums(
        const struct exchange_view &v, const struct large &l, uint32_t group, uint32_t *shared_late) {
    if (!hear(v, l, SUMS, group, floats_of(l, group, threadIdx.x) != 0, shared_late))
        return false;
    for (uint32_t r = 0; r < TP; r++) {
        const uint32_t n = r == v.rank ? 0 : floats_of(l, group, r) / 4, begin = begin_of(l, group, r);
        const float4 *d_come = place_of(v, l, SUMS, v.rank, r, group);
        for (uint32_t i = threadIdx.x; i < n; i += LARGE_THREADS)
            add_to_x(l, begin, i, load_of_others(d_come + i));
    }
    return true;
}
template <uint32_t TP>
__global__ void __launch_bounds__(LARGE_THREADS) exchange_large_kernel(const struct exchange_add_args a) {
    __shared__ uint32_t late;
    const struct exchange_view &v = a.view;
    const struct large l = large_of(a, TP);
    const uint32_t role = blockIdx.x / LARGE_BLOCKS;
    bool there = true;
    if (l.n == 0 || *v.d_poisoned)
        return;
    if (threadIdx.x == 0)
        late = 0;
    __syncthreads();
    for (uint32_t g = blockIdx.x % LARGE_BLOCKS; g < l.groups && there; g += LARGE_BLOCKS)
        if (role == 0)
            push_parts<TP>(v, l, g);
        else
            there = role == 1 ? push_sums<TP>(v, l, g, &late) : take_sums<TP>(v, l, g, &late);
    large_end(v, l);
}
cudaError_t queue_exchange_large(cudaStream_t s, const struct exchange_add_args *a) {
    switch (a->view.tp) {
    case 2:
        return K_LAUNCH(exchange_large_pair_kernel, 2 * LARGE_BLOCKS, LARGE_THREADS, 0, s, *a);
    case 4:
        return K_LAUNCH(exchange_large_kernel<4>, 3 * LARGE_BLOCKS, LARGE_THREADS, 0, s, *a);
    default:
        return K_LAUNCH(exchange_large_kernel<8>, 3 * LARGE_BLOCKS, LARGE_THREADS, 0, s, *a);
    }
}

/* --- what a library has brought --- */

/* Reads 4 n bytes an element and x, and writes x. */
template <uint32_t N>
__global__ void __launch_bounds__(LARGE_THREADS) exchange_sums_kernel(const struct exchange_sums_args a) {
    const struct exchange_view &v = a.add.view;
    const uint32_t n = rows_here(a.add.d_plan, a.add.first_row, a.add.rows) * a.add.columns / 4,
                   stride = a.add.rows * a.add.columns / 4, first = blockIdx.x * LARGE_THREADS + threadIdx.x;
    float4 *d_x = (float4 *)(a.add.d_x + (uint64_t)a.add.first_row * a.add.columns);
    if (first == 0 && *v.aborted &&
            !*v.d_poisoned) /* who stops a group makes the library's kernels end early */
        give_up(v, EXCHANGE_ABORTED, v.rank, 0);
    for (uint32_t i = first; i < n; i += gridDim.x * LARGE_THREADS) {
        float4 sum[N];
#pragma unroll
        for (uint32_t r = 0; r < N; r++)
            sum[r] = load4(a.d_sums, r * stride + i);
#pragma unroll
        for (uint32_t d = 1; d < N; d *= 2)
#pragma unroll
            for (uint32_t r = 0; r < N; r += 2 * d)
                sum[r] = add4(sum[r], sum[r + d]);
        d_x[i] = add4(d_x[i], sum[0]);
    }
}
cudaError_t queue_exchange_sums(cudaStream_t s, const struct exchange_sums_args *a) {
    const uint64_t all = ((uint64_t)a->add.rows * a->add.columns / 4 + LARGE_THREADS - 1) / LARGE_THREADS;
    const uint32_t blocks = all < SUMS_BLOCKS ? (uint32_t)all : SUMS_BLOCKS;
    switch (a->n) {
    case 1:
        return K_LAUNCH(exchange_sums_kernel<1>, blocks, LARGE_THREADS, 0, s, *a);
    case 4:
        return K_LAUNCH(exchange_sums_kernel<4>, blocks, LARGE_THREADS, 0, s, *a);
    default:
        return K_LAUNCH(exchange_sums_kernel<8>, blocks, LARGE_THREADS, 0, s, *a);
    }
}
