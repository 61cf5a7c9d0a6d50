/*
 * pickle_impl: between the machine (pickle.c) and the meaning of its few names (pickle_torch.c).
 */
#ifndef LIBCORE_FORMAT_PICKLE_IMPL_H
#define LIBCORE_FORMAT_PICKLE_IMPL_H

#include "libcore/format/pickle.h"

struct pickle_machine {
    const uint8_t *p, *end;
    struct pickle_value **stack, **memo;
    size_t n_stack, cap_stack, n_memo, cap_memo;
    struct arena *arena;
    const char *where;
    struct err *err;
};

int pickle_corrupt(struct pickle_machine *m, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
int pickle_no_memory(struct pickle_machine *m);
/* A new value; NULL after the error was set. */
struct pickle_value *pickle_new(struct pickle_machine *m, enum pickle_kind kind);

/* module.name as a value, or ERR_CORRUPT: it is none of the few. */
int pickle_global(struct pickle_machine *m, struct pickle_value **out, const char *module,
                  const char *name);
/* callable(*args), ("storage", …) and the state that BUILD gives an object. */
int pickle_call(struct pickle_machine *m, struct pickle_value **out,
                const struct pickle_value *callable, const struct pickle_value *args);
int pickle_persistent(struct pickle_machine *m, struct pickle_value **out,
                      const struct pickle_value *id);
int pickle_build(struct pickle_machine *m, const struct pickle_value *object,
                 const struct pickle_value *state);

#endif
