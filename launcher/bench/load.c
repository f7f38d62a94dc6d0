/* load.c - see load.h. */
#include "launcher/bench/load.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/statistics.h"
#include "shardd/v1/shardd.pb-c.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define INPUT_DEFAULT     512u
#define OUTPUT_DEFAULT    128u
#define REQUESTS_DEFAULT  100u
#define PROMPTS_BYTES_MAX (1ull << 30)

bool range_parse(const char *text, uint32_t max, struct range *ret) {
    struct range r;
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    const unsigned long long low = strtoull(text, &end, 10);
    unsigned long long high = low;
    if (*end == '-') {
        const char *second = end + 1;
        if (*second < '0' || *second > '9')
            return false;
        high = strtoull(second, &end, 10);
    }
    r = (struct range){(uint32_t)low, (uint32_t)high};
    if (*end || low < 1 || low > high || high > max)
        return false;
    *ret = r;
    return true;
}

static int set_range(
        const struct options *o, enum option_id id, uint32_t max, struct range *ret, struct error *e) {
    if (!options_given(o, id) || range_parse(options_text(o, id), max, ret))
        return 0;
    return error_set(e, -EINVAL, "--%s '%s': a number of tokens from 1 to %u, or two such as 100-900",
            option_table[id].name, options_text(o, id), max);
}

/* --- prompts of a file --- */

static int parse_line(
        const char *line, const char *file, size_t number, struct load_prompt *p, struct error *e) {
    json_t *o = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
    const json_t *text = json_object_get(o, "text"), *ids = json_object_get(o, "ids");
    int rc = 0;
    if (json_is_string(text)) {
        p->text = strdup(json_string_value(text));
        rc = p->text ? 0 : -ENOMEM;
    } else if (json_is_array(ids) && json_array_size(ids) > 0) {
        p->n_ids = json_array_size(ids);
        p->ids = calloc(p->n_ids, sizeof(p->ids[0]));
        rc = p->ids ? 0 : -ENOMEM;
        for (size_t i = 0; i < p->n_ids && rc == 0; i++) {
            const json_int_t id = json_integer_value(json_array_get(ids, i));
            if (!json_is_integer(json_array_get(ids, i)) || id < 0 || id > UINT32_MAX)
                rc = -EINVAL;
            p->ids[i] = (uint32_t)id;
        }
    } else
        rc = -EINVAL;
    json_decref(o);
    if (rc == -ENOMEM)
        return error_set(e, rc, "no memory for the prompts");
    return rc < 0 ? error_set(e, rc, "%s:%zu: {\"text\": \"...\"} or {\"ids\": [...]} is expected", file,
                            number)
                  : 0;
}

/* Empty lines are none. */
static int read_prompts(const char *file, struct load *l, struct error *e) {
    char *all = NULL, *line;
    size_t bytes = 0, lines = 1, number = 0;
    int rc = file_read(file, PROMPTS_BYTES_MAX, &all, &bytes, e);
    const size_t n = strlen(file);
    const bool json = n > 6 && strcmp(file + n - 6, ".jsonl") == 0;
    if (rc < 0)
        return error_prefix(e, rc, "--prompts");
    for (size_t i = 0; i < bytes; i++)
        lines += all[i] == '\n';
    l->prompts = calloc(lines, sizeof(l->prompts[0]));
    if (!l->prompts)
        rc = error_set(e, -ENOMEM, "no memory for the prompts");
    for (char *rest = all; rc == 0 && (line = strsep(&rest, "\n"));) {
        number++;
        line[strcspn(line, "\r")] = '\0';
        if (!*line)
            continue;
        struct load_prompt *p = &l->prompts[l->n_prompts++];
        if (json)
            rc = parse_line(line, file, number, p, e);
        else if (!(p->text = strdup(line)))
            rc = error_set(e, -ENOMEM, "no memory for the prompts");
    }
    free(all);
    return rc == 0 && l->n_prompts == 0
                   ? error_set(e, -EINVAL, "--prompts %s: there is no prompt in it", file)
                   : rc;
}

/* --- the load --- */

int load_make(const struct options *o, struct load *ret, struct error *e) {
    *ret = (struct load){.n = REQUESTS_DEFAULT,
            .rate = options_given(o, OPT_RATE) ? o->values[OPT_RATE].real : 0,
            .input = {INPUT_DEFAULT, INPUT_DEFAULT},
            .output = {OUTPUT_DEFAULT, OUTPUT_DEFAULT},
            .seed = options_number(o, OPT_SEED)};
    int rc = set_range(o, OPT_INPUT_LEN, CONTEXT_MAX, &ret->input, e);
    if (rc == 0)
        rc = set_range(o, OPT_OUTPUT_LEN, NEW_TOKENS_MAX, &ret->output, e);
    if (rc == 0 && options_given(o, OPT_PROMPTS) && options_given(o, OPT_INPUT_LEN))
        return error_set(e, -EINVAL, "--input-len is for random prompts: drop it, or --prompts");
    if (rc == 0 && options_given(o, OPT_PROMPTS)) {
        rc = read_prompts(options_text(o, OPT_PROMPTS), ret, e);
        ret->n = ret->n_prompts;
    }
    if (options_given(o, OPT_REQUESTS))
        ret->n = options_number(o, OPT_REQUESTS);
    return rc;
}

