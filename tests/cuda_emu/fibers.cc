/* fibers.cc - runs the blocks of a kernel: threads as fibers, barriers, warps that meet, cp.async. See emu.h. */
#include "base/hash.h"
#include "tests/cuda_emu/emu.h"
#include "tests/cuda_emu/emu_control.h"

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define STACK_BYTES (128u << 10)
#define PAGE        4096u
#define POISON      0xcd
#define GROUPS_MAX  64u /* cp.async groups of a thread that are on their way */

EMU_THREAD emu_place emu_here;

/* --- switching --- */

/* Saves the callee's registers and the stack pointer, and goes on where `to` was saved. */
extern "C" void emu_switch(void **ret_saved, void *to);
#if defined(__x86_64__)
__asm__(".text\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
        ".size emu_switch,.-emu_switch\n");
#define SAVED_WORDS 7u /* six registers and the return address */
#else
#error "the CUDA emulation switches stacks on x86-64 only"
#endif

enum fiber_state { READY, AT_BLOCK_BARRIER, AT_WARP, DONE };

struct copy {
    void *to;
    const void *from;
    size_t bytes;
};
struct fiber {
    void *saved; /* stack pointer */
    uint8_t *stack;
    fiber_state state;
    emu_index thread;
    const char *what; /* AT_WARP: what it wants to do */
    uint32_t mask;
    std::vector<std::vector<copy>> groups; /* committed, oldest first */
    std::vector<copy> open;
#ifdef __SANITIZE_ADDRESS__
    void *fake_stack;
#endif
};
struct warp {
    alignas(16) uint8_t lane[EMU_WARP][EMU_LANE_BYTES];
};

/* The block that a thread of the host runs: each rank of a process has a thread, and they wait for each other. */
struct block_state {
    const emu_launch *launch;
    std::vector<fiber> fibers;
    std::vector<warp> warps;
    std::vector<uint32_t> thread_order, warp_order,
            block_order; /* here, since a fault jumps over who uses them */
    uint32_t current;
    void *scheduler;
    uint8_t *stacks;
    uint8_t *shared, *shared_region;
    size_t shared_bytes, shared_region_bytes;
    sigjmp_buf fault_jump;
    bool running, seeded;
    alignas(16) uint8_t trap_stack[64 << 10];
    char fault[512];
    uint64_t seed, draws;
#ifdef __SANITIZE_ADDRESS__
    const void *scheduler_stack;
    size_t scheduler_stack_bytes;
    void *scheduler_fake;
#endif
};
static EMU_THREAD block_state *block; /* NULL before the first kernel */

static size_t stacks_bytes() {
    return (size_t)EMU_THREADS_MAX * (STACK_BYTES + PAGE);
}
struct block_owner { /* gives it back when the thread ends */
    ~block_owner() {
        if (block->stacks)
            munmap(block->stacks, stacks_bytes());
        if (block->shared_region)
            munmap(block->shared_region, block->shared_region_bytes);
        delete block;
        block = NULL;
    }
};
static void have_block() {
    static thread_local std::unique_ptr<block_owner> owner;
    if (block)
        return;
    block = new block_state();
    owner.reset(new block_owner());
}

extern "C" void emu_seed(uint64_t seed) {
    have_block();
    block->seed = seed;
    block->draws = 0;
}

static void switch_to_fiber(fiber *f) {
    emu_here.thread = f->thread;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&block->scheduler_fake, f->stack, STACK_BYTES);
#endif
    emu_switch(&block->scheduler, f->saved);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(block->scheduler_fake, NULL, NULL);
#endif
}
static void switch_to_scheduler(fiber *f) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(
            f->state == DONE ? NULL : &f->fake_stack, block->scheduler_stack, block->scheduler_stack_bytes);
#endif
    emu_switch(&f->saved, block->scheduler);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(f->fake_stack, &block->scheduler_stack, &block->scheduler_stack_bytes);
#endif
}
static fiber *current_fiber() {
    return &block->fibers[block->current];
}

