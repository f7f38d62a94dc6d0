/* rank_keep.c - see rank_keep.h. */
#include "tp/worker/rank_keep.h"

#include "base/sizes.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* Everything that the bytes of a rank's weights and their places depend on. The settings are the same for all that one
 * launcher starts; files may be replaced meanwhile, this program too. */
static int write_manifest(
        struct rank *r, const struct rank_options *o, const struct weights_places *p, struct error *e) {
    struct stat self;
    if (stat("/proc/self/exe", &self) < 0)
        return error_set(e, -errno, "/proc/self/exe cannot be looked at");
    const int n = snprintf(r->keep.manifest, sizeof(r->keep.manifest),
            "model %016llx, rank %u of %u, %llu bytes placed %016llx, activations %d%s, program %llx:%llu of %lld "
            "bytes at %lld.%09ld, %s",
            (unsigned long long)r->fingerprint, o->rank, o->tp, (unsigned long long)p->bytes,
            (unsigned long long)p->hash, (int)o->activations, o->fast ? " fast" : "",
            (unsigned long long)self.st_dev, (unsigned long long)self.st_ino, (long long)self.st_size,
            (long long)self.st_mtim.tv_sec, self.st_mtim.tv_nsec, k_context_describe(r->context));
    return n < 0 || n >= (int)sizeof(r->keep.manifest)
                   ? error_set(e, -ENAMETOOLONG, "their manifest is too long")
                   : 0;
}

static void note(const struct rank_options *o, const char *what, const struct error *why) {
    char text[ERROR_TEXT_MAX + 128];
    snprintf(text, sizeof(text), "%s: %s", what, why->text);
    if (o->note)
        o->note(o->user, text);
}

/* What is kept under the manifest; false: nothing that serves, and what did not is released. */
static bool adopt(struct rank *r, const struct rank_options *o, uint64_t bytes) {
    struct error why;
    if (keep_take(o->keeper, o->rank, &r->keep, &why) < 0) {
        note(o, "the weights of the rank before cannot be had, so they are loaded", &why);
        return false;
    }
    if (r->keep.fd < 0)
        return false;
    if (k_keep_adopt(r->context, bytes, r->keep.fd, r->keep.sum, &why) == 0)
        return true;
    note(o, "the weights of the rank before do not serve, so they are loaded", &why);
    rank_keep_done(r);
    return false;
}

int rank_keep_take(
        struct rank *r, const struct rank_options *o, struct weights_options *wo, struct error *e) {
    struct error why;
    if (!o->keeper)
        return 0;
    int rc = weights_places(&r->config, &r->shard, r->tensors, wo, &r->places, e);
    if (rc < 0)
        return rc;
    if (write_manifest(r, o, &r->places, &why) < 0) {
        note(o, "weights will not be kept for a restart", &why);
        r->options.keeper = NULL;
    } else if (adopt(r, o, r->places.bytes)) {
        r->found = wo->there = true;
        snprintf(r->weights_from, sizeof(r->weights_from), "weights found where the rank before had them, %s",
                SIZE_TEXT(r->places.bytes));
    }
    return 0;
}

int rank_keep_begin(
        struct rank *r, const struct rank_options *o, const struct weights_options *wo, struct error *e) {
    struct weights_places now;
    struct error why;
    if (!r->options.keeper || r->found)
        return 0;
    int rc = weights_places(&r->config, &r->shard, r->tensors, wo, &now, e);
    if (rc < 0)
        return rc;
    if (now.bytes != r->places.bytes || now.hash != r->places.hash)
        rc = error_set(
                &why, -EINVAL, "they would lie elsewhere than a start without the packed file expects");
    else
        rc = k_keep_begin(r->context, now.bytes, &why);
    if (rc < 0)
        note(o, "weights will not be kept for a restart", &why);
    r->keeping = rc == 0;
    return 0;
}

int rank_keep_end(struct rank *r, struct error *e) {
    struct k_kept kept;
    if (!r->keeping && !r->found)
        return 0;
    int rc = k_keep_end(r->context, &kept, e);
    if (rc == 0 && !r->found) {
        r->keep.fd = kept.fd;
        r->keep.sum = kept.sum;
    }
    return rc;
}

void rank_keep(struct rank *r) {
    const struct rank_options *o = &r->options;
    struct error why;
    if (r->keep.fd >= 0 && keep_put(o->keeper, o->rank, &r->keep, &why) < 0)
        note(o, "weights are not kept for a restart", &why);
    rank_keep_done(r);
}

void rank_keep_done(struct rank *r) {
    if (r->keep.fd >= 0)
        close(r->keep.fd);
    r->keep.fd = -1;
}
