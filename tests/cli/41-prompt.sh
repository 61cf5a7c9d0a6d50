#!/usr/bin/env bash
# lora prompt: the text that a chat makes the model read, its ids, refusals.
. tests/lib/tap.sh
model=$TINYTALK/base

printf '{"messages":[{"role":"user","content":"upper: a b"}],"add_generation_prompt":true}' >"$TMP/chat.json"
exits 0 "a chat" lora prompt "$model" --context "$TMP/chat.json"
is "$OUT" "<|im_start|>user
upper: a b<|im_end|>
<|im_start|>assistant" "is rendered"
lora prompt "$model" --context "$TMP/chat.json" >"$TMP/text"
is "$(wc -c <"$TMP/text")" "$(printf '<|im_start|>user\nupper: a b<|im_end|>\n<|im_start|>assistant\n' | wc -c)" "byte for byte, nothing added"
exits 0 "from standard input" sh -c "lora prompt '$model' --context - <'$TMP/chat.json'"
like "$OUT" "upper: a b" "the same"

exits 0 "as JSON" lora prompt "$model" --context "$TMP/chat.json" --json
is "$(json "$OUT" .schema)" 1 "schema 1"
is "$(json "$OUT" .prompt)" "$(cat "$TMP/text")" "the text"
exits 0 "ids" lora prompt "$model" --context "$TMP/chat.json" --tokens
like "$OUT" '^1 [0-9]+( [0-9]+)*$' "on one line, special tokens found"
first=${OUT#1 }
exits 0 "ids as JSON" lora prompt "$model" --context "$TMP/chat.json" --tokens --json
is "$(json "$OUT" .ids[1])" "${first%% *}" "are the same"

printf '{{ strftime_now("%%Y-%%m-%%d") }}|{{ eos_token }}|{{ x | tojson }}|{{ y }}\n' >"$TMP/t.jinja"
printf '{"x": {"b": 1.0, "a": [1, null, true, "\\u00e9"]}}' >"$TMP/x.json"
exits 0 "another template" lora prompt "$model" --context "$TMP/x.json" --template "$TMP/t.jinja" --now 1752148800
is "$OUT" '2025-07-10|<|im_end|>|{"b": 1.0, "a": [1, null, true, "é"]}|' "clock, special tokens, key order, floats as Python writes them"

mkdir "$TMP/only"
cp "$model/tokenizer.json" "$model/tokenizer_config.json" "$TMP/only/"
printf 'T{{ messages | length }}' >"$TMP/only/chat_template.jinja"
exits 0 "a folder with tokenizer files only" lora prompt "$TMP/only" --context "$TMP/chat.json"
is "$OUT" "T1" "is a model too"

exits 0 "a base of the store" lora import "$model" --name tiny
exits 0 "by its name" lora prompt tiny --context "$TMP/chat.json"
is "$OUT" "$(cat "$TMP/text")" "gives the same"
LORA_STORE=$TMP/store2
exits 0 "copied into another store" lora import "$model" --name copied --copy
exits 0 "too" lora prompt copied --context "$TMP/chat.json" --tokens
is "$OUT" "1 $first" "with the same ids"

exits 2 "no context" lora prompt "$model"
like "$ERR" "--context FILE is missing" "is said"
exits 1 "a context that is not there" lora prompt "$model" --context "$TMP/none.json"
printf '{"messages": [}' >"$TMP/bad.json"
exits 2 "broken JSON" lora prompt "$model" --context "$TMP/bad.json"
like "$ERR" "bad.json:1:" "has its place"
printf '[]' >"$TMP/list.json"
exits 2 "a list as context" lora prompt "$model" --context "$TMP/list.json"
printf 'a\n{{ raise_exception("roles must alternate") }}' >"$TMP/raise.jinja"
exits 4 "a template that raises" lora prompt "$model" --context "$TMP/chat.json" --template "$TMP/raise.jinja"
like "$ERR" "raise.jinja:2: roles must alternate" "gives its reason and line"
printf '{%% include "x" %%}' >"$TMP/include.jinja"
exits 5 "a template with include" lora prompt "$model" --context "$TMP/chat.json" --template "$TMP/include.jinja"
like "$ERR" "include" "is refused by name"
printf '{{ "a" * 10 ** 9 }}' >"$TMP/huge.jinja"
exits 1 "a template without end" lora prompt "$model" --context "$TMP/chat.json" --template "$TMP/huge.jinja"
mkdir "$TMP/bare"
cp "$model/tokenizer.json" "$TMP/bare/"
exits 1 "a model without template" lora prompt "$TMP/bare" --context "$TMP/chat.json"
like "$ERR" "no chat template" "is told"
like "$ERR" "--template" "with the way out"
exits 1 "no such model" lora prompt "$TMP/nothing" --context "$TMP/chat.json"
done_testing
