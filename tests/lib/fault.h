/*
 * fault: the same work again and again, with its first, second, … call to sys failing, until none
 * is left to fail. Leaks and double frees on the way show under VARIANT=asan.
 */
#ifndef TESTS_LIB_FAULT_H
#define TESTS_LIB_FAULT_H

#include "libcore/base/err.h"
#include "libcore/base/sys.h"
#include "tests/lib/test.h"

/* body does the work and undoes it; returns the code of what failed. A failed call must come out as
 * an error with a message, unless `may_recover` (a cache that is not written, a faster way that is
 * not taken). Returns how many calls there were to fail. */
static inline uint64_t test_each_fault(unsigned class_mask, bool may_recover,
                                       int (*body)(void *arg, struct err *err), void *arg)
{
    for (uint64_t n = 1;; n++) {
        struct err err = {0};
        sys_fault(SYS_FAULT_FAIL, class_mask, n);
        int rc = body(arg, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        if (!hit) {
            if (rc)
                test_fail(__FILE__, __LINE__, "fails without a fault: %s", err.msg);
            return n - 1;
        }
        if (rc == 0 && !may_recover)
            test_fail(__FILE__, __LINE__, "call %llu failed and nobody said so",
                      (unsigned long long)n);
        if (rc != 0 && (err.code != rc || err.msg[0] == '\0'))
            test_fail(__FILE__, __LINE__, "call %llu failed: code %d, but err has %d \"%s\"",
                      (unsigned long long)n, rc, err.code, err.msg);
    }
}

#endif
