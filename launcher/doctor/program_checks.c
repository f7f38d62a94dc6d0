/* program_checks.c - are the programs of shardd there, and what does the worker itself find (`--probe`)? Its word
 * counts: it opens the device as it would to serve. */
#include "launcher/doctor/checkup.h"

#include "base/sizes.h"
#include "launcher/ask.h"
#include "launcher/programs.h"

#include <string.h>
#include <strings.h>

#define WHERE            "programs"
#define PROBE_TIMEOUT_MS 60000u /* a driver that starts each of eight cards anew takes half of it */

/* --- what a probe says --- */

static const char *text_of(const json_t *o, const char *key) {
    const char *text = json_string_value(json_object_get(o, key));
    return text ? text : "";
}

static const json_t *device_of(const struct checkup *c, uint32_t device) {
    return json_array_get(json_object_get(c->cuda_probe, "devices"), device);
}

const json_t *checkup_device(const struct checkup *c, uint32_t rank) {
    return device_of(c, rank < c->ranks.n ? c->ranks.at[rank] : rank);
}

bool checkup_uses(const struct checkup *c, uint32_t gpu) {
    const char *place = c->nvml.gpus[gpu].place;
    bool placed = false;
    for (uint32_t rank = 0; rank < c->tp; rank++) {
        const char *at = text_of(checkup_device(c, rank), "place");
        placed |= *at != '\0';
        if (*at && strcasecmp(at, place) == 0)
            return true;
    }
    return !placed && gpu < c->tp;
}

/* --- finding and asking --- */

/* What the worker answers; NULL with a finding of this level where it is there and does not, and NULL alone where it is
 * not there. */
static json_t *probe(struct checkup *c, const char *name, const char *check, enum finding_level level) {
    char path[PATH_MAX];
    struct error e = {0};
    json_t *answer = NULL;
    if (program_find(name, options_text(c->options, OPT_LIBEXEC_DIR), path, &e) < 0)
        return NULL;
    char *const argv[] = {path, "--probe", NULL};
    if (ask_program(argv, PROBE_TIMEOUT_MS, &answer, &e) < 0) {
        found(&c->findings, WHERE, check, level, "%s", e.text);
        advise(&c->findings, "Run `%s --probe` by hand; build or install shardd anew.", path);
        return NULL;
    }
    const char *version = text_of(answer, "version");
    if (strcmp(version, SHARDD_VERSION) != 0) {
        found(&c->findings, WHERE, check, FOUND_WARNING,
                "%s is of version %.32s, this program of " SHARDD_VERSION, name,
                *version ? version : "(none)");
        advise(&c->findings, "Install all programs of shardd from one build.");
    }
    return answer;
}

static bool is_there(const struct checkup *c, const char *name, struct error *e) {
    char path[PATH_MAX];
    return program_find(name, options_text(c->options, OPT_LIBEXEC_DIR), path, e) == 0;
}

static void check_coordinator(struct checkup *c) {
    struct error e = {0};
    if (is_there(c, "shardd-coordinator", &e)) {
        found(&c->findings, WHERE, "programs.coordinator", FOUND_OK, "shardd-coordinator is there");
        return;
    }
    found(&c->findings, WHERE, "programs.coordinator", FOUND_PROBLEM, "%s", e.text);
    advise(&c->findings, "Build or install all of shardd.");
}

static void check_cpu_worker(struct checkup *c) {
    const enum finding_level level = c->cuda ? FOUND_NOTE : FOUND_PROBLEM;
    struct error e = {0};
    if (!is_there(c, "shardd-worker-cpu", &e)) {
        found(&c->findings, WHERE, "programs.cpu_worker", level, "%s", e.text);
        advise(&c->findings, "Build or install all of shardd.");
        return;
    }
    c->cpu_probe = probe(c, "shardd-worker-cpu", "programs.cpu_worker", level);
    if (!c->cpu_probe)
        return;
    const char *name = text_of(json_array_get(json_object_get(c->cpu_probe, "devices"), 0), "name");
    const bool usable = json_is_true(json_object_get(c->cpu_probe, "usable"));
    found(&c->findings, WHERE, "programs.cpu_worker", usable ? FOUND_OK : level,
            "shardd-worker-cpu: %.128s%.300s", name, usable ? "" : text_of(c->cpu_probe, "reason"));
}

/* --- the CUDA worker --- */

/* "for ranks 0, 1" */
static bool ranks_of(const struct checkup *c, uint32_t device, char *text, size_t bytes) {
    size_t n = (size_t)snprintf(text, bytes, "for rank%s", devices_sharers(&c->ranks, device) > 1 ? "s" : "");
    bool used = false;
    for (uint32_t r = 0; r < c->ranks.n && n < bytes; r++) {
        if (c->ranks.at[r] != device)
            continue;
        n += (size_t)snprintf(text + n, bytes - n, "%s %u", used ? "," : "", r);
        used = true;
    }
    if (!used)
        snprintf(text, bytes, "no rank would take it");
    return used;
}

