/* Tokens of a template. The rules are those of jinja2's lexer with trim_blocks and lstrip_blocks.
 */
#include <string.h>

#include "libcore/text/jinja_syntax.h"

static uint32_t line_at(struct jinja_lexer *lx, size_t pos)
{
    for (; lx->line_pos < pos; lx->line_pos++)
        lx->line += lx->src[lx->line_pos] == '\n';
    return lx->line;
}

static int lex_fail(struct jinja_lexer *lx, size_t pos, const char *what)
{
    return err_set(lx->err, ERR_CORRUPT, "%s:%u: %s", lx->name, line_at(lx, pos), what);
}

static int add_token(struct jinja_lexer *lx, struct jinja_token t, size_t pos)
{
    if (lx->n == JINJA_MAX_TOKENS)
        return err_set(lx->err, ERR_LIMIT, "%s:%u: a template of more than %d words", lx->name,
                       line_at(lx, pos), JINJA_MAX_TOKENS);
    if (lx->n == lx->cap) {
        size_t cap = lx->cap ? 2 * lx->cap : 256;
        struct jinja_token *tokens = arena_array(lx->arena, cap, sizeof *tokens);
        if (!tokens)
            return err_set(lx->err, ERR_NO_MEMORY, "%s: out of memory", lx->name);
        if (lx->n)
            memcpy(tokens, lx->tokens, lx->n * sizeof *tokens);
        lx->tokens = tokens;
        lx->cap = cap;
    }
    t.line = line_at(lx, pos);
    lx->tokens[lx->n++] = t;
    return 0;
}

static int add_text(struct jinja_lexer *lx, enum jinja_token_type type, size_t begin, size_t end)
{
    struct jinja_token t = {
        .type = (uint8_t)type, .text = lx->src + begin, .len = (uint32_t)(end - begin)};
    return add_token(lx, t, begin);
}

static bool at(const struct jinja_lexer *lx, size_t pos, const char *text)
{
    size_t n = strlen(text);
    return n <= lx->len - pos && memcmp(lx->src + pos, text, n) == 0;
}

static char peek(const struct jinja_lexer *lx, size_t pos)
{
    return pos < lx->len ? lx->src[pos] : '\0';
}

static size_t skip_space(const struct jinja_lexer *lx, size_t pos)
{
    uint32_t cp;
    while (pos < lx->len) {
        size_t n = jinja_decode(lx->src + pos, lx->len - pos, &cp);
        if (!jinja_is_space(cp))
            break;
        pos += n;
    }
    return pos;
}

/* End of src[begin, end) without the white space at its end. */
static size_t strip_right(const struct jinja_lexer *lx, size_t begin, size_t end)
{
    while (end > begin) {
        size_t p = end - 1;
        while (p > begin && ((unsigned char)lx->src[p] & 0xC0) == 0x80)
            p--;
        uint32_t cp;
        jinja_decode(lx->src + p, end - p, &cp);
        if (!jinja_is_space(cp))
            break;
        end = p;
    }
    return end;
}

/* Where the text before a tag ends, after what its sign and lstrip_blocks take away. */
static size_t text_end(const struct jinja_lexer *lx, size_t begin, size_t end, char sign,
                       bool print)
{
    if (sign == '-')
        return strip_right(lx, begin, end);
    if (sign == '+' || print)
        return end;
    size_t line = end;
    while (line > begin && lx->src[line - 1] != '\n')
        line--;
    if (line == begin && !lx->line_starting)
        return end;
    return strip_right(lx, line, end) == line ? line : end;
}

/* Moves past the end of a tag, whose `}` characters are at pos, and past what it swallows. */
static void close_tag(struct jinja_lexer *lx, size_t pos, char sign, bool trim)
{
    pos += 2;
    if (sign == '-')
        pos = skip_space(lx, pos);
    else if (sign != '+' && trim && peek(lx, pos) == '\n')
        pos++;
    lx->pos = pos;
    lx->line_starting = lx->src[pos - 1] == '\n';
}

