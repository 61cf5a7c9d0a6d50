/*
 * signing: what the commands that deal with signatures share: keys on the command line, in the
 * environment or the config file, what is to be signed or verified, and the next step after a
 * refusal.
 */
#ifndef CMD_SIGNING_H
#define CMD_SIGNING_H

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "store/sign.h"

/* --require-signature of the commands that take adapters in: files of public keys. */
extern struct string_list signing_required;
#define SIGNING_REQUIRED_ROW                                                                       \
    {                                                                                              \
        .long_name = "require-signature", .type = OPTION_LIST, .value = &signing_required,         \
        .value_name = "PUBKEY", .env = "LORA_REQUIRE_SIGNATURE",                                   \
        .help = "Refuse adapters that are not signed by this key (a PEM file). May be repeated: "  \
                "any of them will do."                                                             \
    }

/* Reads the files; sets a hint when one is no such key. */
int signing_read_keys(struct sign_keys *out, const struct string_list *paths, struct err *err);
/* After a key could not be read. */
void signing_hint_key(int code, const char *path, const char *msg);
/* After an adapter was refused or found spoiled. what: how the user calls it. */
void signing_hint_refused(int code, const char *what, const char *msg);

/* An adapter of the store, or a path. */
struct signing_target {
    struct store *store; // NULL: path holds
    char id[STORE_ID_CHARS + 1];
    char name[LIMIT_NAME_BYTES + 1]; // "" when nothing names it
    const char *path;
};
int signing_find(struct signing_target *out, struct cmd_context *ctx, const char *ref,
                 struct err *err);
void signing_release(struct signing_target *t);

#endif
