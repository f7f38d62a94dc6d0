/* Any bytes as a configuration file: read or refused with a sentence, and what was read prints and reads
 * again. */
#include "launcher/options/options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static int read_bytes(struct options *o, const void *data, size_t bytes, struct error *e) {
    char path[64];
    int fd = memfd_create("config", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes)
        abort();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    options_init(o, VERB_SERVE);
    int rc = options_read_file(o, path, e);
    close(fd);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct options o, again;
    struct error e = {0};
    int rc = read_bytes(&o, data, bytes, &e);
    if (rc < 0 && (e.code != rc || !e.text[0]))
        abort(); /* refused without a sentence */
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    if (!out)
        abort();
    options_print_config(out, &o);
    fclose(out);
    /* What was printed reads back, unless a comment made a line too long. */
    if (rc == 0) {
        int second = read_bytes(&again, text, n, &e);
        if (second < 0 && second != -EINVAL)
            abort();
        for (size_t i = 0; second == 0 && i < OPTIONS_N; i++)
            if (o.values[i].number != again.values[i].number)
                abort();
        options_done(&again);
    }
    free(text);
    options_done(&o);
    return 0;
}
