/* gpu.c - see gpu.h. */
#include "launcher/serve/gpu.h"

#include "launcher/ask.h"
#include "launcher/pci.h"
#include "launcher/programs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ASK_MS 60000u /* a driver that sets up eight GPUs takes seconds */

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

static int read_probe(const json_t *answer, struct gpu *ret, struct error *e) {
    const json_t *first = json_array_get(json_object_get(answer, "devices"), 0);
    const char *reason = json_string_value(json_object_get(answer, "reason"));
    if (!json_is_true(json_object_get(answer, "usable")))
        return driver_missing(reason ? reason : "shardd-worker-cuda does not say why", e);
    ret->memory_free = (uint64_t)json_integer_value(json_object_get(first, "memory_free"));
    return 0;
}

int gpu_find(const char *libexec_dir, struct gpu *ret, struct error *e) {
    json_t *answer = NULL;
    struct error absent;
    if (program_find("shardd-worker-cuda", libexec_dir, ret->worker, &absent) < 0)
        return error_set(e, -ENOENT,
                "the program shardd-worker-cuda is not installed here: it is built where a CUDA toolkit (nvcc) is, by "
                "./quickstart build");
    int rc = ask_program((char *const[]){ret->worker, (char *)"--probe", NULL}, ASK_MS, &answer, e);
    if (rc == 0)
        rc = read_probe(answer, ret, e);
    json_decref(answer);
    return rc;
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
