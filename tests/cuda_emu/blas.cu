/* blas.cu - the emulated twin of kernels/cuda/blas.c: products of bf16, one output a thread, so that what goes to the
 * library and what comes from it is tested where there is no GPU. */
#include "kernels/cuda/blas.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/shared/portable.h"

#include "base/half.h"

#include <errno.h>

#define BLAS_THREADS 64u

struct blas {
    char text[32];
};

int blas_open(struct blas **ret, struct error *e) {
    static struct blas one = {"an emulated library"};
    (void)e;
    *ret = &one;
    return 0;
}
struct blas *blas_close(struct blas *b) {
    (void)b;
    return NULL;
}
const char *blas_describe(const struct blas *b) {
    return b->text;
}

/* grid (rows, blocks of BLAS_THREADS outputs) */
static void blas_kernel(const struct blas_product p, const uint16_t *d_w, const uint16_t *d_x, float *d_y,
        uint8_t *d_workspace) {
    const uint32_t row = blockIdx.x, output = blockIdx.y * BLAS_THREADS + threadIdx.x;
    float sum = 0;
    if (output >= p.outputs)
        return;
    d_workspace[output] = (uint8_t)row; /* all of it is the library's */
    for (uint64_t k = 0; k < p.columns; k++)
        sum = fmaf(float_of_bf16(d_w[output * (uint64_t)p.columns + k]),
                float_of_bf16(d_x[row * (uint64_t)p.columns + k]), sum);
    float *d_to = d_y + row * (uint64_t)p.ldy + output;
    *d_to = p.add ? *d_to + sum : sum;
}
int blas_multiply(struct blas *b, cudaStream_t s, const struct blas_product *p, const void *d_w,
        const void *d_x, void *d_y, void *d_workspace, struct error *e) {
    const uintptr_t places = (uintptr_t)d_w | (uintptr_t)d_x | (uintptr_t)d_y | p->ldy * sizeof(float);
    if (!p->floats || places % 16 || (uintptr_t)d_workspace % 256)
        return error_set(e, -EIO, "%s was asked for what it cannot do", b->text);
    const cudaError_t r = K_LAUNCH(blas_kernel, dim3(p->rows, (p->outputs + BLAS_THREADS - 1) / BLAS_THREADS),
            BLAS_THREADS, 0, s, *p, (const uint16_t *)d_w, (const uint16_t *)d_x, (float *)d_y,
            (uint8_t *)d_workspace);
    return r == cudaSuccess ? 0 : error_set(e, -EIO, "%s: %s", b->text, cudaGetErrorString(r));
}
