/*
 * jinja: a sandboxed Jinja2 for chat templates, as transformers runs it
 * (ImmutableSandboxedEnvironment, trim_blocks, lstrip_blocks, loopcontrols, the generation tag,
 * raise_exception, strftime_now, and tojson as json.dumps writes it). Nothing is autoescaped; text
 * marked safe is plain text.
 *
 * A template is somebody else's program: output, steps, depth and memory are bounded
 * (LIMIT_TEMPLATE_*), and no value reaches the outside world. Integers are 64-bit; an overflow is
 * an error, never a wrap.
 *
 * Thread rule: a compiled template is never written again; any number of threads may render it at
 * once.
 */
#ifndef LIBCORE_TEXT_JINJA_H
#define LIBCORE_TEXT_JINJA_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

struct jinja_template;

/*
 * Compiles `len` bytes of UTF-8. `name` stands before line numbers in errors
 * ("chat_template.jinja"). Returns 0, ERR_CORRUPT (syntax, or what this program does not have:
 * include, extends, …), ERR_LIMIT (size or nesting) or ERR_NO_MEMORY. *out is the caller's, to free
 * with jinja_free().
 */
int jinja_compile(struct jinja_template **out, const char *name, const char *text, size_t len,
                  struct err *err);
void jinja_free(struct jinja_template *t);

/*
 * Renders over the variables of `context` (a JSON object; order of keys and int or float are kept),
 * then those of `defaults` (an object or NULL) that the context does not have. `now_unix` is what
 * strftime_now sees, in UTC. *text is the caller's, to free with sys_free; a NUL that is not
 * counted follows. Returns 0, ERR_REFUSED (the template raised, or a value does not fit an
 * operation; the message has the line), ERR_LIMIT, ERR_USAGE (context is no object) or
 * ERR_NO_MEMORY.
 */
int jinja_render(const struct jinja_template *t, const json_t *context, const json_t *defaults,
                 int64_t now_unix, char **text, size_t *len, struct err *err);

#endif
