/* worker_probe.c - `--probe`: what the kernels library of this program finds on this machine, for the launcher, which
 * links none. Nothing is loaded; a GPU is only opened and left. */
#include "base/limits.h"
#include "tp/worker/worker.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#define DEVICES_MAX 64u

static json_t *text(const char *s) {
    json_t *t = json_string(s);
    return t ? t : json_string("?"); /* no UTF-8 */
}

/* 12040 is "12.4", 86 is "8.6"; 0 is null. */
static json_t *version(uint32_t major, uint32_t minor) {
    return major ? json_sprintf("%u.%u", major, minor) : json_null();
}

static json_t *device_json(uint32_t index, const struct k_device *d) {
    json_t *o = json_object();
    json_object_set_new(o, "index", json_integer(index));
    json_object_set_new(o, "name", text(d->name));
    json_object_set_new(o, "place", text(d->place));
    json_object_set_new(o, "compute_capability", version(d->capability / 10, d->capability % 10));
    json_object_set_new(o, "units", json_integer(d->units));
    json_object_set_new(o, "memory_total", json_integer((json_int_t)d->memory_total));
    json_object_set_new(o, "memory_free", json_integer((json_int_t)d->memory_free));
    json_object_set_new(o, "usable", json_boolean(d->refused.code == 0));
    json_object_set_new(o, "reason", text(d->refused.text));
    return o;
}

int worker_probe(void) {
    struct k_platform p;
    struct error e = {0};
    struct k_device *devices = calloc(DEVICES_MAX, sizeof(devices[0]));
    if (!devices)
        return EXIT_FAILURE;
    int r = k_devices(&p, devices, DEVICES_MAX, &e);
    /* Rank 0 takes the first device: whether that one can be used decides. */
    const char *reason = r < 0 ? e.text : devices[0].refused.text;
    json_t *o = json_object(), *list = json_array();
    for (uint32_t i = 0; r == 0 && i < p.n_devices && i < DEVICES_MAX; i++)
        json_array_append_new(list, device_json(i, &devices[i]));
    json_object_set_new(o, "kind", text(p.kind));
    json_object_set_new(o, "version", text(SHARDD_VERSION));
    json_object_set_new(o, "driver", version(p.driver / 1000, p.driver % 1000 / 10));
    json_object_set_new(o, "runtime", version(p.runtime / 1000, p.runtime % 1000 / 10));
    json_object_set_new(o, "usable", json_boolean(!reason[0]));
    json_object_set_new(o, "reason", text(reason));
    json_object_set_new(o, "devices", list);
    char *line = json_dumps(o, JSON_COMPACT);
    if (line)
        puts(line);
    bool told = line && fflush(stdout) == 0;
    free(line);
    json_decref(o);
    free(devices);
    return told ? EXIT_SUCCESS : EXIT_FAILURE;
}
