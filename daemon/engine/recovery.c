/* recovery.c - rank groups come and go: channels, RESET, and what happens to the sequences when a group dies.
 *
 * A sequence's tokens are all on the host, so a death costs nobody a request: it goes back to waiting and is
 * replayed as PROMPT rows. But a sequence whose rows were being computed at the death may be what killed the
 * group. It is a suspect, and the scheduler tries each suspect alone; only a group that dies while it computes
 * the rows of one alone convicts it (ENGINE_FINISH_FAULT). Where the death was a signal that anybody may have
 * sent, it takes two. However often a sequence was among others at a death, that ends nothing; it makes its
 * next trial longer. */
#include "daemon/engine/recovery.h"

#include "daemon/engine/disk.h"
#include "daemon/engine/draft.h"
#include "daemon/engine/flight.h"
#include "daemon/engine/report.h"
#include "daemon/engine/reuse.h"
#include "daemon/engine/sequence.h"
#include "daemon/engine/wake.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* The group died while it computed the rows of s, if it was blamed. Returns whether that convicts it. */
static bool judge(struct engine *g, struct sequence *s, bool alone, bool from_outside) {
    if (!s->blamed)
        return false;
    s->blamed = false;
    s->deaths++;
    if (!s->suspect) {
        s->suspect = true;
        g->n_suspects++;
    }
    bool convicted = alone && (!from_outside || s->killed_alone);
    s->killed_alone |= alone;
    return convicted;
}

/* One sequence that had a slot when the group died. */
static void survive(struct engine *g, struct sequence *s, bool alone, bool from_outside) {
    if (s->state == SEQUENCE_ENDING) {
        sequence_uprooted(g, s);
        return;
    }
    bool convicted = judge(g, s, alone, from_outside);
    sequence_uprooted(g, s);
    if (!convicted) {
        g->now.replays_total++;
        return;
    }
    engine_log(g, LOG_LEVEL_ERROR,
            "the rank group died again while it computed request \"%s\" alone (%u deaths in all): it is ended",
            s->stream->request_id, s->deaths);
    sequence_finish(g, s, ENGINE_FINISH_FAULT,
            "the workers failed again while they computed this request alone: it is not tried again");
}

void recovery_lost(struct engine *g, const struct death *death) {
    if (g->ring == NULL)
        return; /* known already: its fault was seen before the launcher said so */
    uint32_t n = g->n_running, n_blamed = flight_blame(g, death);
    engine_log(g, LOG_LEVEL_WARNING,
            "the rank group of epoch %llu is lost while %s, with %u sequences running, %u of them being computed",
            (unsigned long long)step_ring_group_epoch(g->ring), engine_state_name(g->state), n, n_blamed);
    struct sequence *quarantine = g->quarantine;
    g->n_running = 0;
    g->quarantine = NULL;
    for (uint32_t i = 0; i < n; i++)
        survive(g, g->running[i], g->running[i] == quarantine, death->from_outside);
    pools_done(&g->pools);
    g->evictions_before += g->prefix.evictions;
    disk_end(g);
    prefix_done(&g->prefix);
    flight_forget(g);
    wake_set_ring(g, NULL);
    if (g->state == STATE_SERVING)
        engine_enter(g, STATE_RECOVERING);
}

void recovery_fault(struct engine *g, const struct death *death, const char *text) {
    g->now.step_errors_total++;
    engine_log(g, LOG_LEVEL_ERROR, "rank %u: %s", death->rank, text);
    engine_tell_launcher(g, CONTROL_STUCK, death->rank, text);
    recovery_lost(g, death);
}

static const struct death nobodys = {.blame = BLAME_NOBODY};

