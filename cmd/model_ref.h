/*
 * model_ref: what a REF on a command line means, and the store as commands open it.
 * A REF is a name, name:tag, a unique prefix (at least 6 hex digits) of an id or a digest, a path,
 * or for a base a hub id org/name[@revision], looked up in the store and then in the local cache.
 */
#ifndef CMD_MODEL_REF_H
#define CMD_MODEL_REF_H

#include "cmd/cmd.h"
#include "store/store.h"

struct model_ref {
    enum store_kind kind;
    bool in_store; // id, name and tag hold; else path does
    char id[STORE_ID_CHARS + 1];
    char name[LIMIT_NAME_BYTES + 1];
    char tag[STORE_TAG_BYTES + 1];
    char *path; // folder (or .safetensors file) outside the store
};

/* Resolves ref to something of `kinds` (STORE_ADAPTER | STORE_BASE). s may be NULL: no store. What
 * looks like a path (begins with /, ./ or ../) is one; else the store, then a path, then for bases
 * the hub cache. Release with model_ref_release(). ERR_NOT_FOUND, ERR_USAGE (ambiguous). */
int model_ref_resolve(struct model_ref *out, struct store *s, const char *ref, unsigned kinds,
                      struct err *err);
void model_ref_release(struct model_ref *r);

/* The folder of a model's files, for commands that read its tokenizer or template: a folder that
 * has such files, a base of the store, or one of the hub cache. *folder is the caller's, for
 * sys_free. */
int cmd_model_folder(struct cmd_context *ctx, const char *ref, char **folder, struct err *err);

/* <store>/cache/tokenizer, for tokenizer_open, or NULL when there is no store (none is made for
 * it). To free with sys_free(). */
char *cmd_tokenizer_cache(const struct cmd_context *ctx);

/* The command's store. create: made when it is not there. Sets a hint when there is none. */
int cmd_store_open(struct cmd_context *ctx, bool create, struct store **out, struct err *err);
/* *out is NULL when there is no store: that is no error. */
int cmd_store_open_if_there(struct cmd_context *ctx, struct store **out, struct err *err);

/* --lock-timeout, for the tables of commands that write. */
extern int64_t cmd_lock_timeout_s;
#define CMD_LOCK_TIMEOUT_ROW                                                                       \
    {                                                                                              \
        .long_name = "lock-timeout", .type = OPTION_INT, .value = &cmd_lock_timeout_s,             \
        .value_name = "SECONDS", .min = 0, .max = 86400, .env = "LORA_LOCK_TIMEOUT",               \
        .help = "How long to wait for a process that holds the store (30)."                        \
    }

#endif
