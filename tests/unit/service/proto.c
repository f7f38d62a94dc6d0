/* proto.c - what must hold of the .proto files and their C: no recursion in what clients send, no C strings,
 * and descriptors that reflection can find its way in. */
#include "daemon/service/descriptors.h"
#include "daemon/service/message.h"

#include "grpc/health/v1/health.pb-c.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "grpc/reflection/v1alpha/reflection.pb-c.h"
#include "shardd/v1/shardd.pb-c.h"
#include "shardd_descriptor_set.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const ProtobufCServiceDescriptor *const services[] = {&shardd__v1__shardd__descriptor,
        &grpc__health__v1__health__descriptor, &grpc__reflection__v1__server_reflection__descriptor,
        &grpc__reflection__v1alpha__server_reflection__descriptor};
#define N_SERVICES (sizeof(services) / sizeof(services[0]))

static void test_no_request_type_recurses(void **state) {
    (void)state;
    for (size_t i = 0; i < N_SERVICES; i++)
        for (unsigned k = 0; k < services[i]->n_methods; k++)
            assert_false(message_type_recurses(services[i]->methods[k].input));
}

/* The check itself: a type that contains itself, directly or by way of another. */
static void test_recursion_is_seen(void **state) {
    (void)state;
    ProtobufCFieldDescriptor to_b = {.name = "b", .type = PROTOBUF_C_TYPE_MESSAGE};
    ProtobufCFieldDescriptor to_a = {.name = "a", .type = PROTOBUF_C_TYPE_MESSAGE};
    ProtobufCMessageDescriptor a = {.name = "A", .n_fields = 1, .fields = &to_b};
    ProtobufCMessageDescriptor b = {.name = "B", .n_fields = 1, .fields = &to_a};
    to_b.descriptor = &b;
    to_a.descriptor = &a;
    assert_true(message_type_recurses(&a));
    to_a.type = PROTOBUF_C_TYPE_INT32;
    assert_false(message_type_recurses(&a));
}

static void assert_no_strings(const ProtobufCMessageDescriptor *d, int depth) {
    assert_true(depth < 16);
    for (unsigned i = 0; i < d->n_fields; i++) {
        assert_int_not_equal(d->fields[i].type, PROTOBUF_C_TYPE_STRING);
        if (d->fields[i].type == PROTOBUF_C_TYPE_MESSAGE)
            assert_no_strings(d->fields[i].descriptor, depth + 1);
    }
}

/* A C string ends at its first NUL and may hold anything: every text must come with its length. */
static void test_every_string_is_bytes(void **state) {
    (void)state;
    for (size_t i = 0; i < N_SERVICES; i++) {
        for (unsigned k = 0; k < services[i]->n_methods; k++) {
            assert_no_strings(services[i]->methods[k].input, 0);
            assert_no_strings(services[i]->methods[k].output, 0);
        }
    }
}

static struct descriptor_set read_set(void) {
    struct descriptor_set d;
    assert_true(descriptor_set_read(shardd_descriptor_set, shardd_descriptor_set_bytes, &d));
    return d;
}

static void test_symbols(void **state) {
    (void)state;
    static const struct {
        const char *symbol;
        const char *file; /* NULL: not there */
    } cases[] = {
            {"shardd.v1.Shardd", "shardd/v1/shardd.proto"},
            {"shardd.v1.Shardd.Generate", "shardd/v1/shardd.proto"},
            {"shardd.v1.GenerateRequest", "shardd/v1/shardd.proto"},
            {"shardd.v1.GenerateRequest.text", "shardd/v1/shardd.proto"},
            {"shardd.v1.SamplingParams.LogitBiasEntry", "shardd/v1/shardd.proto"},
            {"shardd.v1.SamplingParams.LogitBiasEntry.key", "shardd/v1/shardd.proto"},
            {"shardd.v1.FinishReason", "shardd/v1/shardd.proto"},
            {"grpc.health.v1.Health", "grpc/health/v1/health.proto"},
            {"grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"},
            {"grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"},
            {"grpc.reflection.v1alpha.ServerReflection", "grpc/reflection/v1alpha/reflection.proto"},
            {"shardd.v1", NULL},
            {"shardd.v1.", NULL},
            {"shardd", NULL},
            {"", NULL},
            {"shardd.v10.Shardd", NULL},
            {"shardd.v1.Shard", NULL},
            {"shardd.v1.Sharddd", NULL},
            {"shardd.v1.Shardd.", NULL},
            {"shardd.v1.Shardd.Nothing", NULL},
            {"shardd.v1.Shardd.Generate.x", NULL},
            {"shardd.v1.FinishReason.x", NULL},
            {".shardd.v1.Shardd", NULL},
    };
    struct descriptor_set d = read_set();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int found = descriptor_find_symbol(&d, message_string(cases[i].symbol));
        int wanted = cases[i].file ? descriptor_find_file(&d, message_string(cases[i].file)) : -1;
        if (found != wanted)
            print_message("%s\n", cases[i].symbol);
        assert_int_equal(found, wanted);
        assert_true(!cases[i].file || wanted >= 0);
    }
}

