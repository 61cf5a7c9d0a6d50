/*
 * test: the frame of every C test. A test is TEST(behaviour_in_words) { … }; a program is any
 * number of them and no main of its own (tests/lib/test.c has it). Output is TAP; exit 0 only if
 * all passed. program [-l] [substring …]   lists, or runs only the tests whose name contains one of
 * the words CHECK… notes a failure and returns from the test; EXPECT… notes it and goes on.
 */
#ifndef TESTS_LIB_TEST_H
#define TESTS_LIB_TEST_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct test_case {
    const char *name;
    void (*run)(void);
    struct test_case *next;
};
void test_register(struct test_case *t);
void test_fail(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void test_skip(const char *fmt, ...)
    __attribute__((format(printf, 1, 2))); // then return from the test
bool test_str_equal(const char *file, int line, const char *expr, const char *got,
                    const char *want);

/* Folder of ../shared/fixtures, or NULL (the test then calls test_skip and returns). Overridden by
 * LORA_FIXTURES. tinytalk is always there: test_tinytalk() is examples/tinytalk of the checkout. */
const char *test_fixtures(void);
const char *test_tinytalk(void);
const char *test_root(void); // the checkout: LORA_ROOT or found upward from the program
/* A fresh folder under build/tmp, removed when the program ends. */
const char *test_tmp(void);

#define TEST(test_name)                                                                            \
    static void test_##test_name(void);                                                            \
    __attribute__((constructor)) static void register_##test_name(void)                            \
    {                                                                                              \
        static struct test_case t = {#test_name, test_##test_name, NULL};                          \
        test_register(&t);                                                                         \
    }                                                                                              \
    static void test_##test_name(void)

#define EXPECT_(cond, ret, ...)                                                                    \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            test_fail(__FILE__, __LINE__, __VA_ARGS__);                                            \
            ret;                                                                                   \
        }                                                                                          \
    } while (0)

#define CHECK(cond)           EXPECT_(cond, return, "%s", #cond)
#define EXPECT(cond)          EXPECT_(cond, , "%s", #cond)
#define CHECK_MSG(cond, ...)  EXPECT_(cond, return, __VA_ARGS__)
#define EXPECT_MSG(cond, ...) EXPECT_(cond, , __VA_ARGS__)
#define CHECK_INT(got, want)                                                                       \
    do {                                                                                           \
        long long got_ = (long long)(got), want_ = (long long)(want);                              \
        EXPECT_(got_ == want_, return, "%s = %lld, want %lld", #got, got_, want_);                 \
    } while (0)
#define EXPECT_INT(got, want)                                                                      \
    do {                                                                                           \
        long long got_ = (long long)(got), want_ = (long long)(want);                              \
        EXPECT_(got_ == want_, , "%s = %lld, want %lld", #got, got_, want_);                       \
    } while (0)
#define CHECK_STR(got, want)                                                                       \
    do {                                                                                           \
        if (!test_str_equal(__FILE__, __LINE__, #got, got, want))                                  \
            return;                                                                                \
    } while (0)
#define EXPECT_STR(got, want) (void)test_str_equal(__FILE__, __LINE__, #got, got, want)
/* A call that returns 0 or a code with a struct err: shows the message when it fails. */
#define CHECK_OK(call, err) EXPECT_((call) == 0, return, "%s: %s", #call, (err).msg)
#define CHECK_CODE(call, want, err)                                                                \
    do {                                                                                           \
        int code_ = (call);                                                                        \
        EXPECT_(code_ == (want), return, "%s gives %d, want %d: %s", #call, code_, (int)(want),    \
                (err).msg);                                                                        \
    } while (0)
#define EXPECT_NEAR(got, want, tolerance)                                                          \
    do {                                                                                           \
        double g_ = (got), w_ = (want);                                                            \
        EXPECT_(fabs(g_ - w_) <= (tolerance), , "%s = %.9g, want %.9g", #got, g_, w_);             \
    } while (0)

#endif
