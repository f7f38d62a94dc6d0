/* worker.h - a worker process: its ranks' threads, and the conversation with the launcher.
 *
 * Called by worker_main.c. The main thread speaks on the control socket and never computes, so it answers
 * pings while ranks work. Each rank has a thread that loads, then reads plans from its step ring, executes
 * and answers them. */
#pragma once

#include "tp/worker/worker_options.h"

/* Serves until the launcher says stop, goes away, or a rank fails. Returns the process's exit status; when it
 * returns early (launcher gone, a rank that does not finish) threads may still run, so main must exit. Logs. */
int worker_serve(const struct worker_options *options);

/* --generate-ids: all ranks in this process, one prompt, ids and log probabilities on stdout. Exit status.
 * Logs. */
int worker_generate(const struct worker_options *options);

/* --plan: one JSON object in one line on stdout (worker_plan.c says which fields). Exit status. Logs nothing. */
int worker_plan(const struct worker_options *options);

/* --probe: one line of JSON on stdout about this machine and what this build can use of it, documented in
 * docs/cli.md. list: the GPUs to open, by numbers and UUIDs; NULL, or where it names none that is there: all. Exit
 * status: 0, also when the answer is that nothing can be used. */
int worker_probe(const char *list);

#define WORKER_EXIT_USAGE 2 /* a setting is wrong, for this model or at all: starting again does not help */
/* The exit status for a negative errno: -EDOM is a setting that this model or machine cannot have. */
int worker_exit_status(int code);

/* Threads of one rank: what was asked for, or this process's cores divided by the ranks. */
uint32_t worker_threads(const struct worker_options *options);
