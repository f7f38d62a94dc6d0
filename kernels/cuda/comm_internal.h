/* comm_internal.h - the group of ranks behind comm.h: between comm.c, where ranks meet and exchange, comm_inbox.c,
 * which makes inboxes and opens the others', and comm_ways.c, which tries the ways in which they can be used. */
#pragma once

#include "kernels/cuda/comm.h"
#include "kernels/cuda/comm_pass.h"
#include "kernels/cuda/exchange.h"
#include "kernels/cuda/nccl.h"
#include "kernels/cuda/vmm.h"
#include "kernels/shared/pool_layout.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

/* How far a rank is with meeting the others; each answers at every stage, in this order. */
enum stage {
    STAGE_SEATED,   /* the rest of its seat is there */
    STAGE_REACHED,  /* its device can reach all others, or not */
    STAGE_MADE,     /* its inbox is there, and has a descriptor, or not */
    STAGE_OPENED,   /* it reaches all inboxes by their descriptors, or not */
    STAGE_MADE_IPC, /* the same by CUDA IPC */
    STAGE_OPENED_IPC,
    STAGE_TRIED,  /* what it was sent through them was right, or not */
    STAGE_STAGED, /* the same through memory of the host */
    STAGE_LIBRARY,
    STAGE_ID, /* rank 0 has made it */
    STAGE_JOINED,
    STAGE_SUMMED,   /* the library's sums were right, or not */
    STAGE_ROOM,     /* it has memory to measure sums, or not */
    STAGE_MEASURED, /* sums are so fast that many are measured, or not */
    STAGE_CHOSEN,   /* rank 0 has */
    STAGES
};
#define WHY_MAX 300u
enum answer { ANSWER_NONE, ANSWER_YES, ANSWER_NO };

/* What a rank tells the others before it can be reached. */
struct seat {
    atomic_uint answers[STAGES];
    atomic_uint round; /* of comm_wait_round() */
    pid_t pid;
    int device;
    char place[32];              /* of the device */
    atomic_uint unreached;       /* bit r: CUDA says that this device does not reach rank r's */
    atomic_uint lost;            /* bit r: what rank r wrote was not found here */
    atomic_uint mb_s[RANKS_MAX]; /* of a copy to rank r's inbox; 0 = not measured */
    void *d_inbox;               /* for ranks of the same process */
    struct pass_address address; /* where it takes descriptors of inboxes */
    cudaIpcMemHandle_t handle;
    uint32_t vocab_first, vocab_rows;
    char why[WHY_MAX]; /* of its last NO */
};
struct region {
    atomic_uint config; /* what the ranks must agree on; 0 = fresh */
    atomic_uint aborted;
    uint8_t nccl_id[NCCL_ID_BYTES]; /* by rank 0 */
    atomic_uint nccl_large;         /* by rank 0: prompts' sums go by the library */
    struct seat seats[RANKS_MAX];
};

/* Where inboxes in memory of the host begin in it. */
#define COMM_STAGED_AT align64(sizeof(struct region))

/* How ranks of other processes reach an inbox; without one of these it lies in memory of the host. */
enum inbox_way { INBOX_NONE, INBOX_DESCRIPTORS, INBOX_IPC };
struct inboxes {
    enum inbox_way way;
    struct vmm_memory own, others[RANKS_MAX]; /* descriptors' */
    void *d_own, *d_others[RANKS_MAX];        /* CUDA IPC's */
    char why_ipc[WHY_MAX];                    /* why not by descriptors */
};

struct k_comm {
    struct k_context *context;
    struct region *region; /* NULL at tp 1 */
    uint32_t tp, rank;
    size_t pinned; /* bytes of the region, by this rank */
    bool met;
    uint32_t round;
    float eps;
    struct inboxes inboxes;
    struct exchange_view view;
    uint32_t vocab_first[RANKS_MAX], vocab_rows[RANKS_MAX], vocab_most;

    struct nccl *nccl;   /* NULL: not used */
    uint64_t nccl_least; /* floats of a sum from which it is; UINT64_MAX = never */
    float *d_sums;       /* [NCCL_FLOATS] what it has added, or gathered */
    pthread_t watch;     /* aborts it when the group is stopped, and the group when it fails */
    bool watching;
    atomic_bool watch_ends;
    char text[1800]; /* k_comm_describe() */
};

#define COMM_LARGE_LEAST (1u << 18) /* floats that two ranks exchange faster in chunks than in words */
#define NCCL_FLOATS      EXCHANGE_LARGE_FLOATS
#define EPOCHS_BYTES     ((EXCHANGE_BLOCKS + EXCHANGE_LARGE_BLOCKS + 1) * sizeof(uint32_t)) /* and the poison */

/* Says this rank's answer, and waits for everybody's. 1: all say yes; 0: some do not; negative: a wait has failed. A NO
 * has a reason: `why`, of which the first in order of ranks is put into *e. */
int comm_ask_all(struct k_comm *m, enum stage stage, bool yes, const char *why, struct error *e);
/* Waits for the others to be here, too. Ranks of one process may share a device: what one does there that waits for the
 * whole device (it loads a kernel, or frees memory) must not come while another's kernel waits for it. */
int comm_wait_round(struct k_comm *m, struct error *e);
/* Queues x += the sum over ranks of part, in pieces. `floats` of a sum decide which way it goes. */
bool comm_queue_sum(struct k_stream *s, struct k_comm *m, const struct k_plan *d_plan, const float *part,
        float *x, uint32_t rows, uint32_t columns);

/* comm_inbox.c: inboxes in memory of the devices, of all ranks together. 1; 0 and why not in *e; negative. */
int comm_reach_devices(struct k_comm *m, struct error *e);
/* Lets go of them; nothing runs that uses them. */
void comm_leave_devices(struct k_comm *m);
/* Inboxes in memory of the host from now on. */
int comm_stage(struct k_comm *m, struct error *e);
/* The first bytes of the region are the device's too: as many as it reads. */
int comm_pin_region(struct k_comm *m, size_t bytes, struct error *e);

/* comm_ways.c: tries them, and decides which sums go which way; all ranks together. device: every rank has opened
 * everybody's inbox in memory of the devices; otherwise why not. */
int comm_try_ways(struct k_comm *m, bool device, const char *why_not, struct error *e);
/* comm_pairs.c: how fast each rank's copies to every other one's inbox are, one after another; all ranks together. The
 * inboxes lie in memory of the devices, and nothing is exchanged meanwhile. */
int comm_measure_pairs(struct k_comm *m, struct error *e);
/* What lies between ranks, how fast it is, and what is wrong with it: a line, or "". After it is known. */
void comm_say_pairs(const struct k_comm *m, char *text, size_t size);

/* Ends NCCL, where it was started. */
void comm_ways_done(struct k_comm *m);
