/* sequence.h - the life of one sequence. Engine thread, except sequence_create(). */
#pragma once

#include "daemon/engine/state.h"

/* One block of memory (two with the index of lookup), the caller's until it is registered and the engine's after that.
 * NULL: no memory. */
struct sequence *sequence_create(
        const struct engine_request *request, struct engine_stream *stream, uint32_t vocab, bool lookup);
struct sequence *sequence_free(struct sequence *s);                       /* one that was not registered */
void sequence_admit(struct engine *g, struct sequence *s, uint32_t slot); /* from waiting to running */
void sequence_to_waiting(struct engine *g, struct sequence *s);           /* gives slot and pages back */
/* Tells the stream, and lets go of the sequence as soon as no step names it. s may be gone afterwards. Nothing
 * for one that was told already. */
void sequence_finish(struct engine *g, struct sequence *s, enum engine_finish finish, const char *error);
void sequence_retired(
        struct engine *g, struct sequence *s); /* a step that named it has completed; may free it */
/* The group that held its slot and pages is gone, and so are the steps that named it. May free it. */
void sequence_uprooted(struct engine *g, struct sequence *s);
void sequence_set_back(
        struct engine *g, struct sequence *s);               /* gives its slot up: its reader does not read */
void sequence_read_on(struct engine *g, struct sequence *s); /* it does again: waits like the others */
void sequence_cleared(struct engine *g, struct sequence *s); /* is no suspect any more */
