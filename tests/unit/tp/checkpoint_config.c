/* checkpoint_config.c - config.json: what is read, and what is refused with which sentence. */
#include "checkpoint_test.h"

#include "tp/synth/synth.h"

/* The published 27B configuration, without what a language model does not need. */
static const char NESTED[] =
        "{'architectures':['Qwen3_5ForConditionalGeneration'],'model_type':'qwen3_5',"
        "'tie_word_embeddings':false,'text_config':{'model_type':'qwen3_5_text','attention_bias':false,"
        "'attn_output_gate':true,'hidden_act':'silu','rms_norm_eps':1e-06,'vocab_size':248320,"
        "'hidden_size':5120,'intermediate_size':17408,'num_hidden_layers':64,'num_attention_heads':24,"
        "'num_key_value_heads':4,'head_dim':256,'linear_num_key_heads':16,'linear_num_value_heads':48,"
        "'linear_key_head_dim':128,'linear_value_head_dim':128,'linear_conv_kernel_dim':4,"
        "'max_position_embeddings':262144,'mtp_num_hidden_layers':1,'full_attention_interval':4,"
        "'eos_token_id':248044,'rope_parameters':{'rope_type':'default','rope_theta':10000000,"
        "'partial_rotary_factor':0.25,'mrope_section':[11,11,10]}},'vision_config':{'depth':27}}";

/* A text-only one that is as small as can be. */
static const char FLAT[] =
        "{'model_type':'qwen3_5_text','rms_norm_eps':1e-06,'vocab_size':512,'hidden_size':64,"
        "'intermediate_size':128,'num_hidden_layers':2,'num_attention_heads':8,'num_key_value_heads':2,"
        "'head_dim':32,'linear_num_key_heads':8,'linear_num_value_heads':16,'linear_key_head_dim':16,"
        "'linear_value_head_dim':16,'linear_conv_kernel_dim':4,'max_position_embeddings':4096,"
        "'rope_theta':10000.0,'partial_rotary_factor':0.5,'layer_types':['full_attention',"
        "'linear_attention']}";

/* The text with quotes as JSON has them; malloc'ed. */
static char *quoted(const char *text) {
    char *json = strdup(text);
    assert_non_null(json);
    for (char *c = json; *c; c++)
        if (*c == '\'')
            *c = '"';
    return json;
}

static int parse(const char *text, struct model_config *m, struct error *e) {
    char *json = quoted(text);
    int r = model_config_parse(json, strlen(json), "config.json", m, e);
    free(json);
    return r;
}

static struct model_config parsed(const char *text) {
    struct model_config m = {0};
    struct error e = {0};
    if (parse(text, &m, &e) < 0)
        fail_msg("%s", e.text);
    return m;
}

static void refused_in(const char *base, const char *from, const char *to, int code, const char *sentence) {
    struct model_config m = {.hidden_size = 77};
    struct error e = {0};
    char *text = test_changed(base, from, to);
    int r = parse(text, &m, &e);
    free(text);
    if (r != code || strcmp(e.text, sentence) != 0)
        fail_msg("%s -> %s\n  gave %d: %s\n  expected %d: %s", from, to, r, e.text, code, sentence);
    assert_int_equal(m.hidden_size, 77); /* set only on success */
}

static void refused(const char *from, const char *to, int code, const char *sentence) {
    refused_in(FLAT, from, to, code, sentence);
}

static void test_nested(void **state) {
    (void)state;
    struct model_config m = parsed(NESTED);
    assert_int_equal(m.hidden_size, 5120);
    assert_int_equal(m.n_layers, 64);
    assert_int_equal(m.rotary_dim, 64);
    assert_int_equal(m.gdn_v_heads, 48);
    assert_int_equal(m.max_position_embeddings, 262144);
    assert_int_equal(m.mtp_layers, 1);
    assert_int_equal(m.n_eos_ids, 1);
    assert_int_equal(m.eos_ids[0], 248044);
    /* No layer_types: every fourth is attention. */
    for (uint32_t i = 0; i < 64; i++)
        assert_int_equal(m.is_attention[i], i % 4 == 3);
    /* 27.781 billion less vision (0.461) and MTP (0.425). */
    assert_int_equal(model_config_parameters(&m) / 1000000, 26895);
}

