/* forward_buckets.c - the graph of every bucket of rows and contexts gives the bits of the operations queued one by
 * one, and a step takes the smallest bucket that holds it. */
#include "model_test.h"

#include "tp/worker/forward.h"

#ifdef __SANITIZE_ADDRESS__ /* of long contexts, the buckets of the fewest and the most rows: attention takes minutes */
#define LONG_CONTEXTS_OF_ALL 0
#else
#define LONG_CONTEXTS_OF_ALL 1
#endif

enum { ROWS = 37, CONTEXT = 70000, SLOTS = 3, DEEP = 1, SHORT = 2, MASTER = 3 };

struct setup {
    struct rank *r;
    struct forward *eager, *graphs;
};
struct step {
    struct k_plan plan;
    struct k_entry entries[2];
    uint32_t ids[ROWS];
    struct k_bounds bounds; /* what it has */
};
struct outcome {
    float *hidden; /* [ROWS][H] */
    struct k_result results[2];
};

/* A folder with the config.json of a small model that can be as long as the longest bucket needs; dummy weights. */
static void long_model(char *dir) {
    char from[512], to[512], text[8192];
    model_path(from, sizeof(from), "small", "config.json");
    FILE *f = fopen(from, "re");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    text[n] = 0;
    char *at = strstr(text, "\"max_position_embeddings\": 4096");
    assert_non_null(at);
    assert_non_null(mkdtemp(dir));
    snprintf(to, sizeof(to), "%s/config.json", dir);
    f = fopen(to, "we");
    assert_non_null(f);
    at = strstr(at, "4096");
    fprintf(f, "%.*s%d%s", (int)(at - text), text, CONTEXT, at + 4);
    assert_int_equal(fclose(f), 0);
}

static struct setup start(void) {
    struct setup s = {0};
    char dir[] = "/tmp/shardd-buckets-XXXXXX", file[64];
    struct rank_options o = test_options(dir, 1);
    struct error e = {0};
    long_model(dir);
    o.dummy = o.mtp = o.eager = true;
    o.max_num_seqs = SLOTS;
    o.max_num_batched_tokens = ROWS;
    o.max_model_len = CONTEXT;
    must(rank_create(&o, &s.r, &e), &e);
    snprintf(file, sizeof(file), "%s/config.json", dir);
    unlink(file);
    rmdir(dir);
    must(forward_create(s.r, &s.eager, &e), &e);
    s.r->options.eager = false;
    must(forward_create(s.r, &s.graphs, &e), &e);
    return s;
}
static void stop(struct setup *s) {
    forward_free(s->eager);
    forward_free(s->graphs);
    rank_free(s->r);
}

static void open_slots(struct rank *r) {
    static const struct k_sampling greedy = {.top_p = 1, .repetition_penalty = 1};
    for (uint32_t slot = 1; slot <= SLOTS; slot++) {
        k_slot_open(r->stream, r->pool, slot, &greedy);
        k_memory(r->stream, r->pool, &(struct k_memory_op){K_MEM_ZERO_SLOT, slot, 0}, 1);
    }
    uint32_t pages = r->budget.pool.pages_per_slot;
    for (uint32_t i = 0, page = 2; i < pages; i++, page++)
        k_slot_grant(r->stream, r->pool, DEEP, i, 1, &page);
    k_slot_grant(r->stream, r->pool, SHORT, 0, 1, (uint32_t[]){1});
}

/* `rows` rows of which one continues SHORT when there are several; the deepest row is number context - 1. */
static struct step step_of(uint32_t rows, uint32_t context) {
    struct step s = {.plan = {.n_rows = rows}, .bounds = {.rows = rows, .context = context}};
    uint32_t n = rows > 1 ? rows - 1 : 1;
    struct k_entry *k = &s.entries[s.plan.n_entries++];
    *k = (struct k_entry){.slot = DEEP,
            .kind = K_ENTRY_PROMPT,
            .flags = K_ENTRY_SAMPLE,
            .n_rows = n,
            .first_pos = context - n,
            .id_after = UINT32_MAX,
            .rope_at = UINT32_MAX,
            .top_logprobs = 5};
    for (uint32_t i = 0; i < n; i++)
        s.ids[i] = (rows * 31 + context + i * 7) % 500;
    if (rows > 1) {
        s.entries[s.plan.n_entries++] = (struct k_entry){.slot = SHORT,
                .kind = K_ENTRY_CONTINUE,
                .flags = K_ENTRY_SAMPLE,
                .n_rows = 1,
                .row_begin = n,
                .id_after = UINT32_MAX,
                .rope_at = UINT32_MAX,
                .top_logprobs = 5,
                .sample_at = 1};
    }
    s.plan.n_samples = s.bounds.entries = s.plan.n_entries;
    return s;
}

