/* runtime.cc - the runtime API of the CUDA emulation: memory, streams, events, graphs. See emu.h.
 *
 * What is queued is a closure in its stream. It runs when somebody waits for it; whoever only asks makes the device do
 * one piece of work. Device memory is open while work runs and closed to everybody otherwise. A fault in a kernel
 * stays: every later call returns it. */
#include "tests/cuda_emu/emu.h"
#include "tests/cuda_emu/emu_control.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

/* Unless the environment says otherwise (emu_control.h). */
#define DEVICES      2
#define DEVICE_BYTES (8ull << 30)
#define CAPABILITY   86
#define CUDA         13000
#define ARENA_BYTES  (1ull << 40) /* addresses only; never used twice, so that a stale pointer is found */
#define PAGE         4096ull
#define POISON       EMU_POISON

typedef std::function<cudaError_t()> work;

struct emu_stream {
    std::deque<work> queue;
    uint64_t queued, ran; /* works since it was made */
    emu_graph *capture;
    bool eager;
};
struct emu_event {
    emu_stream *stream; /* where it was recorded last; NULL = nowhere */
    uint64_t number;    /* works of the stream that it stands behind */
    emu_graph *capture; /* the capture that it was recorded in, instead */
};
/* Works in the order in which they were queued, which is one of those that the branches of a graph allow. */
struct emu_graph {
    std::deque<work> works;
    std::set<emu_stream *>
            branches; /* other streams that were drawn into the capture, and not yet waited for */
};
struct emu_graph_exec {
    std::deque<work> works;
};
struct allocation {
    uint8_t *first_page; /* of its pages */
    size_t page_bytes, bytes;
    int access; /* of kernels, PROT_... */
    int fd;     /* of pages that another process can map; -1 */
};

static struct {
    std::recursive_mutex lock;
    std::map<uint8_t *, allocation> memory; /* by the pointer that was given out */
    std::map<uint8_t *, size_t> host;
    std::map<void *, size_t> registered;      /* memory of the host that is pinned where it lies */
    std::map<const void *, int> shared_limit; /* of kernels */
    uint8_t *arena;
    size_t arena_used, device_used;
    bool open;
    uint32_t running; /* works of all threads of the host */
    uint64_t works;
    uint32_t eager;   /* a bit for each of the streams to come */
    uint64_t hang_at; /* so many works; 0: no file of CUDA_EMU_HANG was there when somebody looked */
    cudaError_t fault;
    std::string fault_text;
} emu;
static thread_local cudaError_t last_error;
static thread_local uint32_t captures; /* that this thread has begun */

typedef std::lock_guard<std::recursive_mutex> guard;

extern "C" uint64_t emu_works(void) {
    guard g(emu.lock);
    return emu.works;
}

extern "C" void emu_eager(uint32_t streams) {
    guard g(emu.lock);
    emu.eager = streams;
}

/* --- errors --- */

static cudaError_t fails(cudaError_t e) {
    last_error = e;
    return e;
}
static cudaError_t fault_of(cudaError_t e, const char *text) {
    if (emu.fault == cudaSuccess) {
        emu.fault = e;
        emu.fault_text = text;
    }
    return fails(emu.fault);
}
extern "C" const char *cudaGetErrorString(cudaError_t e) {
    if (e != cudaSuccess && e == emu.fault)
        return emu.fault_text.c_str();
    switch (e) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorNotReady:
        return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    default:
        return "invalid handle or state";
    }
}
extern "C" cudaError_t cudaGetLastError(void) {
    const cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}

/* --- devices --- */