static void fiber_main() {
    fiber *f = current_fiber();
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(NULL, &block->scheduler_stack, &block->scheduler_stack_bytes);
#endif
    block->launch->body();
    f->state = DONE;
    switch_to_scheduler(f);
    abort(); /* nobody goes on with a fiber that is done */
}

/* The first switch to a fiber returns into fiber_main(), with the stack aligned as after a call. */
static void fiber_begin(fiber *f) {
    uint64_t *top = (uint64_t *)(f->stack + STACK_BYTES) - 3; /* 8 bytes below a multiple of 16 */
    uint64_t *sp = top - SAVED_WORDS;
    memset(sp, 0, (SAVED_WORDS + 3) * sizeof *sp);
    sp[SAVED_WORDS - 1] = (uint64_t)(uintptr_t)fiber_main;
    f->saved = sp;
    f->state = READY;
    f->groups.clear();
    f->open.clear();
#ifdef __SANITIZE_ADDRESS__
    f->fake_stack = NULL;
#endif
}

/* --- faults --- */

__attribute__((noreturn, format(printf, 1, 2))) static void fault(const char *format, ...) {
    va_list ap;
    int n = snprintf(block->fault, sizeof block->fault,
            "kernel %s, block (%u, %u), thread %u: ", block->launch->kernel, emu_here.block.x,
            emu_here.block.y, block->current);
    va_start(ap, format);
    vsnprintf(block->fault + n, sizeof block->fault - (size_t)n, format, ap);
    va_end(ap);
    siglongjmp(block->fault_jump, 1);
}

static void on_bad_address(int number, siginfo_t *info, void *) {
    const uint8_t *p = (const uint8_t *)info->si_addr;
    if (!block || !block->running) { /* not a kernel's: once more, and it is the end of the process */
        signal(number, SIG_DFL);
        return;
    }
    if (p >= block->shared_region && p < block->shared_region + block->shared_region_bytes)
        fault("byte %td of dynamic shared memory of %zu", p - block->shared, block->shared_bytes);
    const char *device = emu_device_address(p);
    fault("an access to %s", device ? device : "memory that is nobody's");
}

/* --- what device code calls --- */

void emu_sync_block() {
    fiber *f = current_fiber();
    f->state = AT_BLOCK_BARRIER;
    switch_to_scheduler(f);
}

static void meet(uint32_t first, uint32_t mask, emu_warp_fn fn) {
    fn(mask, block->warps[first / EMU_WARP].lane);
    for (uint32_t l = 0; l < EMU_WARP; l++)
        if (mask >> l & 1)
            block->fibers[first + l].state = READY;
}
void emu_warp(const char *what, uint32_t mask, void *own, size_t bytes, emu_warp_fn fn) {
    const uint32_t first = block->current / EMU_WARP * EMU_WARP, lane = block->current % EMU_WARP;
    fiber *f = current_fiber();
    uint8_t *at = block->warps[first / EMU_WARP].lane[lane];
    if (!(mask >> lane & 1))
        fault("%s: lane %u is not in its own mask %08x", what, lane, mask);
    memcpy(at, own, bytes);
    f->state = AT_WARP;
    f->what = what;
    f->mask = mask;
    bool all = true; /* the last one looks at all others; whoever comes earlier ends where one is missing */
    for (uint32_t n = 1; n < EMU_WARP && all; n++) {
        const uint32_t l = (lane + n) % EMU_WARP;
        if (!(mask >> l & 1))
            continue;
        const fiber *other = first + l < block->fibers.size() ? &block->fibers[first + l] : NULL;
        if (!other || other->state == DONE)
            fault("%s: lane %u of mask %08x has left the kernel", what, l, mask);
        const bool same = other->what == what || (other->what && strcmp(other->what, what) == 0);
        all = other->state == AT_WARP;
        if (all && (!same || other->mask != mask))
            fault("%s with mask %08x meets %s with mask %08x", what, mask, other->what, other->mask);
    }
    if (all)
        meet(first, mask, fn);
    else
        switch_to_scheduler(f);
    memcpy(own, at, bytes);
}

uint8_t *emu_dynamic_shared() {
    return block->shared;
}

