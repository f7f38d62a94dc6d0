/* null_world.h - one null rank and a test that sends it records. For tests only. */
#pragma once

#include "proto/step/null_rank.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define WAIT 60000000000ull

struct world {
    struct step_ring *coordinator, *ring;
    struct null_rank *rank;
    struct step_writer *writer;
    uint64_t step;
};

static void open_null_world(struct world *w, const struct null_rank_options *o) {
    int fd;
    *w = (struct world){.writer = aligned_alloc(64, step_writer_bytes())};
    assert_non_null(w->writer);
    assert_int_equal(step_ring_create(1, 5, 6, &fd, NULL), 0);
    assert_int_equal(step_ring_attach(fd, STEP_RING_COORDINATOR, &w->coordinator, NULL), 0);
    assert_int_equal(step_ring_attach(fd, 0, &w->ring, NULL), 0);
    close(fd);
    assert_int_equal(null_rank_create(o, &w->rank, NULL), 0);
}

static void close_world(struct world *w) {
    null_rank_free(w->rank);
    step_ring_free(w->ring);
    step_ring_free(w->coordinator);
    free(w->writer);
}

static void begin(struct world *w, enum step_type type) {
    step_begin(w->writer, type, 5, 6, type == STEP_TYPE_RESET ? 0 : ++w->step);
}

/* Sends what was built; the answer's body, which is valid until the next. */
static const void *run(struct world *w, struct step_completion *ret) {
    const struct step_completion *c;
    const void *body;
    void *record;
    struct error e = {0};
    uint32_t bytes = step_writer_size(w->writer);
    assert_int_equal(step_ring_reserve(w->coordinator, bytes, &record), 0);
    assert_int_equal(step_end(w->writer, record, bytes), (int)bytes);
    step_ring_commit(w->coordinator, bytes);
    if (null_rank_serve(w->rank, w->ring, WAIT, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(step_ring_completion(w->coordinator, 0, &c, &body), 0);
    *ret = *c;
    step_ring_completion_release(w->coordinator, 0);
    return body;
}

static const struct step_outcome *run_ok(struct world *w) {
    struct step_completion c;
    const void *body = run(w, &c);
    if (c.status != STEP_STATUS_OK)
        fail_msg("%.*s", (int)c.n_outcomes, (const char *)body);
    if (c.type == STEP_TYPE_PLAN && c.n_outcomes > 0) {
        const struct step_outcome *o = body;
        assert_int_equal(c.n_outcomes, 1);
        assert_true(c.checksum == step_checksum(STEP_CHECKSUM_SEED, o, step_outcome_samples(o)));
    }
    return body;
}

static struct step_entry entry_of(uint32_t kind, uint32_t n_rows) {
    return (struct step_entry){.slot = 1,
            .kind = kind,
            .flags = STEP_ENTRY_SAMPLE,
            .n_rows = n_rows,
            .ids_at = STEP_NONE,
            .id_after = STEP_NONE,
            .rope_at = STEP_NONE,
            .mask_at = STEP_NONE,
            .drafts_at = STEP_NONE};
}
