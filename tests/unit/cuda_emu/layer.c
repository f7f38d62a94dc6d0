/* The CUDA emulation itself: barriers, warps, mma and copies against plain loops in several orders of threads, and the
 * mistakes that it is there to find. */
#include "base/half.h"
#include "base/hash.h"
#include "tests/cuda_emu/emu_control.h"
#include "tests/cuda_emu/self_test.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SEEDS 6u /* 0 = ascending */

static cudaStream_t stream;

static void ok(cudaError_t e) {
    if (e != cudaSuccess)
        fail_msg("%s", cudaGetErrorString(e));
}
static void *device(const void *from, size_t bytes) {
    void *d;
    ok(cudaMalloc(&d, bytes));
    ok(from ? cudaMemcpyAsync(d, from, bytes, cudaMemcpyHostToDevice, stream)
            : cudaMemsetAsync(d, 0xff, bytes, stream));
    ok(cudaStreamSynchronize(stream));
    return d;
}
static void fetch(void *to, void *d_from, size_t bytes) {
    ok(cudaMemcpyAsync(to, d_from, bytes, cudaMemcpyDeviceToHost, stream));
    ok(cudaStreamSynchronize(stream));
}
static uint32_t number(uint32_t i) {
    return (uint32_t)(splitmix64(i) >> 40);
}

static int set_up(void **state) {
    (void)state;
    ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    ok(cudaStreamDestroy(stream));
    return 0;
}

static void block_sums(uint32_t barriers, uint32_t *ret_wrong) {
    enum { BLOCKS = 5, THREADS = 128, N = BLOCKS * THREADS };
    uint32_t in[N], out[N], want[BLOCKS] = {0};
    for (uint32_t i = 0; i < N; i++) {
        in[i] = number(i);
        want[i / THREADS] += in[i];
    }
    uint32_t *d_in = device(in, sizeof in), *d_out = device(NULL, sizeof out);
    ok(try_block_sum(stream, BLOCKS, THREADS, barriers, d_in, d_out));
    fetch(out, d_out, sizeof out);
    *ret_wrong = 0;
    for (uint32_t i = 0; i < N; i++)
        *ret_wrong += out[i] != want[i / THREADS];
    ok(cudaFree(d_in));
    ok(cudaFree(d_out));
}
static void test_barriers_order_a_block(void **state) {
    uint32_t wrong, missed = 0;
    (void)state;
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        emu_seed(seed);
        block_sums(1, &wrong);
        assert_int_equal(wrong, 0);
        block_sums(0, &wrong);
        missed += wrong == 0;
    }
    assert_int_equal(missed, 0); /* without barriers every order is wrong */
}

static bool exchange_is_right(uint32_t buffers) {
    enum { ROUNDS = 6 };
    uint32_t out[64], wrong = 0;
    uint32_t *d_out = device(NULL, sizeof out);
    ok(try_exchange(stream, ROUNDS, buffers, d_out));
    fetch(out, d_out, sizeof out);
    ok(cudaFree(d_out));
    for (uint32_t t = 0; t < 64; t++)
        wrong += out[t] != ROUNDS * (ROUNDS - 1) / 2 * 64 + ROUNDS * (t ^ 32);
    return wrong == 0;
}
/* A buffer that is filled again after one barrier: only a warp that is ahead of the others shows it. */
static void test_odd_seeds_let_a_warp_run_ahead(void **state) {
    uint32_t found = 0;
    (void)state;
    for (uint32_t seed = 0; seed < 2 * SEEDS; seed++) {
        emu_seed(seed);
        assert_true(exchange_is_right(2));
        found += !exchange_is_right(1);
    }
    assert_true(found >= SEEDS / 2);
}

