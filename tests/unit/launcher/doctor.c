/* What `shardd doctor` reads and how it judges: made-up cards (tests/fakes/nvml.c), made-up machines (a folder with
 * proc, sys and dev), and values that nobody should believe. */
#include "launcher/doctor/checkup.h"

#include "base/host_memory.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define FAKE_NVML BIN_DIR "/../fakes/libnvidia-ml.so.1"

static char *no_environment[] = {NULL};

/* --- made-up machines --- */

static char root[] = "/tmp/shardd-doctor-XXXXXX";

static void put_file(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", root, name);
    for (char *at = path + strlen(root) + 1; (at = strchr(at, '/')); *at++ = '/') {
        *at = '\0';
        (void)mkdir(path, 0755);
    }
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_int_equal(fputs(text, f) >= 0, 1);
    assert_int_equal(fclose(f), 0);
}

static void drop_file(const char *name) {
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", root, name);
    assert_int_equal(unlink(path), 0);
}

static int make_machine(void **state) {
    (void)state;
    assert_non_null(mkdtemp(root));
    put_file("proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025\nGCC version: 12\n");
    put_file("proc/meminfo", "MemTotal:       64000000 kB\nMemFree: 1 kB\nMemAvailable:   60000000 kB\n"
                             "HugePages_Total:     512\nHugepagesize:       2048 kB\n");
    put_file("proc/cpuinfo", "processor\t: 0\nmodel name\t: Fake CPU \x1b[31m @ 3 GHz\n"
                             "flags\t\t: fpu avx2 fma f16c avx512f avx512bw avx512vl avx512dq\n\n"
                             "processor\t: 1\nmodel name\t: another\nflags\t\t: fpu\n");
    put_file("proc/77/comm", "greedy\n");
    put_file("sys/bus/pci/devices/0000:65:00.0/vendor", "0x10de\n");
    put_file("sys/bus/pci/devices/0000:65:00.0/class", "0x030000\n");
    put_file("sys/bus/pci/devices/0000:65:00.0/numa_node", "1\n");
    put_file("sys/bus/pci/devices/0000:65:00.1/vendor", "0x10de\n"); /* its sound */
    put_file("sys/bus/pci/devices/0000:65:00.1/class", "0x040300\n");
    put_file("sys/bus/pci/devices/0000:00:00.0/vendor", "0x8086\n");
    put_file("sys/bus/pci/devices/0000:00:00.0/class", "0x030000\n");
    put_file("sys/devices/system/node/node0/x", "");
    put_file("sys/devices/system/node/node1/x", "");
    put_file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
    put_file("sys/fs/cgroup/memory.max", "max\n");
    put_file("sys/fs/cgroup/memory.current", "1000\n");
    put_file("dev/nvidiactl", "");
    put_file("dev/nvidia-uvm", "");
    put_file("dev/nvidia0", "");
    put_file("dev/shm/x", "");
    return 0;
}

static int remove_machine(void **state) {
    (void)state;
    char command[64] = "";
    snprintf(command, sizeof(command), "%s", root);
    char *argv[] = {"rm", "-r", command, NULL};
    pid_t pid = fork();
    if (pid == 0)
        execvp(argv[0], argv);
    return pid < 0;
}

static void test_machine_is_read(void **state) {
    (void)state;
    struct host h;
    char name[32];
    host_look(root, &h);
    assert_int_equal(h.n_gpus, 1);
    assert_string_equal(h.gpus[0].place, "0000:65:00.0");
    assert_int_equal(h.gpus[0].numa_node, 1);
    assert_string_equal(h.module, "570.86.15");
    assert_int_equal(h.n_nodes, 3);
    assert_true(h.nodes[HOST_NODE_CONTROL].present && h.nodes[HOST_NODE_UVM].present);
    assert_non_null(host_gpu_node(&h, 0));
    assert_null(host_gpu_node(&h, 1));
    assert_ptr_equal(host_gpu_at(&h, "00000000:65:00.0"), &h.gpus[0]);
    assert_null(host_gpu_at(&h, "00000000:66:00.0"));
    assert_null(host_gpu_at(&h, ""));
    assert_string_equal(h.cpu, "Fake CPU ?[31m @ 3 GHz");
    assert_string_equal(h.isa, "avx512");
    assert_int_equal(h.threads_total, 2);
    assert_int_equal(h.numa_nodes, 2);
    assert_true(h.memory_total == 64000000ull * 1024 && h.memory_available == 60000000ull * 1024);
    assert_true(h.group_limit == 0 && host_memory_left(&h) == h.memory_available);
    assert_true(h.huge_pages == 512 && h.huge_page_bytes == 2u << 20);
    assert_string_equal(h.transparent, "madvise");
    assert_true(h.shm_bytes > 0);
    host_process_name(root, 77, name, sizeof(name));
    assert_string_equal(name, "greedy");
    host_process_name(root, 78, name, sizeof(name));
    assert_string_equal(name, "");
}

