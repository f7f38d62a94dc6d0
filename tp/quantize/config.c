/* config.c - config.json of a quantised model: the source's text with a quantization_config put in.
 *
 * Called by quantize.c. The text is changed where it must be and nowhere else, so that numbers and order stay as their
 * author wrote them. */
#include "tp/quantize/parts.h"

#include "base/file.h"
#include "base/json_pull.h"
#include "base/limits.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char TIE[] = "\"tie_word_embeddings\"";

/* Is it one JSON object, not quantised yet? */
static int check_config(const char *text, size_t bytes, const char *path, struct error *e) {
    struct json_pull p;
    json_pull_init(&p, text, bytes, path);
    int r = json_pull_expect(&p, PULL_OBJECT_BEGIN, e);
    while (r >= 0 && (r = json_pull_next(&p, e)) == PULL_KEY) {
        if (json_pull_is(&p, "quantization_config") || json_pull_is(&p, "compression_config"))
            r = error_set(e, -EINVAL, "%s: this model is quantised already: start from the original", path);
        else
            r = json_pull_skip(&p, e);
    }
    if (r >= 0)
        r = json_pull_expect(&p, PULL_DOCUMENT_END, e);
    json_pull_done(&p);
    return r < 0 ? r : 0;
}

static void print_group(const struct quantize_config *c, struct quantize_text *t, uint32_t number,
        uint32_t bits, const char *target) {
    quantize_print(t,
            "%s\n      \"group_%u\": {\n"
            "        \"format\": \"pack-quantized\",\n"
            "        \"input_activations\": null,\n"
            "        \"output_activations\": null,\n"
            "        \"targets\": [\"%s\"],\n"
            "        \"weights\": {\n"
            "          \"actorder\": null,\n"
            "          \"block_structure\": null,\n"
            "          \"dynamic\": false,\n"
            "          \"group_size\": %u,\n"
            "          \"num_bits\": %u,\n"
            "          \"observer\": \"mse\",\n"
            "          \"observer_kwargs\": {},\n"
            "          \"strategy\": \"group\",\n"
            "          \"symmetric\": %s,\n"
            "          \"type\": \"int\"\n"
            "        }\n"
            "      }",
            number ? "," : "", number, target, c->options->group, bits,
            c->options->asymmetric ? "false" : "true");
}

/* Names and patterns decide before "Linear" does, in transformers and in vLLM. */
static void print_quantization(const struct quantize_config *c, struct quantize_text *t) {
    const struct quantize_options *o = c->options;
    uint32_t n = 0;
    quantize_print(t, "\n  \"quantization_config\": {\n    \"config_groups\": {");
    print_group(c, t, n++, o->weight_bits, "Linear");
    if (c->head)
        print_group(c, t, n++, o->head_bits, "re:.*lm_head$");
    if (c->mtp)
        print_group(c, t, n++, o->mtp_bits, "re:.*mtp\\\\..*");
    quantize_print(t,
            "\n    },\n    \"format\": \"pack-quantized\",\n    \"global_compression_ratio\": null,\n"
            "    \"ignore\": [");
    for (uint32_t i = 0; i < c->n_ignored; i++)
        quantize_print(t, "%s\n      \"%s\"", i ? "," : "", c->ignored[i]);
    quantize_print(t,
            "\n    ],\n    \"kv_cache_scheme\": null,\n    \"quant_method\": \"compressed-tensors\",\n"
            "    \"quantization_status\": \"compressed\"\n  },");
}

/* The text with every `"tie_word_embeddings": true` made false. A key's quotes cannot stand inside a string, where
 * they would be escaped. Returns how often the key was there. */
static unsigned print_untied(struct quantize_text *t, const char *text) {
    unsigned found = 0;
    for (const char *at; (at = strstr(text, TIE)); found++) {
        at += sizeof(TIE) - 1;
        at += strspn(at, " \t\r\n:");
        quantize_print(t, "%.*s", (int)(at - text), text);
        if (strncmp(at, "true", 4) == 0) {
            quantize_print(t, "false");
            at += 4;
        }
        text = at;
    }
    quantize_print(t, "%s", text);
    return found;
}

int quantize_config_write(
        const char *source, const struct quantize_config *c, struct quantize_text *ret, struct error *e) {
    char path[PATH_MAX], *text = NULL;
    size_t bytes = 0;
    struct quantize_text t = {0}, rest = {0};
    int r = file_path(source, "config.json", path, e);
    if (r == 0)
        r = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (r == 0)
        r = check_config(text, bytes, path, e);
    if (r < 0)
        goto done;
    const char *inside = strchr(text, '{') + 1;
    quantize_print(&t, "%.*s", (int)(inside - text), text);
    print_quantization(c, &t);
    if (c->tied && c->head) {
        if (print_untied(&rest, inside) == 0)
            quantize_print(&t, "\n  \"tie_word_embeddings\": false,");
    } else {
        quantize_print(&rest, "%s", inside);
    }
    quantize_print(&t, "%s", rest.data ? rest.data : "");
    if (t.failed || rest.failed) {
        r = error_set(e, -ENOMEM, "%s: out of memory", path);
        goto done;
    }
    *ret = t;
    t.data = NULL;
done:
    free(rest.data);
    free(t.data);
    free(text);
    return r;
}
