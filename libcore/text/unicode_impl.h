/*
 * unicode_impl: the shape of the generated tables (gen_unicode.py). For libcore/text only.
 */
#ifndef LIBCORE_TEXT_UNICODE_IMPL_H
#define LIBCORE_TEXT_UNICODE_IMPL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum unicode_category {
    UC_Lu,
    UC_Ll,
    UC_Lt,
    UC_Lm,
    UC_Lo,
    UC_Mn,
    UC_Mc,
    UC_Me,
    UC_Nd,
    UC_Nl,
    UC_No,
    UC_Pc,
    UC_Pd,
    UC_Ps,
    UC_Pe,
    UC_Pi,
    UC_Pf,
    UC_Po,
    UC_Sm,
    UC_Sc,
    UC_Sk,
    UC_So,
    UC_Zs,
    UC_Zl,
    UC_Zp,
    UC_Cc,
    UC_Cf,
    UC_Cs,
    UC_Co,
    UC_Cn,
    UC_COUNT
};

enum unicode_script {
    SCRIPT_NONE, // a script that no table here holds
    SCRIPT_ARABIC,
    SCRIPT_BENGALI,
    SCRIPT_COMMON,
    SCRIPT_CYRILLIC,
    SCRIPT_DEVANAGARI,
    SCRIPT_GREEK,
    SCRIPT_HANGUL,
    SCRIPT_HAN,
    SCRIPT_HEBREW,
    SCRIPT_HIRAGANA,
    SCRIPT_KATAKANA,
    SCRIPT_LATIN,
    SCRIPT_TAMIL,
    SCRIPT_THAI,
    SCRIPT_COUNT
};

/* A run begins here and lasts to the next one. */
struct unicode_category_run {
    uint32_t first;
    uint8_t category;
};
struct unicode_script_run {
    uint32_t first;
    uint8_t script;
};
/* Every step-th code point of [first, last] has a lower case (or folded) form `delta` away. */
struct unicode_case_rule {
    uint32_t first, last;
    uint32_t step;
    int32_t delta;
};

extern const struct unicode_category_run unicode_categories[];
extern const size_t n_unicode_categories;
extern const struct unicode_script_run unicode_scripts[];
extern const size_t n_unicode_scripts;
extern const struct unicode_case_rule unicode_lower_rules[];
extern const size_t n_unicode_lower_rules;
extern const struct unicode_case_rule unicode_fold_rules[];
extern const size_t n_unicode_fold_rules;

/* Differences of the library's older tables (unicode_late.c). */
bool unicode_is_late_punctuation(uint32_t c);
bool unicode_is_late_form(uint32_t c);
bool unicode_is_other_mark(uint32_t c);

#endif
