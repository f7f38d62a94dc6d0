/* gpu.c - see gpu.h. */
#include "launcher/serve/gpu.h"

#include "base/log.h"
#include "base/sizes.h"
#include "launcher/ask.h"
#include "launcher/pci.h"
#include "launcher/programs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROBE_MAX 1024u  /* a flag with a list of GPUs */
#define ASK_MS    60000u /* a driver that sets up eight GPUs takes seconds */

/* --- what the machine shows --- */

/* Tests put a machine of their own there. */
static const char *root(void) {
    const char *dir = getenv("SHARDD_DOCTOR_ROOT");
    return dir ? dir : "";
}

static bool is_there(const char *path) {
    char full[PATH_MAX];
    int n = snprintf(full, sizeof(full), "%s%s", root(), path);
    return n > 0 && n < (int)sizeof(full) && access(full, F_OK) == 0;
}

static bool take_it(void *user, const char *place) {
    (void)user, (void)place;
    return true;
}
/* Is a GPU on the bus, as a machine without a driver shows it? */
static bool on_bus(void) {
    return pci_gpus(root(), take_it, NULL);
}

bool gpu_seen(void) {
    return is_there("/dev/nvidiactl") || is_there("/dev/dxg") || on_bus();
}

/* --- what the CUDA worker says --- */

/* A machine without a driver, and one whose driver does not show the GPU in here. */
static int driver_missing(const char *reason, struct error *e) {
    if (on_bus() && !is_there("/dev/nvidiactl"))
        return error_set(e, -ENODEV,
                "%s; the GPU is on the PCI bus, but there is no /dev/nvidiactl: install the driver or load its "
                "module (in a container, or a unit with PrivateDevices: let it have the GPU)",
                reason);
    return error_set(e, -ENODEV, "%s", reason);
}

static int choose(const char *list, uint32_t n, struct gpu *g, struct error *e) {
    const char *reason = json_string_value(json_object_get(g->probe, "reason"));
    if (!json_is_true(json_object_get(g->probe, "usable")))
        return driver_missing(reason ? reason : "shardd-worker-cuda does not say why", e);
    int rc = devices_choose(g->probe, list, n, &g->ranks, e);
    g->memory_free = devices_memory_least(g->probe, &g->ranks);
    return rc;
}

int gpu_find(const char *libexec_dir, const char *list, uint32_t n, struct gpu *ret, struct error *e) {
    struct error absent;
    *ret = (struct gpu){0};
    if (program_find("shardd-worker-cuda", libexec_dir, ret->worker, &absent) < 0)
        return error_set(e, -ENOENT,
                "the program shardd-worker-cuda is not installed here: it is built where a CUDA toolkit (nvcc) is, by "
                "./quickstart build");
    char probe[PROBE_MAX];
    snprintf(probe, sizeof(probe), "--probe%s%s", list ? "=" : "", list ? list : "");
    int rc = ask_program((char *const[]){ret->worker, probe, NULL}, ASK_MS, &ret->probe, e);
    return rc == 0 ? choose(list, n, ret, e) : rc;
}

void gpu_done(struct gpu *g) {
    json_decref(g->probe);
    g->probe = NULL;
}

/* --- for the log --- */

static const char *text_of(const json_t *o, const char *key) {
    const char *text = json_string_value(json_object_get(o, key));
    return text ? text : "?";
}
static uint64_t bytes_of(const json_t *o, const char *key) {
    const json_int_t bytes = json_integer_value(json_object_get(o, key));
    return bytes > 0 ? (uint64_t)bytes : 0;
}

/* "process 4711 (python3) holds 12.3 GB, ..." */
static void tell_holders(uint32_t gpu, const json_t *device) {
    const json_t *holders = json_object_get(device, "holders");
    char who[512] = "";
    size_t used = 0;
    for (size_t i = 0; i < json_array_size(holders) && used < sizeof(who); i++) {
        const json_t *h = json_array_get(holders, i);
        const uint64_t bytes = bytes_of(h, "bytes");
        used += (size_t)snprintf(who + used, sizeof(who) - used, "%sprocess %llu (%.32s) holds %s",
                i ? ", " : "", (unsigned long long)bytes_of(h, "pid"), text_of(h, "name"),
                bytes ? SIZE_TEXT(bytes) : "an unknown part");
    }
    if (used)
        log_warning("GPU %u is used by others too: %s; %s of %s are free", gpu, who,
                SIZE_TEXT(bytes_of(device, "memory_free")), SIZE_TEXT(bytes_of(device, "memory_total")));
}

void gpu_tell(const struct gpu *g) {
    const json_t *found = json_object_get(g->probe, "devices");
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    bool shared = false;
    if (visible)
        log_info("CUDA_VISIBLE_DEVICES=%.200s: CUDA shows %zu GPUs, counted from 0", visible,
                json_array_size(found));
    for (uint32_t r = 0; r < g->ranks.n; r++) {
        const uint32_t at = g->ranks.at[r];
        const json_t *d = json_array_get(found, at);
        bool first = true;
        log_info("rank %u: GPU %u, %.120s, %.60s at %.40s, %s of %s free", r, at, text_of(d, "name"),
                text_of(d, "uuid"), text_of(d, "place"), SIZE_TEXT(bytes_of(d, "memory_free")),
                SIZE_TEXT(bytes_of(d, "memory_total")));
        for (uint32_t k = 0; k < r; k++)
            first &= g->ranks.at[k] != at;
        shared |= !first;
        if (first)
            tell_holders(at, d);
    }
    struct devices better;
    char order[DEVICES_TEXT];
    if (devices_better(g->probe, &g->ranks, &better))
        log_warning(
                "ranks 0 and 1, 2 and 3 and so on add to each other first, and NVLink is between other GPUs: "
                "--devices %s would be faster",
                devices_text(&better, order));
    if (shared)
        log_warning(
                "several ranks share a GPU, as --devices says: this is for tests, one rank would be faster");
}

int gpu_fits(char *const argv[], struct error *e) {
    json_t *answer = NULL;
    if (ask_program(argv, ASK_MS, &answer, NULL) < 0)
        return 0;
    const char *text = json_string_value(json_object_get(answer, "text"));
    int rc = json_is_false(json_object_get(answer, "fits"))
                     ? error_set(e, -ENOMEM, "%s", text ? text : "the model does not fit")
                     : 0;
    json_decref(answer);
    return rc;
}
