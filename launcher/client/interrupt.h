/* interrupt.h - Ctrl-C in the client verbs: a flag that is set, and a descriptor that becomes readable, by
 * SIGINT and SIGTERM. The descriptor is what makes waiting safe: a signal that comes just before poll() is
 * not lost. */
#pragma once

#include <stdbool.h>

int interrupt_catch(void); /* installs the handlers; 0 or a negative errno */
bool interrupt_seen(void); /* since the last reset */
void interrupt_reset(void);
int interrupt_fd(void); /* for poll(); -1 before interrupt_catch() */
