/* refusal.h - why a request is refused: one table of codes, so that a word, its gRPC status and whether
 * trying again helps always go together. The words are part of the public interface (trailer shardd-code):
 * they never change. */
#pragma once

#include "daemon/rpc/rpc.h"

enum refusal {
    REFUSAL_MALFORMED,     /* bytes that are no such message */
    REFUSAL_TOO_COMPLEX,   /* unpacks to more than a request may take */
    REFUSAL_UNKNOWN_FIELD, /* a field that this server does not know */
    REFUSAL_INVALID_FIELD, /* a value out of its range */
    REFUSAL_INVALID_UTF8,
    REFUSAL_INVALID_JSON,
    REFUSAL_MISSING_INPUT,
    REFUSAL_CONFLICT, /* two fields that exclude each other */
    REFUSAL_CONTEXT_TOO_LONG,
    REFUSAL_TEMPLATE,         /* the chat template refuses the conversation */
    REFUSAL_CHAT_UNSUPPORTED, /* no known chat template */
    REFUSAL_UNKNOWN_MODEL,
    REFUSAL_DUPLICATE_ID,
    REFUSAL_QUEUE_FULL,
    REFUSAL_QUEUE_TIME, /* it waited for too long */
    REFUSAL_LOADING,
    REFUSAL_DRAINING,
    REFUSAL_DEADLINE,
    REFUSAL_CANCELLED,
    REFUSAL_SLOW_READER,
    REFUSAL_NOT_LOCAL, /* for loopback and Unix peers only */
    REFUSAL_UNKNOWN_SERVICE,
    REFUSAL_FAULT, /* the workers failed on it */
    REFUSAL_INTERNAL,
    REFUSAL_COUNT,
};

/* Fills *s and returns -1, so that `return refuse(s, ...)` reads well. */
int refuse(struct rpc_status *s, enum refusal why, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
