/* parts.c - the engine's pieces by themselves: heaps, slots and pages, the stream ring, the inbox. */
#include "daemon/engine/heap.h"

#include "base/clock.h"
#include "daemon/engine/draft.h"
#include "daemon/engine/inbox.h"
#include "daemon/engine/pools.h"
#include "daemon/engine/queue.h"
#include "daemon/engine/state.h"
#include "daemon/engine/stream.h"
#include "daemon/engine/wake.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define N 500u

static uint64_t random_state = 88172645463325252ull;
static uint32_t random_below(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 20) % n;
}

static void fill(struct sequence *all) {
    for (uint32_t i = 0; i < N; i++)
        all[i] = (struct sequence){.arrival = i,
                .priority = (int32_t)random_below(5) - 2,
                .suspect = random_below(10) == 0,
                .due_ns = random_below(100),
                .waiting_at = HEAP_NONE,
                .deadline_at = HEAP_NONE};
}

static void test_heap_order(void **state) {
    (void)state;
    static struct sequence all[N];
    struct heap waiting, deadlines;
    fill(all);
    assert_int_equal(heap_init(&waiting, N, false), 0);
    assert_int_equal(heap_init(&deadlines, N, true), 0);
    for (uint32_t i = 0; i < N; i++) {
        uint32_t at = (i * 7 + 3) % N; /* not in order of arrival */
        heap_push(&waiting, &all[at]);
        heap_push(&deadlines, &all[at]);
    }
    for (uint32_t i = 0; i < N; i += 3) { /* out of the middle */
        heap_remove(&waiting, &all[i]);
        heap_remove(&waiting, &all[i]); /* once more does nothing */
        heap_remove(&deadlines, &all[i]);
        assert_int_equal(all[i].waiting_at, HEAP_NONE);
    }
    struct sequence *last = NULL;
    uint32_t n = 0;
    for (; waiting.n > 0; n++) {
        struct sequence *s = waiting.items[0];
        heap_remove(&waiting, s);
        assert_true(last == NULL || last->suspect >= s->suspect);
        if (last != NULL && last->suspect == s->suspect)
            assert_true(sequence_before(last, s));
        last = s;
    }
    assert_int_equal(n, N - (N + 2) / 3);
    uint64_t latest = 0;
    for (; deadlines.n > 0; n--) {
        struct sequence *s = deadlines.items[0];
        heap_remove(&deadlines, s);
        assert_true(s->due_ns >= latest);
        latest = s->due_ns;
    }
    assert_int_equal(n, 0);
    heap_done(&waiting);
    heap_done(&deadlines);
}

static void test_pools(void **state) {
    (void)state;
    struct pools p;
    struct step_geometry g = {.slots = 3, .pages = 10, .pages_per_slot = 6};
    uint32_t first, n;
    bool taken[11] = {false};
    assert_int_equal(pools_init(&p, &g), 0);
    uint32_t a = pools_take_slot(&p), b = pools_take_slot(&p), c = pools_take_slot(&p);
    assert_true(a != b && b != c && a != c && a >= 1 && c <= 3);
    assert_int_equal(pools_take_slot(&p), 0);
    assert_true(pools_grant(&p, a, 1, &first, &n));
    assert_int_equal(first, 0);
    assert_int_equal(n, 1);
    assert_true(pools_grant(&p, a, 64, &first, &n));
    assert_int_equal(n, 0);
    assert_true(pools_grant(&p, a, 257, &first, &n));
    assert_int_equal(first, 1);
    assert_int_equal(n, 4);
    assert_true(pools_grant(&p, b, 5 * 64, &first, &n));
    for (uint32_t i = 0; i < 5; i++) { /* every page once, page 0 never */
        uint32_t pages[2] = {p.page_tables[a * 6 + i], p.page_tables[b * 6 + i]};
        for (int k = 0; k < 2; k++) {
            assert_in_range(pages[k], 1, 10);
            assert_false(taken[pages[k]]);
            taken[pages[k]] = true;
        }
    }
    assert_false(pools_grant(&p, c, 1, &first, &n));
    pools_release(&p, a, /* opened= */ true, POOLS_NO_UNIT);
    assert_int_equal(p.n_free_pages, 5);
    assert_int_equal(p.n_free_slots, 0); /* not before its CLOSE is completed */
    assert_int_equal(p.n_to_close, 1);
    assert_int_equal(p.to_close[0], a);
    assert_true(pools_grant(&p, c, 1, &first, &n));
    pools_release(&p, c, /* opened= */ false, POOLS_NO_UNIT);
    assert_int_equal(p.n_free_slots, 1);
    pools_slot_closed(&p, a);
    assert_int_equal(p.n_free_slots, 2);
    pools_release(&p, b, true, POOLS_NO_UNIT);
    assert_int_equal(p.n_free_pages, 10);
    assert_int_equal(pools_pages_for(&p, 64), 1);
    p.n_mtp = 1; /* its entry of the last row lies one further */
    assert_int_equal(pools_pages_for(&p, 64), 2);
    assert_int_equal(pools_pages_for(&p, 6 * 64), 6); /* but never past the table */
    pools_done(&p);
}

