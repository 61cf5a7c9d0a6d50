#include "libcore/format/pickle.h"

#include <stdarg.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/format/pickle_impl.h"

int pickle_corrupt(struct pickle_machine *m, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    err_setv(m->err, ERR_CORRUPT, fmt, args);
    va_end(args);
    err_prefix(m->err, "%s: pickle", m->where);
    return ERR_CORRUPT;
}

int pickle_no_memory(struct pickle_machine *m)
{
    return err_set(m->err, ERR_NO_MEMORY, "%s: no memory", m->where);
}

struct pickle_value *pickle_new(struct pickle_machine *m, enum pickle_kind kind)
{
    struct pickle_value *v = arena_alloc(m->arena, sizeof *v);
    if (!v)
        pickle_no_memory(m);
    else
        v->kind = kind;
    return v;
}

/* ---- stack and memo ---- */

static int push_to(struct pickle_machine *m, struct pickle_value ***list, size_t *n, size_t *cap,
                   struct pickle_value *v)
{
    if (*n == *cap) {
        size_t more = *cap ? 2 * *cap : 64;
        void *p = sys_reallocarray(*list, more, sizeof **list);
        if (!p)
            return pickle_no_memory(m);
        *list = p;
        *cap = more;
    }
    (*list)[(*n)++] = v;
    return 0;
}

static int push(struct pickle_machine *m, struct pickle_value *v)
{
    return v ? push_to(m, &m->stack, &m->n_stack, &m->cap_stack, v) : ERR_NO_MEMORY;
}

static struct pickle_value *pop(struct pickle_machine *m)
{
    if (!m->n_stack || m->stack[m->n_stack - 1]->kind == PICKLE_MARK) {
        pickle_corrupt(m, "takes from an empty stack");
        return NULL;
    }
    return m->stack[--m->n_stack];
}

/* Index of the first value behind the topmost mark, or ERR_CORRUPT. */
static int find_mark(struct pickle_machine *m, size_t *first)
{
    for (size_t i = m->n_stack; i-- > 0;) {
        if (m->stack[i]->kind == PICKLE_MARK) {
            *first = i + 1;
            return 0;
        }
    }
    return pickle_corrupt(m, "has no mark where one is needed");
}

static int memo_put(struct pickle_machine *m, uint64_t index)
{
    struct pickle_value *v = pop(m);
    if (!v)
        return ERR_CORRUPT;
    m->n_stack++;
    if (index < m->n_memo) {
        m->memo[index] = v;
        return 0;
    }
    if (index > m->n_memo) // picklers count up; holes would let an index ask for any memory
        return pickle_corrupt(m, "remembers out of order");
    return push_to(m, &m->memo, &m->n_memo, &m->cap_memo, v);
}

static int memo_get(struct pickle_machine *m, uint64_t index)
{
    if (index >= m->n_memo)
        return pickle_corrupt(m, "recalls what it did not remember");
    return push(m, m->memo[index]);
}

/* ---- operands ---- */

static int take(struct pickle_machine *m, size_t n, const uint8_t **p)
{
    if ((size_t)(m->end - m->p) < n)
        return pickle_corrupt(m, "is cut off");
    *p = m->p;
    m->p += n;
    return 0;
}

static int take_number(struct pickle_machine *m, unsigned n, uint64_t *out)
{
    const uint8_t *p = NULL;
    int rc = take(m, n, &p);
    *out = 0;
    for (unsigned i = 0; !rc && i < n; i++)
        *out |= (uint64_t)p[i] << 8 * i;
    return rc;
}

static int push_text(struct pickle_machine *m, enum pickle_kind kind, uint64_t n)
{
    const uint8_t *p = NULL;
    if (n > (uint64_t)(m->end - m->p))
        return pickle_corrupt(m, "is cut off");
    int rc = take(m, (size_t)n, &p);
    if (rc)
        return rc;
    if (kind == PICKLE_TEXT && memchr(p, 0, (size_t)n))
        return pickle_corrupt(m, "has a text with a NUL in it");
    struct pickle_value *v = pickle_new(m, kind);
    if (!v)
        return ERR_NO_MEMORY;
    char *copy = arena_alloc(m->arena, (size_t)n + 1);
    if (!copy)
        return pickle_no_memory(m);
    memcpy(copy, p, (size_t)n);
    v->text = copy;
    v->n = (size_t)n;
    return push(m, v);
}

