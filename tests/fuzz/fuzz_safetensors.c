/* Any bytes give a handle whose tensors tile the payload, or an error with words. */
#include <stdint.h>
#include <stdlib.h>

#include "libcore/format/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors *s;
    struct err err = {0};
    int rc = safetensors_open_memory(&s, data, size, "input", 0, &err);
    if (rc) {
        if (s || err.code != rc || !err.msg[0])
            abort();
        return 0;
    }
    uint64_t bytes = 0;
    unsigned sum = 0;
    for (size_t i = 0; i < safetensors_count(s); i++) {
        const struct safetensors_entry *e = safetensors_at(s, i);
        const uint8_t *p = e->value.data;
        if (tensor_n_bytes(&e->value) != e->end - e->begin || safetensors_find(s, e->name) != e)
            abort();
        bytes += e->end - e->begin;
        for (uint64_t k = 0; k < e->end - e->begin; k++)
            sum += p[k]; // a sanitizer sees a tensor that reaches beyond the file
    }
    if (bytes + safetensors_data_offset(s) != size || sum == UINT32_MAX)
        abort();
    safetensors_free(s);
    return 0;
}
