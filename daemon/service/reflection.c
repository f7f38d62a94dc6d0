/* reflection.c - grpc.reflection, v1 and v1alpha: the published .proto files, for tools that have none.
 *
 * The two versions are the same on the wire, so both are answered with v1's messages. One answer per
 * question, in order; extensions do not exist in proto3 services and are never found. */
#include "daemon/service/descriptors.h"
#include "daemon/service/message.h"
#include "daemon/service/methods.h"
#include "daemon/service/refusal.h"

#include "grpc/reflection/v1/reflection.pb-c.h"
#include "shardd_descriptor_set.h"

typedef Grpc__Reflection__V1__ServerReflectionRequest Request;
typedef Grpc__Reflection__V1__ServerReflectionResponse Response;

#define SERVICES_MAX 16

/* The parts that an answer may point to. */
struct answer {
    Response response;
    Grpc__Reflection__V1__ListServiceResponse list;
    Grpc__Reflection__V1__ServiceResponse services[SERVICES_MAX], *service_list[SERVICES_MAX];
    Grpc__Reflection__V1__FileDescriptorResponse files;
    ProtobufCBinaryData file_list[DESCRIPTOR_FILES_MAX];
    Grpc__Reflection__V1__ErrorResponse error;
};

static void answer_error(struct answer *a, int status, const char *text) {
    grpc__reflection__v1__error_response__init(&a->error);
    a->error.error_code = status;
    a->error.error_message = message_string(text);
    a->response.message_response_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    a->response.error_response = &a->error;
}

static void answer_list(struct answer *a) {
    grpc__reflection__v1__list_service_response__init(&a->list);
    size_t n = 0;
    for (; service_names[n] && n < SERVICES_MAX; n++) {
        grpc__reflection__v1__service_response__init(&a->services[n]);
        a->services[n].name = message_string(service_names[n]);
        a->service_list[n] = &a->services[n];
    }
    a->list.n_service = n;
    a->list.service = a->service_list;
    a->response.message_response_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    a->response.list_services_response = &a->list;
}

static void answer_file(struct answer *a, const struct descriptor_set *d, int file) {
    if (file < 0) {
        answer_error(a, RPC_NOT_FOUND, "no such file or symbol; list_services shows where to begin");
        return;
    }
    int files[DESCRIPTOR_FILES_MAX];
    size_t n = descriptor_with_imports(d, file, files);
    grpc__reflection__v1__file_descriptor_response__init(&a->files);
    for (size_t i = 0; i < n; i++)
        a->file_list[i] = d->files[files[n - 1 - i]]; /* the file itself first */
    a->files.n_file_descriptor_proto = n;
    a->files.file_descriptor_proto = a->file_list;
    a->response.message_response_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    a->response.file_descriptor_response = &a->files;
}

static void answer_question(struct answer *a, Request *q) {
    struct descriptor_set d;
    grpc__reflection__v1__server_reflection_response__init(&a->response);
    a->response.valid_host = q->host;
    a->response.original_request = q;
    if (!descriptor_set_read(shardd_descriptor_set, shardd_descriptor_set_bytes, &d)) {
        answer_error(a, RPC_INTERNAL, "the embedded descriptors cannot be read");
        return;
    }
    switch (q->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        answer_list(a);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        answer_file(a, &d, descriptor_find_file(&d, q->file_by_filename));
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        answer_file(a, &d, descriptor_find_symbol(&d, q->file_containing_symbol));
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION:
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        answer_error(a, RPC_NOT_FOUND, "there are no extensions here");
        break;
    default:
        answer_error(a, RPC_INVALID_ARGUMENT, "the question is empty; set one field of message_request");
    }
}

void reflection_on_message(struct rpc_call *c) {
    if (!rpc_call_can_send(c))
        return;
    size_t bytes = 0;
    const void *data = rpc_call_request(c, &bytes);
    if (!data) { /* the client has asked all */
        rpc_call_finish(c, NULL);
        return;
    }
    struct arena arena;
    struct rpc_status s;
    struct answer a;
    arena_init(&arena, ARENA_BYTES_MAX, NULL, 0);
    Request *q = (Request *)message_unpack(
            &grpc__reflection__v1__server_reflection_request__descriptor, data, bytes, &arena, &s);
    if (q) {
        answer_question(&a, q);
        message_send(c, &a.response.base);
    } else {
        method_refuse(c, &s);
    }
    arena_done(&arena);
}

/* An idle stream would hold the server open at shutdown. */
void reflection_on_wake(struct rpc_call *c) {
    if (!rpc_server_draining(rpc_call_server(c)) || !rpc_call_can_send(c))
        return;
    struct rpc_status s;
    refuse(&s, REFUSAL_DRAINING, "the server is shutting down; try another one or later");
    rpc_call_finish(c, &s);
}
