/* What lies between two GPUs of machines that are made up, a folder in place of /, and what is said of it. */
#include "kernels/cuda/links.h"
#include "tests/unit/kernels_cuda/sides.h"

#include <ftw.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

static __typeof__(&link_look) look;
static __typeof__(&links_text) say;
static char root[] = "/tmp/shardd-links-XXXXXX";

static int open_library(void **state) {
    void *so = dlopen(CUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    (void)state;
    if (!so || !mkdtemp(root))
        return -1;
    *(void **)&look = dlsym(so, "link_look");
    *(void **)&say = dlsym(so, "links_text");
    return look && say ? 0 : -1;
}
static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw) {
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}
static int remove_root(void **state) {
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* --- machines --- */

static void make_folders(char *path) {
    for (char *slash = strchr(path + sizeof root, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0777);
        *slash = '/';
    }
}
static void put(const char *folder, const char *name, const char *text) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s%s/%s", root, folder, name);
    make_folders(path);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}
static void point(const char *folder, const char *name, const char *to) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s%s/%s", root, folder, name);
    make_folders(path);
    unlink(path);
    assert_int_equal(symlink(to, path), 0);
}
/* A card below bridges ("pci0000:3a/0000:3a:00.0"); group NULL: no IOMMU. */
static void card(const char *bridges, const char *name, const char *node, const char *group) {
    char folder[PATH_MAX], target[PATH_MAX];
    snprintf(folder, sizeof folder, "/sys/devices/%s/%s", bridges, name);
    put(folder, "numa_node", node);
    snprintf(target, sizeof target, "../../../devices/%s/%s", bridges, name);
    point("/sys/bus/pci/devices", name, target);
    if (!group)
        return;
    snprintf(target, sizeof target, "../../../kernel/iommu_groups/%s", group);
    point(folder, "iommu_group", target);
}
static void type_of_group(const char *group, const char *type) {
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "/sys/kernel/iommu_groups/%s", group);
    put(folder, "type", type);
}

#define A "00000000:3B:00.0" /* as CUDA has it */
#define B "00000000:3c:00.0"
#define C "00000000:5e:00.0"
#define D "00000000:af:00.0"
static struct link between(const char *a, const char *b) {
    const struct nvml none = {0};
    struct link l, back;
    look(root, &none, a, b, &l);
    look(root, &none, b, a, &back);
    assert_int_equal(l.kind, back.kind);
    assert_int_equal(l.nodes[0], back.nodes[1]);
    assert_true(l.translated == back.translated && l.redirected == back.redirected);
    return l;
}
static void test_bridges(void **state) {
    (void)state;
    card("pci0000:3a/0000:3a:00.0/0000:3a:01.0", "0000:3b:00.0", "0\n", NULL);
    card("pci0000:3a/0000:3a:00.0/0000:3a:02.0", "0000:3c:00.0", "0\n", NULL);
    card("pci0000:3a/0000:3a:05.0", "0000:5e:00.0", "0\n", NULL);
    card("pci0000:ae/0000:ae:00.0", "0000:af:00.0", "1\n", NULL);
    assert_int_equal(between(A, B).kind, LINK_SWITCH);
    assert_int_equal(between(A, C).kind, LINK_ROOT);
    assert_int_equal(between(A, D).kind, LINK_FAR);
    assert_int_equal(between(A, D).nodes[1], 1);
    assert_false(between(A, B).redirected || between(A, B).translated);
    assert_int_equal(between(A, "00000000:99:00.0").kind, LINK_UNKNOWN);
    assert_int_equal(between(A, "00000000:99:00.0").nodes[1], -1);
    assert_int_equal(between(A, "").kind, LINK_UNKNOWN);
    put("/sys/devices/pci0000:ae/0000:ae:00.0/0000:af:00.0", "numa_node", "-1\n");
    assert_int_equal(between(A, D).nodes[1], -1);
}
static void test_groups_of_the_iommu(void **state) {
    (void)state;
    card("pci0000:3a/0000:3a:00.0/0000:3a:01.0", "0000:3b:00.0", "0\n", "12");
    card("pci0000:3a/0000:3a:00.0/0000:3a:02.0", "0000:3c:00.0", "0\n", "13");
    type_of_group("12", "identity\n");
    type_of_group("13", "identity\n");
    assert_true(between(A, B).redirected);
    assert_false(between(A, B).translated || between(A, C).redirected);
    type_of_group("13", "DMA-FQ\n");
    assert_true(between(A, B).translated);
    card("pci0000:3a/0000:3a:00.0/0000:3a:02.0", "0000:3c:00.0", "0\n", "12");
    assert_false(between(A, B).redirected || between(A, B).translated);
}
static void test_nvlink_by_a_bridge_and_by_a_switch(void **state) {
    struct nvml_gpu gpus[3] = {{.place = A}, {.place = B}, {.place = C}};
    const struct nvml n = {.gpus = gpus, .n_gpus = 3};
    struct link l;
    (void)state;
    gpus[0].links[0] = (struct nvml_link){.active = true, .peer = 2};
    gpus[0].n_links = 1;
    look(root, &n, A, C, &l);
    assert_int_equal(l.kind, LINK_NVLINK);
    look(root, &n, A, B, &l);
    assert_int_equal(l.kind, LINK_SWITCH);
    gpus[0].links[0] = gpus[1].links[0] = (struct nvml_link){.active = true, .to_switch = true, .peer = -1};
    gpus[1].n_links = 1;
    look(root, &n, A, B, &l);
    assert_int_equal(l.kind, LINK_NVLINK);
    gpus[1].links[0].active = false;
    look(root, &n, A, B, &l);
    assert_int_equal(l.kind, LINK_SWITCH);
}

