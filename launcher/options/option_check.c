/* option_check.c - settings that contradict each other; each pair is refused with a sentence that names both. */
#include "launcher/devices.h"
#include "launcher/options/options.h"

#include <errno.h>
#include <string.h>

#define GIVEN_MAX                (OPTION_PLACE_MAX + 48u)
#define SPECULATIVE_TOKENS_ASKED "7"

struct conflict {
    unsigned verbs;
    enum option_id a, b;
    const char *why; /* a sentence's second half */
};

static const struct conflict conflicts[] = {
        {VERB_ASKS, OPT_SERVER, OPT_MODEL,
                "--server asks a running service, --model DIR starts a private one: give one of them"},
        {VERB_GENERATE, OPT_CHAT, OPT_PROMPT_TOKEN_IDS,
                "a chat message is text, not token ids: drop one of them"},
        {VERB_GENERATE, OPT_CHAT, OPT_PARSE_SPECIAL,
                "control tokens in a chat message always stay plain text"},
        {VERB_GENERATE, OPT_PROMPT_TOKEN_IDS, OPT_PARSE_SPECIAL,
                "token ids are taken as they are: drop --parse-special"},
};

/* Settings of a service make no sense when an existing one is asked. */
static int check_service_settings(const struct options *o, struct error *e) {
    if (options_given(o, OPT_MODEL) || options_given(o, OPT_CONFIG))
        return 0;
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        if (!(info->verbs & VERB_SERVE) || info->id == OPT_SEED || info->id == OPT_HELP ||
                !options_given(o, info->id))
            continue;
        return error_set(e, -EINVAL,
                "--%s sets up a service, but %s is only asked; give --model DIR to start a private "
                "one, or drop it",
                info->name, options_text(o, OPT_SERVER));
    }
    return 0;
}

static int check_asks(const struct options *o, struct error *e) {
    const struct option_value *top_p = &o->values[OPT_TOP_P], *penalty = &o->values[OPT_REPETITION_PENALTY];
    if (options_given(o, OPT_TOP_P) && top_p->real <= 0)
        return error_set(e, -EINVAL, "--top-p: 0 leaves no token to choose from; 1 turns it off");
    if (options_given(o, OPT_REPETITION_PENALTY) && penalty->real <= 0)
        return error_set(e, -EINVAL, "--repetition-penalty: it must be above 0; 1 turns it off");
    if (options_given(o, OPT_MAX_TOKENS) && options_given(o, OPT_MIN_TOKENS) &&
            options_number(o, OPT_MIN_TOKENS) > options_number(o, OPT_MAX_TOKENS))
        return error_set(e, -EINVAL, "--min-tokens %s is more than --max-tokens %s",
                options_text(o, OPT_MIN_TOKENS), options_text(o, OPT_MAX_TOKENS));
    if (o->verb == VERB_GENERATE && !options_given(o, OPT_CHAT) && options_given(o, OPT_SYSTEM))
        return error_set(e, -EINVAL, "--system needs --chat: a plain prompt has no system message");
    if (o->verb == VERB_GENERATE && !options_given(o, OPT_CHAT) && options_given(o, OPT_THINKING))
        return error_set(
                e, -EINVAL, "--thinking needs --chat: a plain prompt has no template to ask for reasoning");
    if (options_number(o, OPT_ANSWERS) > 1 && !options_given(o, OPT_JSON))
        return error_set(e, -EINVAL, "--answers shows several answers with --json only; add it");
    if (options_given(o, OPT_LOGPROBS) && !options_given(o, OPT_JSON))
        return error_set(e, -EINVAL, "--logprobs needs --json: plain output has no place for them");
    if (options_given(o, OPT_PROMPT_LOGPROBS) && !options_given(o, OPT_JSON))
        return error_set(e, -EINVAL, "--prompt-logprobs needs --json: plain output has no place for them");
    if (options_given(o, OPT_ECHO) && options_given(o, OPT_TOKEN_IDS) && !options_given(o, OPT_JSON))
        return error_set(e, -EINVAL, "--echo is about text, and --token-ids prints none; give one of them");
    if (options_given(o, OPT_ECHO) && options_given(o, OPT_CHAT) && !options_given(o, OPT_RAW))
        return error_set(e, -EINVAL, "--echo gives the prompt of a chat as plain text; give --raw too");
    return check_service_settings(o, e);
}

/* A setting and its value, as a person gave them. */
static const char *given_as(const struct options *o, enum option_id id, char text[GIVEN_MAX]) {
    const struct option_value *v = &o->values[id];
    char place[OPTION_PLACE_MAX];
    snprintf(text, GIVEN_MAX, "%s %.40s", option_place(&option_table[id], v->source, v->where, place),
            options_text(o, id));
    return text;
}

/* Who names GPUs wants to be served by them, by one rank on each. */
static int check_devices(struct options *o, struct error *e) {
    const struct option_value *devices = &o->values[OPT_DEVICES], *device = &o->values[OPT_DEVICE];
    const uint32_t named = devices_named(devices->text);
    const bool other = strcmp(device->text, "cpu") == 0 || strcmp(device->text, "null") == 0;
    char a[GIVEN_MAX], b[GIVEN_MAX], n[16];
    int rc = 0;
    if (!named || (other && device->source > devices->source))
        return 0;
    if (other)
        return error_set(e, -EINVAL, "%s names GPUs, and %s takes none: drop one of them",
                given_as(o, OPT_DEVICES, a), given_as(o, OPT_DEVICE, b));
    snprintf(n, sizeof(n), "%u", named);
    if (!options_given(o, OPT_DEVICE))
        rc = options_replace(o, OPT_DEVICE, "cuda", e);
    if (rc == 0 && !options_given(o, OPT_TENSOR_PARALLEL_SIZE))
        rc = named == 1 || named == 2 || named == 4 || named == 8
                     ? options_replace(o, OPT_TENSOR_PARALLEL_SIZE, n, e)
                     : error_set(e, -EINVAL,
                               "%s names %u GPUs, and every layer is split in 1, 2, 4 or 8 equal parts",
                               given_as(o, OPT_DEVICES, a), named);
    return rc;
}

