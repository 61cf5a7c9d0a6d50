#include "cmd/serve/router.h"
#include "tests/lib/test.h"

static const struct route *find(const char *method, const char *path, const char **allow)
{
    return router_find(method, path, allow);
}

TEST(routes_are_found_by_method_and_path)
{
    const char *allow;
    const struct route *r = find("POST", "/v1/chat/completions", &allow);
    CHECK(r);
    EXPECT(r->access == AUTH_KEY && r->style == ANSWER_OPENAI);
    r = find("POST", "/generate", &allow);
    CHECK(r);
    EXPECT_INT(r->style, ANSWER_SGLANG);
    EXPECT(find("HEAD", "/health", &allow) != NULL);
}

TEST(a_wrong_method_is_told_apart_from_a_wrong_path)
{
    const char *allow;
    EXPECT(!find("GET", "/generate", &allow) && allow);
    EXPECT(!find("GET", "/nothing", &allow) && !allow);
    EXPECT(!find("POST", "/v1/chat/completions/x", &allow) && !allow);
}

TEST(a_path_with_a_slash_takes_what_is_below_it)
{
    const char *allow;
    const struct route *all = find("GET", "/v1/models", &allow);
    const struct route *one = find("GET", "/v1/models/org/name", &allow);
    CHECK(all && one);
    EXPECT(all != one);
    EXPECT(!find("GET", "/v1/models/", &allow));
}

TEST(what_mutates_wants_the_admin_key_and_probes_are_open)
{
    static const char *const admin[] = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter",
                                        "/load_lora_adapter", "/unload_lora_adapter",
                                        "/flush_cache"};
    static const char *const open[] = {"/health", "/ping", "/metrics"};
    const char *allow;
    for (size_t i = 0; i < sizeof admin / sizeof *admin; i++) {
        const struct route *r = find("POST", admin[i], &allow);
        EXPECT_MSG(r && r->access == AUTH_ADMIN, "%s", admin[i]);
    }
    for (size_t i = 0; i < sizeof open / sizeof *open; i++) {
        const struct route *r = find("GET", open[i], &allow);
        EXPECT_MSG(r && r->access == AUTH_OPEN, "%s", open[i]);
    }
}