static void test_flat(void **state) {
    (void)state;
    struct model_config m = parsed(FLAT);
    assert_true(m.is_attention[0]);
    assert_false(m.is_attention[1]);
    assert_int_equal(m.rotary_dim, 16);
    assert_true(m.rope_theta == 10000.0);
    assert_int_equal(m.mtp_layers, 0);
    assert_int_equal(m.n_eos_ids, 0);
    assert_false(m.tie_word_embeddings);
}

static void test_choices(void **state) {
    (void)state;
    static const struct {
        const char *from, *to;
    } fine[] = {
            {"'rms_norm_eps'", "'quantization_config':null,'rms_norm_eps'"},
            {"'rms_norm_eps'", "'output_gate_type':'swish','rms_norm_eps'"},
            {"'rms_norm_eps'", "'output_gate_type':'silu','rms_norm_eps'"},
            {"'rms_norm_eps'", "'rope_scaling':null,'rms_norm_eps'"},
            {"'rope_theta':10000.0", "'rope_parameters':{'type':'default','rope_theta':10000}"},
            {"'qwen3_5_text'", "'qwen3_5'"},
    };
    for (size_t i = 0; i < sizeof(fine) / sizeof(*fine); i++) {
        char *text = test_changed(FLAT, fine[i].from, fine[i].to);
        parsed(text);
        free(text);
    }
    char *text = test_changed(FLAT, ",'partial_rotary_factor':0.5", "");
    assert_int_equal(parsed(text).rotary_dim, 8); /* a quarter, as the family has it */
    free(text);
    text = test_changed(FLAT, "'max_position_embeddings':4096", "'max_position_embeddings':4000000000");
    assert_int_equal(parsed(text).max_position_embeddings, CONTEXT_MAX);
    free(text);
    /* Tied: the outer value counts, and is false where there is none, whatever the inner one is. */
    static const struct {
        const char *outer, *inner;
        bool tied;
    } ties[] = {{"'tie_word_embeddings':true,", "'tie_word_embeddings':false,", true},
            {"'tie_word_embeddings':true,", "", true},
            {"'tie_word_embeddings':false,", "'tie_word_embeddings':true,", false},
            {"", "'tie_word_embeddings':true,", false},
            {"'tie_word_embeddings':null,", "'tie_word_embeddings':true,", false}, {"", "", false}};
    for (size_t i = 0; i < sizeof(ties) / sizeof(*ties); i++) {
        char to[128];
        snprintf(to, sizeof(to), "%s'text_config':{%s", ties[i].outer, ties[i].inner);
        text = test_changed(NESTED, "'tie_word_embeddings':false,'text_config':{", to);
        assert_int_equal(parsed(text).tie_word_embeddings, ties[i].tied);
        free(text);
    }
    text = test_changed(FLAT, "'rms", "'tie_word_embeddings':true,'rms");
    assert_true(parsed(text).tie_word_embeddings);
    free(text);
}

/* Python writes numbers that JSON has not; a field that is not asked for may have one. */
static void test_literals_of_python(void **state) {
    (void)state;
    static const char *const unread[] = {"'initializer_range':NaN,", "'x':{'y':[Infinity,-Infinity]},",
            "'quantization_config':null,'router':-Infinity,"};
    for (size_t i = 0; i < sizeof(unread) / sizeof(*unread); i++) {
        char to[128], *text;
        snprintf(to, sizeof(to), "%s'rms_norm_eps'", unread[i]);
        text = test_changed(FLAT, "'rms_norm_eps'", to);
        assert_int_equal(parsed(text).hidden_size, 64);
        free(text);
        text = test_changed(NESTED, "'rms_norm_eps'", to);
        assert_int_equal(parsed(text).hidden_size, 5120);
        free(text);
    }
}

