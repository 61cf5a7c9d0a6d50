#!/usr/bin/env bash
# tiers: check asan tsan
# Names while the server runs: the store's, load and unload, new content under an old name, SIGHUP, leases, clients that leave.
. tests/lib/tap.sh

BASE=$TINYTALK/base A=$TINYTALK/adapters
ask() { # MODEL -> OUT is the answer
    http POST /v1/chat/completions "{\"model\":\"$1\",\"messages\":[{\"role\":\"user\",\"content\":\"hot sheet gush\"}],\"temperature\":0}"
    [ "$STATUS" = 200 ] && OUT=$(json "$OUT" '.choices[0].message.content')
}
models() { http GET /v1/models; printf '%s' "$OUT" | grep -o '"id":"[a-z:0-9-]*","object":"model"' | sed 's/"id":"//; s/",.*//' | tr '\n' ' '; }
metric() { http_load metric --port "$PORT" "$1"; }
offered() { [ "$(models)" = "$1" ]; }
# The request of process $1 runs, or has come and gone.
started() { metric_is vllm:num_requests_running -gt 0 || ! kill -0 "$1" 2>/dev/null; }
metric_is() { [ "$(metric "$1")" "$2" "$3" ]; }

# ---- all of the store
run lora import "$BASE" --name tinytalk
run lora import "$A/upper-lora" --name shout
run lora import "$A/title-lora" --name shout --tag v2
serve_start --model tinytalk || { note "$ERR"; done_testing; exit; }
is "$(models)" "tinytalk shout shout:v2 " "the store's adapters are offered by their names and tags"
ask shout; is "$OUT" "HOT SHEET GUSH" "name"
ask shout:v2; is "$OUT" "Hot Sheet Gush" "name:tag"
ask tinytalk:shout; is "$OUT" "HOT SHEET GUSH" "base:adapter"

run lora import "$A/reverse-lora" --name back
run lora import "$A/sort-lora" --name shout --force
run lora rm shout:v2
kill -HUP "$SERVER_PID"
eventually offered "tinytalk shout back "
is "$(models)" "tinytalk shout back " "SIGHUP reads the names again"
ask back; is "$OUT" "gush sheet hot" "a new name"
ask shout; is "$OUT" "gush hot sheet" "an old name means its new content"

ok "gc beside it" lora gc
ask back; is "$OUT" "gush sheet hot" "takes nothing that is served"
run lora rm back; run lora gc
kill -HUP "$SERVER_PID"
eventually offered "tinytalk shout "
http POST /v1/load_lora_adapter '{"lora_name":"loud","lora_path":"shout"}'
is "$STATUS:$OUT" "200:Success: LoRA adapter 'loud' added successfully." "a name of the store is loaded by request"
ask loud; is "$OUT" "gush hot sheet" "and answers"
serve_stop
is "$STATUS" 0 "it ends well"

# ---- by request, below --adapter-root
mkdir "$TMP/root" "$TMP/outside"
cp -r "$A/upper-lora" "$TMP/root/x"; cp -r "$A/title-lora" "$TMP/outside/t"
ln -s ../outside/t "$TMP/root/escape"; ln -s x "$TMP/root/inside"
serve_start --model "$BASE" --served-model-name tinytalk --adapter-root "$TMP/root" --lora-paths "sort=$A/sort-lora" || { done_testing; exit; }
http POST /load_lora_adapter '{"lora_name":"x","lora_path":"x"}'
is "$STATUS $(json "$OUT" .success) $(json "$OUT" '.loaded_adapters.x')" "200 true $TMP/root/x" "SGLang's load"
ask x; is "$OUT" "HOT SHEET GUSH" "serves it"
http POST /load_lora_adapter '{"lora_name":"x","lora_path":"x"}'
like "$STATUS $OUT" '^400 .*"success":false.*already exists' "twice is refused"
http POST /v1/load_lora_adapter "{\"lora_name\":\"y\",\"lora_path\":\"$TMP/root/inside\"}"; is "$STATUS" 200 "an absolute path, a link inside"
for path in ../outside/t escape "$TMP/outside/t" /etc; do
    http POST /v1/load_lora_adapter "{\"lora_name\":\"z\",\"lora_path\":\"$path\"}"
    is "$STATUS" 403 "what lies outside is refused: ${path#"$TMP"}"
done
http POST /v1/load_lora_adapter '{"lora_name":"z","lora_path":"none"}'; is "$STATUS" 404 "what is not there"
http POST /v1/load_lora_adapter '{"lora_name":"bad name!","lora_path":"x"}'; is "$STATUS" 400 "a name that cannot be one"
http POST /v1/load_lora_adapter '{"lora_name":"tinytalk","lora_path":"x"}'; is "$STATUS" 409 "the base's name"
http POST /v1/load_lora_adapter '{"lora_path":"x"}'
is "$STATUS $(json "$OUT" .error.type) $(json "$OUT" .error.message)" "400 InvalidUserInput Both 'lora_name' and 'lora_path' must be provided." "vLLM's words"

