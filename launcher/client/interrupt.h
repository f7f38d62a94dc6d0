/* interrupt.h - Ctrl-C and the end in the client verbs: a flag that is set, and a descriptor that becomes readable, by
 * SIGINT, and by SIGTERM, SIGHUP (the terminal was closed) and SIGQUIT. The descriptor is what makes waiting safe: a
 * signal that comes just before poll() is not lost. */
#pragma once

#include <stdbool.h>

int interrupt_catch(void); /* installs the handlers; 0 or a negative errno */
bool interrupt_seen(void); /* since the last reset; for good once the program is to end */
bool interrupt_ends(void); /* by anything but SIGINT: the program is to end, not just what it does now */
void interrupt_reset(void);
int interrupt_fd(void); /* for poll(); -1 before interrupt_catch() */
