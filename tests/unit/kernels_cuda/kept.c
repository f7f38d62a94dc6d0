/* Weights that outlive their process: a process loads them and is killed, another one that was given the descriptor
 * finds them, computes the same from them, and is told when they are not what they were. */
#include "tests/unit/kernels_cuda/sides.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    ROWS = 3,
    COLUMNS = 256,
    CODED = 40,
    DENSE = 19,
    OUTPUTS = CODED + DENSE,
    CHANNELS = 7,
    TAPS = 4,
    IDS = 5
};

static struct library k;
static struct fake *coded;
static float *dense, *x, *norm, *vector;
static uint32_t order[COLUMNS];

struct loaded {
    struct k_linear *linear, *made_up;
    float *vector, *taps;
    struct k_table *table;
};
static struct k_linear_spec spec_of(struct k_matrix_view views[2]) {
    views[0] = (struct k_matrix_view){.quant = &coded->q, .rows = CODED};
    views[1] = (struct k_matrix_view){.data = dense, .row_stride = COLUMNS, .rows = DENSE, .dtype = K_F32};
    return (struct k_linear_spec){
            .pieces = views, .n_pieces = 2, .columns = COLUMNS, .leaves = 8, .order = order, .name = "kept"};
}
static uint64_t bytes_to_keep(void) {
    struct k_matrix_view views[2];
    const struct k_linear_spec spec = spec_of(views);
    return 2 * k_keep_bytes(k.k_linear_bytes(&spec)) + k_keep_bytes(COLUMNS * sizeof(float)) +
           k_keep_bytes(CHANNELS * TAPS * sizeof(float)) + k_keep_bytes(IDS * COLUMNS * sizeof(float));
}
/* there: they are in memory that was adopted, so that nothing has to be given. */
static void load(struct k_context *c, bool there, struct loaded *l) {
    struct k_matrix_view views[2];
    const struct k_linear_spec spec = spec_of(views);
    OK(k.k_linear_pack(c, &spec, &l->linear, e));
    OK(k.k_linear_dummy(c, &spec, 5, 0.1f, &l->made_up, e));
    OK(k.k_vector_load(c, there ? NULL : vector, K_F32, COLUMNS, 1.0f, &l->vector, e));
    OK(k.k_taps_load(c, there ? NULL : dense, K_F32, CHANNELS, TAPS, &l->taps, e));
    OK(k.k_table_load(c, there ? NULL : dense, K_F32, IDS, COLUMNS, /* mapped= */ true, &l->table, e));
}
static void unload(struct k_context *c, struct loaded *l) {
    k.k_linear_free(l->linear);
    k.k_linear_free(l->made_up);
    k.k_free(c, l->vector);
    k.k_free(c, l->taps);
    k.k_table_free(l->table);
}

struct found { /* what comes out of them */
    float y[ROWS + 1][OUTPUTS], made_up[ROWS + 1][OUTPUTS], vector[COLUMNS], taps[TAPS * CHANNELS];
    float rows[ROWS][COLUMNS];
};
static void compute(struct side *d, const struct loaded *l, struct found *f) {
    side_rows(d, ROWS, 0);
    side_product(d, PROJECT, l->linear, ROWS, COLUMNS, x, norm, f->y[0]);
    side_product(d, NORM_PROJECT, l->made_up, ROWS, COLUMNS, x, norm, f->made_up[0]);
    d->k.k_embed(d->s, d->b, l->table, d->d_y);
    d->k.k_download(d->s, f->rows, d->d_y, sizeof f->rows);
    d->k.k_download(d->s, f->vector, l->vector, sizeof f->vector);
    d->k.k_download(d->s, f->taps, l->taps, sizeof f->taps);
    OK(d->k.k_stream_wait(d->s, 0, e));
}
static void assert_found(const struct found *got, const struct found *want) {
    assert_equal_floats(got->y[0], want->y[0], ROWS * OUTPUTS, "a product");
    assert_equal_floats(got->made_up[0], want->made_up[0], ROWS * OUTPUTS, "a product of made-up weights");
    assert_memory_equal(got->vector, want->vector, sizeof want->vector);
    assert_memory_equal(got->taps, want->taps, sizeof want->taps);
    assert_memory_equal(got->rows, want->rows, sizeof want->rows);
}

