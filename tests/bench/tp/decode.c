/* decode.c - speed of the CPU worker on a made-up model of 0.8B: decoding against this machine's read
 * bandwidth, prefill against its fp32 rate.
 *
 *   bench-tp-decode [--dtype bf16|int8|int4] [threads [tokens]]        default: BF16, all cores, 32 tokens
 *
 * The model has the sizes of the published one and seeded weights: BF16, or all large matrices quantised in
 * groups of 128 with BF16 scales. Bytes per token are what a token has to read: every weight once and the
 * recurrent state. Both roofs are measured here, with the same number of threads: reading 1 GiB in huge pages, and
 * fused multiply-adds in registers. The bandwidth of some machines changes from minute to minute, so that it is read
 * before and after each round, a round in which it changed does not count, and the middle one is printed. */
#include "tp/worker/offline.h"

#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define READ_BYTES  (1ull << 30)
#define FMA_ROUNDS  20000000ull
#define PROMPT      128u
#define READ_ROUNDS 8
#define ROUNDS      5
#define TRIES       20   /* rounds at most, with those that do not count */
#define CHANGED     0.08 /* of the bandwidth, within a round */
#define THREADS_MAX 64u

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* --- roofs --- */

struct job {
    pthread_t thread;
    pthread_barrier_t *barrier;
    const uint8_t *data;
    uint64_t bytes;
    uint64_t sum;
    float fma;
    double seconds;
};

__attribute__((target("avx2"))) static uint64_t read_all(const uint8_t *data, uint64_t bytes) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (uint64_t i = 0; i + 128 <= bytes; i += 128) {
        a = _mm256_add_epi64(a, _mm256_load_si256((const __m256i *)(data + i)));
        b = _mm256_add_epi64(b, _mm256_load_si256((const __m256i *)(data + i + 32)));
        c = _mm256_add_epi64(c, _mm256_load_si256((const __m256i *)(data + i + 64)));
        d = _mm256_add_epi64(d, _mm256_load_si256((const __m256i *)(data + i + 96)));
    }
    a = _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d));
    return (uint64_t)_mm256_extract_epi64(a, 0) + (uint64_t)_mm256_extract_epi64(a, 2);
}

static void *read_main(void *argument) {
    struct job *j = argument;
    for (int round = 0; round <= READ_ROUNDS;
            round++) { /* a mean, as that of a run's tokens; the first warms up */
        pthread_barrier_wait(j->barrier);
        double begin = now_s();
        j->sum += read_all(j->data, j->bytes);
        pthread_barrier_wait(j->barrier);
        if (round > 0)
            j->seconds += (now_s() - begin) / READ_ROUNDS;
    }
    return NULL;
}

/* Enough independent chains to hide the latency of one multiply-add. */
#define CHAINS 16
__attribute__((target("avx512f"))) static float fma_512(uint64_t rounds) {
    __m512 x[CHAINS], m = _mm512_set1_ps(0.999f), a = _mm512_set1_ps(0.001f);
    for (int i = 0; i < CHAINS; i++)
        x[i] = _mm512_set1_ps((float)i);
    for (uint64_t r = 0; r < rounds; r++)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            x[i] = _mm512_fmadd_ps(x[i], m, a);
    for (int i = 1; i < CHAINS; i++)
        x[0] = _mm512_add_ps(x[0], x[i]);
    return _mm512_cvtss_f32(x[0]);
}

__attribute__((target("avx2,fma"))) static float fma_256(uint64_t rounds) {
    __m256 x[12], m = _mm256_set1_ps(0.999f), a = _mm256_set1_ps(0.001f);
    for (int i = 0; i < 12; i++)
        x[i] = _mm256_set1_ps((float)i);
    for (uint64_t r = 0; r < rounds; r++)
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            x[i] = _mm256_fmadd_ps(x[i], m, a);
    for (int i = 1; i < 12; i++)
        x[0] = _mm256_add_ps(x[0], x[i]);
    return _mm256_cvtss_f32(x[0]);
}