void emu_copy_async(void *to, const void *from, size_t bytes) {
    if ((uintptr_t)to % bytes || (uintptr_t)from % bytes)
        fault("cp.async of %zu bytes to %p from %p, which are not multiples of it", bytes, to, from);
    memset(to, POISON, bytes);
    current_fiber()->open.push_back({to, from, bytes});
}
void emu_copy_commit() {
    fiber *f = current_fiber();
    f->groups.push_back(std::move(f->open));
    f->open.clear();
    if (f->groups.size() > GROUPS_MAX)
        fault("more than %u groups of cp.async are on their way", GROUPS_MAX);
}
void emu_copy_wait(uint32_t groups_left) {
    fiber *f = current_fiber();
    while (f->groups.size() > groups_left) {
        for (const copy &c : f->groups.front())
            memcpy(c.to, c.from, c.bytes);
        f->groups.erase(f->groups.begin());
    }
}

/* --- blocks --- */

/* 0 .. n - 1, ascending or in the order of the seed. */
static const std::vector<uint32_t> &order_of(uint32_t n, std::vector<uint32_t> &order) {
    order.resize(n);
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n; block->seed && i > 1; i--) {
        const uint32_t j = (uint32_t)(splitmix64(block->seed ^ splitmix64(++block->draws)) % i);
        const uint32_t other = order[j];
        order[j] = order[i - 1];
        order[i - 1] = other;
    }
    return order;
}

/* Shared memory ends where its last page does, and the next cannot be touched; nor can the one before its first. */
static void shared_begin(size_t bytes) {
    const size_t rounded = (bytes + 15) & ~(size_t)15, pages = (EMU_SHARED_MAX + PAGE - 1) / PAGE * PAGE;
    if (!block->shared_region) {
        block->shared_region_bytes = pages + 2 * PAGE;
        block->shared_region = (uint8_t *)mmap(
                NULL, block->shared_region_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block->shared_region == MAP_FAILED)
            abort();
        mprotect(block->shared_region + PAGE, pages, PROT_READ | PROT_WRITE);
    }
    memset(block->shared_region + PAGE, POISON, pages);
    block->shared = block->shared_region + PAGE + pages - rounded;
    block->shared_bytes = bytes;
}
static void shared_end() {
    const uint8_t *first = block->shared_region + PAGE, *end = block->shared + block->shared_bytes;
    for (const uint8_t *p = first; p < block->shared; p++)
        if (*p != POISON)
            fault("byte %td of dynamic shared memory was written", p - block->shared);
    for (const uint8_t *p = end; p < block->shared_region + block->shared_region_bytes - PAGE; p++)
        if (*p != POISON)
            fault("byte %td of dynamic shared memory of %zu was written", p - block->shared,
                    block->shared_bytes);
}

static void report_deadlock() {
    uint32_t states[4] = {0};
    for (const fiber &f : block->fibers)
        states[f.state]++;
    for (uint32_t i = 0; i < block->fibers.size(); i++)
        if (block->fibers[i].state == AT_WARP) {
            block->current = i;
            fault("waits in %s for lanes of mask %08x that do not come (%u threads at the block's barrier, "
                  "%u done)",
                    block->fibers[i].what, block->fibers[i].mask, states[AT_BLOCK_BARRIER], states[DONE]);
        }
    fault("%u threads wait at the block's barrier for others that do not come", states[AT_BLOCK_BARRIER]);
}

static void release_block(uint32_t alive) {
    uint32_t waiting = 0;
    for (const fiber &f : block->fibers)
        waiting += f.state == AT_BLOCK_BARRIER;
    if (waiting != alive)
        return;
    for (fiber &f : block->fibers)
        f.state = f.state == AT_BLOCK_BARRIER ? READY : f.state;
}
/* Lets those of n threads go on that can, each as far as it comes alone; how many there were. */
static uint32_t run_ready(uint32_t first, uint32_t n) {
    uint32_t ran = 0;
    for (uint32_t i : order_of(n, block->thread_order)) {
        if (block->fibers[first + i].state != READY)
            continue;
        block->current = first + i;
        switch_to_fiber(&block->fibers[first + i]);
        ran++;
    }
    return ran;
}
/* All threads by turns; with an odd seed a warp goes on until the block's barrier before another does, so that it is
 * as far ahead of the others as a warp can be. */