/* Weights as they are without any of this. */
static void compute_plainly(struct found *f) {
    struct side d;
    struct loaded l;
    side_open(&d, k);
    load(d.c, false, &l);
    compute(&d, &l, f);
    unload(d.c, &l);
    side_close(&d);
}
static void load_to_keep(struct k_context *c, struct loaded *l, struct k_kept *ret) {
    OK(k.k_keep_begin(c, bytes_to_keep(), e));
    load(c, false, l);
    OK(k.k_keep_end(c, ret, e));
    assert_true(ret->fd >= 0);
}

/* --- a process that is killed --- */

struct word { /* of it, before */
    uint64_t sum;
    int fd; /* beside it */
};
static void send_word(int to, const struct word *w) {
    char space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec v = {.iov_base = (void *)w, .iov_len = sizeof *w};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_RIGHTS;
    h->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(h), &w->fd, sizeof w->fd);
    if (sendmsg(to, &m, 0) < 0)
        _Exit(1);
}
static void receive_word(int from, struct word *ret) {
    char space[CMSG_SPACE(sizeof(int))];
    struct iovec v = {.iov_base = ret, .iov_len = sizeof *ret};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    assert_int_equal(recvmsg(from, &m, 0), sizeof *ret);
    assert_non_null(CMSG_FIRSTHDR(&m));
    memcpy(&ret->fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof ret->fd);
}
/* A kernel writes to weights that are kept: a fault, after which a GPU does nothing more for this process. */
static void write_to_kept(struct side *d, struct loaded *l) {
    side_rows(d, ROWS, 0);
    d->k.k_embed(d->s, d->b, l->table, l->vector);
    assert_true(d->k.k_stream_wait(d->s, 0, NULL) < 0);
}
static void live_and_wait(int to, bool fault) {
    struct side d;
    struct loaded l;
    struct k_kept kept;
    side_open(&d, k);
    load_to_keep(d.c, &l, &kept);
    if (fault)
        write_to_kept(&d, &l);
    send_word(to, &(struct word){kept.sum, kept.fd});
    pause();
}
static struct word of_a_process_that_died(bool fault) {
    struct word w = {0};
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    const pid_t child = fork();
    if (child == 0)
        live_and_wait(pair[1], fault);
    close(pair[1]);
    receive_word(pair[0], &w);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    close(pair[0]);
    return w;
}

static void test_outlives_its_process(void **state) {
    const struct word words[] = {of_a_process_that_died(/* fault= */ false), of_a_process_that_died(true)};
    struct found want, got;
    (void)state;
    compute_plainly(&want);
    for (int times = 0; times < 3; times++) { /* who adopts them may die as well */
        const struct word w = words[times / 2];
        struct side d;
        struct loaded l;
        struct k_kept kept;
        side_open(&d, k);
        OK(k.k_keep_adopt(d.c, bytes_to_keep(), w.fd, w.sum, e));
        load(d.c, true, &l);
        OK(k.k_keep_end(d.c, &kept, e));
        assert_int_equal(kept.fd, -1);
        assert_int_equal(kept.sum, w.sum);
        compute(&d, &l, &got);
        assert_found(&got, &want);
        unload(d.c, &l);
        side_close(&d);
    }
    close(words[0].fd);
    close(words[1].fd);
}

/* --- who loads them --- */

static void test_kept_is_as_loaded(void **state) {
    struct found want, got;
    struct side d;
    struct loaded l;
    struct k_kept kept, again;
    struct error e;
    (void)state;
    compute_plainly(&want);
    side_open(&d, k);
    load_to_keep(d.c, &l, &kept);
    compute(&d, &l, &got);
    assert_found(&got, &want);
    assert_int_equal(k.k_keep_begin(d.c, 1, &e), -EBUSY);
    assert_int_equal(k.k_keep_end(d.c, &again, &e), -EINVAL);
    unload(d.c, &l);
    side_close(&d);
    close(kept.fd);
}
static void test_wrong_size(void **state) {
    const struct k_context_options o = {.threads = 1};
    struct k_context *c;
    struct loaded l = {0};
    struct k_kept kept;
    struct error error;
    (void)state;
    OK(k.k_context_create(&o, &c, e));
    assert_int_equal(k.k_keep_begin(c, 0, &error), -EINVAL);
    OK(k.k_keep_begin(c, bytes_to_keep() + K_KEEP_ALIGN, e));
    load(c, false, &l);
    assert_int_equal(k.k_keep_end(c, &kept, &error), -EINVAL);
    assert_int_equal(k.k_vector_load(c, vector, K_F32, COLUMNS, 0, &l.vector, &error), -ENOMEM);
    k.k_linear_free(l.linear);
    k.k_linear_free(l.made_up);
    k.k_context_free(c);
}

