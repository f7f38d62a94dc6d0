/* budget.c - see budget.h. */
#include "tp/worker/budget.h"

#include "base/sizes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

uint64_t budget_pool_bytes(
        const struct k_shape *shape, const struct k_pool_options *o, struct k_pool_cost *ret_cost) {
    k_pool_cost(shape, o, ret_cost);
    return ret_cost->fixed_bytes + ret_cost->slot_bytes * o->slots + ret_cost->page_bytes * o->pages;
}

static uint32_t pages_for(const struct budget_request *q, uint32_t tokens) {
    return (tokens + q->extra_positions + PAGE_TOKENS - 1) / PAGE_TOKENS;
}

/* The most slots and pages within `limit` bytes for sequences of o->pages_per_slot pages: state first, but
 * never more than half of the memory as long as a sequence still lacks pages. False if not one page fits. */
static bool fit(const struct k_shape *shape, const struct budget_request *q, uint64_t limit,
        struct k_pool_options *o) {
    struct k_pool_cost cost;
    for (o->slots = q->max_num_seqs;; o->slots = o->slots / 2) {
        o->pages = q->pages ? q->pages : o->slots * o->pages_per_slot;
        if (budget_pool_bytes(shape, o, &cost) <= limit)
            return true;
        uint64_t state = cost.fixed_bytes + cost.slot_bytes * o->slots;
        if (o->slots == 1 || state <= limit / 2 || (q->pages && state < limit)) {
            if (state >= limit || !cost.page_bytes)
                return false;
            uint64_t pages = (limit - state) / cost.page_bytes;
            o->pages = pages < o->pages ? (uint32_t)pages : o->pages;
            return o->pages > 0;
        }
    }
}

static int refuse(const struct budget_request *q, uint64_t needed, struct error *e) {
    char graphs[64] = "";
    if (q->reserve_bytes)
        snprintf(graphs, sizeof(graphs), ", %s for graphs", SIZE_TEXT(q->reserve_bytes));
    return error_set(e, -ENOMEM,
            "the model does not fit: %s of weights, %s of scratch%s and at least %s for one sequence are needed, %s "
            "are free for this rank; use more ranks (--tensor-parallel-size), a smaller --max-num-batched-tokens, or a "
            "machine with more memory",
            SIZE_TEXT(q->weight_bytes), SIZE_TEXT(q->scratch_bytes), graphs, SIZE_TEXT(needed),
            SIZE_TEXT(q->memory_bytes));
}

/* Bytes are told whole: what is shown rounded, typed again, would be too little. */
static int refuse_pool(
        const struct budget_request *q, uint64_t asked, uint64_t needed, uint64_t left, struct error *e) {
    char part[64] = "";
    if (!q->pool_bytes)
        snprintf(part, sizeof(part), "%g of %s is ", q->pool_fraction, SIZE_TEXT(left));
    return error_set(e, -EDOM,
            "--kv-cache-memory: %s%s; at least %llu (%s) is needed for one sequence of %u tokens", part,
            SIZE_TEXT(asked), (unsigned long long)needed, SIZE_TEXT(needed),
            PAGE_TOKENS - q->extra_positions);
}