static void test_broken_json(void **state) {
    (void)state;
    struct model_config m;
    struct error e = {0};
    assert_int_equal(parse("{", &m, &e), -EBADMSG);
    assert_string_equal(e.text, "config.json: line 1 column 1: string or '}' expected near end of file");
    assert_int_equal(parse("", &m, &e), -EBADMSG);
    assert_int_equal(parse("[1]", &m, &e), -EBADMSG);
    assert_string_equal(e.text, "config.json: expected an object, found a list");
    assert_int_equal(parse("{'a':1,'a':2}", &m, &e), -EBADMSG);
    assert_non_null(strstr(e.text, "duplicate object key"));
    assert_int_equal(parse("{'a':'\xFF'}", &m, &e), -EBADMSG);
    assert_int_equal(model_config_parse("{}", (size_t)CONFIG_BYTES_MAX + 1, "config.json", &m, &e), -EFBIG);
}

static void test_model_types(void **state) {
    (void)state;
    refused("'model_type':'qwen3_5_text',", "", -EINVAL, "config.json: model_type is missing");
    refused("'qwen3_5_text'", "'llama'", -ENOTSUP,
            "config.json: model_type 'llama' is not supported: 'qwen3_5' and 'qwen3_5_text' are");
    refused("'qwen3_5_text'", "'qwen3_5_moe_text'", -ENOTSUP,
            "config.json: model_type 'qwen3_5_moe_text': mixture of experts is not supported yet");
    refused("'qwen3_5_text'", "'qwen3_5_text','num_experts':256", -ENOTSUP,
            "config.json: model_type 'qwen3_5_text': mixture of experts is not supported yet");
    refused_in(NESTED, "'model_type':'qwen3_5',", "'model_type':'qwen3_5_moe',", -ENOTSUP,
            "config.json: model_type 'qwen3_5_moe': mixture of experts is not supported yet");
    refused_in(NESTED, "'qwen3_5_text'", "'qwen2'", -ENOTSUP,
            "config.json: text_config.model_type 'qwen2' is not supported: 'qwen3_5' and 'qwen3_5_text' are");
    refused_in(NESTED, "'text_config':{", "'text_config':3,'x':{", -EINVAL,
            "config.json: text_config: expected an object, found a whole number");
    refused("'qwen3_5_text'", "5", -EINVAL,
            "config.json: model_type: expected a string, found a whole number");
}

static void test_unsupported(void **state) {
    (void)state;
    refused("'rms", "'attention_bias':true,'rms", -ENOTSUP,
            "config.json: attention_bias is true, which is not supported: only false is");
    refused("'rms", "'attention_bias':1,'rms", -EINVAL,
            "config.json: attention_bias: expected true or false, found a whole number");
    refused("'rms", "'attn_output_gate':false,'rms", -ENOTSUP,
            "config.json: attn_output_gate is false, which is not supported: only true is");
    refused("'rms", "'mtp_use_dedicated_embeddings':true,'rms", -ENOTSUP,
            "config.json: mtp_use_dedicated_embeddings is true, which is not supported: only false is");
    refused("'rms", "'mtp_num_hidden_layers':2,'rms", -ENOTSUP,
            "config.json: mtp_num_hidden_layers must be 0 or 1");
    refused("'rms", "'mtp_num_hidden_layers':'1','rms", -ENOTSUP,
            "config.json: mtp_num_hidden_layers must be 0 or 1");
    refused_in(NESTED, "'silu'", "'gelu'", -ENOTSUP,
            "config.json: text_config.hidden_act 'gelu' is not supported: only 'silu' is");
    refused("'rms", "'output_gate_type':'sigmoid','rms", -ENOTSUP,
            "config.json: output_gate_type 'sigmoid' is not supported: only 'swish' or 'silu' is");
    refused_in(NESTED, "'rope_type':'default'", "'rope_type':'yarn','factor':4.0", -ENOTSUP,
            "config.json: rope_parameters.rope_type 'yarn' is not supported: only 'default' is");
    refused("'rms", "'rope_scaling':{'type':'linear','factor':2},'rms", -ENOTSUP,
            "config.json: rope_scaling.type 'linear' is not supported: only 'default' or 'mrope' is");
}

