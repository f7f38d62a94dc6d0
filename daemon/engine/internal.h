/* internal.h - what the files of daemon/engine share. Nobody outside includes it.
 *
 * Owned by the engine thread alone, without locks: everything in struct engine below "engine thread", every
 * struct sequence, slots, pages, flights. Other threads reach the engine through the inbox, the registry, the
 * control queue and the stats, each with its own rule, written beside it.
 *
 * Life of a sequence: submit -> inbox -> waiting (heap by priority and arrival) -> running (has a slot) ->
 * gone. A running one may go back to waiting: preempted when pages run out, or because the rank group was
 * lost. It then is replayed: its tokens are all on the host, so it comes back as PROMPT rows. */
#pragma once

#include "daemon/engine/engine.h"
#include "proto/step/control.h"
#include "proto/step/ring.h"

#include <pthread.h>
#include <stdatomic.h>

#define FLIGHTS_MAX        4u /* records in flight: two plans (overlap), a ping, one to spare */
#define PLANS_IN_FLIGHT    2u
#define STREAM_RESERVE     1u /* ring places that only the replay of a suspect may use */
#define CONTROLS_MAX       16u
#define POKES_MAX          64u
#define REGISTRY_BUCKETS   32768u
#define RESET_PATIENCE     4u
#define PING_NS            1000000000ull
#define STALL_POLL_NS      5000000ull /* a reader that catches up does not tell: looked at this often */
#define PREFILL_ROWS_FIRST 64u        /* until a step has been measured */
#define PREFILL_ROWS_MIN   16u

_Static_assert((STREAM_RING_TOKENS & (STREAM_RING_TOKENS - 1)) == 0, "a ring index is a mask away");
_Static_assert(
        STREAM_RING_TOKENS > PLANS_IN_FLIGHT + STREAM_RESERVE, "a stream can have two steps in flight");

enum stream_event { EVENT_SUBMIT = 1u, EVENT_CANCEL = 2u, EVENT_FINISH = 4u, EVENT_ABORT = 8u };

struct engine_stream {
    _Atomic uint32_t refs;
    _Atomic uint32_t events;          /* enum stream_event; not 0 = the stream is in the inbox */
    struct engine_stream *inbox_next; /* valid while in the inbox */
    _Atomic uint32_t finish_tokens;   /* of EVENT_FINISH */
    struct sequence *sequence;        /* engine thread; NULL once it is gone */
    struct engine_stream *hash_next, *list_next, *list_prev; /* registry; under its lock */
    bool registered;
    struct engine_poke poke;
    void *user;
    char request_id[REQUEST_ID_BYTES_MAX + 1];
    char error[ERROR_TEXT_MAX]; /* written before finish */
    _Atomic uint64_t received_ns, first_step_ns, first_token_ns;
    _Atomic uint32_t finish;            /* enum engine_finish; nothing is pushed after it */
    _Alignas(64) _Atomic uint64_t tail; /* engine: tokens pushed since the start */
    _Alignas(64) _Atomic uint64_t head; /* reader: tokens taken since the start */
    struct engine_token ring[STREAM_RING_TOKENS];
};

struct sequence {
    struct engine_stream *stream;
    uint64_t number, arrival; /* of this engine; for logs and order */
    uint64_t deadline_ns;
    int32_t priority;
    struct engine_sampling sampling;
    uint32_t n_prompt, n_tokens; /* n_tokens: prompt and generated, known on the host */
    uint32_t max_tokens, min_tokens;
    uint32_t n_bias, n_stop_ids, top_logprobs;
    bool logprobs;
    uint32_t *tokens, *bias_ids, *stop_ids; /* in the same block of memory; tokens: [n_prompt + max_tokens] */
    float *bias;
    uint32_t waiting_at, deadline_at; /* places in the heaps; HEAP_NONE = not in it */
    bool running;                     /* in g->running, with a slot */
    uint32_t slot;
    bool opened;              /* OPEN was sent */
    bool preempting;          /* goes back to waiting when its steps have retired */
    bool suspect;             /* was in flight at a death, not yet seen to live */
    uint32_t deaths;          /* group deaths at which it was in flight */
    uint32_t in_flight;       /* steps that name it */
    uint32_t planned;         /* rows in committed steps, counted from position 0 */
    uint32_t prefill_end;     /* rows below it come from the host */
    uint32_t samples;         /* tokens sampled in committed steps: the next sample_index */
    uint32_t computed_before; /* rows below it are a replay */
    bool counted;             /* in prompt_tokens_total */
    uint64_t stalled_since_ns;
    enum engine_finish ending; /* told to the stream; waits for its steps to retire */
};

