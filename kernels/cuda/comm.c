/* comm.c - the group of ranks that share a model: how they meet, and how each reaches the others' inboxes.
 *
 * Called by tp/ at the start of a rank, and by the collective operations of product.c and head.c.
 * A rank is a thread or a process of this host, with a device of its own or one that it shares. They meet in the region
 * that tp/ maps into all of them: each says where its inbox is, opens the others', and says whether it could. An inbox
 * is memory of the rank's device, reached by peer access (a process opens it by CUDA IPC); where one rank cannot reach
 * another, all take inboxes in the region instead, in memory of the host. What is sent is exchange.h's. */
#include "kernels/cuda/comm.h"

#include "base/clock.h"
#include "kernels/cuda/exchange.h"
#include "kernels/cuda/internal.h"
#include "kernels/shared/pool_layout.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MEET_SECONDS  600u /* until the last rank has loaded */
#define MEET_PAUSE_NS 1000000
/* Of a wait for a rank in a step: longer than whoever watches the group has patience. */
#define DEADLINE_SECONDS 30u

/* What a rank tells the others before it can be reached. */
struct seat {
    atomic_uint taken;  /* the rest of it is there */
    atomic_uint opened; /* 1: it reaches all inboxes; 2: it does not */
    pid_t pid;
    int device;
    void *d_inbox; /* for ranks of the same process */
    cudaIpcMemHandle_t handle;
    uint32_t vocab_first, vocab_rows;
};
struct region {
    atomic_uint config; /* what the ranks must agree on; 0 = fresh */
    atomic_uint aborted;
    struct seat seats[RANKS_MAX];
};

struct k_comm {
    struct k_context *context;
    struct region *region; /* NULL at tp 1 */
    uint32_t tp, rank;
    size_t pinned; /* bytes of the region, by this rank */
    bool met;
    float eps;
    void *d_inbox;
    void *opened[RANKS_MAX]; /* by CUDA IPC */
    struct exchange_view view;
    uint32_t vocab_first[RANKS_MAX], vocab_rows[RANKS_MAX], vocab_most;
};

static size_t staged_at(void) {
    return align64(sizeof(struct region));
}
size_t k_comm_region_bytes(const struct k_shape *shape, uint32_t rows_max) {
    (void)rows_max; /* longer sums go in pieces */
    return shape->tp == 1 ? 0 : staged_at() + shape->tp * EXCHANGE_INBOX(shape->tp);
}

/* --- meeting --- */

static bool all_seats(const struct k_comm *m, bool opened) {
    for (uint32_t r = 0; r < m->tp; r++)
        if (!atomic_load(opened ? &m->region->seats[r].opened : &m->region->seats[r].taken))
            return false;
    return true;
}
static int wait_for_all(const struct k_comm *m, bool opened, struct error *e) {
    const uint64_t begin = clock_ns();
    const struct timespec pause = {.tv_nsec = MEET_PAUSE_NS};
    while (!all_seats(m, opened)) {
        if (atomic_load(&m->region->aborted))
            return error_set(e, -ECANCELED, "rank %u: the group was stopped while its ranks met", m->rank);
        if (clock_ns() - begin > MEET_SECONDS * UINT64_C(1000000000))
            return error_set(e, -ETIMEDOUT, "rank %u waited %u s for the other ranks of the group", m->rank,
                    MEET_SECONDS);
        nanosleep(&pause, NULL);
    }
    return 0;
}

