/*
 * Any bytes give a sound safetensors file or an error with words. Mutations of a zip die at a CRC,
 * so the same bytes are also run as the bare pickle of a state dict.
 */
#include <stdint.h>
#include <stdlib.h>

#include "libcore/base/sys.h"
#include "libcore/format/pickle.h"
#include "libcore/format/pickle_tensors.h"
#include "libcore/format/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run_bare(const uint8_t *data, size_t size)
{
    struct pickle_value *value;
    struct arena arena;
    struct err err = {0};
    size_t at = 0;
    arena_init(&arena);
    int rc = pickle_run(&value, data, size, &at, &arena, "input", &err);
    if (at > size || !rc != !!value || (rc && !err.msg[0]))
        abort();
    arena_release(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *bytes;
    size_t n;
    struct err err = {0};
    run_bare(data, size);
    int rc = pickle_tensors_read(&bytes, &n, data, size, "input", &err);
    if (rc) {
        if (bytes || err.code != rc || !err.msg[0])
            abort();
        return 0;
    }
    struct safetensors *s;
    rc = safetensors_open_memory(&s, bytes, n, "made", 0, &err);
    if (rc && rc != ERR_CORRUPT) // two keys that are equal, a name that is no UTF-8
        abort();
    safetensors_free(s);
    sys_free(bytes);
    return 0;
}
