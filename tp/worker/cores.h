/* cores.h - which cores the thread of a rank may run on: those near its GPU, and one of them while it serves.
 *
 * Called by worker_rank.c, in the thread it is about. A launch writes into memory that the driver took on the node
 * where the thread ran then, and into the card: from another node each of these writes takes longer. Nothing is ever
 * added to the cores that the process was given (taskset, systemd's CPUAffinity=, a container): they are narrowed, or
 * left alone. Logs nothing. */
#pragma once

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

enum cores_bind { CORES_NODE, CORES_CORE, CORES_OFF }; /* --numa-bind */

/* The cores of `allowed` that are near the device at `place` ("0000:65:00.0", of any length of domain), and its node.
 * False, and nothing is set, where there is nothing to choose: no place, no node told, none or all of them near. root
 * is "" for this machine, a folder for a test. */
bool cores_near(const char *root, const char *place, const cpu_set_t *allowed, cpu_set_t *ret, int *ret_node);

/* A core of `near` for rank `rank` of `ranks`, another one for each, the first thread of a core that has several; not
 * the first core, which answers most interrupts, where there is another. -1 where there are fewer cores than ranks. */
int cores_one(const char *root, const cpu_set_t *near, uint32_t rank, uint32_t ranks);

/* Keeps the calling thread, and those that it starts from now on, near the device. Writes what it did into `text`, a
 * sentence for the log; "" where there was nothing to choose. */
void cores_go_near(const char *place, char *text, uint32_t size);
/* Keeps the calling thread on one core from now on; those that it started stay where they are. */
void cores_stay(uint32_t rank, uint32_t ranks, char *text, uint32_t size);
