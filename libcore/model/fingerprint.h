/*
 * fingerprint: which base this is, without reading all of it.
 * sha256 over the architecture fields, and for every weight by its canonical name: type, shape, and
 * the bytes (one-dimensional tensors) or 16 fixed 4-KiB samples (larger ones; all of it below
 * 64 KiB). Old and new layouts of a checkpoint (prefixes, experts one by one or fused, a tied head
 * that was saved or not) have one fingerprint; a base and its instruct version differ.
 * docs/FORMATS.md has the record. Thread rule: re-entrant.
 */
#ifndef LIBCORE_MODEL_FINGERPRINT_H
#define LIBCORE_MODEL_FINGERPRINT_H

#include "libcore/base/digest.h"
#include "libcore/format/checkpoint.h"
#include "libcore/model/module.h"

/* ERR_REFUSED: a weight that the model needs is not there or has another shape; ERR_NO_MEMORY. */
int fingerprint_compute(const struct checkpoint *c, const struct model_modules *m,
                        const struct model_config *config, char hex[DIGEST_HEX_CHARS + 1],
                        struct err *err);

/* The same from a folder: config.json and weights. Errors of config_read and checkpoint_open too.
 */
int fingerprint_of_folder(const char *folder, char hex[DIGEST_HEX_CHARS + 1], struct err *err);

/* sha256 of every tensor's payload, out[i] for checkpoint_at(c, i), on up to n_threads threads (0:
 * all processors). Reads everything. */
int fingerprint_tensors(const struct checkpoint *c, unsigned n_threads, struct digest *out,
                        struct err *err);

#endif
