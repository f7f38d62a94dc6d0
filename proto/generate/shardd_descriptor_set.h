/* shardd_descriptor_set.h - the published .proto files as a serialized google.protobuf.FileDescriptorSet,
 * imports before their users. Made at build time (generate.cmake); read by the reflection service. */
#pragma once

#include <stddef.h>

extern const unsigned char shardd_descriptor_set[];
extern const size_t shardd_descriptor_set_bytes;
