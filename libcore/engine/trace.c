#include "libcore/engine/trace.h"

#include <inttypes.h>

void trace_step(FILE *file, const struct step_record *r, uint64_t end_ns)
{
    if (!file)
        return;
    fprintf(file,
            "{\"step\":%" PRIu64 ",\"rows\":%u,\"decode\":%u,\"prefill\":%u,\"sequences\":%u,"
            "\"adapters\":{",
            r->number, r->n_rows, r->n_decode_rows, r->n_prefill_rows, r->n_sequences);
    for (uint32_t i = 0; i < r->n_groups; i++)
        fprintf(file, "%s\"%s\":%u", i ? "," : "", r->groups[i].content_id, r->groups[i].n_rows);
    fprintf(file, "},\"preemptions\":%" PRIu64 ",\"kv_pages\":%u,\"ns\":%" PRIu64 "}\n",
            r->n_preemptions, r->n_kv_pages, end_ns - r->begin_ns);
}
