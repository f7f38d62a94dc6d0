/* state.h - the engine's data: what the files of daemon/engine share. Nobody outside includes it.
 *
 * Owned by the engine thread alone, without locks: everything in struct engine below "engine thread", every
 * struct sequence, slots, pages, flights. Other threads reach the engine through the inbox, the registry, the
 * control queue and the stats, each with its own rule, written beside it.
 *
 * Calls go down and results come up; an arrow is "may include" (tests/house_rules.py holds every file to it):
 *
 *     engine (the loop, the way in) --> recovery, scheduler --> flight --> sequence --> registry --> inbox, wake
 *     flight, scheduler, recovery --> draft --> speculation --> lookup, round_cost
 *     sequence, flight, recovery, scheduler --> reuse (what a sequence takes from the prefix cache and leaves there)
 *     reuse, flight, recovery, scheduler, engine --> disk (what is kept over a restart)
 *     all of them --> poke, queue, report, timing, wake; heap, stream, prefix --> pools; state
 *
 *   STATE_LOADING --RESET answered--> STATE_SERVING --group lost--> STATE_RECOVERING --RESET answered-->
 *   STATE_SERVING; from LOADING and RECOVERING --other weights--> STATE_FAILED, which stays
 *
 *   SEQUENCE_NEW --taken from the inbox--> WAITING --admitted--> RUNNING --pages ran out--> PREEMPTING
 *   RUNNING, PREEMPTING --steps retired, or the group was lost--> WAITING
 *   any of them --told how it ended--> ENDING --no step names it any more--> gone
 *
 * WAITING is in the heap by priority and arrival; RUNNING and PREEMPTING have a slot. One that comes back is
 * replayed: its tokens are all on the host, so it runs as PROMPT rows. One whose reader does not read gives its slot
 * to those that wait (PREEMPTING too). */
#pragma once

#include "daemon/engine/engine.h"
#include "daemon/engine/heap.h"
#include "daemon/engine/pools.h"
#include "daemon/engine/prefix.h"
#include "daemon/engine/speculation.h"
#include "daemon/engine/stream.h"
#include "proto/step/control.h"
#include "proto/step/ring.h"

#include <pthread.h>
#include <stdatomic.h>

#define FLIGHTS_MAX        4u /* records in flight: two plans (overlap), a ping, one to spare */
#define PLANS_IN_FLIGHT    2u
#define STREAM_RESERVE     1u /* ring places that only the replay of a suspect may use */
#define CONTROLS_MAX       16u
#define POKES_MAX          64u
#define MARKS_MAX          3u
#define DISK_SAVED_AT_ONCE 8u /* pages: a few, since each is a copy in a step */
#define DISK_PAUSE_NS      60000000000ull
#define REGISTRY_BUCKETS   32768u

_Static_assert(STREAM_RING_TOKENS > PLANS_IN_FLIGHT * (1 + DRAFT_MAX) + STREAM_RESERVE,
        "a stream can have two steps in flight, all of whose drafts are accepted");

enum sequence_state {
    SEQUENCE_NEW,
    SEQUENCE_WAITING,
    SEQUENCE_RUNNING,
    SEQUENCE_PREEMPTING,
    SEQUENCE_ENDING
};

