/*
 * content_id: the identity of an adapter, independent of file layout and metadata.
 * sha256 over the canonical record of its tensors (name, dtype, shape, sha256 of payload; sorted)
 * and of the configuration that changes numbers (docs/FORMATS.md lists the fields and the record).
 */
#ifndef LIBCORE_ADAPTER_CONTENT_ID_H
#define LIBCORE_ADAPTER_CONTENT_ID_H

#include "libcore/adapter/adapter.h"

/* Hashes every tensor's payload that is not known yet (on up to n_threads threads, 0: all
 * processors) and writes a->content_id. ERR_NO_MEMORY, ERR_FAIL (the digest library). */
int content_id_compute(struct adapter *a, unsigned n_threads, struct err *err);

/* The text that is hashed, for tests and `inspect`; payload digests as content_id_compute() left
 * them. The caller's, to free with sys_free. */
int content_id_record(const struct adapter *a, char **out, size_t *n, struct err *err);

#endif
