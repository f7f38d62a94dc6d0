/* Any JSON as a conversation: {"messages": ..., "tools": ..., "thinking": ...}. It is refused with a
 * sentence, or the spans cover the prompt, which is UTF-8. */
#include "base/utf8.h"
#include "daemon/text/chat_template.h"

#include <stdlib.h>
#include <string.h>

static void render(const json_t *conversation) {
    static const struct chat_template template = {CHAT_TEMPLATE_QWEN35, "qwen3.5", true};
    const json_t *thinking = json_object_get(conversation, "thinking"),
                 *tools = json_object_get(conversation, "tools");
    struct chat_options options = {
            .enable_thinking = thinking ? json_is_true(thinking) : -1,
            .add_generation_prompt = !json_object_get(conversation, "no_prompt"),
            .tools = json_is_array(tools) ? tools : NULL,
    };
    struct chat_rendered got;
    struct error e = {0};
    size_t joined = 0;
    if (chat_template_render(&template, json_object_get(conversation, "messages"), &options, &got, &e) < 0) {
        if (e.text[0] == 0)
            abort();
        return;
    }
    for (size_t i = 0; i < got.n_spans; i++) {
        if (got.spans[i].text != got.text + joined)
            abort();
        joined += got.spans[i].bytes;
    }
    if (joined != got.bytes || !utf8_valid(got.text, got.bytes, NULL))
        abort();
    chat_rendered_done(&got);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    json_t *conversation = NULL, *again = NULL;
    struct error e = {0};
    if (chat_json_loads((const char *)data, bytes, false, "conversation", &conversation, &e) < 0) {
        if (e.text[0] == 0)
            abort();
        return 0;
    }
    render(conversation);
    /* what is printed reads as the same value */
    char *text = chat_json_dumps(conversation), *text_again = NULL;
    if (!text || chat_json_loads(text, strlen(text), false, "printed", &again, &e) < 0)
        abort();
    text_again = chat_json_dumps(again);
    if (!text_again || strcmp(text, text_again) != 0)
        abort();
    free(text);
    free(text_again);
    json_decref(again);
    json_decref(conversation);
    return 0;
}
