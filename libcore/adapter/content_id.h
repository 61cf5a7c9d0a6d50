/*
 * content_id: the identity of an adapter, independent of file layout and metadata.
 * sha256 over the canonical record of its tensors (name, dtype, shape, sha256 of payload; sorted)
 * and of the configuration that changes numbers (docs/FORMATS.md lists the fields and the record).
 */
#ifndef LIBCORE_ADAPTER_CONTENT_ID_H
#define LIBCORE_ADAPTER_CONTENT_ID_H

#include "libcore/adapter/adapter.h"

/* Hashes every tensor's payload (on up to n_threads threads) and writes a->content_id. */
int content_id_compute(struct adapter *a, unsigned n_threads, struct err *err);

#endif