/* The first bytes of the region are the device's too: as many as it reads. */
static int pin_region(struct k_comm *m, size_t bytes, struct error *e) {
    if (m->pinned)
        cudaHostUnregister(m->region);
    const cudaError_t r =
            cudaHostRegister(m->region, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
    m->pinned = r == cudaSuccess ? bytes : 0;
    cudaGetLastError();
    if (r != cudaSuccess && r != cudaErrorHostMemoryAlreadyRegistered) /* by another rank of this process */
        return cuda_failed(m->context, r, "cudaHostRegister", __FILE__, __LINE__, e);
    return 0;
}
static int take_seat(struct k_comm *m, const struct k_shape *shape, struct error *e) {
    struct seat *own = &m->region->seats[m->rank];
    m->d_inbox = k_alloc(m->context, EXCHANGE_INBOX(m->tp));
    if (!m->d_inbox)
        return error_set(e, -ENOMEM, "no memory for an inbox of %llu bytes on device %d",
                (unsigned long long)EXCHANGE_INBOX(m->tp), m->context->device);
    own->pid = getpid();
    own->device = m->context->device;
    own->d_inbox = m->d_inbox;
    own->vocab_first = shape->vocab_first;
    own->vocab_rows = shape->vocab_rows;
    if (cudaIpcGetMemHandle(&own->handle, m->d_inbox) != cudaSuccess)
        memset(&own->handle, 0, sizeof own->handle); /* who needs it finds that it opens nothing */
    cudaGetLastError();
    atomic_store(&own->taken, 1);
    return 0;
}

/* The inbox of another rank as this device reaches it; NULL: it does not. */
static void *open_inbox(struct k_comm *m, uint32_t rank) {
    const struct seat *other = &m->region->seats[rank];
    cudaError_t r = cudaSuccess;
    if (other->pid != getpid()) {
        r = cudaIpcOpenMemHandle(&m->opened[rank], other->handle, cudaIpcMemLazyEnablePeerAccess);
        cudaGetLastError();
        return r == cudaSuccess ? m->opened[rank] : NULL;
    }
    if (other->device != m->context->device)
        r = cudaDeviceEnablePeerAccess(other->device, 0);
    cudaGetLastError();
    return r == cudaSuccess || r == cudaErrorPeerAccessAlreadyEnabled ? other->d_inbox : NULL;
}
/* Opens all, and takes the host's inboxes where some rank cannot open one. */
static int open_inboxes(struct k_comm *m, struct error *e) {
    bool all = true;
    int rc = wait_for_all(m, /* opened= */ false, e);
    if (rc < 0)
        return rc;
    m->view.inbox[m->rank] = m->d_inbox;
    for (uint32_t r = 0; r < m->tp; r++)
        if (r != m->rank)
            all = (m->view.inbox[r] = open_inbox(m, r)) && all;
    atomic_store(&m->region->seats[m->rank].opened, all ? 1 : 2);
    rc = wait_for_all(m, /* opened= */ true, e);
    if (rc < 0)
        return rc;
    for (uint32_t r = 0; r < m->tp; r++)
        all = all && atomic_load(&m->region->seats[r].opened) == 1;
    rc = all ? 0 : pin_region(m, staged_at() + m->tp * EXCHANGE_INBOX(m->tp), e);
    if (rc < 0)
        return rc;
    void *d_region;
    CUDA_TRY(m->context, cudaHostGetDevicePointer(&d_region, m->region, 0), e);
    for (uint32_t r = 0; r < m->tp && !all; r++)
        m->view.inbox[r] = (uint8_t *)d_region + staged_at() + r * EXCHANGE_INBOX(m->tp);
    m->view.aborted = (const uint32_t *)((uint8_t *)d_region + offsetof(struct region, aborted));
    return 0;
}

/* --- making one --- */

static int check_group(
        const struct k_shape *shape, const void *region, size_t region_bytes, struct error *e) {
    const uint32_t tp = shape->tp;
    if ((tp != 1 && tp != 2 && tp != 4 && tp != 8) || shape->rank >= tp)
        return error_set(
                e, -EINVAL, "rank %u of %u; tensor parallel sizes are 1, 2, 4 and 8", shape->rank, tp);
    if (tp > 1 && (!region || region_bytes < k_comm_region_bytes(shape, 0)))
        return error_set(e, -EINVAL, "the shared region of the ranks has %zu bytes and %zu are needed",
                region_bytes, k_comm_region_bytes(shape, 0));
    return 0;
}
static int agree(const struct k_comm *m, const struct k_shape *shape, uint32_t rows_max, struct error *e) {
    uint32_t mine = shape->tp ^ shape->hidden_size * 0x9e3779b1u ^ shape->vocab_size * 0x85ebca6bu ^
                    rows_max * 0xc2b2ae35u;
    uint32_t found = 0;
    mine |= 1;
    if (!atomic_compare_exchange_strong(&m->region->config, &found, mine) && found != mine)
        return error_set(
                e, -EINVAL, "rank %u was started for another model or size than its peers", shape->rank);
    return 0;
}
static int join(struct k_comm *m, const struct k_shape *shape, struct error *e) {
    struct k_context *c = m->context;
    int r = context_enter(c, e);
    if (r < 0)
        return r;
    r = pin_region(m, sizeof(struct region), e);
    if (r < 0)
        return r;
    m->view.d_epochs = k_alloc(c, (EXCHANGE_BLOCKS + 1) * sizeof(uint32_t));
    if (!m->view.d_epochs)
        return error_set(e, -ENOMEM, "no memory for a communicator on device %d", c->device);
    m->view.d_poisoned = m->view.d_epochs + EXCHANGE_BLOCKS;
    m->view.rank = m->rank;
    m->view.tp = m->tp;
    m->view.deadline_ns = DEADLINE_SECONDS * UINT64_C(1000000000);
    return take_seat(m, shape, e);
}
int k_comm_create(struct k_context *c, const struct k_shape *shape, uint32_t rows_max, void *region,
        size_t region_bytes, struct k_comm **ret, struct error *e) {
    struct k_comm *m;
    int r = check_group(shape, region, region_bytes, e);
    if (r < 0)
        return r;
    m = calloc(1, sizeof *m);
    if (!m)
        return error_set(e, -ENOMEM, "no memory for a communicator");
    *m = (struct k_comm){.context = c, .tp = shape->tp, .rank = shape->rank, .eps = shape->rms_eps};
    if (shape->tp > 1) {
        m->region = region;
        r = agree(m, shape, rows_max, e);
        if (r == 0)
            r = join(m, shape, e);
    }
    if (r < 0) {
        k_comm_free(m);
        return r;
    }
    *ret = m;
    return 0;
}
int k_comm_meet(struct k_comm *m, struct error *e) {
    int r = m->tp == 1 || m->met ? 0 : context_enter(m->context, e);
    if (r < 0 || m->tp == 1 || m->met)
        return r;
    r = open_inboxes(m, e);
    for (uint32_t i = 0; i < m->tp && r == 0; i++) {
        m->vocab_first[i] = m->region->seats[i].vocab_first;
        m->vocab_rows[i] = m->region->seats[i].vocab_rows;
        if (m->vocab_rows[i] > m->vocab_most)
            m->vocab_most = m->vocab_rows[i];
    }
    m->met = r == 0;
    return r;
}
struct k_comm *k_comm_free(struct k_comm *m) {
    if (m && m->region && context_enter(m->context, NULL) == 0) {
        for (uint32_t r = 0; r < m->tp; r++)
            if (m->opened[r])
                cudaIpcCloseMemHandle(m->opened[r]);
        k_free(m->context, m->d_inbox);
        k_free(m->context, m->view.d_epochs);
        if (m->pinned)
            cudaHostUnregister(m->region);
    }
    free(m);
    return NULL;
}
void k_comm_abort(struct k_comm *m) {
    if (m->region)
        atomic_store(&m->region->aborted, 1);
}

/* --- exchanges --- */

bool comm_alone(const struct k_comm *m) {
    return m->tp == 1;
}
static uint32_t rows_at_once(uint32_t columns) {
    return EXCHANGE_FLOATS / columns;
}
static bool meet(struct k_stream *s, struct k_comm *m) {
    struct error e;
    if (k_comm_meet(m, &e) == 0)
        return true;
    stream_refused(s, &e);
    return false;
}
void comm_add(struct k_stream *s, struct k_comm *m, const struct k_batch *b, const float *part, float *x,
        uint32_t columns) {
    if (!meet(s, m))
        return;
    struct exchange_add_args a = {
            .view = m->view, .d_plan = b->view.d_plan, .d_part = part, .d_x = x, .columns = columns};
    const uint32_t rows = b->bounds.rows, most = rows_at_once(columns);
    a.view.fault = s->found;
    for (; a.first_row < rows; a.first_row += most) {
        a.rows = rows - a.first_row < most ? rows - a.first_row : most;
        if (!CUDA_QUEUED(s, queue_exchange_add(s->stream, &a)))
            return;
    }
}
float comm_eps(const struct k_comm *m) {
    return m->eps;
}
bool comm_push(struct k_stream *s, struct k_comm *m, struct push_view *ret) {
    const uint64_t set = EXCHANGE_FLOATS / 2 * (uint64_t)EXCHANGE_WORD_BYTES;
    if (!meet(s, m))
        return false;
    *ret = (struct push_view){.d_epoch = m->view.d_epochs, .d_poisoned = m->view.d_poisoned};
    for (uint32_t r = 0; r < m->tp; r++) {
        uint8_t *d_words = (uint8_t *)m->view.inbox[r] + m->rank * set;
        if (r == m->rank)
            continue;
        ret->words[ret->n][0] = d_words;
        ret->words[ret->n++][1] = d_words + m->tp * set;
    }
    return true;
}
void comm_add_made(struct k_stream *s, struct k_comm *m, const struct comm_add *add, const struct input *in,
        const struct made *made) {
    if (!meet(s, m))
        return;
    struct exchange_rows_args a = {.view = m->view,
            .in = *in,
            .d_part = add->part,
            .d_x = add->x,
            .rows = add->b->bounds.rows,
            .pushed = add->pushed,
            .codes = made->codes,
            .terms = made->terms,
            .order = made->order};
    a.view.fault = s->found;
    if (CUDA_QUEUED(s, queue_exchange_rows(s->stream, &a)))
        s->made = *made;
}
void comm_gather_vocab(struct k_stream *s, struct k_comm *m, const struct k_plan *d_plan, uint32_t rows,
        const float *part, float *all, uint32_t columns) {
    if (!meet(s, m))
        return;
    struct exchange_gather_args a = {.view = m->view,
            .d_plan = d_plan,
            .d_part = part,
            .d_all = all,
            .columns = columns,
            .n_most = m->vocab_most};
    const uint32_t most = rows_at_once(m->vocab_most);
    memcpy(a.first, m->vocab_first, sizeof a.first);
    memcpy(a.n, m->vocab_rows, sizeof a.n);
    a.view.fault = s->found;
    for (; a.first_row < rows; a.first_row += most) {
        a.rows = rows - a.first_row < most ? rows - a.first_row : most;
        if (!CUDA_QUEUED(s, queue_exchange_gather(s->stream, &a)))
            return;
    }
}