/* --- memory that is not what it was --- */

static void test_changed(void **state) {
    const struct k_context_options o = {.threads = 1};
    struct k_context *c;
    struct error error;
    (void)state;
    if (!k.emu_seed)
        skip(); /* the host cannot reach a card's memory */
    const struct word w = of_a_process_that_died(/* fault= */ false);
    uint8_t *p = mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, w.fd, 0);
    assert_true(p != MAP_FAILED);
    p[1234] ^= 4;
    OK(k.k_context_create(&o, &c, e));
    assert_int_equal(k.k_keep_adopt(c, bytes_to_keep(), w.fd, w.sum, &error), -ESTALE);
    p[1234] ^= 4;
    OK(k.k_keep_adopt(c, bytes_to_keep(), w.fd, w.sum, e));
    k.k_context_free(c);
    munmap(p, 1);
    close(w.fd);
}
static void test_no_weights_at_all(void **state) {
    const struct k_context_options o = {.threads = 1};
    struct k_context *c;
    struct error e;
    const int fd = open("/dev/null", O_RDWR);
    (void)state;
    assert_int_equal(k.k_context_create(&o, &c, &e), 0);
    assert_true(k.k_keep_adopt(c, 4096, fd, 0, &e) < 0);
    struct loaded l;
    load(c, false, &l); /* as if nothing had been asked */
    unload(c, &l);
    k.k_context_free(c);
    close(fd);
}
static void test_where_it_is_not_there(void **state) {
    const struct k_context_options o = {.threads = 1};
    struct k_context *c;
    struct error error;
    (void)state;
    OK(k_context_create(&o, &c, e));
    assert_int_equal(k_keep_begin(c, 4096, &error), -ENOTSUP);
    assert_int_equal(k_keep_adopt(c, 4096, 0, 0, &error), -ENOTSUP);
    k_context_free(c);
    if (!k.emu_seed)
        return;
    setenv("CUDA_EMU_SHARED", "0", 1);
    OK(k.k_context_create(&o, &c, e));
    assert_int_equal(k.k_keep_begin(c, 4096, &error), -ENOTSUP);
    k.k_context_free(c);
    unsetenv("CUDA_EMU_SHARED");
}

static int set_up(void **state) {
    const struct fake_kind kind = {QUANT_INT4, QUANT_SCALE_F16, 32, true, false};
    (void)state;
    k = opened_library();
    coded = fake_make(3, kind, CODED, COLUMNS);
    dense = random_floats(4, (size_t)IDS * COLUMNS > DENSE * COLUMNS ? IDS * COLUMNS : DENSE * COLUMNS, 1);
    x = random_floats(5, ROWS * COLUMNS, 1);
    norm = random_floats(6, COLUMNS, 1);
    vector = random_floats(7, COLUMNS, 1);
    for (uint32_t i = 0; i < COLUMNS; i++)
        order[i] = i ^ 1;
    uint32_t *of_codes = malloc(sizeof order);
    memcpy(of_codes, order, sizeof order);
    coded->q.order = of_codes;
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    fake_free(coded);
    float *const arrays[] = {dense, x, norm, vector};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(
                    test_outlives_its_process), /* first: a GPU's process must not fork once it has begun */
            cmocka_unit_test(test_kept_is_as_loaded),
            cmocka_unit_test(test_wrong_size),
            cmocka_unit_test(test_changed),
            cmocka_unit_test(test_no_weights_at_all),
            cmocka_unit_test(test_where_it_is_not_there),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
