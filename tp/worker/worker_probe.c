/* worker_probe.c - `--probe`: what the kernels library of this program finds on this machine, for the launcher, which
 * links none. Nothing is loaded; a GPU is only opened and left. */
#include "base/limits.h"
#include "base/nvml.h"
#include "tp/worker/worker.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define DEVICES_MAX 64u

static json_t *text(const char *s) {
    json_t *t = json_string(s);
    return t ? t : json_string("?"); /* no UTF-8 */
}

/* 12040 is "12.4", 86 is "8.6"; 0 is null. */
static json_t *version(uint32_t major, uint32_t minor) {
    return major ? json_sprintf("%u.%u", major, minor) : json_null();
}

/* --- who else uses a GPU --- */

static void process_name(uint32_t pid, char *name, size_t bytes) {
    char path[64];
    name[0] = '\0';
    snprintf(path, sizeof(path), "/proc/%u/comm", pid);
    FILE *f = fopen(path, "re");
    if (f && fgets(name, (int)bytes, f))
        name[strcspn(name, "\n")] = '\0';
    if (f)
        fclose(f);
}

/* Programs that compute on it, this one left out; in a container those outside have no name. */
static json_t *holders_json(const struct nvml_gpu *g) {
    json_t *list = json_array();
    for (uint32_t i = 0; g && i < g->n_processes; i++) {
        const struct nvml_process *p = &g->processes[i];
        char name[64];
        if (p->pid == (uint32_t)getpid())
            continue;
        process_name(p->pid, name, sizeof(name));
        json_t *o = json_object();
        json_object_set_new(o, "pid", json_integer(p->pid));
        json_object_set_new(o, "name", text(name));
        json_object_set_new(o, "bytes", p->bytes_known ? json_integer((json_int_t)p->bytes) : json_null());
        json_array_append_new(list, o);
    }
    return list;
}

/* --- NVLink --- */

/* Bit i: NVLink leads to device i. */
static uint64_t nvlinks_of(
        const struct nvml *nvml, const struct k_device *devices, uint32_t n, uint32_t device) {
    const struct nvml_gpu *g = nvml_gpu_at(nvml, devices[device].place);
    uint64_t set = 0;
    for (uint32_t i = 0; g && i < n; i++) {
        const struct nvml_gpu *other = nvml_gpu_at(nvml, devices[i].place);
        if (other && nvml_linked(nvml, g, other))
            set |= UINT64_C(1) << i;
    }
    return set;
}

/* --- the answer --- */

static json_t *indices_json(uint64_t set) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < DEVICES_MAX; i++)
        if (set >> i & 1)
            json_array_append_new(list, json_integer(i));
    return list;
}

static json_t *device_json(
        uint32_t index, const struct k_device *d, const struct nvml_gpu *gpu, uint64_t nvlinks) {
    json_t *o = json_object();
    json_object_set_new(o, "index", json_integer(index));
    json_object_set_new(o, "name", text(d->name));
    json_object_set_new(o, "place", text(d->place));
    json_object_set_new(o, "uuid", text(d->uuid));
    json_object_set_new(o, "compute_capability", version(d->capability / 10, d->capability % 10));
    json_object_set_new(o, "units", json_integer(d->units));
    json_object_set_new(o, "memory_total", json_integer((json_int_t)d->memory_total));
    json_object_set_new(o, "memory_free", json_integer((json_int_t)d->memory_free));
    json_object_set_new(o, "peers", indices_json(d->peers));
    json_object_set_new(o, "nvlinks", indices_json(nvlinks));
    json_object_set_new(o, "holders", holders_json(gpu));
    json_object_set_new(o, "usable", json_boolean(d->refused.code == 0));
    json_object_set_new(o, "reason", text(d->refused.text));
    return o;
}

/* Whether any device can be used; else why the first that was to be opened cannot. */
static const char *reason_of(const struct k_device *devices, uint32_t n) {
    const char *why = NULL;
    for (uint32_t i = 0; i < n; i++) {
        if (devices[i].refused.code == 0)
            return "";
        if (!why && devices[i].refused.code != -ECANCELED)
            why = devices[i].refused.text;
    }
    return why ? why : "there is no device";
}

/* --- which are opened --- */

static void close_all(struct k_device *devices) {
    for (uint32_t i = 0; i < DEVICES_MAX; i++)
        error_set(&devices[i].refused, -ECANCELED, "it was not opened: others were asked for");
}
/* Those that a list of numbers and beginnings of UUIDs names are to be opened; returns how many. */
static uint32_t open_named(const char *list, struct k_device *devices, uint32_t n) {
    uint32_t named = 0;
    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',') {
        const size_t length = strcspn(at, ",");
        char *end;
        const unsigned long number = strtoul(at, &end, 10);
        const bool is_number = end != at && end == at + length;
        for (uint32_t i = 0; i < n && length; i++)
            if (is_number ? number == i : strncasecmp(devices[i].uuid, at, length) == 0) {
                devices[i].refused = (struct error){0};
                named++;
            }
    }
    return named;
}
static int look(const char *list, struct k_platform *p, struct k_device *devices, struct error *e) {
    if (!list)
        return k_devices(p, devices, DEVICES_MAX, e);
    close_all(devices);
    int r = k_devices(p, devices, DEVICES_MAX, e); /* their UUIDs */
    if (r < 0)
        return r;
    if (open_named(list, devices, p->n_devices < DEVICES_MAX ? p->n_devices : DEVICES_MAX) == 0)
        memset(devices, 0, DEVICES_MAX * sizeof(devices[0]));
    return k_devices(p, devices, DEVICES_MAX, e);
}

int worker_probe(const char *list) {
    struct k_platform p;
    struct nvml nvml = {0};
    struct error e = {0};
    struct k_device *devices = calloc(DEVICES_MAX, sizeof(devices[0]));
    if (!devices)
        return EXIT_FAILURE;
    int r = look(list, &p, devices, &e);
    const uint32_t n = r < 0 ? 0 : p.n_devices < DEVICES_MAX ? p.n_devices : DEVICES_MAX;
    const char *reason = r < 0 ? e.text : reason_of(devices, n);
    json_t *o = json_object(), *found = json_array();
    if (n && strcmp(p.kind, "cuda") == 0)
        nvml_look(NULL, &nvml);
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(found, device_json(i, &devices[i], nvml_gpu_at(&nvml, devices[i].place),
                                             nvlinks_of(&nvml, devices, n, i)));
    nvml_done(&nvml);
    json_object_set_new(o, "kind", text(p.kind));
    json_object_set_new(o, "version", text(SHARDD_VERSION));
    json_object_set_new(o, "driver", version(p.driver / 1000, p.driver % 1000 / 10));
    json_object_set_new(o, "runtime", version(p.runtime / 1000, p.runtime % 1000 / 10));
    json_object_set_new(o, "usable", json_boolean(!reason[0]));
    json_object_set_new(o, "reason", text(reason));
    json_object_set_new(o, "devices", found);
    char *line = json_dumps(o, JSON_COMPACT);
    if (line)
        puts(line);
    bool told = line && fflush(stdout) == 0;
    free(line);
    json_decref(o);
    free(devices);
    return told ? EXIT_SUCCESS : EXIT_FAILURE;
}
