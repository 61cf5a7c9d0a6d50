/*
 * adapter_file: an adapter at a path, whatever format it is in. Formats are told apart here and
 * nowhere else, by the names of files and, where those do not say it, by the names of tensors.
 *
 *   peft       adapter_config.json + adapter_model.safetensors, or adapter_model.bin
 *   mlx        adapter_config.json + adapters.safetensors
 *   kohya, diffusers   a .safetensors file without a configuration beside it
 *   gguf       a .gguf file
 * A folder stands for the files of the first two, for its only .safetensors or .gguf file, or for
 * its only sub-folder with an adapter_config.json. What is read is brought into PEFT's names and
 * shapes in memory and goes through PEFT's checks (libcore/format/peft.h), so that the same
 * adapter has the same content id in whichever format it came. docs/FORMATS.md has the tables.
 * Thread rule: functions are re-entrant.
 */
#ifndef LIBCORE_FORMAT_ADAPTER_FILE_H
#define LIBCORE_FORMAT_ADAPTER_FILE_H

#include "libcore/format/peft.h"

/* As peft_read(), for every format; a->format says which it was. */
int adapter_file_read(struct adapter **out, const char *path, const struct peft_options *opt,
                      struct err *err);

/* Whether `path` is one that adapter_file_read() would try. Opens nothing but folders. */
bool adapter_file_looks_like(const char *path);

/* As peft_files_list(), for every format: the weights first, or behind their configuration. */
int adapter_files_list(struct peft_files *out, const char *path, struct err *err);

#endif