/* --- words --- */

static void says(const struct link_pair *pairs, uint32_t n, const char *expected) {
    char text[1024];
    say(pairs, n, text, sizeof text);
    assert_string_equal(text, expected);
}
static void test_pairs_are_told_by_what_lies_between(void **state) {
    const struct link bridge = {.kind = LINK_NVLINK, .nodes = {0, 1}},
                      far = {.kind = LINK_FAR, .nodes = {1, 0}},
                      root_port = {.kind = LINK_ROOT, .nodes = {0, 0}};
    const struct link_pair pairs[] = {{0, 1, bridge, 52300, PAIR_WELL}, {0, 2, far, 9000, PAIR_WELL},
            {0, 3, root_port, 24000, PAIR_WELL}, {2, 3, bridge, 51000, PAIR_WELL}};
    (void)state;
    says(NULL, 0, "");
    says(pairs, 4,
            "between ranks: NVLink 0-1 (52.3 GB/s) 2-3 (51.0 GB/s), NUMA nodes 0 and 1 0-2 (9.0 GB/s), "
            "a PCIe root 0-3 (24.0 GB/s)"
            "; slow: 0-2 (it goes from socket to socket: take GPUs of one NUMA node)");
}
static void cause(struct link l, enum pair_state state, const char *wrong, const char *expected) {
    const struct link_pair p = {
            .a = 0, .b = 1, .link = l, .mb_s = state == PAIR_WELL ? 2000 : 0, .state = state};
    char text[1024], whole[1024];
    say(&p, 1, text, sizeof text);
    snprintf(whole, sizeof whole, "; %s: 0-1 (%s", wrong, expected);
    if (!strstr(text, whole))
        fail_msg("'%s' does not say '%s'", text, whole);
}
static void test_the_usual_cause_is_named(void **state) {
    const struct link near = {.kind = LINK_SWITCH, .nodes = {0, 0}},
                      far = {.kind = LINK_FAR, .nodes = {0, 1}};
    const char *lost = "what is written gets lost", *out = "out of reach";
    struct link l = near;
    (void)state;
    cause(near, PAIR_LOSES, lost, "an IOMMU or PCIe ACS may stand between them");
    cause(near, PAIR_OUT_OF_REACH, out, "the cards or the driver cannot");
    cause(near, PAIR_WELL, "slow", "few PCIe lanes");
    l.redirected = true;
    cause(l, PAIR_LOSES, lost, "PCIe ACS sends it by the root");
    l.translated = true;
    cause(l, PAIR_LOSES, lost, "the IOMMU translates");
    cause(far, PAIR_LOSES, lost, "some machines forward nothing between sockets");
    cause(far, PAIR_OUT_OF_REACH, out, "some machines forward nothing between sockets");
    cause((struct link){.kind = LINK_NVLINK, .nodes = {0, 1}}, PAIR_LOSES, lost, "NVLink is there");
    cause((struct link){.kind = LINK_NVLINK}, PAIR_WELL, "slow", "some links may be down");
    cause((struct link){.nodes = {-1, -1}}, PAIR_LOSES, lost, "an IOMMU");
}
static void test_pairs_with_one_cause_are_named_together(void **state) {
    const struct link far = {.kind = LINK_FAR, .nodes = {0, 1}}, unknown = {.nodes = {-1, -1}};
    const struct link_pair pairs[] = {{0, 1, unknown, 0, PAIR_LOSES}, {0, 2, far, 0, PAIR_OUT_OF_REACH},
            {0, 3, unknown, 0, PAIR_LOSES}, {1, 2, far, 0, PAIR_LOSES}};
    (void)state;
    says(pairs, 4,
            "between ranks: not told by /sys 0-1 0-3, NUMA nodes 0 and 1 0-2 1-2; what is written gets lost: "
            "0-1 0-3 (an IOMMU or PCIe ACS may stand between them (iommu=pt, ACS off)); out of reach: 0-2 (some "
            "machines forward nothing between sockets: take GPUs of one NUMA node); what is written gets lost: "
            "1-2 (some machines forward nothing between sockets: take GPUs of one NUMA node)");
}
static void test_a_line_is_cut_where_it_ends(void **state) {
    struct link_pair pairs[28];
    char text[100];
    (void)state;
    for (uint32_t i = 0; i < 28; i++)
        pairs[i] = (struct link_pair){
                .a = i, .b = i + 1, .link = {.nodes = {(int)i, (int)i + 1}}, .state = PAIR_LOSES};
    for (size_t size = 1; size <= sizeof text; size++) {
        memset(text, 'x', sizeof text);
        say(pairs, 28, text, size);
        assert_int_equal(strnlen(text, sizeof text), size - 1);
        assert_true(size == sizeof text || text[size] == 'x');
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_bridges),
            cmocka_unit_test(test_groups_of_the_iommu),
            cmocka_unit_test(test_nvlink_by_a_bridge_and_by_a_switch),
            cmocka_unit_test(test_pairs_are_told_by_what_lies_between),
            cmocka_unit_test(test_the_usual_cause_is_named),
            cmocka_unit_test(test_pairs_with_one_cause_are_named_together),
            cmocka_unit_test(test_a_line_is_cut_where_it_ends),
    };
    return cmocka_run_group_tests(tests, open_library, remove_root);
}