/* `{% word %}` at pos, with signs: where its closing %} is and which sign stands before it. */
static bool word_tag(const struct jinja_lexer *lx, size_t pos, const char *word, bool plus,
                     size_t *close, char *sign)
{
    pos += 2;
    if (peek(lx, pos) == '-' || peek(lx, pos) == '+')
        pos++;
    pos = skip_space(lx, pos);
    if (!at(lx, pos, word))
        return false;
    pos = skip_space(lx, pos + strlen(word));
    *sign = peek(lx, pos);
    if (*sign == '-' || (plus && *sign == '+'))
        pos++;
    *close = pos;
    return at(lx, pos, "%}");
}

static int lex_raw(struct jinja_lexer *lx)
{
    size_t begin = lx->pos;
    for (size_t p = begin; p + 1 < lx->len; p++) {
        size_t close;
        char sign, open_sign;
        if (!at(lx, p, "{%") || !word_tag(lx, p, "endraw", true, &close, &sign))
            continue;
        open_sign = peek(lx, p + 2);
        size_t end = text_end(lx, begin, p, open_sign, false);
        if (end > begin)
            JINJA_TRY(add_text(lx, TOKEN_DATA, begin, end));
        close_tag(lx, close, sign, true);
        return 0;
    }
    return lex_fail(lx, begin, "Missing end of raw directive");
}

static int lex_comment(struct jinja_lexer *lx)
{
    for (size_t p = lx->pos; p + 1 < lx->len; p++) {
        if (!at(lx, p, "#}"))
            continue;
        char sign = p > lx->pos ? lx->src[p - 1] : '\0';
        close_tag(lx, p, sign, true);
        return 0;
    }
    return lex_fail(lx, lx->pos, "Missing end of comment tag");
}

/* ---- inside tags ---- */
static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* \xhh, \uhhhh, \Uhhhhhhhh: the digits after position *i. */
static bool read_hex(const char *s, size_t len, size_t *i, unsigned digits, uint32_t *cp)
{
    *cp = 0;
    for (unsigned k = 0; k < digits; k++, (*i)++) {
        int v = *i < len ? hex_value(s[*i]) : -1;
        if (v < 0)
            return false;
        *cp = *cp << 4 | (uint32_t)v;
    }
    return *cp <= 0x10FFFF && (*cp < 0xD800 || *cp > 0xDFFF);
}

static void add_octal(struct strbuf *sb, const char *s, size_t len, size_t *i)
{
    uint32_t cp = 0;
    for (unsigned k = 0; k < 3 && *i < len && s[*i] >= '0' && s[*i] <= '7'; k++, (*i)++)
        cp = cp * 8 + (uint32_t)(s[*i] - '0');
    strbuf_add_utf8(sb, cp);
}

/* One escape after the backslash at s[*i - 1]. False: broken, or a lone surrogate. */
static bool unescape_one(struct strbuf *sb, const char *s, size_t len, size_t *i)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    char c = s[*i];
    const char *simple = c ? strchr(from, c) : NULL;
    uint32_t cp;
    if (c == '\n') {
        (*i)++;
    } else if (simple) {
        strbuf_addc(sb, to[simple - from]);
        (*i)++;
    } else if (c == 'x' || c == 'u' || c == 'U') {
        (*i)++;
        if (!read_hex(s, len, i, c == 'x' ? 2 : c == 'u' ? 4 : 8, &cp))
            return false;
        strbuf_add_utf8(sb, cp);
    } else if (c >= '0' && c <= '7') {
        add_octal(sb, s, len, i);
    } else if (c == 'N') {
        return false;
    } else {
        strbuf_addc(sb, '\\');
    }
    return true;
}

static int unescape(struct jinja_lexer *lx, size_t begin, size_t end, struct jinja_token *t)
{
    const char *s = lx->src + begin;
    size_t len = end - begin;
    struct strbuf sb;
    strbuf_init(&sb);
    for (size_t i = 0; i < len;) {
        if (s[i] != '\\') {
            strbuf_addc(&sb, s[i++]);
            continue;
        }
        i++;
        if (!unescape_one(&sb, s, len, &i)) {
            strbuf_release(&sb);
            return lex_fail(lx, begin,
                            "a broken \\ escape (\\N{…} and lone surrogates are not known)");
        }
    }
    char *copy = sb.failed ? NULL : arena_alloc(lx->arena, sb.len + 1);
    if (copy && sb.len)
        memcpy(copy, sb.data, sb.len);
    t->text = copy;
    t->len = (uint32_t)sb.len;
    strbuf_release(&sb);
    return t->text ? 0 : err_set(lx->err, ERR_NO_MEMORY, "%s: out of memory", lx->name);
}

