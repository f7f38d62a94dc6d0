/* blas.c - see blas.h. The few types of cuBLASLt are declared here, from its documentation ("Using the cublasLt API"),
 * so that no header of it is needed. Its matrices are column by column: our rows are its columns.
 *
 * A product's plan, with the algorithm that cuBLASLt thinks best, is made when its sizes come first, and kept. */
#include "kernels/cuda/blas.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLANS_MAX 64u /* a model has about 10 sizes at each of a few counts of rows */

#define OP_T       1
#define DESC_TRANS 3 /* CUBLASLT_MATMUL_DESC_TRANSA */
#define PREF_BYTES 1 /* CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES */
#define PREF_ALIGN 5 /* CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES; those of B, C and D follow */
#define ALIGNED    16u

enum type { TYPE_F32 = 0, TYPE_I8 = 3, TYPE_I32 = 10, TYPE_BF16 = 14 }; /* cudaDataType */
enum compute { COMPUTE_F32 = 68, COMPUTE_I32 = 72 };                    /* cublasComputeType_t */
struct found {                                                          /* cublasLtMatmulHeuristicResult_t */
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
struct plan {
    struct blas_product p;
    void *desc, *w, *x, *y; /* y and layouts */
    struct found found;
};
struct blas {
    void *library, *handle;
    struct plan plans[PLANS_MAX];
    uint32_t n_plans, oldest;
    char text[64];

    size_t (*version)(void);
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*desc_create)(void **desc, int compute, int scale_type);
    int (*desc_set)(void *desc, int attribute, const void *value, size_t bytes);
    int (*desc_destroy)(void *desc);
    int (*layout_create)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t ld);
    int (*layout_destroy)(void *layout);
    int (*preference_create)(void **preference);
    int (*preference_set)(void *preference, int attribute, const void *value, size_t bytes);
    int (*preference_destroy)(void *preference);
    int (*find)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference, int asked,
            struct found *found, int *n);
    int (*multiply)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b,
            void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
            const uint64_t *algorithm, void *workspace, size_t bytes, cudaStream_t s);
};

/* --- plans --- */

static void plan_done(const struct blas *b, struct plan *p) {
    void *const layouts[] = {p->w, p->x, p->y};
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (layouts[i])
            b->layout_destroy(layouts[i]);
    if (p->desc)
        b->desc_destroy(p->desc);
    *p = (struct plan){0};
}

static int find(const struct blas *b, struct plan *p, void *preference) {
    const size_t bytes = BLAS_WORKSPACE;
    const uint32_t aligned = ALIGNED;
    int n = 0, r = b->preference_set(preference, PREF_BYTES, &bytes, sizeof bytes);
    for (int i = 0; i < 4 && r == 0; i++)
        r = b->preference_set(preference, PREF_ALIGN + i, &aligned, sizeof aligned);
    if (r == 0)
        r = b->find(b->handle, p->desc, p->w, p->x, p->y, p->y, preference, 1, &p->found, &n);
    return r != 0 ? r : n == 1 ? p->found.state : -1;
}
/* 0, or a status of cuBLASLt's (-1: it has no algorithm); *p is to be done away with in either case. */
static int plan_make(const struct blas *b, const struct blas_product *of, struct plan *p) {
    const int in = of->floats ? TYPE_BF16 : TYPE_I8, out = of->floats ? TYPE_F32 : TYPE_I32,
              compute = of->floats ? COMPUTE_F32 : COMPUTE_I32, transposed = OP_T;
    void *preference = NULL;
    *p = (struct plan){.p = *of};
    int r = b->desc_create(&p->desc, compute, out);
    r = r ? r : b->desc_set(p->desc, DESC_TRANS, &transposed, sizeof transposed);
    r = r ? r : b->layout_create(&p->w, in, of->columns, of->outputs, of->columns);
    r = r ? r : b->layout_create(&p->x, in, of->columns, of->rows, of->columns);
    r = r ? r : b->layout_create(&p->y, out, of->outputs, of->rows, of->ldy);
    r = r ? r : b->preference_create(&preference);
    r = r ? r : find(b, p, preference);
    if (preference)
        b->preference_destroy(preference);
    return r;
}