#define TOKENS 200000u

struct pipe { /* a stream with a poke that only counts */
    struct engine_stream *stream;
    _Atomic uint32_t pokes;
};

static void *push_all(void *arg) {
    struct pipe *p = arg;
    for (uint32_t i = 0; i < TOKENS;) {
        if (stream_free_places(p->stream) == 0)
            continue;
        struct step_sample s = {.id = i, .logprob = (float)i, .n_top = i % 3, .top_ids = {i + 1, i + 2}};
        if (stream_push(p->stream, &s, TOP_LOGPROBS_MAX, /* of_prompt= */ false))
            atomic_fetch_add(&p->pokes, 1);
        i++;
    }
    stream_end(p->stream, ENGINE_FINISH_LENGTH, "the end");
    atomic_fetch_add(&p->pokes, 1);
    return NULL;
}

/* Reads only after a poke, and then all: a poke that was owed and not given would leave it waiting for ever. */
static void test_stream(void **state) {
    (void)state;
    static struct engine_request q;
    struct pipe p = {.stream = stream_create(&q)};
    struct engine_token t[7];
    enum engine_finish finish = ENGINE_RUNNING;
    pthread_t thread;
    uint32_t seen = 0, next = 0, n;
    assert_non_null(p.stream);
    assert_string_equal(engine_stream_error(p.stream), "");
    assert_int_equal(pthread_create(&thread, NULL, push_all, &p), 0);
    while (finish == ENGINE_RUNNING) {
        while (atomic_load(&p.pokes) == seen)
            ;
        seen = atomic_load(&p.pokes);
        do {
            n = engine_stream_take(p.stream, t, 7, &finish);
            for (uint32_t i = 0; i < n; i++, next++) {
                assert_int_equal(t[i].id, next);
                assert_int_equal(t[i].n_top, next % 3);
                if (t[i].n_top == 2)
                    assert_int_equal(t[i].top_ids[1], next + 2);
            }
        } while (n == 7);
    }
    pthread_join(thread, NULL);
    assert_int_equal(next, TOKENS);
    assert_int_equal(finish, ENGINE_FINISH_LENGTH);
    assert_string_equal(engine_stream_error(p.stream), "the end");
    engine_stream_unref(p.stream); /* the engine's */
    engine_stream_unref(p.stream); /* the reader's */
    assert_null(engine_stream_unref(NULL));
}

static void test_stream_full(void **state) {
    (void)state;
    static struct engine_request q;
    struct engine_stream *s = stream_create(&q);
    struct engine_token t[STREAM_RING_TOKENS];
    struct step_sample sample = {.id = 5};
    enum engine_finish finish;
    assert_true(
            stream_push(s, &sample, TOP_LOGPROBS_MAX, /* of_prompt= */ false)); /* was empty: a poke is due */
    for (uint32_t i = 1; i < STREAM_RING_TOKENS; i++)
        assert_false(stream_push(s, &sample, TOP_LOGPROBS_MAX, /* of_prompt= */ false));
    assert_int_equal(stream_free_places(s), 0);
    stream_end(s, ENGINE_FINISH_SLOW, NULL);
    assert_int_equal(engine_stream_take(s, t, 1, &finish), 1);
    assert_int_equal(finish, ENGINE_RUNNING); /* tokens are left */
    assert_int_equal(engine_stream_take(s, t, STREAM_RING_TOKENS, &finish), STREAM_RING_TOKENS - 1);
    assert_int_equal(finish, ENGINE_FINISH_SLOW);
    assert_int_equal(engine_stream_take(s, t, 1, &finish), 0);
    engine_stream_unref(s);
    engine_stream_unref(s);
}

#define POSTS 20000u
static struct engine inbox_engine;
static struct engine_stream *posted[8];

