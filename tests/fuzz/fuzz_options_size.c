/* Sizes as people write them: any text gives a number or an error, and a number survives being
 * written out. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[256];
    size_t n = size < sizeof text - 1 ? size : sizeof text - 1;
    memcpy(text, data, n);
    text[n] = '\0';
    struct err err = {0};
    uint64_t bytes, again;
    if (options_parse_size(text, &bytes, &err) != 0) {
        if (err.code != ERR_USAGE || !err.msg[0])
            abort();
        return 0;
    }
    snprintf(text, sizeof text, "%llu", (unsigned long long)bytes);
    if (options_parse_size(text, &again, &err) != 0 || again != bytes)
        abort();
    return 0;
}
