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

static bool same_kind(const json_t *a, const json_t *b) {
    static const enum nvml_reading judged[] = {
            NVML_POWER_LIMIT, NVML_ECC, NVML_SM_CLOCK_MAX, NVML_MEMORY_CLOCK_MAX};
    bool same = json_equal(json_object_get(a, "name"), json_object_get(b, "name")) != 0;
    for (size_t i = 0; same && i < sizeof(judged) / sizeof(judged[0]); i++)
        same = json_equal(json_object_get(a, nvml_reading_name(judged[i])),
                       json_object_get(b, nvml_reading_name(judged[i]))) != 0;
    return same;
}

/* "700 W"; "? W" where the driver does not tell. */
static void print_reading(FILE *out, const char *before, const json_t *card, enum nvml_reading r, double unit,
        const char *unit_name) {
    const json_t *value = json_object_get(card, nvml_reading_name(r));
    if (json_is_integer(value))
        fprintf(out, "%s%.0f %s", before, (double)json_integer_value(value) / unit, unit_name);
    else
        fprintf(out, "%s? %s", before, unit_name);
}

void bench_gpu_print(FILE *out, const json_t *gpu) {
    const json_t *cards = json_object_get(gpu, "cards");
    for (size_t i = 0; i < json_array_size(cards); i++) {
        const json_t *c = json_array_get(cards, i);
        const json_t *ecc = json_object_get(c, nvml_reading_name(NVML_ECC));
        if (i > 0 && same_kind(c, json_array_get(cards, i - 1)))
            continue;
        fprintf(out, "%s, driver %s", json_string_value(json_object_get(c, "name")),
                json_string_value(json_object_get(gpu, "driver")));
        print_reading(out, ": at most ", c, NVML_POWER_LIMIT, 1e3, "W");
        print_reading(out, ", SM ", c, NVML_SM_CLOCK_MAX, 1, "MHz");
        print_reading(out, ", memory ", c, NVML_MEMORY_CLOCK_MAX, 1, "MHz");
        fprintf(out, ", ECC %s\n", !json_is_integer(ecc) ? "?" : json_integer_value(ecc) != 0 ? "on" : "off");
    }
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
