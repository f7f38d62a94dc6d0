/* cases.c - see cases.h. Each operation's three functions stand together, then the table. */
#include "tests/kernels/cases.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EPS   1e-6f
#define THETA 1e4

/* --- seeded values --- */

static uint32_t mix(uint64_t x) {
    x = (x + 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 31)) * 0x94d049bb133111ebull;
    return (uint32_t)(x >> 32);
}
/* in [-scale, scale), a multiple of scale / 128: exact in BF16 when scale is a power of two */
static float value(uint64_t seed, uint64_t i, float scale) {
    return ((float)(mix(seed * 0x100000001ull + i) >> 24) - 128) / 128 * scale;
}
static float *values(uint64_t seed, size_t n, float scale) {
    float *x = malloc(n * sizeof *x + 1);
    for (size_t i = 0; x && i < n; i++)
        x[i] = value(seed, i, scale);
    return x;
}
static uint16_t *narrowed(const float *x, size_t n) { /* BF16 of values that it holds */
    uint16_t *h = malloc(n * sizeof *h + 1);
    for (size_t i = 0; h && i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        h[i] = (uint16_t)(bits >> 16);
    }
    return h;
}

/* --- products: y = W x, W dense in BF16 --- */

static size_t weights_of(const struct case_run *r) {
    return (size_t)r->size.outputs * r->size.columns;
}
static int dense_linear(struct case_run *r, uint32_t n_pieces, struct error *e) {
    const uint32_t rows = r->size.outputs / n_pieces, columns = r->size.columns;
    struct k_matrix_view v[2];
    r->weights = values(3, weights_of(r), 0.25f);
    uint16_t *data = r->weights ? narrowed(r->weights, weights_of(r)) : NULL;
    if (!data)
        return error_set(e, -ENOMEM, "no memory for weights");
    for (uint32_t i = 0; i < n_pieces; i++)
        v[i] = (struct k_matrix_view){.data = data + (size_t)i * rows * columns,
                .row_stride = columns,
                .rows = rows,
                .dtype = K_BF16};
    const struct k_linear_spec spec = {
            .pieces = v, .n_pieces = n_pieces, .columns = columns, .leaves = 8, .name = r->operation->name};
    int rc = k_linear_pack(r->c, &spec, &r->linear, e);
    free(data);
    return rc;
}
static int make_project(struct case_run *r, struct error *e) {
    r->n_in = r->size.columns;
    r->n_out = r->size.outputs;
    return dense_linear(r, 1, e);
}
static void queue_project(struct case_run *r) {
    k_project(r->s, r->b, r->d_in, r->linear, r->out);
}
static double dot(const struct case_run *r, uint32_t output, const double *x) {
    const float *w = r->weights + (size_t)output * r->size.columns;
    double sum = 0;
    for (uint32_t k = 0; k < r->size.columns; k++)
        sum += (double)w[k] * x[k];
    return sum;
}
static void want_project(const struct case_run *r, uint32_t row, double *ret) {
    const uint32_t columns = r->size.columns;
    double *x = malloc(columns * sizeof *x);
    for (uint32_t k = 0; k < columns; k++)
        x[k] = r->in[(size_t)row * columns + k];
    for (uint32_t o = 0; o < r->size.outputs; o++)
        ret[o] = dot(r, o, x);
    free(x);
}
static uint64_t bytes_project(const struct case_run *r) {
    return 2ull * weights_of(r) + 4ull * r->size.rows * (r->n_in + r->n_out);
}

/* --- the same of INT4 in groups of 128 with F32 scales, activations as they are --- */

