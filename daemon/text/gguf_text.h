/* gguf_text.h - the text side of a GGUF model: tokenizer and chat template out of its metadata.
 *
 * Called once at start, where no tokenizer.json or chat template lies beside the file. The tokenizer's metadata are
 * written down as the tokenizer.json that they were made from and go through the one loader that there is, with all of
 * its checks. */
#pragma once

#include "base/gguf.h"
#include "daemon/text/chat_template.h"
#include "daemon/text/tokenizer.h"

/* tokenizer.ggml.model must be gpt2 and tokenizer.ggml.pre one that is known. -ENOENT: a key is missing; -ENOTSUP,
 * -EBADMSG, -E2BIG, -EINVAL as the sentence says. */
int gguf_tokenizer_load(const struct gguf *g, struct tokenizer **ret, struct error *e);
/* As chat_template_load(): no template, or one that is not known, gives kind NONE, 0, and a sentence. */
int gguf_chat_template_load(const struct gguf *g, struct chat_template *ret, struct error *e);
