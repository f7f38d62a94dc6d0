/* safetensors_file.h - one file's header turned into tensors. Between safetensors.c (the format) and
 * checkpoint.c (folders, shards, look-up); nobody else includes it. */
#pragma once

#include "tp/checkpoint/safetensors.h"

struct tensor_list { /* owns the array and the tensors' names */
    struct tensor *at;
    size_t n, size;
};
void tensor_list_done(struct tensor_list *list);
/* Sorts by name; -EBADMSG if a name is there twice, naming both files. */
int tensor_list_sort(struct tensor_list *list, struct error *e);

/* Appends the tensors of a whole file image; file is kept by them. On failure the list may have some of
 * them. */
int safetensors_parse(
        const void *image, uint64_t bytes, const char *file, struct tensor_list *list, struct error *e);
