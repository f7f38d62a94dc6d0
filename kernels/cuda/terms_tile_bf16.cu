/* terms_tile_bf16.cu - tiles of many rows (terms_tile.cuh) of activations rounded to one bf16, of the forms that
 * form_takes_bf16() says. */
#include "kernels/cuda/terms_tile.cuh"

cudaError_t queue_bf16_tiles(cudaStream_t s, const struct terms_product_args *a, uint32_t rows_bound,
        const struct device_size *d) {
    const uint32_t rows = rows_of(a, rows_bound);
    switch (a->w.form) {
    case FORM_INT4:
        return queue_form<FORM_INT4, 1>(s, *a, rows, d);
    case FORM_INT8:
        return queue_form<FORM_INT8, 1>(s, *a, rows, d);
    case FORM_FP8:
        return queue_form<FORM_FP8, 1>(s, *a, rows, d);
    default:
        return queue_form<FORM_BF16, 1>(s, *a, rows, d);
    }
}

cudaError_t bf16_tiles_prepare(uint32_t shared_of_block) {
    cudaError_t (*const all[])(int) = {prepare_form<FORM_INT4, 1>, prepare_form<FORM_INT8, 1>,
            prepare_form<FORM_FP8, 1>, prepare_form<FORM_BF16, 1>};
    cudaError_t r = cudaSuccess;
    for (uint32_t i = 0; i < sizeof all / sizeof *all && r == cudaSuccess; i++)
        r = all[i]((int)shared_of_block);
    return r;
}