/* A binary heap of sequences that knows where each one is, so that any can be taken out. */
#define HEAP_NONE UINT32_MAX
struct heap {
    struct sequence **items; /* [capacity] */
    uint32_t n, capacity;
    bool by_deadline; /* else suspects first, then priority (higher first), then arrival */
};
int heap_init(struct heap *h, uint32_t capacity, bool by_deadline);
void heap_done(struct heap *h);
void heap_push(struct heap *h, struct sequence *s);
void heap_remove(struct heap *h, struct sequence *s);
/* Whether a is to be served before b; also the order of g->running. */
bool sequence_before(const struct sequence *a, const struct sequence *b);

/* Slots and pages of the rank group. A thing is free, or held by a sequence, or (slots) waits for the
 * completion of the step that closes it. Sized when the group has answered RESET; nothing here allocates
 * later. */
struct pools {
    uint32_t n_slots, n_pages, pages_per_slot, n_mtp;
    uint32_t *free_slots, n_free_slots;
    uint32_t *to_close, n_to_close; /* slots whose CLOSE goes into the next plan */
    uint32_t *free_pages, n_free_pages;
    uint32_t *page_tables; /* [n_slots + 1][pages_per_slot] */
    uint32_t *table_len;   /* [n_slots + 1] pages that the slot holds */
};
int pools_init(struct pools *p, const struct step_geometry *g);
void pools_done(struct pools *p);
uint32_t pools_pages_for(const struct pools *p, uint32_t rows);
uint32_t pools_take_slot(struct pools *p); /* 0 = none */
/* Makes the slot's table long enough for `rows` rows. Whether it could; *ret_first and *ret_n are what was
 * added. */
bool pools_grant(struct pools *p, uint32_t slot, uint32_t rows, uint32_t *ret_first, uint32_t *ret_n);
/* Gives the slot's pages back. opened: its CLOSE must reach the ranks before it is free again. */
void pools_release(struct pools *p, uint32_t slot, bool opened);
void pools_slot_closed(struct pools *p, uint32_t slot);

struct flight_entry {
    struct sequence *sequence;
    uint32_t slot, sample_index;
    bool sample;
    uint32_t top_logprobs;
};
struct flight { /* one record that not every rank has answered yet */
    uint64_t step;
    enum step_type type;
    uint32_t n_entries, n_samples, n_rows, n_prompt_rows, n_closes;
    struct flight_entry entries[SEQS_MAX];
    uint32_t closes[SEQS_MAX];
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
        uint32_t max_model_len, vocab_size, pages, pages_per_slot, has_mtp;
    } limits;

    pthread_mutex_t stats_lock;
    pthread_cond_t ready_cond;
    struct engine_stats stats; /* what engine_stats() copies */
    bool ready;                /* the first RESET was answered */

    /* --- engine thread --- */
    enum engine_state state;
    struct step_ring *ring; /* written under wake_lock */
    uint32_t n_ranks;
    uint64_t step_next;
    struct step_writer *writer;
    struct flight flights[FLIGHTS_MAX];
    uint32_t flight_first, n_flights, n_plans;
    struct rank_watch watch[RANKS_MAX];
    uint64_t last_record_ns;
    struct pools pools;
    struct step_geometry geometry; /* the least of all ranks; fingerprint 0 until the first RESET */
    bool geometry_known;
    struct heap waiting, deadlines;
    struct sequence *running[SEQS_MAX]; /* in serving order */
    uint32_t n_running;
    uint32_t rotor; /* where decode rows start when not all fit */
    uint32_t n_suspects;
    struct sequence *quarantine; /* the suspect that runs alone */
    uint32_t prefill_rows;       /* limit of prompt rows a step */
    uint32_t n_stalled;          /* sequences held back by a full ring in the last plan */
    struct engine_poke pokes[POKES_MAX];
    uint32_t n_pokes;
    struct engine_stats now; /* counters, copied to stats */
    bool work_done;          /* this turn handled a completion or made a plan */
};