static void test_missing_fields(void **state) {
    (void)state;
    static const struct {
        const char *piece, *name;
    } fields[] = {
            {"'rms_norm_eps':1e-06,", "rms_norm_eps"},
            {"'vocab_size':512,", "vocab_size"},
            {"'hidden_size':64,", "hidden_size"},
            {"'intermediate_size':128,", "intermediate_size"},
            {"'num_hidden_layers':2,", "num_hidden_layers"},
            {"'num_attention_heads':8,", "num_attention_heads"},
            {"'num_key_value_heads':2,", "num_key_value_heads"},
            {"'head_dim':32,", "head_dim"},
            {"'linear_num_key_heads':8,", "linear_num_key_heads"},
            {"'linear_num_value_heads':16,", "linear_num_value_heads"},
            {"'linear_key_head_dim':16,", "linear_key_head_dim"},
            {"'linear_value_head_dim':16,", "linear_value_head_dim"},
            {"'linear_conv_kernel_dim':4,", "linear_conv_kernel_dim"},
            {"'max_position_embeddings':4096,", "max_position_embeddings"},
            {"'rope_theta':10000.0,", "rope_theta"},
    };
    for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
        char sentence[128];
        snprintf(sentence, sizeof(sentence), "config.json: %s is missing", fields[i].name);
        refused(fields[i].piece, "", -EINVAL, sentence);
    }
    refused(",'layer_types':['full_attention','linear_attention']", "", -EINVAL,
            "config.json: has neither layer_types nor full_attention_interval");
    refused_in(NESTED, "'head_dim':256,", "", -EINVAL, "config.json: text_config.head_dim is missing");
    refused("'head_dim':32", "'head_dim':null", -EINVAL, "config.json: head_dim is missing");
}

static void test_values(void **state) {
    (void)state;
    refused("'hidden_size':64", "'hidden_size':'64'", -EINVAL,
            "config.json: hidden_size: expected a whole number, found a string");
    refused("'hidden_size':64", "'hidden_size':64.0", -EINVAL,
            "config.json: hidden_size: expected a whole number, found a number with a fraction");
    refused("'head_dim':32", "'head_dim':0", -EINVAL, "config.json: head_dim is 0, it must be 1 to 1048576");
    refused("'num_key_value_heads':2", "'num_key_value_heads':-1", -EINVAL,
            "config.json: num_key_value_heads is -1, it must be 1 to 1048576");
    refused("'hidden_size':64", "'hidden_size':1048577", -EINVAL,
            "config.json: hidden_size is 1048577, it must be 1 to 1048576");
    refused("'hidden_size':64", "'hidden_size':4294967360", -EINVAL,
            "config.json: hidden_size is 4294967360, it must be 1 to 1048576");
    refused("'num_hidden_layers':2", "'num_hidden_layers':257", -EINVAL,
            "config.json: num_hidden_layers is 257, it must be 1 to 256");
    static const char *const taps[] = {"9", "1", "0", "-1"};
    for (size_t i = 0; i < sizeof(taps) / sizeof(*taps); i++) {
        char to[64], sentence[96];
        snprintf(to, sizeof(to), "'linear_conv_kernel_dim':%s", taps[i]);
        snprintf(sentence, sizeof(sentence), "config.json: linear_conv_kernel_dim is %s, it must be 2 to 8",
                taps[i]);
        refused("'linear_conv_kernel_dim':4", to, -EINVAL, sentence);
    }
    refused("1e-06", "0", -EINVAL, "config.json: rms_norm_eps is 0, it must be a float above 0 and below 1");
    /* Found by the fuzzer: a double above 0 that is 0 as a float. */
    refused("1e-06", "1e-46", -EINVAL,
            "config.json: rms_norm_eps is 1e-46, it must be a float above 0 and below 1");
    refused("1e-06", "NaN", -EINVAL, "config.json: rms_norm_eps: expected a number, found a string");
    refused("1e-06", "'small'", -EINVAL, "config.json: rms_norm_eps: expected a number, found a string");
    refused("10000.0", "1", -EINVAL, "config.json: rope_theta is 1, it must be above 1");
    refused("'partial_rotary_factor':0.5", "'partial_rotary_factor':1.5", -EINVAL,
            "config.json: partial_rotary_factor is 1.5, it must be above 0 and at most 1");
    refused("'partial_rotary_factor':0.5", "'partial_rotary_factor':0.1", -EINVAL,
            "config.json: partial_rotary_factor 0.1 of head_dim 32 gives 3 rotary dimensions: it must be "
            "an even number");
    refused("'rope_theta':10000.0", "'rope_parameters':[]", -EINVAL,
            "config.json: rope_parameters: expected an object, found a list");
}

