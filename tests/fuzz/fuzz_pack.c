/* Any bytes as a tar, tar.gz, tar.zst or zip give entries with sound names and true sizes, or an
 * error with words; as an image's manifest they give descriptors, or an error. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store/archive.h"
#include "store/oci.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int count(void *arg, const void *data, size_t n, struct err *err)
{
    unsigned sum = 0;
    (void)err;
    for (size_t i = 0; i < n; i++)
        sum += ((const uint8_t *)data)[i]; // a sanitizer sees bytes that are not there
    *(uint64_t *)arg += n + (sum == UINT32_MAX);
    return 0;
}

static void check_name(const char *name)
{
    if (!*name || *name == '/' || strchr(name, '\\') || strstr(name, "//"))
        abort();
    for (const char *p = name; p; p = strchr(p, '/')) {
        p += *p == '/';
        if (strncmp(p, "..", 2) == 0 && (p[2] == '/' || !p[2]))
            abort();
    }
}

static void read_archive(const char *path)
{
    struct archive_in *a;
    struct archive_in_entry e;
    struct err err = {0};
    bool more = false;
    int rc = archive_in_open(&a, path, NULL, NULL, &err);
    while (!rc && (rc = archive_in_next(a, &e, &more, &err)) == 0 && more) {
        uint64_t n = 0;
        check_name(e.name);
        rc = archive_in_data(a, count, &n, &err);
        if (!rc && n != e.size)
            abort();
    }
    if (rc && (err.code != rc || !err.msg[0]))
        abort();
    archive_in_free(a);
}

static void read_manifest(const uint8_t *data, size_t size)
{
    enum oci_kind kind;
    json_t *out;
    struct err err = {0};
    int rc = oci_parse((const char *)data, size, "input", &kind, &out, &err);
    if (rc ? out || !err.msg[0] : !out && kind != OCI_KIND_OTHER)
        abort();
    json_decref(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[40];
    int fd = memfd_create("input", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    read_archive(path);
    close(fd);
    read_manifest(data, size);
    return 0;
}
