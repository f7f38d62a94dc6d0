/* masks.c - see masks.h. */
#include "daemon/engine/masks.h"

#include "base/mask.h"

#include <string.h>

uint32_t masks_most(const struct engine *g) {
    uint32_t bytes = mask_words(g->geometry.vocab_size) * (uint32_t)sizeof(uint32_t);
    uint32_t fit = bytes == 0 ? 0 : STEP_RECORD_MAX / 2 / bytes;
    return fit < MASKS_MAX ? fit : MASKS_MAX;
}

/* The i-th last of what was generated, followed by n_drafts drafts; false: there are fewer. */
static bool tail_id(
        const struct sequence *s, const uint32_t *drafts, uint32_t n_drafts, uint32_t i, uint32_t *ret) {
    uint32_t generated = s->n_tokens - s->n_prompt;
    if (i >= n_drafts + generated)
        return false;
    *ret = i < n_drafts ? drafts[n_drafts - 1 - i] : s->tokens[s->n_tokens - 1 - (i - n_drafts)];
    return true;
}

/* Whether the ids before a bad word's last are the tail. */
static bool is_near(const struct sequence *s, const uint32_t *drafts, uint32_t n_drafts, const uint32_t *ids,
        uint32_t n) {
    for (uint32_t i = 0; i + 1 < n; i++) {
        uint32_t id;
        if (!tail_id(s, drafts, n_drafts, i, &id) || id != ids[n - 2 - i])
            return false;
    }
    return true;
}

/* Takes the last ids of bad words that are near out of the mask; NULL: only looks. Whether there are any. */
static bool remove_last_ids(
        const struct sequence *s, const uint32_t *drafts, uint32_t n_drafts, uint32_t *mask) {
    bool any = false;
    for (uint32_t at = 0; at < s->n_bad_words; at += 1 + s->bad_words[at]) {
        const uint32_t n = s->bad_words[at], *ids = s->bad_words + at + 1;
        if (!is_near(s, drafts, n_drafts, ids, n))
            continue;
        any = true;
        if (mask != NULL)
            mask_remove(mask, ids[n - 1]);
    }
    return any;
}

uint32_t masks_needed(const struct sequence *s, const uint32_t *drafts, uint32_t n_drafts) {
    bool any = false;
    for (uint32_t i = 0; i <= n_drafts && s->n_bad_words > 0; i++)
        any |= remove_last_ids(s, drafts, i, NULL);
    return any ? 1 + n_drafts : s->mask != NULL;
}

/* All ids, where the request does not say which; not those that it bans by a bias, which an empty rest would bring
 * back. */
static void begin_mask(const struct sequence *s, uint32_t words, uint32_t *mask) {
    if (s->mask != NULL) {
        memcpy(mask, s->mask, words * sizeof(mask[0]));
        return;
    }
    memset(mask, 0xff, words * sizeof(mask[0]));
    for (uint32_t i = 0; i < s->n_bias; i++)
        if (s->bias[i] <= ENGINE_BIAS_BANNED)
            mask_remove(mask, s->bias_ids[i]);
}

void masks_write(struct engine *g, const struct sequence *s, const uint32_t *drafts, uint32_t n_masks,
        struct step_entry *t) {
    uint32_t words = mask_words(g->geometry.vocab_size);
    t->n_masks = n_masks;
    t->mask_words = n_masks > 0 ? words : 0;
    t->mask_at = STEP_NONE;
    for (uint32_t i = 0; i < n_masks; i++) {
        begin_mask(s, words, g->mask);
        remove_last_ids(s, drafts, i, g->mask);
        uint32_t at = step_blob(g->writer, g->mask, words * (uint32_t)sizeof(g->mask[0]));
        t->mask_at = i == 0 ? at : t->mask_at;
    }
}