static void test_relations(void **state) {
    (void)state;
    refused("'num_attention_heads':8", "'num_attention_heads':7", -EINVAL,
            "config.json: num_attention_heads 7 is not a multiple of num_key_value_heads 2");
    refused("'linear_num_value_heads':16", "'linear_num_value_heads':12", -EINVAL,
            "config.json: linear_num_value_heads 12 is not a multiple of linear_num_key_heads 8");
    refused("'num_attention_heads':8", "'num_attention_heads':1048576", -E2BIG,
            "config.json: num_attention_heads times head_dim: no weight may have more than 1048576 rows");
    refused("'linear_num_value_heads':16", "'linear_num_value_heads':1048576", -E2BIG,
            "config.json: linear_num_value_heads times linear_value_head_dim: no weight may have more than "
            "1048576 rows");
}

static void test_layer_types(void **state) {
    (void)state;
    refused("['full_attention','linear_attention']", "['full_attention']", -EINVAL,
            "config.json: layer_types has 1 entries, num_hidden_layers is 2");
    refused("['full_attention','linear_attention']", "['full_attention','sliding_attention']", -ENOTSUP,
            "config.json: layer_types[1] is 'sliding_attention': only 'linear_attention' and "
            "'full_attention' are supported");
    refused("['full_attention','linear_attention']", "['full_attention',4]", -ENOTSUP,
            "config.json: layer_types[1] is 'a whole number': only 'linear_attention' and 'full_attention' "
            "are supported");
    refused("['full_attention','linear_attention']", "'full_attention'", -EINVAL,
            "config.json: layer_types: expected a list, found a string");
    refused("'layer_types':['full_attention','linear_attention']", "'full_attention_interval':0", -EINVAL,
            "config.json: full_attention_interval is 0, it must be 1 to 256");
}

static void test_eos_ids(void **state) {
    (void)state;
    char *text = test_changed(FLAT, "'rms", "'eos_token_id':[3,5,3],'rms");
    struct model_config m = parsed(text);
    free(text);
    assert_int_equal(m.n_eos_ids, 2);
    assert_int_equal(m.eos_ids[0], 3);
    assert_int_equal(m.eos_ids[1], 5);
    /* One, some or none, in both places, each once; those of text_config first. */
    static const struct {
        const char *outer, *inner;
        uint32_t n, ids[3];
    } eos[] = {{"'eos_token_id':[7,248044],", "'eos_token_id':248044,", 2, {248044, 7}},
            {"'eos_token_id':7,", "'eos_token_id':[9,8],", 3, {9, 8, 7}},
            {"'eos_token_id':null,", "'eos_token_id':[],", 0, {0}},
            {"'eos_token_id':[],", "'eos_token_id':null,", 0, {0}}, {"'eos_token_id':[7,9],", "", 2, {7, 9}},
            {"", "'eos_token_id':[7],", 1, {7}}};
    for (size_t i = 0; i < sizeof(eos) / sizeof(*eos); i++) {
        char *inner = test_changed(NESTED, "'eos_token_id':248044,", eos[i].inner), to[128];
        snprintf(to, sizeof(to), "%s'text_config'", eos[i].outer);
        text = test_changed(inner, "'text_config'", to);
        m = parsed(text);
        assert_int_equal(m.n_eos_ids, eos[i].n);
        assert_memory_equal(m.eos_ids, eos[i].ids, eos[i].n * sizeof(m.eos_ids[0]));
        free(inner);
        free(text);
    }
    refused("'rms", "'eos_token_id':[null],'rms", -EINVAL,
            "config.json: eos_token_id: expected an id or a list of ids, found null");
    refused("'rms", "'eos_token_id':512,'rms", -EINVAL,
            "config.json: eos_token_id 512 is not an id of a vocabulary of 512");
    refused("'rms", "'eos_token_id':[-1],'rms", -EINVAL,
            "config.json: eos_token_id -1 is not an id of a vocabulary of 512");
    refused("'rms", "'eos_token_id':'</s>','rms", -EINVAL,
            "config.json: eos_token_id: expected an id or a list of ids, found a string");
    refused("'rms", "'eos_token_id':[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17],'rms", -E2BIG,
            "config.json: eos_token_id: more than 16 different ids end a text");
}