static int push_text_sized(struct pickle_machine *m, enum pickle_kind kind, unsigned width)
{
    uint64_t n = 0;
    int rc = take_number(m, width, &n);
    return rc ? rc : push_text(m, kind, n);
}

static int push_integer(struct pickle_machine *m, enum pickle_kind kind, int64_t integer)
{
    struct pickle_value *v = pickle_new(m, kind);
    if (v)
        v->integer = integer;
    return push(m, v);
}

static int push_integer_sized(struct pickle_machine *m, unsigned width)
{
    uint64_t n = 0;
    int rc = take_number(m, width, &n);
    return rc ? rc : push_integer(m, PICKLE_INT, width == 4 ? (int32_t)(uint32_t)n : (int64_t)n);
}

/* LONG1: little-endian, two's complement. */
static int push_long(struct pickle_machine *m)
{
    uint64_t n = 0;
    int rc = take_number(m, 1, &n);
    if (rc || n > 8)
        return rc ? rc : push_text(m, PICKLE_BIG, n);
    uint64_t bits = 0;
    rc = take_number(m, (unsigned)n, &bits);
    if (n && n < 8 && bits >> (8 * n - 1))
        bits |= UINT64_MAX << 8 * n;
    return rc ? rc : push_integer(m, PICKLE_INT, (int64_t)bits);
}

/* ---- containers ---- */

static int append(struct pickle_machine *m, struct pickle_value *to, struct pickle_value *v)
{
    if (to->n == to->cap) { // the old block stays in the arena: at most as much again
        size_t cap = to->cap ? 2 * to->cap : 8;
        struct pickle_value **items = arena_array(m->arena, cap, sizeof *items);
        if (!items)
            return pickle_no_memory(m);
        if (to->n)
            memcpy(items, to->items, to->n * sizeof *items);
        to->items = items;
        to->cap = cap;
    }
    to->items[to->n++] = v;
    return 0;
}

/* The values from index `first` on become one tuple. */
static int make_tuple(struct pickle_machine *m, size_t first, size_t below)
{
    struct pickle_value *tuple = pickle_new(m, PICKLE_TUPLE);
    if (!tuple)
        return ERR_NO_MEMORY;
    tuple->n = tuple->cap = m->n_stack - first;
    tuple->items = arena_array(m->arena, tuple->n + 1, sizeof *tuple->items);
    if (!tuple->items)
        return pickle_no_memory(m);
    if (tuple->n)
        memcpy(tuple->items, m->stack + first, tuple->n * sizeof *tuple->items);
    m->n_stack = below;
    return push(m, tuple);
}

static int tuple_of(struct pickle_machine *m, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (m->n_stack < n || m->stack[m->n_stack - 1 - i]->kind == PICKLE_MARK)
            return pickle_corrupt(m, "takes from an empty stack");
    }
    return make_tuple(m, m->n_stack - n, m->n_stack - n);
}

static int tuple_from_mark(struct pickle_machine *m)
{
    size_t first = 0;
    int rc = find_mark(m, &first);
    return rc ? rc : make_tuple(m, first, first - 1);
}

/* Values [first, top) go into the container that lies below them (and below the mark). */
static int put_into(struct pickle_machine *m, enum pickle_kind kind, size_t first, size_t below)
{
    size_t n = m->n_stack - first;
    if (below == 0 || m->stack[below - 1]->kind != kind)
        return pickle_corrupt(m, "adds to what is no %s", kind == PICKLE_DICT ? "dict" : "list");
    if (kind == PICKLE_DICT && n % 2)
        return pickle_corrupt(m, "adds a key without a value");
    struct pickle_value *to = m->stack[below - 1];
    int rc = 0;
    for (size_t i = first; !rc && i < m->n_stack; i++)
        rc = append(m, to, m->stack[i]);
    m->n_stack = below;
    return rc;
}

