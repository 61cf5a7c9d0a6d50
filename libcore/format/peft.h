/*
 * peft: adapters as Hugging Face PEFT saves them, into the canonical form and back.
 *
 * peft_read() takes a folder (adapter_config.json + adapter_model.safetensors, or a legacy
 * adapter_model.bin, whose pickle is never executed: pickle_tensors.h), a .safetensors or .bin file
 * with adapter_config.json beside it, or a folder that holds exactly one such folder (PEFT puts
 * adapters not named "default" into sub-folders). Every field of the configuration is known
 * (numeric or inert), empty, or refused by its name; every tensor of the file gets its meaning or
 * is refused by its name. docs/FORMATS.md has the tables. What is accepted gives the numbers of
 * PEFT 0.21. Only files are read, never the base: libcore/model/bind checks against it. Thread
 * rule: functions are re-entrant.
 */
#ifndef LIBCORE_FORMAT_PEFT_H
#define LIBCORE_FORMAT_PEFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/adapter/adapter.h"
#include "libcore/base/err.h"

struct peft_options {
    const char *const
        *ignore_fields; // unknown or refused fields to pass over; recorded in warnings
    size_t n_ignore_fields;
    bool skip_values; // do not look for NaN and Inf: for plans that read headers only
    /* Read the weights instead of mapping them: for files that somebody may overwrite in place, as
     * a trainer does, which would end a process that has them mapped (SIGBUS). */
    bool copy;
    /* Of the base, where it is known: GGUF files of llama have q's and k's rows in an order that
     * only these undo. 0: not known, such files are refused. */
    uint32_t n_heads, n_kv_heads;
};

/*
 * Reads the adapter at `path`; opt may be NULL. *out is the caller's, to free with adapter_free();
 * its tensors are views of the file, mapped or copied. a->name: config["name"], else from the path
 * by peft_name_of_path(). ERR_NOT_FOUND (no adapter there), ERR_REFUSED (by field or tensor, with
 * the way out), ERR_CORRUPT (broken JSON or safetensors, pickle, NaN), ERR_IO, ERR_NO_MEMORY.
 */
int peft_read(struct adapter **out, const char *path, const struct peft_options *opt,
              struct err *err);

/* Whether `path` is an adapter that peft_read() would try, pickle ones included. Opens nothing but
 * folders. */
bool peft_looks_like(const char *path);

/* Whether a file of this name travels with an adapter: its configuration, its weights (any
 * .safetensors or .gguf, adapter_model.bin), tokenizer, template, README, LICENSE. */
bool peft_is_file_name(const char *name);

/* The name an adapter gets from its path: the folder's (file's) name; not a snapshot's hash, nor
 * "checkpoint-500", "adapter_model", "final": then the parent's. Characters that names may not have
 * become '-'. The caller's, to free with sys_free; NULL when memory is out. */
char *peft_name_of_path(const char *path);

enum peft_file_role {
    PEFT_FILE_WEIGHTS,
    PEFT_FILE_CONFIG,
    PEFT_FILE_TOKENIZER, // tokenizer files and added tokens saved beside the adapter
    PEFT_FILE_TEMPLATE,  // chat_template.jinja, chat_template.json
    PEFT_FILE_DOC,       // README.md, LICENSE
};

struct peft_file {
    const char *name; // within the folder; the store keeps it
    const char *path; // where it lies
    enum peft_file_role role;
};

struct peft_files {
    struct peft_file *items; // config and weights first, then by name
    size_t n;
    struct arena arena;
};

/* The files that belong to the adapter at `path`. Release with peft_files_release(). Errors as for
 * peft_read() as far as paths go. */
int peft_files_list(struct peft_files *out, const char *path, struct err *err);
void peft_files_release(struct peft_files *f);

/*
 * Writes adapter_config.json (sorted keys, as PEFT does) and adapter_model.safetensors into
 * `folder`, which must exist. An adapter that was read from PEFT keeps its tensors' names, types
 * and bytes and its configuration; any other gets PEFT's names for its modules, and a configuration
 * whose rank_pattern and alpha_pattern give every module its scale.
 */
int peft_write(const struct adapter *a, const char *folder, struct err *err);

/* The table of known fields, for docs and tests. */
enum peft_field_role { PEFT_FIELD_NUMERIC, PEFT_FIELD_INERT, PEFT_FIELD_REFUSED };
struct peft_field {
    const char *name;
    enum peft_field_role role;
    unsigned types;  // private
    const char *why; // refused: the reason and the way out; else what it means
};
const struct peft_field *peft_field_table(size_t *n);

#endif