static void *post_all(void *arg) {
    uint32_t event = 1u << (uintptr_t)arg;
    for (uint32_t i = 0; i < POSTS; i++)
        inbox_post(&inbox_engine, posted[i % 8], event);
    return NULL;
}

/* Several threads post; every event is seen, no stream is in the list twice, references come out even. */
static void test_inbox(void **state) {
    (void)state;
    static struct engine_request q;
    pthread_t threads[3];
    uint32_t seen[8] = {0}, joined = 0;
    for (uint32_t i = 0; i < 8; i++)
        posted[i] = stream_create(&q);
    assert_null(inbox_take_all(&inbox_engine));
    for (uintptr_t i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, post_all, (void *)i), 0);
    for (int last = 0; last < 2; last += joined == 3) { /* once more after all have ended */
        struct engine_stream *next, *s = inbox_take_all(&inbox_engine);
        uint32_t n = 0;
        for (; s != NULL; s = next, n++) {
            next = s->inbox_next;
            uint32_t events = atomic_exchange(&s->events, 0);
            for (uint32_t i = 0; i < 8; i++)
                seen[i] |= posted[i] == s ? events : 0;
            assert_int_not_equal(events, 0);
            engine_stream_unref(s);
        }
        assert_true(n <= 8);
        if (joined < 3)
            pthread_join(threads[joined++], NULL);
    }
    for (uint32_t i = 0; i < 8; i++) {
        assert_int_equal(seen[i], 7);
        assert_int_equal(atomic_load(&posted[i]->refs), 2);
        engine_stream_unref(posted[i]);
        engine_stream_unref(posted[i]);
    }
}

static void test_inbox_order(void **state) {
    (void)state;
    static struct engine_request q;
    struct engine_stream *s[3];
    for (int i = 0; i < 3; i++) {
        s[i] = stream_create(&q);
        inbox_post(&inbox_engine, s[i], EVENT_CANCEL);
    }
    inbox_post(&inbox_engine, s[0], EVENT_ABORT);
    struct engine_stream *first = inbox_take_all(&inbox_engine);
    assert_ptr_equal(first, s[0]);
    assert_ptr_equal(first->inbox_next, s[1]);
    assert_ptr_equal(s[1]->inbox_next, s[2]);
    assert_null(s[2]->inbox_next);
    assert_int_equal(atomic_load(&first->events), EVENT_CANCEL | EVENT_ABORT);
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 3; k++)
            engine_stream_unref(s[i]);
    }
}

static void *wake_main(void *arg) {
    engine_wake(arg);
    return NULL;
}

/* A wake that comes at any point before the sleep ends it at once: with no ring, before and after a ring is attached,
 * to a ring that is then replaced, and straight into the ring's word, as one that comes between the last look at the
 * flag and the sleep does. A wake that is lost shows as a sleep of its full length. */