static void test_warps_exchange(void **state) {
    uint32_t in[32], out[6][32], votes = 0, most = 0;
    (void)state;
    for (uint32_t l = 0; l < 32; l++) {
        in[l] = number(l);
        votes |= (in[l] & 1) << l;
        most = in[l] > most ? in[l] : most;
    }
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        emu_seed(seed);
        uint32_t *d_in = device(in, sizeof in), *d_out = device(NULL, sizeof out);
        ok(try_warp(stream, d_in, d_out));
        fetch(out, d_out, sizeof out);
        for (uint32_t l = 0; l < 32; l++) {
            assert_int_equal(out[0][l], in[l ^ 5]);
            assert_int_equal(out[1][l], in[9]);
            assert_int_equal(out[2][l], in[l + 3 < 32 ? l + 3 : l]);
            assert_int_equal(out[3][l], votes);
            assert_int_equal(out[4][l], most);
            assert_int_equal(out[5][l],
                    (in[l] & 255) | (in[l] >> 8 & 0xff00) | (~in[l] << 8 & 0xff0000) | (~in[l] & 0xff000000));
        }
        ok(cudaFree(d_in));
        ok(cudaFree(d_out));
    }
}

static void test_mma_s8_is_plain_loops(void **state) {
    int8_t a[16][32], b[8][32];
    int32_t c[16][8], out[16][8];
    (void)state;
    for (uint32_t i = 0; i < 16 * 32; i++)
        a[i / 32][i % 32] = (int8_t)number(i);
    for (uint32_t i = 0; i < 8 * 32; i++)
        b[i / 32][i % 32] = (int8_t)number(1000 + i);
    for (uint32_t i = 0; i < 16 * 8; i++)
        c[i / 8][i % 8] = (int32_t)number(2000 + i);
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        emu_seed(seed);
        void *d[] = {device(a, sizeof a), device(b, sizeof b), device(c, sizeof c), device(NULL, sizeof out)};
        ok(try_mma_s8(stream, d[0], d[1], d[2], d[3]));
        fetch(out, d[3], sizeof out);
        for (uint32_t i = 0; i < 16 * 8; i++) {
            int32_t want = c[i / 8][i % 8];
            for (uint32_t k = 0; k < 32; k++)
                want += a[i / 8][k] * b[i % 8][k];
            assert_int_equal(out[i / 8][i % 8], want);
        }
        for (uint32_t i = 0; i < 4; i++)
            ok(cudaFree(d[i]));
    }
}

static void test_mma_bf16_and_ldmatrix_are_plain_loops(void **state) {
    uint16_t a[16][16], b[8][16];
    float c[16][8], out[16][8];
    (void)state;
    for (uint32_t i = 0; i < 16 * 16; i++)
        a[i / 16][i % 16] = bf16_of((float)(number(i) % 64) - 32);
    for (uint32_t i = 0; i < 8 * 16; i++)
        b[i / 16][i % 16] = bf16_of((float)(number(500 + i) % 64) - 32);
    for (uint32_t i = 0; i < 16 * 8; i++)
        c[i / 8][i % 8] = (float)(number(900 + i) % 1000); /* integers: every order gives the same sum */
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        emu_seed(seed);
        void *d[] = {device(a, sizeof a), device(b, sizeof b), device(c, sizeof c), device(NULL, sizeof out)};
        ok(try_mma_bf16(stream, d[0], d[1], d[2], d[3]));
        fetch(out, d[3], sizeof out);
        for (uint32_t i = 0; i < 16 * 8; i++) {
            float want = c[i / 8][i % 8];
            for (uint32_t k = 0; k < 16; k++)
                want += float_of_bf16(a[i / 8][k]) * float_of_bf16(b[i % 8][k]);
            assert_true(out[i / 8][i % 8] == want);
        }
        for (uint32_t i = 0; i < 4; i++)
            ok(cudaFree(d[i]));
    }
}

