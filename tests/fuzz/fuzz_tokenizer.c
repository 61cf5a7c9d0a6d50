/* tokenizer.json from anywhere: it opens or is refused; what opens encodes any bytes, and a stream
 * gives what decoding at once gives. Input: the JSON, a NUL, the text. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool good)
{
    if (!good)
        abort();
}

static void remove_folder(void)
{
    char folder[64];
    snprintf(folder, sizeof folder, "/tmp/fuzz_tokenizer.%ld", (long)getpid());
    file_remove_tree(folder, NULL);
}

static void use(const struct tokenizer *t, const char *text, size_t n, unsigned flags)
{
    struct err err = {0};
    struct token_ids ids;
    struct strbuf whole, streamed;
    struct token_stream *s = NULL;
    token_ids_init(&ids);
    strbuf_init(&whole);
    strbuf_init(&streamed);
    int rc = tokenizer_encode(t, text, n, flags, &ids, &err);
    must(rc == 0 || (err.code == rc && err.msg[0]));
    if (!rc)
        rc = tokenizer_decode(t, ids.data, ids.n, 0, &whole, &err);
    if (!rc)
        rc = token_stream_open(&s, t, 0, &err);
    for (size_t i = 0; !rc && i < ids.n; i++)
        rc = token_stream_feed(s, ids.data[i], &streamed, &err);
    if (!rc)
        rc = token_stream_finish(s, &streamed, &err);
    must(rc != 0 || (whole.len == streamed.len &&
                     memcmp(strbuf_text(&whole), strbuf_text(&streamed), whole.len) == 0));
    token_stream_free(s);
    strbuf_release(&whole);
    strbuf_release(&streamed);
    token_ids_release(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char folder[64], path[96];
    if (!folder[0]) {
        snprintf(folder, sizeof folder, "/tmp/fuzz_tokenizer.%ld", (long)getpid());
        snprintf(path, sizeof path, "%s/tokenizer.json", folder);
        must(file_make_folders(folder, NULL) == 0);
        atexit(remove_folder);
    }
    const uint8_t *end = memchr(data, 0, size);
    size_t n_json = end ? (size_t)(end - data) : size;
    FILE *f = fopen(path, "wb");
    must(f && fwrite(data, 1, n_json, f) == n_json);
    must(fclose(f) == 0);
    struct err err = {0};
    struct tokenizer *t = NULL;
    int rc = tokenizer_open(&t, folder, NULL, &err);
    must(rc == 0 ? t != NULL : t == NULL && err.code == rc && err.msg[0]);
    if (rc)
        return 0;
    const char *text = end ? (const char *)end + 1 : "a b 12";
    size_t n = end ? size - n_json - 1 : 6;
    use(t, text, n, 0);
    use(t, text, n, TOKENIZER_ADD_SPECIAL | TOKENIZER_SPECIAL_AS_TEXT);
    tokenizer_free(t);
    return 0;
}
