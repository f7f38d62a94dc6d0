/* engine.h - the engine thread: continuous batching over a group of workers.
 *
 * The engine thread is the only owner of sequences, slots and pages. gRPC workers meet it in two places only:
 * a bounded inbox (submit, cancel, finish) and one bounded ring of tokens per stream. The engine never calls
 * gRPC; it pokes a gRPC worker through a callback, at most once per step and worker, when a ring of that
 * worker went from empty to not empty.
 *
 *   gRPC worker --engine_submit / engine_cancel / engine_finish--> inbox --> engine thread
 *   engine thread --stream ring + poke--> gRPC worker */
#pragma once

#include "base/error.h"
#include "base/histogram.h"
#include "base/limits.h"

#include <float.h>
#include <stdbool.h>
#include <stdint.h>

struct engine;
struct engine_stream; /* reference counted: one held by the engine while it works, one by the caller of submit */

/* What the engine needs of a gRPC worker: called from the engine thread, must not block. */
struct engine_poke {
    void (*fn)(void *user);
    void *user;
};

/* The engine does not own the control socket: the coordinator's main does. It forwards CONTROL_CHANNEL and
 * CONTROL_GROUP_LOST to engine_control(), and sends what the engine hands to this callback (kind, epochs, a,
 * text are filled; no fds): CONTROL_STUCK a = rank (the group must be restarted), CONTROL_FAULT (the
 * coordinator cannot go on with this group: other weights). Called from the engine thread, must not block. fn
 * may be NULL. */
struct control_message;
struct engine_launcher {
    void (*fn)(void *user, const struct control_message *m);
    void *user;
};

enum engine_drafts {
    ENGINE_DRAFTS_OF_MODEL = 1u << 0,  /* the checkpoint's MTP layer, where the workers run it */
    ENGINE_DRAFTS_OF_LOOKUP = 1u << 1, /* copies of what the sequence has read and written before */
};
#define ENGINE_DRAFTERS 3u

/* A drafter from outside, such as a draft model of its own. Called from the engine thread, for one sequence after the
 * other while the workers wait: it must not block. */
struct engine_drafter {
    /* What will come after the n_tokens tokens (prompt and answer) of this sequence: writes up to `most` ids and
     * returns how many. They change no token, whatever they are; ids beyond the vocabulary end them. */
    uint32_t (*propose)(void *user, uint64_t sequence, const uint32_t *tokens, uint32_t n_tokens,
            uint32_t most, uint32_t *ret_ids);
    void (*ended)(void *user, uint64_t sequence); /* the sequence is gone; may be NULL */
    void *user;
};

struct engine_options {
    uint32_t max_num_seqs;           /* clamped to the workers' slots */
    uint32_t max_num_batched_tokens; /* rows of a step */
    uint32_t max_model_len;          /* 0 = what the workers allow */
    uint32_t max_queue;              /* waiting requests; more is -EAGAIN at submit */
    /* Prompt tokens of those that wait; more is -EAGAIN at submit; 0 = no limit. */
    uint32_t max_queue_tokens;
    /* A request that has not begun by then ends with ENGINE_FINISH_QUEUE_TIME; 0 = off. */
    uint32_t max_queue_ms;
    /* CPU: prompt rows of a step are limited so that a step takes about this long; 0 = off */
    uint32_t prefill_target_ms;
    /* Most drafts of a sequence in one step; 0 = no speculation. What the workers do not take (drafts_max of
     * step_geometry) is not asked of them. Who may make them: enum engine_drafts, and `drafter` where it is one. */
    uint32_t speculative_tokens, drafters;
    struct engine_drafter drafter;
    uint32_t step_timeout_ms; /* a rank without progress for this long is reported as stuck; 0 = 30000 */
    /* A stream whose ring stays full this long ends with ENGINE_FINISH_SLOW; 0 = 30000. */
    uint32_t slow_reader_ms;
    bool prefix_cache;               /* as far as the workers have host units for snapshots */
    struct engine_launcher launcher; /* where CONTROL_STUCK and CONTROL_FAULT go */
    /* One line for the log (level: enum log_level of base/log.h), from the engine thread; NULL = nobody
     * listens. */
    void (*log)(void *user, int level, const char *text);
    void *log_user;
};

