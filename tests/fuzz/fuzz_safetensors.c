/* Any bytes give a handle whose tensors tile the payload, or an error with words; and what the
 * stream says of tensors, when the bytes go by in pieces, is what the reader has. */
#include <stdint.h>
#include <stdlib.h>

#include "libcore/format/safetensors_stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct safetensors_stream *stream(const uint8_t *data, size_t size)
{
    struct safetensors_stream *s;
    struct digest got, want;
    if (safetensors_stream_open(&s, size, NULL) != 0)
        abort();
    for (size_t at = 0, n; at < size; at += n) {
        n = 1 + at * 7 % 61;
        n = n < size - at ? n : size - at;
        if (safetensors_stream_update(s, data + at, n, NULL) != 0)
            abort();
    }
    if (safetensors_stream_finish(s, &got, NULL) != 0 ||
        digest_buffer(data, size, &want, NULL) != 0 || !digest_equal(&got, &want))
        abort();
    return s;
}

static void compare(const struct safetensors *s, const struct safetensors_stream *seen)
{
    size_t n;
    const struct safetensors_part *parts = safetensors_stream_parts(seen, &n);
    if (!parts || n != safetensors_count(s))
        abort();
    for (size_t i = 0; i < n; i++) {
        const struct safetensors_entry *e = safetensors_at(s, i);
        struct digest want;
        digest_buffer(e->value.data, e->end - e->begin, &want, NULL);
        if (!digest_equal(&parts[i].payload, &want))
            abort();
        size_t n_values = (size_t)tensor_n_values(&e->value);
        if (dtype_is_float(e->value.dtype) &&
            parts[i].finite !=
                (dtype_find_non_finite(e->value.dtype, e->value.data, n_values) == n_values))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors_stream *seen = stream(data, size);
    struct safetensors *s;
    struct err err = {0};
    int rc = safetensors_open_memory(&s, data, size, "input", 0, &err);
    if (rc) {
        if (s || err.code != rc || !err.msg[0])
            abort();
        safetensors_stream_free(seen);
        return 0;
    }
    compare(s, seen);
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
    safetensors_stream_free(seen);
    safetensors_free(s);
    return 0;
}