static void check_device(struct checkup *c, uint32_t device) {
    const json_t *d = device_of(c, device);
    char who[48];
    const bool used = ranks_of(c, device, who, sizeof(who)),
               usable = json_is_true(json_object_get(d, "usable"));
    const uint64_t left = (uint64_t)json_integer_value(json_object_get(d, "memory_free"));
    if (usable) {
        found(&c->findings, WHERE, "programs.cuda_device", FOUND_OK,
                "CUDA device %u (%.90s): works, %s free, %s", device, text_of(d, "name"), SIZE_TEXT(left),
                who);
        return;
    }
    const char *why = text_of(d, "reason");
    found(&c->findings, WHERE, "programs.cuda_device", used ? FOUND_PROBLEM : FOUND_NOTE,
            "CUDA device %u (%.90s) cannot be used (%s): %.300s", device, text_of(d, "name"), who,
            *why ? why : "the worker does not say why");
    if (used)
        advise(&c->findings,
                "Let ranks take other GPUs (--devices, CUDA_VISIBLE_DEVICES), or take --device cpu.");
}

/* As many GPUs as ranks? A GPU that is there and does not work is told where it is looked at. */
static void choose_devices(struct checkup *c) {
    const char *list = options_text(c->options, OPT_DEVICES);
    struct error e = {0};
    if (devices_choose(c->cuda_probe, list, c->tp, &c->ranks, &e) == 0 || (!list && c->tp == 1))
        return;
    found(&c->findings, WHERE, "programs.ranks", FOUND_PROBLEM, "%s", e.text);
    advise(&c->findings, "Take as many ranks as there are GPUs that work, or --device cpu.");
}

static bool reaches(const struct checkup *c, uint32_t device, uint32_t other) {
    const json_t *peers = json_object_get(device_of(c, device), "peers");
    bool found_it = device == other;
    for (size_t i = 0; i < json_array_size(peers); i++)
        found_it |= json_integer_value(json_array_get(peers, i)) == other;
    return found_it;
}

/* Are GPUs that NVLink connects siblings? */
static void check_order(struct checkup *c) {
    struct devices better;
    char order[DEVICES_TEXT];
    if (!devices_better(c->cuda_probe, &c->ranks, &better))
        return;
    found(&c->findings, WHERE, "programs.order", FOUND_WARNING,
            "ranks 0 and 1, 2 and 3 and so on add to each other first, and NVLink is between other GPUs");
    advise(&c->findings, "Take --devices %s, or leave --devices out.", devices_text(&better, order));
}

/* Do the GPUs of all ranks reach each other's memory? */
static void check_peers(struct checkup *c) {
    char pairs[256] = "";
    size_t n = 0;
    for (uint32_t a = 0; a < c->ranks.n; a++)
        for (uint32_t b = a + 1; b < c->ranks.n; b++) {
            const uint32_t x = c->ranks.at[a], y = c->ranks.at[b];
            if (n < sizeof(pairs) && !(reaches(c, x, y) && reaches(c, y, x)))
                n += (size_t)snprintf(pairs + n, sizeof(pairs) - n, "%s%u and %u", n ? ", " : "", x, y);
        }
    if (n) {
        found(&c->findings, WHERE, "programs.peers", FOUND_WARNING,
                "these CUDA devices do not reach each other's memory: %s; what ranks exchange goes by the host's",
                pairs);
        advise(&c->findings,
                "`nvidia-smi topo -p2p r` says why: an IOMMU or ACS of the mainboard (see `dmesg | grep -i -e iommu`), "
                "or cards that cannot.");
    } else if (c->ranks.n > 1)
        found(&c->findings, WHERE, "programs.peers", FOUND_OK, "the ranks' GPUs reach each other's memory");
}

static void check_cuda(struct checkup *c) {
    struct findings *f = &c->findings;
    if (!is_there(c, "shardd-worker-cuda", NULL)) {
        found(f, WHERE, "programs.cuda_worker", FOUND_PROBLEM,
                "shardd-worker-cuda is not installed: no GPU would be served");
        advise(f,
                "Install the CUDA toolkit (nvcc) and build shardd again, which then has the worker for GPUs; or take "
                "--device cpu.");
        return;
    }
    c->cuda_probe = probe(c, "shardd-worker-cuda", "programs.cuda_worker", FOUND_PROBLEM);
    if (!c->cuda_probe)
        return;
    const size_t n = json_array_size(json_object_get(c->cuda_probe, "devices"));
    const char *reason = text_of(c->cuda_probe, "reason");
    if (n == 0) {
        found(f, WHERE, "programs.cuda_worker", FOUND_PROBLEM, "the CUDA worker can use no GPU: %.300s",
                *reason ? reason : "it does not say why");
        advise(f, "Mend what is said of the driver above, or take --device cpu.");
        return;
    }
    found(f, WHERE, "programs.cuda_worker", FOUND_OK,
            "shardd-worker-cuda, built with CUDA %.16s; the driver can do %.16s",
            text_of(c->cuda_probe, "runtime"), text_of(c->cuda_probe, "driver"));
    choose_devices(c);
    for (uint32_t i = 0; i < n && i < NVML_GPUS_MAX; i++)
        check_device(c, i);
    check_peers(c);
    check_order(c);
}

void check_programs(struct checkup *c) {
    check_coordinator(c);
    check_cpu_worker(c);
    if (!c->cuda)
        return;
    check_cuda(c);
}
