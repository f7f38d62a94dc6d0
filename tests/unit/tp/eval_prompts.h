/* eval_prompts.h - the held-out prompts of tests/eval/prompts.jsonl with the greedy replies that transformers gave to
 * them, as token ids, for tests of models/shardd-tiny. */
#pragma once

#include "base/file.h"
#include "base/json_pull.h"
#include "model_test.h"

#define PROMPTS       TESTS_DIR "/eval/prompts.jsonl"
#define MODEL         TESTS_DIR "/../models/shardd-tiny"
#define PROMPTS_BYTES (16u << 20)
#define TOKENS_MAX    4096u

struct record {
    char group[64];
    uint32_t ids[TOKENS_MAX]; /* the prompt, then the reply */
    uint32_t n_prompt, n_reply;
    uint32_t good, tried; /* as recorded */
    uint32_t seen;        /* bits: which of the fields were there */
};

static inline uint32_t read_u32(struct json_pull *p) {
    struct error e = {0};
    uint64_t value = 0;
    must(json_pull_expect(p, PULL_NUMBER, &e), &e);
    must(json_pull_u64(p, &value, &e), &e);
    assert_true(value <= UINT32_MAX);
    return (uint32_t)value;
}

/* An array of token ids; returns how many. */
static inline uint32_t read_ids(struct json_pull *p, uint32_t *ids, uint32_t max) {
    struct error e = {0};
    uint32_t n = 0;
    int event;
    must(json_pull_expect(p, PULL_ARRAY_BEGIN, &e), &e);
    while ((event = json_pull_next(p, &e)) == PULL_NUMBER) {
        uint64_t id = 0;
        must(json_pull_u64(p, &id, &e), &e);
        assert_true(n < max && id <= UINT32_MAX);
        ids[n++] = (uint32_t)id;
    }
    must(event, &e);
    assert_int_equal(event, PULL_ARRAY_END);
    return n;
}

/* One line of the file. prompt_ids come before reply_ids. */
static inline void read_record(const char *line, size_t bytes, struct record *r) {
    struct json_pull p;
    struct error e = {0};
    memset(r, 0, sizeof(*r));
    json_pull_init(&p, line, bytes, "prompts.jsonl");
    must(json_pull_expect(&p, PULL_OBJECT_BEGIN, &e), &e);
    int event;
    while ((event = json_pull_next(&p, &e)) == PULL_KEY) {
        if (json_pull_is(&p, "group")) {
            must(json_pull_expect(&p, PULL_STRING, &e), &e);
            snprintf(r->group, sizeof(r->group), "%.*s", (int)p.string_bytes, p.string);
            r->seen |= 1;
        } else if (json_pull_is(&p, "prompt_ids")) {
            assert_int_equal(r->n_reply, 0);
            r->n_prompt = read_ids(&p, r->ids, TOKENS_MAX);
            r->seen |= 2;
        } else if (json_pull_is(&p, "reply_ids")) {
            r->n_reply = read_ids(&p, r->ids + r->n_prompt, TOKENS_MAX - r->n_prompt);
            r->seen |= 4;
        } else if (json_pull_is(&p, "mtp_good")) {
            r->good = read_u32(&p);
            r->seen |= 8;
        } else if (json_pull_is(&p, "mtp_tried")) {
            r->tried = read_u32(&p);
            r->seen |= 16;
        } else {
            must(json_pull_skip(&p, &e), &e);
        }
    }
    must(event, &e);
    json_pull_done(&p);
    assert_int_equal(r->seen, 31);
    assert_true(r->n_prompt > 0 && r->n_reply > 0);
}