static int put_some(struct pickle_machine *m, enum pickle_kind kind)
{
    size_t first = 0;
    int rc = find_mark(m, &first);
    return rc ? rc : put_into(m, kind, first, first - 1);
}

static int put_one(struct pickle_machine *m, enum pickle_kind kind)
{
    size_t n = kind == PICKLE_DICT ? 2 : 1;
    if (m->n_stack < n + 1)
        return pickle_corrupt(m, "takes from an empty stack");
    for (size_t i = 0; i < n; i++) {
        if (m->stack[m->n_stack - 1 - i]->kind == PICKLE_MARK)
            return pickle_corrupt(m, "takes from an empty stack");
    }
    return put_into(m, kind, m->n_stack - n, m->n_stack - n);
}

/* ---- names and calls ---- */

static int take_line(struct pickle_machine *m, char *out, size_t n)
{
    const uint8_t *newline = memchr(m->p, '\n', (size_t)(m->end - m->p));
    if (!newline)
        return pickle_corrupt(m, "is cut off");
    size_t length = (size_t)(newline - m->p);
    if (length >= n)
        return pickle_corrupt(m, "names %.60s…, which no tensor state dict needs: hostile",
                              (const char *)m->p);
    memcpy(out, m->p, length);
    out[length] = '\0';
    m->p = newline + 1;
    return 0;
}

static int op_global(struct pickle_machine *m)
{
    char module[128], name[128];
    struct pickle_value *v = NULL;
    int rc = take_line(m, module, sizeof module);
    if (!rc)
        rc = take_line(m, name, sizeof name);
    if (!rc)
        rc = pickle_global(m, &v, module, name);
    return rc ? rc : push(m, v);
}

static int op_stack_global(struct pickle_machine *m)
{
    const struct pickle_value *name = pop(m), *module = name ? pop(m) : NULL;
    struct pickle_value *v = NULL;
    if (!module)
        return ERR_CORRUPT;
    if (name->kind != PICKLE_TEXT || module->kind != PICKLE_TEXT)
        return pickle_corrupt(m, "names something by what is no text: hostile");
    int rc = pickle_global(m, &v, module->text, name->text);
    return rc ? rc : push(m, v);
}

static int op_reduce(struct pickle_machine *m)
{
    const struct pickle_value *args = pop(m), *callable = args ? pop(m) : NULL;
    struct pickle_value *v = NULL;
    if (!callable)
        return ERR_CORRUPT;
    int rc = pickle_call(m, &v, callable, args);
    return rc ? rc : push(m, v);
}

static int op_persistent(struct pickle_machine *m)
{
    const struct pickle_value *id = pop(m);
    struct pickle_value *v = NULL;
    int rc = id ? pickle_persistent(m, &v, id) : ERR_CORRUPT;
    return rc ? rc : push(m, v);
}

static int op_build(struct pickle_machine *m)
{
    const struct pickle_value *state = pop(m), *object = state ? pop(m) : NULL;
    int rc = object ? pickle_build(m, object, state) : ERR_CORRUPT;
    m->n_stack += rc ? 0 : 1; // the object stays
    return rc;
}

static int op_proto(struct pickle_machine *m)
{
    uint64_t version = 0;
    int rc = take_number(m, 1, &version);
    if (!rc && (version < 2 || version > 5))
        rc = pickle_corrupt(m, "has protocol %d", (int)version);
    return rc;
}

static int op_memo(struct pickle_machine *m, uint8_t op)
{
    uint64_t index = 0;
    int rc = take_number(m, op == 'q' || op == 'h' ? 1 : 4, &index);
    if (rc)
        return rc;
    return op == 'q' || op == 'r' ? memo_put(m, index) : memo_get(m, index);
}

