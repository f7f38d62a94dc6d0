/* serve.c - `shardd serve`: settings to command lines of the children, checks that give a sentence before
 * anything is started, listeners, then supervisor.c. */
#include "launcher/verbs.h"

#include "base/gguf.h"
#include "base/log.h"
#include "launcher/argv.h"
#include "launcher/pass.h"
#include "launcher/programs.h"
#include "launcher/serve/child.h"
#include "launcher/serve/gpu.h"
#include "launcher/serve/listeners.h"
#include "launcher/serve/supervisor.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define CUDA_STEP_TIMEOUT_MS 2000

struct serve {
    const struct options *o;
    const char *device; /* made concrete: cpu, cuda, null */
    struct gpu gpu;     /* with cuda */
    const char *model;
    char worker[PATH_MAX], coordinator[PATH_MAX];
    struct argv worker_argv[RANKS_MAX], keeper_argv[RANKS_MAX], coordinator_argv, environment;
    struct listeners listeners;
    char title[512], try_it[512];
};

/* --- checks --- */

static int check_model(struct serve *s, struct error *e) {
    const struct options *o = s->o;
    if (o->n_positional > 1)
        return error_set(e, -EINVAL, "one model folder is served; '%s' is too much", o->positional[1]);
    if (o->n_positional == 1 && options_given(o, OPT_MODEL))
        return error_set(e, -EINVAL, "the model is given twice: '%s' and %s %s", o->positional[0],
                o->values[OPT_MODEL].where, options_text(o, OPT_MODEL));
    s->model = o->n_positional == 1 ? o->positional[0] : options_text(o, OPT_MODEL);
    if (!s->model)
        return error_set(e, -EINVAL,
                "no model is given: add --model DIR, the folder of a Hugging Face checkpoint, or a GGUF file (`shardd "
                "synth DIR` makes one to try)");
    struct stat st;
    char path[PATH_MAX];
    if (stat(s->model, &st) < 0 && errno == ENOENT)
        return error_set(e, -ENOENT,
                "the model folder %s does not exist; --model takes a folder of this machine, e.g. "
                "made with `hf download NAME --local-dir DIR`, or a GGUF file",
                s->model);
    if (stat(s->model, &st) < 0)
        return error_set(e, -errno, "the model folder %s cannot be read: %s", s->model, strerror(errno));
    struct gguf_files gguf;
    int found = gguf_locate(s->model, &gguf, e);
    if (found != 0)
        return found < 0 ? found : 0;
    if (!S_ISDIR(st.st_mode))
        return error_set(e, -ENOTDIR,
                "--model %s is neither a folder nor a GGUF file; give the folder that holds config.json and the "
                "*.safetensors, or a *.gguf",
                s->model);
    int n = snprintf(path, sizeof(path), "%s/config.json", s->model);
    if (n < 0 || n >= (int)sizeof(path) || access(path, R_OK) < 0)
        return error_set(e, -ENOENT,
                "the model folder %s has neither a config.json that can be read nor a *.gguf; is it a Hugging Face "
                "checkpoint?",
                s->model);
    return 0;
}

static uint64_t step_timeout_ms(const struct serve *s) {
    bool quick = strcmp(s->device, "cuda") == 0 && !options_given(s->o, OPT_STEP_TIMEOUT);
    return quick ? CUDA_STEP_TIMEOUT_MS : options_number(s->o, OPT_STEP_TIMEOUT);
}

static uint64_t threads_per_rank(const struct options *o) {
    if (options_number(o, OPT_THREADS))
        return options_number(o, OPT_THREADS);
    cpu_set_t cores;
    int n = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
    uint64_t each = (uint64_t)n / options_number(o, OPT_TENSOR_PARALLEL_SIZE);
    return each ? each : 1;
}

/* --- command lines --- */

static void null_worker(struct argv *a) {
    char *more = getenv("SHARDD_NULL_ARGS"), *copy = more ? strdup(more) : NULL, *rest = copy, *word;
    while (rest && (word = strsep(&rest, " ")))
        if (*word)
            argv_add(a, "%s", word);
    free(copy);
}

/* --- which worker --- */

