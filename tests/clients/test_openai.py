"""The openai client: lists models, chats, completes, streams, and raises its proper exceptions."""
# tiers: clients
import asyncio

import openai
from harness import GOLDEN, Server, done, equal, ok, raises

WORDS = "hot sheet gush"


def check_models(client):
    models = client.models.list().data
    equal([m.id for m in models][:2], ["tinytalk", "count-lora"], "lists the base and the adapters")
    equal((models[1].parent, models[1].owned_by), ("tinytalk", "lora"), "an adapter names its parent")
    equal(client.models.retrieve("upper-lora").id, "upper-lora", "retrieves one")
    raises(openai.NotFoundError, lambda: client.models.retrieve("none"), "an unknown one is NotFoundError")


def check_chat(client):
    answer = client.chat.completions.create(model="upper-lora", messages=[{"role": "user", "content": WORDS}],
                                            temperature=0, logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    equal(choice.message.content, "HOT SHEET GUSH", "chats")
    equal((choice.finish_reason, choice.message.role, answer.model), ("stop", "assistant", "upper-lora"), "whole answers")
    equal(choice.logprobs.content[0].token, "H", "log-probabilities")
    equal(len(choice.logprobs.content[0].top_logprobs), 2, "and the top ones")
    equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens, "usage")
    ok(answer.usage.prompt_tokens_details.cached_tokens >= 0, "cached tokens")
    answer = client.chat.completions.create(model="tinytalk", messages=[{"role": "user", "content": WORDS}], temperature=0,
                                            n=2, extra_body={"lora": [{"name": "reverse-lora", "scale": 1.0}]})
    equal([c.message.content for c in answer.choices], ["gush sheet hot"] * 2, "n, and lora in extra_body")
    for name in ("base", "sort-lora", "math-lora"):
        row = GOLDEN[name][0]
        model = "tinytalk" if name == "base" else name
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": row["prompt"]}],
                                                temperature=0)
        equal(answer.choices[0].message.content, row["text"], f"the golden answer of {name}")


def check_streams(client):
    stream = client.chat.completions.create(model="upper-lora", messages=[{"role": "user", "content": WORDS}], temperature=0,
                                            stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    equal(text, "HOT SHEET GUSH", "streams")
    equal(chunks[0].choices[0].delta.role, "assistant", "the role comes first")
    equal([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop", "the reason last")
    ok(chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices, "usage at the end")
    pieces = client.completions.create(model="tinytalk", prompt="hot sheet", max_tokens=4, temperature=0, stream=True)
    ok(isinstance("".join(p.choices[0].text for p in pieces), str), "completions stream")


def check_completions(client):
    row = GOLDEN["title-lora"][0]
    answer = client.completions.create(model="title-lora", prompt=row["prompt_ids"], max_tokens=64, temperature=0, logprobs=5)
    equal(answer.choices[0].text, row["text"], "completes ids")
    equal(len(answer.choices[0].logprobs.tokens), answer.usage.completion_tokens, "a log-probability a token")
    answer = client.completions.create(model="tinytalk", prompt=["a", "b"], max_tokens=1)
    equal([c.index for c in answer.choices], [0, 1], "several prompts")


def check_errors(client, url):
    def chat(**more):
        return client.chat.completions.create(**{"model": "tinytalk", "messages": [{"role": "user", "content": "x"}], **more})

    e = raises(openai.NotFoundError, lambda: chat(model="nobody"), "an unknown model is NotFoundError")
    equal((e.status_code, e.body["param"], e.body["message"]), (404, "model", "The model `nobody` does not exist."),
          "with its error object")
    wrong = openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0)
    raises(openai.AuthenticationError, lambda: wrong.models.list(), "a bad key is AuthenticationError")
    e = raises(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": "hot " * 2000}]),
               "a too long prompt is BadRequestError")
    ok("maximum context length is 1024 tokens" in e.message, "that says how long is too long", e.message)
    raises(openai.BadRequestError, lambda: chat(temperature=-1), "a wrong number is BadRequestError")
    raises(openai.BadRequestError, lambda: chat(response_format={"type": "json_object"}), "json_object is refused by name")
    late = client.with_options(timeout=0.05, max_retries=0)
    raises(openai.APITimeoutError, lambda: late.completions.create(
        model="tinytalk", prompt="x", max_tokens=900, n=64, extra_body={"ignore_eos": True}), "a client's own time-out")


async def check_many(url):
    client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="key")
    rows = [(name, row) for name, all_rows in GOLDEN.items() for row in all_rows[:6]]

    async def ask(name, row):
        answer = await client.chat.completions.create(
            model="tinytalk" if name == "base" else name, temperature=0, messages=[{"role": "user", "content": row["prompt"]}])
        return answer.choices[0].message.content == row["text"]

    good = await asyncio.gather(*[ask(n, r) for n, r in rows])
    equal(sum(good), len(rows), f"{len(rows)} questions to nine models at once")
    await client.close()


def main():
    with Server("--api-key", "key") as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="key", max_retries=0)
        check_models(client)
        check_chat(client)
        check_streams(client)
        check_completions(client)
        check_errors(client, server.url)
        asyncio.run(check_many(server.url))
    equal(server.status, 0, "the server ends well")
    done()


main()
