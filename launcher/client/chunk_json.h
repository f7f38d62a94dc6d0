/* chunk_json.h - messages of the service as JSON, with the field names of the .proto file. */
#pragma once

#include "shardd/v1/shardd.pb-c.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

/* One chunk as one line; false when it cannot be written. */
bool chunk_print_json(FILE *out, const Shardd__V1__GenerateChunk *chunk);

/* New references; NULL when out of memory. */
json_t *json_of_sampling(const Shardd__V1__SamplingParams *s);
json_t *json_of_bytes(ProtobufCBinaryData b); /* U+FFFD for bytes that are not UTF-8 */
json_t *json_of_ids(const uint32_t *ids, size_t n);
