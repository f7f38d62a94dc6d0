/* request.h - a GenerateRequest, checked field by field and turned into what the engine takes.
 *
 * A refusal names the field, what was found and what would do. Nothing that is set is ignored. */
#pragma once

#include "daemon/engine/engine.h"
#include "daemon/rpc/rpc.h"
#include "daemon/service/model.h"
#include "daemon/service/prompt.h"

#include "shardd/v1/shardd.pb-c.h"

/* A repetition penalty multiplies the bias of what is banned, so one that is nearly 0 would bring it back. */
#define BANNING_PENALTY_LEAST 1e-30f

struct request_context {
    const struct model *model;
    uint32_t max_model_len, vocab_size; /* of the workers; not 0 */
    uint64_t seed;                      /* of requests that bring none; 0 = drawn */
};

/* A request that may run. engine points into this struct, so it must not be moved. */
struct plan {
    struct engine_request engine; /* poke, user and deadline_ns are the caller's to fill */
    struct prompt prompt;
    uint32_t stop_ids[STOP_IDS_MAX + MODEL_STOP_IDS_MAX];
    uint32_t bias_ids[LOGIT_BIAS_MAX];
    float bias[LOGIT_BIAS_MAX];
    uint32_t *mask, *bad_words; /* malloc'ed or NULL */
    uint32_t n_answers;
    const ProtobufCBinaryData *stop_strings; /* in the request */
    size_t n_stop_strings;
    bool include_stop, stop_in_reasoning;
    bool want_ids, want_logprobs, want_prompt_ids, want_prompt_logprobs, echo, raw, skip_text, show_special;
    uint32_t prompt_top_logprobs;
};

/* 0, or -1 with *s filled. q must live as long as *ret. On success plan_done() releases *ret. */
int request_check(const Shardd__V1__GenerateRequest *q, const struct request_context *x, struct plan *ret,
        struct rpc_status *s);
void plan_done(struct plan *p);

/* Everything of it that needs no tokenizer (also what the fuzzer runs). */
int request_check_options(const Shardd__V1__GenerateRequest *q, const struct request_context *x,
        struct plan *ret, struct rpc_status *s);
int request_check_model(const struct model *m, ProtobufCBinaryData name, struct rpc_status *s);
/* At most 128 of [A-Za-z0-9._:-]; may be empty. */
int request_check_id(ProtobufCBinaryData id, struct rpc_status *s);