/* Whether the model would fit into the memory of the rank that has the least. */
static int check_fit(const struct serve *s, struct error *e) {
    struct argv a = {0};
    argv_add(&a, "%s", s->gpu.worker);
    argv_add_flag(&a, "--plan", "%llu", (unsigned long long)s->gpu.memory_free);
    argv_add_flag(&a, "--model", "%s", s->model);
    pass_settings(&a, s->o, TO_WORKER);
    pass_speculation(&a, s->o);
    int rc = a.failed ? 0 : gpu_fits(a.words, e);
    argv_done(&a);
    return rc;
}

/* 0, or why no GPU serves. */
static int find_gpu(struct serve *s, struct error *e) {
    int rc = gpu_find(options_text(s->o, OPT_LIBEXEC_DIR), options_text(s->o, OPT_DEVICES),
            (uint32_t)options_number(s->o, OPT_TENSOR_PARALLEL_SIZE), &s->gpu, e);
    if (rc < 0)
        return rc;
    gpu_tell(&s->gpu);
    snprintf(s->worker, sizeof(s->worker), "%s", s->gpu.worker);
    return check_fit(s, e);
}

/* auto is the GPU where one can serve. A machine that shows one and is served by its CPU says why. */
static void choose_device(struct serve *s) {
    struct error why = {0};
    s->device = "cpu";
    if (!gpu_seen())
        log_info("--device auto: this machine shows no NVIDIA GPU; the CPU serves");
    else if (find_gpu(s, &why) == 0)
        s->device = "cuda";
    else
        log_warning(
                "--device auto: the CPU serves although there is a GPU: %s (`shardd doctor` looks closer)",
                why.text);
}

static int choose_worker(struct serve *s, struct error *e) {
    const char *libexec = options_text(s->o, OPT_LIBEXEC_DIR);
    char name[64];
    struct error why;
    int rc = 0;
    s->device = options_text(s->o, OPT_DEVICE);
    if (strcmp(s->device, "auto") == 0)
        choose_device(s);
    else if (strcmp(s->device, "cuda") == 0)
        rc = find_gpu(s, &why);
    if (rc < 0)
        return error_set(e, rc, "--device cuda: %s (`shardd doctor` looks closer)", why.text);
    snprintf(name, sizeof(name), "shardd-worker-%s", s->device);
    if (strcmp(s->device, "cuda") != 0)
        rc = program_find(name, libexec, s->worker, e);
    if (rc == 0)
        rc = program_find("shardd-coordinator", libexec, s->coordinator, e);
    return rc;
}

/* Weights of a CPU are mapped from files. */
static bool keeps_weights(const struct serve *s) {
    return strcmp(s->device, "cuda") == 0 && strcmp(options_text(s->o, OPT_WEIGHT_KEEPER), "off") != 0;
}
static void keeper_command(struct serve *s, uint32_t index, const char *ranks) {
    const enum option_id level = OPT_LOG_LEVEL;
    struct argv *a = &s->keeper_argv[index];
    argv_add(a, "%s", s->worker);
    argv_add(a, "--keeper");
    argv_add_flag(a, "--ranks", "%s", ranks);
    argv_add_flag(a, "--control-fd", "%d", CONTROL_FD);
    pass_value(a, &option_table[level], &s->o->values[level]);
}

static void worker_command(struct serve *s, uint32_t index, uint32_t hosted) {
    struct argv *a = &s->worker_argv[index];
    char ranks[64], devices[DEVICES_TEXT];
    int n = snprintf(ranks, sizeof(ranks), "%u", index * hosted);
    for (uint32_t i = 1; i < hosted; i++)
        n += snprintf(ranks + n, sizeof(ranks) - (size_t)n, ",%u", index * hosted + i);
    argv_add(a, "%s", s->worker);
    argv_add_flag(a, "--ranks", "%s", ranks);
    argv_add_flag(a, "--control-fd", "%d", CONTROL_FD);
    if (strcmp(s->device, "null") == 0) {
        const enum option_id tp = OPT_TENSOR_PARALLEL_SIZE;
        pass_value(a, &option_table[tp], &s->o->values[tp]);
        null_worker(a);
        return;
    }
    if (strcmp(s->device, "cuda") == 0)
        argv_add_flag(a, "--devices", "%s", devices_text(&s->gpu.ranks, devices));
    argv_add_flag(a, "--comm-fd", "%d", CHILD_COMM_FD);
    if (keeps_weights(s)) {
        argv_add_flag(a, "--keeper-fd", "%d", CHILD_KEEPER_FD);
        keeper_command(s, index, ranks);
    }
    argv_add_flag(a, "--model", "%s", s->model);
    argv_add_flag(a, "--threads", "%llu", (unsigned long long)threads_per_rank(s->o));
    pass_settings(a, s->o, TO_WORKER);
    pass_speculation(a, s->o);
}

