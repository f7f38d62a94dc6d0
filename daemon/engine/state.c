/* state.c - the two state machines of state.h, and the engine's clock. */
#include "daemon/engine/state.h"

#include <assert.h>
#include <time.h>

void engine_enter(struct engine *g, enum engine_state to) {
    static const bool allowed[4][4] = {
            [STATE_LOADING] = {[STATE_SERVING] = true, [STATE_FAILED] = true},
            [STATE_SERVING] = {[STATE_RECOVERING] = true},
            [STATE_RECOVERING] = {[STATE_SERVING] = true, [STATE_FAILED] = true},
    };
    assert(allowed[g->state][to]);
    g->state = to;
}

const char *engine_state_name(enum engine_state state) {
    static const char *const names[] = {"loading", "serving", "recovering", "failed"};
    return names[state];
}

void sequence_enter(struct sequence *s, enum sequence_state to) {
    static const bool allowed[5][5] = {
            [SEQUENCE_NEW] = {[SEQUENCE_WAITING] = true, [SEQUENCE_ENDING] = true},
            [SEQUENCE_WAITING] = {[SEQUENCE_RUNNING] = true, [SEQUENCE_ENDING] = true},
            [SEQUENCE_RUNNING] =
                    {[SEQUENCE_PREEMPTING] = true, [SEQUENCE_WAITING] = true, [SEQUENCE_ENDING] = true},
            [SEQUENCE_PREEMPTING] = {[SEQUENCE_WAITING] = true, [SEQUENCE_ENDING] = true},
    };
    assert(allowed[s->state][to]);
    s->state = to;
}
