/* stream.h - the bounded ring of tokens between the engine thread and one reader, and what else the two share.
 *
 * The engine thread pushes and ends; the reader takes (engine_stream_take and its kin in engine.h). Reference
 * counted: the engine holds one until the sequence is gone, the caller of submit one, the inbox one while the
 * stream is in it. */
#pragma once

#include "daemon/engine/engine.h"
#include "proto/step/step.h"

#include <stdatomic.h>

struct sequence;

_Static_assert((STREAM_RING_TOKENS & (STREAM_RING_TOKENS - 1)) == 0, "a ring index is a mask away");

enum stream_event { EVENT_SUBMIT = 1u, EVENT_CANCEL = 2u, EVENT_FINISH = 4u, EVENT_ABORT = 8u };

struct engine_stream {
    _Atomic uint32_t refs;
    _Atomic uint32_t events;          /* enum stream_event; not 0 = the stream is in the inbox */
    struct engine_stream *inbox_next; /* valid while in the inbox */
    _Atomic uint32_t finish_tokens;   /* of EVENT_FINISH */
    struct sequence *sequence;        /* engine thread; NULL once it is gone */
    struct engine_stream *hash_next, *list_next, *list_prev; /* registry; under its lock */
    bool registered, sibling;
    struct engine_poke poke;
    void *user;
    char request_id[REQUEST_ID_BYTES_MAX + 1], caller[ENGINE_CALLER_BYTES];
    char error[ERROR_TEXT_MAX]; /* written before finish */
    _Atomic uint64_t received_ns, first_step_ns, first_token_ns;
    _Atomic uint32_t cached_tokens;     /* of the prompt */
    _Atomic uint32_t finish;            /* enum engine_finish; nothing is pushed after it */
    _Alignas(64) _Atomic uint64_t tail; /* engine: tokens pushed since the start */
    _Alignas(64) _Atomic uint64_t head; /* reader: tokens taken since the start */
    struct engine_token ring[STREAM_RING_TOKENS];
};

struct engine_stream *stream_create(const struct engine_request *request);
void stream_ref(struct engine_stream *s);
uint32_t stream_free_places(const struct engine_stream *s);
/* A token of the answer, or a score of the prompt, with top of what is listed beside it. Whether the ring was empty. */
bool stream_push(struct engine_stream *s, const struct step_sample *sample, uint32_t top, bool of_prompt);
void stream_end(struct engine_stream *s, enum engine_finish finish, const char *error);
