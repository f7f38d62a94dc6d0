/* driver_checks.c - is NVIDIA's driver there, whole and of one version, and may this user open its devices? */
#include "launcher/doctor/checkup.h"

#include <stdlib.h>
#include <string.h>

#define WHERE "driver"

/* --- the bus --- */

static void check_hardware(struct checkup *c) {
    struct findings *f = &c->findings;
    const uint32_t n = c->host.n_gpus;
    if (n > 0)
        found(f, WHERE, "driver.hardware", FOUND_OK, "%u NVIDIA GPU%s on the PCI bus", n, n == 1 ? "" : "s");
    else if (c->host.wsl)
        found(f, WHERE, "driver.hardware", FOUND_NOTE, "Windows has the GPU and its driver (/dev/dxg)");
    else if (c->nvml.n_found > 0)
        found(f, WHERE, "driver.hardware", FOUND_NOTE,
                "the PCI bus shows no GPU, the driver does: a container?");
    else if (!c->cuda)
        found(f, WHERE, "driver.hardware", FOUND_NOTE,
                "this machine has no NVIDIA GPU: --device auto serves on the CPU, --device cuda is refused");
    else {
        found(f, WHERE, "driver.hardware", FOUND_PROBLEM, "this machine shows no NVIDIA GPU");
        advise(f, c->host.container
                          ? "Start the container with its GPUs (docker run --gpus all), or take --device cpu."
                          : "Take --device cpu, or a machine with a GPU; into a virtual machine it has to be "
                            "passed through.");
    }
}

/* --- the kernel's side --- */

static const char *other_driver(const struct host *h) {
    for (uint32_t i = 0; i < h->n_gpus; i++)
        if (h->gpus[i].driver[0] && strncmp(h->gpus[i].driver, "nvidia", 6) != 0)
            return h->gpus[i].driver;
    return NULL;
}

static void check_module(struct checkup *c) {
    struct findings *f = &c->findings;
    const char *other = other_driver(&c->host);
    const bool works = c->nvml.opened && c->nvml.status == NVML_OK;
    if (c->host.module[0])
        found(f, WHERE, "driver.module", FOUND_OK, "kernel module %s", c->host.module);
    else if (c->host.wsl || works)
        return; /* elsewhere, and the library can talk to it */
    else if (other && strcmp(other, "nouveau") == 0) {
        found(f, WHERE, "driver.module", FOUND_PROBLEM,
                "the nouveau driver has the GPU, NVIDIA's is not loaded");
        advise(f, "Install NVIDIA's driver, which keeps nouveau from loading, and reboot.");
    } else if (other) {
        found(f, WHERE, "driver.module", FOUND_PROBLEM,
                "the kernel driver %s has the GPU, NVIDIA's is not loaded", other);
        advise(f,
                "Take the GPU from %s (vfio-pci keeps it for virtual machines) and run `sudo modprobe nvidia`.",
                other);
    } else {
        found(f, WHERE, "driver.module", FOUND_PROBLEM, "NVIDIA's kernel module is not loaded");
        advise(f,
                "Install the driver and run `sudo modprobe nvidia`; where that fails, `sudo dmesg | grep -i nvrm` "
                "says why (Secure Boot refuses modules that are not signed).");
    }
}

static void check_node(struct checkup *c, const struct host_node *n, const char *check) {
    struct findings *f = &c->findings;
    if (n->present && !n->refused) {
        found(f, WHERE, check, FOUND_OK, "%s may be opened", n->path);
    } else if (n->present) {
        found(f, WHERE, check, FOUND_PROBLEM, "%s may not be opened by this user: %s (mode %04o)", n->path,
                strerror(n->refused), n->mode);
        advise(f,
                "Add the user to the group that owns it (`ls -l %s`; in a systemd unit SupplementaryGroups=), or set "
                "NVreg_DeviceFileMode of the module nvidia.",
                n->path);
    } else if (c->host.modprobe) {
        found(f, WHERE, check, FOUND_NOTE, "%s is missing; nvidia-modprobe makes it when CUDA starts",
                n->path);
    } else {
        found(f, WHERE, check, FOUND_PROBLEM, "%s is missing", n->path);
        advise(f, c->host.container
                          ? "Start the container with all devices of the GPU (docker run --gpus all)."
                          : "Run `sudo modprobe nvidia-uvm` and `sudo nvidia-modprobe -u -c=0`, once after "
                            "each boot (nvidia-persistenced does it too).");
    }
}

static void check_nodes(struct checkup *c) {
    const bool works = c->host.module[0] || (c->nvml.opened && c->nvml.status == NVML_OK);
    if (c->host.wsl || !works || c->host.n_nodes <= HOST_NODE_UVM)
        return;
    check_node(c, &c->host.nodes[HOST_NODE_CONTROL], "driver.control_device");
    check_node(c, &c->host.nodes[HOST_NODE_UVM], "driver.uvm_device");
    for (uint32_t i = HOST_NODE_UVM + 1; i < c->host.n_nodes; i++)
        if (c->host.nodes[i].refused)
            check_node(c, &c->host.nodes[i], "driver.gpu_device");
}

