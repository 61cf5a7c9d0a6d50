#!/usr/bin/env bash
# tiers: check asan tsan
# Every route and every request field, with the peers' bodies.
. tests/lib/tap.sh

A=$TINYTALK/adapters
serve_start --model "$TINYTALK/base" --served-model-name tinytalk second-name --lora-paths "upper=$A/upper-lora" \
    "{\"lora_name\":\"sort\",\"lora_path\":\"$A/sort-lora\",\"pinned\":true}" "rev=$A/reverse-lora" "title=$A/title-lora" || { done_testing; exit; }

post() { http POST "$@"; }
chat_at() { post /v1/chat/completions "{\"model\":\"$1\",\"messages\":[{\"role\":\"user\",\"content\":\"$2\"}],\"temperature\":$3${4-}}"; }
chat() { chat_at "$1" "$2" 0 "${3-}"; }
content() { json "$OUT" '.choices[0].message.content'; }

# ---- about the server
http GET /health; is "$STATUS:$OUT" "200:" "/health is 200 and empty"
http GET /ping; is "$STATUS:$OUT" "200:" "/ping too"
http GET /version; is "$(json "$OUT" .version)" "$(lora version | awk 'NR == 1 { print $2 }')" "/version"
http GET /health_generate; is "$STATUS" 200 "/health_generate generates"
http GET /get_model_info; is "$(json "$OUT" .is_generation)" true "/get_model_info"
http GET /get_server_info; is "$(json "$OUT" .num_adapters)" 4 "/get_server_info"
http GET /nothing; is "$STATUS:$OUT" '404:{"detail":"Not Found"}' "an unknown route"
http GET /v1/chat/completions; is "$STATUS" 405 "a wrong method"
like "$HEADERS" "^Allow: POST" "names the right one"
curl -s -I "$URL/health" | head -1 | grep -q 200 && pass "HEAD" || fail "HEAD"

# ---- models
http GET /v1/models
is "$(json "$OUT" '.data[0].id') $(json "$OUT" '.data[0].parent') $(json "$OUT" '.data[0].max_model_len')" "tinytalk null 1024" "the base is a model"
is "$(json "$OUT" '.data[1].id')" second-name "its other name too"
is "$(json "$OUT" '.data[2].id') $(json "$OUT" '.data[2].parent') $(json "$OUT" '.data[2].root')" "upper tinytalk $A/upper-lora" "adapters have root and parent"
is "$(json "$OUT" '.data[2].max_model_len') $(json "$OUT" '.data[2].object')" "null model" "and no length of their own"
http GET /v1/models/sort; is "$(json "$OUT" .id)" sort "/v1/models/ID"
http GET /v1/models/none; is "$STATUS $(json "$OUT" .error.type)" "404 NotFoundError" "an unknown one"

# ---- what a model means
chat tinytalk "hot sheet gush"; is "$(content)" "hot sheet gush" "the base"
chat second-name "hot sheet gush"; is "$(content)" "hot sheet gush" "the base by another name"
chat upper "hot sheet gush"; is "$(content) $(json "$OUT" .model)" "HOT SHEET GUSH upper" "an adapter's name"
chat tinytalk:rev "hot sheet gush"; is "$(content)" "gush sheet hot" "base:adapter"
chat upper:latest "hot sheet gush"; is "$(content)" "HOT SHEET GUSH" "name:tag"
post /v1/chat/completions '{"messages":[{"role":"user","content":"hot sheet gush"}],"temperature":0}'
is "$(content)" "hot sheet gush" "no model is the base"
chat none "x"; is "$STATUS $(json "$OUT" .error.message)" '404 The model `none` does not exist.' "unknown: vLLM's words"
is "$(json "$OUT" .error.code) $(json "$OUT" .error.param) $(json "$OUT" .error.type)" "404 model NotFoundError" "and error object"
chat tinytalk "hot sheet gush" ',"lora_path":"upper"'; is "$(content)" "HOT SHEET GUSH" "lora_path on an OpenAI route"

