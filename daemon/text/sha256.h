/* sha256.h - SHA-256 (FIPS 180-4), for telling which chat template a checkpoint has. Pure function. */
#pragma once

#include <stddef.h>

#define SHA256_HEX_BYTES 65 /* 64 lower-case digits and a NUL */

void sha256_hex(const void *data, size_t bytes, char ret[SHA256_HEX_BYTES]);