void recovery_channel(struct engine *g, const struct control_message *m, uint64_t now) {
    struct step_ring *ring;
    struct error e;
    if (g->state == STATE_FAILED)
        return;
    recovery_lost(g, &nobodys); /* a new channel ends the old one, announced or not */
    int r = step_ring_attach(m->fds[0], STEP_RING_COORDINATOR, &ring, &e);
    if (r == 0 && (step_ring_group_epoch(ring) != m->group_epoch ||
                          step_ring_coord_epoch(ring) != m->coord_epoch)) {
        r = error_set(&e, -EBADMSG, "the channel's epochs %llu/%llu are not those of its ring, %llu/%llu",
                (unsigned long long)m->group_epoch, (unsigned long long)m->coord_epoch,
                (unsigned long long)step_ring_group_epoch(ring),
                (unsigned long long)step_ring_coord_epoch(ring));
        step_ring_free(ring);
    }
    if (r < 0) {
        engine_log(g, LOG_LEVEL_ERROR, "%s", e.text);
        engine_tell_launcher(g, CONTROL_FAULT, 0, e.text);
        return;
    }
    wake_set_ring(g, ring);
    g->n_ranks = step_ring_ranks(ring);
    memset(g->watch, 0, sizeof(g->watch));
    g->step_next = 0;
    if (flight_send_bare(g, STEP_TYPE_RESET, now) < 0)
        recovery_fault(g, &nobodys, "the step ring takes no records");
}

/* --- the answers to RESET --- */

static int check_geometry(
        const struct engine *g, const struct step_geometry *all, uint32_t i, struct error *e) {
    const struct step_geometry *a = &all[i];
    if (a->rank != i || a->tp != g->n_ranks)
        return error_set(e, -EPROTO, "rank %u says that it is rank %u of %u, the group has %u", i, a->rank,
                a->tp, g->n_ranks);
    if (a->fingerprint != all[0].fingerprint || a->vocab_size != all[0].vocab_size ||
            a->has_mtp != all[0].has_mtp || a->model_has_mtp != all[0].model_has_mtp)
        return error_set(e, -EPROTO,
                "rank %u has other weights than rank 0 (fingerprint %016llx, %016llx): start all "
                "ranks with the same model",
                i, (unsigned long long)a->fingerprint, (unsigned long long)all[0].fingerprint);
    if (a->slots == 0 || a->slots > SEQS_MAX || a->pages == 0 || a->pages > INT32_MAX || a->vocab_size == 0 ||
            a->rows_max == 0 || a->entries_max == 0 || a->max_model_len < 2 ||
            a->max_model_len > CONTEXT_MAX || a->pages_per_slot == 0 ||
            a->pages_per_slot > STEP_SLOT_PAGES_MAX || a->drafts_max > DRAFT_MAX)
        return error_set(e, -EPROTO, "rank %u: its slots, pages or limits are 0 or out of range", i);
    if (g->geometry_known &&
            (a->fingerprint != g->geometry.fingerprint || a->vocab_size != g->geometry.vocab_size))
        return error_set(e, -EPROTO,
                "rank %u came back with other weights (fingerprint %016llx, before %016llx): "
                "restart the service to change the model",
                i, (unsigned long long)a->fingerprint, (unsigned long long)g->geometry.fingerprint);
    return 0;
}

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* What every rank can do. */
static struct step_geometry merge(const struct engine *g, const struct step_geometry *all) {
    struct step_geometry m = all[0];
    for (uint32_t i = 1; i < g->n_ranks; i++) {
        m.slots = least(m.slots, all[i].slots);
        m.pages = least(m.pages, all[i].pages);
        m.pages_per_slot = least(m.pages_per_slot, all[i].pages_per_slot);
        m.rows_max = least(m.rows_max, all[i].rows_max);
        m.entries_max = least(m.entries_max, all[i].entries_max);
        m.slot_units = least(m.slot_units, all[i].slot_units);
        m.page_units = least(m.page_units, all[i].page_units);
        for (uint32_t k = 0; k < STEP_STORED_KINDS; k++)
            m.stored[k] = least(m.stored[k], all[i].stored[k]);
        m.drafts_max = least(m.drafts_max, all[i].drafts_max);
        m.max_model_len = least(m.max_model_len, all[i].max_model_len);
        m.weight_bytes += all[i].weight_bytes;
        m.pool_bytes += all[i].pool_bytes;
    }
    m.max_model_len = least(m.max_model_len, m.pages_per_slot * PAGE_TOKENS);
    if (g->o.max_model_len > 0)
        m.max_model_len = least(m.max_model_len, g->o.max_model_len);
    return m;
}

