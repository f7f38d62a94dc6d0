/* store.c - see store.h. */
#include "tp/worker/store.h"

#include "base/hash.h"
#include "base/sizes.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define STORE_MAGIC   0x5846455250444853ull /* "SHDPREFX" little-endian */
#define STORE_VERSION 1u
#define STORE_PAGE    4096u /* what comes first, and what places are multiples of */
#define PLACES_MAX    (1u << 20)
#define STORE_BYTES   (32ull << 30)

struct store_title { /* the file's first bytes */
    uint64_t magic;
    uint32_t version, rank, tp, places[STEP_STORED_KINDS], reserved;
    uint64_t unit_bytes[STEP_STORED_KINDS], identity;
    uint64_t sum; /* of all before it */
};

struct store_head { /* of a place; all zero: it is empty */
    uint64_t magic;
    struct step_record record;
    uint64_t bytes_sum;
    uint64_t identity;
    uint64_t sum; /* of all before it */
};
_Static_assert(sizeof(struct store_head) == 80 && sizeof(struct store_title) == 64, "no padding");

struct store_work {
    struct step_store op;
    void *unit;
};

struct store {
    struct store_options o; /* dir is not kept */
    struct store_title title;
    int fd;
    uint32_t n_places;
    uint64_t heads_at, places_at[STEP_STORED_KINDS], stride[STEP_STORED_KINDS];
    struct store_head *heads; /* [n_places], as in the file; the thread's while anything is queued */

    pthread_t thread;
    bool started, complained;
    pthread_mutex_t lock; /* protects the rest */
    pthread_cond_t changed;
    bool stop;
    struct store_work queue[STEP_STORE_MAX];
    uint32_t first, n_queued;
    uint64_t done, failed;
};

