/* Any bytes as a signature's bundle, and as the statement in one, give sorted entries with sound
 * names, or an error with words. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "store/bundle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_name(const char *name)
{
    if (!*name || *name == '/')
        abort();
    for (const char *p = name; p; p = strchr(p, '/')) {
        p += *p == '/';
        if (strncmp(p, "..", 2) == 0 && (p[2] == '/' || !p[2]))
            abort();
    }
}

static void read_bundle(const char *text, size_t n)
{
    struct bundle b;
    struct err err = {0};
    const struct sign_keys none = {0};
    int rc = bundle_parse(&b, text, n, "input", &err);
    if (rc ? err.code != rc || !err.msg[0] : b.n_resources == 0)
        abort();
    for (size_t i = 0; i < b.n_resources && !rc; i++) {
        size_t found;
        check_name(b.resources[i].name);
        if (i && strcmp(b.resources[i - 1].name, b.resources[i].name) > 0)
            abort();
        if (!bundle_find(&b, b.resources[i].name, &found) || found == 0)
            abort();
        bundle_ignores(&b, b.resources[i].name);
    }
    if (!rc && bundle_signer(&b, &none, "input", &err))
        abort();
    bundle_release(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct strbuf whole;
    char *payload = NULL;
    read_bundle((const char *)data, size);
    strbuf_init(&whole);
    if (sign_base64_encode(data, size, &payload, NULL) != 0)
        abort();
    strbuf_addf(&whole,
                "{\"mediaType\":\"" BUNDLE_TYPE "\",\"verificationMaterial\":{},\"dsseEnvelope\":"
                "{\"payload\":\"%s\",\"payloadType\":\"application/vnd.in-toto+json\","
                "\"signatures\":[{\"sig\":\"AAAA\"}]}}",
                payload);
    read_bundle(strbuf_text(&whole), whole.len);
    strbuf_release(&whole);
    sys_free(payload);
    return 0;
}
