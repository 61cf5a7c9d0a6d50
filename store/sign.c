#include "store/sign.h"

#include <openssl/bio.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"

enum { KEY_FILE_BYTES = 64 << 10 };

struct sign_key {
    EVP_PKEY *pkey;
    char *path;
    char hint[DIGEST_HEX_CHARS + 1];
};

void sign_key_free(struct sign_key *k)
{
    if (!k)
        return;
    EVP_PKEY_free(k->pkey);
    sys_free(k->path);
    sys_free(k);
}

const char *sign_key_hint(const struct sign_key *k)
{
    return k->hint;
}

const char *sign_key_path(const struct sign_key *k)
{
    return k->path;
}

// ---- reading keys ------------------------------------------------------------------------------

/* libcrypto would ask at the terminal. */
static int no_password(char *buf, int size, int writing, void *asked)
{
    (void)buf;
    (void)size;
    (void)writing;
    *(bool *)asked = true;
    return -1;
}

static int check_curve(EVP_PKEY *pkey, const char *path, struct err *err)
{
    char group[80] = "";
    const char *type = EVP_PKEY_get0_type_name(pkey);
    size_t n = 0;
    if (!EVP_PKEY_is_a(pkey, "EC"))
        return err_set(err, ERR_REFUSED, "%s: is a key of the type %s, wanted EC P-256", path,
                       type ? type : "?");
    if (EVP_PKEY_get_group_name(pkey, group, sizeof group, &n) != 1 ||
        strcmp(group, "prime256v1") != 0)
        return err_set(err, ERR_REFUSED, "%s: is a key on the curve %s, wanted EC P-256", path,
                       *group ? group : "of parameters of its own");
    return 0;
}

/* The text that the hint is of: SubjectPublicKeyInfo with the curve's name and the whole point. */
static int set_hint(struct sign_key *k, struct err *err)
{
    BIO *bio = BIO_new(BIO_s_mem());
    char *text = NULL;
    struct digest d;
    bool written = bio &&
                   EVP_PKEY_set_utf8_string_param(
                       k->pkey, OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT, "uncompressed") == 1 &&
                   PEM_write_bio_PUBKEY(bio, k->pkey) == 1;
    long n = written ? BIO_get_mem_data(bio, &text) : 0;
    int rc = n > 0 ? digest_buffer(text, (size_t)n, &d, err)
                   : err_set(err, ERR_NO_MEMORY, "%s: libcrypto cannot write the key", k->path);
    if (!rc)
        digest_hex(&d, k->hint);
    BIO_free(bio);
    return rc;
}

static bool is_pem_of(const char *text, const char *what)
{
    const char *begin = strstr(text, "-----BEGIN ");
    const char *end = begin ? strchr(begin, '\n') : NULL, *at = begin ? strstr(begin, what) : NULL;
    return at && end && at < end;
}

/* Why no key came of the text. */
static int no_key(const char *text, const char *path, bool private, bool asked, struct err *err)
{
    if (asked || strstr(text, "ENCRYPTED"))
        return err_set(err, ERR_REFUSED, "%s: the key is encrypted", path);
    if (!private && is_pem_of(text, "PRIVATE KEY"))
        return err_set(err, ERR_REFUSED, "%s: is a private key, wanted the public one", path);
    if (private && is_pem_of(text, "PUBLIC KEY"))
        return err_set(err, ERR_REFUSED, "%s: is a public key, wanted the private one", path);
    if (is_pem_of(text, "CERTIFICATE"))
        return err_set(err, ERR_REFUSED, "%s: is a certificate, wanted a key", path);
    return err_set(err, ERR_CORRUPT, "%s: holds no %s key in PEM form", path,
                   private ? "private" : "public");
}

static EVP_PKEY *parse_pem(const char *text, size_t n, bool private, bool *asked)
{
    BIO *bio = BIO_new_mem_buf(text, (int)n);
    EVP_PKEY *pkey = NULL;
    *asked = false;
    if (bio && private)
        pkey = PEM_read_bio_PrivateKey(bio, NULL, no_password, asked);
    else if (bio)
        pkey = PEM_read_bio_PUBKEY(bio, NULL, no_password, asked);
    BIO_free(bio);
    ERR_clear_error();
    return pkey;
}

