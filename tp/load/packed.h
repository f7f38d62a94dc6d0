/* packed.h - packed files: the matrices of a model in the tiles that the kernels compute with, ready to be mapped.
 *
 * Called by tp/worker/rank.c, which loads from one (and makes it: --load-format packed), by weights.c, which asks it
 * for tiles, and by the checkpoint tool. A packed file stands beside its checkpoint and does not replace it: vectors,
 * the embedding table, and the few matrices whose shards do not begin at a strip at every tp (in_proj_a, in_proj_b)
 * are still read there. One file serves every tp. The format is in packed_format.h.
 *
 * What is checked when a file is opened: its length, version and layout, the checksum of header and table, every size
 * and offset, and the fingerprint of the weights that it was made from. That covers config.json and
 * quantize_config.json byte by byte, the name, dtype and shape of every tensor, and 16 samples of 64 bytes of each; not
 * file names and times, so a model may be copied. The tiles themselves have checksums too, which packed_verify()
 * checks; that reads the whole file, so it is done on demand (--verify-weights, `shardd inspect --verify`).
 *
 * An opened file is mapped and owns its tiles; it must outlive the linears that use them. */
#pragma once

#include "kernels/kernels.h"
#include "kernels/layout/layout.h"
#include "tp/checkpoint/model_config.h"
#include "tp/checkpoint/tensor_names.h"

#include <limits.h>
#include <stdbool.h>

struct packed;

/* A file of this layout. -ENOENT: no such file; -ENOTSUP: of another version or layout; -ESTALE: of other weights;
 * -EBADMSG: cut short or damaged. */
int packed_open(const char *path, const struct k_layout *layout, uint64_t fingerprint, struct packed **ret,
        struct error *e);
struct packed *packed_free(struct packed *p);    /* NULL ok; returns NULL */
const char *packed_name(const struct packed *p); /* the path */
uint64_t packed_bytes(const struct packed *p);   /* of the file */
uint32_t packed_matrices(const struct packed *p);
/* The tiles of a matrix by its tensor's name; NULL = it is not in the file. */
const struct k_tiles *packed_find(const struct packed *p, const char *name);

typedef void packed_progress(void *user, uint64_t bytes_done, uint64_t bytes_total, const char *what);

/* Reads all tiles and compares their checksums: -EBADMSG names the matrix. */
int packed_verify(const struct packed *p, packed_progress *progress, void *user, struct error *e);
/* Brings the part of the tiles (of the native layout) that a view uses into memory and into the page tables of this
 * process, so that the first step does not. Bytes, whether that worked or not: it is only speed. */
uint64_t packed_fetch(const struct k_matrix_view *view, uint32_t columns, uint32_t leaves);

/* --- finding and making (packed_write.c) --- */

struct packed_request {
    const char *model; /* folder or file, as given */
    /* --packed-cache: only there; NULL = beside the model, else the user's cache folder */
    const char *cache_dir;
    uint64_t fingerprint;          /* packed_fingerprint() */
    const struct k_layout *layout; /* NULL = the native one */
    uint32_t threads;              /* of making; 0 = all that this process may use */
    const struct model_config *config;
    const struct checkpoint *checkpoint; /* of the tensors; pages are let go as matrices are packed */
    const struct model_tensors *tensors;
    packed_progress *progress;                  /* of making; may be NULL */
    void (*note)(void *user, const char *text); /* why a file does not serve, that one is made; may be NULL */
    void *user;
};

/* What a packed file must be of; fingerprint_of_model is fingerprint_model()'s. */
uint64_t packed_fingerprint(const char *model, uint64_t fingerprint_of_model);
/* Opens the packed file of these weights and this layout where it is there. Otherwise false and *ret is NULL; if a file
 * was found that does not serve, or only one of another layout, *why (NULL ok) says so (code 0: there is none). */
bool packed_look(const struct packed_request *q, struct packed **ret, struct error *why);
/* packed_look(), and makes the file where that found none: streaming, into a temporary file that is then renamed. Ranks
 * and processes that want the same file wait for the one that makes it. */
int packed_make(const struct packed_request *q, struct packed **ret, struct error *e);
