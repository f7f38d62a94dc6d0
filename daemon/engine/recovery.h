/* recovery.h - rank groups come and go. Engine thread only. */
#pragma once

#include "daemon/engine/state.h"

/* CONTROL_CHANNEL: attaches the ring and sends RESET. A group that is still there counts as gone. */
void recovery_channel(struct engine *g, const struct control_message *m, uint64_t now);
void recovery_lost(struct engine *g); /* the group is gone; nothing when that is known already */
/* A rank answered wrongly or not at all: the launcher is told and the group counts as lost. */
void recovery_fault(struct engine *g, uint32_t rank, const char *text);
/* All ranks have answered RESET with these, [n_ranks]. */
void recovery_ready(struct engine *g, const struct step_geometry *geometries);
bool recovery_fits(const struct engine *g, const struct sequence *s); /* the group that is there now */
