/* exchange_rows.cu - the sum over ranks of few rows, added to the residual, normalised and brought into the forms of
 * the product after it, in one kernel (exchange.h): it takes the place of the kernel that did the last two.
 *
 *   grid      (rows)
 *   block     640 threads: one row. A thread has four columns in a row, two words of each rank, and of 5120 columns two
 *             such; it asks for all of a rank's words at once. What it ends with lies in shared memory, [columns], from
 *             where 256 threads take the norm's chains and a warp the runs of 128, one after another.
 *
 * The part may have been sent by the product that made it, strip by strip, so that its way is over when this begins.
 * Sums are in the order of the tree over ranks, and the norm and the rounding are quantise.cu's, so that all ranks end
 * with the same bits. Sends 8 bytes an element to each other rank and reads as many of each; at home reads 4 of the
 * part, 4 of x, 4 of the norm, and writes 4 and the forms. */
#include "kernels/cuda/exchange.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/rounding.cuh"

#define ROWS_THREADS 640u
#define WARPS        (ROWS_THREADS / 32u)
#define QUADS        2u     /* fours of columns that a thread has at once */
#define COLUMNS_MOST 10240u /* whose row is in the shared memory that every block may have */

/* Fours of columns of a row: i has them from 4 * (first + i * ROWS_THREADS) on, as far as the row has so many. */
struct quads {
    float4 of[QUADS];
};
struct place {              /* of a thread's fours */
    uint32_t row, first, n; /* n: fours of a row */
    __device__ __forceinline__ uint32_t at(uint32_t i) const {
        return first + i * ROWS_THREADS;
    }
    __device__ __forceinline__ uint32_t word(uint32_t i) const { /* of an inbox, the first of two */
        return (row * n + at(i)) * 2;
    }
};
static __device__ __forceinline__ void quads_load(struct quads &q, const float *d_rows, const place &p) {
#pragma unroll
    for (uint32_t i = 0; i < QUADS; i++)
        q.of[i] = p.at(i) < p.n ? ((const float4 *)d_rows)[(uint64_t)p.row * p.n + p.at(i)]
                                : float4{0.0f, 0.0f, 0.0f, 0.0f};
}
static __device__ __forceinline__ void quads_add(struct quads &q, const struct quads &other) {
#pragma unroll
    for (uint32_t i = 0; i < QUADS; i++) {
        q.of[i].x = q.of[i].x + other.of[i].x;
        q.of[i].y = q.of[i].y + other.of[i].y;
        q.of[i].z = q.of[i].z + other.of[i].z;
        q.of[i].w = q.of[i].w + other.of[i].w;
    }
}

