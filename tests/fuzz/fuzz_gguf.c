/* Any bytes give a handle whose tensors lie within the file, or an error with words. */
#include <stdint.h>
#include <stdlib.h>

#include "libcore/format/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *g;
    struct err err = {0};
    int rc = gguf_open_memory(&g, data, size, "input", &err);
    if (rc) {
        if (g || err.code != rc || !err.msg[0])
            abort();
        return 0;
    }
    unsigned sum = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < gguf_count(g); i++) {
        const struct gguf_tensor *t = gguf_at(g, i);
        const uint8_t *p = t->data;
        for (uint64_t k = 0; k < t->n_bytes; k++)
            sum += p[k]; // a sanitizer sees a tensor that reaches beyond the file
        bytes += t->n_bytes;
    }
    double alpha;
    if (bytes > size || sum == UINT32_MAX ||
        (gguf_number(g, "adapter.lora.alpha", &alpha) && !gguf_has(g, "adapter.lora.alpha")))
        abort();
    gguf_free(g);
    return 0;
}