static void test_a_group_limits_memory(void **state) {
    (void)state;
    struct host h;
    put_file("sys/fs/cgroup/memory.max", "5000\n");
    host_look(root, &h);
    assert_true(h.group_limit == 5000 && host_memory_left(&h) == 4000);
    put_file("sys/fs/cgroup/memory.stat",
            "anon 100\ninactive_file 300\nactive_file 600\n"); /* cache that goes first */
    host_look(root, &h);
    assert_true(h.group_used == 700 && host_memory_left(&h) == 4300);
    assert_true(host_memory_free(root) == 4300);
    put_file("sys/fs/cgroup/memory.stat", "inactive_file 3000\n"); /* read later than the sum */
    assert_true(host_memory_free(root) == 5000);
    drop_file("sys/fs/cgroup/memory.stat");
    put_file("sys/fs/cgroup/memory.max", "500\n"); /* lowered below what is used */
    host_look(root, &h);
    assert_true(host_memory_left(&h) == 0);
    put_file("sys/fs/cgroup/memory.max", "max\n");
}

static void test_the_open_module_has_its_version_too(void **state) {
    (void)state;
    struct host h;
    put_file("proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n");
    host_look(root, &h);
    assert_string_equal(h.module, "580.95.05");
    put_file("proc/driver/nvidia/version", "\n");
    host_look(root, &h);
    assert_string_equal(h.module, "of unknown version");
    put_file("proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan\n");
}

static void test_an_empty_machine(void **state) {
    (void)state;
    struct host h;
    host_look("/no/such/root", &h);
    assert_int_equal(h.n_gpus, 0);
    assert_string_equal(h.module, "");
    assert_false(h.nodes[HOST_NODE_CONTROL].present);
    assert_string_equal(h.isa, "plain");
    assert_true(host_memory_left(&h) == 0);
}

/* --- a checkup by hand --- */

static struct options options;

static void checkup_open(struct checkup *c, const char *words, const char *tp) {
    char *argv[] = {"--device", "cuda", "--tensor-parallel-size", (char *)tp, NULL};
    struct error e = {0};
    options_init(&options, VERB_DOCTOR);
    if (options_load(&options, argv, 4, no_environment, &e) < 0)
        fail_msg("%s", e.text);
    *c = (struct checkup){.options = &options, .root = root, .cuda = true, .cuda_asked = true};
    c->tp = (uint32_t)options_number(&options, OPT_TENSOR_PARALLEL_SIZE);
    setenv("FAKE_NVML", words, 1);
    setenv("FAKE_NVML_PID", "77", 1);
    unsetenv("CUDA_VISIBLE_DEVICES");
    host_look(root, &c->host);
    nvml_look(FAKE_NVML, &c->nvml);
    assert_true(c->nvml.opened);
}

static void checkup_close(struct checkup *c) {
    checkup_done(c);
    options_done(&options);
}

static const struct finding *find(const struct checkup *c, const char *check, const char *text) {
    for (size_t i = 0; i < c->findings.n; i++)
        if (strcmp(c->findings.items[i].check, check) == 0 && strstr(c->findings.items[i].text, text))
            return &c->findings.items[i];
    return NULL;
}

/* A finding with this level and part of a text; where something is to be done, it is said. */
static void expect(const struct checkup *c, const char *check, enum finding_level level, const char *text,
        const char *advice) {
    const struct finding *f = find(c, check, text);
    if (!f) {
        report_text(c, stderr);
        fail_msg("there is no finding %s with '%s'", check, text);
        return;
    }
    if (f->level != level || !strstr(f->advice, advice))
        fail_msg("%s: '%s' is %s and advises '%s'", check, f->text, finding_level_name(f->level), f->advice);
}

