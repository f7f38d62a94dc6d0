/* tails.c - what a smaller KV cache and a smaller recurrent state lose over one long sequence, read in a single pass:
 * the Kullback-Leibler divergence of each position's next-token distribution from the exact one's, its tail, and where
 * in the sequence it lies. A mean over chunks of a text hides both: each chunk begins with an empty state, and a few
 * positions that are far off vanish in the others.
 *
 *   bench-tp-tails MODEL_DIR IDS [TOKENS [THREADS]]      IDS: a file of token ids; TOKENS: of it, all by default
 *
 * Exact is a cache and a state of fp32. A position is lost where KL is more than 1 nat, or where another token is the
 * likeliest although the exact model gives its own at least twice the chance of that one. tests/eval/tail_table.py
 * calls this with models/shardd-tiny; docs/quality.md has the table. */
#include "tests/lib/divergence.h"
#include "tp/worker/offline.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS_MAX CONTEXT_MAX
#define ROWS       512u
#define DEPTHS     5u

static const uint32_t depths[DEPTHS] = {0, 4096, 8192, 16384, CONTEXT_MAX};
static const struct way {
    const char *name;
    enum rank_kv_dtype kv;
    enum k_dtype state;
} ways[] = {{"exact", RANK_KV_F32, K_F32}, {"BF16 cache", RANK_KV_BF16, K_F32},
        {"INT8 cache", RANK_KV_INT8, K_F32}, {"fp16 state", RANK_KV_F32, K_F16},
        {"INT8 cache, fp16 state", RANK_KV_INT8, K_F16}};
#define WAYS (sizeof ways / sizeof *ways)

struct text {
    const char *model_dir;
    uint32_t *ids, n, threads, vocab;
};
struct comparison { /* of the positions of one depth, or of all */
    double *kl;     /* sorted at the end */
    uint32_t n, same, lost;
};

static void die(const char *what, const struct error *e) {
    fprintf(stderr, "%s: %s\n", what, e->text);
    exit(EXIT_FAILURE);
}
static void *room(size_t n, size_t size) {
    void *p = calloc(n, size);
    if (!p)
        die("bench-tp-tails", &(struct error){.text = "no memory"});
    return p;
}

/* Logits of every position, [n][vocab]; the caller frees them. */
static float *logits_of(struct text *t, const struct way *way) {
    const struct rank_options options = {.model_dir = t->model_dir,
            .tp = 1,
            .threads = t->threads,
            .max_model_len = t->n + 1,
            .max_num_seqs = 1,
            .max_num_batched_tokens = ROWS,
            .logits_rows = ROWS,
            .kv_dtype = way->kv,
            .state_dtype = way->state,
            .activations = K_ACTIVATIONS_FLOAT};
    struct offline_sequence s = {
            .prompt = t->ids, .n_prompt = t->n, .stop_id = STEP_NONE, .sampling = offline_greedy()};
    struct step_sample none;
    struct offline *o = NULL;
    struct error e = {0};
    if (offline_create(&options, &o, &e) < 0)
        die(t->model_dir, &e);
    if (offline_rank(o, 0)->budget.max_model_len < t->n)
        die(t->model_dir,
                &(struct error){
                        .text = "its max_position_embeddings, or the memory, is less than the tokens"});
    t->vocab = offline_geometry(o)->vocab_size;
    s.logits = room((size_t)t->n * t->vocab, sizeof *s.logits);
    s.samples = &none;
    if (offline_run(o, &s, 1, &e) < 0)
        die(way->name, &e);
    offline_free(o);
    return s.logits;
}

