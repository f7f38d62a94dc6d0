/* MB/s of the tokenizer on one thread, the median of several runs. Time is the thread's own: what else the
 * machine does matters less.
 *
 *     bench-text-tokenizer [TOKENIZER.JSON [TEXT...]]
 *
 * Without arguments: the small tokenizer of the tests, on its golden strings (many scripts) and this
 * repository's README and C sources of the text folder. */
#include "daemon/text/tokenizer.h"
#include "base/buffer.h"
#include "base/file.h"

#include <glob.h>
#include <stdio.h>
#include <time.h>

#define RUNS     9
#define TEXT_MAX (256u << 20)

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int add_file(struct byte_buffer *text, const char *path) {
    char *data;
    size_t bytes;
    struct error e = {0};
    int r = file_read(path, TEXT_MAX, &data, &bytes, &e);
    if (r < 0) {
        fprintf(stderr, "%s\n", e.text);
        return r;
    }
    r = byte_buffer_add(text, data, bytes);
    free(data);
    return r;
}

static int add_glob(struct byte_buffer *text, const char *pattern) {
    glob_t found;
    int r = glob(pattern, 0, NULL, &found) == 0 ? 0 : -ENOENT;
    for (size_t i = 0; r >= 0 && i < found.gl_pathc; i++)
        r = add_file(text, found.gl_pathv[i]);
    globfree(&found);
    return r;
}

static size_t varint(const unsigned char **at) {
    size_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        unsigned char c = *(*at)++;
        value |= (size_t)(c & 0x7f) << shift;
        if (!(c & 0x80))
            return value;
    }
}

/* The strings of cases.bin (tests/golden/README.md), without their ids. */
static int add_golden(struct byte_buffer *text) {
    struct byte_buffer file = {0};
    int r = add_file(&file, TESTS_DIR "/golden/tokenizer/cases.bin");
    if (r < 0)
        return r;
    const unsigned char *at = (const unsigned char *)file.data + 8;
    for (size_t cases = varint(&at); cases > 0 && r >= 0; cases--) {
        size_t flags = varint(&at), bytes = varint(&at);
        r = byte_buffer_add(text, at, bytes);
        at += bytes;
        for (size_t lists = flags & 1 ? 2 : 1; lists > 0; lists--)
            for (size_t ids = varint(&at); ids > 0; ids--)
                varint(&at);
    }
    free(file.data);
    return r;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int measure(const struct tokenizer *t, const struct byte_buffer *text) {
    double runs[RUNS];
    size_t n = 0;
    for (unsigned i = 0; i < RUNS; i++) {
        uint32_t *ids;
        struct error e = {0};
        double start = seconds();
        int r = tokenizer_encode(t, text->data, text->n, true, SIZE_MAX, &ids, &n, &e);
        runs[i] = seconds() - start;
        if (r < 0) {
            fprintf(stderr, "%s\n", e.text);
            return r;
        }
        free(ids);
    }
    qsort(runs, RUNS, sizeof(runs[0]), compare);
    printf("encode: %.1f MB/s (%zu bytes, %zu ids, %.2f bytes/id, CPU time of one thread, median of %d)\n",
            (double)text->n / runs[RUNS / 2] / 1e6, text->n, n, (double)text->n / (double)n, RUNS);
    return 0;
}

int main(int argc, char **argv) {
    struct byte_buffer text = {0};
    struct tokenizer *t = NULL;
    struct error e = {0};
    int r = 0;
    double start = seconds();
    if (tokenizer_load(argc > 1 ? argv[1] : TESTS_DIR "/golden/tokenizer/tokenizer.json", &t, &e) < 0) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    printf("load: %.0f ms (%u ids)\n", (seconds() - start) * 1e3, tokenizer_vocab_size(t));
    for (int i = 2; i < argc && r >= 0; i++)
        r = add_file(&text, argv[i]);
    if (argc <= 2)
        r = add_golden(&text);
    if (argc <= 2 && r >= 0)
        r = add_file(&text, TESTS_DIR "/../README.md");
    if (argc <= 2 && r >= 0)
        r = add_glob(&text, TESTS_DIR "/../daemon/text/*.[ch]");
    if (r >= 0)
        r = measure(t, &text);
    tokenizer_free(t);
    free(text.data);
    return r < 0;
}
