/* Any name of a tensor has a meaning, never a module outside its own text. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/format/peft_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char name[512];
    size_t n = size < sizeof name - 1 ? size : sizeof name - 1;
    struct arena arena;
    struct peft_name parsed;
    struct err err = {0};
    memcpy(name, data, n);
    name[n] = '\0';
    arena_init(&arena);
    if (peft_name_parse(&parsed, name, &arena, &err) == 0) {
        if (strlen(parsed.module) > strlen(name) || parsed.part > PART_REFUSED)
            abort();
        if (parsed.part == PART_REFUSED && !parsed.why)
            abort();
        if (peft_is_one_expert(parsed.module) &&
            peft_experts_block_length(parsed.module) >= strlen(parsed.module))
            abort();
    }
    arena_release(&arena);
    return 0;
}