static void judge_card(const char *words, const char *check, enum finding_level level, const char *text,
        const char *advice) {
    struct checkup c;
    checkup_open(&c, words, "1");
    check_driver(&c);
    check_gpus(&c);
    expect(&c, check, level, text, advice);
    assert_int_equal(checkup_would_serve(&c), level != FOUND_PROBLEM);
    checkup_close(&c);
}

static void test_a_healthy_card(void **state) {
    (void)state;
    struct checkup c;
    checkup_open(&c, "", "1");
    const struct nvml_gpu *g = &c.nvml.gpus[0];
    assert_int_equal(c.nvml.n_gpus, 1);
    assert_string_equal(c.nvml.driver, "570.86.15");
    assert_int_equal(c.nvml.cuda, 12080);
    assert_string_equal(g->name, "NVIDIA RTX A6000");
    assert_string_equal(g->place, "00000000:65:00.0");
    assert_int_equal(g->readings[NVML_CAPABILITY].value, 86);
    assert_int_equal(g->readings[NVML_POWER_LIMIT].value, 300000);
    assert_int_equal(g->readings[NVML_SM_CLOCK].value, 210);
    assert_int_equal(g->readings[NVML_MEMORY_CLOCK].value, 405);
    assert_int_equal(g->readings[NVML_CLOCK_REASONS].value, NVML_CLOCKS_IDLE);
    assert_int_equal(g->readings[NVML_MIG].status, NVML_NOT_SUPPORTED);
    assert_int_equal(g->n_links, 4);
    assert_false(g->links[0].active);
    check_driver(&c);
    check_gpus(&c);
    for (size_t i = 0; i < c.findings.n; i++)
        if (c.findings.items[i].level > FOUND_OK)
            fail_msg("of a healthy card: %s", c.findings.items[i].text);
    expect(&c, "gpu.name", FOUND_OK, "NUMA node 1", "");
    expect(&c, "gpu.memory", FOUND_OK, "memory 48.0 GB, 47.5 GB free", "");
    expect(&c, "driver.library", FOUND_OK, "driver 570.86.15, CUDA up to 12.8", "");
    checkup_close(&c);
}

static void test_a_card_that_is_not_well(void **state) {
    (void)state;
    judge_card("ecc-off", "gpu.ecc", FOUND_NOTE, "ECC is off", "-e 1");
    judge_card("ecc-off", "gpu.ecc", FOUND_NOTE, "ECC will be on after a reboot", "");
    judge_card("no-ecc", "gpu.ecc", FOUND_NOTE, "not supported", "");
    judge_card("ecc-errors", "gpu.memory_errors", FOUND_WARNING, "3 memory errors", "replace");
    judge_card("hot", "gpu.throttled", FOUND_WARNING, "too hot", "fans");
    judge_card("hot", "gpu.throttled", FOUND_WARNING, "half or less", "temperature");
    judge_card("braked", "gpu.throttled", FOUND_WARNING, "power brake", "cables");
    judge_card("capped", "gpu.throttled", FOUND_NOTE, "power limit", "");
    judge_card(
            "low-power", "gpu.power", FOUND_WARNING, "at most 150 W, below the card's own 300 W", "-pl 300");
    judge_card("narrow", "gpu.pcie", FOUND_WARNING, "4 of 16 lanes", "slot");
    judge_card("sleepy", "gpu.persistence", FOUND_NOTE, "persistence mode is off", "nvidia-persistenced");
    judge_card("old", "gpu.capability", FOUND_PROBLEM, "7.5 is too old", "--device cpu");
    judge_card("prohibited", "gpu.mode", FOUND_PROBLEM, "prohibited", "-c 0");
    judge_card("exclusive", "gpu.mode", FOUND_PROBLEM, "process 77 has it", "End that process");
    judge_card("mig", "gpu.mig", FOUND_WARNING, "MIG", "-mig 0");
    judge_card("held", "gpu.memory", FOUND_WARNING, "8.00 GB free", "End the processes");
    judge_card("held", "gpu.holder", FOUND_NOTE, "process 77 (greedy) holds 39.5 GB", "");
    judge_card("swarm", "gpu.holder", FOUND_NOTE, "more than 64 processes", "");
    judge_card("failing", "gpu.holder", FOUND_NOTE, "who uses it is not told", "");
    judge_card("failing", "gpu.memory", FOUND_WARNING, "asking for its memory fails", "nvidia-smi");
    judge_card("lost", "gpu.name", FOUND_PROBLEM, "fallen off the bus", "xid");
}

