/* devices.c - see devices.h. */
#include "launcher/devices.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define WORD_MAX     64u
#define DEVICES_SEEN 64u /* as many as the worker tells of */

static const json_t *device_at(const json_t *probe, size_t i) {
    return json_array_get(json_object_get(probe, "devices"), i);
}
static size_t devices_found(const json_t *probe) {
    return json_array_size(json_object_get(probe, "devices"));
}
static bool usable(const json_t *device) {
    return json_is_true(json_object_get(device, "usable"));
}
static const char *text_of(const json_t *o, const char *key) {
    const char *text = json_string_value(json_object_get(o, key));
    return text ? text : "";
}
static const char *why_not(const json_t *device) {
    const char *why = text_of(device, "reason");
    return *why ? why : "shardd-worker-cuda does not say why";
}

/* --- NVLink --- */

static bool names(const json_t *list, uint32_t index) {
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_integer_value(json_array_get(list, i)) == (json_int_t)index)
            return true;
    return false;
}
/* Does a bridge, or a switch, lead from one to the other? */
static bool linked(const json_t *probe, uint32_t a, uint32_t b) {
    return a != b && names(json_object_get(device_at(probe, a), "nvlinks"), b) &&
           names(json_object_get(device_at(probe, b), "nvlinks"), a);
}
static uint32_t partners(const json_t *probe, const uint32_t *pool, uint32_t n, uint32_t device) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < n; i++)
        found += linked(probe, device, pool[i]);
    return found;
}
/* Of pool[n], the one with the fewest partners there, but some; with: that is a partner of *with. n: none. */
static uint32_t loneliest(const json_t *probe, const uint32_t *pool, uint32_t n, const uint32_t *with) {
    uint32_t best = n, fewest = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t found = partners(probe, pool, n, pool[i]);
        if (found == 0 || found >= fewest || (with && !linked(probe, *with, pool[i])))
            continue;
        best = i;
        fewest = found;
    }
    return best;
}
static uint32_t take(uint32_t *pool, uint32_t *n, uint32_t i) {
    const uint32_t taken = pool[i];
    memmove(&pool[i], &pool[i + 1], (--*n - i) * sizeof(*pool));
    return taken;
}
/* at[ranks] of pool[n], which is ascending: ranks 0 and 1, 2 and 3, and so on are linked as far as that can be, since
 * they add to each other first; then the others in their order. Who has the fewest to be paired with comes first: it
 * loses its partner to nobody. */
static void pairs_first(const json_t *probe, const uint32_t *pool, uint32_t n, uint32_t *at, uint32_t ranks) {
    uint32_t left[DEVICES_SEEN], done = 0;
    memcpy(left, pool, n * sizeof(*pool));
    while (done + 2 <= ranks) {
        const uint32_t i = loneliest(probe, left, n, NULL);
        if (i == n)
            break;
        const uint32_t k = loneliest(probe, left, n, &left[i]), first = i < k ? i : k;
        assert(k < n);
        at[done++] = take(left, &n, first);
        at[done++] = take(left, &n, (i < k ? k : i) - 1);
    }
    while (done < ranks)
        at[done++] = take(left, &n, 0);
}
static uint32_t pairs_linked(const json_t *probe, const struct devices *d) {
    uint32_t n = 0;
    for (uint32_t r = 0; r + 1 < d->n; r += 2)
        n += linked(probe, d->at[r], d->at[r + 1]);
    return n;
}

/* --- the list --- */

uint32_t devices_named(const char *list) {
    uint32_t n = list != NULL;
    for (const char *at = list; at && *at; at++)
        n += *at == ',';
    return n;
}

/* "GPU-8c25": the one whose UUID begins so. */
static int find_uuid(const json_t *probe, const char *word, uint32_t *ret, struct error *e) {
    uint32_t n = 0;
    for (size_t i = 0; i < devices_found(probe); i++) {
        if (strncasecmp(text_of(device_at(probe, i), "uuid"), word, strlen(word)) != 0)
            continue;
        *ret = (uint32_t)i;
        n++;
    }
    if (n == 1)
        return 0;
    return error_set(e, -EINVAL,
            n ? "--devices %s: %u GPUs have a UUID that begins so; write more of it (nvidia-smi -L)"
              : "--devices %s: no GPU that CUDA shows here has a UUID that begins so (nvidia-smi -L shows them)",
            word, n);
}

static int find_word(const json_t *probe, const char *word, uint32_t *ret, struct error *e) {
    char *end;
    if (strncasecmp(word, "GPU-", 4) == 0 || strncasecmp(word, "MIG-", 4) == 0)
        return find_uuid(probe, word, ret, e);
    const unsigned long i = strtoul(word, &end, 10);
    if (*word < '0' || *word > '9' || *end)
        return error_set(e, -EINVAL,
                "--devices: '%s' is no GPU; numbers such as 0 or UUIDs such as GPU-8c25 are expected, with commas "
                "between",
                word);
    if (i >= devices_found(probe))
        return error_set(e, -EINVAL, "--devices: there is no GPU %s; CUDA shows %zu here, counted from 0",
                word, devices_found(probe));
    *ret = (uint32_t)i;
    return 0;
}

