/* gguf.c - the GGUF parser: values of every type, places of tensors, and everything about a file that is refused. */
#include "base/gguf.h"

#include "base/limits.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* A file as it grows. */
static unsigned char image[8192];
static size_t used;

static void put(const void *data, size_t bytes) {
    assert_true(used + bytes <= sizeof(image));
    memcpy(image + used, data, bytes);
    used += bytes;
}

static void put_number(uint64_t value, size_t bytes) {
    put(&value, bytes);
}

static void put_string(const char *text) {
    put_number(strlen(text), 8);
    put(text, strlen(text));
}

static void begin(uint64_t version, uint64_t n_tensors, uint64_t n_values) {
    used = 0;
    put("GGUF", 4);
    put_number(version, 4);
    put_number(n_tensors, 8);
    put_number(n_values, 8);
}

static void put_key(const char *key, enum gguf_value_type type) {
    put_string(key);
    put_number(type, 4);
}

static void put_u32(const char *key, uint32_t value) {
    put_key(key, GGUF_U32);
    put_number(value, 4);
}

static void put_info(const char *name, uint64_t columns, uint64_t rows, uint32_t type, uint64_t offset) {
    put_string(name);
    put_number(rows ? 2 : 1, 4);
    put_number(columns, 8);
    if (rows)
        put_number(rows, 8);
    put_number(type, 4);
    put_number(offset, 8);
}

static void pad(size_t alignment) {
    while (used % alignment)
        put("", 1);
}

static void put_data(size_t bytes) {
    assert_true(used + bytes <= sizeof(image));
    for (size_t i = 0; i < bytes; i++)
        image[used++] = (unsigned char)i;
}

/* The image in memory of exactly its size, so that a sanitizer sees a read beyond it. */
static int parse_all(struct gguf *g, unsigned char **copy, struct error *e) {
    *copy = malloc(used ? used : 1);
    assert_non_null(*copy);
    memcpy(*copy, image, used);
    return gguf_parse(*copy, used, "m.gguf", g, e);
}

static void refused(int code, const char *sentence) {
    struct gguf g = {0};
    struct error e = {0};
    unsigned char *copy;
    int r = parse_all(&g, &copy, &e);
    assert_string_equal(e.text, sentence);
    assert_int_equal(r, code);
    assert_null(g.values);
    free(copy);
}

static void whole_file(void) {
    float real = 1.5f;
    double wide = -2.25;
    int64_t negative = -1;
    begin(3, 3, 10);
    put_u32("general.alignment", 64);
    put_key("a.u8", GGUF_U8);
    put_number(200, 1);
    put_key("a.i16", GGUF_I16);
    put(&negative, 2);
    put_key("a.u64", GGUF_U64);
    put_number(1ull << 40, 8);
    put_key("a.f32", GGUF_F32);
    put(&real, 4);
    put_key("a.f64", GGUF_F64);
    put(&wide, 8);
    put_key("a.bool", GGUF_BOOL);
    put_number(1, 1);
    put_key("a.text", GGUF_STRING);
    put_string("hello");
    put_key("a.list", GGUF_ARRAY);
    put_number(GGUF_I32, 4);
    put_number(3, 8);
    put("\7\0\0\0\377\377\377\377\11\0\0\0", 12);
    put_key("a.words", GGUF_ARRAY);
    put_number(GGUF_STRING, 4);
    put_number(2, 8);
    put_string("one");
    put_string("");
    put_info("w", 32, 2, GGUF_TENSOR_Q8_0, 0);
    put_info("b", 5, 0, GGUF_TENSOR_F32, 128);
    put_info("k", 256, 1, GGUF_TENSOR_Q6_K, 192);
    pad(64);
    put_data(68);
    pad(64);
    put_data(20);
    pad(64);
    put_data(210);
}