/* A string that starts at pos; its quote must be closed. */
static int lex_string(struct jinja_lexer *lx)
{
    size_t begin = lx->pos + 1, p = begin;
    char quote = lx->src[lx->pos];
    bool escaped = false;
    while (p < lx->len && lx->src[p] != quote) {
        escaped |= lx->src[p] == '\\';
        p += lx->src[p] == '\\' ? 2 : 1;
    }
    if (p >= lx->len)
        return lex_fail(lx, lx->pos, "a string without its closing quote");
    struct jinja_token t = {
        .type = TOKEN_STRING, .text = lx->src + begin, .len = (uint32_t)(p - begin)};
    if (escaped)
        JINJA_TRY(unescape(lx, begin, p, &t));
    size_t start = lx->pos;
    lx->pos = p + 1;
    return add_token(lx, t, start);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Digits with single underscores between them. */
static size_t scan_digits(const struct jinja_lexer *lx, size_t p)
{
    while (is_digit(peek(lx, p)) || (peek(lx, p) == '_' && is_digit(peek(lx, p + 1))))
        p++;
    return p;
}

static bool base_digit(char c, unsigned base)
{
    int v = hex_value(c);
    return v >= 0 && (unsigned)v < base;
}

/* End of an integer at p: 0x1f, 0b1, 0o7, 12, 0. */
static size_t scan_int(const struct jinja_lexer *lx, size_t p)
{
    char kind = (char)(peek(lx, p + 1) | 0x20);
    unsigned base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    if (peek(lx, p) == '0' && base) {
        size_t q = p + 2;
        while (base_digit(peek(lx, q), base) ||
               (peek(lx, q) == '_' && base_digit(peek(lx, q + 1), base)))
            q++;
        if (q > p + 2)
            return q;
    }
    if (peek(lx, p) != '0')
        return scan_digits(lx, p);
    p++;
    while (peek(lx, p) == '0' || (peek(lx, p) == '_' && peek(lx, p + 1) == '0'))
        p++;
    return p;
}

/* End of a float at p, or p when it is none. */
static size_t scan_float(const struct jinja_lexer *lx, size_t p)
{
    if (p > 0 && lx->src[p - 1] == '.')
        return p;
    size_t q = scan_digits(lx, p);
    bool is_float = peek(lx, q) == '.' && is_digit(peek(lx, q + 1));
    if (is_float)
        q = scan_digits(lx, q + 1);
    if ((peek(lx, q) | 0x20) == 'e') {
        size_t e = q + 1;
        if (peek(lx, e) == '+' || peek(lx, e) == '-')
            e++;
        if (is_digit(peek(lx, e))) {
            q = scan_digits(lx, e);
            is_float = true;
        }
    }
    return is_float ? q : p;
}

static int lex_number(struct jinja_lexer *lx)
{
    size_t begin = lx->pos, end = scan_float(lx, begin);
    enum jinja_token_type type = end > begin ? TOKEN_FLOAT : TOKEN_INT;
    if (type == TOKEN_INT)
        end = scan_int(lx, begin);
    lx->pos = end;
    return add_text(lx, type, begin, end);
}

static size_t scan_name(const struct jinja_lexer *lx, size_t p)
{
    uint32_t cp;
    while (p < lx->len) {
        size_t n = jinja_decode(lx->src + p, lx->len - p, &cp);
        if (!jinja_is_word(cp))
            break;
        p += n;
    }
    return p;
}

static int lex_operator(struct jinja_lexer *lx)
{
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    static const char one[] = "+-/*%~[](){}><=.:|,;";
    struct jinja_token t = {.type = TOKEN_OP};
    char c = lx->src[lx->pos];
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        if (at(lx, lx->pos, two[i]))
            memcpy(t.op, two[i], 2);
    if (!t.op[0] && strchr(one, c))
        t.op[0] = c;
    if (!t.op[0])
        return lex_fail(lx, lx->pos, "unexpected character in a tag");
    if (strchr("([{", t.op[0])) {
        if (lx->n_balance == sizeof lx->balance)
            return err_set(lx->err, ERR_LIMIT, "%s:%u: brackets are nested too deep", lx->name,
                           line_at(lx, lx->pos));
        lx->balance[lx->n_balance++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (strchr(")]}", t.op[0]) &&
               (!lx->n_balance || lx->balance[--lx->n_balance] != t.op[0])) {
        return lex_fail(lx, lx->pos, "a closing bracket that does not match");
    }
    size_t start = lx->pos;
    lx->pos += strlen(t.op);
    return add_token(lx, t, start);
}

/* The end of a tag at the position: the place of its }} or %} and the sign before. */
static bool tag_end(const struct jinja_lexer *lx, bool print, size_t *close, char *sign)
{
    *sign = peek(lx, lx->pos);
    bool has_sign = *sign == '-' || (!print && *sign == '+');
    *close = lx->pos + has_sign;
    return lx->n_balance == 0 && *close < lx->len && at(lx, *close, print ? "}}" : "%}");
}

static int lex_one(struct jinja_lexer *lx)
{
    char c = lx->src[lx->pos];
    if (is_digit(c))
        return lex_number(lx);
    if (c == '\'' || c == '"')
        return lex_string(lx);
    size_t end = scan_name(lx, lx->pos);
    if (end == lx->pos)
        return lex_operator(lx);
    size_t begin = lx->pos;
    lx->pos = end;
    return add_text(lx, TOKEN_NAME, begin, end);
}

static int lex_tag(struct jinja_lexer *lx, bool print)
{
    for (;;) {
        size_t close;
        char sign;
        if (lx->pos >= lx->len)
            return 0; // the parser says what is missing
        if (tag_end(lx, print, &close, &sign)) {
            struct jinja_token t = {.type = print ? TOKEN_VAR_END : TOKEN_BLOCK_END};
            JINJA_TRY(add_token(lx, t, lx->pos));
            close_tag(lx, close, sign, !print);
            return 0;
        }
        size_t after = skip_space(lx, lx->pos);
        if (after > lx->pos)
            lx->pos = after;
        else
            JINJA_TRY(lex_one(lx));
    }
}

/* The text up to the next tag, and that tag. */
static int lex_root(struct jinja_lexer *lx)
{
    size_t begin = lx->pos, p = begin;
    while (p < lx->len && !(lx->src[p] == '{' && p + 1 < lx->len && strchr("%{#", lx->src[p + 1])))
        p++;
    if (p >= lx->len) {
        lx->pos = lx->len;
        return add_text(lx, TOKEN_DATA, begin, lx->len);
    }
    char kind = lx->src[p + 1], sign = peek(lx, p + 2), close_sign;
    bool has_sign = sign == '-' || sign == '+';
    size_t end = text_end(lx, begin, p, has_sign ? sign : '\0', kind == '{'), close;
    if (end > begin)
        JINJA_TRY(add_text(lx, TOKEN_DATA, begin, end));
    if (kind == '%' && word_tag(lx, p, "raw", false, &close, &close_sign)) {
        close_tag(lx, close, close_sign == '-' ? '-' : '+', false);
        return lex_raw(lx);
    }
    lx->pos = p + 2 + has_sign;
    if (kind == '#')
        return lex_comment(lx);
    struct jinja_token t = {.type = kind == '{' ? TOKEN_VAR_BEGIN : TOKEN_BLOCK_BEGIN};
    JINJA_TRY(add_token(lx, t, p));
    lx->n_balance = 0;
    return lex_tag(lx, kind == '{');
}

int jinja_lex(struct jinja_lexer *lx)
{
    lx->line = 1;
    lx->line_starting = true;
    while (lx->pos < lx->len)
        JINJA_TRY(lex_root(lx));
    struct jinja_token t = {.type = TOKEN_EOF};
    return add_token(lx, t, lx->len);
}
