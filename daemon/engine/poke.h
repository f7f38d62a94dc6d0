/* poke.h - telling reader threads that their streams have news, once a turn of the loop. Engine thread only. */
#pragma once

#include "daemon/engine/state.h"

void poke_later(struct engine *g, const struct engine_poke *poke);
void poke_all(struct engine *g);