/* --- folders --- */

static void test_load(void **state) {
    (void)state;
    char dir[] = "/tmp/shardd-config-XXXXXX", path[PATH_MAX], sentence[PATH_MAX + 64];
    struct model_config m;
    struct error e = {0};
    assert_non_null(mkdtemp(dir));
    assert_int_equal(model_config_load(dir, &m, &e), -ENOENT);
    snprintf(sentence, sizeof(sentence), "%s/config.json: cannot open: No such file or directory", dir);
    assert_string_equal(e.text, sentence);

    char *json = quoted(FLAT);
    snprintf(path, sizeof(path), "%s/config.json", dir);
    assert_int_equal(file_replace(path, json, strlen(json), 0644, &e), 0);
    free(json);
    assert_int_equal(model_config_load(dir, &m, &e), 0);
    assert_int_equal(m.n_eos_ids, 0);

    char generation[PATH_MAX];
    snprintf(generation, sizeof(generation), "%s/generation_config.json", dir);
    assert_int_equal(file_replace(generation, "{\"eos_token_id\":[9,8]}", 22, 0644, &e), 0);
    assert_int_equal(model_config_load(dir, &m, &e), 0);
    assert_int_equal(m.n_eos_ids, 2);
    assert_int_equal(m.eos_ids[0], 9);
    assert_int_equal(file_replace(generation, "{\"eos_token_id\":600}", 20, 0644, &e), 0);
    assert_int_equal(model_config_load(dir, &m, &e), -EINVAL);
    assert_non_null(strstr(e.text, "generation_config.json: eos_token_id 600 is not an id"));
    assert_int_equal(file_replace(generation, "{", 1, 0644, &e), 0);
    assert_int_equal(model_config_load(dir, &m, &e), -EBADMSG);
    assert_non_null(strstr(e.text, "generation_config.json: line 1"));
    unlink(generation);
    unlink(path);
    rmdir(dir);
}

/* --- tensor parallel --- */

static void test_tp_of_the_published_sizes(void **state) {
    (void)state;
    static const char *const names[] = {"0.8b", "2b", "4b", "9b", "27b", "tiny", "small"};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        struct model_config m;
        assert_int_equal(synth_config(names[i], &m), 0);
        for (uint32_t tp = 1; tp <= 8; tp *= 2)
            assert_int_equal(model_config_check_tp(&m, tp, NULL), 0);
    }
}

static void tp_refused(const struct model_config *m, uint32_t tp, const char *sentence) {
    struct error e = {0};
    /* The setting's fault, or the model's: only the first is a mistake of who typed it. */
    assert_int_equal(model_config_check_tp(m, tp, &e), strstr(sentence, "sizes that work") ? -EDOM : -EINVAL);
    assert_string_equal(e.text, sentence);
}