static uint8_t code_of(const struct quant_matrix *q, uint32_t row, uint32_t column) {
    return mix((uint64_t)row * q->columns + column) & 15;
}
static float scale_of(uint32_t row, uint32_t group) {
    return (float)(1 + mix(row * 7919ull + group) % 255) / 8192;
}
static void read_codes(const struct quant_matrix *q, uint32_t row, uint32_t n_rows, uint32_t column,
        uint32_t n, uint8_t *ret) {
    for (uint32_t i = 0; i < n_rows * n; i++)
        ret[i] = code_of(q, row + i / n, column + i % n);
}
static void read_groups(
        const struct quant_matrix *q, uint32_t row, uint32_t first, uint32_t n, struct quant_group *ret) {
    (void)q;
    for (uint32_t i = 0; i < n; i++)
        ret[i] = (struct quant_group){.scale = scale_of(row, first + i), .zero = 8};
}
static int make_int4(struct case_run *r, struct error *e) {
    const uint32_t columns = r->size.columns;
    r->n_in = columns;
    r->n_out = r->size.outputs;
    r->quant = (struct quant_matrix){.format = QUANT_INT4,
            .scale = QUANT_SCALE_F32,
            .rows = r->size.outputs,
            .columns = columns,
            .group = columns < 128 ? columns : 128,
            .codes = read_codes,
            .groups = read_groups,
            .label = "made up"};
    r->weights = malloc(weights_of(r) * sizeof *r->weights);
    if (!r->weights)
        return error_set(e, -ENOMEM, "no memory for weights");
    for (size_t i = 0; i < weights_of(r); i++) {
        const uint32_t row = (uint32_t)(i / columns), k = (uint32_t)(i % columns);
        r->weights[i] = scale_of(row, k / r->quant.group) * (float)(code_of(&r->quant, row, k) - 8);
    }
    const struct k_matrix_view v = {.quant = &r->quant, .rows = r->size.outputs};
    const struct k_linear_spec spec = {
            .pieces = &v, .n_pieces = 1, .columns = columns, .leaves = 8, .name = r->operation->name};
    return k_linear_pack(r->c, &spec, &r->linear, e);
}
static uint64_t bytes_int4(const struct case_run *r) {
    return weights_of(r) / 2 + weights_of(r) / r->quant.group * 4 +
           4ull * r->size.rows * (r->n_in + r->n_out);
}

/* --- norms, alone and before a product --- */

static void normed(const struct case_run *r, uint32_t row, double *ret) {
    const uint32_t n = r->size.columns;
    const float *x = r->in + (size_t)row * n;
    double square = 0;
    for (uint32_t i = 0; i < n; i++)
        square += (double)x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        ret[i] = x[i] / sqrt(square / n + (double)EPS) * r->norm[i];
}
static int make_final_norm(struct case_run *r, struct error *e) {
    (void)e;
    r->n_in = r->n_out = r->n_norm = r->size.columns;
    return 0;
}
static void queue_final_norm(struct case_run *r) {
    k_final_norm(r->s, r->p, r->b, r->d_in, r->d_norm, EPS, r->out, /* keep= */ true);
}
static uint64_t bytes_final_norm(const struct case_run *r) {
    return 4ull * r->size.rows * 2 * r->size.columns;
}
static int make_norm_project(struct case_run *r, struct error *e) {
    r->n_norm = r->size.columns;
    return make_project(r, e);
}
static void queue_norm_project(struct case_run *r) {
    k_norm_project(r->s, r->b, r->d_in, r->d_norm, EPS, r->linear, r->out);
}
static void want_norm_project(const struct case_run *r, uint32_t row, double *ret) {
    double *x = malloc(r->size.columns * sizeof *x);
    normed(r, row, x);
    for (uint32_t o = 0; o < r->size.outputs; o++)
        ret[o] = dot(r, o, x);
    free(x);
}
static int make_gate_up(struct case_run *r, struct error *e) {
    r->size.outputs += r->size.outputs % 2;
    r->n_norm = r->n_in = r->size.columns;
    r->n_out = r->size.outputs / 2;
    return dense_linear(r, 2, e);
}
static void queue_gate_up(struct case_run *r) {
    k_norm_gate_up(r->s, r->b, r->d_in, r->d_norm, EPS, r->linear, r->out);
}
static void want_gate_up(const struct case_run *r, uint32_t row, double *ret) {
    double *x = malloc(r->size.columns * sizeof *x);
    normed(r, row, x);
    for (uint32_t o = 0; o < r->n_out; o++) {
        const double gate = dot(r, o, x);
        ret[o] = gate / (1 + exp(-gate)) * dot(r, r->n_out + o, x);
    }
    free(x);
}

/* --- embed --- */

static int make_embed(struct case_run *r, struct error *e) {
    r->n_out = r->size.columns;
    r->weights = values(3, weights_of(r), 2);
    uint16_t *half = r->weights ? narrowed(r->weights, weights_of(r)) : NULL,
             *data = k_host_alloc(r->c, weights_of(r) * sizeof *data);
    int rc = half && data ? 0 : error_set(e, -ENOMEM, "no memory for a table");
    if (rc == 0) {
        memcpy(data, half, weights_of(r) * sizeof *data);
        rc = k_table_load(r->c, data, K_BF16, r->size.outputs, r->size.columns, false, &r->table, e);
    }
    if (rc < 0)
        k_host_free(r->c, data);
    free(half);
    return rc;
}
static void queue_embed(struct case_run *r) {
    k_embed(r->s, r->b, r->table, r->out);
}
static void want_embed(const struct case_run *r, uint32_t row, double *ret) {
    for (uint32_t k = 0; k < r->size.columns; k++)
        ret[k] = r->weights[(size_t)r->ids[row] * r->size.columns + k];
}
static uint64_t bytes_embed(const struct case_run *r) {
    return 6ull * r->size.rows * r->size.columns;
}

