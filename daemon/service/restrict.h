/* restrict.h - sampling.allowed_token_ids and sampling.bad_words: which ids a request leaves to be sampled. */
#pragma once

#include "daemon/service/request.h"

/* What needs no tokenizer: counts, lengths, ids. 0, or -1 with *s filled. */
int restrict_check(
        const Shardd__V1__SamplingParams *p, const struct request_context *x, struct rpc_status *s);
/* After the rest of sampling was taken: words become ids, those of one id are banned like banned_token_ids, and what is
 * allowed becomes a mask without those that are banned. 0, or -1 with *s filled; plan_done() frees what it made. */
int restrict_take(const Shardd__V1__SamplingParams *p, const struct request_context *x, struct plan *plan,
        struct rpc_status *s);
