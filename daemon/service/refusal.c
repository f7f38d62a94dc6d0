/* refusal.c - see refusal.h. */
#include "daemon/service/refusal.h"

#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>

static const struct {
    const char *word;
    enum rpc_status_code status;
    bool retryable;
} refusals[REFUSAL_COUNT] = {
        [REFUSAL_MALFORMED] = {"malformed_request", RPC_INVALID_ARGUMENT, false},
        [REFUSAL_TOO_COMPLEX] = {"request_too_complex", RPC_INVALID_ARGUMENT, false},
        [REFUSAL_UNKNOWN_FIELD] = {"unknown_field", RPC_UNIMPLEMENTED, false},
        [REFUSAL_INVALID_FIELD] = {"invalid_field", RPC_INVALID_ARGUMENT, false},
        [REFUSAL_INVALID_UTF8] = {"invalid_utf8", RPC_INVALID_ARGUMENT, false},
        [REFUSAL_INVALID_JSON] = {"invalid_json", RPC_INVALID_ARGUMENT, false},
        [REFUSAL_MISSING_INPUT] = {"missing_input", RPC_INVALID_ARGUMENT, false},
        [REFUSAL_CONFLICT] = {"conflicting_fields", RPC_INVALID_ARGUMENT, false},
        [REFUSAL_CONTEXT_TOO_LONG] = {"context_too_long", RPC_INVALID_ARGUMENT, false},
        [REFUSAL_TEMPLATE] = {"template_error", RPC_INVALID_ARGUMENT, false},
        [REFUSAL_CHAT_UNSUPPORTED] = {"chat_not_supported", RPC_UNIMPLEMENTED, false},
        [REFUSAL_UNKNOWN_MODEL] = {"unknown_model", RPC_NOT_FOUND, false},
        [REFUSAL_DUPLICATE_ID] = {"duplicate_request_id", RPC_ALREADY_EXISTS, false},
        [REFUSAL_QUEUE_FULL] = {"queue_full", RPC_RESOURCE_EXHAUSTED, true},
        [REFUSAL_QUEUE_TIME] = {"queue_timeout", RPC_UNAVAILABLE, true},
        [REFUSAL_LOADING] = {"loading", RPC_UNAVAILABLE, true},
        [REFUSAL_DRAINING] = {"draining", RPC_UNAVAILABLE, true},
        [REFUSAL_DEADLINE] = {"deadline_exceeded", RPC_DEADLINE_EXCEEDED, false},
        [REFUSAL_CANCELLED] = {"cancelled", RPC_CANCELLED, false},
        [REFUSAL_SLOW_READER] = {"slow_reader", RPC_RESOURCE_EXHAUSTED, false},
        [REFUSAL_NOT_LOCAL] = {"not_local", RPC_PERMISSION_DENIED, false},
        [REFUSAL_UNKNOWN_SERVICE] = {"unknown_service", RPC_NOT_FOUND, false},
        [REFUSAL_FAULT] = {"worker_fault", RPC_INTERNAL, false},
        [REFUSAL_INTERNAL] = {"internal", RPC_INTERNAL, true},
};

int refuse(struct rpc_status *s, enum refusal why, const char *format, ...) {
    s->status = refusals[why].status;
    s->code = refusals[why].word;
    s->retryable = refusals[why].retryable;
    s->retry_after_ms = 0;
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(s->text, sizeof(s->text), format, ap);
    va_end(ap);
    s->text[n < 0 ? 0 : utf8_cut(s->text, (size_t)n, sizeof(s->text) - 1)] = '\0';
    return -1;
}