static void test_values(void **state) {
    (void)state;
    struct gguf g;
    struct error e = {0};
    unsigned char *copy;
    uint64_t number = 0;
    double real = 0;
    bool flag = false;
    struct gguf_string text = {0};
    const struct gguf_value *list = NULL;
    whole_file();
    assert_int_equal(parse_all(&g, &copy, &e), 0);
    assert_int_equal(g.version, 3);
    assert_int_equal(g.alignment, 64);
    assert_int_equal(gguf_get_u64(&g, "a.u8", &number, &e), 0);
    assert_int_equal(number, 200);
    assert_int_equal(gguf_get_u64(&g, "a.u64", &number, &e), 0);
    assert_int_equal(number, 1ull << 40);
    assert_int_equal(gguf_get_u64(&g, "a.i16", &number, &e), -EINVAL);
    assert_string_equal(e.text, "m.gguf: the key a.i16 is not a whole number of at least 0");
    assert_int_equal(gguf_get_u64(&g, "a.i17", &number, &e), -ENOENT);
    assert_string_equal(e.text, "m.gguf: the key a.i17 is missing");
    assert_int_equal(gguf_get_real(&g, "a.f32", &real, &e), 0);
    assert_true(real == 1.5);
    assert_int_equal(gguf_get_real(&g, "a.f64", &real, &e), 0);
    assert_true(real == -2.25);
    assert_int_equal(gguf_get_real(&g, "a.u8", &real, &e), 0);
    assert_true(real == 200);
    assert_int_equal(gguf_get_real(&g, "a.text", &real, &e), -EINVAL);
    assert_int_equal(gguf_get_bool(&g, "a.bool", &flag, &e), 0);
    assert_true(flag);
    assert_int_equal(gguf_get_bool(&g, "a.u8", &flag, &e), -EINVAL);
    assert_int_equal(gguf_get_string(&g, "a.text", &text, &e), 0);
    assert_true(gguf_string_is(text, "hello"));
    assert_int_equal(gguf_get_string(&g, "a.list", &text, &e), -EINVAL);
    assert_int_equal(gguf_get_array(&g, "a.list", GGUF_I32, &list, &e), 0);
    assert_int_equal(gguf_array_u64(list, 0, &number), 0);
    assert_int_equal(number, 7);
    assert_int_equal(gguf_array_u64(list, 1, &number), -EINVAL);
    assert_int_equal(gguf_array_u64(list, 3, &number), -EINVAL);
    assert_int_equal(gguf_get_array(&g, "a.list", GGUF_STRING, &list, &e), -EINVAL);
    assert_int_equal(gguf_get_array(&g, "a.words", GGUF_STRING, &list, &e), 0);
    const unsigned char *at = list->data;
    assert_true(gguf_string_is(gguf_next_string(&at), "one"));
    assert_true(gguf_string_is(gguf_next_string(&at), ""));
    gguf_done(&g);
    free(copy);
}

static void test_tensors(void **state) {
    (void)state;
    struct gguf g;
    unsigned char *copy;
    whole_file();
    assert_int_equal(parse_all(&g, &copy, NULL), 0);
    assert_int_equal(g.n_tensors, 3);
    const struct gguf_tensor *w = gguf_find_tensor(&g, "w"), *b = gguf_find_tensor(&g, "b"),
                             *k = gguf_find_tensor(&g, "k");
    assert_non_null(w);
    assert_int_equal(w->bytes, 68);
    assert_int_equal(w->dims[0], 32);
    assert_int_equal(w->dims[1], 2);
    assert_int_equal(b->n_dims, 1);
    assert_int_equal(b->bytes, 20);
    assert_ptr_equal(b->data, (const unsigned char *)w->data + 128);
    assert_int_equal(k->bytes, 210);
    assert_ptr_equal((const unsigned char *)k->data + 210, copy + used);
    assert_null(gguf_find_tensor(&g, "v"));
    gguf_done(&g);
    free(copy);
}

/* Cut anywhere, the file is refused. */
static void test_truncated(void **state) {
    (void)state;
    whole_file();
    for (size_t whole = used; used-- > 0;) {
        struct gguf g = {0};
        struct error e = {0};
        unsigned char *copy;
        assert_int_equal(parse_all(&g, &copy, &e), -EBADMSG);
        assert_true(strstr(e.text, used ? "truncated" : "empty") != NULL);
        assert_true(used < whole);
        free(copy);
        if (used == 0)
            break;
    }
}