# ---- several adapters, scales
chat tinytalk "hot sheet gush" ',"lora":[{"name":"upper","scale":1}]'; is "$(content)" "HOT SHEET GUSH" "lora by name"
chat tinytalk "hot sheet gush" ',"lora":[{"id":0}]'; is "$(content)" "HOT SHEET GUSH" "lora by id"
chat tinytalk "hot sheet gush" ',"lora":[{"id":0,"scale":0}]'; is "$(content)" "hot sheet gush" "scale 0 is the base"
chat tinytalk "hot sheet gush" ',"lora":[{"name":"upper","scale":0.5},{"name":"title","scale":0.5}]'; is "$STATUS" 200 "two adapters with scales"
chat tinytalk "hot sheet gush" ',"lora":[{"name":"sort","scale":0.5}]'; is "$STATUS" 400 "a scale on DoRA is refused"
chat upper "hot sheet gush" ',"lora":[{"name":"title"}]'; is "$STATUS $(json "$OUT" .error.param)" "400 lora" "lora over an adapter"
chat tinytalk "x" ',"lora":[{"scale":1}]'; is "$STATUS" 400 "lora without name or id"

# ---- chat fields
chat upper "hot sheet gush" ',"max_tokens":2'; is "$(content) $(json "$OUT" '.choices[0].finish_reason')" "HOT length" "max_tokens"
chat upper "hot sheet gush" ',"max_completion_tokens":2'; is "$(content)" "HOT" "max_completion_tokens"
is "$(json "$OUT" .usage)" '{"prompt_tokens":16,"total_tokens":18,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}' "usage"
chat upper "hot sheet gush" ',"n":3'; is "$(json "$OUT" '.choices[2].message.content') $(json "$OUT" '.choices[2].index')" "HOT SHEET GUSH 2" "n"
chat upper "hot sheet gush" ',"stop":" SHEET"'; is "$(content) $(json "$OUT" '.choices[0].stop_reason')" "HOT  SHEET" "stop over token boundaries"
chat upper "hot sheet gush" ',"stop":["zzz"," G"],"include_stop_str_in_output":true'; is "$(content)" "HOT SHEET G" "include_stop_str_in_output"
chat upper "hot sheet gush" ',"stop_token_ids":[2]'; is "$(json "$OUT" '.choices[0].stop_reason')" 2 "stop_token_ids"
chat upper "hot sheet gush" ',"ignore_eos":true,"max_tokens":20'; is "$(json "$OUT" .usage.completion_tokens)" 20 "ignore_eos"
chat upper "hot sheet gush" ',"min_tokens":12'; ok "min_tokens ($(json "$OUT" .usage.completion_tokens))" test "$(json "$OUT" .usage.completion_tokens)" -ge 12
chat upper "hot sheet gush" ',"logit_bias":{"42":-100}'; isnt "$(content)" "HOT SHEET GUSH" "logit_bias"
chat upper "hot sheet gush" ',"logprobs":true,"top_logprobs":3'
is "$(json "$OUT" '.choices[0].logprobs.content[0].token') $(json "$OUT" '.choices[0].logprobs.content[0].bytes') $(printf '%s' "$OUT" | jsonq -n '.choices[0].logprobs.content[0].top_logprobs')" "H [72] 3" "logprobs in chat's shape"
chat_at tinytalk "sparse odds" 8 ',"seed":5,"max_tokens":8'; first=$(content)
chat_at tinytalk "sparse odds" 8 ',"seed":5,"max_tokens":8'; is "$STATUS $(content)" "200 $first" "seed"
chat_at tinytalk "sparse odds" 8 ',"seed":6,"max_tokens":8'; isnt "$(content)" "$first" "another seed"
chat_at tinytalk "sparse odds" 8 ',"top_k":1'; is "$(content)" "sparse odds" "top_k 1 is greedy"
chat_at tinytalk "sparse odds" 8 ',"top_p":0.0001'; is "$(content)" "sparse odds" "top_p"
chat_at tinytalk "sparse odds" 8 ',"min_p":1'; is "$(content)" "sparse odds" "min_p"
chat tinytalk "hot hot hot hot" ',"frequency_penalty":2,"presence_penalty":2,"repetition_penalty":5'; isnt "$(content)" "hot hot hot hot" "penalties"
post /v1/chat/completions '{"model":"upper","messages":[{"role":"user","content":[{"type":"text","text":"hot sheet gush"}]}],"temperature":0}'
is "$(content)" "HOT SHEET GUSH" "content in parts"
post /v1/chat/completions '{"model":"upper","messages":[{"role":"user","content":"hot sheet gush"},{"role":"assistant","content":"HOT SH"}],"continue_final_message":true,"add_generation_prompt":false,"temperature":0}'
is "$(content)" "EET GUSH" "continue_final_message"
post /v1/chat/completions '{"model":"upper","messages":[{"role":"user","content":"x"}],"chat_template":"{{ prefix }}{{ messages[0].content }}","chat_template_kwargs":{"prefix":"P"},"max_tokens":1}'
is "$STATUS $(json "$OUT" .usage.prompt_tokens)" "200 2" "chat_template and chat_template_kwargs"
post /tokenize '{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f"}}],"chat_template":"{{ tools[0].function.name }}"}'
is "$(json "$OUT" .count)" 1 "tools reach the template"

