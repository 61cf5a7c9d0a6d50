#include "cmd/serve/auth.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "tests/lib/test.h"

static int check(const struct auth *a, enum auth_access access, const char *header, bool loopback)
{
    const char *reason = NULL;
    int status = auth_check(a, access, header, loopback, &reason);
    EXPECT(status == 0 || (reason && *reason));
    return status;
}

TEST(without_keys_any_token_is_accepted_and_admin_is_loopback_only)
{
    struct auth *a = NULL;
    struct err err = {0};
    CHECK_OK(auth_open(&a, NULL, 0, NULL, NULL, &err), err);
    EXPECT_INT(check(a, AUTH_KEY, NULL, false), 0);
    EXPECT_INT(check(a, AUTH_KEY, "Bearer anything", false), 0);
    EXPECT_INT(check(a, AUTH_ADMIN, "Bearer anything", false), 403);
    EXPECT_INT(check(a, AUTH_ADMIN, NULL, true), 0);
    auth_free(a);
}

TEST(api_keys_guard_all_but_open_routes)
{
    struct auth *a = NULL;
    struct err err = {0};
    const char *const keys[] = {"one", "two"};
    CHECK_OK(auth_open(&a, keys, 2, NULL, NULL, &err), err);
    EXPECT_INT(check(a, AUTH_OPEN, NULL, false), 0);
    EXPECT_INT(check(a, AUTH_KEY, NULL, true), 401);
    EXPECT_INT(check(a, AUTH_KEY, "Bearer three", true), 401);
    EXPECT_INT(check(a, AUTH_KEY, "Basic two", true), 401);
    EXPECT_INT(check(a, AUTH_KEY, "Bearer two", true), 0);
    EXPECT_INT(check(a, AUTH_KEY, "bearer  one", true), 0);
    EXPECT_INT(check(a, AUTH_ADMIN, "Bearer one", false), 0);
    auth_free(a);
}

TEST(the_admin_key_alone_may_mutate)
{
    struct auth *a = NULL;
    struct err err = {0};
    const char *const keys[] = {"user"};
    CHECK_OK(auth_open(&a, keys, 1, NULL, "root", &err), err);
    EXPECT_INT(check(a, AUTH_ADMIN, "Bearer user", true), 403);
    EXPECT_INT(check(a, AUTH_ADMIN, NULL, true), 401);
    EXPECT_INT(check(a, AUTH_ADMIN, "Bearer root", false), 0);
    EXPECT_INT(check(a, AUTH_KEY, "Bearer root", false), 0);
    auth_free(a);
}

TEST(an_admin_key_alone_leaves_the_other_routes_open)
{
    struct auth *a = NULL;
    struct err err = {0};
    CHECK_OK(auth_open(&a, NULL, 0, NULL, "root", &err), err);
    EXPECT_INT(check(a, AUTH_KEY, NULL, false), 0);
    EXPECT_INT(check(a, AUTH_ADMIN, NULL, true), 401);
    auth_free(a);
}

TEST(a_key_file_has_a_key_a_line)
{
    struct auth *a = NULL;
    struct err err = {0};
    char *path = file_join(test_tmp(), "keys");
    const char text[] = "# ours\nfirst\n\n  second \r\n";
    CHECK_OK(file_write_atomic(path, text, sizeof text - 1, &err), err);
    CHECK_OK(auth_open(&a, NULL, 0, path, NULL, &err), err);
    EXPECT_INT(check(a, AUTH_KEY, "Bearer second", false), 0);
    EXPECT_INT(check(a, AUTH_KEY, "Bearer # ours", false), 401);
    auth_free(a);
    CHECK_OK(file_write_atomic(path, "#\n", 2, &err), err);
    EXPECT_INT(auth_open(&a, NULL, 0, path, NULL, &err), ERR_USAGE);
    sys_free(path);
}

TEST(empty_keys_are_refused)
{
    struct auth *a = NULL;
    struct err err = {0};
    const char *const keys[] = {""};
    EXPECT_INT(auth_open(&a, keys, 1, NULL, NULL, &err), ERR_USAGE);
    EXPECT_INT(auth_open(&a, NULL, 0, NULL, "", &err), ERR_USAGE);
}