uint64_t emu_setting(const char *name, uint64_t preset) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : preset;
}
extern "C" bool emu_breaks(const char *name) {
    const char *file = getenv(name);
    return file && unlink(file) == 0;
}
extern "C" cudaError_t cudaDriverGetVersion(int *ret) {
    *ret = (int)emu_setting("CUDA_EMU_DRIVER", CUDA);
    return cudaSuccess;
}
extern "C" cudaError_t cudaRuntimeGetVersion(int *ret) {
    *ret = CUDA;
    return cudaSuccess;
}
extern "C" cudaError_t cudaGetDeviceCount(int *ret) {
    *ret = 0;
    if (emu_setting("CUDA_EMU_DRIVER", CUDA) < CUDA)
        return fails(cudaErrorInsufficientDriver);
    *ret = (int)emu_setting("CUDA_EMU_DEVICES", DEVICES);
    return *ret > 0 ? cudaSuccess : fails(cudaErrorNoDevice);
}
static bool exists(int device) {
    int n;
    return cudaGetDeviceCount(&n) == cudaSuccess && device >= 0 && device < n;
}
extern "C" cudaError_t cudaSetDevice(int device) {
    return exists(device) ? cudaSuccess : fails(cudaErrorInvalidDevice);
}
extern "C" cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *ret, int device) {
    const int capability = (int)emu_setting("CUDA_EMU_CAPABILITY", CAPABILITY);
    if (!exists(device))
        return fails(cudaErrorInvalidDevice);
    memset(ret, 0, sizeof *ret);
    snprintf(ret->name, sizeof ret->name, "emulation");
    ret->totalGlobalMem = emu_setting("CUDA_EMU_BYTES", DEVICE_BYTES);
    ret->sharedMemPerBlockOptin = EMU_SHARED_MAX;
    ret->sharedMemPerMultiprocessor = EMU_SHARED_MAX + 1024;
    ret->major = capability / 10;
    ret->minor = capability % 10;
    ret->multiProcessorCount = EMU_SMS;
    ret->l2CacheSize = EMU_L2_BYTES;
    ret->pciBusID = (int)emu_setting("CUDA_EMU_BUS", 1) + device;
    memset(ret->uuid.bytes, 0xe0 + device, sizeof ret->uuid.bytes);
    return cudaSuccess;
}
extern "C" cudaError_t cudaMemGetInfo(size_t *ret_free, size_t *ret_total) {
    guard g(emu.lock);
    *ret_total = emu_setting("CUDA_EMU_BYTES", DEVICE_BYTES);
    *ret_free = *ret_total - emu.device_used;
    return cudaSuccess;
}

/* --- memory --- */

static void protect(const allocation &a, int how) {
    if (mprotect(a.first_page, a.page_bytes, how) != 0)
        abort();
}
static void open_memory() {
    emu.open = true;
    for (const auto &m : emu.memory)
        protect(m.second, m.second.access);
}
static void close_memory() {
    emu.open = false;
    for (const auto &m : emu.memory)
        protect(m.second, PROT_NONE);
}

const char *emu_device_address(const void *address) {
    static char text[128];
    uint8_t *p = (uint8_t *)address;
    if (!emu.arena || p < emu.arena || p >= emu.arena + ARENA_BYTES)
        return NULL;
    auto m = emu.memory.upper_bound(p);
    if (m == emu.memory.begin())
        return "device memory that was never allocated";
    --m;
    snprintf(text, sizeof text, "byte %td of device memory of %zu bytes", p - m->first, m->second.bytes);
    return text;
}