int engine_create(const struct engine_options *options, struct engine **ret, struct error *e);
int engine_start(struct engine *g, struct error *e); /* starts the thread */
/* A message of the launcher, from any thread: CONTROL_CHANNEL (fds[0] = the step ring's memfd) or
 * CONTROL_GROUP_LOST. The engine dups the fd at once: the caller still closes its own (control_close_fds).
 * Other kinds are -EINVAL. The ring is attached later, by the engine thread; a bad one is reported through
 * the launcher callback. */
int engine_control(struct engine *g, const struct control_message *m);
/* Stops taking requests; running ones go on. */
void engine_drain(struct engine *g);
/* Ends the thread; streams still alive finish with ABORTED (and are poked). Streams may be taken from and
 * unreferenced afterwards, but nothing else may be called with g. NULL ok. */
struct engine *engine_free(struct engine *g);

struct engine_sampling {
    float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    uint32_t top_k;
    uint64_t seed;
};

#define ENGINE_CALLER_BYTES 64u
#define ENGINE_BIAS_BANNED  (-FLT_MAX) /* a bias that takes an id out, as far as there are others */

struct engine_request { /* arrays are copied by submit */
    const uint32_t *prompt_ids;
    uint32_t n_prompt; /* 1 .. max_model_len - 1 */
    struct engine_sampling sampling;
    uint32_t max_tokens, min_tokens; /* max_tokens >= 1 and n_prompt + max_tokens <= max_model_len */
    const uint32_t *bias_ids;
    const float *bias;
    uint32_t n_bias;
    /* Ids that may be sampled, as bits (base/mask.h); NULL = all. n_mask_words: mask_words() of the vocabulary. */
    const uint32_t *mask;
    uint32_t n_mask_words;
    /* Bad words: of each its length, at least 1, and its ids. What has come out never ends in one. n_bad_words: ids and
     * lengths together. */
    const uint32_t *bad_words;
    uint32_t n_bad_words;
    const uint32_t *stop_ids; /* model's own (unless ignore_eos) and the request's, merged by the caller */
    uint32_t n_stop_ids;
    bool logprobs;
    uint32_t top_logprobs;
    /* The prompt's own: before the first token comes, for each of its tokens but the first, an engine_token that is one
     * of the prompt. The whole prompt is then computed, whatever the prefix cache has of it. */
    bool prompt_logprobs;
    uint32_t prompt_top_logprobs;
    int32_t priority;
    /* Only requests of the same salt share a prefix; up to CACHE_SALT_BYTES_MAX bytes. */
    const void *cache_salt;
    uint32_t n_cache_salt;
    /* Hints where others may go on from: tokens of the prompt that many share (a system message and tools), and up to
     * the end of its last message; 0 = not known. */
    uint32_t shared_end, turn_end;
    uint32_t message_ends[MESSAGE_ENDS_MAX], n_message_ends; /* rows after others, too, ascending */
    uint64_t deadline_ns;                                    /* CLOCK_MONOTONIC; 0 = none */
    uint32_t queue_ms; /* as max_queue_ms, of this request; the shorter one counts; 0 = none */
    char request_id[REQUEST_ID_BYTES_MAX + 1]; /* "" = none */
    char caller[ENGINE_CALLER_BYTES];          /* whose id it is: others may use the same one */
    /* Another answer of the request that this stream is the first of (it may have ended), NULL = none. It may have the
     * same id, has no limit of its time in the queue but the first one's, and where there is a prefix cache a longer
     * prompt waits until the first one has spoken, so that it comes from there. It is in the queue with its first one,
     * which has asked for room for n_answers. */
    struct engine_stream *lead;
    uint32_t n_answers; /* with lead NULL; 0 = 1 */
    struct engine_poke poke;
    void *user; /* for the caller: engine_stream_user() */
};

