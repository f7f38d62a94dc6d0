/* checkpoint_index.c - fuzzes the reader of model.safetensors.index.json: a folder with one real shard of two tensors,
 * and an index that is the fuzzer's. What is accepted must hold together. */
#include "tp/checkpoint/safetensors.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char folder[64];

static void require(bool condition) {
    if (!condition)
        abort();
}

static void write_file(const char *name, const void *data, size_t bytes) {
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    require(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes && close(fd) == 0);
}

static void remove_folder(void) {
    static const char *const names[] = {"a.safetensors", "model.safetensors.index.json"};
    char path[128];
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    static const char header[] = "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                                 "\"y\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[4,8]}}";
    char shard[8 + sizeof(header) - 1 + 8] = {0};
    uint64_t bytes = sizeof(header) - 1;
    (void)argc, (void)argv;
    snprintf(folder, sizeof(folder), "/dev/shm/fuzz-index-XXXXXX");
    require(mkdtemp(folder) != NULL);
    memcpy(shard, &bytes, 8);
    memcpy(shard + 8, header, sizeof(header) - 1);
    write_file("a.safetensors", shard, sizeof(shard));
    atexit(remove_folder);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct checkpoint *c = NULL;
    struct error e = {0};
    write_file("model.safetensors.index.json", data, size);
    if (checkpoint_open(folder, &c, &e) < 0) {
        require(e.text[0] != '\0' && c == NULL);
        return 0;
    }
    for (size_t i = 0; i < checkpoint_count(c); i++) {
        const struct tensor *t = checkpoint_at(c, i);
        require(checkpoint_find(c, t->name) == t && strcmp(t->file, "a.safetensors") == 0);
    }
    checkpoint_free(c);
    return 0;
}