static void *fma_main(void *argument) {
    struct job *j = argument;
    pthread_barrier_wait(j->barrier);
    double begin = now_s();
    j->fma = __builtin_cpu_supports("avx512f") ? fma_512(FMA_ROUNDS) : fma_256(FMA_ROUNDS);
    pthread_barrier_wait(j->barrier);
    j->seconds = now_s() - begin;
    return NULL;
}

static double run_jobs(
        void *(*main_function)(void *), uint32_t threads, const uint8_t *data, uint64_t bytes) {
    struct job jobs[THREADS_MAX] = {0};
    pthread_barrier_t barrier;
    double worst = 0;
    pthread_barrier_init(&barrier, NULL, threads);
    for (uint32_t i = 0; i < threads; i++) {
        jobs[i].barrier = &barrier;
        jobs[i].bytes = bytes / threads & ~127ull;
        jobs[i].data = data + i * jobs[i].bytes;
        if (pthread_create(&jobs[i].thread, NULL, main_function, &jobs[i]) != 0) {
            fprintf(stderr, "cannot start thread %u\n", i);
            exit(EXIT_FAILURE);
        }
    }
    for (uint32_t i = 0; i < threads; i++) {
        pthread_join(jobs[i].thread, NULL);
        worst = jobs[i].seconds > worst ? jobs[i].seconds : worst;
    }
    pthread_barrier_destroy(&barrier);
    return worst;
}

static double read_bandwidth(uint32_t threads, const uint8_t *data) {
    return (double)READ_BYTES / run_jobs(read_main, threads, data, READ_BYTES);
}

static double fma_rate(uint32_t threads) {
    double flops = (double)FMA_ROUNDS * (__builtin_cpu_supports("avx512f") ? CHAINS * 32.0 : 12 * 16.0);
    return flops * threads / run_jobs(fma_main, threads, NULL, 0);
}

/* --- the model --- */

static const char config[] =
        "{\"architectures\": [\"Qwen3_5ForCausalLM\"], \"model_type\": \"qwen3_5_text\", \"vocab_size\": 248320,\n"
        " \"hidden_size\": 1024, \"intermediate_size\": 3584, \"num_hidden_layers\": 24, \"num_attention_heads\": 8,\n"
        " \"num_key_value_heads\": 2, \"head_dim\": 256, \"full_attention_interval\": 4, \"hidden_act\": \"silu\",\n"
        " \"attention_bias\": false, \"attn_output_gate\": true, \"rms_norm_eps\": 1e-06,\n"
        " \"max_position_embeddings\": 262144, \"linear_num_key_heads\": 16, \"linear_num_value_heads\": 16,\n"
        " \"linear_key_head_dim\": 128, \"linear_value_head_dim\": 128, \"linear_conv_kernel_dim\": 4,\n"
        " \"tie_word_embeddings\": true, \"mtp_num_hidden_layers\": 0, \"eos_token_id\": 248044,\n"
        " \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 10000000,\n"
        "  \"partial_rotary_factor\": 0.25,\n"
        "  \"mrope_section\": [11, 11, 10], \"mrope_interleaved\": true}}\n";

static bool write_config(const char *dir) {
    char path[300];
    snprintf(path, sizeof(path), "%s/config.json", dir);
    FILE *f = fopen(path, "we");
    if (!f)
        return false;
    bool ok = fwrite(config, 1, sizeof(config) - 1, f) == sizeof(config) - 1;
    return fclose(f) == 0 && ok;
}

static void remove_config(const char *dir) {
    char path[300];
    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
}

static uint32_t ids[PROMPT];

