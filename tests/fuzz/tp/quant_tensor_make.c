/* quant_tensor_make.c - fuzzes the putting together of a quantised matrix: the input is a config.json, a zero byte, the
 * header of a safetensors file, a zero byte, and its data, repeated to the length that the header needs. What is
 * accepted is read to the last element, so that a part that is too short is found by the sanitizer. */
#include "tp/checkpoint/quant_matrix.h"
#include "tp/checkpoint/quant_tensor.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROWS    24u
#define COLUMNS 64u
#define FILL    16384u /* bytes of data: every form of the matrix fits */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char path[64];

static void require(bool condition) {
    if (!condition)
        abort();
}

static void remove_file(void) {
    unlink(path);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    snprintf(path, sizeof(path), "/dev/shm/fuzz-quant-XXXXXX");
    int fd = mkstemp(path);
    require(fd >= 0 && close(fd) == 0);
    atexit(remove_file);
    return 0;
}

/* The end of the data as the header's last data_offsets says it. */
static uint64_t data_bytes(const char *header, size_t size) {
    uint64_t end = 0;
    for (size_t i = 0; i < size; i++)
        if (header[i] == ']' && i > 0) {
            uint64_t n = 0, unit = 1;
            for (size_t k = i; k > 0 && header[k - 1] >= '0' && header[k - 1] <= '9' && unit < 1000000; k--) {
                n += unit * (uint64_t)(header[k - 1] - '0');
                unit *= 10;
            }
            end = n > end ? n : end;
        }
    return end < FILL ? end : FILL;
}

static struct checkpoint *open_file(
        const char *header, size_t header_bytes, const uint8_t *fill, size_t fill_bytes) {
    static uint8_t image[8 + 65536 + FILL];
    struct checkpoint *c = NULL;
    const uint64_t length = header_bytes;
    if (header_bytes > 65536)
        return NULL;
    const uint64_t n = data_bytes(header, header_bytes);
    memcpy(image, &length, 8);
    memcpy(image + 8, header, header_bytes);
    for (uint64_t i = 0; i < n; i++)
        image[8 + header_bytes + i] = fill_bytes ? fill[i % fill_bytes] : 0;
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    const ssize_t all = (ssize_t)(8 + header_bytes + n);
    require(fd >= 0 && write(fd, image, (size_t)all) == all && close(fd) == 0);
    return checkpoint_open_file(path, &c, NULL) < 0 ? NULL : c;
}

static void read_all(const struct quant_tensor *t) {
    const struct quant_matrix *q = &t->matrix;
    uint8_t codes[QUANT_ROWS_MAX * COLUMNS];
    struct quant_group groups[COLUMNS];
    bool seen[COLUMNS] = {false};
    const uint32_t widest = q->format == QUANT_INT4 ? 15 : 255;
    require(q->rows == ROWS && q->columns == COLUMNS && q->group >= 1 && q->group <= COLUMNS);
    require(q->group % 16 == 0 && t->n_parts >= 2 && t->n_parts <= QUANT_PARTS_MAX);
    for (uint32_t row = 0; row < ROWS; row += 8) {
        q->codes(q, row, 8, 0, COLUMNS, codes);
        for (uint32_t i = 0; i < 8 * COLUMNS; i++)
            require(codes[i] <= widest);
        q->codes(q, row, 7, 3, COLUMNS - 3, codes);
        q->groups(q, row + 7, 0, quant_groups(q), groups);
        for (uint32_t i = 0; i < quant_groups(q); i++)
            require(groups[i].zero <= widest && (q->zeros || groups[i].zero == (widest + 1) / 2));
    }
    for (uint32_t k = 0; q->order && k < COLUMNS; k++) {
        require(q->order[k] < COLUMNS && !seen[q->order[k]]);
        seen[q->order[k]] = true;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *first = memchr(data, 0, size);
    const uint8_t *second = first ? memchr(first + 1, 0, size - (size_t)(first + 1 - data)) : NULL;
    struct quant_config *config = NULL;
    struct quant_tensor *t = NULL;
    struct error e = {0};
    if (!second ||
            quant_config_parse((const char *)data, (size_t)(first - data), "config.json", &config, &e) < 0)
        return 0;
    struct checkpoint *c = open_file((const char *)first + 1, (size_t)(second - first - 1), second + 1,
            size - (size_t)(second + 1 - data));
    const struct quant_request q = {
            .checkpoint = c, .config = config, .module = "m", .rows = ROWS, .columns = COLUMNS};
    int r = c ? quant_tensor_make(&q, &t, &e) : 0;
    require(r >= 0 || (e.text[0] != '\0' && !t));
    if (r == 1) {
        read_all(t);
        quant_matrix_check(&t->tensor, &e);
    }
    quant_tensor_free(t);
    checkpoint_free(c);
    quant_config_free(config);
    return 0;
}