/* Who asks for a drafter wants drafts. */
static int check_speculation(struct options *o, struct error *e) {
    bool asked = options_given(o, OPT_SPECULATION) && strcmp(options_text(o, OPT_SPECULATION), "off") != 0;
    if (!asked || options_given(o, OPT_SPECULATIVE_TOKENS))
        return 0;
    return options_replace(o, OPT_SPECULATIVE_TOKENS, SPECULATIVE_TOKENS_ASKED, e);
}

static int check_serve(struct options *o, struct error *e) {
    int rc = check_speculation(o, e);
    if (rc < 0)
        return rc;
    uint64_t tp = options_number(o, OPT_TENSOR_PARALLEL_SIZE),
             hosted = options_number(o, OPT_RANKS_PER_PROCESS);
    char a[GIVEN_MAX], b[GIVEN_MAX];
    if (tp != 1 && tp != 2 && tp != 4 && tp != 8)
        return error_set(e, -EINVAL, "%s: every layer is split in 1, 2, 4 or 8 equal parts",
                given_as(o, OPT_TENSOR_PARALLEL_SIZE, a));
    if (hosted > tp || tp % hosted != 0)
        return error_set(e, -EINVAL, "%s does not divide %s", given_as(o, OPT_RANKS_PER_PROCESS, a),
                given_as(o, OPT_TENSOR_PARALLEL_SIZE, b));
    uint64_t seqs = options_number(o, OPT_MAX_NUM_SEQS), rows = options_number(o, OPT_MAX_NUM_BATCHED_TOKENS);
    if (rows == 0 || seqs <= rows) /* 0: chosen by the worker, for these sequences */
        return 0;
    if (options_given(o, OPT_MAX_NUM_SEQS))
        return error_set(e, -EINVAL,
                "%s is less than %s: a step must hold one token of every running sequence; raise the first or "
                "lower the second",
                given_as(o, OPT_MAX_NUM_BATCHED_TOKENS, a), given_as(o, OPT_MAX_NUM_SEQS, b));
    /* Only one of them was chosen by a person: the default of the other follows. */
    return options_replace(o, OPT_MAX_NUM_SEQS, options_text(o, OPT_MAX_NUM_BATCHED_TOKENS), e);
}

/* Settings of one of the two things that bench measures, given while it measures the other. */
static int check_bench(const struct options *o, struct error *e) {
    static const enum option_id of_both[] = {OPT_SEED, OPT_LOG_LEVEL, OPT_JSON_FILE, OPT_TEMPERATURE,
            OPT_TOP_K, OPT_TOP_P, OPT_MIN_P, OPT_HELP, OPT_ASKED_SERVICE};
    const bool service = options_given(o, OPT_ASKED_SERVICE);
    if (o->n_positional)
        return error_set(e, -EINVAL, "'%s' is too much: name a model with --model, or a service with --serve",
                o->positional[0]);
    if (!service && !options_given(o, OPT_MODEL))
        return error_set(e, -EINVAL,
                "nothing to measure is given: --model DIR, or --serve ADDRESS for a running service");
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct option_info *info = &option_table[i];
        bool both = !options_given(o, info->id);
        for (size_t k = 0; k < sizeof(of_both) / sizeof(of_both[0]); k++)
            both |= info->id == of_both[k];
        const bool ranks = (info->verbs & VERB_SERVE) || (info->to & TO_BENCH);
        if (!both && ranks == service)
            return error_set(e, -EINVAL,
                    service ? "--%s is for measuring a model here, without --serve"
                            : "--%s is for measuring a service, with --serve",
                    info->name);
    }
    return 0;
}

int options_check(struct options *o, struct error *e) {
    for (size_t i = 0; i < sizeof(conflicts) / sizeof(conflicts[0]); i++) {
        const struct conflict *c = &conflicts[i];
        /* A flag simply wins over an environment variable; two of one kind are a contradiction. */
        if ((c->verbs & o->verb) && options_given(o, c->a) &&
                o->values[c->a].source == o->values[c->b].source)
            return error_set(e, -EINVAL, "%s and %s contradict each other: %s", o->values[c->a].where,
                    o->values[c->b].where, c->why);
    }
    char given[GIVEN_MAX];
    if (options_number(o, OPT_MAX_MODEL_LEN) == 1)
        return error_set(e, -EINVAL,
                "%s: a prompt and an answer have 2 tokens at least; 0 is what the model and the memory allow",
                given_as(o, OPT_MAX_MODEL_LEN, given));
    int rc = o->verb & (VERB_SETTINGS | VERB_BENCH) ? check_devices(o, e) : 0;
    if (rc < 0)
        return rc;
    if (o->verb & VERB_SETTINGS)
        return check_serve(o, e);
    if (o->verb & VERB_ASKS)
        return check_asks(o, e);
    if (o->verb == VERB_BENCH)
        return check_bench(o, e);
    return 0;
}
