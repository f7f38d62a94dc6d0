/* cublaslt.h - what NVIDIA's own products take on the same card: the ceiling of kernels/cuda's, for a benchmark alone.
 *
 * libcublasLt is opened at run time and nothing is linked with it: where it is absent, a line says so. The few types
 * are declared here, from cuBLAS' documentation ("Using the cublasLt API"), so that no header of it is needed. Its
 * activations are bf16 or INT8 already, its outputs fp32 or int32; norm, rounding and scales are not in its time. */
#pragma once

#include "tests/bench/cuda/timing.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <string.h>

#define LT_WORKSPACE  (64u << 20)
#define LT_WEIGHTS    (400ull << 20) /* copies of the weights used in turn, at least, so that L2 does not help */
#define LT_OP_T       1
#define LT_DESC_TRANS 3 /* CUBLASLT_MATMUL_DESC_TRANSA */
#define LT_PREF_BYTES 1 /* CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES */

enum lt_type { LT_F32 = 0, LT_I8 = 3, LT_I32 = 10, LT_BF16 = 14 }; /* cudaDataType */
enum lt_compute { LT_COMPUTE_F32 = 68, LT_COMPUTE_I32 = 72 };      /* cublasComputeType_t */
struct lt_found {                                                  /* cublasLtMatmulHeuristicResult_t */
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
struct lt {
    void *library, *handle, *d_workspace;
    int (*create)(void **handle);
    int (*desc_create)(void **desc, int compute, int scale_type);
    int (*desc_set)(void *desc, int attribute, const void *value, size_t bytes);
    int (*desc_destroy)(void *desc);
    int (*layout_create)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t ld);
    int (*layout_destroy)(void *layout);
    int (*preference_create)(void **preference);
    int (*preference_set)(void *preference, int attribute, const void *value, size_t bytes);
    int (*preference_destroy)(void *preference);
    int (*find)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference, int asked,
            struct lt_found *found, int *n);
    int (*multiply)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b,
            void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
            const uint64_t *algorithm, void *workspace, size_t bytes, cudaStream_t s);
};

static inline bool lt_resolve(struct lt *l) {
    const struct {
        void *to;
        const char *name;
    } names[] = {{&l->create, "cublasLtCreate"}, {&l->desc_create, "cublasLtMatmulDescCreate"},
            {&l->desc_set, "cublasLtMatmulDescSetAttribute"}, {&l->desc_destroy, "cublasLtMatmulDescDestroy"},
            {&l->layout_create, "cublasLtMatrixLayoutCreate"},
            {&l->layout_destroy, "cublasLtMatrixLayoutDestroy"},
            {&l->preference_create, "cublasLtMatmulPreferenceCreate"},
            {&l->preference_set, "cublasLtMatmulPreferenceSetAttribute"},
            {&l->preference_destroy, "cublasLtMatmulPreferenceDestroy"},
            {&l->find, "cublasLtMatmulAlgoGetHeuristic"}, {&l->multiply, "cublasLtMatmul"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *f = dlsym(l->library, names[i].name);
        if (!f)
            return false;
        memcpy(names[i].to, &f, sizeof f);
    }
    return true;
}
/* False: it was said why there is none. */
static inline bool lt_open(struct lt *l) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    *l = (struct lt){0};
    for (size_t i = 0; i < sizeof names / sizeof *names && !l->library; i++)
        l->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!l->library || !lt_resolve(l)) {
        const char *why = dlerror();
        printf("no ceiling of cuBLASLt: %s; its folder (of the toolkit, or of the Python package nvidia-cublas) "
               "belongs in LD_LIBRARY_PATH\n",
                why ? why : "no libcublasLt");
        return false;
    }
    if (cudaMalloc(&l->d_workspace, LT_WORKSPACE) != cudaSuccess || l->create(&l->handle) != 0) {
        printf("no ceiling of cuBLASLt: it does not start on this card\n");
        return false;
    }
    return true;
}

/* y[rows][outputs] = x[rows][columns] of the transposed w[outputs][columns], as one of its calls. */
struct lt_product {
    void *desc, *w, *x, *y; /* layouts */
    struct lt_found found;
    bool floats;
};
static inline bool lt_prepare(
        struct lt *l, struct lt_product *p, bool floats, uint32_t outputs, uint32_t columns, uint32_t rows) {
    const int in = floats ? LT_BF16 : LT_I8, out = floats ? LT_F32 : LT_I32, transposed = LT_OP_T;
    const size_t bytes = LT_WORKSPACE;
    void *preference = NULL;
    int n = 0;
    *p = (struct lt_product){.floats = floats};
    const bool well =
            l->desc_create(&p->desc, floats ? LT_COMPUTE_F32 : LT_COMPUTE_I32, out) == 0 &&
            l->desc_set(p->desc, LT_DESC_TRANS, &transposed, sizeof transposed) == 0 &&
            l->layout_create(&p->w, in, columns, outputs, columns) == 0 &&
            l->layout_create(&p->x, in, columns, rows, columns) == 0 &&
            l->layout_create(&p->y, out, outputs, rows, outputs) == 0 &&
            l->preference_create(&preference) == 0 &&
            l->preference_set(preference, LT_PREF_BYTES, &bytes, sizeof bytes) == 0 &&
            l->find(l->handle, p->desc, p->w, p->x, p->y, p->y, preference, 1, &p->found, &n) == 0 && n == 1;
    if (preference)
        l->preference_destroy(preference);
    return well;
}
static inline void lt_done(struct lt *l, struct lt_product *p) {
    void *const layouts[] = {p->w, p->x, p->y};
    for (size_t i = 0; i < 3; i++)
        if (layouts[i])
            l->layout_destroy(layouts[i]);
    if (p->desc)
        l->desc_destroy(p->desc);
}

/* Seconds of one product; 0 = it has none of this shape. d_w: LT_WEIGHTS bytes and one matrix more. */
static inline double lt_seconds(struct lt *l, bool floats, uint32_t outputs, uint32_t columns, uint32_t rows,
        const uint8_t *d_w, const void *d_x, void *d_y) {
    const float one = 1, zero = 0;
    const int32_t one_int = 1, zero_int = 0;
    const void *alpha = floats ? (const void *)&one : &one_int,
               *beta = floats ? (const void *)&zero : &zero_int;
    const size_t bytes = (size_t)outputs * columns * (floats ? 2 : 1);
    const uint32_t copies = (uint32_t)(LT_WEIGHTS / bytes) + 1, calls = 4 * copies;
    double seconds[ROUNDS];
    struct lt_product p;
    bool well = lt_prepare(l, &p, floats, outputs, columns, rows);
    for (int i = -1; i < ROUNDS && well; i++) {
        const uint64_t t = clock_ns();
        for (uint32_t k = 0; k < calls && well; k++)
            well = l->multiply(l->handle, p.desc, alpha, d_w + k % copies * bytes, p.w, d_x, p.x, beta, d_y,
                           p.y, d_y, p.y, p.found.algorithm, l->d_workspace, LT_WORKSPACE, NULL) == 0;
        well = cudaStreamSynchronize(NULL) == cudaSuccess && well;
        if (i >= 0)
            seconds[i] = (double)(clock_ns() - t) * 1e-9 / calls;
    }
    lt_done(l, &p);
    return well ? median(seconds) : 0;
}
