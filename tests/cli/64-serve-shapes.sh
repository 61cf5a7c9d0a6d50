#!/usr/bin/env bash
# tiers: check
# A base without tokenizer files, and one without weights.
. tests/lib/tap.sh

mkdir "$TMP/ids"
cp "$TINYTALK"/base/{config.json,model.safetensors,generation_config.json} "$TMP/ids"
exits 1 "no tokenizer files" lora serve "$TMP/ids" --port 0
like "$ERR" "skip-tokenizer-init" "the next thing to try is named"
serve_start "$TMP/ids" --skip-tokenizer-init --lora-paths "upper=$TINYTALK/adapters/upper-lora" || { done_testing; exit; }
http POST /generate '{"input_ids":[1,455,259,201,74,348,1369,433,2,201,1,386,85,395,446,201],"sampling_params":{"temperature":0}}'
is "$(json "$OUT" .output_ids)" "[74,348,1369,433]" "--skip-tokenizer-init: ids in, ids out"
unlike "$OUT" '"text"' "and no text"
http POST /generate '{"input_ids":[1,455,259,201,74,348,1369,433,2,201,1,386,85,395,446,201],"sampling_params":{"temperature":0,"max_new_tokens":2},"lora_path":"upper","stream":true}'
like "$OUT" '"output_ids":\[42,[0-9]+\].*"type":"length"' "as a stream, with an adapter"
http POST /generate '{"text":"hot"}'; like "$STATUS $OUT" "^400 .*token ids" "text is refused"
http POST /v1/chat/completions '{"messages":[{"role":"user","content":"x"}]}'; is "$STATUS" 400 "chat too"
http POST /generate '{"input_ids":[1],"sampling_params":{"stop":"x"}}'; like "$STATUS $OUT" "^400 .*stop needs a tokenizer" "and stop strings"
serve_stop

exits 2 "--config-json alone" lora serve --config-json "$TINYTALK/base/config.json" --port 0
serve_start --load-format dummy --config-json "$TINYTALK/base/config.json" --seed 3 || { done_testing; exit; }
http POST /generate '{"input_ids":[1,2,3],"sampling_params":{"temperature":0,"max_new_tokens":4,"ignore_eos":true}}'
first=$(json "$OUT" .output_ids)
is "$STATUS $(json "$OUT" .meta_info.completion_tokens)" "200 4" "dummy weights generate"
serve_stop
serve_start --load-format dummy --config-json "$TINYTALK/base/config.json" --seed 3 || { done_testing; exit; }
http POST /generate '{"input_ids":[1,2,3],"sampling_params":{"temperature":0,"max_new_tokens":4,"ignore_eos":true}}'
is "$(json "$OUT" .output_ids)" "$first" "the same seed makes the same weights"
serve_stop
# generation_config.json: a list of end ids (one of them " sheet"), and default sampling (top_k 1 is greedy).
mkdir "$TMP/defaults"
cp "$TINYTALK"/base/* "$TMP/defaults"; chmod u+w "$TMP/defaults"/*
echo '{"eos_token_id":[2,1369],"temperature":1.5,"top_k":1}' >"$TMP/defaults/generation_config.json"
CHAT='{"messages":[{"role":"user","content":"hot sheet gush"}]}'
serve_start "$TMP/defaults" || { done_testing; exit; }
http POST /v1/chat/completions "$CHAT"
is "$(json "$OUT" '.choices[0].message.content') $(json "$OUT" '.choices[0].stop_reason')" "hot null" "end ids and default sampling of generation_config.json"
http POST /v1/chat/completions "${CHAT%\}},\"ignore_eos\":true,\"max_tokens\":3}"
is "$(json "$OUT" '.choices[0].message.content')" "hot sheet" "ignore_eos passes over them"
serve_stop

# While weights are loaded the port answers already: 503, so that a probe waits and a router looks elsewhere.
sed 's/"hidden_size": 256/"hidden_size": 1024/; s/"intermediate_size": 704/"intermediate_size": 4096/; s/"vocab_size": 2048/"vocab_size": 32000/; s/"head_dim": 32/"head_dim": 128/' \
    "$TINYTALK/base/config.json" >"$TMP/larger.json"
loading=
ready() {
    http GET /health
    [ "$STATUS" != 503 ] || [ -n "$loading" ] || { http GET /v1/models; loading="$STATUS $(json "$OUT" .error.type)"; http GET /health; }
    [ "$STATUS" = 200 ]
}
# A busy machine may look only when all is over: then again.
for ((i = 0; i < 10; i++)); do
    serve_stop
    loading=
    PORT=$(free_port) URL=http://127.0.0.1:$PORT SERVER_LOG=$TMP/server.log
    lora serve --port "$PORT" --load-format dummy --config-json "$TMP/larger.json" >"$SERVER_LOG" 2>&1 </dev/null &
    SERVER_PID=$!
    WAIT_S=300 eventually ready
    [ "$STATUS" = 200 ] && [ "${loading%% *}" = 503 ] && break
done
is "$loading" "503 ServiceUnavailableError" "while loading requests get 503"
is "$STATUS" 200 "then it is ready"
serve_stop
done_testing