static void test_refused_headers(void **state) {
    (void)state;
    begin(1, 0, 0);
    refused(-ENOTSUP, "m.gguf: GGUF version 1: versions 2 and 3 are read");
    begin(3u << 24, 0, 0);
    refused(-ENOTSUP, "m.gguf: GGUF version 50331648, a big-endian file: versions 2 and 3 are read");
    begin(3, 0, 0);
    image[0] = 'X';
    refused(-EBADMSG, "m.gguf: does not begin with GGUF: is it a GGUF file?");
    begin(3, 0, GGUF_VALUES_MAX + 1ull);
    refused(-E2BIG, "m.gguf: has 65537 keys of metadata, at most 65536 are read");
    begin(3, 1ull << 60, 0);
    refused(-E2BIG, "m.gguf: has 1152921504606846976 tensors, at most 1000000 are read");
    begin(3, 1000, 0);
    refused(-EBADMSG, "m.gguf: ends inside the tensor infos: it is truncated, fetch it again");
    begin(3, 0, 1000);
    refused(-EBADMSG, "m.gguf: ends inside the metadata: it is truncated, fetch it again");
}

static void test_refused_values(void **state) {
    (void)state;
    begin(3, 0, 2);
    put_u32("same", 1);
    put_u32("same", 2);
    refused(-EBADMSG, "m.gguf: same: is in the metadata twice");
    begin(3, 0, 1);
    put_key("x", (enum gguf_value_type)13);
    put_number(0, 8);
    refused(-EBADMSG, "m.gguf: x: unknown type of value 13");
    begin(3, 0, 1);
    put_u32("", 1);
    refused(-EBADMSG, "m.gguf: a key of the metadata is empty, too long, or has a NUL in it");
    begin(3, 0, 1);
    put_key("x", GGUF_ARRAY);
    put_number(GGUF_ARRAY, 4);
    put_number(0, 8);
    refused(-ENOTSUP, "m.gguf: x: is a list of lists, which is not read");
    begin(3, 0, 1);
    put_key("x", GGUF_ARRAY);
    put_number(GGUF_U64, 4);
    put_number(1ull << 61, 8);
    refused(-EBADMSG, "m.gguf: ends inside the metadata: it is truncated, fetch it again");
    begin(3, 0, 1);
    put_key("x", GGUF_ARRAY);
    put_number(GGUF_STRING, 4);
    put_number(UINT64_MAX, 8);
    put_string("a");
    refused(-EBADMSG, "m.gguf: ends inside the metadata: it is truncated, fetch it again");
    begin(3, 0, 1);
    put_key("x", GGUF_STRING);
    put_number(UINT64_MAX - 3, 8);
    refused(-EBADMSG, "m.gguf: ends inside the metadata: it is truncated, fetch it again");
    begin(3, 0, 1);
    put_u32("general.alignment", 48);
    refused(-EBADMSG, "m.gguf: general.alignment is 48: it must be a power of two, 8 to 1048576");
    begin(3, 0, 1);
    put_key("general.alignment", GGUF_STRING);
    put_string("32");
    refused(-EINVAL, "m.gguf: the key general.alignment is not a whole number of at least 0");
}

static void one_tensor(uint64_t columns, uint64_t rows, uint32_t type, uint64_t offset, size_t data) {
    begin(3, 1, 0);
    put_info("t", columns, rows, type, offset);
    pad(32);
    put_data(data);
}