static void publish(struct engine *g, const struct step_geometry *all) {
    const struct step_geometry *m = &g->geometry;
    pthread_mutex_lock(&g->registry_lock);
    g->limits = (struct limits){
            .max_model_len = m->max_model_len,
            .vocab_size = m->vocab_size,
            .pages = m->pages,
            .pages_per_slot = m->pages_per_slot,
            .has_mtp = m->has_mtp,
            .drafts_max = m->drafts_max,
    };
    pthread_mutex_unlock(&g->registry_lock);
    g->now.tp = g->n_ranks;
    g->now.max_num_seqs = least(g->o.max_num_seqs, m->slots);
    g->now.max_num_batched_tokens = least(g->o.max_num_batched_tokens, m->rows_max);
    g->now.max_model_len = m->max_model_len;
    g->now.vocab_size = m->vocab_size;
    g->now.pages_total = m->pages;
    g->now.slots_total = m->slots;
    g->now.group_epoch = step_ring_group_epoch(g->ring);
    g->now.coord_epoch = step_ring_coord_epoch(g->ring);
    g->now.weight_fingerprint = m->fingerprint;
    g->now.weight_bytes = m->weight_bytes;
    g->now.drafts_max = m->drafts_max;
    g->now.model_has_mtp = m->model_has_mtp != 0;
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        memcpy(g->now.devices[i], all[i].device, sizeof(g->now.devices[i]));
        g->now.devices[i][sizeof(g->now.devices[i]) - 1] = 0;
    }
}

bool recovery_fits(const struct engine *g, const struct sequence *s) {
    struct pools p = {.n_mtp = g->geometry.has_mtp ? 1 : 0, .pages_per_slot = g->geometry.pages_per_slot};
    uint32_t total = s->n_prompt + s->max_tokens;
    return total <= g->geometry.max_model_len && pools_pages_for(&p, total - 1) <= g->geometry.pages;
}

/* A group with smaller pools may not hold what the old one held. */
static void drop_what_no_longer_fits(struct engine *g) {
    uint32_t i = 0;
    while (i < g->waiting.n) {
        struct sequence *s = g->waiting.items[i];
        if (recovery_fits(g, s)) {
            i++;
            continue;
        }
        sequence_finish(g, s, ENGINE_FINISH_FAULT,
                "the workers came back with less memory, and this request no longer fits");
        i = 0; /* the heap has moved */
    }
}

void recovery_ready(struct engine *g, const struct step_geometry *all) {
    struct error e;
    int r = 0;
    bool served =
            g->geometry_known; /* another process in our place would serve what came back: a person decides */
    for (uint32_t i = 0; i < g->n_ranks && r == 0; i++)
        r = check_geometry(g, all, i, &e);
    if (r == 0) {
        g->geometry = merge(g, all);
        g->geometry_known = true;
        r = pools_init(&g->pools, &g->geometry);
        if (r == 0)
            r = reuse_begin(g);
        if (r == 0)
            r = disk_begin(g);
        if (r < 0)
            error_set(&e, r, "no memory for the bookkeeping of %u slots and %u pages", g->geometry.slots,
                    g->geometry.pages);
    }
    if (r < 0) {
        engine_log(g, LOG_LEVEL_ERROR, "%s", e.text);
        engine_tell_launcher(g, CONTROL_FAULT, served ? CONTROL_FAULT_STAYS : 0, e.text);
        recovery_lost(g, &nobodys);
        engine_enter(g, STATE_FAILED);
        while (g->waiting.n > 0)
            sequence_finish(g, g->waiting.items[0], ENGINE_FINISH_FAULT, e.text);
        return;
    }
    draft_setup(g);
    publish(g, all);
    drop_what_no_longer_fits(g);
    engine_log(g, LOG_LEVEL_NOTICE,
            "the rank group of epoch %llu is ready: %u ranks, %u slots, %u pages, %u units for prefixes and %u for "
            "their pages, %u to replay",
            (unsigned long long)g->now.group_epoch, g->n_ranks, g->geometry.slots, g->geometry.pages,
            g->prefix.n_units, g->prefix.n_page_units, g->waiting.n);
    engine_enter(g, STATE_SERVING);
}
