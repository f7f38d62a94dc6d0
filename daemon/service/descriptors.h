/* descriptors.h - finds files and symbols in the embedded FileDescriptorSet, for reflection.
 *
 * Walks the serialized bytes in place: they are our own, made at build time, but nothing is believed. */
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DESCRIPTOR_FILES_MAX 32u

struct descriptor_set {
    ProtobufCBinaryData files[DESCRIPTOR_FILES_MAX]; /* each a FileDescriptorProto, in place */
    size_t n_files;
};

/* false when the bytes are no FileDescriptorSet, or it has too many files. */
bool descriptor_set_read(const unsigned char *data, size_t bytes, struct descriptor_set *ret);
/* Index of the file with this name, or of the one that defines this symbol (a service, method, message, field
 * of a message or enum, by its full name); -1. */
int descriptor_find_file(const struct descriptor_set *d, ProtobufCBinaryData name);
int descriptor_find_symbol(const struct descriptor_set *d, ProtobufCBinaryData symbol);
/* The file and, before it, all that it imports: indices into files. Returns their number. */
size_t descriptor_with_imports(const struct descriptor_set *d, int file, int ret_files[DESCRIPTOR_FILES_MAX]);