struct sequence {
    struct engine_stream *stream;
    uint64_t number, arrival;          /* of this engine; for logs and order */
    uint64_t deadline_ns, start_by_ns; /* 0 = none; start_by_ns also once it has begun */
    uint64_t due_ns;                   /* the earlier one of them: the order of the heap of deadlines */
    bool queued;                       /* counts in queue.tokens */
    int32_t priority;
    struct engine_sampling sampling;
    uint32_t n_prompt, n_tokens; /* n_tokens: prompt and generated, known on the host */
    uint32_t max_tokens, min_tokens;
    uint32_t n_bias, n_stop_ids, top_logprobs;
    bool logprobs;
    uint32_t *tokens, *bias_ids, *stop_ids; /* in the same block of memory; tokens: [n_prompt + max_tokens] */
    float *bias;
    uint32_t *mask, *bad_words; /* of engine_request, in the same block; NULL = all ids, n_bad_words words */
    uint32_t n_bad_words;
    bool scores;        /* prompt_logprobs */
    uint32_t score_top; /* prompt_top_logprobs */
    /* Rows whose scores were handed out, and that are in steps in flight: row i scores the prompt's id i + 1. */
    uint32_t scored, scoring;
    uint32_t *salt;                /* [PAGE_TOKENS] in the same block; NULL = none */
    uint32_t shared_end, turn_end; /* of engine_request */
    uint32_t message_ends[MESSAGE_ENDS_MAX], n_message_ends;
    uint32_t waiting_at, deadline_at; /* places in the heaps; HEAP_NONE = not in it */
    enum sequence_state state;        /* changed by sequence_enter() only */
    uint32_t slot;                    /* 0 = none; not 0 = in g->running */
    bool opened;                      /* OPEN was sent */
    bool answered;                    /* ended by a stop id or its length: its answer is whole */
    bool blamed;        /* a rank was computing its rows when the group died; during recovery_lost() only */
    bool suspect;       /* was blamed, and has not been seen to live alone since */
    bool killed_alone;  /* while it was the quarantine, by a signal that may have come from anywhere */
    uint32_t deaths;    /* at which it was blamed */
    uint32_t trial_end; /* samples after which the quarantine is over */
    uint32_t in_flight; /* steps that name it */
    /* Rows in committed steps, counted from position 0, and tokens sampled in them (the next sample_index). While a
     * step with drafts is in flight both count as if all of them were accepted; its completion puts them right. */
    uint32_t planned, samples;
    uint32_t prefill_end; /* rows below it come from the host */
    uint32_t drafts_left; /* by its last planned step in the slot */
    struct lookup lookup;
    struct drafting drafting;
    uint32_t computed_before; /* rows below it are a replay */
    bool counted;             /* in prompt_tokens_total */
    uint64_t stalled_since_ns;
    struct prefix_hit found; /* in the prefix cache when this many changes had been made there */
    uint64_t found_changes;
    /* The prefix cache (reuse.h); while it has a slot. */
    struct prefix_path path;
    uint32_t restore;                   /* the snapshot that its OPEN is followed by; PREFIX_NONE */
    uint32_t kept_at;                   /* rows of the last snapshot that it took or came from */
    uint32_t n_marks, marks[MARKS_MAX]; /* rows after which one is wanted, ascending */
    uint64_t last_token_ns;             /* when its last token came */
    uint32_t unseen;                    /* tokens that were generated after the stop string */
    struct engine_stream *lead;         /* the first answer of its request, or NULL; a reference */
    bool held;                          /* waits until its lead has read the prompt, behind all others */
    bool set_back; /* gave its slot up because its reader stalled: waits for it, behind all others */
};

/* Whether every token that was planned is on the host. */
static inline bool sequence_known(const struct sequence *s) {
    return s->samples == s->n_tokens - s->n_prompt;
}

_Static_assert(DRAFTERS == ENGINE_DRAFTERS, "each has its counters");

struct flight_entry {
    struct sequence *sequence;
    uint32_t slot, top_logprobs;
    uint32_t score_first, n_scores; /* rows of the prompt */
    uint32_t n_drafts;              /* rows beside the first of a CONTINUE */
    enum drafter drafter;
    bool sample;
};
struct flight { /* one record that not every rank has answered yet */
    uint64_t step;
    enum step_type type;
    uint32_t n_entries, n_outcomes, n_rows, n_prompt_rows, n_closes;
    uint32_t draft_depth; /* the most drafts that it leaves in a slot */
    bool waited;          /* it was planned when every token of the step before was known */
    struct flight_entry entries[SEQS_MAX];
    uint32_t closes[SEQS_MAX];
};

struct disk_key {
    uint64_t words[2];
};
struct disk_place {
    struct disk_key key, base; /* as in struct step_record */
    uint32_t length;
    uint32_t next;           /* in its bucket */
    uint32_t older, younger; /* by last use; the empty ones are the oldest */
    uint32_t n_busy;         /* copies on their way, and who is going to read it */
    bool used;
};
struct disk { /* disk.h; the prefix cache's third tier */
    bool on;
    struct disk_places {
        struct disk_place *all; /* [n] */
        uint32_t *buckets;      /* [mask + 1] */
        uint32_t n, mask, n_used, oldest, youngest;
    } places[STEP_STORED_KINDS];
    uint32_t learn_left; /* records of INDEX to come */
    uint64_t n_sent, n_done;
    struct disk_copy { /* those between, in the order of the plans */
        bool reads;
        uint32_t what, place;
        uint32_t node; /* of a page; of a state that is written, the snapshot */
    } copies[STEP_STORE_MAX];
    uint32_t n_planned;    /* copies in the plan that is being made */
    uint64_t looked_for;   /* the sequence that was last */
    uint64_t off_until_ns; /* nothing is written: the last time it failed */
    uint32_t cursor;       /* the snapshot that is looked at next */
    uint32_t n_missed;     /* so many after another were not to be written, when so many had been taken: */
    uint64_t numbers;
    struct disk_load {
        bool active, failed, state_asked;
        bool stuck;                    /* no unit was to be had, and nothing comes */
        uint64_t stuck_step, began_ns; /* since which step */
        uint64_t sequence;             /* for which */
        uint32_t *ids;                 /* [max_model_len] */
        struct disk_key *keys;
        uint32_t *nodes, n_nodes; /* the root, full pages, the tail: those that are there or coming */
        uint32_t state, length, n_pages, n_pending;
        uint32_t unit; /* of the state; PREFIX_NONE */
    } load;
    struct disk_save {
        bool active;
        uint32_t snapshot, length, n_pages;
        uint64_t number;
        struct disk_key *keys;
        uint32_t *nodes, n_nodes, at; /* full pages and the tail; those before `at` are done */
        uint32_t n_out;               /* from there: being copied to units, with `step` */
        bool out[DISK_SAVED_AT_ONCE];
        uint64_t step;
    } save;
};

