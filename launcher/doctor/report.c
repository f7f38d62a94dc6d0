/* report.c - a checkup as text for a person, or as JSON (docs/cli.md documents its fields). */
#include "launcher/doctor/checkup.h"

#include <errno.h>
#include <string.h>

/* --- text --- */

static void print_verdict(const struct checkup *c, FILE *out) {
    const size_t problems = findings_count(&c->findings, FOUND_PROBLEM);
    const size_t warnings = findings_count(&c->findings, FOUND_WARNING);
    char where[48] = "the CPU";
    if (c->cuda)
        snprintf(where, sizeof(where), "%u GPU%s", c->tp, c->tp == 1 ? "" : "s");
    if (c->findings.failed)
        fprintf(out, "no verdict: out of memory\n");
    else if (problems)
        fprintf(out, "serving on %s would not work: %zu problem%s%s\n", where, problems,
                problems == 1 ? "" : "s",
                c->cuda && !c->cuda_asked ? "; `shardd doctor --device cpu` looks at the CPU alone" : "");
    else
        fprintf(out, "serving on %s would work%s%s\n", where,
                options_text(c->options, OPT_MODEL) ? "" : "; --model DIR tells whether a model fits",
                warnings ? "; the warnings are worth a look" : "");
}

void report_text(const struct checkup *c, FILE *out) {
    const char *where = "";
    for (size_t i = 0; i < c->findings.n; i++) {
        const struct finding *item = &c->findings.items[i];
        if (strcmp(where, item->where) != 0)
            fprintf(out, "%s\n", item->where);
        where = item->where;
        fprintf(out, "  %-8s %s\n", finding_level_name(item->level), item->text);
        if (item->advice[0])
            fprintf(out, "  %-8s -> %s\n", "", item->advice);
    }
    print_verdict(c, out);
}

/* --- JSON --- */

static void put(json_t *o, const char *key, uint64_t value) {
    json_object_set_new(o, key, json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value));
}

/* "" is null. */
static void put_text(json_t *o, const char *key, const char *text) {
    json_object_set_new(o, key, *text ? json_string(text) : json_null());
}

