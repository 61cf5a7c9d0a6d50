/* Any text is a template that renders, or an error with a message; nothing crashes or runs away. */
#include <jansson.h>
#include <stdlib.h>

#include "libcore/base/sys.h"
#include "libcore/text/jinja.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct jinja_template *t = NULL;
    struct err err = {0};
    char *text = NULL;
    size_t len;
    json_t *context =
        json_pack("{s:[{s:s, s:s}, {s:s, s:n}], s:i, s:f, s:s, s:[i,i,i], s:b}", "messages", "role",
                  "user", "content", "hi é", "role", "assistant", "content", "n", 7, "f", 2.5, "s",
                  "Hello, World", "l", 3, 1, 2, "t", 1);
    int rc = jinja_compile(&t, "fuzz", (const char *)data, size, &err);
    if (!rc)
        rc = jinja_render(t, context, NULL, 1752148800, &text, &len, &err);
    if (rc && (err.code != rc || !err.msg[0] || rc == ERR_INTERNAL))
        abort();
    if (!rc && text[len] != '\0')
        abort();
    sys_free(text);
    jinja_free(t);
    json_decref(context);
    return 0;
}
