/* comm_inbox.c - the inboxes of a group: where they lie, and how each rank reaches those of the others.
 *
 * Called by comm.c and comm_ways.c, by all ranks together. An inbox is memory of its rank's device, which ranks of
 * other processes map by a file descriptor (vmm.h): it stays until the last of them has let go of it, so what a
 * kernel still sends to a rank that has died lands in memory that is there. Where that cannot be, CUDA IPC opens
 * it, whose memory goes with the process that made it. Where one rank cannot reach another, all take inboxes in the
 * region that they share, in memory of the host. */
#include "kernels/cuda/comm_internal.h"

#include "kernels/cuda/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PASS_SECONDS 10u /* for descriptors of ranks that have just said that they send them */

/* --- memory of the devices --- */

/* Whether this device can reach those of all others. */
static bool reaches_all(const struct k_comm *m, char why[WHY_MAX]) {
    struct seat *own = &m->region->seats[m->rank];
    const int device = m->context->device;
    bool all = true;
    for (uint32_t r = 0; r < m->tp; r++) {
        const int other = m->region->seats[r].device;
        int can = 1;
        if (other != device && cudaDeviceCanAccessPeer(&can, device, other) != cudaSuccess)
            can = 0;
        cudaGetLastError();
        if (can)
            continue;
        atomic_fetch_or(&own->unreached, 1u << r);
        all = false;
        snprintf(why, WHY_MAX,
                "device %d cannot reach device %d, neither by NVLink nor by PCIe: see nvidia-smi topo -p2p w",
                device, other);
    }
    return all;
}
static bool same_process(const struct seat *other) {
    return other->pid == getpid();
}

/* --- by descriptors --- */

/* For ranks that are threads of this process: they write to the addresses that are its own. */
static int allow_others_here(struct k_comm *m, struct error *e) {
    int rc = 0;
    for (uint32_t r = 0; r < m->tp && rc == 0; r++) {
        const struct seat *other = &m->region->seats[r];
        if (same_process(other) && other->device != m->context->device)
            rc = vmm_allow(m->context, &m->inboxes.own, other->device, e);
    }
    return rc;
}
static int zero_own(struct k_comm *m, struct error *e) {
    const struct vmm_memory *own = &m->inboxes.own;
    CUDA_TRY(m->context, cudaMemsetAsync(own->d_p, 0, own->bytes, m->context->stream), e);
    CUDA_TRY(m->context, cudaStreamSynchronize(m->context->stream), e);
    return 0;
}
/* This rank's, its descriptor, and a socket for those of the others. */
static int make_shared(struct k_comm *m, int *ret_fd, int *ret_socket, struct error *e) {
    struct seat *own = &m->region->seats[m->rank];
    int rc = vmm_create(m->context, EXCHANGE_INBOX(m->tp), &m->inboxes.own, ret_fd, e);
    own->d_inbox = m->inboxes.own.d_p;
    rc = rc < 0 ? rc : zero_own(m, e);
    rc = rc < 0 ? rc : allow_others_here(m, e);
    return rc < 0 ? rc : pass_open(ret_socket, &own->address, e);
}
static int map_shared(struct k_comm *m, int own_fd, int socket, struct error *e) {
    struct pass_peer peers[RANKS_MAX] = {0};
    int fds[RANKS_MAX];
    for (uint32_t r = 0; r < m->tp; r++)
        if (!same_process(&m->region->seats[r]))
            peers[r] = (struct pass_peer){m->region->seats[r].pid, m->region->seats[r].address};
    int rc = pass_all(socket, m->rank, own_fd, peers, m->tp, PASS_SECONDS, fds, e);
    for (uint32_t r = 0; r < m->tp; r++) {
        struct vmm_memory *other = &m->inboxes.others[r];
        m->view.inbox[r] = m->region->seats[r].d_inbox;
        if (fds[r] < 0)
            continue;
        rc = rc < 0 ? rc : vmm_open(m->context, EXCHANGE_INBOX(m->tp), fds[r], VMM_WRITE, other, e);
        m->view.inbox[r] = other->d_p;
        close(fds[r]);
    }
    return rc;
}
static int by_descriptors(struct k_comm *m, struct error *e) {
    struct error found = {0};
    int fd = -1, socket = -1, rc = make_shared(m, &fd, &socket, &found);
    int all = comm_ask_all(m, STAGE_MADE, rc == 0, found.text, e);
    if (all == 1) {
        rc = map_shared(m, fd, socket, &found);
        all = comm_ask_all(m, STAGE_OPENED, rc == 0, found.text, e);
    }
    if (fd >= 0)
        close(fd);
    if (socket >= 0)
        close(socket);
    if (all == 1)
        m->inboxes.way = INBOX_DESCRIPTORS;
    else
        comm_leave_devices(m);
    return all;
}