static void describe(const struct budget_request *q, uint64_t left, struct budget *b) {
    uint64_t slots = b->slot_bytes * (b->pool.slots + 1ull), pages = b->page_bytes * (b->pool.pages + 1ull);
    uint64_t used = q->weight_bytes + q->scratch_bytes + q->reserve_bytes + b->pool_bytes;
    char table[64] = "", graphs[64] = "", stages[64] = "";
    if (q->unit_stages_bytes)
        snprintf(stages, sizeof(stages), " (to move states of prefixes %s)", SIZE_TEXT(q->unit_stages_bytes));
    if (q->embedding_bytes)
        snprintf(table, sizeof(table), " (embedding %s%s)", SIZE_TEXT(q->embedding_bytes),
                q->kept ? ", kept for a restart" : "");
    if (q->reserve_bytes)
        snprintf(graphs, sizeof(graphs), ", for graphs %s", SIZE_TEXT(q->reserve_bytes));
    int n = snprintf(b->text, sizeof(b->text),
            "%s usable: weights %s%s, KV %u pages %s, state %u slots%s %s, scratch of %u rows %s%s%s; %s left",
            SIZE_TEXT(q->memory_bytes), SIZE_TEXT(q->weight_bytes), table, b->pool.pages, SIZE_TEXT(pages),
            b->pool.slots, q->state_dtype == K_F16 ? " of fp16" : "", SIZE_TEXT(slots), q->rows,
            SIZE_TEXT(q->scratch_bytes), stages, graphs,
            SIZE_TEXT(q->memory_bytes > used ? q->memory_bytes - used : 0));
    if (b->pool.slots < q->max_num_seqs && n > 0 && (size_t)n < sizeof(b->text))
        n += snprintf(b->text + n, sizeof(b->text) - (size_t)n, "; max-num-seqs %u clamped to %u",
                q->max_num_seqs, b->pool.slots);
    if (b->max_model_len < q->max_model_len && n > 0 && (size_t)n < sizeof(b->text))
        n += snprintf(b->text + n, sizeof(b->text) - (size_t)n, "; max-model-len %u clamped to %u",
                q->max_model_len, b->max_model_len);
    b->pool_clamped = q->pool_bytes > left ? left : 0;
    if (b->pool_clamped && n > 0 && (size_t)n < sizeof(b->text))
        snprintf(b->text + n, sizeof(b->text) - (size_t)n, "; kv-cache-memory %s clamped to %s",
                SIZE_TEXT(q->pool_bytes), SIZE_TEXT(left));
}

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

void budget_lessen(const struct k_shape *shape, const struct budget_request *q,
        const struct k_pool_options *pool, uint32_t max_model_len, uint32_t rank, struct budget *b) {
    struct k_pool_options *o = &b->pool;
    struct k_pool_cost cost;
    o->slots = least(o->slots, pool->slots);
    o->pages = least(o->pages, pool->pages);
    o->pages_per_slot = least(o->pages_per_slot, pool->pages_per_slot);
    b->max_model_len = least(b->max_model_len, max_model_len);
    b->pool_bytes = budget_pool_bytes(shape, o, &cost);
    describe(q, q->memory_bytes - q->weight_bytes - q->scratch_bytes - q->reserve_bytes, b);
    const size_t n = strlen(b->text);
    snprintf(b->text + n, sizeof(b->text) - n, "; no more than rank %u has room for", rank);
}

int budget_make(
        const struct k_shape *shape, const struct budget_request *q, struct budget *ret, struct error *e) {
    struct budget b = {.max_model_len = q->max_model_len};
    struct k_pool_options *o = &b.pool;
    *o = (struct k_pool_options){
            .slots = 1,
            .pages = 1,
            .pages_per_slot = 1,
            .slot_units = q->slot_units,
            .page_units = q->page_units,
            .kv_dtype = q->kv_dtype,
            .state_dtype = q->state_dtype,
            .drafts_max = q->drafts_max,
    };
    struct k_pool_cost cost;
    uint64_t least = budget_pool_bytes(shape, o, &cost), taken = 0;
    if (__builtin_add_overflow(q->weight_bytes, q->scratch_bytes, &taken) ||
            __builtin_add_overflow(taken, q->reserve_bytes, &taken) || taken >= q->memory_bytes ||
            q->memory_bytes - taken < least)
        return refuse(q, least, e);
    uint64_t left = q->memory_bytes - taken;
    uint64_t limit = q->pool_bytes ? q->pool_bytes : (uint64_t)(q->pool_fraction * (double)left);
    if (limit < least && (q->pool_bytes || q->fraction_asked))
        return refuse_pool(q, limit, least, left, e);
    if (limit > left)
        limit = left;
    if (limit < least)
        limit = least;

    o->pages_per_slot = pages_for(q, q->max_model_len);
    if (!fit(shape, q, limit, o)) { /* the page tables themselves may be what is too large */
        o->slots = o->pages = 1;
    }
    if (o->pages < o->pages_per_slot) { /* a sequence can never be longer than all pages together */
        o->pages_per_slot = o->pages;
        b.max_model_len = o->pages * PAGE_TOKENS - q->extra_positions;
    }
    b.pool_bytes = budget_pool_bytes(shape, o, &cost);
    b.slot_bytes = cost.slot_bytes;
    b.page_bytes = cost.page_bytes;
    describe(q, left, &b);
    *ret = b;
    return 0;
}
