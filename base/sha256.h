/* sha256.h - SHA-256 (FIPS 180-4), for telling which chat template a checkpoint has, and what is in which record of the
 * prefix cache's folder. Pure functions. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SHA256_HEX_BYTES 65 /* 64 lower-case digits and a NUL */

void sha256_words(const void *data, size_t bytes, uint32_t ret[8]);
void sha256_hex(const void *data, size_t bytes, char ret[SHA256_HEX_BYTES]);