uint64_t emu_bytes_free() {
    guard g(emu.lock);
    return emu_setting("CUDA_EMU_BYTES", DEVICE_BYTES) - emu.device_used;
}
uint8_t *emu_addresses(size_t pages) {
    guard g(emu.lock);
    if (!emu.arena) {
        emu.arena = (uint8_t *)mmap(
                NULL, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (emu.arena == MAP_FAILED)
            abort();
    }
    if (pages + PAGE > ARENA_BYTES - emu.arena_used)
        return NULL;
    uint8_t *p = emu.arena + emu.arena_used;
    emu.arena_used += pages + PAGE;
    return p;
}
void emu_mapped(uint8_t *p, size_t bytes) {
    guard g(emu.lock);
    emu.device_used += bytes;
    emu.memory[p] = {p, bytes, bytes, PROT_NONE, -1};
}
bool emu_unmapped(uint8_t *p) {
    guard g(emu.lock);
    auto m = emu.memory.find(p);
    if (m == emu.memory.end())
        return false;
    emu.device_used -= m->second.bytes;
    emu.memory.erase(m);
    return true;
}
bool emu_set_access(uint8_t *p, int how) {
    guard g(emu.lock);
    auto m = emu.memory.find(p);
    if (m == emu.memory.end())
        return false;
    m->second.access = how;
    if (emu.open) /* for another thread's work */
        protect(m->second, how);
    return true;
}

bool emu_mapping(uint8_t **p, size_t *ret_bytes) {
    guard g(emu.lock);
    auto m = emu.memory.upper_bound(*p);
    if (m == emu.memory.begin() || *p >= (--m)->second.first_page + m->second.page_bytes)
        return false;
    *p = m->second.first_page;
    *ret_bytes = m->second.page_bytes;
    return true;
}
bool emu_share(uint8_t *p, int *ret_fd, size_t *ret_page_bytes, size_t *ret_offset) {
    guard g(emu.lock);
    auto m = emu.memory.find(p);
    if (m == emu.memory.end())
        return false;
    allocation &a = m->second;
    if (a.fd < 0) {
        a.fd = memfd_create("cuda_emu", MFD_CLOEXEC);
        protect(a, PROT_READ);
        if (a.fd < 0 || write(a.fd, a.first_page, a.page_bytes) != (ssize_t)a.page_bytes ||
                mmap(a.first_page, a.page_bytes, emu.open ? a.access : PROT_NONE, MAP_SHARED | MAP_FIXED,
                        a.fd, 0) == MAP_FAILED)
            abort();
    }
    *ret_fd = a.fd;
    *ret_page_bytes = a.page_bytes;
    *ret_offset = (size_t)(p - a.first_page);
    return true;
}

/* Ends where its last page does, as far as 256-byte alignment lets it; the page behind cannot be touched. */
extern "C" cudaError_t cudaMalloc(void **ret, size_t bytes) {
    guard g(emu.lock);
    if (captures)
        return fails(cudaErrorStreamCaptureUnsupported);
    const size_t rounded = (bytes + 255) & ~(size_t)255, pages = (rounded + PAGE - 1) / PAGE * PAGE;
    uint8_t *first_page = bytes <= emu_bytes_free() ? emu_addresses(pages) : NULL;
    if (!first_page)
        return fails(cudaErrorMemoryAllocation);
    const allocation a = {first_page, pages, bytes, PROT_READ | PROT_WRITE, -1};
    emu.device_used += bytes;
    uint8_t *p = a.first_page + pages - rounded;
    protect(a, PROT_READ | PROT_WRITE);
    memset(a.first_page, POISON, pages);
    if (!emu.open)
        protect(a, PROT_NONE);
    emu.memory[p] = a;
    *ret = bytes ? p : NULL;
    return cudaSuccess;
}
extern "C" cudaError_t cudaFree(void *p) {
    guard g(emu.lock);
    auto m = emu.memory.find((uint8_t *)p);
    if (!p)
        return cudaSuccess;
    if (m == emu.memory.end())
        return fails(cudaErrorInvalidValue);
    const allocation a = m->second;
    protect(a, PROT_READ);
    for (uint8_t *q = a.first_page; q < a.first_page + a.page_bytes; q++)
        if ((q < m->first || q >= m->first + a.bytes) && *q != POISON) {
            char text[128];
            snprintf(text, sizeof text, "byte %td of device memory of %zu bytes was written", q - m->first,
                    a.bytes);
            fault_of(cudaErrorIllegalAddress, text);
            break;
        }
    mmap(a.first_page, a.page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
            0);
    if (a.fd >= 0)
        close(a.fd);
    emu.device_used -= a.bytes;
    emu.memory.erase(m);
    return emu.fault;
}
extern "C" cudaError_t cudaHostAlloc(void **ret, size_t bytes, unsigned) {
    guard g(emu.lock);
    if (captures)
        return fails(cudaErrorStreamCaptureUnsupported);
    *ret = bytes > emu_setting("CUDA_EMU_PINNED", UINT64_MAX)
                   ? NULL /* of one piece, so many bytes can be pinned */
                   : aligned_alloc(256, (bytes + 256) & ~(size_t)255);
    if (!*ret)
        return fails(cudaErrorMemoryAllocation);
    emu.host[(uint8_t *)*ret] = bytes;
    return cudaSuccess;
}
extern "C" cudaError_t cudaFreeHost(void *p) {
    guard g(emu.lock);
    if (p && emu.host.erase((uint8_t *)p) == 0)
        return fails(cudaErrorInvalidValue);
    free(p);
    return cudaSuccess;
}

extern "C" cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    guard g(emu.lock);
    size_t all = bytes;
    if (!p || bytes == 0)
        return fails(cudaErrorInvalidValue);
    for (const auto &r : emu.registered)
        all += r.second;
    for (const auto &h : emu.host)
        all += h.second;
    if (all > emu_setting("CUDA_EMU_PINNED", UINT64_MAX))
        return fails(cudaErrorMemoryAllocation);
    return emu.registered.insert({p, bytes}).second ? cudaSuccess
                                                    : fails(cudaErrorHostMemoryAlreadyRegistered);
}
extern "C" cudaError_t cudaHostUnregister(void *p) {
    guard g(emu.lock);
    return emu.registered.erase(p) ? cudaSuccess : fails(cudaErrorInvalidValue);
}
extern "C" cudaError_t cudaHostGetDevicePointer(void **ret, void *host, unsigned) {
    *ret = host;
    return cudaSuccess;
}
static bool peers(int device, int other) {
    return exists(device) && exists(other) && device != other && emu_setting("CUDA_EMU_PEERS", 1);
}
extern "C" cudaError_t cudaDeviceEnablePeerAccess(int device, unsigned) {
    return exists(device) && emu_setting("CUDA_EMU_PEERS", 1) ? cudaSuccess
                                                              : fails(cudaErrorPeerAccessUnsupported);
}
extern "C" cudaError_t cudaDeviceCanAccessPeer(int *ret, int device, int peer) {
    *ret = peers(device, peer);
    return exists(device) && exists(peer) ? cudaSuccess : fails(cudaErrorInvalidDevice);
}