/* --- attention: one kv head, no rotation, over empty positions before the first row --- */

static int make_attention(struct case_run *r, struct error *e) {
    (void)e;
    r->n_norm = r->size.columns;
    r->n_in = (2 * r->size.outputs + 2) * r->size.columns;
    r->n_out = r->size.outputs * r->size.columns;
    return 0;
}
static void queue_attention(struct case_run *r) {
    const struct k_attention_weights w = {r->d_norm, r->d_norm};
    k_attention_step(r->s, r->p, r->b, 0, 0, &w, r->d_in, r->out);
}
/* Angle 0 for all rows (rope positions are all 0): rotation changes nothing. */
static void head_normed(const struct case_run *r, const float *x, double *ret) {
    const uint32_t d = r->size.columns;
    double square = 0;
    for (uint32_t i = 0; i < d; i++)
        square += (double)x[i] * x[i];
    for (uint32_t i = 0; i < d; i++)
        ret[i] = x[i] / sqrt(square / d + (double)EPS) * r->norm[i];
}
static void want_attention(const struct case_run *r, uint32_t row, double *ret) {
    const uint32_t d = r->size.columns, heads = r->size.outputs;
    double *q = malloc(d * sizeof *q), *k = malloc(d * sizeof *k);
    for (uint32_t h = 0; h < heads; h++) {
        const float *from = r->in + (size_t)row * r->n_in + (size_t)h * 2 * d;
        double *o = ret + (size_t)h * d, sum = r->size.position; /* an empty position: score 0, value 0 */
        memset(o, 0, d * sizeof *o);
        head_normed(r, from, q);
        for (uint32_t t = 0; t <= row; t++) {
            const float *kv = r->in + (size_t)t * r->n_in + (size_t)2 * heads * d;
            double score = 0;
            head_normed(r, kv, k);
            for (uint32_t i = 0; i < d; i++)
                score += q[i] * k[i] / sqrt(d);
            sum += exp(score);
            for (uint32_t i = 0; i < d; i++)
                o[i] += exp(score) * kv[d + i];
        }
        for (uint32_t i = 0; i < d; i++)
            o[i] = o[i] / sum / (1 + exp(-(double)from[d + i]));
    }
    free(q);
    free(k);
}
static uint64_t bytes_attention(const struct case_run *r) {
    return 4ull * r->size.rows * (r->n_in + r->n_out) +
           8ull * r->size.columns * (r->size.position + r->size.rows);
}

/* --- the table --- */

const struct kernel_case kernel_cases[] = {
        {"embed bf16", 0, make_embed, queue_embed, want_embed, bytes_embed, {67, 131, 300, 0},
                {{1, 1024, 4096, 0}, {128, 1024, 4096, 0}}},
        {"final norm", 1e-6, make_final_norm, queue_final_norm, normed, bytes_final_norm, {67, 131, 1, 0},
                {{1, 1024, 1, 0}, {128, 1024, 1, 0}}},
        {"project bf16", 3e-6, make_project, queue_project, want_project, bytes_project, {67, 33, 131, 0},
                {{1, 1024, 8224, 0}, {16, 1024, 8224, 0}, {128, 1024, 8224, 0}}},
        {"project int4 g128", 3e-6, make_int4, queue_project, want_project, bytes_int4, {67, 33, 131, 0},
                {{1, 1024, 8224, 0}, {16, 1024, 8224, 0}, {128, 1024, 8224, 0}}},
        {"norm + project bf16", 1e-5, make_norm_project, queue_norm_project, want_norm_project, bytes_project,
                {67, 33, 131, 0}, {{1, 1024, 5120, 0}, {128, 1024, 5120, 0}}},
        {"norm + gate up bf16", 3e-5, make_gate_up, queue_gate_up, want_gate_up, bytes_project,
                {67, 33, 131, 0}, {{1, 1024, 7168, 0}, {128, 1024, 7168, 0}}},
        {"attention f32", 1e-5, make_attention, queue_attention, want_attention, bytes_attention,
                {67, 40, 7, 600}, {{1, 256, 4, 1000}, {1, 256, 4, 16000}, {128, 256, 4, 1000}}},
};
const uint32_t n_kernel_cases = sizeof kernel_cases / sizeof *kernel_cases;

/* --- runs --- */