static void compare(struct comparison *c, const float *p, const float *q, uint32_t vocab) {
    const uint32_t best = logits_likeliest(p, vocab), other = logits_likeliest(q, vocab);
    const double kl = logits_divergence(p, q, vocab);
    c->kl[c->n++] = kl;
    c->same += best == other;
    c->lost += kl > 1 || (best != other && p[best] - p[other] >= log(2));
}
static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void tell(const char *name, const char *depth, struct comparison *c) {
    double sum = 0;
    for (uint32_t i = 0; i < c->n; i++)
        sum += c->kl[i];
    qsort(c->kl, c->n, sizeof *c->kl, by_size);
    printf("| %s | %s | %.1e | %.1e | %.1e | %.1e | %u | %.2f |\n", name, depth, sum / c->n,
            c->kl[c->n - 1 - c->n / 100], c->kl[c->n - 1 - c->n / 1000], c->kl[c->n - 1], c->lost,
            100.0 * c->same / c->n);
    fflush(stdout);
}
static void way_compare(struct text *t, const struct way *way, const float *exact) {
    float *logits = logits_of(t, way);
    struct comparison all = {.kl = room(t->n, sizeof(double))};
    for (uint32_t d = 0; d + 1 < DEPTHS && depths[d] < t->n; d++) {
        const uint32_t end = depths[d + 1] < t->n ? depths[d + 1] : t->n;
        struct comparison c = {.kl = room(end - depths[d], sizeof(double))};
        char depth[32];
        for (uint64_t i = depths[d]; i < end; i++) {
            compare(&c, exact + i * t->vocab, logits + i * t->vocab, t->vocab);
            all.kl[all.n++] = c.kl[c.n - 1];
        }
        all.same += c.same;
        all.lost += c.lost;
        snprintf(depth, sizeof depth, "%u-%u", depths[d], end);
        tell(way->name, depth, &c);
        free(c.kl);
    }
    tell(way->name, "all", &all);
    free(all.kl);
    free(logits);
}
/* How well the exact model itself knows the text, for who asks what the losses are losses of. */
static void tell_exact(const struct text *t, const float *exact) {
    for (uint32_t d = 0; d + 1 < DEPTHS && depths[d] + 1 < t->n; d++) {
        const uint32_t end = depths[d + 1] < t->n - 1 ? depths[d + 1] : t->n - 1;
        double sum = 0;
        for (uint64_t i = depths[d]; i < end; i++)
            sum += logits_log_sum(exact + i * t->vocab, t->vocab) - exact[i * t->vocab + t->ids[i + 1]];
        fprintf(stderr, "exact, %u-%u: %.3f nats a token\n", depths[d], end, sum / (end - depths[d]));
    }
}

static void read_ids(const char *path, uint32_t most, struct text *t) {
    FILE *f = fopen(path, "re");
    if (!f)
        die(path, &(struct error){.text = "cannot be opened"});
    t->ids = room(most, sizeof *t->ids);
    while (t->n < most && fscanf(f, "%u", &t->ids[t->n]) == 1)
        t->n++;
    fclose(f);
    if (t->n < 2)
        die(path, &(struct error){.text = "fewer than 2 token ids"});
}
int main(int argc, char **argv) {
    struct text t = {.model_dir = argc > 1 ? argv[1] : NULL, .threads = 1};
    if (argc < 3 || argc > 5) {
        fprintf(stderr, "usage: bench-tp-tails MODEL_DIR IDS [TOKENS [THREADS]]\n");
        return EXIT_FAILURE;
    }
    const unsigned long asked = argc > 3 ? strtoul(argv[3], NULL, 10) : TOKENS_MAX;
    read_ids(argv[2], asked < TOKENS_MAX ? (uint32_t)asked : TOKENS_MAX, &t);
    if (argc > 4)
        t.threads = (uint32_t)strtoul(argv[4], NULL, 10);
    float *exact = logits_of(&t, &ways[0]);
    tell_exact(&t, exact);
    printf("| kept as | positions | KL | 99 %% | 99.9 %% | largest | lost | same token %% |\n"
           "|---|---|---|---|---|---|---|---|\n");
    for (size_t i = 1; i < WAYS; i++)
        way_compare(&t, &ways[i], exact);
    free(exact);
    free(t.ids);
    return EXIT_SUCCESS;
}