static void coordinator_command(struct serve *s) {
    struct argv *a = &s->coordinator_argv;
    argv_add(a, "%s", s->coordinator);
    argv_add_flag(a, "--control-fd", "%d", CONTROL_FD);
    argv_add_flag(a, "--model", "%s", s->model);
    argv_add_flag(a, "--step-timeout-ms", "%llu", (unsigned long long)step_timeout_ms(s));
    pass_settings(a, s->o, TO_COORDINATOR);
}

/* Ours, without what systemd said to us alone. */
static void child_environment(struct serve *s) {
    static const char *const ours[] = {"NOTIFY_SOCKET=", "WATCHDOG_PID=", "WATCHDOG_USEC=", "LISTEN_PID=",
            "LISTEN_FDS=", "LISTEN_FDNAMES="};
    for (char **at = environ; *at; at++) {
        bool drop = false;
        for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
            drop |= strncmp(*at, ours[i], strlen(ours[i])) == 0;
        if (!drop)
            argv_add(&s->environment, "%s", *at);
    }
}

static int make_commands(struct serve *s, struct service *service, struct error *e) {
    uint32_t tp = (uint32_t)options_number(s->o, OPT_TENSOR_PARALLEL_SIZE);
    uint32_t hosted = (uint32_t)options_number(s->o, OPT_RANKS_PER_PROCESS);
    bool failed = false;
    service->tp = tp;
    service->n_workers = tp / hosted;
    for (uint32_t i = 0; i < service->n_workers; i++) {
        worker_command(s, i, hosted);
        service->worker_argv[i] = s->worker_argv[i].words;
        service->worker_rank[i] = i * hosted;
        service->keeper_argv[i] = s->keeper_argv[i].words;
        failed |= s->worker_argv[i].failed || s->keeper_argv[i].failed;
    }
    coordinator_command(s);
    child_environment(s);
    service->coordinator_argv = s->coordinator_argv.words;
    service->environment = s->environment.words;
    if (failed || s->coordinator_argv.failed || s->environment.failed)
        return error_set(e, -ENOMEM, "no memory for the command lines of the workers");
    return 0;
}

/* --- listeners --- */

static int open_listeners(struct serve *s, struct error *e) {
    const struct options *o = s->o;
    int rc = listeners_add_systemd(&s->listeners, e);
    if (rc < 0)
        return rc;
    bool tcp_given = options_given(o, OPT_HOST) || options_given(o, OPT_PORT),
         uds = options_given(o, OPT_UDS);
    if (rc > 0) {
        if (tcp_given || uds)
            log_notice("systemd handed over %d sockets: ignoring --host, --port and --uds", rc);
        return 0;
    }
    rc = 0;
    if (uds)
        rc = listeners_add_unix(&s->listeners, options_text(o, OPT_UDS), e);
    if (rc == 0 && (tcp_given || !uds))
        rc = listeners_add_tcp(
                &s->listeners, options_text(o, OPT_HOST), (uint16_t)options_number(o, OPT_PORT), e);
    return rc;
}

static void warn_about_strangers(const struct listeners *l) {
    for (uint32_t i = 0; i < l->n; i++)
        if (l->items[i].open_to_network)
            log_warning(
                    "%s is open to other machines and asks nobody for a password: everybody who reaches it can use the "
                    "model",
                    l->items[i].name);
}

