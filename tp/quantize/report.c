/* report.c - what quantising cost, as a table and as JSON. Called by `shardd quantize` when it is done. */
#include "tp/quantize/parts.h"

#include "base/sizes.h"

#include <stdlib.h>

void quantize_report_done(struct quantize_report *r) {
    free(r->matrices);
    free(r->layer_errors);
    *r = (struct quantize_report){0};
}

void quantize_report_print(const struct quantize_report *r, const struct quantize_options *o, FILE *to) {
    bool weighted = r->calibration_sequences > 0;
    fprintf(to, "%-56s %4s %15s %9s", "matrix", "bits", "shape", "error");
    fprintf(to, weighted ? " %9s  %s\n" : "\n", "weighted", "feedback");
    for (uint32_t i = 0; i < r->n_matrices; i++) {
        const struct quantize_matrix_report *m = &r->matrices[i];
        char shape[32];
        snprintf(shape, sizeof(shape), "%ux%u", m->rows, m->columns);
        fprintf(to, "%-56s %4u %15s %8.3f%%", m->name, m->bits, shape, 100 * m->error);
        if (weighted)
            fprintf(to, " %8.3f%%  %s", 100 * m->weighted_error, m->feedback ? "yes" : "no");
        fprintf(to, "\n");
    }
    for (uint32_t i = 0; i < r->n_layers; i++)
        fprintf(to, "after layer %-3u  the residual stream differs by %.3f%%\n", i, 100 * r->layer_errors[i]);
    if (r->evaluation_tokens) {
        fprintf(to,
                "evaluation: %u sequences, %u tokens: KL %.5f (largest %.3f), same likeliest token %.2f%%,\n"
                "  loss %.4f, of the original %.4f\n",
                r->evaluation_sequences, r->evaluation_tokens, r->kl, r->kl_max, 100 * r->top_1, r->nll,
                r->original_nll);
        if (r->has_mtp)
            fprintf(to, "  MTP: KL %.5f, same likeliest token %.2f%%\n", r->mtp_kl, 100 * r->mtp_top_1);
    }
    fprintf(to, "%s: %s of %s in %u file%s, %.1f s (%s/min)\n", o->target, SIZE_TEXT(r->target_bytes),
            SIZE_TEXT(r->source_bytes), r->files, r->files == 1 ? "" : "s", r->seconds,
            SIZE_TEXT((uint64_t)((double)r->source_bytes / (r->seconds + 1e-9) * 60)));
}

/* Module names were checked: nothing in them needs an escape. */
void quantize_report_print_json(const struct quantize_report *r, const struct quantize_options *o, FILE *to) {
    fprintf(to,
            "{\"bits\":%u,\"head_bits\":%u,\"mtp_bits\":%u,\"group_size\":%u,\"symmetric\":%s,\n"
            " \"source_bytes\":%llu,\"target_bytes\":%llu,\"seconds\":%.3f,\n"
            " \"calibration_sequences\":%u,\"calibration_tokens\":%u,\n \"matrices\":[",
            o->weight_bits, o->head_bits, o->mtp_bits, o->group, o->asymmetric ? "false" : "true",
            (unsigned long long)r->source_bytes, (unsigned long long)r->target_bytes, r->seconds,
            r->calibration_sequences, r->calibration_tokens);
    for (uint32_t i = 0; i < r->n_matrices; i++) {
        const struct quantize_matrix_report *m = &r->matrices[i];
        fprintf(to, "%s\n  {\"name\":\"%s\",\"rows\":%u,\"columns\":%u,\"bits\":%u,\"error\":%.6g",
                i ? "," : "", m->name, m->rows, m->columns, m->bits, m->error);
        if (r->calibration_sequences)
            fprintf(to, ",\"weighted_error\":%.6g,\"feedback\":%s", m->weighted_error,
                    m->feedback ? "true" : "false");
        fprintf(to, "}");
    }
    fprintf(to, "],\n \"layer_errors\":[");
    for (uint32_t i = 0; i < r->n_layers; i++)
        fprintf(to, "%s%.6g", i ? "," : "", r->layer_errors[i]);
    fprintf(to, "]");
    if (r->evaluation_tokens)
        fprintf(to,
                ",\n \"evaluation_sequences\":%u,\"evaluation_tokens\":%u,\"kl\":%.6g,\"kl_max\":%.6g,"
                "\"top_1\":%.6g,\"nll\":%.6g,\"original_nll\":%.6g",
                r->evaluation_sequences, r->evaluation_tokens, r->kl, r->kl_max, r->top_1, r->nll,
                r->original_nll);
    if (r->evaluation_tokens && r->has_mtp)
        fprintf(to, ",\"mtp_kl\":%.6g,\"mtp_top_1\":%.6g", r->mtp_kl, r->mtp_top_1);
    fprintf(to, "}\n");
}
