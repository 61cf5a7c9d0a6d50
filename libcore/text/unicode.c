#include "libcore/text/unicode.h"

#include <string.h>

#include "libcore/text/unicode_impl.h"

size_t utf8_length(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return 0;
    size_t len = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    bool unfinished;
    return n >= len && utf8_bad_length(text, len, &unfinished) == 0 ? len : 0;
}

uint32_t utf8_decode(const char *text, size_t *len)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) {
        *len = 1;
        return s[0];
    }
    if (s[0] < 0xE0) {
        *len = 2;
        return (uint32_t)(s[0] & 0x1F) << 6 | (s[1] & 0x3F);
    }
    if (s[0] < 0xF0) {
        *len = 3;
        return (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    }
    *len = 4;
    return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 |
           (uint32_t)(s[2] & 0x3F) << 6 | (s[3] & 0x3F);
}

size_t utf8_encode(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t len = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = len - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)((0xF00u >> len & 0xFF) | c);
    return len;
}

/* Walks the sequence by table 3-7 of the standard: 0 when it is whole and well-formed. */
size_t utf8_bad_length(const char *text, size_t n, bool *unfinished)
{
    const unsigned char *s = (const unsigned char *)text;
    *unfinished = false;
    if (s[0] < 0x80)
        return 0;
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return 1;
    size_t len = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    unsigned low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    unsigned high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    for (size_t i = 1; i < len; i++, low = 0x80, high = 0xBF) {
        if (i == n) {
            *unfinished = true;
            return i;
        }
        if (s[i] < low || s[i] > high)
            return i;
    }
    return 0;
}

size_t utf8_valid_prefix(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        if (n - i >= 8) {
            memcpy(&eight, s + i, 8);
            if (!(eight & 0x8080808080808080u)) {
                i += 8;
                continue;
            }
        }
        size_t len = utf8_length(s + i, n - i);
        if (!len)
            return i;
        i += len;
    }
    return n;
}

void utf8_add_lossy(struct strbuf *out, const char *s, size_t n)
{
    while (n) {
        size_t good = utf8_valid_prefix(s, n);
        strbuf_add(out, s, good);
        s += good;
        n -= good;
        if (!n)
            break;
        bool unfinished;
        size_t bad = utf8_bad_length(s, n, &unfinished);
        strbuf_add(out, "\xEF\xBF\xBD", 3);
        s += bad;
        n -= bad;
    }
}

size_t utf8_length_before(const char *s, size_t at)
{
    size_t len = 0;
    while (len < at && len < 4) {
        len++;
        if (((unsigned char)s[at - len] & 0xC0) != 0x80)
            break;
    }
    return len;
}

static enum unicode_category category_of(uint32_t c)
{
    size_t low = 0, high = n_unicode_categories;
    while (high - low > 1) {
        size_t mid = (low + high) / 2;
        if (unicode_categories[mid].first <= c)
            low = mid;
        else
            high = mid;
    }
    return unicode_categories[low].category;
}

