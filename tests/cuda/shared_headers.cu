/* shared_headers.cu - every header of kernels/shared in one .cu file, its functions called from a kernel. Compiled by
 * the test kernels_shared_is_cuda, and never run. */
#include "kernels/shared/bounds.h"
#include "kernels/shared/check.h"
#include "kernels/shared/constants.h"
#include "kernels/shared/counts.h"
#include "kernels/shared/cuts.h"
#include "kernels/shared/dummy.h"
#include "kernels/shared/elementary.h"
#include "kernels/shared/noise.h"
#include "kernels/shared/numbers.h"
#include "kernels/shared/pool_layout.h"
#include "kernels/shared/segments.h"
#include "kernels/shared/trigonometry.h"

__global__ void call_all(float *f, uint32_t *u, double *d) {
    const uint32_t i = threadIdx.x;
    float c, s;
    cos_sin(f[i], &c, &s);
    f[i] = c + s + f32_exp(f[i]) + f32_log(f[i]) + f32_softplus(f[i]) + f32_silu(f[i]) + f32_sigmoid(f[i]);
    f[i] += gumbel_noise(u[i], gumbel_key_of(u[i], i, 3)) + float_of_f16(f16_of(f[i])) +
            float_of_bf16(bf16_of(f[i]));
    f[i] += dummy_dense(dummy_seed(1), 2, 3, 4, i, 0.5f);
    u[i] = dummy_code(QUANT_INT4, dummy_eight(dummy_piece_seed(1, 2), i, 8), 3) + segment_end(64, 0, 320, i);
    u[i] += count_once_more((uint16_t)u[i], true) + count_seen((uint16_t)u[i], false) + strips_of(u[i]);
    f[i] += count_penalise(f[i], (uint16_t)u[i], 1.1f, 0.5f, 0.25f);
    u[i] += order_of_float(f[i]) +
            equals_wanted(mass_wanted(f[i], u[i]), mass_of(f[i]), cut_shift(i) + cut_width(i));
    f[i] += float_of_order(u[i]);
    d[i] = cos_small(sin_small(d[i]));
}
