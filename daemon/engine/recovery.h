/* recovery.h - rank groups come and go. Engine thread only. */
#pragma once

#include "daemon/engine/flight.h"
#include "daemon/engine/state.h"

/* CONTROL_CHANNEL: attaches the ring and sends RESET. A group that is still there counts as gone. */
void recovery_channel(struct engine *g, const struct control_message *m, uint64_t now);
/* The group is gone; nothing when that is known already. */
void recovery_lost(struct engine *g, const struct death *death);
/* A rank answered wrongly or not at all: the launcher is told and the group counts as lost. */
void recovery_fault(struct engine *g, const struct death *death, const char *text);
/* All ranks have answered RESET with these, [n_ranks]. */
void recovery_ready(struct engine *g, const struct step_geometry *geometries);
bool recovery_fits(const struct engine *g, const struct sequence *s); /* the group that is there now */
