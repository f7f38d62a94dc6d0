/* terms_tile.cu - tiles of many rows (terms_tile.cuh) of activations as three terms, of every form. */
#include "kernels/cuda/terms_tile.cuh"

cudaError_t queue_terms_tiles(cudaStream_t s, const struct terms_product_args *a, uint32_t rows_bound,
        const struct device_size *d) {
    const uint32_t rows = rows_of(a, rows_bound);
    switch (a->w.form) {
    case FORM_INT4:
        return queue_form<FORM_INT4, TERMS>(s, *a, rows, d);
    case FORM_INT8:
        return queue_form<FORM_INT8, TERMS>(s, *a, rows, d);
    case FORM_FP8:
        return queue_form<FORM_FP8, TERMS>(s, *a, rows, d);
    case FORM_BF16:
        return queue_form<FORM_BF16, TERMS>(s, *a, rows, d);
    case FORM_F16:
        return queue_form<FORM_F16, TERMS>(s, *a, rows, d);
    default:
        return queue_form<FORM_F32, TERMS>(s, *a, rows, d);
    }
}

/* A thread counts a leaf's codes in 32 bits; the largest run is F32's. */
bool terms_tiles_can(const struct panel *w) {
    return w->segments != SEGMENTS_ANY &&
           (uint64_t)w->strips * w->runs * (4 * weight<FORM_F32>::BYTES) <= UINT32_MAX;
}

cudaError_t terms_tiles_prepare(uint32_t shared_of_block) {
    cudaError_t (*const all[])(int) = {prepare_form<FORM_INT4, TERMS>, prepare_form<FORM_INT8, TERMS>,
            prepare_form<FORM_FP8, TERMS>, prepare_form<FORM_BF16, TERMS>, prepare_form<FORM_F16, TERMS>,
            prepare_form<FORM_F32, TERMS>};
    cudaError_t r = cudaSuccess;
    for (uint32_t i = 0; i < sizeof all / sizeof *all && r == cudaSuccess; i++)
        r = all[i]((int)shared_of_block);
    return r;
}