/* Connections, pipes and files of the coordinator: as many as the administrator allows, not the soft default. */
static void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void describe(struct serve *s) {
    const struct option_value *names = &s->o->values[OPT_SERVED_MODEL_NAME];
    char folder[PATH_MAX], listening[LISTENERS_MAX * (LISTENER_NAME + 2)] = "";
    snprintf(folder, sizeof(folder), "%s", s->model);
    for (size_t n = strlen(folder); n > 1 && folder[n - 1] == '/'; n--)
        folder[n - 1] = '\0';
    char *suffix = strrchr(folder, '.');
    if (suffix && strcmp(suffix, ".gguf") == 0) /* the coordinator leaves it out of the name too */
        *suffix = '\0';
    const char *slash = strrchr(folder, '/'), *name = names->n_texts      ? names->texts[0]
                                                      : slash && slash[1] ? slash + 1
                                                                          : folder;
    size_t used = 0;
    for (uint32_t i = 0; i < s->listeners.n; i++)
        used += (size_t)snprintf(listening + used, sizeof(listening) - used, "%s%s", i ? ", " : "",
                s->listeners.items[i].name);
    snprintf(s->title, sizeof(s->title), "%.128s on %.300s (tp %llu, %s)", name, listening,
            (unsigned long long)options_number(s->o, OPT_TENSOR_PARALLEL_SIZE), s->device);
    const char *at = s->listeners.items[0].name;
    bool usual = strcmp(at, option_table[OPT_SERVER].preset) == 0;
    snprintf(s->try_it, sizeof(s->try_it), "shardd generate %s%s%s\"Hello\"", usual ? "" : "--server ",
            usual ? "" : at, usual ? "" : " ");
}

static void serve_done(struct serve *s) {
    for (size_t i = 0; i < RANKS_MAX; i++) {
        argv_done(&s->worker_argv[i]);
        argv_done(&s->keeper_argv[i]);
    }
    argv_done(&s->coordinator_argv);
    argv_done(&s->environment);
    listeners_close(&s->listeners);
    gpu_done(&s->gpu);
}

static int prepare(struct serve *s, struct service *service, struct error *e) {
    int rc = check_model(s, e);
    if (rc == 0)
        rc = choose_worker(s, e);
    if (rc == 0)
        rc = make_commands(s, service, e);
    if (rc == 0)
        rc = open_listeners(s, e);
    if (rc < 0)
        return rc;
    service->listeners = &s->listeners;
    service->grace_ms = options_number(s->o, OPT_SHUTDOWN_GRACE);
    service->step_timeout_ms = step_timeout_ms(s);
    service->max_restarts = (uint32_t)options_number(s->o, OPT_MAX_RESTARTS);
    service->restart_window_ms = options_number(s->o, OPT_RESTART_WINDOW);
    warn_about_strangers(&s->listeners);
    describe(s);
    service->title = s->title;
    service->try_it = s->try_it;
    return 0;
}

/* Of what prepare() refuses, that which another try may get through; the rest is a mistake in the settings. */
static bool is_accident(int rc) {
    static const int accidents[] = {EADDRINUSE, EADDRNOTAVAIL, EAGAIN, ENOMEM, EMFILE, ENFILE, ENOBUFS, EIO};
    for (size_t i = 0; i < sizeof(accidents) / sizeof(accidents[0]); i++)
        if (rc == -accidents[i])
            return true;
    return false;
}

int verb_serve(const struct options *o) {
    if (options_number(o, OPT_PRINT_CONFIG)) {
        options_print_config(stdout, o);
        return EXIT_OK;
    }
    log_open("shardd", (enum log_level)log_level_parse(options_text(o, OPT_LOG_LEVEL)));
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    struct serve s = {.o = o};
    struct service service = {0};
    struct error e = {0};
    int rc = prepare(&s, &service, &e);
    bool mistake = rc < 0 && !is_accident(rc);
    if (rc == 0) {
        rc = supervisor_run(&service, &e);
        mistake = rc == -EINVAL;
    }
    if (rc < 0) {
        log_error("%s", e.text);
        sd_notifyf(0, "STATUS=%.300s\nERRNO=%d", e.text, -rc);
    }
    serve_done(&s);
    return mistake ? EXIT_USAGE : rc < 0 ? EXIT_FAILED : EXIT_OK;
}