static uint32_t run_round(uint32_t threads) {
    uint32_t all = 0;
    if (block->seed % 2 == 0)
        return run_ready(0, threads);
    for (uint32_t w : order_of((threads + EMU_WARP - 1) / EMU_WARP, block->warp_order)) {
        const uint32_t left = threads - w * EMU_WARP;
        for (uint32_t ran; (ran = run_ready(w * EMU_WARP, left < EMU_WARP ? left : EMU_WARP)) != 0;)
            all += ran;
    }
    return all;
}
static void run_block(const emu_launch &l) {
    shared_begin(l.shared_bytes);
    for (uint32_t i = 0; i < l.threads; i++)
        fiber_begin(&block->fibers[i]);
    for (;;) {
        const uint32_t ran = run_round(l.threads);
        uint32_t alive = 0;
        for (const fiber &f : block->fibers)
            alive += f.state != DONE;
        if (alive == 0)
            break;
        if (ran == 0)
            report_deadlock();
        release_block(alive);
    }
    shared_end();
}

static void make_fibers(uint32_t threads) {
    const size_t each = STACK_BYTES + PAGE; /* the page below a stack cannot be touched */
    if (!block->stacks) {
        block->stacks = (uint8_t *)mmap(
                NULL, stacks_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (block->stacks == MAP_FAILED)
            abort();
        for (uint32_t i = 0; i < EMU_THREADS_MAX; i++)
            mprotect(block->stacks + i * each + PAGE, STACK_BYTES, PROT_READ | PROT_WRITE);
    }
    block->fibers.resize(threads);
    block->warps.resize((threads + EMU_WARP - 1) / EMU_WARP);
    for (uint32_t i = 0; i < threads; i++) {
        block->fibers[i].stack = block->stacks + i * each + PAGE;
        block->fibers[i].thread = {i, 0, 0};
    }
}

/* Bad addresses become a fault of the kernel while it runs; of several that run the first sets that up. */
static struct {
    std::mutex lock;
    uint32_t running;
    struct sigaction before[2];
} traps;
struct trap {
    stack_t stack_before;
};
static void trap_begin(trap *t) {
    stack_t own = {};
    own.ss_sp = block->trap_stack;
    own.ss_size = sizeof block->trap_stack;
    sigaltstack(&own, &t->stack_before);
    block->running = true;
    std::lock_guard<std::mutex> g(traps.lock);
    if (traps.running++ > 0)
        return;
    struct sigaction a = {};
    a.sa_sigaction = on_bad_address;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &a, &traps.before[0]);
    sigaction(SIGBUS, &a, &traps.before[1]);
}
static void trap_end(const trap *t) {
    block->running = false;
    {
        std::lock_guard<std::mutex> g(traps.lock);
        if (--traps.running == 0) {
            sigaction(SIGSEGV, &traps.before[0], NULL);
            sigaction(SIGBUS, &traps.before[1], NULL);
        }
    }
    sigaltstack(&t->stack_before, NULL);
}

const char *emu_run_kernel(const emu_launch &l) {
    const char *text = getenv("CUDA_EMU_SEED");
    trap t;
    have_block();
    if (!block->seeded && text && block->seed == 0)
        emu_seed(strtoull(text, NULL, 10));
    block->seeded = true;
    make_fibers(l.threads);
    block->launch = &l;
    emu_here.grid_dim = l.grid;
    emu_here.block_dim = {l.threads, 1, 1};
    block->fault[0] = '\0';
    trap_begin(&t);
    if (sigsetjmp(block->fault_jump, 1) == 0) {
        for (uint32_t b : order_of(l.grid.x * l.grid.y * l.grid.z, block->block_order)) {
            emu_here.block = {b % l.grid.x, b / l.grid.x % l.grid.y, b / l.grid.x / l.grid.y};
            run_block(l);
        }
    }
    trap_end(&t);
    return block->fault[0] ? block->fault : NULL;
}
