/* keeper.h - the keeper of a worker's weights: a process that computes nothing, so that nothing ends it.
 *
 * `shardd serve` starts one beside each worker on a GPU: the worker's own program with --keeper, which makes no CUDA
 * context. It holds the descriptor of the memory in which each rank of the worker has its weights; the driver keeps the
 * memory as long as somebody does. Its launcher sends it a socket to every worker that is started (CONTROL_LINK, which
 * replaces the one before); over that the worker takes what is kept and puts it back (tp/load/keep.h). Only they can
 * reach it, by sockets that they inherit. */
#pragma once

/* Until the launcher is gone; the process's exit status. Logs. */
int keeper_run(int control_fd);