enum engine_finish {
    ENGINE_RUNNING = 0,
    ENGINE_FINISH_STOP_ID, /* the last token is the stop id */
    ENGINE_FINISH_LENGTH,
    ENGINE_FINISH_REQUESTED, /* engine_finish(): stop string */
    ENGINE_FINISH_CANCELLED, /* engine_cancel() */
    ENGINE_FINISH_ABORTED,   /* shutdown */
    ENGINE_FINISH_DEADLINE,
    ENGINE_FINISH_FAULT, /* the group died while it computed this request alone, the group that came back cannot serve
                          * it, or its logits are no numbers; text in engine_stream_error() */
    ENGINE_FINISH_NO_TOKEN, /* min_tokens and the stop ids, masks and bad words leave no id that could be sampled */
    ENGINE_FINISH_SLOW,       /* the reader left its ring full for too long */
    ENGINE_FINISH_QUEUE_TIME, /* it had no step within max_queue_ms or queue_ms */
    ENGINE_FINISHES,          /* how many there are */
};

struct engine_token {
    uint32_t id;
    bool of_prompt; /* prompt_logprobs: the id that the prompt has there */
    float logprob;
    uint32_t n_top;
    uint32_t top_ids[TOP_LOGPROBS_MAX];
    float top_logprobs[TOP_LOGPROBS_MAX];
};

/* 0; -EAGAIN: queue full or still loading (retryable); -ESHUTDOWN: draining; -EEXIST: the caller's request_id is
 * running;
 * -E2BIG: does not fit the model or the pools; -EINVAL. The sentence is fit for a client. */
int engine_submit(
        struct engine *g, const struct engine_request *request, struct engine_stream **ret, struct error *e);
/* After -EAGAIN of engine_submit(): ms until there may be room, by how fast the queue moved lately. Any thread. */
uint32_t engine_retry_ms(struct engine *g, uint32_t n_prompt);
/* The client went away or its deadline passed: leaves the next plan, frees all when the steps in flight
 * retire. */
void engine_cancel(struct engine *g, struct engine_stream *s);
/* The gRPC worker found a stop string after n_tokens tokens: the rest is not wanted. */
void engine_finish(struct engine *g, struct engine_stream *s, uint32_t n_tokens);
/* Cancels the caller's request of this id, all its answers, with ENGINE_FINISH_ABORTED; returns whether it was found.
 * Any thread. */
bool engine_abort(struct engine *g, const char *caller, const char *request_id);
uint32_t engine_abort_all(struct engine *g);

/* gRPC worker side of the ring: takes up to max tokens. Returns the count; *ret_finish is set (not RUNNING)
 * once the stream has ended and every token was taken. A poke comes when the ring was empty and is not any
 * more, and at the end: after a poke take until the count is below max, or a token may wait with nobody told. */
uint32_t engine_stream_take(
        struct engine_stream *s, struct engine_token *tokens, uint32_t max, enum engine_finish *ret_finish);
