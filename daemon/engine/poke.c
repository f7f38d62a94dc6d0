/* poke.c - see poke.h. */
#include "daemon/engine/poke.h"

void poke_all(struct engine *g) {
    for (uint32_t i = 0; i < g->n_pokes; i++)
        g->pokes[i].fn(g->pokes[i].user);
    g->n_pokes = 0;
}

/* Each reader thread is poked once, however many of its streams have news. */
void poke_later(struct engine *g, const struct engine_poke *poke) {
    if (poke->fn == NULL)
        return;
    for (uint32_t i = 0; i < g->n_pokes; i++) {
        if (g->pokes[i].fn == poke->fn && g->pokes[i].user == poke->user)
            return;
    }
    if (g->n_pokes == POKES_MAX)
        poke_all(g);
    g->pokes[g->n_pokes++] = *poke;
}