static double run_once(struct offline *o, uint32_t prompt, uint32_t tokens, struct step_sample *samples) {
    struct error e = {0};
    struct offline_sequence s = {.prompt = ids,
            .n_prompt = prompt,
            .max_tokens = tokens,
            .stop_id = STEP_NONE,
            .sampling = offline_greedy(),
            .samples = samples};
    double begin = now_s();
    if (offline_run(o, &s, 1, &e) < 0) {
        fprintf(stderr, "%s\n", e.text);
        exit(EXIT_FAILURE);
    }
    return now_s() - begin;
}

struct round {
    double bandwidth, decode, flops, prefill; /* bytes/s, tokens/s, flop/s, tokens/s */
};
static int by_share(const void *a, const void *b) {
    const struct round *x = a, *y = b;
    const double d = x->decode / x->bandwidth - y->decode / y->bandwidth;
    return (d > 0) - (d < 0);
}
static int by_prefill(const void *a, const void *b) {
    const struct round *x = a, *y = b;
    const double d = x->prefill / x->flops - y->prefill / y->flops;
    return (d > 0) - (d < 0);
}

/* Returns false when the bandwidth was another one after the round than before. */
static bool measure_round(
        struct offline *o, uint32_t threads, uint32_t tokens, const uint8_t *block, struct round *ret) {
    struct step_sample *samples = calloc(tokens + 1u, sizeof(samples[0]));
    if (!samples) {
        fprintf(stderr, "out of memory\n");
        exit(EXIT_FAILURE);
    }
    const double before = read_bandwidth(threads, block), one = run_once(o, 1, 1, samples);
    ret->decode = tokens / (run_once(o, 1, 1 + tokens, samples) - one);
    const double after = read_bandwidth(threads, block);
    ret->bandwidth = (before + after) / 2;
    ret->flops = fma_rate(threads);
    ret->prefill = PROMPT / run_once(o, PROMPT, 0, samples);
    free(samples);
    const double change = before > after ? before / after : after / before;
    return change < 1 + CHANGED;
}

/* What the GDN layers read of a sequence for one token: its state, the keys and deltas of half a block, conv rows. */
static uint64_t state_bytes(const struct k_shape *h) {
    const uint64_t state = (uint64_t)h->gdn_v_heads * h->gdn_k_dim * h->gdn_v_dim,
                   block = 8ull * (h->gdn_k_heads * h->gdn_k_dim + h->gdn_v_heads * h->gdn_v_dim),
                   conv = (h->conv_kernel - 1ull) *
                          (2 * h->gdn_k_heads * h->gdn_k_dim + h->gdn_v_heads * h->gdn_v_dim);
    return (state + block + conv) * sizeof(float) * h->n_gdn_layers;
}

/* Multiply-adds of the linears of all layers for one row. */
static uint64_t multiplications(const struct model_config *m) {
    const uint64_t h = m->hidden_size, v = m->gdn_v_heads * m->gdn_v_dim, k = m->gdn_k_heads * m->gdn_k_dim,
                   q = m->q_heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    uint64_t n = 0;
    for (uint32_t i = 0; i < m->n_layers; i++)
        n += 3 * h * m->intermediate_size +
             (m->is_attention[i] ? h * (3 * q + 2 * kv) : h * (2 * k + 3 * v + 2 * m->gdn_v_heads));
    return n;
}

static uint8_t *block_to_read(void) {
    void *block = mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) {
        fprintf(stderr, "out of memory\n");
        exit(EXIT_FAILURE);
    }
    madvise(block, READ_BYTES, MADV_HUGEPAGE); /* as the weights are kept; without, a read is slower */
    memset(block, 1, READ_BYTES);
    return block;
}

