#!/usr/bin/env bash
# tiers: check asan tsan
# What a server refuses: flags at start, requests, keys; one clear line each, the right code.
. tests/lib/tap.sh

BASE=$TINYTALK/base A=$TINYTALK/adapters

# ---- at start
exits 2 "no model" lora serve; like "$ERR" "which model" "is said"
exits 1 "a model that is not there" lora serve --model ./nothing --port 0
exits 2 "two models" lora serve a --model b
exits 4 "--tensor-parallel-size 2" lora serve "$BASE" --tensor-parallel-size 2
like "$ERR" "not built yet" "is refused with the reason"
exits 4 "--premerge" lora serve "$BASE" --premerge upper; like "$ERR" "premerge" "is refused by name"
exits 4 "--tls-cert" lora serve "$BASE" --tls-cert x; like "$ERR" "TLS" "is refused by name"
exits 4 "--revision" lora serve "$BASE" --revision main; like "$ERR" "org/name@main" "says where it belongs"
exits 4 "--quantization" lora serve "$BASE" --quantization awq
exits 4 "--dtype that is not the checkpoint's" lora serve "$BASE" --dtype float16 --port 0
exits 2 "a context longer than the model's" lora serve "$BASE" --context-length 100000 --port 0
exits 2 "a wrong flag" lora serve "$BASE" --lora-path x
exits 2 "a wrong address" lora serve "$BASE" --host not.a.host.invalid --port 0
exits 1 "an adapter that is not there" lora serve "$BASE" --lora-paths a=./nothing --port 0
exits 4 "a rank over --max-lora-rank" lora serve "$BASE" --lora-paths "a=$A/reverse-lora" --max-lora-rank 8 --port 0
like "$ERR" "max-lora-rank" "names the flag"
exits 4 "an adapter called as the base" lora serve "$BASE" --served-model-name x --lora-paths "x=$A/upper-lora" --port 0
cp -r "$A/upper-lora" "$TMP/cut"; chmod u+w "$TMP/cut"/*
head -c 5000 "$A/upper-lora/adapter_model.safetensors" >"$TMP/cut/adapter_model.safetensors"
exits 5 "a truncated adapter" lora serve "$BASE" --lora-paths "a=$TMP/cut" --port 0
exits 2 "an empty key" lora serve "$BASE" --api-key "" --port 0

# ---- --check
ok "--check prints the plan" lora serve "$BASE" --lora-paths "upper=$A/upper-lora" "sort=$A/sort-lora" --check
like "$OUT" "weights +[0-9.]+ MB" "with weights"; like "$OUT" "sort +.*DoRA.* served" "and verdicts"
exits 4 "--check with a refused adapter" lora serve "$BASE" --lora-paths "upper=$A/upper-lora" "rev=$A/reverse-lora" --check --max-lora-rank 8 --json
is "$(json "$OUT" .schema) $(json "$OUT" '.adapters[0].served') $(json "$OUT" '.adapters[1].served')" "1 true false" "as JSON"
ok "the memory is given" test "$(json "$OUT" .memory.weights_bytes)" -gt 1000000

# ---- a command line of the peers
serve_start "$BASE" --served-model-name tinytalk --enable-lora --lora-modules "{\"name\":\"upper\",\"path\":\"$A/upper-lora\",\"base_model_name\":\"tinytalk\"}" \
    --max-loras 4 --max-cpu-loras 32 --max-model-len 256 --gpu-memory-utilization 0.5 --disable-log-requests --enable-prefix-caching \
    --mem-fraction-static 0.5 --chunked-prefill-size -1 --tp 1 --max-running-requests 8 --api-key user --admin-api-key root \
    --max-body-bytes 4096 --request-timeout 60 --num-gpu-blocks-override 99 --enable-auto-tool-choice --tool-call-parser hermes || { done_testing; exit; }
like "$(cat "$SERVER_LOG")" "mem-fraction-static is taken as" "a flag of another meaning is logged in a line"
like "$(http_load metric --port "$PORT" vllm:kv_cache_usage_perc; curl -s "$URL/metrics")" 'num_gpu_blocks="99"' "--num-gpu-blocks-override is so many pages"

# ---- it listens there already
exits 1 "a port in use" lora serve "$BASE" --port "$PORT"
like "$ERR" "port $PORT of 127.0.0.1 is in use" "is said plainly"

# ---- keys
http GET /health; is "$STATUS" 200 "/health is open"
http GET /metrics; is "$STATUS" 200 "/metrics is open"
http GET /v1/models; is "$STATUS $(json "$OUT" .error.type)" "401 AuthenticationError" "no key"
http GET /v1/models "" -H "Authorization: Bearer wrong"; is "$STATUS" 401 "a wrong key"
http GET /v1/models "" -H "Authorization: Bearer user"; is "$STATUS" 200 "the right key"
http POST /tokenize '{"prompt":"x"}'; is "$STATUS" 401 "/tokenize is guarded too"
http POST /v1/load_lora_adapter '{"lora_name":"a","lora_path":"b"}' -H "Authorization: Bearer user"; is "$STATUS" 403 "loading wants the admin key"
http POST /v1/load_lora_adapter "{\"lora_name\":\"a\",\"lora_path\":\"$A/sort-lora\"}" -H "Authorization: Bearer root"
is "$STATUS" 403 "without --adapter-root no path is loaded"; like "$OUT" "adapter-root" "and the answer says so"
http POST /v1/load_lora_adapter '{"lora_name":"a","lora_path":"nothing"}' -H "Authorization: Bearer root"; is "$STATUS" 404 "an unknown name"
unlike "$(cat "$SERVER_LOG")" "Bearer|wrong" "keys are not logged"

# ---- bodies
bad() { # NAME PATH BODY STATUS [REGEX]
    http POST "$2" "$3" -H "Authorization: Bearer user"
    if [ "$STATUS" = "$4" ] && printf '%s' "$OUT" | grep -Eq -- "${5-.}"; then pass "$1"; else fail "$1"; note "got $STATUS $OUT, want $4 ${5-}"; fi
}
CHAT=/v1/chat/completions
M='"messages":[{"role":"user","content":"x"}]'
bad "broken JSON" $CHAT '{"model":' 400 '"type":"BadRequestError".*"code":400'
bad "no object" $CHAT '[1]' 400 "object"
bad "a key twice" $CHAT "{$M,\"n\":1,\"n\":2}" 400 "duplicate"
bad "no body" $CHAT "" 400
bad "too deep" $CHAT "{\"a\":$(printf '[%.0s' {1..100})$(printf ']%.0s' {1..100})}" 400 "deep"
bad "no messages" $CHAT '{"model":"tinytalk"}' 400 '"param":"messages"'
bad "a message without role" $CHAT '{"messages":[{"content":"x"}]}' 400 "role"
bad "an image" $CHAT '{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}' 400 "image_url"
bad "a wrong type" $CHAT "{$M,\"temperature\":\"hot\"}" 400 '"param":"temperature"'
bad "a negative temperature" $CHAT "{$M,\"temperature\":-1}" 400 "temperature must be non-negative, got -1"
bad "top_p out of range" $CHAT "{$M,\"top_p\":1.5}" 400 'top_p must be in \(0, 1\], got 1.5'
bad "top_k out of range" $CHAT "{$M,\"top_k\":-5}" 400 "top_k"
bad "n of 0" $CHAT "{$M,\"n\":0}" 400 '"param":"n"'
bad "n too large" $CHAT "{$M,\"n\":1000}" 400 '"param":"n"'
bad "too many logprobs" $CHAT "{$M,\"logprobs\":true,\"top_logprobs\":50}" 400 "greater than max allowed"
bad "top_logprobs without logprobs" $CHAT "{$M,\"top_logprobs\":5}" 400 "logprobs. must be"
bad "response_format" $CHAT "{$M,\"response_format\":{\"type\":\"json_object\"}}" 400 '"param":"response_format"'
bad "guided_json" $CHAT "{$M,\"guided_json\":{}}" 400 "guided_json is not supported"
bad "tool_choice required" $CHAT "{$M,\"tool_choice\":\"required\"}" 400 "tool_choice"
bad "stream_options without stream" $CHAT "{$M,\"stream_options\":{\"include_usage\":true}}" 400 "Stream options"
bad "an empty stop" $CHAT "{$M,\"stop\":\"\"}" 400 '"param":"stop"'
bad "a bad logit_bias" $CHAT "{$M,\"logit_bias\":{\"99999\":1}}" 400 "logit_bias"
bad "max_tokens beyond the context" $CHAT "{$M,\"max_tokens\":300}" 400 "is too large: 300. This model's maximum context length is 256"
bad "a prompt beyond the context" /v1/completions "{\"prompt\":[$(printf '74,%.0s' {1..299})74]}" 400 "maximum context length is 256 tokens. However, your request has 300"
bad "an empty prompt" /v1/completions '{"prompt":""}' 400 "empty"
bad "an id outside the vocabulary" /v1/completions '{"prompt":[1,99999]}' 400 "out of vocabulary"
bad "max_tokens 0 alone" /v1/completions '{"prompt":"x","max_tokens":0}' 400 "at least 1"
bad "a template that raises" $CHAT "{$M,\"chat_template\":\"{{ raise_exception('no thanks') }}\"}" 400 "no thanks"
bad "both flags of the last message" $CHAT "{$M,\"continue_final_message\":true,\"add_generation_prompt\":true}" 400 "Cannot set both"
bad "an unknown model" /v1/completions '{"model":"none","prompt":"x"}' 404 'The model .none. does not exist'
bad "a body too large" /v1/completions "{\"prompt\":\"$(head -c 6000 /dev/zero | tr '\0' x)\"}" 413 "RequestTooLargeError"
bad "/generate without a prompt" /generate '{}' 400 '^\{"error":\{"message":"Either text or input_ids should be provided\."\}\}$'
bad "/generate with both" /generate '{"text":"a","input_ids":[1]}' 400 "Either"
bad "/generate with a regex" /generate '{"text":"a","sampling_params":{"regex":"x"}}' 400 "regex is not supported"
bad "/generate with too few lora_path" /generate '{"text":["a","b"],"lora_path":["upper"]}' 400 "1 items for 2"
bad "/detokenize without tokens" /detokenize '{}' 400 '"param":"tokens"'
http POST $CHAT "{$M}" -H "Authorization: Bearer user"; is "$STATUS" 200 "after all that it still answers"
printf 'nonsense\r\n\r\n' | timeout 5 bash -c "cat >/dev/tcp/127.0.0.1/$PORT"
http GET /health; is "$STATUS" 200 "and after a client that speaks no HTTP"
serve_stop
is "$STATUS" 0 "it ends well"

# ---- a time-out, and a full queue
serve_start "$BASE" --request-timeout 0.2 || { done_testing; exit; }
http POST /v1/completions '{"prompt":"hot","max_tokens":1000,"n":32,"ignore_eos":true,"temperature":0}'
is "$STATUS $(json "$OUT" .error.type)" "504 TimeoutError" "a request that takes too long"
http POST /v1/completions '{"prompt":"hot","max_tokens":1000,"n":32,"ignore_eos":true,"temperature":0,"stream":true}'
like "$(printf '%s\n' "$OUT" | tail -5)" '"error":\{.*request-timeout' "as a stream it says so too"
serve_stop
serve_start "$BASE" --max-num-seqs 1 --max-queued-requests 2 || { done_testing; exit; }
# A busy machine may start them one after another: then again.
for ((i = 0; i < 20; i++)); do
    asking=()
    for _ in 1 2 3 4 5 6; do
        curl -s -o /dev/null -D - "$URL/v1/completions" -d '{"prompt":"hot","max_tokens":500,"ignore_eos":true,"temperature":0}' >>"$TMP/codes" &
        asking+=($!)
    done
    wait "${asking[@]}"
    ! grep -q 503 "$TMP/codes" || break
done
like "$(cat "$TMP/codes")" "503" "a full queue gives 503"
like "$(cat "$TMP/codes")" "Retry-After: 1" "with Retry-After"
serve_stop
is "$STATUS" 0 "it ends well"
done_testing