static int choose_named(const json_t *probe, const char *list, struct devices *d, struct error *e) {
    const char *at = list;
    for (uint32_t r = 0; r < d->n; r++) {
        char word[WORD_MAX];
        const size_t length = strcspn(at, ",");
        snprintf(word, sizeof(word), "%.*s", (int)length, at);
        int rc = find_word(probe, word, &d->at[r], e);
        if (rc < 0)
            return rc;
        if (!usable(device_at(probe, d->at[r])))
            return error_set(e, -ENODEV, "--devices %s: %s", word, why_not(device_at(probe, d->at[r])));
        at += length + (at[length] == ',');
    }
    return 0;
}

/* --- without one --- */

static int too_few(const json_t *probe, uint32_t n, uint32_t found, struct error *e) {
    const size_t shown = devices_found(probe);
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    char left[96] = "", broken[300] = "";
    if (n == 1 && shown > 0)
        return error_set(e, -ENODEV, "%s", why_not(device_at(probe, 0)));
    if (visible)
        snprintf(left, sizeof(left), " (CUDA_VISIBLE_DEVICES is %.48s)", visible);
    for (size_t i = 0; i < shown && !broken[0]; i++)
        if (!usable(device_at(probe, i)))
            snprintf(broken, sizeof(broken), ", for GPU %zu: %.250s", i, why_not(device_at(probe, i)));
    if (found == shown)
        return error_set(e, -ENODEV,
                "--tensor-parallel-size %u needs %u GPUs and CUDA shows %zu here%s; lower it", n, n, shown,
                left);
    return error_set(e, -ENODEV,
            "--tensor-parallel-size %u needs %u GPUs and %u of the %zu that CUDA shows here%s can be used%s; lower it, "
            "or mend that",
            n, n, found, shown, left, broken);
}

/* The first that can be used, in pairs where NVLink leads from one to another, then what there is besides. */
static uint32_t choose_usable(const json_t *probe, struct devices *d) {
    const size_t shown = devices_found(probe) < DEVICES_SEEN ? devices_found(probe) : DEVICES_SEEN;
    uint32_t pool[DEVICES_SEEN], n = 0, found;
    for (uint32_t i = 0; i < shown; i++)
        if (usable(device_at(probe, i)))
            pool[n++] = i;
    found = n < d->n ? n : d->n;
    pairs_first(probe, pool, n, d->at, found);
    n = found;
    for (uint32_t i = 0; i < shown && n < d->n; i++)
        if (!usable(device_at(probe, i)))
            d->at[n++] = i;
    for (; n < d->n; n++)
        d->at[n] = n;
    return found;
}

int devices_choose(const json_t *probe, const char *list, uint32_t n, struct devices *ret, struct error *e) {
    const uint32_t named = devices_named(list);
    *ret = (struct devices){.n = n};
    const uint32_t found = choose_usable(probe, ret);
    if (list && named != n)
        return error_set(e, -EINVAL,
                "--devices %.64s names %u GPU%s and --tensor-parallel-size is %u: one for each rank", list,
                named, named == 1 ? "" : "s", n);
    if (list)
        return choose_named(probe, list, ret, e);
    return found < n ? too_few(probe, n, found, e) : 0;
}

/* --- what was chosen --- */

static bool each_once(const struct devices *d) {
    for (uint32_t r = 0; r < d->n; r++)
        if (devices_sharers(d, d->at[r]) > 1 || d->at[r] >= DEVICES_SEEN)
            return false;
    return true;
}
bool devices_better(const json_t *probe, const struct devices *d, struct devices *ret) {
    uint32_t pool[RANKS_MAX], n = 0;
    for (uint32_t i = 0; i < DEVICES_SEEN && each_once(d); i++)
        for (uint32_t r = 0; r < d->n; r++)
            if (d->at[r] == i)
                pool[n++] = i;
    *ret = (struct devices){.n = n};
    pairs_first(probe, pool, n, ret->at, n);
    return pairs_linked(probe, ret) > pairs_linked(probe, d);
}

uint32_t devices_sharers(const struct devices *d, uint32_t gpu) {
    uint32_t n = 0;
    for (uint32_t r = 0; r < d->n; r++)
        n += d->at[r] == gpu;
    return n;
}

uint64_t devices_memory_least(const json_t *probe, const struct devices *d) {
    uint64_t least = 0;
    for (uint32_t r = 0; r < d->n; r++) {
        const json_int_t told =
                json_integer_value(json_object_get(device_at(probe, d->at[r]), "memory_free"));
        const uint64_t own = told > 0 ? (uint64_t)told / devices_sharers(d, d->at[r]) : 0;
        if (own && (!least || own < least))
            least = own;
    }
    return least;
}

const char *devices_text(const struct devices *d, char text[DEVICES_TEXT]) {
    size_t n = 0;
    text[0] = '\0';
    for (uint32_t r = 0; r < d->n && n < DEVICES_TEXT; r++)
        n += (size_t)snprintf(text + n, DEVICES_TEXT - n, "%s%u", r ? "," : "", d->at[r]);
    return text;
}