# New content under an old name: a new identity, so nothing stale comes from the prefix cache.
ask x; ask x
rm -rf "$TMP/root/x"; cp -r "$A/reverse-lora" "$TMP/root/x"
http POST /v1/load_lora_adapter '{"lora_name":"x","lora_path":"x"}'
like "$OUT" "already been loaded. If you want to load the adapter in place, set 'load_inplace' to True" "loading again needs load_inplace"
http POST /v1/load_lora_adapter '{"lora_name":"x","lora_path":"x","load_inplace":true}'; is "$STATUS" 200 "load_inplace"
ask x; is "$OUT" "gush sheet hot" "gives the new answers"
ask y; is "$STATUS" 200 "the old content lives on under its other name" || true

# Unloading a busy adapter lets its request finish.
curl -s "$URL/v1/completions" -d '{"model":"sort","prompt":"hot","max_tokens":400,"ignore_eos":true,"temperature":0}' >"$TMP/busy" &
BUSY=$!
eventually started $BUSY
http POST /v1/unload_lora_adapter '{"lora_name":"sort"}'
is "$STATUS:$OUT" "200:Success: LoRA adapter 'sort' removed successfully." "unload of a busy adapter"
ask sort; is "$STATUS" 404 "is seen at once"
wait $BUSY
is "$(json "$(cat "$TMP/busy")" .usage.completion_tokens)" 400 "and its request finishes"
http POST /v1/unload_lora_adapter '{"lora_name":"sort"}'; is "$STATUS $(json "$OUT" .error.message)" "404 The lora adapter 'sort' cannot be found." "unload twice"
http POST /unload_lora_adapter '{"lora_name":"x"}'; is "$STATUS $(json "$OUT" .success)" "200 true" "SGLang's unload"
eventually metric_is vllm:num_gpu_loaded_lora_adapters -le 1
ok "what nobody names or uses has left the device" test "$(metric vllm:num_gpu_loaded_lora_adapters)" -le 1

# Clients that leave. A fast server may be done before this shell has looked: such a try says nothing, the next one may.
LONG='{"prompt":"hot","max_tokens":900,"ignore_eos":true,"temperature":0,"n":8'
leaves() { # leaves BODY: sets steps, those that ran until nothing did
    local cancelled before
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        cancelled=$(metric lora_cancelled_total) before=$(metric lora_steps_total)
        curl -s -o /dev/null "$URL/v1/completions" -d "$1" &
        BUSY=$!
        eventually started $BUSY
        kill -KILL $BUSY 2>/dev/null
        { wait $BUSY; } 2>/dev/null
        eventually metric_is vllm:num_requests_running -eq 0 || return 1
        steps=$(($(metric lora_steps_total) - before))
        [ "$(metric lora_cancelled_total)" -ne $((cancelled + 8)) ] || return 0
    done
    return 1
}
for stream in false true; do
    ok "a client that leaves ends its sequences: stream $stream" leaves "$LONG,\"stream\":$stream}"
    ok "…all eight after $steps steps, not 900" test "$steps" -lt 750
done
serve_stop

# ---- an adapter's own template and tokens travel with it
cp -r "$A/upper-lora" "$TMP/own"; cp "$BASE/tokenizer.json" "$BASE/tokenizer_config.json" "$TMP/own/"
printf '%s' "{% for m in messages %}{{ '<|im_start|>user\n' + m.content | upper + '<|im_end|>\n' }}{% endfor %}<|im_start|>assistant\n" >"$TMP/own/chat_template.jinja"
serve_start --model "$BASE" --served-model-name tinytalk --lora-paths "own=$TMP/own" "upper=$A/upper-lora" || { done_testing; exit; }
http POST /tokenize '{"model":"own","messages":[{"role":"user","content":"hot"}]}'; own=$(json "$OUT" .tokens)
http POST /tokenize '{"model":"upper","messages":[{"role":"user","content":"hot"}]}'; isnt "$own" "$(json "$OUT" .tokens)" "an adapter's own chat template is used for it"
http POST /tokenize '{"model":"tinytalk","messages":[{"role":"user","content":"hot"}]}'; isnt "$own" "$(json "$OUT" .tokens)" "and for it alone"
serve_stop

# ---- draining
serve_start --model "$BASE" --served-model-name tinytalk || { done_testing; exit; }
curl -s "$URL/v1/completions" -d '{"prompt":"hot","max_tokens":300,"ignore_eos":true,"temperature":0}' >"$TMP/drained" &
BUSY=$!
eventually started $BUSY
serve_stop
is "$STATUS" 0 "SIGTERM ends the server well"
wait $BUSY
is "$(json "$(cat "$TMP/drained")" .usage.completion_tokens)" 300 "after running requests have finished"
done_testing
