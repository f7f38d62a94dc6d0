/* dummy_form.h - how the linears of a model without weights (--load-format dummy) are quantised: as the
 * quantization_config of its config.json says, or as whoever measures wants it.
 *
 * Called by weights.c, once for each linear. What is made up has whole groups, BF16 scales and one zero point; a
 * checkpoint of that configuration may hold its scales in another type. */
#pragma once

#include "kernels/kernels.h"
#include "tp/checkpoint/quant_config.h"

struct dummy_form {
    const struct quant_config *config; /* of the model folder; NULL = it is not quantised */
    /* Win over it where they are not NULL: format, scale and group of the layers, and of the head (NULL: as the
     * layers). &dummy_dense = BF16. */
    const struct quant_matrix *layers, *head;
};
extern const struct quant_matrix dummy_dense;

/* What the linear of this name ("layers.3.mlp.gate_up", of linears.h) is made of: *ret and true, or false: BF16. Sizes
 * and readers of *ret are not set. -ENOTSUP, -EINVAL: what the configuration asks for cannot be made up. */
int dummy_form_of(const struct dummy_form *form, const char *linear, uint32_t columns,
        struct quant_matrix *ret, bool *ret_quantised, struct error *e);
