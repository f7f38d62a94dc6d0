/* worker_plan.c - `shardd-worker-cpu --plan SIZE`: what a rank would take of so much memory, as `shardd doctor` asks.
 *
 * One object in one line. Always there:
 *   weight_bytes    on the device; embedding_bytes of it are the table's copy
 *   mapped_bytes    the table where the file is mapped, once for all ranks
 *   copied_bytes    host memory for what is copied out of a GGUF file
 *   scratch_bytes; token_bytes (of KV), page_bytes, slot_bytes, fixed_bytes of the pool
 *   max_model_len, max_num_seqs    as asked for, within the model's limit
 *   least_bytes     with less no rank starts
 *   wanted_bytes    for all these sequences at their full length
 *   memory_bytes, fits, text (a sentence)
 * Where it fits, as the rank would have it: slots, pages, pages_per_slot, served_model_len. Where there is no such
 * model: error alone. */
#include "tp/worker/worker.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static void put(json_t *o, const char *key, uint64_t value) {
    json_object_set_new(o, key, json_integer((json_int_t)value));
}

/* A sentence may name a file whose name is no UTF-8. */
static void put_text(json_t *o, const char *key, const char *text) {
    json_t *value = json_string(text);
    json_object_set_new(o, key, value ? value : json_string("a name in the model's folder is not UTF-8"));
}

static json_t *json_of(const struct rank_plan *p) {
    json_t *o = json_object();
    put(o, "memory_bytes", p->memory_bytes);
    put(o, "weight_bytes", p->weight_bytes);
    put(o, "embedding_bytes", p->embedding_bytes);
    put(o, "mapped_bytes", p->mapped_bytes);
    put(o, "copied_bytes", p->copied_bytes);
    put(o, "scratch_bytes", p->scratch_bytes);
    put(o, "token_bytes", p->pool.page_bytes / PAGE_TOKENS);
    put(o, "page_bytes", p->pool.page_bytes);
    put(o, "slot_bytes", p->pool.slot_bytes);
    put(o, "fixed_bytes", p->pool.fixed_bytes);
    put(o, "max_model_len", p->max_model_len);
    put(o, "max_num_seqs", p->max_num_seqs);
    put(o, "least_bytes", p->least_bytes);
    put(o, "wanted_bytes", p->wanted_bytes);
    json_object_set_new(o, "fits", json_boolean(p->fits));
    put_text(o, "text", p->fits ? p->budget.text : p->why.text);
    if (p->fits) {
        put(o, "slots", p->budget.pool.slots);
        put(o, "pages", p->budget.pool.pages);
        put(o, "pages_per_slot", p->budget.pool.pages_per_slot);
        put(o, "served_model_len", p->budget.max_model_len);
    }
    return o;
}

int worker_plan(const struct worker_options *options) {
    struct rank_plan p;
    struct error e = {0};
    struct rank_options rank = options->rank;
    rank.rank = options->ranks[0];
    int r = rank_plan(&rank, &p, &e);
    json_t *o = r < 0 ? json_object() : json_of(&p);
    if (r < 0)
        put_text(o, "error", e.text);
    json_dumpf(o, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(o);
    return r < 0 ? worker_exit_status(r) : EXIT_SUCCESS;
}