static __device__ __forceinline__ void quads_push(
        const struct exchange_view &v, uint32_t epoch, const struct quads &q, const place &p) {
#pragma unroll
    for (uint32_t i = 0; i < QUADS; i++) {
        if (p.at(i) >= p.n)
            break;
        push_to_all(v, epoch, p.word(i), {q.of[i].x, q.of[i].y});
        push_to_all(v, epoch, p.word(i) + 1, {q.of[i].z, q.of[i].w});
    }
}
/* Asks for all words of rank `from` at once; false: they do not come. */
static __device__ __forceinline__ bool quads_pull(
        const struct exchange_view &v, uint32_t from, uint32_t epoch, const place &p, struct quads *ret) {
    const uint4 *words = words_of(v, v.rank, from, epoch);
    uint64_t began = 0;
    do {
        for (uint32_t spin = 0; spin < SPINS; spin++) {
            uint4 w[2 * QUADS];
            bool there = true;
#pragma unroll
            for (uint32_t i = 0; i < QUADS; i++) {
                w[2 * i] = w[2 * i + 1] = uint4{0, epoch, 0, epoch};
                if (p.at(i) < p.n) {
                    w[2 * i] = load_from_peer(words + p.word(i));
                    w[2 * i + 1] = load_from_peer(words + p.word(i) + 1);
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < QUADS; i++) {
                const uint4 &a = w[2 * i], &b = w[2 * i + 1];
                there = there && a.y == epoch && a.w == epoch && b.y == epoch && b.w == epoch;
                ret->of[i] = {float_of_bits(a.x), float_of_bits(a.z), float_of_bits(b.x), float_of_bits(b.z)};
            }
            if (there)
                return true;
            spin_pause();
        }
    } while (wait_goes_on(v, &began, from, epoch));
    return false;
}
/* The tree over N ranks from `first` on; false: one's words do not come. */
template <uint32_t N>
static __device__ __forceinline__ bool quads_of_ranks(const struct exchange_view &v, uint32_t first,
        uint32_t epoch, const place &p, const struct quads &own, struct quads *ret) {
    if constexpr (N == 1) {
        *ret = own;
        return first == v.rank || quads_pull(v, first, epoch, p, ret);
    } else {
        struct quads other;
        const bool low = quads_of_ranks<N / 2>(v, first, epoch, p, own, ret),
                   high = low && quads_of_ranks<N / 2>(v, first + N / 2, epoch, p, own, &other);
        if (high)
            quads_add(*ret, other);
        return high;
    }
}

/* The row's runs, of x in shared memory; all of the block call it. */
static __device__ __forceinline__ void row_make(
        const struct exchange_rows_args &a, const float *x, float *chains) {
    constexpr uint32_t BATCH =
            2; /* runs of a warp of 5120 columns, whose norm's weights are asked for ahead */
    const uint32_t all_runs = a.in.columns / a.in.leaf_columns * a.in.runs;
    float scale = 0.0f;
    for (uint32_t first = 0; first < all_runs; first += BATCH * WARPS) {
        struct run_values v[BATCH] = {};
#pragma unroll
        for (uint32_t i = 0; i < BATCH; i++)
            if (first + i * WARPS + threadIdx.x / 32 < all_runs)
                run_load(a.in, x, first + i * WARPS + threadIdx.x / 32, v[i]);
        if (first == 0)
            scale = norm_scale(x, a.in.columns, a.in.eps, chains);
#pragma unroll
        for (uint32_t i = 0; i < BATCH; i++) {
            const uint32_t run = first + i * WARPS + threadIdx.x / 32;
            if (run >= all_runs)
                break;
            run_norm(v[i], scale);
            if (a.codes.d_codes)
                run_codes_put(a.codes, v[i].x, blockIdx.x, run);
            if (a.terms.d_terms)
                run_terms_put(a.terms, a.order, v[i], blockIdx.x, run);
        }
    }
}

template <uint32_t TP>
__global__ void __launch_bounds__(ROWS_THREADS) exchange_rows_kernel(const struct exchange_rows_args a) {
    const struct exchange_view &v = a.view;
    __shared__ float chains[ROWS_THREADS];
    float *x = (float *)dynamic_shared();
    const uint32_t row = blockIdx.x;
    struct place p = {row, threadIdx.x, a.in.columns / 4};
    struct quads part, own, sum;
    if (row == 0) { /* whose memory is there: it is asked for before it is known whether it is a row */
        quads_load(part, a.d_part, p);
        quads_load(own, a.d_x, p);
    }
    const uint32_t epoch = epoch_begin(v), rows = rows_here(a.in.d_plan, 0, a.rows);
    if (rows == 0)
        return;
    bool there = row < rows && *v.d_poisoned == 0;
    for (uint32_t at = threadIdx.x * 32; row < rows && at < a.in.columns; at += ROWS_THREADS * 32)
        ask_for_line(a.in.d_norm + at); /* nobody has used them since the last token */
    for (; there && p.first < p.n; p.first += QUADS * ROWS_THREADS) {
        if (row > 0 || p.first >= QUADS * ROWS_THREADS) {
            quads_load(part, a.d_part, p);
            quads_load(own, a.d_x, p);
        }
        if (!a.pushed)
            quads_push(v, epoch, part, p);
        there = quads_of_ranks<TP>(v, 0, epoch, p, part, &sum);
        if (!there)
            break;
        quads_add(own, sum);
#pragma unroll
        for (uint32_t i = 0; i < QUADS; i++)
            if (p.at(i) < p.n)
                ((float4 *)x)[p.at(i)] = ((float4 *)a.d_x)[(uint64_t)row * p.n + p.at(i)] = own.of[i];
    }
    __syncthreads();
    if (row < rows)
        row_make(a, x, chains);
    epoch_end(v, epoch);
}
bool exchange_rows_can(uint32_t rows, uint32_t columns) {
    return rows <= EXCHANGE_BLOCKS && columns % 4 == 0 && columns <= COLUMNS_MOST &&
           (uint64_t)rows * columns <= EXCHANGE_FLOATS;
}
cudaError_t queue_exchange_rows(cudaStream_t s, const struct exchange_rows_args *a) {
    const size_t shared = a->in.columns * sizeof(float);
    switch (a->view.tp) {
    case 2:
        return K_LAUNCH(exchange_rows_kernel<2>, a->rows, ROWS_THREADS, shared, s, *a);
    case 4:
        return K_LAUNCH(exchange_rows_kernel<4>, a->rows, ROWS_THREADS, shared, s, *a);
    default:
        return K_LAUNCH(exchange_rows_kernel<8>, a->rows, ROWS_THREADS, shared, s, *a);
    }
}