static void test_refused_tensors(void **state) {
    (void)state;
    one_tensor(8, 0, GGUF_TENSOR_F32, 32, 64);
    refused(-EBADMSG, "m.gguf: t: begins at byte 32 of the data, expected 0");
    one_tensor(8, 0, GGUF_TENSOR_F32, 0, 31);
    refused(-EBADMSG,
            "m.gguf: t: ends at byte 32 of the data, but the file has 31: it is truncated, fetch it again");
    one_tensor(48, 1, GGUF_TENSOR_Q8_0, 0, 64);
    refused(-EBADMSG, "m.gguf: t: rows of 48 are not whole blocks of 32 of Q8_0");
    one_tensor(0, 0, GGUF_TENSOR_F32, 0, 64);
    refused(-EBADMSG, "m.gguf: t: has a dimension of 0");
    one_tensor(1ull << 40, 1ull << 40, GGUF_TENSOR_F32, 0, 64);
    refused(-EBADMSG, "m.gguf: t: its dimensions have more bytes than 64 bits can count");
    one_tensor(1ull << 62, 2, GGUF_TENSOR_F32, 0, 64);
    refused(-EBADMSG, "m.gguf: t: its dimensions have more bytes than 64 bits can count");
    one_tensor((1ull << 62) - 2, 0, GGUF_TENSOR_F32, 0, 64);
    refused(-EBADMSG, "m.gguf: ends inside the data: it is truncated, fetch it again");
    begin(3, 2, 0);
    put_info("t", 8, 0, GGUF_TENSOR_F32, 0);
    put_info("t", 8, 0, GGUF_TENSOR_F32, 32);
    pad(32);
    put_data(64);
    refused(-EBADMSG, "m.gguf: t: is there twice");
    begin(3, 1, 0);
    put_string("t");
    put_number(5, 4);
    put_data(64);
    refused(-EBADMSG, "m.gguf: t: has 5 dimensions: it must have 1 to 4");
}

static void not_read(const struct gguf *g, const char *name, uint64_t bytes, const char *sentence) {
    struct error e = {0};
    const struct gguf_tensor *t = gguf_find_tensor(g, name);
    assert_non_null(t);
    assert_false(gguf_tensor_is_read(t));
    assert_int_equal(t->bytes, bytes);
    assert_int_equal(gguf_tensor_check_read(t, "m.gguf", &e), -ENOTSUP);
    assert_string_equal(e.text, sentence);
}

/* Of a type whose blocks are not known a tensor reaches to the next; it is refused by who wants it. */
static void test_types_that_are_not_read(void **state) {
    (void)state;
    struct gguf g = {0};
    unsigned char *copy;
    begin(3, 4, 0);
    put_info("a", 8, 0, 4, 0);
    put_info("b", 8, 0, GGUF_TENSOR_F32, 64);
    put_info("c", 8, 0, 19, 96);
    put_info("d", 8, 0, UINT32_MAX, 96);
    pad(32);
    put_data(96 + 5);
    assert_int_equal(parse_all(&g, &copy, NULL), 0);
    not_read(&g, "a", 64, "m.gguf: a: unknown tensor type 4");
    not_read(&g, "c", 0,
            "m.gguf: c: tensors of type IQ1_S are not read: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K "
            "and Q6_K are; take another quantisation of this model");
    not_read(&g, "d", 5, "m.gguf: d: unknown tensor type 4294967295");
    const struct gguf_tensor *b = gguf_find_tensor(&g, "b");
    assert_int_equal(gguf_tensor_check_read(b, "m.gguf", NULL), 0);
    assert_ptr_equal(b->data, (const char *)gguf_find_tensor(&g, "a")->data + 64);
    gguf_done(&g);
    free(copy);
    begin(3, 2, 0);
    put_info("a", 8, 0, 4, 0);
    put_info("b", 8, 0, GGUF_TENSOR_F32, 33);
    pad(32);
    put_data(96);
    refused(-EBADMSG, "m.gguf: b: begins at byte 33 of the data, expected 0");
    begin(3, 2, 0);
    put_info("a", 8, 0, 4, 0);
    put_info("b", 8, 0, GGUF_TENSOR_F32, 96);
    pad(32);
    put_data(96);
    refused(-EBADMSG,
            "m.gguf: b: ends at byte 128 of the data, but the file has 96: it is truncated, fetch it again");
    begin(3, 1, 0);
    put_info("a", 8, 0, 4, 32);
    pad(32);
    put_data(96);
    refused(-EBADMSG, "m.gguf: a: begins at byte 32 of the data, expected 0");
}

