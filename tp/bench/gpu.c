/* gpu.c - see gpu.h. */
#include "tp/bench/gpu.h"

#include "base/nvml.h"

static void put_reading(json_t *o, const struct nvml_gpu *g, enum nvml_reading r) {
    const uint64_t value = g->readings[r].value;
    const bool known = g->status == NVML_OK && nvml_known(g, r) && value <= INT64_MAX;
    json_object_set_new(o, nvml_reading_name(r), known ? json_integer((json_int_t)value) : json_null());
}

static json_t *card(uint32_t index, const struct nvml_gpu *g) {
    json_t *o = json_object();
    json_object_set_new(o, "index", json_integer(index));
    json_object_set_new(o, "name", json_string(g->name));
    json_object_set_new(o, "place", json_string(g->place));
    for (int r = 0; r < NVML_READINGS_N; r++)
        put_reading(o, g, (enum nvml_reading)r);
    return o;
}

json_t *bench_gpu(const char *library) {
    struct nvml n;
    nvml_look(library, &n);
    json_t *o = NULL, *cards = json_array();
    for (uint32_t i = 0; i < n.n_gpus; i++)
        json_array_append_new(cards, card(i, &n.gpus[i]));
    if (n.opened && n.status == NVML_OK)
        o = json_pack("{s:s, s:o, s:O}", "driver", n.driver, "cuda",
                json_sprintf("%u.%u", n.cuda / 1000, n.cuda % 1000 / 10), "cards", cards);
    json_decref(cards);
    nvml_done(&n);
    return o;
}

json_t *bench_gpu_load(const char *library) {
    static const enum nvml_reading readings[] = {
            NVML_SM_CLOCK, NVML_MEMORY_CLOCK, NVML_POWER_DRAW, NVML_TEMPERATURE, NVML_CLOCK_REASONS};
    struct nvml n;
    nvml_look(library, &n);
    json_t *cards = n.opened && n.status == NVML_OK ? json_array() : NULL;
    for (uint32_t i = 0; cards && i < n.n_gpus; i++) {
        json_t *o = json_object();
        for (size_t r = 0; r < sizeof(readings) / sizeof(readings[0]); r++)
            put_reading(o, &n.gpus[i], readings[r]);
        json_array_append_new(cards, o);
    }
    nvml_done(&n);
    return cards;
}
