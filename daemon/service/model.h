/* model.h - what the coordinator knows of the model it serves: names, tokenizer, chat template, defaults.
 *
 * Loaded once by coordinator_main, then read by every gRPC worker at once; nothing in it changes. The weights
 * are the workers' business. */
#pragma once

#include "base/error.h"
#include "daemon/service/generation_config.h"
#include "daemon/text/chat_template.h"
#include "daemon/text/tokenizer.h"

#include <stdbool.h>

#define SERVED_NAMES_MAX      16u
#define SERVED_NAME_BYTES_MAX 256u

struct model {
    char *path;
    char *names[SERVED_NAMES_MAX];
    size_t n_names;
    char architecture[64]; /* model_type of config.json */
    struct tokenizer *tokenizer;
    struct chat_template template;
    struct error template_error;         /* why chat is refused, when template.kind is NONE */
    struct generation_config generation; /* stop_ids: all that the checkpoint names */
};

/* Can clients ask for a model by this name? 0, or -EINVAL with a sentence. */
int model_check_name(const char *name, size_t bytes, struct error *e);
/* n_names may be 0: the last part of path is the name then. The sentence names the file that is wrong. */
int model_load(
        const char *path, const char *const *names, size_t n_names, struct model **ret, struct error *e);
struct model *model_free(struct model *m);
/* "" is any model. */
bool model_has_name(const struct model *m, const char *name, size_t bytes);
