/* limits.h - every limit on what a client, a file or a flag can make us allocate, in one place.
 *
 * A number here is a promise: code that takes bytes from outside checks against it before it allocates, and
 * the refusal names the limit. Public limits are repeated in the comments of proto/shardd/v1. */
#pragma once

#include <assert.h>

#define MIB(n) ((n)*1024ull * 1024ull)

/* --- requests (daemon/) --- */
#define REQUEST_BYTES_MAX  (16u << 20) /* one gRPC message in; more is RESOURCE_EXHAUSTED by the transport */
#define METADATA_BYTES_MAX (32u << 10)
/* What the gRPC core may hold for all clients together: above all, messages that are not complete yet, 16 MiB each
 * and as many as there are streams. Beyond it the core reads less, then resets streams. */
#define CORE_BYTES_MAX  (512u << 20)
#define ARENA_BYTES_MAX (64u << 20) /* one request unpacked: the largest text or ids several times over */
/* Bytes of JSON in one request, tools and arguments together: parsed it takes up to fifty times as much. */
#define REQUEST_JSON_BYTES_MAX (1u << 20)
#define STREAMS_PER_CONNECTION 1024u
#define CONNECTIONS_MAX        4096u
#define MESSAGES_MAX           4096u /* chat messages in a request */
#define PARTS_MAX              256u  /* parts of one message */
#define TOOLS_MAX              256u
#define TOOL_CALLS_MAX         256u /* of one message */
#define JSON_DEPTH_MAX         64u  /* tools, tool-call arguments */
#define STOP_STRINGS_MAX       32u
#define STOP_STRING_BYTES_MAX  256u
#define STOP_IDS_MAX           64u
#define LOGIT_BIAS_MAX         1024u
#define BAD_WORDS_MAX          128u
#define BAD_WORD_BYTES_MAX     256u
#define BAD_WORD_IDS_MAX                                                                                     \
    4096u /* tokens of all bad words of a request, with a space before them and without */
#define TOP_LOGPROBS_MAX     20u
#define REQUEST_ID_BYTES_MAX 128u
#define CACHE_SALT_BYTES_MAX 128u
#define ANSWERS_MAX          16u /* of one request */
#define NEW_TOKENS_MAX       1048576u
#define RESTARTS_MAX         100u   /* upper bound of --max-restarts */
#define LIVE_REQUESTS_MAX    16384u /* running + waiting, upper bound of --max-queue */

/* --- engine --- */
#define SEQS_MAX           1024u /* upper bound of --max-num-seqs: slots of a worker, without dummy 0 */
#define STEP_ROWS_MAX      8192u /* upper bound of --max-num-batched-tokens */
#define DRAFT_MAX          15u   /* speculative rows a sequence may add to a step */
#define MASKS_MAX          64u   /* masks of the vocabulary that samples of a step may have, all together */
#define SCORES_MAX         64u   /* prompt rows of a step whose logprobs are asked for */
#define STREAM_RING_TOKENS 64u   /* tokens that may wait between engine and stream */
#define MESSAGE_ENDS_MAX   16u   /* of a chat, where its state may be kept */

/* --- model --- */
#define MODEL_LAYERS_MAX   256u
#define MODEL_DIM_MAX      1048576u /* any single dimension of a weight */
#define CONTEXT_MAX        1048576u /* tokens */
#define PAGE_TOKENS        64u      /* KV tokens per page */
#define GDN_BLOCK          16u      /* C: positions per GDN block */
#define RANKS_MAX          8u       /* tensor parallel; K has 8 leaves (docs/architecture.md) */
#define K_LEAVES           8u
#define VOCAB_SEGMENTS     64u
#define MODEL_STOP_IDS_MAX 16u  /* ids that end a text, in a model's files */
#define ATTENTION_LEAF     256u /* positions per attention leaf */

/* --- files --- */
#define SAFETENSORS_HEADER_MAX  (100u << 20)
#define SAFETENSORS_TENSORS_MAX 1000000u
#define SAFETENSORS_SHARDS_MAX  4096u
#define GGUF_TENSORS_MAX        1000000u
#define GGUF_VALUES_MAX         65536u      /* keys of the metadata */
#define GGUF_NAME_BYTES_MAX     127u        /* a tensor's name */
#define GGUF_PARTS_MAX          1024u       /* files of a split model */
#define CONFIG_BYTES_MAX        (16u << 20) /* config.json, generation_config.json, tokenizer_config.json, index */
#define QUANT_RULES_MAX         16384u      /* modules and patterns that a quantization_config names */
#define QUANT_REGEX_MAX         256u        /* ... those of them that are regular expressions */
#define QUANT_PATTERN_BYTES_MAX 1024u
#define TOKENIZER_BYTES_MAX     (256u << 20)
#define TOKENIZER_VOCAB_MAX     1048576u
#define TOKEN_BYTES_MAX         4096u /* one vocabulary entry */

static_assert(PAGE_TOKENS % GDN_BLOCK == 0, "a page boundary is always a GDN block boundary");
static_assert(ATTENTION_LEAF % PAGE_TOKENS == 0, "an attention leaf is whole pages");