static void test_rounding_and_transposed_matrices(void **state) {
    float a[16][16], b[16][8], c[16][8], out[16][8];
    (void)state;
    for (uint32_t i = 0; i < 16 * 16; i++) /* 257 and 259 are halfway: to 256 and 260 */
        a[i / 16][i % 16] = (float)(number(i) % 64) + (i % 3 ? 256 : 0);
    for (uint32_t i = 0; i < 16 * 8; i++) {
        b[i / 8][i % 8] = (float)(number(500 + i) % 64) - 32;
        c[i / 8][i % 8] = (float)(number(900 + i) % 1000);
    }
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        emu_seed(seed);
        void *d[] = {device(a, sizeof a), device(b, sizeof b), device(c, sizeof c), device(NULL, sizeof out)};
        ok(try_mma_bf16_rounded(stream, d[0], d[1], d[2], d[3]));
        fetch(out, d[3], sizeof out);
        for (uint32_t i = 0; i < 16 * 8; i++) {
            float want = c[i / 8][i % 8];
            for (uint32_t k = 0; k < 16; k++)
                want += float_of_bf16(bf16_of(a[i / 8][k])) * b[k][i % 8];
            assert_true(out[i / 8][i % 8] == want);
        }
        for (uint32_t i = 0; i < 4; i++)
            ok(cudaFree(d[i]));
    }
}

/* Codes 128 .. 143 and 128 .. 255 less 136 and 200; and the smallest numbers by 2^120. */
static void test_pairs_of_bf16(void **state) {
    static const float b[2] = {1.0f, 0x1p120f}, c[2][2] = {{-136.0f, -200.0f}, {-0.0f, -0.0f}};
    uint32_t in[32], out[32];
    (void)state;
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t l = 0; l < 32; l++)
            in[l] = i ? (l | l << 20)
                      : (uint32_t)bf16_of((float)(128 + 4 * l)) << 16 | bf16_of((float)(128 + l % 16));
        void *d[] = {device(in, sizeof in), device(NULL, sizeof out)};
        ok(try_bf16_pairs(stream, d[0], bf16_of(b[i]) * 0x10001u,
                (uint32_t)bf16_of(c[i][1]) << 16 | bf16_of(c[i][0]), d[1]));
        fetch(out, d[1], sizeof out);
        for (uint32_t l = 0; l < 32; l++) {
            for (uint32_t h = 0; h < 2; h++)
                assert_true(float_of_bf16((uint16_t)(out[l] >> (16 * h))) ==
                            float_of_bf16((uint16_t)(in[l] >> (16 * h))) * b[i] + c[i][h]);
        }
        ok(cudaFree(d[0]));
        ok(cudaFree(d[1]));
    }
}

/* Exact ones, halves of steps, the largest, the smallest, none. */
static void test_f16(void **state) {
    static const float in[32] = {0.0f, -0.0f, 1.0f, -2.5f, 65504.0f, 65519.0f, 65520.0f, -INFINITY, 0x1p-14f,
            0x1p-24f, 0x1p-25f, 0x1.8p-25f, 0x1.002p0f, 0x1.006p0f, 0x1.0021p0f, -0x1.ffep0f, 0x1.fffp0f,
            NAN};
    uint16_t bits[32];
    float out[32];
    (void)state;
    void *d[] = {device(in, sizeof in), device(NULL, sizeof bits), device(NULL, sizeof out)};
    ok(try_f16(stream, d[0], d[1], d[2]));
    fetch(bits, d[1], sizeof bits);
    fetch(out, d[2], sizeof out);
    for (uint32_t i = 0; i < 32; i++) {
        assert_true(isnan(in[i]) ? isnan(out[i]) : bits[i] == f16_of(in[i]));
        assert_true(isnan(in[i]) || out[i] == float_of_f16(f16_of(in[i])));
    }
    for (uint32_t i = 0; i < 3; i++)
        ok(cudaFree(d[i]));
}