bool unicode_is_space(uint32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool unicode_is_numeric(uint32_t c)
{
    if (c < 0x80)
        return c >= '0' && c <= '9';
    // U+11DE0…9 (Unicode 17) and the rest of N*, as Rust's char::is_numeric has them
    if ((c >= 0x11DE0 && c <= 0x11DE9) || (c >= 0x16FF4 && c <= 0x16FF6))
        return true;
    enum unicode_category k = category_of(c);
    return k == UC_Nd || k == UC_Nl || k == UC_No;
}

bool unicode_is_mark(uint32_t c)
{
    enum unicode_category k = category_of(c);
    return (k >= UC_Mn && k <= UC_Me) != unicode_is_other_mark(c);
}

static const struct cp_range circled_letters[] = {
    {0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};

static bool is_circled_letter(uint32_t c)
{
    for (size_t i = 0; i < sizeof circled_letters / sizeof *circled_letters; i++) {
        if (c >= circled_letters[i].first && c <= circled_letters[i].last)
            return true;
    }
    return false;
}

bool unicode_is_word(uint32_t c)
{
    enum unicode_category k = category_of(c);
    return k <= UC_Nl || k == UC_Pc || c == 0x200C || c == 0x200D || is_circled_letter(c);
}

bool unicode_is_punctuation(uint32_t c)
{
    if (c < 0x80)
        return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
               (c >= '{' && c <= '~');
    if (c == 0x166D || c == 0x111C9) // no longer P*, but in that table
        return true;
    enum unicode_category k = category_of(c);
    if (k < UC_Pc || k > UC_Po)
        return false;
    return !unicode_is_late_punctuation(c);
}

static uint32_t simple_lower(uint32_t c)
{
    size_t low = 0, high = n_unicode_lower_rules;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (unicode_lower_rules[mid].last < c)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == n_unicode_lower_rules || c < unicode_lower_rules[low].first)
        return c;
    const struct unicode_case_rule *r = &unicode_lower_rules[low];
    return (c - r->first) % r->step == 0 ? (uint32_t)((int64_t)c + r->delta) : c;
}

void unicode_add_lower(struct strbuf *out, uint32_t c)
{
    if (c == 0x130)
        strbuf_adds(out, "i\xCC\x87");
    else
        strbuf_add_utf8(out, simple_lower(c));
}

/* ---- properties as sets ---- */

static void add_categories(struct cp_set *s, uint32_t mask)
{
    for (size_t i = 0; i < n_unicode_categories; i++) {
        uint32_t end =
            i + 1 < n_unicode_categories ? unicode_categories[i + 1].first : UNICODE_MAX + 1;
        if (mask >> unicode_categories[i].category & 1)
            cp_set_add(s, unicode_categories[i].first, end - 1);
    }
}

static void add_script(struct cp_set *s, enum unicode_script script)
{
    for (size_t i = 0; i < n_unicode_scripts; i++) {
        uint32_t end = i + 1 < n_unicode_scripts ? unicode_scripts[i + 1].first : UNICODE_MAX + 1;
        if (unicode_scripts[i].script == script)
            cp_set_add(s, unicode_scripts[i].first, end - 1);
    }
}

#define CATEGORY_RANGE(a, b) ((2u << UC_##b) - (1u << UC_##a))
static const struct {
    const char *name;
    uint32_t mask;
} category_names[] = {{"l", CATEGORY_RANGE(Lu, Lo)},
                      {"letter", CATEGORY_RANGE(Lu, Lo)},
                      {"m", CATEGORY_RANGE(Mn, Me)},
                      {"mark", CATEGORY_RANGE(Mn, Me)},
                      {"n", CATEGORY_RANGE(Nd, No)},
                      {"number", CATEGORY_RANGE(Nd, No)},
                      {"p", CATEGORY_RANGE(Pc, Po)},
                      {"punctuation", CATEGORY_RANGE(Pc, Po)},
                      {"s", CATEGORY_RANGE(Sm, So)},
                      {"symbol", CATEGORY_RANGE(Sm, So)},
                      {"z", CATEGORY_RANGE(Zs, Zp)},
                      {"separator", CATEGORY_RANGE(Zs, Zp)},
                      {"c", CATEGORY_RANGE(Cc, Cn)},
                      {"other", CATEGORY_RANGE(Cc, Cn)},
                      {"lu", 1u << UC_Lu},
                      {"uppercaseletter", 1u << UC_Lu},
                      {"ll", 1u << UC_Ll},
                      {"lowercaseletter", 1u << UC_Ll},
                      {"lt", 1u << UC_Lt},
                      {"titlecaseletter", 1u << UC_Lt},
                      {"lm", 1u << UC_Lm},
                      {"modifierletter", 1u << UC_Lm},
                      {"lo", 1u << UC_Lo},
                      {"otherletter", 1u << UC_Lo},
                      {"mn", 1u << UC_Mn},
                      {"mc", 1u << UC_Mc},
                      {"me", 1u << UC_Me},
                      {"nd", 1u << UC_Nd},
                      {"decimalnumber", 1u << UC_Nd},
                      {"nl", 1u << UC_Nl},
                      {"no", 1u << UC_No},
                      {"pc", 1u << UC_Pc},
                      {"pd", 1u << UC_Pd},
                      {"ps", 1u << UC_Ps},
                      {"pe", 1u << UC_Pe},
                      {"pi", 1u << UC_Pi},
                      {"pf", 1u << UC_Pf},
                      {"po", 1u << UC_Po},
                      {"sm", 1u << UC_Sm},
                      {"sc", 1u << UC_Sc},
                      {"sk", 1u << UC_Sk},
                      {"so", 1u << UC_So},
                      {"zs", 1u << UC_Zs},
                      {"zl", 1u << UC_Zl},
                      {"zp", 1u << UC_Zp},
                      {"cc", 1u << UC_Cc},
                      {"cf", 1u << UC_Cf},
                      {"co", 1u << UC_Co},
                      {"cn", 1u << UC_Cn},
                      {"any", CATEGORY_RANGE(Lu, Cn)}};

static const struct {
    const char *name;
    enum unicode_script script;
} script_names[] = {{"arabic", SCRIPT_ARABIC},         {"bengali", SCRIPT_BENGALI},
                    {"common", SCRIPT_COMMON},         {"cyrillic", SCRIPT_CYRILLIC},
                    {"devanagari", SCRIPT_DEVANAGARI}, {"greek", SCRIPT_GREEK},
                    {"hangul", SCRIPT_HANGUL},         {"han", SCRIPT_HAN},
                    {"hebrew", SCRIPT_HEBREW},         {"hiragana", SCRIPT_HIRAGANA},
                    {"katakana", SCRIPT_KATAKANA},     {"latin", SCRIPT_LATIN},
                    {"tamil", SCRIPT_TAMIL},           {"thai", SCRIPT_THAI}};

/* Oniguruma's \w inside a set: letters, marks, Nd, Nl, Pc and circled letters. */
static void add_word(struct cp_set *s)
{
    add_categories(s, CATEGORY_RANGE(Lu, Nl) | 1u << UC_Pc);
    for (size_t i = 0; i < sizeof circled_letters / sizeof *circled_letters; i++)
        cp_set_add(s, circled_letters[i].first, circled_letters[i].last);
}

static bool add_escape(struct cp_set *s, char letter)
{
    switch (letter) {
    case 's':
        for (uint32_t c = 0; c <= 0x3000; c++) {
            if (unicode_is_space(c))
                cp_set_add(s, c, c);
        }
        return true;
    case 'd':
        add_categories(s, 1u << UC_Nd);
        return true;
    case 'w':
        add_word(s);
        return true;
    case 'h':
        cp_set_add(s, '0', '9');
        cp_set_add(s, 'A', 'F');
        cp_set_add(s, 'a', 'f');
        return true;
    default:
        return false;
    }
}

bool cp_set_add_property(struct cp_set *s, const char *name, size_t n)
{
    char key[32];
    size_t k = 0;
    if (n == 2 && name[0] == '\\') {
        bool known = add_escape(s, name[1]);
        cp_set_normalize(s);
        return known;
    }
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        if (c == ' ' || c == '-' || c == '_')
            continue;
        if (k + 1 == sizeof key)
            return false;
        key[k++] = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
    }
    key[k] = '\0';
    for (size_t i = 0; i < sizeof category_names / sizeof *category_names; i++) {
        if (strcmp(key, category_names[i].name) == 0) {
            // the surrogates (Cs) are no characters of a text: left out of C and Any
            add_categories(s, category_names[i].mask & ~(1u << UC_Cs));
            cp_set_normalize(s);
            return true;
        }
    }
    for (size_t i = 0; i < sizeof script_names / sizeof *script_names; i++) {
        if (strcmp(key, script_names[i].name) == 0) {
            add_script(s, script_names[i].script);
            cp_set_normalize(s);
            return true;
        }
    }
    return false;
}

/* For every rule c → f whose c or f (as `forward` says) is in s: adds the other one to `extra`. */
static void add_folds(const struct cp_set *s, bool forward, struct cp_set *extra)
{
    for (size_t i = 0; i < n_unicode_fold_rules; i++) {
        const struct unicode_case_rule *r = &unicode_fold_rules[i];
        for (uint32_t c = r->first; c <= r->last; c += r->step) {
            uint32_t folded = (uint32_t)((int64_t)c + r->delta);
            if (cp_set_has(s, forward ? c : folded))
                cp_set_add(extra, forward ? folded : c, forward ? folded : c);
        }
    }
}

void cp_set_close_case(struct cp_set *s)
{
    struct cp_set extra;
    cp_set_init(&extra);
    for (int pass = 0; pass < 2; pass++) { // to the folded forms, then to all that fold to them
        extra.n = 0;
        add_folds(s, pass == 0, &extra);
        cp_set_add_set(s, &extra);
        cp_set_normalize(s);
    }
    cp_set_release(&extra);
}