static void test_tp_refusals(void **state) {
    (void)state;
    struct model_config m, base;
    assert_int_equal(synth_config("27b", &base), 0);
    tp_refused(&base, 0,
            "--tensor-parallel-size 0: must be 1, 2, 4 or 8; for this model, sizes that work: 1, 2, 4, 8");
    tp_refused(&base, 3,
            "--tensor-parallel-size 3: must be 1, 2, 4 or 8; for this model, sizes that work: 1, 2, 4, 8");
    tp_refused(&base, 16,
            "--tensor-parallel-size 16: must be 1, 2, 4 or 8; for this model, sizes that work: 1, 2, 4, 8");
    m = base;
    m.q_heads = 20;
    tp_refused(&m, 8,
            "--tensor-parallel-size 8: num_attention_heads is 20, which 8 does not divide; sizes that "
            "work: 1, 2, 4");
    m = base;
    m.gdn_k_heads = 6;
    tp_refused(&m, 4,
            "--tensor-parallel-size 4: linear_num_key_heads is 6, which 4 does not divide; sizes that "
            "work: 1, 2");
    m = base;
    m.gdn_v_heads = 18;
    m.gdn_k_heads = 2;
    tp_refused(&m, 4,
            "--tensor-parallel-size 4: linear_num_key_heads is 2, which 4 does not divide; sizes that "
            "work: 1, 2");
    m = base;
    m.kv_heads = 6;
    tp_refused(&m, 4,
            "--tensor-parallel-size 4: num_key_value_heads is 6, which 4 does not divide; sizes that work: "
            "1, 2");
    m = base;
    m.intermediate_size = 17404;
    tp_refused(&m, 4,
            "intermediate_size of this model is 17404, which 8 does not divide: such a model is not served, at no "
            "--tensor-parallel-size");
    m = base;
    m.hidden_size = 5124;
    tp_refused(&m, 1,
            "hidden_size of this model is 5124, which 8 does not divide: such a model is not served, at no "
            "--tensor-parallel-size");
    tp_refused(&m, 3,
            "hidden_size of this model is 5124, which 8 does not divide: such a model is not served, at no "
            "--tensor-parallel-size");
    m = base;
    m.vocab_size = 248077; /* any will do */
    assert_int_equal(model_config_check_tp(&m, 8, NULL), 0);
    m = base;
    m.q_heads = 3;
    m.kv_heads = 3;
    m.head_dim = 20;
    tp_refused(&m, 1,
            "num_attention_heads * head_dim of this model is 60, which 8 does not divide: such a model is not "
            "served, at no --tensor-parallel-size");
    m = base;
    m.gdn_v_heads = m.gdn_k_heads = 1;
    m.gdn_v_dim = 12;
    tp_refused(&m, 1,
            "linear_num_value_heads * linear_value_head_dim of this model is 12, which 8 does not divide: such a "
            "model is not served, at no --tensor-parallel-size");
}

/* KV heads are shared where there are more ranks than heads. */
static void test_tp_with_shared_kv_heads(void **state) {
    (void)state;
    struct model_config m;
    assert_int_equal(synth_config("0.8b", &m), 0);
    assert_int_equal(m.kv_heads, 2);
    assert_int_equal(model_config_check_tp(&m, 8, NULL), 0);
    m.kv_heads = 1;
    assert_int_equal(model_config_check_tp(&m, 8, NULL), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
            cmocka_unit_test(test_nested),
            cmocka_unit_test(test_flat),
            cmocka_unit_test(test_choices),
            cmocka_unit_test(test_literals_of_python),
            cmocka_unit_test(test_broken_json),
            cmocka_unit_test(test_model_types),
            cmocka_unit_test(test_unsupported),
            cmocka_unit_test(test_missing_fields),
            cmocka_unit_test(test_values),
            cmocka_unit_test(test_relations),
            cmocka_unit_test(test_layer_types),
            cmocka_unit_test(test_eos_ids),
            cmocka_unit_test(test_load),
            cmocka_unit_test(test_tp_of_the_published_sizes),
            cmocka_unit_test(test_tp_refusals),
            cmocka_unit_test(test_tp_with_shared_kv_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