static bool copies_are_right(uint32_t waits, uint32_t early) {
    enum { RUNS = 7, N = RUNS * 128 };
    uint32_t in[N], out[N];
    for (uint32_t i = 0; i < N; i++)
        in[i] = number(i);
    uint32_t *d_in = device(in, sizeof in), *d_out = device(NULL, sizeof out);
    ok(try_copies(stream, RUNS, waits, early, d_in, d_out));
    fetch(out, d_out, sizeof out);
    ok(cudaFree(d_in));
    ok(cudaFree(d_out));
    return memcmp(in, out, sizeof in) == 0;
}
static void test_copies_come_at_their_wait(void **state) {
    (void)state;
    emu_seed(0);
    assert_true(copies_are_right(1, 0));
    assert_false(copies_are_right(0, 0)); /* read too early */
    assert_false(copies_are_right(1, 1)); /* a slot is filled before it was read */
}

/* Work runs when somebody waits or asks, in order, and an event stands where it was recorded. */
static void test_streams_events_and_graphs(void **state) {
    uint32_t zero = 0, out = 0;
    uint32_t *d = device(&zero, sizeof zero);
    cudaEvent_t ev;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    (void)state;
    ok(cudaEventCreateWithFlags(&ev, cudaEventDisableTiming));
    const uint64_t before = emu_works();
    ok(try_add_one(stream, d));
    ok(cudaEventRecord(ev, stream));
    ok(try_add_one(stream, d));
    assert_int_equal(emu_works(), before);
    assert_int_equal(cudaEventQuery(ev), cudaErrorNotReady); /* but somebody asked */
    assert_int_equal(cudaEventQuery(ev), cudaSuccess);
    assert_int_equal(emu_works(), before + 1);
    ok(cudaEventRecord(ev, stream));
    ok(cudaEventSynchronize(ev));
    assert_int_equal(emu_works(), before + 2);
    ok(cudaStreamSynchronize(stream));
    ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    ok(try_add_one(stream, d));
    ok(try_add_one(stream, d));
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
    ok(cudaStreamEndCapture(stream, &graph));
    ok(cudaGraphInstantiate(&exec, graph, 0));
    ok(cudaGraphDestroy(graph));
    for (uint32_t i = 0; i < 3; i++)
        ok(cudaGraphLaunch(exec, stream));
    fetch(&out, d, sizeof out);
    assert_int_equal(out, 8);
    ok(cudaGraphExecDestroy(exec));
    ok(cudaEventDestroy(ev));
    ok(cudaFree(d));
    cudaGetLastError();
}

/* Another stream is drawn into a capture by waiting for an event of it, and must be waited for before its end. */
static void test_branches_of_a_graph(void **state) {
    uint32_t zero = 0, out = 0;
    uint32_t *d = device(&zero, sizeof zero);
    cudaStream_t branch;
    cudaEvent_t forked, joined;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    (void)state;
    ok(cudaStreamCreateWithFlags(&branch, cudaStreamNonBlocking));
    ok(cudaEventCreateWithFlags(&forked, cudaEventDisableTiming));
    ok(cudaEventCreateWithFlags(&joined, cudaEventDisableTiming));
    ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    ok(cudaEventRecord(forked, stream));
    ok(cudaStreamWaitEvent(branch, forked, 0));
    ok(try_add_one(branch, d));
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureUnjoined);
    ok(cudaEventRecord(joined, branch));
    ok(cudaStreamWaitEvent(stream, joined, 0));
    ok(try_add_one(stream, d));
    ok(cudaStreamEndCapture(stream, &graph));
    ok(cudaGraphInstantiate(&exec, graph, 0));
    ok(cudaGraphDestroy(graph));
    ok(cudaGraphLaunch(exec, stream));
    ok(cudaGraphLaunch(exec, stream));
    ok(try_add_one(branch, d)); /* its own again */
    ok(cudaEventRecord(joined, branch));
    ok(cudaStreamWaitEvent(stream, joined, 0));
    fetch(&out, d, sizeof out);
    assert_int_equal(out, 5);
    ok(cudaGraphExecDestroy(exec));
    ok(cudaEventDestroy(forked));
    ok(cudaEventDestroy(joined));
    ok(cudaStreamDestroy(branch));
    ok(cudaFree(d));
    cudaGetLastError();
}

/* --- mistakes; a fault stays, so each has a process of its own --- */