void *engine_stream_user(const struct engine_stream *s);
const char *engine_stream_error(const struct engine_stream *s); /* after ENGINE_FINISH_FAULT */
struct engine_timing {
    uint64_t received_ns, first_step_ns, first_token_ns; /* CLOCK_MONOTONIC; 0 = not yet */
};
void engine_stream_timing(const struct engine_stream *s, struct engine_timing *ret);
uint32_t engine_stream_cached_tokens(const struct engine_stream *s); /* of the prompt, not computed again */
struct engine_stream *engine_stream_unref(struct engine_stream *s);  /* caller's reference; NULL ok */
/* A snapshot for GetServerInfo and /metrics; any thread. */
struct engine_stats {
    const char *state; /* "loading" "serving" "recovering" "draining" "failed" (other weights came back) */
    uint32_t tp, max_num_seqs, max_num_batched_tokens, max_model_len, max_queue, vocab_size;
    uint32_t pages_total, pages_free, running, waiting;
    uint32_t pages_cached;             /* of pages_free: kept by the prefix cache until somebody needs them */
    uint32_t snapshots, snapshots_max; /* of the prefix cache */
    uint32_t host_pages, host_pages_max; /* that it keeps in the workers' host memory */
    uint32_t suspects; /* were being computed at a group's death and have not run alone since */
    uint32_t slots_total, slots_free; /* of the workers; a slot is free once its CLOSE was completed */
    uint64_t requests_total, prompt_tokens_total, steps_total, preemptions_total;
    uint64_t generated_tokens_total; /* also those that nobody saw: behind a stop string */
    uint64_t prefix_hits_total;
    uint64_t cached_tokens_total; /* of prompt_tokens_total: came from the prefix cache */
    uint64_t snapshots_total, snapshot_evictions_total;
    uint64_t host_pages_out_total, host_pages_in_total; /* moved there, and back */
    uint32_t disk_pages, disk_states;                   /* that the workers' stores have */
    uint64_t disk_hits_total;                           /* states that were read for a request */
    uint64_t disk_reads_total, disk_writes_total, disk_failures_total; /* of pages and states */
    uint64_t replays_total, dropped_records_total, step_errors_total;
    uint64_t queue_tokens;                    /* prompt tokens of requests that have had no step yet */
    uint64_t prompt_rows_total;               /* prompt tokens computed; again when a sequence is replayed */
    uint64_t finished_total[ENGINE_FINISHES]; /* requests by how they ended */
    uint64_t step_plan_ns_total; /* time of the engine thread per step, planning and completion handling */
    uint64_t group_epoch, coord_epoch, weight_fingerprint, weight_bytes;
    uint32_t drafts_max;         /* of a sequence in a step that the workers take */
    uint64_t draft_rounds_total; /* of one sequence each, with drafts */
    struct engine_drafter_stats {
        const char *name;
        uint32_t most; /* drafts in a round; 0 = it is not there */
        bool silent;   /* there, but it was not worth its time for a while */
        uint64_t proposed[DRAFT_MAX], accepted[DRAFT_MAX]; /* by position */
    } drafters[ENGINE_DRAFTERS];
    bool model_has_mtp; /* the checkpoint has an MTP layer, whether the workers run it or not */
    char devices[RANKS_MAX][96];
};
void engine_stats(struct engine *g, struct engine_stats *ret);
/* Distributions since the start. Times and token counts of whole requests are of those that came to their end (a stop
 * or a length); the others count as what they ended by in finished_total. */
enum engine_histogram {
    ENGINE_FIRST_TOKEN_NS, /* received -> first token */
    ENGINE_INTER_TOKEN_NS, /* between tokens of one sequence; of several that came in one step, 0 after the first */
    ENGINE_QUEUE_NS,       /* received -> first step, once a request */
    ENGINE_PROMPT_NS, /* first step -> first token */
    ENGINE_ANSWER_NS, /* first token -> last token */
    ENGINE_TOTAL_NS,  /* received -> finished */
    ENGINE_PROMPT_TOKENS,
    ENGINE_ANSWER_TOKENS,
    ENGINE_MAX_TOKENS, /* as asked for */
    ENGINE_STEP_ROWS,  /* rows of a step, prompts and answers together */
    ENGINE_HISTOGRAMS,
};
/* Lives as long as g; any thread may histogram_read() it. */
const struct histogram *engine_histogram(const struct engine *g, enum engine_histogram which);
/* Blocks until the workers have answered the first RESET or timeout. */
int engine_wait_ready(struct engine *g, uint64_t timeout_ns);