static void test_what_a_person_turned_off_above_is_said(void **state) {
    (void)state;
    struct checkup c;
    checkup_open(&c, "low-power,narrow,ecc-off,sleepy", "1");
    check_gpus(&c);
    assert_int_equal(findings_count(&c.findings, FOUND_PROBLEM), 0);
    for (size_t i = 0; i < c.findings.n; i++)
        if (c.findings.items[i].level >= FOUND_WARNING && !c.findings.items[i].advice[0])
            fail_msg("nothing is advised for: %s", c.findings.items[i].text);
    checkup_close(&c);
}

/* A program that computes and draws is in both lists of the library and told once. */
static void test_who_draws_holds_memory_too(void **state) {
    (void)state;
    struct checkup c;
    checkup_open(&c, "held,desktop", "1");
    assert_int_equal(c.nvml.gpus[0].n_processes, 2);
    check_gpus(&c);
    expect(&c, "gpu.holder", FOUND_NOTE, "process 77 (greedy) holds 39.5 GB", "");
    expect(&c, "gpu.holder", FOUND_NOTE, "process 78 (of an unknown name) holds an unknown part", "");
    checkup_close(&c);
}

/* --- several cards --- */

static void test_two_cards(void **state) {
    (void)state;
    struct checkup c;
    checkup_open(&c, "two", "2");
    put_file("dev/nvidia1", "");
    host_look(root, &c.host);
    assert_int_equal(c.nvml.gpus[0].links[3].peer, 1);
    assert_int_equal(c.nvml.gpus[1].links[0].peer, 0);
    check_gpus(&c);
    expect(&c, "gpu.nvlink", FOUND_OK, "NVLink: 4 links, 4 to GPU 1", "");
    assert_true(checkup_would_serve(&c));
    drop_file("dev/nvidia1");
    checkup_close(&c);
}

/* What is wrong with a card that no rank would take keeps nobody from serving. */
static void test_a_card_that_is_not_used(void **state) {
    (void)state;
    struct checkup c;
    checkup_open(&c, "two,lost", "1");
    check_gpus(&c);
    expect(&c, "gpu.name", FOUND_WARNING, "fallen off the bus", "xid");
    assert_true(checkup_would_serve(&c));
    checkup_close(&c);
    /* The CUDA worker's order counts, where it tells one: its first device is the second here. */
    checkup_open(&c, "two,lost", "1");
    memcpy(c.nvml.gpus[1].place, c.nvml.gpus[0].place, sizeof(c.nvml.gpus[1].place));
    c.nvml.gpus[1].place[9] = 'b';
    c.cuda_probe = json_pack("{s:[{s:s}]}", "devices", "place", "00000000:B5:00.0");
    assert_non_null(c.cuda_probe);
    assert_false(checkup_uses(&c, 0));
    assert_true(checkup_uses(&c, 1));
    check_gpus(&c);
    expect(&c, "gpu.name", FOUND_PROBLEM, "fallen off the bus", "xid");
    checkup_close(&c);
}

/* --- a driver that is not well --- */

/* What makes --device auto mean the GPU: a driver that is broken is a sign of one too. */
static void test_signs_of_a_gpu(void **state) {
    (void)state;
    static const struct {
        const char *words;
        bool sign;
    } cases[] = {{"", true}, {"none", false}, {"mismatch", true}, {"denied", true}, {"unloaded", false}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct checkup c;
        checkup_open(&c, cases[i].words, "1");
        host_look("/no/such/root", &c.host);
        assert_int_equal(checkup_sees_gpu(&c), cases[i].sign);
        checkup_close(&c);
    }
}

