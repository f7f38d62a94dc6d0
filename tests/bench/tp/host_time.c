/* host_time.c - what a step costs the thread that queues it: decoding the record, checking it, the plan in the form of
 * the batch, and all calls of the kernels library.
 *
 *   bench-tp-host_time [rows [steps]]            default: 64 sequences that continue, 200 steps
 *
 * The model has 64 layers and is as small as layers can be, so that a step is its calls. On the CPU the operations are
 * deferred: that is all but CUDA's part of it. The same program linked with kernels/cuda, bench-tp-host_time-cuda, has
 * that too, and gives what the device needs for a step of hardly any work: the cost of its nodes. */
#include "base/clock.h"
#include "tp/worker/offline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROWS_MAX     64u
#define RECORD_BYTES (1u << 20)

static const char config[] =
        "{\"architectures\": [\"Qwen3_5ForCausalLM\"], \"model_type\": \"qwen3_5_text\", \"vocab_size\": 1024,\n"
        " \"hidden_size\": 128, \"intermediate_size\": 128, \"num_hidden_layers\": 64, \"num_attention_heads\": 2,\n"
        " \"num_key_value_heads\": 1, \"head_dim\": 64, \"full_attention_interval\": 4, \"hidden_act\": \"silu\",\n"
        " \"attention_bias\": false, \"attn_output_gate\": true, \"rms_norm_eps\": 1e-06,\n"
        " \"max_position_embeddings\": 8192, \"linear_num_key_heads\": 1, \"linear_num_value_heads\": 1,\n"
        " \"linear_key_head_dim\": 64, \"linear_value_head_dim\": 128, \"linear_conv_kernel_dim\": 4,\n"
        " \"tie_word_embeddings\": true, \"mtp_num_hidden_layers\": 0, \"eos_token_id\": 1,\n"
        " \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 10000000,\n"
        "  \"partial_rotary_factor\": 0.25, \"mrope_section\": [4, 2, 2], \"mrope_interleaved\": true}}\n";

static void die(const char *what, const struct error *e) {
    fprintf(stderr, "%s: %s\n", what, e->text);
    exit(EXIT_FAILURE);
}

static struct rank *open_rank(uint32_t rows) {
    char dir[] = "/tmp/shardd-host-XXXXXX", path[64];
    struct error e = {0};
    struct rank *r = NULL;
    if (!mkdtemp(dir))
        die(dir, &(struct error){.text = "no folder"});
    snprintf(path, sizeof(path), "%s/config.json", dir);
    FILE *f = fopen(path, "we");
    if (!f || fwrite(config, 1, sizeof(config) - 1, f) != sizeof(config) - 1 || fclose(f) != 0)
        die(path, &(struct error){.text = "cannot be written"});
    const struct rank_options o = {.model_dir = dir,
            .tp = 1,
            .threads = 1,
            .dummy = true,
            .deferred = true,
            .max_model_len = 4096,
            .max_num_seqs = rows,
            .max_num_batched_tokens = rows};
    int rc = rank_create(&o, &r, &e);
    unlink(path);
    rmdir(dir);
    if (rc < 0)
        die("rank", &e);
    return r;
}

struct run {
    struct step_writer *writer;
    uint64_t *record;
    struct step_exec *exec;
    uint64_t step;
    uint64_t host_ns, device_ns; /* of the step executed last */
};

/* Submits what was written and waits for it. */
static void execute(struct run *r) {
    struct step_answer a;
    int bytes = step_end(r->writer, r->record, RECORD_BYTES);
    const uint64_t begin = clock_ns();
    step_exec_submit(r->exec, r->record, (uint32_t)bytes);
    const uint64_t queued = clock_ns();
    while (step_exec_collect(r->exec, 1000000000u, &a) < 0)
        ;
    r->host_ns = queued - begin;
    r->device_ns = clock_ns() - queued;
    if (bytes < 0 || a.completion.status != STEP_STATUS_OK)
        die("step", &(struct error){.text = "refused"});
}

static void begin(struct run *r, enum step_type type) {
    step_begin(r->writer, type, 1, 1, r->step++);
}

static void start(struct run *r, uint32_t rows) {
    static const uint32_t id = 7;
    begin(r, STEP_TYPE_RESET);
    execute(r);
    for (uint32_t slot = 1; slot <= rows; slot++) {
        struct step_open o = offline_greedy();
        uint32_t pages[4] = {slot * 4 - 3, slot * 4 - 2, slot * 4 - 1, slot * 4};
        begin(r, STEP_TYPE_PLAN);
        o.slot = slot;
        step_add_open(r->writer, &o);
        step_add_entry(r->writer, &(struct step_entry){.slot = slot,
                                          .kind = STEP_ENTRY_PROMPT,
                                          .flags = STEP_ENTRY_SAMPLE,
                                          .n_rows = 1,
                                          .ids_at = step_blob(r->writer, &id, sizeof(id)),
                                          .id_after = STEP_NONE,
                                          .rope_at = STEP_NONE,
                                          .mask_at = STEP_NONE,
                                          .drafts_at = STEP_NONE,
                                          .n_pages = 4,
                                          .pages_at = step_blob(r->writer, pages, sizeof(pages))});
        execute(r);
    }
}

static void decode(struct run *r, uint32_t rows) {
    begin(r, STEP_TYPE_PLAN);
    for (uint32_t slot = 1; slot <= rows; slot++)
        step_add_entry(r->writer, &(struct step_entry){.slot = slot,
                                          .kind = STEP_ENTRY_CONTINUE,
                                          .flags = STEP_ENTRY_SAMPLE,
                                          .n_rows = 1,
                                          .ids_at = STEP_NONE,
                                          .id_after = STEP_NONE,
                                          .rope_at = STEP_NONE,
                                          .mask_at = STEP_NONE,
                                          .drafts_at = STEP_NONE});
    execute(r);
}

static int ascending(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    const uint32_t rows = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : ROWS_MAX;
    const uint32_t steps = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 200;
    struct error e = {0};
    if (rows < 1 || rows > ROWS_MAX || steps < 1 || steps > 200) {
        fprintf(stderr, "rows: 1 to %u, steps: 1 to 200 (the pages of a sequence)\n", ROWS_MAX);
        return EXIT_FAILURE;
    }
    struct rank *rank = open_rank(rows);
    struct run r = {
            .writer = aligned_alloc(64, step_writer_bytes()), .record = aligned_alloc(64, RECORD_BYTES)};
    uint64_t *host = calloc(steps, sizeof(*host)), *device = calloc(steps, sizeof(*device));
    if (!r.writer || !r.record || !host || !device || step_exec_create(rank, &r.exec, &e) < 0)
        die("step_exec", &e);
    printf("%s; graphs %.1f MB\n", k_context_describe(rank->context),
            (double)step_exec_graph_bytes(r.exec) / 1e6);
    start(&r, rows);
    for (uint32_t i = 0; i < steps; i++) {
        decode(&r, rows);
        host[i] = r.host_ns;
        device[i] = r.device_ns;
    }
    qsort(host, steps, sizeof(*host), ascending);
    qsort(device, steps, sizeof(*device), ascending);
    printf("%u rows, %u steps: queued in %.1f us (median; 9 of 10 within %.1f us), then %.1f us until the answer\n",
            rows, steps, (double)host[steps / 2] / 1e3, (double)host[steps * 9 / 10] / 1e3,
            (double)device[steps / 2] / 1e3);
    step_exec_free(r.exec);
    rank_free(rank);
    free(r.writer), free(r.record), free(host), free(device);
    return EXIT_SUCCESS;
}
