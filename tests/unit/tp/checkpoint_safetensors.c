/* checkpoint_safetensors.c - safetensors files and folders: what is read, and what is refused with which
 * sentence. */
#include "checkpoint_test.h"

static char folder[TEST_FOLDER_SIZE];

/* An image with this header and n zero bytes of data, in an exactly sized allocation. */
static unsigned char *image_of(const char *header, size_t data, size_t *ret_bytes) {
    size_t length = strlen(header), bytes = 8 + length + data;
    unsigned char *image = calloc(1, bytes);
    assert_non_null(image);
    for (unsigned i = 0; i < 8; i++)
        image[i] = (unsigned char)((uint64_t)length >> (8 * i));
    memcpy(image + 8, header, length);
    *ret_bytes = bytes;
    return image;
}

static void check(const char *header, size_t data, int code, const char *sentence) {
    struct error e = {0};
    size_t bytes;
    unsigned char *image = image_of(header, data, &bytes);
    int r = safetensors_check(image, bytes, "m.safetensors", &e);
    free(image);
    if (r != code || strcmp(e.text, sentence) != 0)
        fail_msg("%s\n  gave %d: %s\n  expected %d: %s", header, r, e.text, code, sentence);
}

static void accepts(const char *header, size_t data) {
    check(header, data, 0, "");
}

