/* json_pull.c - fuzzes the pull reader against jansson: both must accept the same documents.
 *
 * Differences that are known: jansson refuses numbers that do not fit (the pull reader leaves that to its
 * caller) and nests deeper. */
#include "base/json_pull.h"
#include "base/utf8.h"

#include <errno.h>
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition) {
    if (!condition)
        abort();
}

static int read_all(struct json_pull *p, struct error *e) {
    int r;
    while ((r = json_pull_next(p, e)) > PULL_DOCUMENT_END) {
        uint64_t u;
        int64_t i;
        double d;
        require(p->depth <= JSON_DEPTH_MAX);
        if (r == PULL_KEY || r == PULL_STRING)
            require(utf8_valid(p->string, p->string_bytes, NULL));
        if (r == PULL_NUMBER) {
            int as_u64 = json_pull_u64(p, &u, e), as_i64 = json_pull_i64(p, &i, e);
            require(json_pull_double(p, &d, e) == 0 || as_i64 == -ERANGE || as_i64 == -EBADMSG);
            if (as_u64 == 0 && as_i64 == 0)
                require(u == (uint64_t)i);
        }
    }
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0)
        return 0;
    struct json_pull p;
    struct error e = {0}, again = {0};
    json_error_t why;
    json_pull_init(&p, (const char *)data, size, "fuzz.json");
    int r = read_all(&p, &e);
    require(json_pull_next(&p, &again) == r);
    if (r < 0)
        require(strcmp(e.text, again.text) == 0);
    json_pull_done(&p);

    json_pull_init(&p, (const char *)data, size, "fuzz.json");
    int skipped = json_pull_skip(&p, NULL);
    if (skipped >= 0)
        skipped = json_pull_next(&p, NULL);
    require(skipped == r);
    json_pull_done(&p);

    if (memchr(data, '\0', size))
        return 0;
    json_t *root = json_loadb((const char *)data, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (root)
        require(r == PULL_DOCUMENT_END || r == -E2BIG);
    else if (json_error_code(&why) != json_error_numeric_overflow)
        require(r < 0);
    json_decref(root);
    return 0;
}