static int op_number(struct pickle_machine *m, uint8_t op)
{
    const uint8_t *p = NULL;
    switch (op) {
    case 'K':
        return push_integer_sized(m, 1);
    case 'M':
        return push_integer_sized(m, 2);
    case 'J':
        return push_integer_sized(m, 4);
    case 0x8a:
        return push_long(m);
    case 'G': { // eight bytes that only the metadata of trainers needs: their value is never used
        int rc = take(m, 8, &p);
        return rc ? rc : push(m, pickle_new(m, PICKLE_FLOAT));
    }
    case 0x88:
    case 0x89:
        return push_integer(m, PICKLE_BOOL, op == 0x88);
    default:
        return push(m, pickle_new(m, PICKLE_NONE));
    }
}

static int op_container(struct pickle_machine *m, uint8_t op)
{
    switch (op) {
    case '(':
        return push(m, pickle_new(m, PICKLE_MARK));
    case ')':
        return make_tuple(m, m->n_stack, m->n_stack);
    case 't':
        return tuple_from_mark(m);
    case ']':
        return push(m, pickle_new(m, PICKLE_LIST));
    case '}':
        return push(m, pickle_new(m, PICKLE_DICT));
    case 'a':
        return put_one(m, PICKLE_LIST);
    case 's':
        return put_one(m, PICKLE_DICT);
    case 'e':
        return put_some(m, PICKLE_LIST);
    case 'u':
        return put_some(m, PICKLE_DICT);
    default:
        return tuple_of(m, (size_t)op - 0x84);
    }
}

/* One opcode; the letters are those of Python's pickletools. */
static int step(struct pickle_machine *m, uint8_t op)
{
    uint64_t n = 0;
    switch (op) {
    case 0x80:
        return op_proto(m);
    case 0x95: // FRAME: a length that a reader of files wants
        return take_number(m, 8, &n);
    case 0x94: // MEMOIZE
        return memo_put(m, m->n_memo);
    case 'q':
    case 'r':
    case 'h':
    case 'j':
        return op_memo(m, op);
    case 'X':
        return push_text_sized(m, PICKLE_TEXT, 4);
    case 0x8c:
        return push_text_sized(m, PICKLE_TEXT, 1);
    case 'K':
    case 'M':
    case 'J':
    case 'G':
    case 'N':
    case 0x88:
    case 0x89:
    case 0x8a:
        return op_number(m, op);
    case '(':
    case ')':
    case 't':
    case ']':
    case '}':
    case 'a':
    case 's':
    case 'e':
    case 'u':
    case 0x85:
    case 0x86:
    case 0x87:
        return op_container(m, op);
    case 'c':
        return op_global(m);
    case 0x93:
        return op_stack_global(m);
    case 'R':
        return op_reduce(m);
    case 'Q':
        return op_persistent(m);
    case 'b':
        return op_build(m);
    default:
        return pickle_corrupt(m, "has opcode 0x%02x, which no tensor state dict needs: hostile",
                              op);
    }
}

static int run(struct pickle_machine *m, struct pickle_value **out)
{
    for (;;) {
        const uint8_t *op = NULL;
        int rc = take(m, 1, &op);
        if (rc)
            return rc;
        if (*op == '.') {
            *out = pop(m);
            if (*out && m->n_stack)
                return pickle_corrupt(m, "leaves more than one value");
            return *out ? 0 : ERR_CORRUPT;
        }
        rc = step(m, *op);
        if (rc)
            return rc;
    }
}

int pickle_run(struct pickle_value **out, const void *data, size_t size, size_t *at,
               struct arena *arena, const char *where, struct err *err)
{
    const uint8_t *p = data;
    struct pickle_machine m = {
        .p = p + *at, .end = p + size, .arena = arena, .where = where, .err = err};
    *out = NULL;
    int rc = run(&m, out);
    if (rc)
        *out = NULL;
    *at = (size_t)(m.p - p);
    sys_free(m.stack);
    sys_free(m.memo);
    return rc;
}
