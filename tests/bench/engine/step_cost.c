/* step_cost.c - what a step costs the engine thread: planning it and handling its completion, in us.
 *
 * The rank is a null rank on a thread of this process; a reader thread takes the tokens of all streams.
 * Printed for several numbers of sequences that decode, without speculation and with it, and with a prefix cache that
 * gives each of them a beginning, takes its end, and always has to give something up for that; as the median and the
 * least of some rounds: the machine may be shared, and the time is wall-clock time of the engine thread. Aim: under 50
 * us at 64 sequences.
 *
 *   bench-engine-step_cost [rounds] */
#include "daemon/engine/engine.h"
#include "proto/step/control.h"
#include "proto/step/null_rank.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define TOKENS     400u
#define PROMPT     16u
#define BEGINNING  512u /* of prompts, where there is a prefix cache */
#define ROUNDS_MAX 101

static _Atomic bool stop;
static struct engine_stream *streams[SEQS_MAX];

struct rank_thread {
    struct null_rank *rank;
    struct step_ring *ring;
};

static void *serve(void *arg) {
    struct rank_thread *t = arg;
    while (!atomic_load(&stop))
        null_rank_serve(t->rank, t->ring, 10000000u, NULL);
    return NULL;
}

/* Reads everything until all have ended; whether all ended as they should. */
static bool read_all(uint32_t n) {
    struct engine_token tokens[STREAM_RING_TOKENS];
    bool good = true;
    for (uint32_t left = n; left > 0;) {
        for (uint32_t i = 0; i < n; i++) {
            enum engine_finish finish = ENGINE_RUNNING;
            if (streams[i] == NULL)
                continue;
            engine_stream_take(streams[i], tokens, STREAM_RING_TOKENS, &finish);
            if (finish != ENGINE_RUNNING) {
                good &= finish == ENGINE_FINISH_LENGTH;
                streams[i] = engine_stream_unref(streams[i]);
                left--;
            }
        }
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    return good;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* us per step of one round; negative = it failed. */
static double round_of(struct engine *g, uint32_t n, uint32_t n_prompt) {
    uint32_t prompt[BEGINNING + PROMPT];
    struct engine_stats before, after;
    for (uint32_t i = 0; i < n_prompt; i++)
        prompt[i] = i;
    engine_stats(g, &before);
    for (uint32_t i = 0; i < n; i++) {
        struct engine_request q = {.prompt_ids = prompt,
                .n_prompt = n_prompt,
                .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = i},
                .max_tokens = TOKENS};
        if (engine_submit(g, &q, &streams[i], NULL) < 0)
            return -1;
    }
    if (!read_all(n))
        return -1;
    do /* the closes of the last ones are a step as well */
        engine_stats(g, &after);
    while (after.slots_free != after.slots_total);
    return (double)(after.step_plan_ns_total - before.step_plan_ns_total) / 1000 /
           (double)(after.steps_total - before.steps_total);
}

static int measure(struct engine *g, uint32_t n, uint32_t n_prompt, int rounds) {
    double us[ROUNDS_MAX];
    struct engine_stats before, after;
    engine_stats(g, &before);
    for (int i = 0; i < rounds; i++) {
        us[i] = round_of(g, n, n_prompt);
        if (us[i] < 0)
            return 1;
    }
    qsort(us, (size_t)rounds, sizeof(us[0]), by_size);
    engine_stats(g, &after);
    printf("%4u sequences: %6.2f us per step (median of %d; least %.2f), %.3f us per sequence; %.2f tokens a step\n",
            n, us[rounds / 2], rounds, us[0], us[rounds / 2] / n,
            (double)(after.generated_tokens_total - before.generated_tokens_total) /
                    (double)(after.steps_total - before.steps_total));
    return 0;
}

struct set_up {
    const char *title;
    uint32_t drafters; /* enum engine_drafts */
    uint32_t id_count; /* few: answers repeat themselves, there is always a copy to propose */
    uint32_t units;    /* for the prefix cache; 0 = there is none */
};

/* One engine with its rank, and all numbers of sequences. */
static int run(const struct set_up *s, int rounds) {
    const uint32_t counts[] = {1, 8, 64, 256, 1024};
    const struct engine_options o = {.max_num_seqs = SEQS_MAX,
            .max_num_batched_tokens = STEP_ROWS_MAX,
            .max_queue = 1024,
            .speculative_tokens = DRAFT_MAX,
            .drafters = s->drafters,
            .prefix_cache = true};
    const struct null_rank_options r = {.tp = 1,
            .slots = SEQS_MAX,
            .pages = 16384,
            .slot_units = s->units,
            .max_model_len = 1024,
            .rows_max = STEP_ROWS_MAX,
            .vocab_size = 248320,
            .id_count = s->id_count,
            .has_mtp = 1,
            .drafts_max = DRAFT_MAX,
            .draft_odds = 70,
            .claimed_ns = 1000000000, /* drafts are worth anything */
            .step_ns = 300000};
    struct rank_thread t;
    struct engine *g;
    struct error e = {0};
    pthread_t thread;
    int fd, failed = 0;
    atomic_store(&stop, false);
    if (engine_create(&o, &g, &e) < 0 || engine_start(g, &e) < 0 || null_rank_create(&r, &t.rank, &e) < 0 ||
            step_ring_create(1, 1, 1, &fd, &e) < 0 || step_ring_attach(fd, 0, &t.ring, &e) < 0 ||
            pthread_create(&thread, NULL, serve, &t) != 0) {
        fprintf(stderr, "cannot start: %s\n", e.text);
        return 1;
    }
    struct control_message m = {
            .kind = CONTROL_CHANNEL, .n_fds = 1, .group_epoch = 1, .coord_epoch = 1, .fds = {fd}};
    if (engine_control(g, &m) < 0 || engine_wait_ready(g, 10000000000u) < 0)
        return 1;
    printf("%s\n", s->title);
    for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]) && !failed; i++)
        failed = measure(g, counts[i], PROMPT + (s->units > 0 ? BEGINNING : 0), rounds);
    engine_free(g);
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    null_rank_free(t.rank);
    step_ring_free(t.ring);
    close(fd);
    return failed;
}

int main(int argc, char **argv) {
    const struct set_up set_ups[] = {
            {"without speculation", 0, 0, 0},
            {"drafts of the model, 70 of 100 right", ENGINE_DRAFTS_OF_MODEL, 0, 0},
            {"copies, one of three ids right", ENGINE_DRAFTS_OF_LOOKUP, 3, 0},
            {"both", ENGINE_DRAFTS_OF_MODEL | ENGINE_DRAFTS_OF_LOOKUP, 3, 0},
            {"a prefix cache", 0, 0, 64},
            {"all of it", ENGINE_DRAFTS_OF_MODEL | ENGINE_DRAFTS_OF_LOOKUP, 3, 64},
    };
    long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 9;
    int failed = 0;
    if (rounds < 1 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "rounds: 1 to %d\n", ROUNDS_MAX);
        return 2;
    }
    for (unsigned i = 0; i < sizeof(set_ups) / sizeof(set_ups[0]) && !failed; i++)
        failed = run(&set_ups[i], (int)rounds);
    return failed;
}