static void test_accepted(void **state) {
    (void)state;
    accepts("{}", 0);
    accepts("{}     \n", 0);
    accepts("{\"__metadata__\":{\"format\":\"pt\",\"deep\":[1,{}]}}", 0);
    accepts("{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4);
    accepts("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24);
    /* Order of entries is not order of data; unknown fields are stepped over. */
    accepts("{\"a\":{\"data_offsets\":[2,4],\"shape\":[1],\"note\":{\"x\":[]},\"dtype\":\"F16\"},"
            "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
            4);
    /* Empty tensors take no room, wherever they are; 0 times anything is 0. */
    accepts("{\"a\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[0,0]},"
            "\"b\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]},\"c\":{\"dtype\":\"I64\","
            "\"shape\":[4294967296,4294967296,0],\"data_offsets\":[2,2]}}",
            2);
}

static void test_dtypes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        enum tensor_dtype dtype;
        uint32_t bits;
    } dtypes[] = {{"F32", TENSOR_F32, 32}, {"BF16", TENSOR_BF16, 16}, {"F16", TENSOR_F16, 16},
            {"F64", TENSOR_F64, 64}, {"I64", TENSOR_I64, 64}, {"I32", TENSOR_I32, 32},
            {"I16", TENSOR_I16, 16}, {"I8", TENSOR_I8, 8}, {"U8", TENSOR_U8, 8}, {"BOOL", TENSOR_BOOL, 8},
            {"F8_E4M3", TENSOR_F8_E4M3, 8}, {"F8_E5M2", TENSOR_F8_E5M2, 8}, {"U16", TENSOR_U16, 16},
            {"U32", TENSOR_U32, 32}, {"U64", TENSOR_U64, 64}, {"C64", TENSOR_C64, 64},
            {"F8_E8M0", TENSOR_F8_E8M0, 8}, {"F8_E4M3FNUZ", TENSOR_F8_E4M3FNUZ, 8},
            {"F8_E5M2FNUZ", TENSOR_F8_E5M2FNUZ, 8}, {"F6_E2M3", TENSOR_F6_E2M3, 6},
            {"F6_E3M2", TENSOR_F6_E3M2, 6}, {"F4", TENSOR_F4, 4}};
    assert_int_equal(sizeof(dtypes) / sizeof(*dtypes), TENSOR_UNKNOWN);
    for (int i = 0; i < TENSOR_UNKNOWN; i++) {
        char header[128], sentence[128];
        const size_t bytes = 3 * 4 * dtypes[i].bits / 8;
        assert_string_equal(tensor_dtype_name(dtypes[i].dtype), dtypes[i].name);
        assert_int_equal(tensor_dtype_bits(dtypes[i].dtype), dtypes[i].bits);
        assert_int_equal(tensor_dtype_bytes(dtypes[i].dtype), dtypes[i].bits % 8 ? 0 : dtypes[i].bits / 8);
        snprintf(header, sizeof(header),
                "{\"a\":{\"dtype\":\"%s\",\"shape\":[3,4],\"data_offsets\":[0,%zu]}}", dtypes[i].name, bytes);
        accepts(header, bytes);
        snprintf(header, sizeof(header), "{\"a\":{\"dtype\":\"%s\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                dtypes[i].name);
        accepts(header, 0);
        snprintf(header, sizeof(header),
                "{\"a\":{\"dtype\":\"%s\",\"shape\":[3,8],\"data_offsets\":[0,%zu]}}", dtypes[i].name, bytes);
        snprintf(sentence, sizeof(sentence),
                "m.safetensors: a: its shape needs %zu bytes of %s, data_offsets has %zu", 2 * bytes,
                dtypes[i].name, bytes);
        check(header, bytes, -EBADMSG, sentence);
    }
    check("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, -EBADMSG,
            "m.safetensors: a: 3 elements of F4 are no whole bytes");
    check("{\"a\":{\"dtype\":\"F6_E2M3\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,2]}}", 2,
            -EBADMSG, "m.safetensors: a: its shape has more bytes than 64 bits can count");
}

/* A tensor may be of a dtype that nobody here has heard of: its place in the file is checked all the same. */
static void test_unknown_dtypes(void **state) {
    (void)state;
    struct checkpoint *c = NULL;
    accepts("{\"a\":{\"dtype\":\"F3_X\",\"shape\":[99999],\"data_offsets\":[0,5]},"
            "\"b\":{\"dtype\":\"\",\"shape\":[],\"data_offsets\":[5,5]}}",
            5);
    check("{\"a\":{\"dtype\":\"F3_X\",\"shape\":[9],\"data_offsets\":[0,5]},"
          "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[4,6]}}",
            6, -EBADMSG, "m.safetensors: b: its data overlap those of a");
    check("{\"a\":{\"dtype\":\"F3_X\",\"shape\":[9],\"data_offsets\":[0,5]}}", 4, -EBADMSG,
            "m.safetensors: a: ends at byte 5 of the data, but the file has 4: it is truncated, fetch it again");
    size_t bytes;
    unsigned char *image =
            image_of("{\"a\":{\"dtype\":\"F3\\n-a-name-that-is-long\",\"shape\":[2],\"data_offsets\":[0,1]}}",
                    1, &bytes);
    test_put(folder, "model.safetensors", image, bytes);
    free(image);
    assert_int_equal(checkpoint_open(folder, &c, NULL), 0);
    assert_int_equal(checkpoint_at(c, 0)->dtype, TENSOR_UNKNOWN);
    assert_string_equal(tensor_dtype_text(checkpoint_at(c, 0)), "F3?-a-name-that");
    checkpoint_free(c);
}

static void test_header_length(void **state) {
    (void)state;
    unsigned char image[16] = {0};
    struct error e = {0};
    assert_int_equal(safetensors_check(image, 0, "m", &e), -EBADMSG);
    assert_string_equal(e.text, "m: has 0 bytes, which is too short for a safetensors file");
    assert_int_equal(safetensors_check(image, 7, "m", &e), -EBADMSG);
    image[0] = 9;
    assert_int_equal(safetensors_check(image, 16, "m", &e), -EBADMSG);
    assert_string_equal(
            e.text, "m: its header has 9 bytes, but the file has 16: it is truncated, fetch it again");
    memset(image, 0xFF, 8);
    assert_int_equal(safetensors_check(image, 16, "m", &e), -E2BIG);
    assert_string_equal(e.text,
            "m: its header would have 18446744073709551615 bytes, at most 104857600 are read: is it a "
            "safetensors file?");
    memset(image, 0, 8); /* a header of no bytes is no JSON */
    assert_int_equal(safetensors_check(image, 16, "m", &e), -EBADMSG);
    assert_string_equal(e.text, "m: line 1 column 1 (byte 0): the text ends where a value should be");
}

static void test_header_json(void **state) {
    (void)state;
    check("[]", 0, -EBADMSG, "m.safetensors: line 1 column 1 (byte 0): expected an object, found an array");
    check("{\"a\":3}", 0, -EBADMSG,
            "m.safetensors: line 1 column 6 (byte 5): expected an object, found a number");
    check("{\"a\":{\"dtype\":\"F32\"", 0, -EBADMSG,
            "m.safetensors: line 1 column 20 (byte 19): the text ends where ',' or '}' should be");
    check("{} x", 0, -EBADMSG,
            "m.safetensors: line 1 column 4 (byte 3): expected the end of the text, found 'x'");
    check("{\"\":{}}", 0, -EBADMSG,
            "m.safetensors: line 1 column 2 (byte 1): a tensor's name may not be empty and may not have a "
            "NUL in it");
    check("{\"a\\u0000\":{}}", 0, -EBADMSG,
            "m.safetensors: line 1 column 2 (byte 1): a tensor's name may not be empty and may not have a "
            "NUL in it");
    check("{\"__metadata__\":{},\"__metadata__\":{}}", 0, -EBADMSG,
            "m.safetensors: line 1 column 20 (byte 19): __metadata__ is there twice");
}

static void test_long_name(void **state) {
    (void)state;
    char header[1100] = "{\"", sentence[128];
    memset(header + 2, 'n', 1025);
    memcpy(header + 2 + 1025, "\":{}}", 6);
    snprintf(sentence, sizeof(sentence),
            "m.safetensors: line 1 column 2 (byte 1): a tensor's name may have 1024 bytes, not 1025");
    check(header, 0, -E2BIG, sentence);
}

static void test_fields(void **state) {
    (void)state;
    check("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, -EBADMSG, "m.safetensors: a: has no 'dtype'");
    check("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, -EBADMSG,
            "m.safetensors: a: has no 'shape'");
    check("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, -EBADMSG,
            "m.safetensors: a: has no 'data_offsets'");
    check("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 4, -EBADMSG,
            "m.safetensors: line 1 column 21 (byte 20): a has this field twice");
    check("{\"a\":{\"dtype\":32}}", 0, -EBADMSG,
            "m.safetensors: line 1 column 15 (byte 14): expected a string, found a number");
    check("{\"a\":{\"shape\":[-1]}}", 0, -ERANGE,
            "m.safetensors: line 1 column 16 (byte 15): expected a number that is not negative");
    check("{\"a\":{\"shape\":[1.5]}}", 0, -EBADMSG,
            "m.safetensors: line 1 column 16 (byte 15): expected a whole number, found 1.5");
    check("{\"a\":{\"shape\":[99999999999999999999]}}", 0, -ERANGE,
            "m.safetensors: line 1 column 16 (byte 15): this number does not fit in 64 bits");
    check("{\"a\":{\"shape\":[1,1,1,1,1,1,1,1,1]}}", 0, -E2BIG,
            "m.safetensors: a: has more than 8 dimensions");
    check("{\"a\":{\"data_offsets\":[1]}}", 0, -EBADMSG,
            "m.safetensors: line 1 column 24 (byte 23): expected a number, found the end of an array");
    check("{\"a\":{\"data_offsets\":[1,2,3]}}", 0, -EBADMSG,
            "m.safetensors: line 1 column 27 (byte 26): expected the end of an array, found a number");
}

static void test_sizes(void **state) {
    (void)state;
    check("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, -EBADMSG,
            "m.safetensors: a: its shape has more bytes than 64 bits can count");
    /* Overflows to exactly 0 bytes. */
    check("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, -EBADMSG,
            "m.safetensors: a: its shape has more bytes than 64 bits can count");
    check("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, -EBADMSG,
            "m.safetensors: a: data_offsets [4, 0] run backwards");
    check("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, -EBADMSG,
            "m.safetensors: a: its shape needs 8 bytes of F32, data_offsets has 4");
    check("{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,4]}}", 4, -EBADMSG,
            "m.safetensors: a: its shape needs 0 bytes of F32, data_offsets has 4");
    check("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, -EBADMSG,
            "m.safetensors: a: ends at byte 8 of the data, but the file has 7: it is truncated, fetch it "
            "again");
    check("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[18446744073709551615,"
          "18446744073709551615]}}",
            0, -EBADMSG,
            "m.safetensors: a: ends at byte 18446744073709551615 of the data, but the file has 0: it is "
            "truncated, fetch it again");
}

static void test_cover(void **state) {
    (void)state;
    check("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
          "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[3,7]}}",
            7, -EBADMSG, "m.safetensors: b: its data overlap those of a");
    check("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
          "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
            4, -EBADMSG, "m.safetensors: b: its data overlap those of a");
    check("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
          "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[6,7]}}",
            7, -EBADMSG, "m.safetensors: b: 2 bytes before it belong to no tensor");
    check("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 5, -EBADMSG,
            "m.safetensors: 1 bytes at its end belong to no tensor");
    check("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
          "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
            2, -EBADMSG, "m.safetensors: a: is in the header twice");
}

/* --- folders --- */

/* A file with one U8 tensor of four bytes, all of them `fill`. */
static void put_shard(const char *file, const char *tensor, int fill) {
    const uint8_t data[4] = {(uint8_t)fill, (uint8_t)fill, (uint8_t)fill, (uint8_t)fill};
    struct test_piece piece = {.dtype = TENSOR_U8, .n_dims = 1, .dims = {4}, .data = data};
    snprintf(piece.name, sizeof(piece.name), "%s", tensor);
    test_write_file(folder, file, &piece, 1);
}

static int clean_folder(void **state) {
    (void)state;
    test_folder_empty(folder);
    return 0;
}

static int make_folder(void **state) {
    (void)state;
    test_folder_make(folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    test_folder_remove(folder);
    return 0;
}

/* The sentence begins with the folder where it begins with '/' or ':'. */
static void folder_refused(int code, const char *sentence) {
    struct checkpoint *c = NULL;
    struct error e = {0};
    char expected[512];
    snprintf(expected, sizeof(expected), "%s%s", sentence[0] == '/' || sentence[0] == ':' ? folder : "",
            sentence);
    int r = checkpoint_open(folder, &c, &e);
    assert_null(c);
    assert_string_equal(e.text, expected);
    assert_int_equal(r, code);
}

static void announced(const struct checkpoint *c, const char *prefix, int code, const char *sentence) {
    struct error e = {0};
    assert_int_equal(checkpoint_check_announced(c, prefix, &e), code);
    assert_string_equal(e.text, sentence);
}

static void test_single_file(void **state) {
    (void)state;
    struct checkpoint *c = NULL;
    struct error e = {0};
    put_shard("model.safetensors", "w", 7);
    test_put_text(folder, "model.safetensors.index.json", "not even JSON: the single file comes first");
    if (checkpoint_open(folder, &c, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(checkpoint_count(c), 1);
    assert_int_equal(checkpoint_files(c), 1);
    assert_null(checkpoint_find(c, "v"));
    assert_null(checkpoint_find(c, "x"));
    const struct tensor *t = checkpoint_find(c, "w");
    assert_non_null(t);
    assert_string_equal(t->file, "model.safetensors");
    assert_int_equal(t->bytes, 4);
    assert_memory_equal(t->data, "\7\7\7\7", 4);
    assert_null(checkpoint_free(c));
}

/* As llm-compressor writes a model with an MTP layer; and an index of other files, which a conversion left. */
static void test_single_file_and_index(void **state) {
    (void)state;
    struct checkpoint *c = NULL;
    struct error e = {0};
    put_shard("model.safetensors", "w", 7);
    put_shard("s1.safetensors", "mtp", 8);
    test_put_text(folder, "model.safetensors.index.json",
            "{\"weight_map\":{\"w\":\"model.safetensors\",\"mtp\":\"s1.safetensors\"}}");
    if (checkpoint_open(folder, &c, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(checkpoint_files(c), 2);
    assert_memory_equal(checkpoint_find(c, "w")->data, "\7\7\7\7", 4);
    assert_string_equal(checkpoint_find(c, "mtp")->file, "s1.safetensors");
    checkpoint_free(c);
    test_put_text(folder, "model.safetensors.index.json",
            "{\"weight_map\":{\"mtp\":\"s1.safetensors\",\"x\":\"s2.safetensors\"}}");
    if (checkpoint_open(folder, &c, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(checkpoint_files(c), 1);
    assert_non_null(checkpoint_find(c, "w"));
    assert_null(checkpoint_find(c, "mtp"));
    checkpoint_free(c);
    test_put_text(folder, "model.safetensors.index.json",
            "{\"weight_map\":{\"w\":\"model.safetensors\",\"x\":\"s2.safetensors\"}}");
    if (checkpoint_open(folder, &c, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(checkpoint_files(c), 1);
    announced(c, "w", 0, "");
    announced(c, "x", -ENOENT,
            "s2.safetensors: this shard is missing: model.safetensors.index.json names it for x; fetch it again");
    checkpoint_free(c);
}

static void test_shards(void **state) {
    (void)state;
    struct checkpoint *c = NULL;
    struct error e = {0};
    put_shard("s1.safetensors", "zeta", 1);
    put_shard("s2.safetensors", "alpha", 2);
    test_put_text(folder, "model.safetensors.index.json",
            "{\"metadata\":{\"total_size\":8},\"weight_map\":"
            "{\"zeta\":\"s1.safetensors\",\"alpha\":\"s2.safetensors\"}}");
    if (checkpoint_open(folder, &c, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(checkpoint_count(c), 2);
    assert_int_equal(checkpoint_files(c), 2);
    assert_string_equal(checkpoint_at(c, 0)->name, "alpha");
    assert_string_equal(checkpoint_at(c, 0)->file, "s2.safetensors");
    assert_memory_equal(checkpoint_find(c, "zeta")->data, "\1\1\1\1", 4);
    checkpoint_free(c);
}

static void test_nothing_there(void **state) {
    (void)state;
    struct checkpoint *c = NULL;
    struct error e = {0};
    folder_refused(-ENOENT,
            ": has neither model.safetensors nor model.safetensors.index.json nor a *.gguf: is this a model "
            "folder?");
    test_put_text(folder, "x.gguf", "GGUF");
    assert_int_equal(checkpoint_open(folder, &c, &e), -EBADMSG);
    assert_string_equal(e.text, "x.gguf: ends inside its header: it is truncated, fetch it again");
    assert_int_equal(checkpoint_open("/no/such/model", &c, &e), -ENOENT);
    assert_string_equal(e.text, "/no/such/model: no model folder: No such file or directory");
    assert_int_equal(checkpoint_open("/dev/null", &c, &e), -ENOTDIR);
    assert_int_equal(checkpoint_open_file("/no/such/file", &c, &e), -ENOENT);
    assert_null(c);
}

static void test_broken_files(void **state) {
    (void)state;
    test_put(folder, "model.safetensors", "", 0);
    folder_refused(-EBADMSG, "model.safetensors: has 0 bytes, which is too short for a safetensors file");
    test_put(folder, "model.safetensors", "\7\0\0\0\0\0\0\0{}", 10);
    folder_refused(-EBADMSG,
            "model.safetensors: its header has 7 bytes, but the file has 10: it is truncated, fetch it "
            "again");
}

static void test_index(void **state) {
    (void)state;
    static const char *const name = "model.safetensors.index.json";
    test_put_text(folder, name, "{");
    folder_refused(-EBADMSG,
            "model.safetensors.index.json: line 1 column 2 (byte 1): the text ends where a key in quotes "
            "should be");
    test_put_text(folder, name, "{\"metadata\":{}}");
    folder_refused(-EBADMSG, "model.safetensors.index.json: has no weight_map with tensors in it");
    test_put_text(folder, name, "{\"weight_map\":{}}");
    folder_refused(-EBADMSG, "model.safetensors.index.json: has no weight_map with tensors in it");
    test_put_text(folder, name, "{\"weight_map\":{\"a\":1}}");
    folder_refused(-EBADMSG,
            "model.safetensors.index.json: line 1 column 20 (byte 19): expected a string, found a number");
    test_put_text(folder, name, "{\"weight_map\":{},\"weight_map\":{}}");
    folder_refused(
            -EBADMSG, "model.safetensors.index.json: line 1 column 18 (byte 17): weight_map is there twice");
}

static void test_index_cannot_leave_the_folder(void **state) {
    (void)state;
    static const char *const names[] = {"../x", "/etc/passwd", "a/b", "..", "x..y", ""};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        char index[128], sentence[256];
        snprintf(index, sizeof(index), "{\"weight_map\":{\"a\":\"%s\"}}", names[i]);
        test_put_text(folder, "model.safetensors.index.json", index);
        snprintf(sentence, sizeof(sentence),
                "model.safetensors.index.json: line 1 column 20 (byte 19): '%s' cannot be a shard: it must "
                "be the name of a file beside the index, without '/' and '..'",
                names[i]);
        folder_refused(-EBADMSG, sentence);
    }
}

static void test_shard_refusals(void **state) {
    (void)state;
    static const char *const index = "model.safetensors.index.json";
    struct checkpoint *c = NULL;
    test_put_text(folder, index, "{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\"}}");
    folder_refused(-ENOENT,
            "/s1.safetensors: this shard is missing: model.safetensors.index.json names it; fetch it again");
    put_shard("s1.safetensors", "a", 1);
    assert_int_equal(checkpoint_open(folder, &c, NULL), 0);
    announced(c, "a", 0, "");
    announced(c, "b", -ENOENT,
            "s2.safetensors: this shard is missing: model.safetensors.index.json names it for b; fetch it again");
    checkpoint_free(c);
    put_shard("s2.safetensors", "c", 1);
    assert_int_equal(checkpoint_open(folder, &c, NULL), 0);
    announced(c, "b", -ENOENT, "s2.safetensors: b: the index says it is here, but it is not");
    announced(c, "bb", 0, "");
    announced(c, "", -ENOENT, "s2.safetensors: b: the index says it is here, but it is not");
    checkpoint_free(c);
    put_shard("s2.safetensors", "a", 1);
    folder_refused(-EBADMSG, "s2.safetensors: a: is in s1.safetensors too");
    put_shard("s2.safetensors", "b", 1);
    test_put_text(folder, index, "{\"weight_map\":{\"a\":\"s2.safetensors\",\"b\":\"s1.safetensors\"}}");
    assert_int_equal(checkpoint_open(folder, &c, NULL), 0);
    announced(c, "a", -EBADMSG, "s2.safetensors: a: the index says it is here, but it is in s1.safetensors");
    announced(c, "b", -EBADMSG, "s1.safetensors: b: the index says it is here, but it is in s2.safetensors");
    checkpoint_free(c);
    test_put(folder, "s2.safetensors", "short", 5);
    folder_refused(-EBADMSG, "s2.safetensors: has 5 bytes, which is too short for a safetensors file");
}

static void test_free_nothing(void **state) {
    (void)state;
    assert_null(checkpoint_free(NULL));
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_accepted),
            cmocka_unit_test(test_dtypes),
            cmocka_unit_test_teardown(test_unknown_dtypes, clean_folder),
            cmocka_unit_test(test_header_length),
            cmocka_unit_test(test_header_json),
            cmocka_unit_test(test_long_name),
            cmocka_unit_test(test_fields),
            cmocka_unit_test(test_sizes),
            cmocka_unit_test(test_cover),
            cmocka_unit_test_teardown(test_single_file, clean_folder),
            cmocka_unit_test_teardown(test_single_file_and_index, clean_folder),
            cmocka_unit_test_teardown(test_shards, clean_folder),
            cmocka_unit_test_teardown(test_nothing_there, clean_folder),
            cmocka_unit_test_teardown(test_broken_files, clean_folder),
            cmocka_unit_test_teardown(test_index, clean_folder),
            cmocka_unit_test_teardown(test_index_cannot_leave_the_folder, clean_folder),
            cmocka_unit_test_teardown(test_shard_refusals, clean_folder),
            cmocka_unit_test(test_free_nothing),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