static void note(struct store *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(struct store *s, const char *format, ...) {
    char text[ERROR_TEXT_MAX];
    va_list ap;
    if (!s->o.note)
        return;
    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    s->o.note(s->o.user, text);
}

/* --- sums --- */

/* Four chains side by side, so that the sum of a page costs less than reading it. No defence against who writes the
 * file: that is what the folder's mode is for. */
static uint64_t sum_of(const void *data, uint64_t bytes) {
    const uint8_t *at = data;
    uint64_t lanes[4] = {1, 2, 3, 4}, w[4], sum = bytes;
    for (; bytes >= sizeof(w); bytes -= sizeof(w), at += sizeof(w)) {
        memcpy(w, at, sizeof(w));
        for (int i = 0; i < 4; i++) {
            lanes[i] = (lanes[i] ^ w[i]) * SPLITMIX_GAMMA;
            lanes[i] ^= lanes[i] >> 29;
        }
    }
    memset(w, 0, sizeof(w));
    memcpy(w, at, bytes);
    for (int i = 0; i < 4; i++)
        sum = hash_mix(sum ^ hash_mix(lanes[i] ^ w[i]));
    return sum;
}

static uint64_t sum_of_head(const struct store_head *h) {
    return sum_of(h, offsetof(struct store_head, sum));
}

/* --- the file --- */

static int transfer(int fd, void *data, uint64_t bytes, uint64_t at, bool out) {
    uint8_t *p = data;
    while (bytes > 0) {
        ssize_t n = out ? pwrite(fd, p, bytes, (off_t)at) : pread(fd, p, bytes, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENODATA;
        p += n;
        at += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

static uint64_t round_up(uint64_t bytes) {
    return (bytes + STORE_PAGE - 1) / STORE_PAGE * STORE_PAGE;
}

/* Half of the bytes for pages and half for states: a state is as large as the pages of some thousand tokens, and there
 * is one every so often. */
static void lay_out(struct store *s) {
    struct store_title *t = &s->title;
    uint64_t at = STORE_PAGE;
    for (int k = 0; k < STEP_STORED_KINDS; k++) {
        s->stride[k] = round_up(s->o.unit_bytes[k]);
        uint64_t n = s->o.bytes / STEP_STORED_KINDS / (s->stride[k] + sizeof(struct store_head));
        t->places[k] = n < PLACES_MAX ? (uint32_t)n : PLACES_MAX;
        t->unit_bytes[k] = s->o.unit_bytes[k];
    }
    s->n_places = t->places[0] + t->places[1];
    s->heads_at = at;
    at += round_up((uint64_t)s->n_places * sizeof(struct store_head));
    for (int k = 0; k < STEP_STORED_KINDS; k++) {
        s->places_at[k] = at;
        at += t->places[k] * s->stride[k];
    }
    t->magic = STORE_MAGIC;
    t->version = STORE_VERSION;
    t->rank = s->o.rank;
    t->tp = s->o.tp;
    t->identity = s->o.identity;
    t->sum = sum_of(t, offsetof(struct store_title, sum));
}

static uint64_t file_bytes(const struct store *s) {
    return s->places_at[STEP_STORED_STATE] +
           s->title.places[STEP_STORED_STATE] * s->stride[STEP_STORED_STATE];
}

/* Whether the head is one that this store may have written at this place. */
static bool head_may_be(const struct store *s, const struct store_head *h, uint32_t i) {
    const struct step_record *r = &h->record;
    bool is_state = i >= s->title.places[STEP_STORED_PAGE];
    return h->magic == STORE_MAGIC && h->identity == s->o.identity && h->sum == sum_of_head(h) &&
           r->what == (is_state ? STEP_STORED_STATE : STEP_STORED_PAGE) &&
           r->place == i - (is_state ? s->title.places[STEP_STORED_PAGE] : 0) && r->reserved == 0 &&
           (r->length > 0) == is_state && r->length <= CONTEXT_MAX;
}

static int begin_file(struct store *s) {
    if (ftruncate(s->fd, 0) < 0 || ftruncate(s->fd, (off_t)file_bytes(s)) < 0)
        return -errno;
    return transfer(s->fd, &s->title, sizeof(s->title), 0, /* out= */ true);
}

static int read_file(struct store *s, const char *path, struct error *e) {
    struct store_title there;
    struct stat st;
    if (fstat(s->fd, &st) < 0)
        return error_set(e, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return error_set(e, -EINVAL, "%s is no regular file", path);
    int r = transfer(s->fd, &there, sizeof(there), 0, /* out= */ false);
    if (r < 0 || memcmp(&there, &s->title, sizeof(there)) != 0 || (uint64_t)st.st_size != file_bytes(s)) {
        r = begin_file(s);
        return r < 0 ? error_set(
                               e, r, "cannot make %s of %s: %s", path, SIZE_TEXT(file_bytes(s)), strerror(-r))
                     : 0;
    }
    r = transfer(s->fd, s->heads, s->n_places * sizeof(s->heads[0]), s->heads_at, /* out= */ false);
    if (r < 0)
        return error_set(e, r, "%s: %s", path, strerror(-r));
    for (uint32_t i = 0; i < s->n_places; i++)
        if (!head_may_be(s, &s->heads[i], i))
            s->heads[i] = (struct store_head){0};
    return 0;
}

static int open_folder(const char *dir, struct error *e) {
    struct stat st;
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return error_set(
                e, -errno, "cannot make the folder %s of the prefix cache: %s", dir, strerror(errno));
    if (stat(dir, &st) < 0 || !S_ISDIR(st.st_mode))
        return error_set(e, -ENOTDIR, "the prefix cache's %s is no folder", dir);
    if (st.st_uid != geteuid())
        return error_set(e, -EPERM, "the folder %s of the prefix cache is another user's: chown it", dir);
    if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return error_set(e, -EPERM,
                "others may write to the folder %s of the prefix cache, and with it into answers: chmod go-w it",
                dir);
    return 0;
}

static int open_file(struct store *s, const char *dir, struct error *e) {
    char path[4096];
    int r = open_folder(dir, e);
    if (r < 0)
        return r;
    int n = snprintf(path, sizeof(path), "%s/prefix-%016llx-r%uof%u", dir, (unsigned long long)s->o.identity,
            s->o.rank, s->o.tp);
    if (n < 0 || (size_t)n >= sizeof(path))
        return error_set(e, -ENAMETOOLONG, "the path of the prefix cache's folder is too long");
    s->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (s->fd < 0)
        return error_set(e, -errno, "cannot open %s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(s->fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
            (st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return error_set(
                e, -EPERM, "%s of the prefix cache is no file that only this user may write to", path);
    if (flock(s->fd, LOCK_EX | LOCK_NB) < 0)
        return error_set(e, errno == EWOULDBLOCK ? -EBUSY : -errno, "%s is used by another process", path);
    return read_file(s, path, e);
}

/* --- work --- */

static uint32_t head_index(const struct store *s, const struct step_record *r) {
    return r->place + (r->what == STEP_STORED_STATE ? s->title.places[STEP_STORED_PAGE] : 0);
}

static int write_head(struct store *s, uint32_t i) {
    return transfer(
            s->fd, &s->heads[i], sizeof(s->heads[i]), s->heads_at + i * sizeof(s->heads[i]), /* out= */ true);
}

static int forget(struct store *s, uint32_t i) {
    s->heads[i] = (struct store_head){0};
    return write_head(s, i);
}

static int write_record(struct store *s, const struct step_record *r, void *unit) {
    uint32_t i = head_index(s, r);
    int rc = s->heads[i].magic == 0 ? 0 : forget(s, i);
    if (rc == 0)
        rc = transfer(s->fd, unit, s->o.unit_bytes[r->what],
                s->places_at[r->what] + r->place * s->stride[r->what],
                /* out= */ true);
    if (rc < 0)
        return rc;
    s->heads[i] = (struct store_head){.magic = STORE_MAGIC,
            .record = *r,
            .bytes_sum = sum_of(unit, s->o.unit_bytes[r->what]),
            .identity = s->o.identity};
    s->heads[i].sum = sum_of_head(&s->heads[i]);
    rc = write_head(s, i);
    if (rc < 0)
        s->heads[i] = (struct store_head){0};
    return rc;
}

static int read_record(struct store *s, const struct step_record *r, void *unit) {
    uint32_t i = head_index(s, r);
    if (memcmp(&s->heads[i].record, r, sizeof(*r)) != 0)
        return -ENOENT;
    int rc = transfer(s->fd, unit, s->o.unit_bytes[r->what],
            s->places_at[r->what] + r->place * s->stride[r->what],
            /* out= */ false);
    if (rc == 0 && sum_of(unit, s->o.unit_bytes[r->what]) != s->heads[i].bytes_sum)
        rc = -EBADMSG;
    if (rc == 0 && r->what == STEP_STORED_STATE && !s->o.state_may_be(unit, r->length))
        rc = -EBADMSG;
    if (rc < 0)
        (void)forget(s, i); /* it fails the next time, too, if this did not reach the file */
    return rc;
}

static void run(struct store *s, const struct store_work *w) {
    bool out = w->op.kind == STEP_STORE_WRITE;
    int r = -EIO; /* the device has failed, and its unit is not what it should be */
    if (w->unit)
        r = out ? write_record(s, &w->op.record, w->unit) : read_record(s, &w->op.record, w->unit);
    if (r < 0 && !s->complained)
        note(s, "a prefix cannot be %s its file: %s: it is computed again; more such is not told",
                out ? "written to" : "read from",
                r == -EBADMSG ? "its bytes are not those that were written" : strerror(-r));
    s->complained |= r < 0;
    pthread_mutex_lock(&s->lock);
    s->failed = s->failed << 1 | (r < 0);
    s->done++;
    s->first = (s->first + 1) % STEP_STORE_MAX;
    s->n_queued--;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void *thread_main(void *argument) {
    struct store *s = argument;
    pthread_setname_np(pthread_self(), "prefix store");
    for (;;) {
        pthread_mutex_lock(&s->lock);
        while (s->n_queued == 0 && !s->stop)
            pthread_cond_wait(&s->changed, &s->lock);
        bool over = s->n_queued == 0;
        struct store_work w = s->queue[s->first];
        pthread_mutex_unlock(&s->lock);
        if (over)
            return NULL;
        run(s, &w);
    }
}

/* --- outside --- */

int store_open(const struct store_options *o, struct store **ret, struct error *e) {
    struct store *s = calloc(1, sizeof(*s));
    if (!s)
        return error_set(e, -ENOMEM, "out of memory for the prefix cache's store");
    s->o = *o;
    s->o.dir = NULL;
    s->o.bytes = o->bytes > 0 ? o->bytes : STORE_BYTES;
    s->fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    lay_out(s);
    s->heads = calloc((size_t)s->n_places + 1, sizeof(s->heads[0]));
    int r = s->heads ? open_file(s, o->dir, e)
                     : error_set(e, -ENOMEM, "out of memory for the prefix cache's heads");
    if (r == 0) {
        int err = pthread_create(&s->thread, NULL, thread_main, s);
        s->started = err == 0;
        if (err != 0)
            r = error_set(e, -err, "cannot start the prefix cache's thread: %s", strerror(err));
    }
    if (r < 0) {
        store_free(s);
        return r;
    }
    *ret = s;
    return 0;
}

struct store *store_free(struct store *s) {
    if (!s)
        return NULL;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (s->started)
        pthread_join(s->thread, NULL);
    if (s->fd >= 0)
        close(s->fd);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s->heads);
    free(s);
    return NULL;
}

uint32_t store_places(const struct store *s, enum step_stored what) {
    return s->title.places[what];
}

void store_queue(struct store *s, const struct step_store *op, void *unit) {
    pthread_mutex_lock(&s->lock);
    while (s->n_queued == STEP_STORE_MAX) /* an engine asks for no more; whoever does waits */
        pthread_cond_wait(&s->changed, &s->lock);
    s->queue[(s->first + s->n_queued++) % STEP_STORE_MAX] = (struct store_work){*op, unit};
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

void store_progress(struct store *s, uint64_t *ret_done, uint64_t *ret_failed) {
    pthread_mutex_lock(&s->lock);
    *ret_done = s->done;
    *ret_failed = s->failed;
    pthread_mutex_unlock(&s->lock);
}

void store_reset(struct store *s) {
    pthread_mutex_lock(&s->lock);
    while (s->n_queued > 0)
        pthread_cond_wait(&s->changed, &s->lock);
    s->done = s->failed = 0;
    pthread_mutex_unlock(&s->lock);
}

uint32_t store_list(const struct store *s, uint32_t first, uint32_t n, struct step_record *ret) {
    uint32_t found = 0;
    for (uint32_t i = first; i < s->n_places && i - first < n; i++)
        if (s->heads[i].magic != 0)
            ret[found++] = s->heads[i].record;
    return found;
}