static void test_a_driver_that_refuses(void **state) {
    (void)state;
    judge_card("mismatch", "driver.library", FOUND_PROBLEM, "570.86.15) are of different versions", "Reboot");
    judge_card("denied", "driver.library", FOUND_PROBLEM, "not permitted", "devices");
    judge_card("unloaded", "driver.library", FOUND_PROBLEM, "not loaded", "modprobe");
    judge_card("none", "driver.gpus", FOUND_PROBLEM, "shows no GPU", "dmesg");
    judge_card("crowd", "driver.gpus", FOUND_NOTE, "4000000000 GPUs; the first 64", "");
}

static void test_a_library_that_is_not_there(void **state) {
    (void)state;
    struct checkup c;
    checkup_open(&c, "", "1");
    nvml_done(&c.nvml);
    nvml_look("/no/such/libnvidia-ml.so.1", &c.nvml);
    assert_false(c.nvml.opened);
    check_driver(&c);
    expect(&c, "driver.library", FOUND_WARNING, "/no/such/libnvidia-ml.so.1", "Install the libraries");
    checkup_close(&c);
    /* One that is no such library at all: each function is missing. */
    checkup_open(&c, "", "1");
    nvml_done(&c.nvml);
    nvml_look("libc.so.6", &c.nvml);
    assert_true(c.nvml.opened);
    assert_int_equal(c.nvml.status, NVML_NO_FUNCTION);
    check_driver(&c);
    expect(&c, "driver.library", FOUND_PROBLEM, "not known to this driver", "nvidia-smi");
    checkup_close(&c);
}

static void test_the_kernels_side(void **state) {
    (void)state;
    struct checkup c;
    checkup_open(&c, "unloaded", "1");
    c.host.module[0] = '\0';
    check_driver(&c);
    expect(&c, "driver.module", FOUND_PROBLEM, "not loaded", "modprobe");
    checkup_close(&c);
    checkup_open(&c, "unloaded", "1");
    c.host.module[0] = '\0';
    snprintf(c.host.gpus[0].driver, sizeof(c.host.gpus[0].driver), "nouveau");
    check_driver(&c);
    expect(&c, "driver.module", FOUND_PROBLEM, "nouveau", "reboot");
    checkup_close(&c);
    checkup_open(&c, "", "1");
    snprintf(c.host.module, sizeof(c.host.module), "550.54.14");
    check_driver(&c);
    expect(&c, "driver.versions", FOUND_WARNING, "550.54.14", "Reboot");
    checkup_close(&c);
}

static void test_device_files(void **state) {
    (void)state;
    struct checkup c;
    checkup_open(&c, "", "1");
    c.host.nodes[HOST_NODE_UVM].present = false;
    check_driver(&c);
    expect(&c, "driver.uvm_device", FOUND_PROBLEM, "/dev/nvidia-uvm is missing", "modprobe nvidia-uvm");
    checkup_close(&c);
    checkup_open(&c, "", "1");
    c.host.nodes[HOST_NODE_UVM].present = false;
    c.host.modprobe = true;
    check_driver(&c);
    expect(&c, "driver.uvm_device", FOUND_NOTE, "nvidia-modprobe makes it", "");
    checkup_close(&c);
    checkup_open(&c, "", "1");
    c.host.nodes[HOST_NODE_CONTROL].refused = EACCES;
    c.host.nodes[HOST_NODE_CONTROL].mode = 0660;
    c.host.nodes[2].refused = EACCES;
    check_driver(&c);
    expect(&c, "driver.control_device", FOUND_PROBLEM, "Permission denied (mode 0660)", "group");
    expect(&c, "driver.gpu_device", FOUND_PROBLEM, "/dev/nvidia0", "group");
    checkup_close(&c);
    checkup_open(&c, "", "1");
    c.host.n_nodes = 2;
    check_gpus(&c);
    expect(&c, "gpu.device", FOUND_PROBLEM, "/dev/nvidia0 is missing", "nvidia-smi");
    checkup_close(&c);
}

static void test_hidden_gpus(void **state) {
    (void)state;
    static const char *const hidden[] = {"", "-1"};
    struct checkup c;
    for (size_t i = 0; i < 2; i++) {
        checkup_open(&c, "", "1");
        setenv("CUDA_VISIBLE_DEVICES", hidden[i], 1);
        check_driver(&c);
        expect(&c, "driver.visible", FOUND_PROBLEM, "hides every GPU", "Unset");
        checkup_close(&c);
    }
    checkup_open(&c, "", "1");
    setenv("CUDA_VISIBLE_DEVICES", "1,0", 1);
    check_driver(&c);
    expect(&c, "driver.visible", FOUND_NOTE, "CUDA_VISIBLE_DEVICES=1,0", "");
    checkup_close(&c);
    unsetenv("CUDA_VISIBLE_DEVICES");
}

