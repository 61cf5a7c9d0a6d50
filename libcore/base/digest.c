#include "libcore/base/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>

#include "libcore/base/sys.h"

enum { READ_BYTES = 1 << 20 };

struct digest_state {
    EVP_MD_CTX *ctx;
};

int digest_open(struct digest_state **out, struct err *err)
{
    *out = NULL;
    struct digest_state *s = sys_malloc(sizeof *s);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "no memory for a digest");
    s->ctx = EVP_MD_CTX_new();
    if (!s->ctx || EVP_DigestInit_ex(s->ctx, EVP_sha256(), NULL) != 1) {
        digest_free(s);
        return err_set(err, ERR_NO_MEMORY, "libcrypto cannot start SHA-256");
    }
    *out = s;
    return 0;
}

void digest_free(struct digest_state *s)
{
    if (!s)
        return;
    EVP_MD_CTX_free(s->ctx);
    sys_free(s);
}

int digest_update(struct digest_state *s, const void *data, size_t n, struct err *err)
{
    if (EVP_DigestUpdate(s->ctx, data, n) != 1)
        return err_set(err, ERR_INTERNAL, "libcrypto: SHA-256 update failed");
    return 0;
}

int digest_final(struct digest_state *s, struct digest *out, struct err *err)
{
    unsigned n = 0;
    if (EVP_DigestFinal_ex(s->ctx, out->bytes, &n) != 1 || n != DIGEST_BYTES)
        return err_set(err, ERR_INTERNAL, "libcrypto: SHA-256 final failed");
    return 0;
}

int digest_buffer(const void *data, size_t n, struct digest *out, struct err *err)
{
    unsigned len = 0;
    if (EVP_Digest(data, n, out->bytes, &len, EVP_sha256(), NULL) != 1 || len != DIGEST_BYTES)
        return err_set(err, ERR_NO_MEMORY, "libcrypto: SHA-256 failed");
    return 0;
}

static int digest_fd(int fd, const char *path, void *buf, struct digest *out, uint64_t *size,
                     struct err *err)
{
    struct digest_state *s;
    int rc = digest_open(&s, err);
    uint64_t total = 0;
    while (!rc) {
        ssize_t n = sys_read(fd, buf, READ_BYTES);
        if (n < 0)
            rc = err_set_errno(err, errno, "%s: cannot read", path);
        if (n <= 0)
            break;
        total += (uint64_t)n;
        rc = digest_update(s, buf, (size_t)n, err);
    }
    if (!rc)
        rc = digest_final(s, out, err);
    if (!rc && size)
        *size = total;
    digest_free(s);
    return rc;
}

int digest_file(const char *path, struct digest *out, uint64_t *size, struct err *err)
{
    int fd = sys_open(path, O_RDONLY, 0);
    if (fd < 0)
        return err_set_errno(err, errno, "%s: cannot open", path);
    void *buf = sys_malloc(READ_BYTES);
    int rc = buf ? digest_fd(fd, path, buf, out, size, err)
                 : err_set(err, ERR_NO_MEMORY, "%s: no memory to read it", path);
    sys_free(buf);
    sys_close(fd);
    return rc;
}

void digest_hex(const struct digest *d, char hex[DIGEST_HEX_CHARS + 1])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < DIGEST_BYTES; i++) {
        hex[2 * i] = digits[d->bytes[i] >> 4];
        hex[2 * i + 1] = digits[d->bytes[i] & 15];
    }
    hex[DIGEST_HEX_CHARS] = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool digest_parse(const char *text, struct digest *out)
{
    if (strncmp(text, "sha256:", 7) == 0)
        text += 7;
    if (strlen(text) != DIGEST_HEX_CHARS)
        return false;
    struct digest d;
    for (size_t i = 0; i < DIGEST_BYTES; i++) {
        int high = hex_value(text[2 * i]), low = hex_value(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        d.bytes[i] = (uint8_t)(high << 4 | low);
    }
    *out = d;
    return true;
}

bool digest_equal(const struct digest *a, const struct digest *b)
{
    return memcmp(a->bytes, b->bytes, DIGEST_BYTES) == 0;
}
