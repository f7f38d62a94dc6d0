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

const json_t *checkup_device(const struct checkup *c, uint32_t rank) {
    return json_array_get(json_object_get(c->cuda_probe, "devices"), rank);
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

static void check_device(struct checkup *c, uint32_t rank) {
    const json_t *d = checkup_device(c, rank);
    const bool used = rank < c->tp, usable = json_is_true(json_object_get(d, "usable"));
    const uint64_t left = (uint64_t)json_integer_value(json_object_get(d, "memory_free"));
    char who[48] = "no rank would take it";
    if (used)
        snprintf(who, sizeof(who), "for rank %u", rank);
    if (usable) {
        found(&c->findings, WHERE, "programs.cuda_device", FOUND_OK,
                "CUDA device %u (%.90s): works, %s free, %s", rank, text_of(d, "name"), SIZE_TEXT(left), who);
        return;
    }
    const char *why = text_of(d, "reason");
    found(&c->findings, WHERE, "programs.cuda_device", used ? FOUND_PROBLEM : FOUND_NOTE,
            "CUDA device %u (%.90s) cannot be used (%s): %.300s", rank, text_of(d, "name"), who,
            *why ? why : "the worker does not say why");
    if (used)
        advise(&c->findings, "Let ranks take other GPUs (CUDA_VISIBLE_DEVICES), or take --device cpu.");
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
    for (uint32_t i = 0; i < n && i < NVML_GPUS_MAX; i++)
        check_device(c, i);
}

static void check_ranks(struct checkup *c) {
    if (c->tp <= CUDA_RANKS_MAX)
        return;
    found(&c->findings, WHERE, "programs.ranks", FOUND_PROBLEM,
            "one GPU serves so far, and --tensor-parallel-size is %u", c->tp);
    advise(&c->findings, "Leave --tensor-parallel-size out, or take --device cpu.");
}

void check_programs(struct checkup *c) {
    check_coordinator(c);
    check_cpu_worker(c);
    if (!c->cuda)
        return;
    check_cuda(c);
    check_ranks(c);
}
