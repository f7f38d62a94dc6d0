/* bench.h - `shardd-worker-... bench`: how fast this machine runs a model, without a service.
 *
 * Called by worker_main.c; `shardd bench` runs it. */
#pragma once

/* argv[1] is "bench". The table goes to stdout, the log to stderr. Returns the exit status. */
int bench_main(int argc, char **argv);