uint64_t engine_clock_ns(void);
void engine_log(struct engine *g, int level, const char *format, ...) __attribute__((format(printf, 3, 4)));
void engine_tell_launcher(struct engine *g, uint32_t kind, uint64_t a, const char *text);

void engine_wake(struct engine *g); /* the engine thread looks at everything once more; any thread */

/* stream.c */
struct engine_stream *stream_create(const struct engine_request *request);
void stream_ref(struct engine_stream *s);
uint32_t stream_free_places(const struct engine_stream *s);
bool stream_push(struct engine_stream *s, const struct step_sample *sample); /* whether the ring was empty */
void stream_end(struct engine_stream *s, enum engine_finish finish, const char *error);

/* inbox.c: from any thread; engine_wake is the caller's. */
void inbox_post(struct engine *g, struct engine_stream *s, uint32_t event);
struct engine_stream *inbox_take_all(struct engine *g); /* oldest first, linked by inbox_next */

/* registry.c */
int registry_add(struct engine *g, struct engine_stream *s, struct error *e);
void registry_remove(struct engine *g, struct engine_stream *s);

/* sequence.c: engine thread, except sequence_create */
struct sequence *sequence_create(
        const struct engine_request *request, struct engine_stream *stream, uint32_t vocab);
void sequence_admit(struct engine *g, struct sequence *s, uint32_t slot);
void sequence_to_waiting(struct engine *g, struct sequence *s); /* gives slot and pages back */
/* Tells the stream, and lets go of the sequence as soon as no step names it. s may be gone afterwards. */
void sequence_finish(struct engine *g, struct sequence *s, enum engine_finish finish, const char *error);
void sequence_retired(
        struct engine *g, struct sequence *s); /* a step that named it has completed; may free it */
void sequence_cleared(struct engine *g, struct sequence *s); /* is no suspect any more */
void engine_poke_later(struct engine *g, const struct engine_poke *poke);
void engine_poke_all(struct engine *g);

/* scheduler.c */
bool scheduler_plan(struct engine *g, uint64_t now); /* whether a plan was committed */
void scheduler_measured(struct engine *g, const struct flight *f, uint64_t compute_ns);

/* flight.c */
struct flight *flight_begin(struct engine *g, enum step_type type);
int flight_commit(struct engine *g, struct flight *f, uint64_t now);
int flight_send_bare(struct engine *g, enum step_type type, uint64_t now);
void flight_take_completions(struct engine *g, uint64_t now);
void flight_watch(struct engine *g, uint64_t now);

/* recovery.c */
void recovery_channel(struct engine *g, const struct control_message *m, uint64_t now);
void recovery_lost(struct engine *g);
/* A rank answered wrongly or not at all: the launcher is told and the group counts as lost. */
void recovery_fault(struct engine *g, uint32_t rank, const char *text);
bool recovery_fits(const struct engine *g, const struct sequence *s); /* the group that is there now */
void recovery_ready(struct engine *g, const struct step_geometry *geometries);
void recovery_set_ring(struct engine *g, struct step_ring *ring);