static void test_wakes(void **state) {
    (void)state;
    enum { POINTS = 6 };
    const uint64_t sleep_ns = 20000000000ull;
    struct engine_options o = {.max_num_seqs = 1, .max_num_batched_tokens = 1};
    struct engine *g;
    int fd;
    struct step_ring *rings[2];
    pthread_t t;
    assert_int_equal(engine_create(&o, &g, NULL), 0);
    assert_int_equal(step_ring_create(1, 1, 1, &fd, NULL), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(step_ring_attach(fd, STEP_RING_COORDINATOR, &rings[i], NULL), 0);
    for (int point = 0; point < POINTS; point++) {
        uint64_t start = clock_ns();
        if (point == 1)
            wake_set_ring(g, rings[0]); /* what came to the condition before is not asked for again */
        else if (point == 3)
            step_ring_kick(g->ring);
        else if (point == 5)
            assert_int_equal(pthread_create(&t, NULL, wake_main, g), 0);
        else
            engine_wake(g);
        if (point == 4)
            wake_set_ring(g, rings[1]);
        wake_wait(g, sleep_ns);
        if (point == 5)
            pthread_join(t, NULL);
        if (clock_ns() - start >= sleep_ns)
            fail_msg("the wake at point %d was lost", point);
    }
    close(fd);
    engine_free(g);
}

/* How long to wait, by what left the queue: every number is given, no clock is asked. */
static void test_retry_hint(void **state) {
    (void)state;
    struct engine *g = aligned_alloc(64, (sizeof(*g) + 63) & ~(size_t)63);
    assert_non_null(g);
    memset(g, 0, sizeof(*g));
    g->o.max_queue_tokens = 1000;
    assert_int_equal(engine_retry_ms(g, 100), 1000); /* nothing is known */
    struct engine_request q = {0};
    struct engine_stream *stream = stream_create(&q);
    struct sequence s[12];
    atomic_store(&stream->received_ns, 1000000000); /* all came then */
    for (uint32_t i = 0; i < 12; i++)
        s[i] = (struct sequence){.stream = stream, .n_prompt = i == 0 ? 5000 : 80, .deadline_at = HEAP_NONE};
    assert_int_equal(queue_enter(g, &s[0], 1, NULL), 0); /* alone it may be of any length */
    assert_int_equal(queue_enter(g, &s[1], 1, NULL), -EAGAIN);
    queue_left(g, &s[0]);
    for (uint32_t i = 1; i < 12; i++)
        assert_int_equal(queue_enter(g, &s[i], 1, NULL), 0); /* 880 in all */
    s[0].n_prompt = 121;
    assert_int_equal(queue_enter(g, &s[0], 1, NULL), -EAGAIN);
    s[0].n_prompt = 41;
    assert_int_equal(queue_enter(g, &s[0], 3, NULL), -EAGAIN); /* room for three answers of its request */
    s[0].n_prompt = 121;
    assert_int_equal(queue_enter(g, &s[0], 0, NULL), 0); /* a request that has it */
    queue_left(g, &s[0]);
    queue_begun(g, &s[1], 3000000000); /* two seconds after it came */
    assert_int_equal(engine_retry_ms(g, 1), 2000);
    queue_begun(g, &s[1], 9000000000); /* it had begun */
    assert_int_equal(engine_retry_ms(g, 1), 2000);
    queue_begun(g, &s[2], 3400000000); /* 0.4 s after the one before: an eighth of the average */
    assert_int_equal(engine_retry_ms(g, 1), 1800);
    assert_int_equal(engine_retry_ms(g, 280 + 160), 3600); /* 720 wait: two of 80 have to begin */
    assert_int_equal(engine_retry_ms(g, 100000), 60000);   /* and no longer than this */
    for (uint32_t i = 3; i < 12; i++)
        queue_begun(g, &s[i], 3400000000 + i); /* all at once */
    for (uint32_t i = 0; i < 40; i++) {
        assert_int_equal(queue_enter(g, &s[1], 1, NULL), 0);
        queue_begun(g, &s[1], 3500000000 + i);
    }
    assert_int_equal(engine_retry_ms(g, 1), 100); /* nor shorter than this */
    assert_int_equal(atomic_load(&g->queue.tokens), 0);
    engine_stream_unref(stream);
    engine_stream_unref(stream);
    free(g);
}

/* Indexes that are far behind catch up by a bounded number of tokens a round, all of them together; one that is not
 * reads on meanwhile. */
static void test_indexes_catch_up(void **state) {
    (void)state;
    enum { LONG = 5000, WAITING = 3 };
    static struct sequence all[WAITING + 1];
    static uint32_t tokens[LONG];
    struct engine *g = calloc(1, sizeof(*g));
    uint32_t rounds = 0, left = WAITING * LONG;
    assert_non_null(g);
    speculation_init(&g->speculation);
    g->speculation.most[DRAFTER_LOOKUP] = 3;
    for (uint32_t i = 0; i <= WAITING; i++) {
        all[i] = (struct sequence){.tokens = tokens, .n_prompt = LONG};
        assert_int_equal(lookup_init(&all[i].lookup, LONG, 10), 0);
    }
    for (; left > 0; rounds++) {
        uint32_t before = left;
        assert_true(draft_round(g));
        for (uint32_t i = 0; i < WAITING; i++)
            draft_read(g, &all[i], LONG);
        left = 0;
        for (uint32_t i = 0; i < WAITING; i++)
            left += LONG - all[i].lookup.read;
        assert_in_range(before - left, 1, 2100);
        draft_read(g, &all[WAITING], 7 * (rounds + 1));
        assert_int_equal(all[WAITING].lookup.read, 7 * (rounds + 1));
    }
    assert_in_range(rounds, 7, 9);
    for (uint32_t i = 0; i <= WAITING; i++)
        lookup_done(&all[i].lookup);
    free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_heap_order),
            cmocka_unit_test(test_pools),
            cmocka_unit_test(test_stream),
            cmocka_unit_test(test_stream_full),
            cmocka_unit_test(test_inbox),
            cmocka_unit_test(test_inbox_order),
            cmocka_unit_test(test_retry_hint),
            cmocka_unit_test(test_wakes),
            cmocka_unit_test(test_indexes_catch_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