void load_done(struct load *l) {
    for (size_t i = 0; i < l->n_prompts; i++) {
        free(l->prompts[i].text);
        free(l->prompts[i].ids);
    }
    free(l->prompts);
    *l = (struct load){0};
}

uint64_t load_gap_ns(const struct load *l, uint64_t *state) {
    return l->rate > 0 ? (uint64_t)(statistics_gap(state, l->rate) * 1e9) : 0;
}

static uint32_t draw(uint64_t *state, const struct range *r) {
    return r->low + (uint32_t)(splitmix64_next(state) % (r->high - r->low + 1ull));
}

/* What is sampled with is the service's choice, but for what was given; an answer is as long as was asked for. */
static void set_params(const struct options *o, uint32_t tokens, uint64_t seed, Shardd__V1__SamplingParams *s,
        Shardd__V1__StoppingParams *stop) {
    shardd__v1__sampling_params__init(s);
    shardd__v1__stopping_params__init(stop);
    s->seed = seed;
    s->_seed_case = SHARDD__V1__SAMPLING_PARAMS___SEED_SEED;
    if (options_given(o, OPT_TEMPERATURE)) {
        s->temperature = (float)o->values[OPT_TEMPERATURE].real;
        s->_temperature_case = SHARDD__V1__SAMPLING_PARAMS___TEMPERATURE_TEMPERATURE;
    }
    if (options_given(o, OPT_TOP_K)) {
        s->top_k = (uint32_t)options_number(o, OPT_TOP_K);
        s->_top_k_case = SHARDD__V1__SAMPLING_PARAMS___TOP_K_TOP_K;
    }
    if (options_given(o, OPT_TOP_P)) {
        s->top_p = (float)o->values[OPT_TOP_P].real;
        s->_top_p_case = SHARDD__V1__SAMPLING_PARAMS___TOP_P_TOP_P;
    }
    if (options_given(o, OPT_MIN_P)) {
        s->min_p = (float)o->values[OPT_MIN_P].real;
        s->_min_p_case = SHARDD__V1__SAMPLING_PARAMS___MIN_P_MIN_P;
    }
    stop->max_tokens = tokens;
    stop->_max_tokens_case = SHARDD__V1__STOPPING_PARAMS___MAX_TOKENS_MAX_TOKENS;
    stop->ignore_eos = true;
}

int load_request(const struct load *l, const struct options *o, size_t at, uint32_t vocab_size,
        uint8_t **ret_bytes, size_t *ret_n, struct error *e) {
    Shardd__V1__GenerateRequest request = SHARDD__V1__GENERATE_REQUEST__INIT;
    Shardd__V1__SamplingParams sampling;
    Shardd__V1__StoppingParams stopping;
    Shardd__V1__OutputOptions output = SHARDD__V1__OUTPUT_OPTIONS__INIT;
    Shardd__V1__TokenIds ids = SHARDD__V1__TOKEN_IDS__INIT;
    const struct load_prompt *p = l->n_prompts ? &l->prompts[at % l->n_prompts] : NULL;
    const char *model = options_text(o, OPT_MODEL_NAME);
    uint64_t state = splitmix64(l->seed) ^ splitmix64(at);
    uint32_t *random = NULL;
    const uint32_t n_input = draw(&state, &l->input), n_output = draw(&state, &l->output);
    set_params(o, n_output, splitmix64_next(&state) >> 1, &sampling, &stopping);
    output.raw = true;
    request.sampling = &sampling;
    request.stopping = &stopping;
    request.output = &output;
    if (model)
        request.model = (ProtobufCBinaryData){.len = strlen(model), .data = (uint8_t *)(uintptr_t)model};
    if (p && p->text) {
        request.input_case = SHARDD__V1__GENERATE_REQUEST__INPUT_TEXT;
        request.text = (ProtobufCBinaryData){.len = strlen(p->text), .data = (uint8_t *)p->text};
    } else {
        random = p ? NULL : calloc(n_input, sizeof(random[0]));
        if (!p && !random)
            return error_set(e, -ENOMEM, "no memory for a prompt");
        for (uint32_t i = 0; !p && i < n_input; i++)
            random[i] = (uint32_t)(splitmix64_next(&state) % vocab_size);
        ids.ids = p ? p->ids : random;
        ids.n_ids = p ? p->n_ids : n_input;
        request.input_case = SHARDD__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
        request.token_ids = &ids;
    }
    *ret_n = shardd__v1__generate_request__get_packed_size(&request);
    *ret_bytes = malloc(*ret_n + 1);
    if (*ret_bytes)
        shardd__v1__generate_request__pack(&request, *ret_bytes);
    free(random);
    return *ret_bytes ? 0 : error_set(e, -ENOMEM, "no memory for a request");
}