/* Whether [p, p + bytes) is within one allocation. */
static bool of_device(const void *p, size_t bytes) {
    auto m = emu.memory.upper_bound((uint8_t *)p);
    if (m == emu.memory.begin())
        return false;
    --m;
    const size_t at = (size_t)((uint8_t *)p - m->first);
    return at <= m->second.bytes && bytes <= m->second.bytes - at;
}

/* --- streams --- */

/* The caller holds the lock once: the work runs without it, since it may wait for another thread's. */
static cudaError_t run_one(emu_stream *s) {
    work w = std::move(s->queue.front());
    s->queue.pop_front();
    s->ran++;
    emu.works++;
    if (emu.fault != cudaSuccess)
        return emu.fault;
    if (emu_breaks("CUDA_EMU_FAULT"))
        return fault_of(cudaErrorIllegalAddress, "an illegal memory access was encountered");
    if (emu.running++ == 0)
        open_memory();
    emu.lock.unlock();
    const cudaError_t e = w();
    emu.lock.lock();
    if (--emu.running == 0)
        close_memory();
    return e;
}
static cudaError_t run_until(emu_stream *s, uint64_t number) {
    while (s->ran < number && !s->queue.empty())
        run_one(s);
    return emu.fault;
}
static cudaError_t queue(emu_stream *s, work w) {
    if (!s)
        return fails(cudaErrorInvalidResourceHandle);
    if (emu.fault != cudaSuccess)
        return fails(emu.fault);
    if (s->capture) {
        s->capture->works.push_back(std::move(w));
        return cudaSuccess;
    }
    s->queue.push_back(std::move(w));
    s->queued++;
    return s->eager ? run_until(s, s->queued) : cudaSuccess;
}

extern "C" cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret, unsigned) {
    guard g(emu.lock);
    *ret = new emu_stream();
    (*ret)->eager = emu.eager & 1;
    emu.eager >>= 1;
    return emu.fault;
}
extern "C" cudaError_t cudaStreamDestroy(cudaStream_t s) {
    guard g(emu.lock);
    if (!s)
        return fails(cudaErrorInvalidResourceHandle);
    run_until(s, s->queued);
    delete s;
    return cudaSuccess;
}
extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    guard g(emu.lock);
    if (!s)
        return fails(cudaErrorInvalidResourceHandle);
    return s->capture ? fails(cudaErrorStreamCaptureUnsupported) : run_until(s, s->queued);
}
static bool hangs() {
    const char *name = getenv("CUDA_EMU_HANG");
    FILE *file = name ? fopen(name, "re") : nullptr;
    unsigned more;
    if (!file || fscanf(file, "%u", &more) != 1)
        emu.hang_at = 0;
    else if (emu.hang_at == 0)
        emu.hang_at = emu.works + more;
    if (file)
        fclose(file);
    return emu.hang_at > 0 && emu.works >= emu.hang_at;
}
/* Whoever asks finds the device a work further. */
static cudaError_t ask(emu_stream *s, uint64_t number) {
    if (s->ran >= number)
        return emu.fault;
    if (hangs())
        return cudaErrorNotReady;
    run_one(s);
    return emu.fault != cudaSuccess ? emu.fault : cudaErrorNotReady;
}
extern "C" cudaError_t cudaStreamQuery(cudaStream_t s) {
    guard g(emu.lock);
    if (!s)
        return fails(cudaErrorInvalidResourceHandle);
    return s->capture ? fails(cudaErrorStreamCaptureUnsupported) : ask(s, s->queued);
}

extern "C" cudaError_t cudaMemcpyAsync(
        void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s) {
    guard g(emu.lock);
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice,
               from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (bytes == 0)
        return cudaSuccess;
    if (of_device(to, bytes) != to_device || of_device(from, bytes) != from_device)
        return fails(cudaErrorInvalidValue);
    return queue(s, [=] {
        memmove(to, from, bytes);
        return cudaSuccess;
    });
}
extern "C" cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s) {
    guard g(emu.lock);
    if (bytes == 0)
        return cudaSuccess;
    if (!of_device(to, bytes))
        return fails(cudaErrorInvalidValue);
    return queue(s, [=] {
        memset(to, value, bytes);
        return cudaSuccess;
    });
}

