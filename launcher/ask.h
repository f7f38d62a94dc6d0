/* ask.h - asks another program of shardd one question: runs it, reads the JSON object that it writes on stdout.
 *
 * Called by verbs that have to know what a worker can do here (`shardd-worker-cuda --probe`, `--plan`): the launcher
 * itself links no kernels. One thread; waits for the answer. */
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdint.h>

#define ASK_BYTES_MAX (1u << 20) /* of an answer */

/* argv[0] is the path. The program's stderr goes nowhere, and its exit status does not matter where it has answered.
 * *ret is the caller's (json_decref). A program that has not ended after timeout_ms is killed: -ETIMEDOUT. -EPROTO:
 * what it wrote is no JSON object; the sentence says how it ended. */
int ask_program(char *const argv[], uint64_t timeout_ms, json_t **ret, struct error *e);
