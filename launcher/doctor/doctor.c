/* doctor.c - `shardd doctor`: reads this machine, judges it, says what to do.
 *
 * Looks only: nothing is loaded, set or kept. The readings are in host.c and nvml.c, the judgements in *_checks.c, one
 * per subject, the layout in report.c. SHARDD_DOCTOR_ROOT is for tests: a folder whose proc, sys and dev are read. */
#include "launcher/doctor/checkup.h"
#include "launcher/verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool checkup_would_serve(const struct checkup *c) {
    return !c->findings.failed && findings_count(&c->findings, FOUND_PROBLEM) == 0;
}

void checkup_done(struct checkup *c) {
    json_decref(c->cpu_probe);
    json_decref(c->cuda_probe);
    json_decref(c->plan);
    nvml_done(&c->nvml);
    findings_done(&c->findings);
}

static void look(struct checkup *c) {
    const char *device = options_text(c->options, OPT_DEVICE);
    const bool cpu = strcmp(device, "cpu") == 0;
    host_look(c->root, &c->host);
    if (!cpu)
        nvml_look(NULL, &c->nvml);
    c->cuda_asked = strcmp(device, "cuda") == 0;
    c->cuda = c->cuda_asked || (!cpu && checkup_sees_gpu(c));
    if (cpu)
        found(&c->findings, "driver", "driver.hardware", FOUND_NOTE,
                "GPUs are not looked at, because of --device cpu");
    else
        check_driver(c);
    check_programs(c);
    check_gpus(c);
    check_machine(c);
    check_model(c);
}

/* What `shardd serve` would refuse as a mistake in the settings. */
static int check_usage(const struct options *o, struct error *e) {
    if (o->n_positional > 0)
        return error_set(e, -EINVAL, "'%s' is too much; name a model with --model", o->positional[0]);
    if (strcmp(options_text(o, OPT_DEVICE), "null") == 0)
        return error_set(e, -EINVAL, "--device null computes nothing, so there is nothing to look at");
    return 0;
}

int verb_doctor(const struct options *o) {
    const char *root = getenv("SHARDD_DOCTOR_ROOT");
    struct error e = {0};
    if (check_usage(o, &e) < 0) {
        fprintf(stderr, "shardd doctor: %s\n", e.text);
        return EXIT_USAGE;
    }
    struct checkup *c = calloc(1, sizeof(*c));
    if (!c) {
        fprintf(stderr, "shardd doctor: no memory\n");
        return EXIT_FAILED;
    }
    c->options = o;
    c->root = root ? root : "";
    c->tp = (uint32_t)options_number(o, OPT_TENSOR_PARALLEL_SIZE);
    look(c);
    bool told = true;
    if (options_number(o, OPT_JSON))
        told = report_json(c, stdout) == 0;
    else
        report_text(c, stdout);
    const bool well = checkup_would_serve(c) && told;
    checkup_done(c);
    free(c);
    return well ? EXIT_OK : EXIT_FAILED;
}
