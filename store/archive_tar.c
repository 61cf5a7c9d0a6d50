#include <stdio.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "store/archive_impl.h"

/*
 * One entry's header, POSIX.1-1988 ustar, with a POSIX.1-2001 extended header before it where one
 * is needed. Written by hand, since the place of every byte matters here: the padding that brings
 * the data to a page is a comment record of the extended header.
 */
enum { BLOCK = 512, NAME_BYTES = 100, PREFIX_BYTES = 155 };
#define USTAR_MAX_SIZE ((uint64_t)077777777777)

static void put_octal(char *at, size_t width, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%0*llo", (int)width - 1, (unsigned long long)value);
    memcpy(at, text, width - 1);
}

/* name into the fields `name` and `prefix`; false when it does not fit. */
static bool put_name(char *block, const char *name)
{
    size_t n = strlen(name);
    if (n <= NAME_BYTES) {
        memcpy(block, name, n);
        return true;
    }
    if (n > NAME_BYTES + 1 + PREFIX_BYTES)
        return false;
    const char *slash = strchr(name + (n - NAME_BYTES - 1), '/');
    if (!slash || !slash[1] || slash - name > PREFIX_BYTES || slash == name)
        return false;
    memcpy(block, slash + 1, n - (size_t)(slash - name) - 1);
    memcpy(block + 345, name, (size_t)(slash - name));
    return true;
}

static void finish_block(char *block, uint64_t size, char type)
{
    put_octal(block + 100, 8, 0644);
    put_octal(block + 108, 8, 0);
    put_octal(block + 116, 8, 0);
    put_octal(block + 124, 12, size);
    put_octal(block + 136, 12, 0);
    memset(block + 148, ' ', 8);
    block[156] = type;
    memcpy(block + 257, "ustar\00000", 8);
    unsigned sum = 0;
    for (int i = 0; i < BLOCK; i++)
        sum += (unsigned char)block[i];
    snprintf(block + 148, 8, "%06o", sum);
    block[155] = ' ';
}

static size_t digits(size_t n)
{
    return n < 10 ? 1 : 1 + digits(n / 10);
}

/* "27 path=…\n": the length counts itself. */
static void add_record(struct strbuf *sb, const char *key, const char *value)
{
    size_t body = strlen(key) + strlen(value) + 3, n = body + digits(body);
    if (digits(n) != digits(body))
        n = body + digits(n);
    strbuf_addf(sb, "%zu %s=%s\n", n, key, value);
}

/* A comment that makes the body `total` bytes long; at least 16 bytes of it are left. */
static void add_padding(struct strbuf *sb, size_t total)
{
    size_t n = total - sb->len;
    strbuf_addf(sb, "%zu comment=", n);
    while (sb->len + 1 < total && !sb->failed)
        strbuf_addc(sb, ' ');
    strbuf_addc(sb, '\n');
}

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* Bytes of the extended header's body, so that the data begins at a multiple of ARCHIVE_ALIGN; 0
 * when no header is needed. */
static size_t body_bytes(const struct archive_item *item, uint64_t at, size_t records)
{
    if (!item->align)
        return round_up(records, BLOCK);
    if (!records && (at + BLOCK) % ARCHIVE_ALIGN == 0)
        return 0;
    size_t body = round_up(records ? records : 1, BLOCK);
    while ((at + BLOCK + body + BLOCK) % ARCHIVE_ALIGN != 0 ||
           (body != records && body - records < 16))
        body += BLOCK;
    return body;
}

static int write_extended(const struct strbuf *body, archive_write_fn *write, void *arg,
                          struct err *err)
{
    char block[BLOCK] = "pax_header";
    finish_block(block, body->len, 'x');
    int rc = write(arg, block, BLOCK, err);
    if (!rc)
        rc = write(arg, body->data, body->len, err);
    memset(block, 0, sizeof block);
    size_t rest = round_up(body->len, BLOCK) - body->len;
    return rc || !rest ? rc : write(arg, block, rest, err);
}

int archive_tar_header(const struct archive_item *item, uint64_t at, archive_write_fn *write,
                       void *arg, struct err *err)
{
    char block[BLOCK] = "", size[24];
    struct strbuf body;
    strbuf_init(&body);
    if (!put_name(block, item->name)) {
        memcpy(block, item->name, NAME_BYTES); // what a reader without pax would see
        add_record(&body, "path", item->name);
    }
    if (item->size > USTAR_MAX_SIZE) {
        snprintf(size, sizeof size, "%llu", (unsigned long long)item->size);
        add_record(&body, "size", size);
    }
    size_t total = body_bytes(item, at, body.len);
    if (item->align && total > body.len)
        add_padding(&body, total);
    int rc = body.failed ? err_set(err, ERR_NO_MEMORY, "%s: no memory", item->name) : 0;
    if (!rc && body.len)
        rc = write_extended(&body, write, arg, err);
    finish_block(block, item->size > USTAR_MAX_SIZE ? 0 : item->size, '0');
    if (!rc)
        rc = write(arg, block, BLOCK, err);
    strbuf_release(&body);
    return rc;
}