/* From the state of MASTER, so that every run starts alike. */
static struct k_bounds run(struct setup *s, struct forward *f, const struct step *step, struct outcome *ret) {
    struct rank *r = s->r;
    struct error e = {0};
    const struct k_memory_op ops[] = {{K_MEM_COPY_SLOT, MASTER, DEEP}, {K_MEM_COPY_SLOT, MASTER, SHORT}};
    k_memory(r->stream, r->pool, ops, 2);
    struct k_bounds bounds = forward_bound(f, &step->bounds);
    k_batch_upload(
            r->stream, r->batch, &step->plan, step->entries, step->ids, step->entries[0].n_rows, NULL, 0);
    forward_queue(f, 1, NULL);
    k_download(r->stream, ret->hidden, r->hidden,
            (size_t)step->plan.n_rows * r->config.hidden_size * sizeof(float));
    k_download(r->stream, ret->results, r->results, step->plan.n_samples * sizeof(ret->results[0]));
    must(k_stream_wait(r->stream, 0, &e), &e);
    return bounds;
}

static void compare(struct setup *s, uint32_t rows, uint32_t context, const struct k_bounds *expected) {
    size_t n = (size_t)rows * s->r->config.hidden_size;
    struct outcome a = {.hidden = calloc(n, sizeof(float))}, b = {.hidden = calloc(n, sizeof(float))};
    struct step step = step_of(rows, context);
    struct k_bounds exact = run(s, s->eager, &step, &a), bucket = run(s, s->graphs, &step, &b);
    assert_memory_equal(&exact, &step.bounds, sizeof(exact));
    assert_memory_equal(&bucket, expected, sizeof(bucket));
    assert_true(isfinite(a.hidden[0]) && a.hidden[0] != 0);
    assert_memory_equal(a.hidden, b.hidden, n * sizeof(float));
    assert_memory_equal(a.results, b.results, sizeof(a.results));
    free(a.hidden);
    free(b.hidden);
}

static void every_bucket_gives_the_bits_of_eager(void **state) {
    static const uint32_t rows[] = {1, 2, 4, 8, 16, 32, ROWS};
    struct setup s = start();
    uint32_t longest = s.r->budget.pool.pages_per_slot * PAGE_TOKENS;
    const uint32_t contexts[] = {1024, 8192, 65536, longest};
    struct outcome first = {.hidden = calloc((size_t)ROWS * s.r->config.hidden_size, sizeof(float))};
    (void)state;
    assert_true(longest > 65536);
    open_slots(s.r);
    struct step step = step_of(1, 20); /* something to continue from */
    step.entries[0].n_rows = 20;
    step.entries[0].first_pos = 0;
    step.plan.n_rows = step.bounds.rows = 20;
    run(&s, s.eager, &step, &first);
    k_memory(s.r->stream, s.r->pool, &(struct k_memory_op){K_MEM_COPY_SLOT, DEEP, MASTER}, 1);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (size_t k = 0; k < sizeof(contexts) / sizeof(contexts[0]); k++) {
            if (!LONG_CONTEXTS_OF_ALL && k > 1 && rows[i] != 1 && rows[i] != ROWS)
                continue;
            const struct k_bounds b = {rows[i], rows[i] < SLOTS ? rows[i] : SLOTS, contexts[k]};
            uint32_t least = i ? rows[i - 1] + 1 : 1;
            compare(&s, rows[i], k + 1 < sizeof(contexts) / sizeof(contexts[0]) ? contexts[k] : CONTEXT, &b);
            compare(&s, least, (k ? contexts[k - 1] : 100) + 1, &b);
        }
    free(first.hidden);
    stop(&s);
}

/* What a graph was not captured for is a fault and not a read beyond. */
static void a_step_beyond_its_bucket_is_a_fault(void **state) {
    struct setup s = start();
    struct rank *r = s.r;
    struct step step = step_of(5, 30);
    struct error e = {0};
    (void)state;
    open_slots(r);
    step.entries[1].kind = K_ENTRY_PROMPT;
    forward_bound(s.graphs, &(struct k_bounds){4, 2, 30});
    k_batch_bounds(r->batch, NULL); /* so that the upload sees nothing wrong */
    k_batch_upload(r->stream, r->batch, &step.plan, step.entries, step.ids, 4, NULL, 0);
    forward_queue(s.graphs, 2, NULL);
    assert_int_equal(k_stream_wait(r->stream, 0, &e), -EINVAL);
    assert_non_null(strstr(e.text, "2 entries and 5 rows; it was bounded to 3 and 4"));
    stop(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(every_bucket_gives_the_bits_of_eager),
            cmocka_unit_test(a_step_beyond_its_bucket_is_a_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