enum mistake {
    SHARED_READ,
    SHARED_WRITE,
    SHARED_WRITE_IN_PADDING,
    DEVICE_WRITE,
    DEADLOCK,
    HOST_READS_DEVICE,
    TOO_MUCH_SHARED,
    NO_MISTAKE
};
/* The error that is found, or -signal. */
static int found_by(enum mistake m, char *text, size_t text_bytes) {
    int pipes[2], status;
    assert_int_equal(pipe(pipes), 0);
    const pid_t child = fork();
    if (child == 0) {
        uint32_t *d;
        signal(SIGSEGV, SIG_DFL); /* not the test library's */
        cudaError_t e = cudaMalloc((void **)&d, 300);
        emu_seed(0);
        if (m == SHARED_READ)
            e = try_shared_access(stream, 256, 64, 0, d);
        else if (m == SHARED_WRITE)
            e = try_shared_access(stream, 1024, 256, 1, d);
        else if (m == SHARED_WRITE_IN_PADDING)
            e = try_shared_access(stream, 260, 65, 1, d);
        else if (m == DEVICE_WRITE)
            e = try_device_access(stream, 128, d);
        else if (m == DEADLOCK)
            e = try_deadlock(stream);
        else if (m == HOST_READS_DEVICE)
            _exit(*(volatile uint32_t *)d == 1);
        else if (m == TOO_MUCH_SHARED)
            e = try_shared_access(stream, 64 << 10, 0, 0, d);
        else
            e = try_shared_access(stream, 256, 63, 1, d);
        if (e == cudaSuccess)
            e = cudaStreamSynchronize(stream);
        const char *said = cudaGetErrorString(e);
        _exit(write(pipes[1], said, strlen(said)) < 0 ? 0 : (int)(e % 256));
    }
    close(pipes[1]);
    const ssize_t n = read(pipes[0], text, text_bytes - 1);
    text[n > 0 ? n : 0] = '\0';
    close(pipes[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}
static void test_mistakes_are_found_and_named(void **state) {
    static const struct {
        enum mistake mistake;
        int error;
        const char *said;
    } all[] = {
            {SHARED_READ, cudaErrorIllegalAddress % 256, "byte 256 of dynamic shared memory of 256"},
            {SHARED_WRITE, cudaErrorIllegalAddress % 256, "byte 1024 of dynamic shared memory of 1024"},
            {SHARED_WRITE_IN_PADDING, cudaErrorIllegalAddress % 256,
                    "byte 260 of dynamic shared memory of 260"},
            {DEVICE_WRITE, cudaErrorIllegalAddress % 256, "byte 512 of device memory of 300 bytes"},
            {DEADLOCK, cudaErrorIllegalAddress % 256, "that do not come"},
            {TOO_MUCH_SHARED, cudaErrorInvalidValue, "invalid argument"},
            {NO_MISTAKE, 0, "no error"},
    };
    char text[600];
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        assert_int_equal(found_by(all[i].mistake, text, sizeof text), all[i].error);
        if (!strstr(text, all[i].said))
            fail_msg("mistake %zu: \"%s\" does not say \"%s\"", i, text, all[i].said);
    }
    assert_true(found_by(HOST_READS_DEVICE, text, sizeof text) != 0); /* a signal, or a sanitizer's exit */
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_barriers_order_a_block),
            cmocka_unit_test(test_odd_seeds_let_a_warp_run_ahead),
            cmocka_unit_test(test_warps_exchange),
            cmocka_unit_test(test_mma_s8_is_plain_loops),
            cmocka_unit_test(test_mma_bf16_and_ldmatrix_are_plain_loops),
            cmocka_unit_test(test_rounding_and_transposed_matrices),
            cmocka_unit_test(test_pairs_of_bf16),
            cmocka_unit_test(test_f16),
            cmocka_unit_test(test_copies_come_at_their_wait),
            cmocka_unit_test(test_streams_events_and_graphs),
            cmocka_unit_test(test_branches_of_a_graph),
            cmocka_unit_test(test_mistakes_are_found_and_named),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
