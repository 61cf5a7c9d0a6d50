/* foreign_write_impl: between the writers of foreign formats. */
#ifndef LIBCORE_FORMAT_FOREIGN_WRITE_IMPL_H
#define LIBCORE_FORMAT_FOREIGN_WRITE_IMPL_H

#include "libcore/base/arena.h"
#include "libcore/format/foreign_write.h"

/* ERR_REFUSED, naming the first module with a kind beyond `allowed` (enum adapter_kind bits). */
int foreign_write_check(const struct adapter *a, const char *target, unsigned allowed,
                        struct err *err);
/* The float32 whose quotient by the rank is the module's scale, exactly; else ERR_REFUSED. */
int foreign_write_alpha(const struct adapter_module *m, const char *target, float *alpha,
                        struct err *err);
/* A copy, [b, a] of [a, b]; data NULL: no memory. */
struct tensor foreign_write_transposed(struct arena *arena, const struct tensor *t);

#endif
