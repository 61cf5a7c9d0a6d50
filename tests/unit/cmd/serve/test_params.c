/* Reading the sampling part of requests, and holding back what may become a stop string. */
#include "cmd/serve/generation.h"
#include "cmd/serve/params.h"
#include "tests/lib/test.h"

enum { VOCAB = 100 };

static int read(struct params *p, const char *text, struct request_error *e)
{
    json_t *body = json_loads(text, 0, NULL);
    *e = (struct request_error){0};
    int rc = body ? params_read(p, body, VOCAB, e) : -2;
    json_decref(body);
    return rc;
}

static bool refused(const char *text, const char *param)
{
    struct params p;
    struct request_error e;
    params_init(&p, NULL);
    int rc = read(&p, text, &e);
    params_release(&p);
    EXPECT_MSG(rc == -1, "%s was taken", text);
    EXPECT_INT(e.status, 400);
    EXPECT(*e.message);
    return strcmp(e.param, param) == 0;
}

TEST(defaults_are_openais)
{
    struct params p;
    struct request_error e;
    params_init(&p, NULL);
    EXPECT_INT(read(&p, "{}", &e), 0);
    EXPECT_NEAR(p.sampling.temperature, 1, 0);
    EXPECT_NEAR(p.sampling.top_p, 1, 0);
    EXPECT_INT(p.sampling.top_k, 0);
    EXPECT_INT(p.n, 1);
    EXPECT(!p.has_max && !p.has_seed && p.skip_special);
    params_release(&p);
}

TEST(the_models_own_defaults_stand_behind_the_requests)
{
    const struct generation_config own = {.present = true,
                                          .has_temperature = true,
                                          .temperature = 0.6,
                                          .has_top_k = true,
                                          .top_k = 20};
    struct params p;
    struct request_error e;
    params_init(&p, &own);
    EXPECT_INT(read(&p, "{\"top_k\":-1}", &e), 0);
    EXPECT_NEAR(p.sampling.temperature, 0.6f, 0);
    EXPECT_INT(p.sampling.top_k, 0);
    params_release(&p);
}

TEST(every_field_is_read)
{
    struct params p;
    struct request_error e;
    params_init(&p, NULL);
    CHECK_INT(read(&p,
                   "{\"temperature\":0.5,\"top_p\":0.9,\"top_k\":7,\"min_p\":0.1,"
                   "\"presence_penalty\":1,\"frequency_penalty\":-1,\"repetition_penalty\":1.1,"
                   "\"stop\":[\"a\",\"bc\"],\"stop_token_ids\":[3,4],\"seed\":-1,\"n\":2,"
                   "\"logit_bias\":{\"5\":-200,\"6\":1.5},\"ignore_eos\":true,\"max_tokens\":9,"
                   "\"min_tokens\":2,\"skip_special_tokens\":false}",
                   &e),
              0);
    EXPECT_NEAR(p.sampling.min_p, 0.1f, 0);
    EXPECT_INT(p.sampling.top_k, 7);
    EXPECT_INT(p.n_stops, 2);
    EXPECT_STR(p.stops[1].text, "bc");
    EXPECT(params_is_stop_id(&p, 4) && !params_is_stop_id(&p, 5));
    EXPECT(p.has_seed && p.sampling.seed == UINT64_MAX);
    EXPECT_INT(p.sampling.n_bias, 2);
    EXPECT_NEAR(p.bias[0].bias, -100, 0); // bounded as in OpenAI's
    EXPECT(p.ignore_eos && p.has_max && !p.skip_special);
    EXPECT_INT(p.max_new_tokens, 9);
    EXPECT_INT(p.min_new_tokens, 2);
    params_release(&p);
}

TEST(max_new_tokens_and_max_completion_tokens_are_max_tokens)
{
    struct params p;
    struct request_error e;
    params_init(&p, NULL);
    EXPECT_INT(read(&p, "{\"max_new_tokens\":5}", &e), 0);
    EXPECT_INT(p.max_new_tokens, 5);
    EXPECT_INT(read(&p, "{\"max_completion_tokens\":6.0}", &e), 0);
    EXPECT_INT(p.max_new_tokens, 6);
    params_release(&p);
}

TEST(what_is_out_of_range_is_refused_by_name)
{
    EXPECT(refused("{\"temperature\":-0.1}", "temperature"));
    EXPECT(refused("{\"temperature\":\"x\"}", "temperature"));
    EXPECT(refused("{\"top_p\":0}", "top_p"));
    EXPECT(refused("{\"top_k\":-2}", "top_k"));
    EXPECT(refused("{\"top_k\":1.5}", "top_k"));
    EXPECT(refused("{\"min_p\":1.1}", "min_p"));
    EXPECT(refused("{\"presence_penalty\":3}", "presence_penalty"));
    EXPECT(refused("{\"repetition_penalty\":0}", "repetition_penalty"));
    EXPECT(refused("{\"stop\":[\"\"]}", "stop"));
    EXPECT(refused("{\"stop\":[1]}", "stop"));
    EXPECT(refused("{\"stop_token_ids\":[100]}", "stop_token_ids"));
    EXPECT(refused("{\"stop_token_ids\":3}", "stop_token_ids"));
    EXPECT(refused("{\"logit_bias\":{\"100\":1}}", "logit_bias"));
    EXPECT(refused("{\"logit_bias\":{\"x\":1}}", "logit_bias"));
    EXPECT(refused("{\"n\":0}", "n"));
    EXPECT(refused("{\"max_tokens\":-1}", "max_tokens"));
    EXPECT(refused("{\"max_tokens\":1,\"min_tokens\":2}", "min_tokens"));
    EXPECT(refused("{\"seed\":\"x\"}", "seed"));
    EXPECT(refused("{\"ignore_eos\":1}", "ignore_eos"));
}

TEST(text_that_may_begin_a_stop_string_is_held_back)
{
    struct stop_text stops[] = {{(char *)"\n\nUser:", 7}, {(char *)"END", 3}};
    const struct params p = {.stops = stops, .n_stops = 2};
    EXPECT_INT(generation_held_back(&p, "hello", 5), 0);
    EXPECT_INT(generation_held_back(&p, "hello\n", 6), 1);
    EXPECT_INT(generation_held_back(&p, "hello\n\nUs", 9), 4);
    EXPECT_INT(generation_held_back(&p, "the E", 5), 1);
    EXPECT_INT(generation_held_back(&p, "the EN", 6), 2);
    EXPECT_INT(generation_held_back(&p, "the ENx", 7), 0);
    EXPECT_INT(generation_held_back(&p, "", 0), 0);
}