static int read_key(struct sign_key **out, const char *path, bool private, struct err *err)
{
    char *text = NULL;
    size_t n = 0;
    bool asked = false;
    *out = NULL;
    int rc = file_is_folder(path) ? err_set(err, ERR_REFUSED, "%s: is a folder, wanted a key", path)
                                  : file_read(path, KEY_FILE_BYTES, &text, &n, err);
    if (rc)
        return rc;
    struct sign_key *k = sys_calloc(1, sizeof *k);
    if (k)
        k->path = sys_strdup(path);
    if (!k || !k->path)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    if (!rc && !(k->pkey = parse_pem(text, n, private, &asked)))
        rc = no_key(text, path, private, asked, err);
    if (!rc)
        rc = check_curve(k->pkey, path, err);
    if (!rc)
        rc = set_hint(k, err);
    // What may be a secret does not stay behind in freed memory.
    OPENSSL_cleanse(text, n);
    sys_free(text);
    if (rc)
        sign_key_free(k);
    else
        *out = k;
    return rc;
}

int sign_key_read_private(struct sign_key **out, const char *path, struct err *err)
{
    return read_key(out, path, true, err);
}

int sign_key_read_public(struct sign_key **out, const char *path, struct err *err)
{
    return read_key(out, path, false, err);
}

int sign_keys_read(struct sign_keys *out, const char *const *paths, size_t n, struct err *err)
{
    *out = (struct sign_keys){.items = sys_calloc(n ? n : 1, sizeof *out->items)};
    int rc = out->items ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for keys");
    for (size_t i = 0; !rc && i < n; i++) {
        rc = sign_key_read_public(&out->items[i], paths[i], err);
        out->n += !rc;
    }
    if (rc)
        sign_keys_release(out);
    return rc;
}

void sign_keys_release(struct sign_keys *k)
{
    for (size_t i = 0; i < k->n; i++)
        sign_key_free(k->items[i]);
    sys_free(k->items);
    *k = (struct sign_keys){0};
}

// ---- signatures --------------------------------------------------------------------------------

int sign_bytes(const struct sign_key *k, const void *data, size_t n, uint8_t **sig, size_t *n_sig,
               struct err *err)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    *sig = NULL;
    bool ok = ctx && EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, k->pkey) == 1 &&
              EVP_DigestSign(ctx, NULL, n_sig, data, n) == 1 &&
              (*sig = sys_malloc(*n_sig)) != NULL && EVP_DigestSign(ctx, *sig, n_sig, data, n) == 1;
    EVP_MD_CTX_free(ctx);
    if (ok)
        return 0;
    sys_free(*sig);
    *sig = NULL;
    ERR_clear_error();
    return err_set(err, ERR_NO_MEMORY, "%s: libcrypto cannot sign", k->path);
}

bool sign_check(const struct sign_key *k, const void *data, size_t n, const uint8_t *sig,
                size_t n_sig)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool ok = ctx && EVP_DigestVerifyInit(ctx, NULL, EVP_sha256(), NULL, k->pkey) == 1 &&
              EVP_DigestVerify(ctx, sig, n_sig, data, n) == 1;
    EVP_MD_CTX_free(ctx);
    ERR_clear_error();
    return ok;
}

// ---- base64 ------------------------------------------------------------------------------------

int sign_base64_encode(const void *data, size_t n, char **out, struct err *err)
{
    *out = n < INT32_MAX / 2 ? sys_malloc((n + 2) / 3 * 4 + 1) : NULL;
    if (!*out)
        return err_set(err, ERR_NO_MEMORY, "no memory for base64");
    EVP_EncodeBlock((unsigned char *)*out, data, (int)n);
    return 0;
}

int sign_base64_decode(const char *text, const char *what, uint8_t **out, size_t *n,
                       struct err *err)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t len = strlen(text), used = strspn(text, digits), padding = len - used;
    *out = NULL;
    // EVP_DecodeBlock passes over blanks and takes padding for zeros: looked at here.
    if (len % 4 != 0 || padding > 2 || strspn(text + used, "=") != padding || len >= INT32_MAX)
        return err_set(err, ERR_CORRUPT, "%s: is no base64", what);
    *out = sys_malloc(len / 4 * 3 + 1);
    if (!*out)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", what);
    int got = len ? EVP_DecodeBlock(*out, (const unsigned char *)text, (int)len) : 0;
    if (got < 0) {
        sys_free(*out);
        *out = NULL;
        return err_set(err, ERR_CORRUPT, "%s: is no base64", what);
    }
    *n = (size_t)got - padding;
    (*out)[*n] = 0;
    return 0;
}