/* --- which files a path means --- */

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/shardd-gguf-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return rmdir(folder);
}

static const char *in_folder(const char *name) {
    static char path[PATH_MAX];
    assert_int_equal(file_path(folder, name, path, NULL), 0);
    return path;
}

static void touch(const char *name) {
    assert_int_equal(file_replace(in_folder(name), "GGUF", 4, 0600, NULL), 0);
}

static void drop(const char *name) {
    assert_int_equal(unlink(in_folder(name)), 0);
}

static void test_locate(void **state) {
    (void)state;
    struct gguf_files f;
    char path[PATH_MAX];
    assert_int_equal(gguf_locate(folder, &f, NULL), 0);
    assert_int_equal(gguf_locate("/no/such/file.gguf", &f, NULL), 0);
    touch("a.gguf");
    touch("mmproj-a.gguf");
    assert_int_equal(gguf_locate(folder, &f, NULL), 1);
    assert_int_equal(f.n, 1);
    assert_string_equal(f.first, in_folder("a.gguf"));
    assert_string_equal(f.folder, folder);
    assert_int_equal(gguf_locate(in_folder("a.gguf"), &f, NULL), 1);
    assert_int_equal(gguf_part_path(&f, 0, path, NULL), 0);
    assert_string_equal(path, in_folder("a.gguf"));
    touch("model.safetensors"); /* a Hugging Face folder stays one */
    assert_int_equal(gguf_locate(folder, &f, NULL), 0);
    drop("model.safetensors");
    touch("blob"); /* known by its first bytes */
    assert_int_equal(gguf_locate(in_folder("blob"), &f, NULL), 1);
    assert_string_equal(f.first, in_folder("blob"));
    drop("blob");
    drop("mmproj-a.gguf");
    drop("a.gguf");
}

static void test_locate_several(void **state) {
    (void)state;
    struct gguf_files f;
    struct error e = {0};
    char path[PATH_MAX], expected[256];
    touch("m-00001-of-00003.gguf");
    touch("m-00003-of-00003.gguf");
    assert_int_equal(gguf_locate(folder, &f, NULL), 1);
    assert_int_equal(f.n, 3);
    assert_int_equal(gguf_part_path(&f, 2, path, NULL), 0);
    assert_string_equal(path, in_folder("m-00003-of-00003.gguf"));
    assert_int_equal(gguf_locate(in_folder("m-00003-of-00003.gguf"), &f, NULL), 1);
    assert_string_equal(f.first, in_folder("m-00001-of-00003.gguf"));
    touch("other.gguf");
    assert_int_equal(gguf_locate(folder, &f, &e), -EINVAL);
    snprintf(expected, sizeof(expected),
            "%s: holds several GGUF models, m-00001-of-00003.gguf and other.gguf among them: give the path of one "
            "file",
            folder);
    assert_string_equal(e.text, expected);
    drop("other.gguf");
    touch("m-00004-of-00003.gguf"); /* no part: a name like any other */
    assert_int_equal(gguf_locate(in_folder("m-00004-of-00003.gguf"), &f, NULL), 1);
    assert_int_equal(f.n, 1);
    drop("m-00004-of-00003.gguf");
    drop("m-00001-of-00003.gguf");
    /* Without its first file it is still a set: what is missing has a name. */
    assert_int_equal(gguf_locate(folder, &f, NULL), 1);
    assert_int_equal(f.n, 3);
    assert_string_equal(f.first, in_folder("m-00001-of-00003.gguf"));
    drop("m-00003-of-00003.gguf");
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_values),
            cmocka_unit_test(test_tensors),
            cmocka_unit_test(test_truncated),
            cmocka_unit_test(test_refused_headers),
            cmocka_unit_test(test_refused_values),
            cmocka_unit_test(test_refused_tensors),
            cmocka_unit_test(test_types_that_are_not_read),
            cmocka_unit_test(test_locate),
            cmocka_unit_test(test_locate_several),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