static void test_files_and_imports(void **state) {
    (void)state;
    struct descriptor_set d = read_set();
    int files[DESCRIPTOR_FILES_MAX];
    assert_int_equal(descriptor_find_file(&d, message_string("nothing.proto")), -1);
    assert_int_equal(descriptor_find_file(&d, message_string("protobuf-c/protobuf-c.proto")), -1);
    int file = descriptor_find_file(&d, message_string("shardd/v1/shardd.proto"));
    assert_true(file >= 0);
    assert_int_equal(descriptor_with_imports(&d, file, files), 1);
    assert_int_equal(files[0], file);
}

/* a.proto; b.proto imports a.proto; c.proto imports b.proto: asked for c, all three come, imports first. */
static void test_imports_of_imports(void **state) {
    (void)state;
    static const unsigned char set[] = "\x0a\x09\x0a\x07"
                                       "a.proto"
                                       "\x0a\x12\x0a\x07"
                                       "b.proto\x1a\x07"
                                       "a.proto"
                                       "\x0a\x12\x0a\x07"
                                       "c.proto\x1a\x07"
                                       "b.proto";
    struct descriptor_set d;
    int files[DESCRIPTOR_FILES_MAX];
    assert_true(descriptor_set_read(set, sizeof(set) - 1, &d));
    assert_int_equal(d.n_files, 3);
    assert_int_equal(descriptor_with_imports(&d, 2, files), 3);
    assert_int_equal(files[0], 0);
    assert_int_equal(files[2], 2);
    assert_int_equal(descriptor_with_imports(&d, 0, files), 1);
    for (size_t n = 1; n < sizeof(set) - 1; n++) {
        unsigned char *cut = malloc(n); /* exactly, so that a step too far is seen */
        memcpy(cut, set, n);
        bool whole = n == 11 || n == 31;
        assert_int_equal(descriptor_set_read(cut, n, &d), whole);
        free(cut);
    }
}

/* Numbers where names and messages should be: nothing is found, nothing is read that is not there. */
static void test_set_of_wrong_types(void **state) {
    (void)state;
    static const unsigned char set[] = "\x0a\x06\x08\x01\x12\x00\x20\x05";
    struct descriptor_set d;
    assert_true(descriptor_set_read(set, sizeof(set) - 1, &d));
    assert_int_equal(descriptor_find_symbol(&d, message_string("a.b")), -1);
    assert_int_equal(descriptor_find_file(&d, message_string("a.proto")), -1);
}

static void test_unknown_fields_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *names;
    } cases[] = {
            {"\x58\x01", 2, "shardd.v1.GenerateRequest has no field 11"},        /* reserved */
            {"\x3a\x02\x68\x01", 4, "shardd.v1.SamplingParams has no field 13"}, /* in a message */
            {"\x2a\x04\x0a\x02\x58\x01", 6,
                    "shardd.v1.Message has no field 11"}, /* in a repeated one of a oneof */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct arena a;
        struct rpc_status s = {0};
        arena_init(&a, ARENA_BYTES_MAX, NULL, 0);
        assert_null(message_unpack(
                &shardd__v1__generate_request__descriptor, cases[i].bytes, cases[i].n, &a, &s));
        assert_int_equal(s.status, RPC_UNIMPLEMENTED);
        assert_non_null(strstr(s.text, cases[i].names));
        arena_done(&a);
    }
}

/* A megabyte of empty parts would unpack to thirty. */
static void test_a_message_that_unpacks_to_too_much(void **state) {
    (void)state;
    size_t n = 4u << 20;
    unsigned char *bytes = malloc(n);
    for (size_t i = 0; i < n; i += 2)
        memcpy(bytes + i, "\x0a\x00", 2); /* GenerateRequest.model = "", again and again */
    struct arena a;
    struct rpc_status s = {0};
    arena_init(&a, ARENA_BYTES_MAX, NULL, 0);
    assert_null(message_unpack(&shardd__v1__generate_request__descriptor, bytes, n, &a, &s));
    assert_string_equal(s.code, "request_too_complex");
    assert_true(a.total <= ARENA_BYTES_MAX);
    arena_done(&a);
    free(bytes);
}

static void test_malformed(void **state) {
    (void)state;
    struct arena a;
    struct rpc_status s = {0};
    arena_init(&a, ARENA_BYTES_MAX, NULL, 0);
    assert_null(message_unpack(&shardd__v1__generate_request__descriptor, "\xff\xff\xff", 3, &a, &s));
    assert_string_equal(s.code, "malformed_request");
    assert_int_equal(s.status, RPC_INVALID_ARGUMENT);
    arena_done(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_no_request_type_recurses),
            cmocka_unit_test(test_recursion_is_seen),
            cmocka_unit_test(test_every_string_is_bytes),
            cmocka_unit_test(test_symbols),
            cmocka_unit_test(test_files_and_imports),
            cmocka_unit_test(test_imports_of_imports),
            cmocka_unit_test(test_set_of_wrong_types),
            cmocka_unit_test(test_unknown_fields_are_refused),
            cmocka_unit_test(test_a_message_that_unpacks_to_too_much),
            cmocka_unit_test(test_malformed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