static json_t *findings_json(const struct findings *f) {
    json_t *list = json_array();
    for (size_t i = 0; i < f->n; i++) {
        json_t *o = json_object();
        put_text(o, "check", f->items[i].check);
        put_text(o, "where", f->items[i].where);
        put_text(o, "level", finding_level_name(f->items[i].level));
        put_text(o, "text", f->items[i].text);
        put_text(o, "advice", f->items[i].advice);
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *machine_json(const struct host *h) {
    json_t *o = json_object();
    put_text(o, "cpu", h->cpu);
    put_text(o, "isa", h->isa);
    put(o, "threads", h->threads);
    put(o, "threads_total", h->threads_total);
    put(o, "numa_nodes", h->numa_nodes);
    put(o, "memory_total_bytes", h->memory_total);
    put(o, "memory_available_bytes", h->memory_available);
    json_object_set_new(
            o, "group_limit_bytes", h->group_limit ? json_integer((json_int_t)h->group_limit) : json_null());
    put(o, "huge_pages", h->huge_pages);
    put(o, "huge_page_bytes", h->huge_page_bytes);
    put_text(o, "transparent_huge_pages", h->transparent);
    put(o, "shm_bytes", h->shm_bytes);
    put(o, "shm_free_bytes", h->shm_free);
    json_object_set_new(o, "memlock_bytes",
            h->memlock_bytes == UINT64_MAX ? json_null() : json_integer((json_int_t)h->memlock_bytes));
    return o;
}

static json_t *driver_json(const struct checkup *c) {
    const struct host *h = &c->host;
    json_t *o = json_object(), *bus = json_array(), *nodes = json_array();
    put_text(o, "module", h->module);
    put_text(o, "version", c->nvml.driver);
    json_object_set_new(o, "cuda",
            c->nvml.cuda ? json_sprintf("%u.%u", c->nvml.cuda / 1000, c->nvml.cuda % 1000 / 10)
                         : json_null());
    for (uint32_t i = 0; i < h->n_gpus; i++) {
        json_t *gpu = json_object();
        put_text(gpu, "place", h->gpus[i].place);
        put_text(gpu, "driver", h->gpus[i].driver);
        json_object_set_new(gpu, "numa_node",
                h->gpus[i].numa_node < 0 ? json_null() : json_integer(h->gpus[i].numa_node));
        json_array_append_new(bus, gpu);
    }
    for (uint32_t i = 0; i < h->n_nodes; i++) {
        json_t *node = json_object();
        put_text(node, "path", h->nodes[i].path);
        json_object_set_new(node, "present", json_boolean(h->nodes[i].present));
        json_object_set_new(node, "usable", json_boolean(h->nodes[i].present && !h->nodes[i].refused));
        json_array_append_new(nodes, node);
    }
    json_object_set_new(o, "pci_gpus", bus);
    json_object_set_new(o, "devices", nodes);
    return o;
}

static json_t *reading_json(const struct nvml_gpu *g, enum nvml_reading r) {
    const uint64_t value = g->readings[r].value;
    if (!nvml_known(g, r) || value > INT64_MAX)
        return json_null();
    if (r == NVML_CAPABILITY)
        return json_sprintf("%u.%u", (unsigned)(value / 10), (unsigned)(value % 10));
    return json_integer((json_int_t)value);
}

static json_t *processes_json(const struct checkup *c, const struct nvml_gpu *g) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < g->n_processes; i++) {
        const struct nvml_process *p = &g->processes[i];
        char name[64];
        json_t *o = json_object();
        host_process_name(c->root, p->pid, name, sizeof(name));
        put(o, "pid", p->pid);
        put_text(o, "name", name);
        json_object_set_new(o, "bytes",
                p->bytes_known && p->bytes <= INT64_MAX ? json_integer((json_int_t)p->bytes) : json_null());
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *links_json(const struct nvml_gpu *g) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < g->n_links; i++) {
        json_t *o = json_object();
        json_object_set_new(o, "active", json_boolean(g->links[i].active));
        json_object_set_new(o, "to_switch", json_boolean(g->links[i].to_switch));
        json_object_set_new(o, "peer", g->links[i].peer < 0 ? json_null() : json_integer(g->links[i].peer));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *gpus_json(const struct checkup *c) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->nvml.n_gpus; i++) {
        const struct nvml_gpu *g = &c->nvml.gpus[i];
        json_t *o = json_object();
        put(o, "index", i);
        put_text(o, "name", g->name);
        put_text(o, "uuid", g->uuid);
        put_text(o, "place", g->place);
        json_object_set_new(o, "used", json_boolean(checkup_uses(c, i)));
        for (int r = 0; r < NVML_READINGS_N; r++)
            json_object_set_new(
                    o, nvml_reading_name((enum nvml_reading)r), reading_json(g, (enum nvml_reading)r));
        json_object_set_new(o, "processes", processes_json(c, g));
        json_object_set_new(o, "nvlink", links_json(g));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *or_null(json_t *o) {
    return o ? json_incref(o) : json_null();
}

int report_json(const struct checkup *c, FILE *out) {
    json_t *o = json_object(), *workers = json_object();
    put_text(o, "version", SHARDD_VERSION);
    put_text(o, "device", c->cuda ? "cuda" : "cpu");
    put(o, "tensor_parallel_size", c->tp);
    json_object_set_new(o, "would_serve", json_boolean(checkup_would_serve(c)));
    put(o, "problems", findings_count(&c->findings, FOUND_PROBLEM));
    put(o, "warnings", findings_count(&c->findings, FOUND_WARNING));
    json_object_set_new(o, "findings", findings_json(&c->findings));
    json_object_set_new(o, "machine", machine_json(&c->host));
    json_object_set_new(o, "driver", driver_json(c));
    json_object_set_new(o, "gpus", gpus_json(c));
    json_object_set_new(workers, "cpu", or_null(c->cpu_probe));
    json_object_set_new(workers, "cuda", or_null(c->cuda_probe));
    json_object_set_new(o, "workers", workers);
    json_object_set_new(o, "model", or_null(c->plan));
    int r = o && json_dumpf(o, out, JSON_INDENT(2)) == 0 ? 0 : -ENOMEM;
    if (r == 0)
        fputc('\n', out);
    json_decref(o);
    return r;
}