enum engine_state { STATE_LOADING, STATE_SERVING, STATE_RECOVERING, STATE_FAILED };

struct rank_watch {
    uint64_t changes, since_ns;
};

struct engine {
    struct engine_options o; /* filled in */
    pthread_t thread;
    bool started;
    _Atomic bool stop;

    _Atomic(struct engine_stream *) inbox; /* newest first; pushed by any thread */

    pthread_mutex_t wake_lock; /* protects `ring` against a kick while it is replaced, and wake_pending */
    pthread_cond_t wake_cond;  /* used while there is no ring */
    bool wake_pending;

    pthread_mutex_t control_lock;
    struct control_message controls[CONTROLS_MAX]; /* fds are ours */
    uint32_t n_controls;

    pthread_mutex_t registry_lock;  /* protects the next seven and links in streams */
    struct engine_stream **buckets; /* [REGISTRY_BUCKETS] by request id */
    struct engine_stream *streams;  /* all that have not ended */
    uint32_t n_live;
    uint64_t n_submitted;
    bool draining;
    enum engine_state public_state;
    struct limits {
        uint32_t max_model_len, vocab_size, pages, pages_per_slot, has_mtp, drafts_max;
    } limits;

    struct queue {
        _Atomic uint64_t tokens; /* prompt tokens of sequences that are `queued` */
        _Atomic uint64_t gap_ns,
                gap_tokens;    /* averages of those that left it: time between two, tokens of one */
        uint64_t last_left_ns; /* engine thread */
    } queue;

    pthread_mutex_t stats_lock;
    pthread_cond_t ready_cond;
    struct engine_stats stats; /* what engine_stats() copies */
    bool ready;                /* the first RESET was answered */

    /* --- engine thread --- */
    enum engine_state state; /* changed by engine_enter() only */
    struct step_ring *ring;  /* written under wake_lock */
    uint32_t n_ranks;
    uint64_t step_next;
    struct step_writer *writer;
    struct flight flights[FLIGHTS_MAX];
    uint32_t flight_first, n_flights, n_plans;
    struct rank_watch watch[RANKS_MAX];
    uint64_t watched_ns; /* when the ranks were last looked at */
    uint64_t last_record_ns;
    struct pools pools;
    struct prefix prefix; /* n_units 0: off, or the workers have no host units */
    uint32_t n_copies;    /* pages that the plan being made moves between device and host */
    struct disk disk;
    struct step_geometry geometry; /* the least of all ranks; fingerprint 0 until the first RESET */
    bool geometry_known;
    struct heap waiting, deadlines;
    struct sequence *running[SEQS_MAX]; /* in serving order */
    uint32_t n_running;
    uint32_t rotor;                          /* where decode rows start when not all fit */
    bool short_of_masks;                     /* the last plan had no more for somebody */
    uint32_t mask[TOKENIZER_VOCAB_MAX / 32]; /* masks_write()'s own */
    uint32_t n_suspects;
    struct sequence *quarantine; /* the suspect that runs alone */
    uint32_t prefill_rows;       /* limit of prompt rows a step */
    uint32_t n_stalled;          /* sequences held back by a full ring in the last plan */
    uint32_t n_set_back, n_held;
    bool look_at_held; /* a first token has come, or a sequence is gone: a lead may be among them */
    struct engine_poke pokes[POKES_MAX];
    uint32_t n_pokes;
    uint64_t evictions_before; /* of the prefix caches of groups that are gone */
    struct speculation speculation;
    struct draft_stream draft_streams[SEQS_MAX]; /* draft_round()'s own */
    bool drafter_silent[DRAFTERS];
    uint32_t tokens_to_read; /* by lookup indexes that are behind, until the next plan */
    uint64_t retired_ns;     /* when the last plan did */
    uint32_t retired_depth;  /* the draft_depth of that plan */
    struct engine_stats now; /* counters, copied to stats */
    uint64_t turn_ns;        /* when this turn of the loop began */
    struct histogram histograms[ENGINE_HISTOGRAMS]; /* read by any thread */
    bool work_done;                                 /* this turn handled a completion or made a plan */
};

/* The two state machines of the drawing above: a transition that is not in it is a mistake of ours. */
void engine_enter(struct engine *g, enum engine_state to);
const char *engine_state_name(enum engine_state state);
void sequence_enter(struct sequence *s, enum sequence_state to);