/* --- by CUDA IPC --- */

static bool make_for_ipc(struct k_comm *m, char why[WHY_MAX]) {
    struct seat *own = &m->region->seats[m->rank];
    own->d_inbox = m->inboxes.d_own = k_alloc(m->context, EXCHANGE_INBOX(m->tp));
    if (own->d_inbox && cudaIpcGetMemHandle(&own->handle, own->d_inbox) != cudaSuccess)
        memset(&own->handle, 0, sizeof own->handle); /* who needs it finds that it opens nothing */
    cudaGetLastError();
    if (!own->d_inbox)
        snprintf(why, WHY_MAX, "no memory for an inbox of %llu bytes on device %d",
                (unsigned long long)EXCHANGE_INBOX(m->tp), m->context->device);
    return own->d_inbox != NULL;
}
static bool open_by_ipc(struct k_comm *m, uint32_t rank, char why[WHY_MAX]) {
    const struct seat *other = &m->region->seats[rank];
    void **d_other = &m->inboxes.d_others[rank];
    cudaError_t r = cudaSuccess;
    m->view.inbox[rank] = other->d_inbox;
    if (!same_process(other)) {
        r = cudaIpcOpenMemHandle(d_other, other->handle, cudaIpcMemLazyEnablePeerAccess);
        m->view.inbox[rank] = *d_other;
    } else if (other->device != m->context->device) {
        r = cudaDeviceEnablePeerAccess(other->device, 0);
    }
    cudaGetLastError();
    if (r == cudaSuccess || r == cudaErrorPeerAccessAlreadyEnabled)
        return true;
    *d_other = NULL;
    snprintf(why, WHY_MAX,
            "device %d may not open memory of device %d (%s): ranks need one user, and in containers one IPC namespace",
            m->context->device, other->device, cudaGetErrorString(r));
    return false;
}
static bool open_all_by_ipc(struct k_comm *m, char why[WHY_MAX]) {
    m->view.inbox[m->rank] = m->inboxes.d_own;
    for (uint32_t r = 0; r < m->tp; r++)
        if (r != m->rank && !open_by_ipc(m, r, why))
            return false;
    return true;
}
static int by_ipc(struct k_comm *m, struct error *e) {
    char why[WHY_MAX] = "";
    bool can = make_for_ipc(m, why);
    int all = comm_ask_all(m, STAGE_MADE_IPC, can, why, e);
    if (all == 1) {
        can = open_all_by_ipc(m, why);
        all = comm_ask_all(m, STAGE_OPENED_IPC, can, why, e);
    }
    m->inboxes.way = all == 1 ? INBOX_IPC : INBOX_NONE;
    return all;
}

/* --- either --- */

int comm_reach_devices(struct k_comm *m, struct error *e) {
    char why[WHY_MAX] = "it was asked for";
    const bool can = m->context->all_reduce != K_ALL_REDUCE_STAGED && reaches_all(m, why);
    int all = comm_ask_all(m, STAGE_REACHED, can, why, e);
    if (all != 1)
        return all;
    all = by_descriptors(m, e);
    if (all != 0)
        return all;
    snprintf(m->inboxes.why_ipc, sizeof m->inboxes.why_ipc, "%.*s", (int)WHY_MAX - 1, e->text);
    all = by_ipc(m, e);
    if (all == 0)
        error_prefix(e, -EIO, "by descriptors: %s; by CUDA IPC", m->inboxes.why_ipc);
    return all;
}
void comm_leave_devices(struct k_comm *m) {
    struct inboxes *i = &m->inboxes;
    for (uint32_t r = 0; r < m->tp; r++) {
        vmm_close(m->context, &i->others[r]);
        if (i->d_others[r])
            cudaIpcCloseMemHandle(i->d_others[r]);
        i->d_others[r] = NULL;
    }
    vmm_close(m->context, &i->own);
    k_free(m->context, i->d_own);
    i->d_own = NULL;
    i->way = INBOX_NONE;
}

/* --- memory of the host --- */

int comm_pin_region(struct k_comm *m, size_t bytes, struct error *e) {
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
int comm_stage(struct k_comm *m, struct error *e) {
    void *d_region;
    int r = comm_pin_region(m, COMM_STAGED_AT + m->tp * EXCHANGE_INBOX(m->tp), e);
    if (r < 0)
        return r;
    CUDA_TRY(m->context, cudaHostGetDevicePointer(&d_region, m->region, 0), e);
    for (uint32_t i = 0; i < m->tp; i++)
        m->view.inbox[i] = (uint8_t *)d_region + COMM_STAGED_AT + i * EXCHANGE_INBOX(m->tp);
    m->view.aborted = (const uint32_t *)((uint8_t *)d_region + offsetof(struct region, aborted));
    return 0;
}
