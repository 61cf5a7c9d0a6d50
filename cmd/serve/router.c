#include "cmd/serve/router.h"

#include <string.h>

#include "cmd/serve/api.h"

#define OPENAI ANSWER_OPENAI
#define SGLANG ANSWER_SGLANG

static const struct route routes[] = {
    // method, path, who, error object, always, handler
    {"GET", "/health", AUTH_OPEN, OPENAI, true, api_health},
    {"GET", "/ping", AUTH_OPEN, OPENAI, true, api_health},
    {"POST", "/ping", AUTH_OPEN, OPENAI, true, api_health},
    {"GET", "/metrics", AUTH_OPEN, OPENAI, false, api_metrics},
    {"GET", "/version", AUTH_KEY, OPENAI, true, api_version},

    {"GET", "/v1/models", AUTH_KEY, OPENAI, false, api_models},
    {"GET", "/v1/models/", AUTH_KEY, OPENAI, false, api_model},
    {"POST", "/v1/chat/completions", AUTH_KEY, OPENAI, false, api_chat},
    {"POST", "/v1/completions", AUTH_KEY, OPENAI, false, api_completions},

    {"POST", "/v1/load_lora_adapter", AUTH_ADMIN, OPENAI, false, api_vllm_load},
    {"POST", "/v1/unload_lora_adapter", AUTH_ADMIN, OPENAI, false, api_vllm_unload},
    {"POST", "/tokenize", AUTH_KEY, OPENAI, false, api_tokenize},
    {"POST", "/detokenize", AUTH_KEY, OPENAI, false, api_detokenize},
    {"POST", "/v1/tokenize", AUTH_KEY, OPENAI, false, api_tokenize},
    {"POST", "/v1/detokenize", AUTH_KEY, OPENAI, false, api_detokenize},

    {"POST", "/generate", AUTH_KEY, SGLANG, false, api_generate},
    {"PUT", "/generate", AUTH_KEY, SGLANG, false, api_generate},
    {"GET", "/health_generate", AUTH_KEY, SGLANG, false, api_health_generate},
    {"POST", "/load_lora_adapter", AUTH_ADMIN, SGLANG, false, api_sglang_load},
    {"POST", "/unload_lora_adapter", AUTH_ADMIN, SGLANG, false, api_sglang_unload},
    {"GET", "/get_model_info", AUTH_KEY, SGLANG, false, api_model_info},
    {"GET", "/model_info", AUTH_KEY, SGLANG, false, api_model_info},
    {"GET", "/get_server_info", AUTH_KEY, SGLANG, false, api_server_info},
    {"GET", "/server_info", AUTH_KEY, SGLANG, false, api_server_info},
    {"GET", "/flush_cache", AUTH_ADMIN, SGLANG, false, api_flush_cache},
    {"POST", "/flush_cache", AUTH_ADMIN, SGLANG, false, api_flush_cache},
};

static bool path_matches(const char *pattern, const char *path)
{
    size_t n = strlen(pattern);
    if (pattern[n - 1] == '/')
        return strncmp(pattern, path, n) == 0 && path[n] != '\0';
    return strcmp(pattern, path) == 0;
}

const struct route *router_find(const char *method, const char *path, const char **allow)
{
    *allow = NULL;
    if (strcmp(method, "HEAD") == 0)
        method = "GET";
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        if (!path_matches(routes[i].path, path))
            continue;
        if (strcmp(routes[i].method, method) == 0)
            return &routes[i];
        *allow = routes[i].method;
    }
    return NULL;
}