/* --- values that nobody should believe --- */

static void shows_itself(struct checkup *c) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    report_text(c, f);
    assert_int_equal(report_json(c, f), 0);
    fclose(f);
    for (size_t i = 0; i < size; i++)
        if (text[i] != '\n' && (unsigned char)text[i] < 0x20)
            fail_msg("a control character is printed");
    json_t *o = json_loads(strchr(text, '{'), 0, NULL);
    assert_true(json_is_object(o));
    json_decref(o);
    free(text);
}

static void test_hostile_values(void **state) {
    (void)state;
    static const char *const words[] = {"silly", "failing", "crowd,silly", "crowd,lost", "silly,failing",
            "silly,held", "silly,swarm,two", "none,silly"};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        struct checkup c;
        checkup_open(&c, words[i], "8");
        check_driver(&c);
        check_gpus(&c);
        check_machine(&c);
        assert_false(c.findings.failed);
        shows_itself(&c);
        checkup_close(&c);
    }
}

static void test_a_probe_that_says_anything(void **state) {
    (void)state;
    static const char *const probes[] = {"{}", "{\"devices\": 7}", "{\"devices\": [null, 7, []]}",
            "{\"devices\": [{\"place\": 3}, {\"place\": \"\"}]}"};
    for (size_t i = 0; i < sizeof(probes) / sizeof(probes[0]); i++) {
        struct checkup c;
        checkup_open(&c, "two", "2");
        c.cuda_probe = json_loads(probes[i], 0, NULL);
        assert_true(checkup_uses(&c, 0) && checkup_uses(&c, 1)); /* nothing is told: NVML's order */
        check_gpus(&c);
        shows_itself(&c);
        checkup_close(&c);
    }
}

static void test_findings_are_clean_and_bounded(void **state) {
    (void)state;
    struct findings f = {0};
    char long_text[2000];
    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    found(&f, "here", "a.b", FOUND_OK, "one\ttwo\x1b[31m \xff \xc3\xa4 %s", long_text);
    assert_int_equal(strncmp(f.items[0].text, "one?two?[31m ? \xc3\xa4 xxx", 21), 0);
    assert_int_equal(strlen(f.items[0].text), sizeof(f.items[0].text) - 1);
    advise(&f, "%s", long_text);
    assert_int_equal(strlen(f.items[0].advice), sizeof(f.items[0].advice) - 1);
    for (uint32_t i = 0; i < FINDINGS_MAX; i++)
        found(&f, "here", "a.b", FOUND_NOTE, "%u", i);
    assert_true(f.failed && f.n == FINDINGS_MAX);
    findings_done(&f);
    advise(&f, "of nothing");
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_machine_is_read),
            cmocka_unit_test(test_a_group_limits_memory),
            cmocka_unit_test(test_the_open_module_has_its_version_too),
            cmocka_unit_test(test_an_empty_machine),
            cmocka_unit_test(test_a_healthy_card),
            cmocka_unit_test(test_a_card_that_is_not_well),
            cmocka_unit_test(test_what_a_person_turned_off_above_is_said),
            cmocka_unit_test(test_who_draws_holds_memory_too),
            cmocka_unit_test(test_two_cards),
            cmocka_unit_test(test_a_card_that_is_not_used),
            cmocka_unit_test(test_signs_of_a_gpu),
            cmocka_unit_test(test_a_driver_that_refuses),
            cmocka_unit_test(test_a_library_that_is_not_there),
            cmocka_unit_test(test_the_kernels_side),
            cmocka_unit_test(test_device_files),
            cmocka_unit_test(test_hidden_gpus),
            cmocka_unit_test(test_hostile_values),
            cmocka_unit_test(test_a_probe_that_says_anything),
            cmocka_unit_test(test_findings_are_clean_and_bounded),
    };
    return cmocka_run_group_tests(tests, make_machine, remove_machine);
}