static struct k_shape shape_of(const struct case_run *r) {
    const bool attention = r->operation->make == make_attention, embed = r->operation->make == make_embed;
    return (struct k_shape){.tp = 1,
            .hidden_size = r->size.columns,
            .vocab_size = embed ? r->size.outputs : 64,
            .vocab_rows = embed ? r->size.outputs : 64,
            .q_heads = attention ? r->size.outputs : 0,
            .kv_heads = attention ? 1 : 0,
            .head_dim = attention ? r->size.columns : 0,
            .rotary_dim = attention ? r->size.columns / 2 * 2 : 0,
            .n_attention_layers = attention ? 1 : 0,
            .intermediate_size = r->size.outputs,
            .rms_eps = EPS,
            .rope_theta = THETA};
}
static int upload(struct case_run *r, const float *from, size_t n, float **ret, struct error *e) {
    *ret = k_alloc(r->c, n * sizeof *from + 1);
    if (!*ret || !from)
        return error_set(e, -ENOMEM, "no memory for %zu numbers", n);
    k_upload(r->s, *ret, from, n * sizeof *from);
    return k_stream_wait(r->s, 0, e);
}
static int begin(struct case_run *r, uint32_t vocab, struct error *e) {
    const uint32_t pages = (r->size.position + r->size.rows + PAGE_TOKENS - 1) / PAGE_TOKENS;
    const uint32_t rows = r->size.rows;
    uint32_t *rope = calloc(3 * (size_t)rows, sizeof *rope);
    r->ids = malloc(rows * sizeof *r->ids);
    if (!rope || !r->ids) {
        free(rope);
        return error_set(e, -ENOMEM, "no memory for %u rows", rows);
    }
    for (uint32_t i = 0; i < rows; i++)
        r->ids[i] = mix(i) % vocab;
    k_slot_open(r->s, r->p, 1, &(struct k_sampling){.top_p = 1, .repetition_penalty = 1});
    for (uint32_t i = 0, page = 1; i < pages; i++, page++)
        k_slot_grant(r->s, r->p, 1, i, 1, &page);
    r->plan = (struct k_plan){.n_entries = 1, .n_rows = rows};
    r->entry = (struct k_entry){.slot = 1,
            .n_rows = rows,
            .first_pos = r->size.position,
            .id_after = UINT32_MAX,
            .top_logprobs = UINT32_MAX};
    k_batch_bounds(r->b, &(struct k_bounds){rows, 1, r->size.position + rows});
    k_batch_upload(r->s, r->b, &r->plan, &r->entry, r->ids, rows, rope, 3 * rows);
    k_begin_step(r->s, r->p, r->b);
    int rc = k_stream_wait(r->s, 0, e);
    free(rope);
    return rc;
}
static int build(struct case_run *r, struct error *e) {
    int rc = r->operation->make(r, e);
    if (rc < 0)
        return rc;
    const struct k_shape shape = shape_of(r);
    const uint32_t pages = (r->size.position + r->size.rows + PAGE_TOKENS - 1) / PAGE_TOKENS;
    const struct k_pool_options pool = {
            .slots = 1, .pages = pages, .pages_per_slot = pages, .kv_dtype = K_F32};
    rc = k_pool_create(r->c, &shape, &pool, &r->p, e);
    if (rc == 0)
        rc = k_batch_create(r->c, 1, r->size.rows, &r->b, e);
    if (rc < 0)
        return rc;
    r->workspace_bytes = k_workspace_bytes(&shape, r->size.rows, 1);
    r->workspace = k_alloc(r->c, r->workspace_bytes);
    r->in = values(1, (size_t)r->size.rows * r->n_in, 2);
    r->norm = values(2, r->n_norm, 1);
    r->out = k_alloc(r->c, (size_t)r->size.rows * r->n_out * sizeof *r->out);
    if (!r->workspace || !r->out)
        return error_set(e, -ENOMEM, "no memory for %s", r->operation->name);
    rc = upload(r, r->in, (size_t)r->size.rows * r->n_in, &r->d_in, e);
    if (rc == 0)
        rc = upload(r, r->norm, r->n_norm, &r->d_norm, e);
    return rc < 0 ? rc : begin(r, shape.vocab_size, e);
}
int case_open(struct case_run *r, const struct kernel_case *operation, const struct case_size *size,
        struct k_context *c, struct k_stream *s, struct error *e) {
    *r = (struct case_run){.operation = operation, .size = *size, .c = c, .s = s};
    int rc = build(r, e);
    if (rc < 0)
        case_close(r);
    return rc;
}
void case_queue(struct case_run *r) {
    k_stream_set_workspace(r->s, r->workspace, r->workspace_bytes);
    r->operation->queue(r);
}
void case_close(struct case_run *r) {
    void *const device[] = {r->workspace, r->d_in, r->d_norm, r->out};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        k_free(r->c, device[i]);
    k_linear_free(r->linear);
    k_table_free(r->table);
    k_batch_free(r->b);
    k_pool_free(r->p);
    free(r->in), free(r->norm), free(r->weights), free(r->ids);
}