# ---- streams
post /v1/chat/completions '{"model":"upper","messages":[{"role":"user","content":"hot sheet gush"}],"temperature":0,"stream":true,"stream_options":{"include_usage":true}}'
like "$HEADERS" "^Content-Type: text/event-stream" "a stream of events"
is "$(printf '%s\n' "$OUT" | tail -1)" "data: [DONE]" "that ends in [DONE]"
text=
while read -r line; do case $line in 'data: {'*) text+=$(printf '%s' "${line#data: }" | jsonq '.choices[0].delta.content' 2>/dev/null) ;; esac; done <<<"$OUT"
is "$text" "HOT SHEET GUSH" "whose pieces are the answer"
like "$OUT" '"choices":\[\],"usage":\{"prompt_tokens":16' "with usage at the end"
like "$OUT" '"delta":\{"role":"assistant","content":""\}' "and the role first"
post /v1/chat/completions '{"model":"upper","messages":[{"role":"user","content":"hot sheet gush"}],"temperature":0,"stream":true,"stop":"SHEET GUN"}'
like "$OUT" '"finish_reason":"stop"' "a stream that held back a partial stop"
unlike "$OUT" 'SHEET GUN' "gives it when it was none"

# ---- completions
post /v1/completions '{"model":"tinytalk","prompt":"hot sheet","temperature":0,"max_tokens":2,"logprobs":2}'
is "$(json "$OUT" .object) $(printf '%s' "$OUT" | jsonq -n '.choices[0].logprobs.tokens')" "text_completion 2" "a completion with logprobs"
post /v1/completions '{"model":"tinytalk","prompt":[[74,348],[1369]],"temperature":0,"max_tokens":1}'
is "$(json "$OUT" '.choices[1].index')" 1 "lists of ids"
post /v1/completions '{"model":"tinytalk","prompt":["hot","sheet"],"temperature":0,"max_tokens":1,"n":2}'
is "$(json "$OUT" '.choices[3].index')" 3 "texts with n"
post /v1/completions '{"model":"tinytalk","prompt":[74,348,1369],"echo":true,"logprobs":1,"max_tokens":0}'
is "$(json "$OUT" '.choices[0].text') $(json "$OUT" '.choices[0].logprobs.token_logprobs[0]') $(printf '%s' "$OUT" | jsonq -n '.choices[0].logprobs.token_logprobs') $(json "$OUT" .usage.completion_tokens)" "hot sheet null 3 0" "echo with max_tokens 0: the prompt's log-probabilities"
post /v1/completions '{"prompt":"hot sheet"}'
ok "16 tokens by default ($(json "$OUT" .usage.completion_tokens))" test "$(json "$OUT" .usage.completion_tokens)" -le 16