/* --- the library's side --- */

static void check_no_library(struct checkup *c) {
    struct findings *f = &c->findings;
    found(f, WHERE, "driver.library", c->host.module[0] ? FOUND_WARNING : FOUND_NOTE,
            "nothing is known of the GPUs' state: %s", c->nvml.absent);
    if (c->host.module[0])
        advise(f, c->host.container
                          ? "Add `utility` to NVIDIA_DRIVER_CAPABILITIES of the container."
                          : "Install the libraries of the driver (nvidia-smi comes with them), of the "
                            "module's version.");
}

static void check_init(struct checkup *c) {
    struct findings *f = &c->findings;
    const int status = c->nvml.status;
    if (status == NVML_VERSION_MISMATCH) {
        found(f, WHERE, "driver.library", FOUND_PROBLEM,
                "the driver's libraries and its loaded kernel module (%s) are of different versions",
                c->host.module[0] ? c->host.module : "of unknown version");
        advise(f, "Reboot: the driver was updated while the old module was running.");
        return;
    }
    found(f, WHERE, "driver.library", FOUND_PROBLEM, "the driver cannot be asked: nvmlInit %s (%d)",
            nvml_status_text(status), status);
    if (status == NVML_NO_PERMISSION || status == NVML_BLOCKED)
        advise(f, "Give this user the devices /dev/nvidia* (group, or the control group's device list).");
    else if (status == NVML_DRIVER_NOT_LOADED)
        advise(f, "Run `sudo modprobe nvidia`; `sudo dmesg | grep -i nvrm` says why it does not load.");
    else
        advise(f, "Look into `nvidia-smi` and `sudo dmesg | grep -i -e nvrm -e xid`; a reboot often helps.");
}

static void check_library(struct checkup *c) {
    struct findings *f = &c->findings;
    const struct nvml *n = &c->nvml;
    if (!n->opened) {
        check_no_library(c);
        return;
    }
    if (n->status != NVML_OK) {
        check_init(c);
        return;
    }
    const char *driver = n->driver[0] ? n->driver : "of unknown version";
    if (n->cuda)
        found(f, WHERE, "driver.library", FOUND_OK, "driver %s, CUDA up to %u.%u", driver, n->cuda / 1000,
                n->cuda % 1000 / 10);
    else
        found(f, WHERE, "driver.library", FOUND_OK, "driver %s", driver);
    if (n->driver[0] && c->host.module[0] && strcmp(n->driver, c->host.module) != 0) {
        found(f, WHERE, "driver.versions", FOUND_WARNING,
                "the driver's library is %s and its kernel module %s", n->driver, c->host.module);
        advise(f, "Reboot, so that both are of one version.");
    }
    if (n->n_found == 0) {
        found(f, WHERE, "driver.gpus", FOUND_PROBLEM, "the driver shows no GPU%s%s",
                n->count_status == NVML_OK ? "" : ": nvmlDeviceGetCount ",
                n->count_status == NVML_OK ? "" : nvml_status_text(n->count_status));
        advise(f,
                "`sudo dmesg | grep -i -e nvrm -e xid` says what became of it; check its seat and power cables.");
    } else if (n->n_found > n->n_gpus)
        found(f, WHERE, "driver.gpus", FOUND_NOTE, "the driver counts %u GPUs; the first %u were looked at",
                n->n_found, n->n_gpus);
}

/* --- the environment --- */

static void check_visible(struct checkup *c) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    char shown[64];
    if (!visible)
        return;
    snprintf(shown, sizeof(shown), "%s", visible);
    for (char *at = shown; *at; at++)
        if (*at < 0x20 || *at > 0x7E)
            *at = '?';
    if (!*visible || strcmp(visible, "-1") == 0) {
        found(&c->findings, WHERE, "driver.visible", FOUND_PROBLEM, "CUDA_VISIBLE_DEVICES=%s hides every GPU",
                shown);
        advise(&c->findings, "Unset CUDA_VISIBLE_DEVICES, or list the GPUs in it that may be used.");
    } else
        found(&c->findings, WHERE, "driver.visible", FOUND_NOTE,
                "CUDA_VISIBLE_DEVICES=%s: ranks take these GPUs, in this order", shown);
}

/* Refusals that only a module which is there can give. */
static bool refused_by_driver(const struct nvml *n) {
    return n->opened && (n->status == NVML_VERSION_MISMATCH || n->status == NVML_NO_PERMISSION ||
                                n->status == NVML_BLOCKED || n->status == NVML_GPU_IS_LOST);
}

bool checkup_sees_gpu(const struct checkup *c) {
    const struct host *h = &c->host;
    return h->n_gpus > 0 || h->module[0] || h->wsl || c->nvml.n_found > 0 || refused_by_driver(&c->nvml) ||
           (h->n_nodes > HOST_NODE_CONTROL && h->nodes[HOST_NODE_CONTROL].present);
}

void check_driver(struct checkup *c) {
    check_hardware(c);
    if (!c->cuda || !checkup_sees_gpu(c))
        return;
    check_module(c);
    check_library(c);
    check_nodes(c);
    check_visible(c);
}