/* --- kernels --- */

cudaError_t emu_set_shared_limit(const void *kernel_key, int bytes) {
    guard g(emu.lock);
    if (emu_setting("CUDA_EMU_CAPABILITY", CAPABILITY) == 80)
        return fails(cudaErrorNoKernelImageForDevice);
    if (bytes < 0 || (unsigned)bytes > EMU_SHARED_MAX)
        return fails(cudaErrorInvalidValue);
    emu.shared_limit[kernel_key] = bytes;
    return cudaSuccess;
}
cudaError_t emu_queue_kernel(cudaStream_t s, const emu_launch &l) {
    guard g(emu.lock);
    auto limit = emu.shared_limit.find(l.kernel_key);
    const size_t most = limit == emu.shared_limit.end() || (unsigned)limit->second < EMU_SHARED_PLAIN
                                ? EMU_SHARED_PLAIN
                                : (size_t)limit->second;
    if (l.grid.x < 1 || l.grid.y < 1 || l.grid.z < 1 || l.grid.y > 65535 || l.grid.z > 65535 ||
            l.threads < 1 || l.threads > EMU_THREADS_MAX)
        return fails(cudaErrorInvalidConfiguration);
    if (l.shared_bytes > most)
        return fails(cudaErrorInvalidValue);
    return queue(s, [=] {
        const char *fault = emu_run_kernel(l);
        guard g(emu.lock);
        return fault ? fault_of(cudaErrorIllegalAddress, fault) : cudaSuccess;
    });
}

/* --- events --- */

extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned) {
    *ret = new emu_event();
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventDestroy(cudaEvent_t ev) {
    guard g(emu.lock);
    delete ev;
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventRecord(cudaEvent_t ev, cudaStream_t s) {
    guard g(emu.lock);
    if (!ev || !s)
        return fails(cudaErrorInvalidResourceHandle);
    ev->stream = s;
    ev->number = s->queued;
    ev->capture = s->capture;
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventQuery(cudaEvent_t ev) {
    guard g(emu.lock);
    return ev->stream ? ask(ev->stream, ev->number) : emu.fault;
}
extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t ev) {
    guard g(emu.lock);
    return ev->stream ? run_until(ev->stream, ev->number) : emu.fault;
}
extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t ev, unsigned) {
    guard g(emu.lock);
    emu_stream *of = ev->stream;
    const uint64_t number = ev->number;
    if (!of || of == s)
        return cudaSuccess;
    if (ev->capture || s->capture) { /* both of one capture, or s is drawn into it */
        if (!ev->capture || (s->capture && s->capture != ev->capture))
            return fails(cudaErrorStreamCaptureUnsupported);
        if (!s->capture) {
            s->capture = ev->capture;
            s->capture->branches.insert(s);
        } else if (s->capture->branches.erase(of)) {
            of->capture = NULL;
        }
        return cudaSuccess;
    }
    return queue(s, [=] {
        guard g(emu.lock);
        return run_until(of, number);
    });
}

/* --- graphs --- */

extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode) {
    guard g(emu.lock);
    if (!s || s->capture)
        return fails(s ? cudaErrorIllegalState : cudaErrorInvalidResourceHandle);
    s->capture = new emu_graph();
    captures++;
    return emu.fault;
}
extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *ret) {
    guard g(emu.lock);
    if (!s || !s->capture)
        return fails(s ? cudaErrorIllegalState : cudaErrorInvalidResourceHandle);
    if (!s->capture->branches.empty())
        return fails(cudaErrorStreamCaptureUnjoined);
    *ret = s->capture;
    s->capture = NULL;
    captures--;
    return emu.fault;
}
extern "C" cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n) {
    if (!graph || nodes)
        return fails(cudaErrorInvalidResourceHandle); /* counted, not told */
    *n = graph->works.size();
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ret, cudaGraph_t graph, unsigned long long) {
    *ret = new emu_graph_exec{graph->works};
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphUpload(cudaGraphExec_t g, cudaStream_t s) {
    return g && s && !s->capture ? cudaSuccess : fails(cudaErrorInvalidResourceHandle);
}
extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    guard g(emu.lock);
    if (!exec || !s || s->capture)
        return fails(exec && s ? cudaErrorStreamCaptureUnsupported : cudaErrorInvalidResourceHandle);
    for (const work &w : exec->works)
        queue(s, w);
    return emu.fault;
}
extern "C" cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
