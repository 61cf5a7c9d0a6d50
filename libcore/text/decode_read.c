/* The "decoder" value of tokenizer.json into steps. */
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/decode.h"
#include "libcore/text/json_fields.h"
#include "libcore/text/pre_tokenize.h"

enum { MAX_STEPS = 64 };

static int read_step(struct decode_step *d, const json_t *value, struct err *err)
{
    const char *owner;
    int rc;
    switch (d->kind) {
    case DECODE_REPLACE:
        owner = "decoder Replace";
        rc = json_field_copy(value, "content", &d->content, &d->n_content, owner, err);
        return rc ? rc
                  : text_pattern_open(&d->pattern, json_object_get(value, "pattern"), owner, err);
    case DECODE_STRIP:
        owner = "decoder Strip";
        rc = json_field_char(value, "content", &d->character, owner, err);
        if (!rc)
            rc = json_field_size(value, "start", FIELD_NEEDED, &d->start, owner, err);
        return rc ? rc : json_field_size(value, "stop", FIELD_NEEDED, &d->stop, owner, err);
    case DECODE_METASPACE: {
        struct pre_step mark = {.kind = PRE_METASPACE};
        rc = metaspace_read(value, &mark, err);
        d->character = mark.character;
        d->drop_first = mark.prepend != PREPEND_NEVER;
        return rc;
    }
    case DECODE_BPE:
        owner = "decoder BPEDecoder";
        rc = json_field_copy(value, "suffix", &d->content, &d->n_content, owner, err);
        if (!rc && d->n_content == 0)
            rc = err_set(err, ERR_REFUSED, "%s: an empty suffix is not supported", owner);
        return rc;
    default:
        return 0;
    }
}

static int add_step(struct decoder *d, enum decode_kind kind, const json_t *value, struct err *err)
{
    if (d->n == MAX_STEPS)
        return err_set(err, ERR_LIMIT, "more than %d decoders", MAX_STEPS);
    if (d->n == d->cap) {
        size_t cap = d->cap ? d->cap * 2 : 8;
        struct decode_step *steps = sys_reallocarray(d->steps, cap, sizeof *steps);
        if (!steps)
            return err_set(err, ERR_NO_MEMORY, "decoder: out of memory");
        d->steps = steps;
        d->cap = cap;
    }
    struct decode_step *step = &d->steps[d->n];
    *step = (struct decode_step){.kind = kind};
    if (d->n) {
        const struct decode_step *before = step - 1;
        step->fused =
            before->fused || before->kind == DECODE_FUSE || before->kind == DECODE_BYTE_LEVEL;
    }
    d->n++;
    return read_step(step, value, err);
}

int decoder_add(struct decoder *d, const json_t *value, struct err *err)
{
    static const struct {
        const char *name;
        enum decode_kind kind;
    } kinds[] = {{"ByteLevel", DECODE_BYTE_LEVEL},
                 {"ByteFallback", DECODE_BYTE_FALLBACK},
                 {"Fuse", DECODE_FUSE},
                 {"Replace", DECODE_REPLACE},
                 {"Strip", DECODE_STRIP},
                 {"Metaspace", DECODE_METASPACE},
                 {"BPEDecoder", DECODE_BPE}};
    if (!value || json_is_null(value))
        return 0;
    const char *type = json_string_value(json_object_get(value, "type"));
    if (!type)
        return err_set(err, ERR_REFUSED, "decoder without a type");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(type, kinds[i].name) == 0)
            return add_step(d, kinds[i].kind, value, err);
    }
    if (strcmp(type, "Sequence") != 0)
        return err_set(err, ERR_REFUSED, "decoder '%.60s' is not supported", type);
    size_t i;
    const json_t *member;
    const json_t *list = json_object_get(value, "decoders");
    if (!json_is_array(list))
        return err_set(err, ERR_CORRUPT, "decoder Sequence: decoders is no list");
    json_array_foreach(list, i, member)
    {
        int rc = json_is_object(member)
                     ? decoder_add(d, member, err)
                     : err_set(err, ERR_CORRUPT, "decoder Sequence: a member is no object");
        if (rc)
            return rc;
    }
    return 0;
}

void decoder_release(struct decoder *d)
{
    for (size_t i = 0; i < d->n; i++) {
        text_pattern_release(&d->steps[i].pattern);
        sys_free(d->steps[i].content);
    }
    sys_free(d->steps);
    memset(d, 0, sizeof *d);
}