# ---- SGLang
gen() { post /generate "$@"; }
PROMPT='"input_ids":[1,455,259,201,74,348,1369,433,2,201,1,386,85,395,446,201]'
gen "{$PROMPT,\"lora_path\":\"upper\",\"sampling_params\":{\"temperature\":0},\"rid\":\"mine\"}"
is "$(json "$OUT" .text) $(json "$OUT" .meta_info.id) $(json "$OUT" .meta_info.finish_reason)" 'HOT SHEET GUSH mine {"type":"stop","matched":2}' "lora_path at the top"
gen "{$PROMPT,\"sampling_params\":{\"temperature\":0,\"lora_path\":\"upper\",\"max_tokens\":2}}"
is "$(json "$OUT" .text) $(json "$OUT" .meta_info.finish_reason)" 'HOT {"type":"length","length":2}' "lora_path in sampling_params, max_tokens"
gen "{\"input_ids\":[[1,455,259,201,74,348,1369,433,2,201,1,386,85,395,446,201],[1,455,259,201,74,348,1369,433,2,201,1,386,85,395,446,201]],\"lora_path\":[\"rev\",null],\"sampling_params\":{\"temperature\":0,\"max_new_tokens\":20}}"
is "$(json "$OUT" '.[0].text')|$(json "$OUT" '.[1].text')" "gush sheet hot|hot sheet gush" "a list of lora_path runs parallel; null is the base"
gen "{$PROMPT,\"lora_path\":\"upper\",\"sampling_params\":{\"temperature\":0},\"stream\":true}"
like "$(printf '%s\n' "$OUT" | grep '^data: {' | tail -1)" '"text":"HOT SHEET GUSH".*"finish_reason":\{"type":"stop"' "a stream with cumulative text"
gen "{$PROMPT,\"sampling_params\":{\"temperature\":0,\"max_new_tokens\":1},\"return_logprob\":true,\"logprob_start_len\":14,\"top_logprobs_num\":2,\"return_text_in_logprobs\":true}"
is "$(printf '%s' "$OUT" | jsonq -n .meta_info.input_token_logprobs) $(printf '%s' "$OUT" | jsonq -n '.meta_info.output_top_logprobs[0]') $(json "$OUT" '.meta_info.output_token_logprobs[0][2]')" "2 2 h" "return_logprob, logprob_start_len, top_logprobs_num"
gen "{$PROMPT,\"lora_path\":\"none\"}"
like "$STATUS $(json "$OUT" .error.message)" '^400 The following requested LoRA adapters are not loaded: none' "unknown adapter: SGLang's words"
gen '{"text":"hot sheet","sampling_params":{"max_new_tokens":1}}'; is "$STATUS" 200 "text"

# ---- tokens
post /tokenize '{"model":"tinytalk","prompt":"hot sheet","return_token_strs":true}'
is "$(json "$OUT" .tokens) $(json "$OUT" .count) $(json "$OUT" .max_model_len)" "[74,348,1369] 3 1024" "/tokenize"
post /tokenize '{"messages":[{"role":"user","content":"hot sheet gush"}]}'
is "$(json "$OUT" .tokens)" "[1,455,259,201,74,348,1369,433,2,201,1,386,85,395,446,201]" "/tokenize of messages"
post /detokenize '{"tokens":[74,348,1369]}'; is "$(json "$OUT" .prompt)" "hot sheet" "/detokenize"

# ---- the prefix cache
post /flush_cache; is "$STATUS" 200 "/flush_cache"
gen "{$PROMPT,\"sampling_params\":{\"max_new_tokens\":20,\"temperature\":0,\"ignore_eos\":true}}"
is "$(json "$OUT" .meta_info.cached_tokens)" 0 "after a flush nothing is cached"

# ---- metrics
http GET /metrics
like "$OUT" '^vllm:lora_requests_info\{max_lora="[0-9]+",running_lora_adapters="[a-z,]*sort[a-z,]*",waiting_lora_adapters=""\} [0-9.]+$' "residency as GAIE reads it; a pinned adapter is there"
like "$OUT" '^vllm:num_requests_running\{model_name="tinytalk"\} 0$' "running"
like "$OUT" '^lora_adapter_requests_total\{adapter="upper"\} [1-9]' "counts by adapter"
like "$OUT" '^vllm:time_to_first_token_seconds_bucket\{model_name="tinytalk",le="\+Inf"\} [1-9]' "histograms"
unlike "$OUT" 'nan|inf$' "no NaN"
like "$(cat "$SERVER_LOG")" 'access: POST /v1/chat/completions status=200' "an access log"
unlike "$(cat "$SERVER_LOG")" 'hot sheet' "without prompts"
serve_stop
is "$STATUS" 0 "ends well"
done_testing