static void measure(struct offline *o, const char *dtype, uint32_t threads, uint32_t tokens) {
    struct round rounds[ROUNDS];
    struct step_sample sample[3];
    uint8_t *block = block_to_read();
    struct rank *r = offline_rank(o, 0);
    const uint64_t table = (uint64_t)r->config.vocab_size * r->config.hidden_size * 2;
    /* the dummy embedding counts as packed, but only one row is read */
    const uint64_t weights = r->weights.bytes - table, bytes = weights + state_bytes(&r->shard.shape);
    int n = 0;
    run_once(o, 1, 2, sample);
    for (int try = 0; try < TRIES && n < ROUNDS; try++)
        n += measure_round(o, threads, tokens, block, &rounds[n]) || TRIES - try <= ROUNDS - n;
    qsort(rounds, (size_t)n, sizeof(rounds[0]), by_share);
    const struct round d = rounds[n / 2];
    qsort(rounds, (size_t)n, sizeof(rounds[0]), by_prefill);
    const struct round p = rounds[n / 2];
    const double rate = d.decode * (double)bytes,
                 work = p.prefill * 2 *
                        (double)multiplications(&r->config); /* nothing is sampled: no lm_head */
    printf("decode   %6.2f tok/s  %5.1f GB/s, %3.0f %% of %.1f  B=1 %s, %.1f MB a token (%.1f of weights), %u threads, "
           "%u tokens, middle of %d\n",
            d.decode, rate / 1e9, 100 * rate / d.bandwidth, d.bandwidth / 1e9, dtype, (double)bytes / 1e6,
            (double)weights / 1e6, threads, tokens, n);
    printf("prefill  %6.1f tok/s  %5.1f GFLOP/s, %3.0f %% of %.0f  %u tokens at once, %u threads, middle of %d\n",
            p.prefill, work / 1e9, 100 * work / p.flops, p.flops / 1e9, PROMPT, threads, n);
    munmap(block, READ_BYTES);
}

/* The format of --dtype; false = there is none of that name. */
static bool dtype_named(const char *name, struct quant_matrix *ret, const struct quant_matrix **ret_quant) {
    *ret = (struct quant_matrix){.scale = QUANT_SCALE_BF16, .group = 128, .label = name};
    *ret_quant = strcmp(name, "bf16") == 0 ? NULL : ret;
    ret->format = strcmp(name, "int8") == 0 ? QUANT_INT8 : QUANT_INT4;
    return !*ret_quant || strcmp(name, "int8") == 0 || strcmp(name, "int4") == 0;
}

int main(int argc, char **argv) {
    const char *dtype = "bf16";
    if (argc > 2 && strcmp(argv[1], "--dtype") == 0) {
        dtype = argv[2];
        argc -= 2;
        argv += 2;
    }
    uint32_t threads =
            argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t tokens = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 32;
    char dir[] = "/tmp/shardd-bench-XXXXXX";
    struct error e = {0};
    struct offline *o = NULL;
    struct quant_matrix quant;
    const struct quant_matrix *dummy_quant;
    if (threads == 0 || threads > THREADS_MAX || tokens == 0 || tokens > 4096 ||
            !dtype_named(dtype, &quant, &dummy_quant) || !mkdtemp(dir) || !write_config(dir)) {
        fprintf(stderr, "usage: bench-tp-decode [--dtype bf16|int8|int4] [threads [tokens]]\n");
        return EXIT_FAILURE;
    }
    for (uint32_t i = 0; i < PROMPT; i++)
        ids[i] = 100 + 977 * i;
    struct rank_options options = {.model_dir = dir,
            .tp = 1,
            .threads = threads,
            .dummy = true,
            .dummy_quant = dummy_quant,
            .max_num_seqs = 1,
            .max_num_batched_tokens = PROMPT,
            .max_model_len = 8192};
    double begin = now_s();
    int r = offline_create(&options, &o, &e);
    remove_config(dir);
    if (r < 0) {
        fprintf(stderr, "%s\n", e.text);
        return EXIT_FAILURE;
    }
    printf("%s; made in %.1f s; %s\n", k_context_describe(offline_rank(o, 0)->context), now_s() - begin,
            offline_rank(o, 0)->budget.text);
    measure(o, dtype, threads, tokens);
    offline_free(o);
    return EXIT_SUCCESS;
}
