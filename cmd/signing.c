#include "cmd/signing.h"

#include <string.h>

#include "libcore/base/file.h"

struct string_list signing_required;

#define MAKE_KEY                                                                                   \
    "`openssl ecparam -name prime256v1 -genkey -noout -out key.pem` makes a key, `openssl ec -in " \
    "key.pem -pubout -out key.pub` its public half"

void signing_hint_key(int code, const char *path, const char *msg)
{
    if (strstr(msg, "is encrypted"))
        cmd_hint("`openssl ec -in %s -out plain.pem` takes the password off", path);
    else if (strstr(msg, "is a private key"))
        cmd_hint("`openssl ec -in %s -pubout -out key.pub` writes its public half", path);
    else if (strstr(msg, "is a public key"))
        cmd_hint("the private key signs, the public one verifies");
    else if (strstr(msg, "is a certificate"))
        cmd_hint("`openssl x509 -in %s -pubkey -noout` prints its public key", path);
    else if (code == ERR_NOT_FOUND || code == ERR_REFUSED || code == ERR_CORRUPT)
        cmd_hint(MAKE_KEY);
}

int signing_read_keys(struct sign_keys *out, const struct string_list *paths, struct err *err)
{
    struct err own = {0};
    *out = (struct sign_keys){0};
    // One by one, so that the hint names the right file.
    for (size_t i = 0; i < paths->n; i++) {
        struct sign_key *key;
        int rc = sign_key_read_public(&key, paths->items[i], &own);
        sign_key_free(key);
        if (rc) {
            signing_hint_key(rc, paths->items[i], own.msg);
            return err_set(err, rc, "%s", own.msg);
        }
    }
    return sign_keys_read(out, paths->items, paths->n, err);
}

void signing_hint_refused(int code, const char *what, const char *msg)
{
    if (code == ERR_REFUSED && strstr(msg, "not signed"))
        cmd_hint("`lora sign %s --key KEY.pem` signs it", what);
    else if (code == ERR_REFUSED && strstr(msg, "is signed by key"))
        cmd_hint("if you trust that key too, name its file as well");
    else if (code == ERR_CORRUPT)
        cmd_hint("take it again from where it came: the bytes or the signature were changed");
}

// ---- what is meant -----------------------------------------------------------------------------

static int use_path(struct signing_target *out, const char *path, struct err *err)
{
    if (!file_exists(path))
        return err_set(err, ERR_NOT_FOUND, "%s: no such file or folder", path);
    out->path = path;
    return 0;
}

int signing_find(struct signing_target *out, struct cmd_context *ctx, const char *ref,
                 struct err *err)
{
    struct store_resolved r;
    *out = (struct signing_target){0};
    if (ref[0] == '/' || ref[0] == '.')
        return use_path(out, ref, err);
    int rc = cmd_store_open_if_there(ctx, &out->store, err);
    if (rc)
        return rc;
    rc = out->store ? store_resolve(out->store, ref, STORE_ANY, &r, err) : ERR_NOT_FOUND;
    if (!rc && r.kind == STORE_BASE) {
        cmd_hint("`lora sign FOLDER` signs the folder of a base, with a model.sig in it");
        rc = err_set(err, ERR_REFUSED, "%s: is a base; adapters of the store can be signed", ref);
    } else if (!rc) {
        memcpy(out->id, r.id, sizeof out->id);
        memcpy(out->name, r.name, sizeof out->name);
        return 0;
    }
    store_close(out->store);
    out->store = NULL;
    if ((rc != ERR_NOT_FOUND && rc != ERR_USAGE) || (err && err->code && !file_exists(ref)))
        return rc;
    err_clear(err);
    return use_path(out, ref, err);
}

void signing_release(struct signing_target *t)
{
    store_close(t->store);
    *t = (struct signing_target){0};
}