static bool same(const struct blas_product *a, const struct blas_product *b) {
    return a->outputs == b->outputs && a->columns == b->columns && a->rows == b->rows && a->ldy == b->ldy &&
           a->floats == b->floats && a->add == b->add;
}
/* NULL: there is none, with its status. */
static const struct plan *plan_of(struct blas *b, const struct blas_product *of, int *ret_status) {
    for (uint32_t i = 0; i < b->n_plans; i++)
        if (same(&b->plans[i].p, of))
            return &b->plans[i];
    struct plan made;
    *ret_status = plan_make(b, of, &made);
    if (*ret_status != 0) {
        plan_done(b, &made);
        return NULL;
    }
    struct plan *to = &b->plans[b->n_plans < PLANS_MAX ? b->n_plans++ : b->oldest++ % PLANS_MAX];
    plan_done(b, to);
    *to = made;
    return to;
}

int blas_multiply(struct blas *b, cudaStream_t s, const struct blas_product *p, const void *d_w,
        const void *d_x, void *d_y, void *d_workspace, struct error *e) {
    const float floats[] = {0, 1};
    const int32_t integers[] = {0, 1};
    const void *numbers[] = {p->floats ? (const void *)&floats[0] : &integers[0],
            p->floats ? (const void *)&floats[1] : &integers[1]};
    int status = 0;
    const struct plan *l = plan_of(b, p, &status);
    if (l)
        status = b->multiply(b->handle, l->desc, numbers[1], d_w, l->w, d_x, l->x, numbers[p->add], d_y, l->y,
                d_y, l->y, l->found.algorithm, d_workspace, BLAS_WORKSPACE, s);
    if (status != 0)
        return error_set(e, -EIO, "%s multiplies no %u x %u by %u rows: status %d", b->text, p->outputs,
                p->columns, p->rows, status);
    return 0;
}

/* --- the library --- */

static bool resolve(struct blas *b) {
    const struct {
        void *to;
        const char *name;
    } names[] = {{&b->version, "cublasLtGetVersion"}, {&b->create, "cublasLtCreate"},
            {&b->destroy, "cublasLtDestroy"}, {&b->desc_create, "cublasLtMatmulDescCreate"},
            {&b->desc_set, "cublasLtMatmulDescSetAttribute"}, {&b->desc_destroy, "cublasLtMatmulDescDestroy"},
            {&b->layout_create, "cublasLtMatrixLayoutCreate"},
            {&b->layout_destroy, "cublasLtMatrixLayoutDestroy"},
            {&b->preference_create, "cublasLtMatmulPreferenceCreate"},
            {&b->preference_set, "cublasLtMatmulPreferenceSetAttribute"},
            {&b->preference_destroy, "cublasLtMatmulPreferenceDestroy"},
            {&b->find, "cublasLtMatmulAlgoGetHeuristic"}, {&b->multiply, "cublasLtMatmul"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *f = dlsym(b->library, names[i].name);
        if (!f)
            return false;
        memcpy(names[i].to, &f, sizeof f);
    }
    return true;
}

/* Starts the library on the device, and asks it for a product. */
static int start(struct blas *b, struct error *e) {
    static const struct blas_product any = {
            .outputs = 512, .columns = 1024, .rows = 512, .ldy = 512, .floats = true};
    int status = 0;
    if (!resolve(b))
        return error_set(e, -ENOTSUP, "libcublasLt lacks a function: %s", dlerror());
    const size_t version = b->version();
    snprintf(b->text, sizeof b->text, "cuBLASLt %zu.%zu.%zu", version / 10000, version / 100 % 100,
            version % 100);
    status = b->create(&b->handle);
    if (status != 0 || !plan_of(b, &any, &status))
        return error_set(e, -ENOTSUP, "%s does not start on this device: status %d", b->text, status);
    return 0;
}

int blas_open(struct blas **ret, struct error *e) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    int r = error_set(e, -ENOENT, "no libcublasLt");
    for (size_t i = 0; i < sizeof names / sizeof *names && r < 0; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        struct blas *b = library ? calloc(1, sizeof *b) : NULL;
        if (!b) {
            if (library)
                dlclose(library);
            continue;
        }
        b->library = library;
        r = start(b, e);
        if (r == 0)
            *ret = b;
        else
            blas_close(b);
    }
    return r;
}
struct blas *blas_close(struct blas *b) {
    if (!b)
        return NULL;
    for (uint32_t i = 0; i < b->n_plans; i++)
        plan_done(b, &b->plans[i]);
    if (b->handle)
        b->destroy(b->handle);
    dlclose(b->library);
    free(b);
    return NULL;
}
const char *blas_describe(const struct blas *b) {
    return b->text;
}
