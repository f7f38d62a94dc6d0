/* synth_chat_template.h - models/chat_template.jinja, embedded at build time, for the folders that synth
 * writes. */
#pragma once

#include <stddef.h>

extern const unsigned char synth_chat_template[];
extern const size_t synth_chat_template_bytes;
