#!/usr/bin/env bash
# REF: names with slashes, hub ids in the local cache, paths; and the settings of the store.
. tests/lib/tap.sh

SNAP=$HF_HOME/hub/models--tiny--talk/snapshots/0123456789abcdef0123456789abcdef01234567
mkdir -p "$SNAP" "$HF_HOME/hub/models--tiny--talk/refs" "$HF_HOME/hub/models--tiny--talk/blobs"
printf 0123456789abcdef0123456789abcdef01234567 >"$HF_HOME/hub/models--tiny--talk/refs/main"
for f in "$TINYTALK/base/"*; do
    cp "$f" "$HF_HOME/hub/models--tiny--talk/blobs/$(basename "$f")"
    ln -s "../../blobs/$(basename "$f")" "$SNAP/$(basename "$f")"
done

ok "a hub id needs no import" lora inspect tiny/talk --json
ID=$(json "$OUT" .id)
ok "…with a revision" lora inspect tiny/talk@main -q
is "$OUT" "$ID" "…the same base"
ok "…with a commit's prefix" lora inspect tiny/talk@0123456 -q
exits 1 "a revision that is not there" lora inspect tiny/talk@v9
exits 1 "a hub id that is not there" lora inspect tiny/nobody
ok "an adapter is checked against a base of the hub cache" lora import "$TINYTALK/adapters/upper-lora" --base tiny/talk --json
is "$(json "$OUT" .adapters[0].base_id)" "$ID" "…which is recorded without being in the store"
ok "list --base with a hub id" lora list --base tiny/talk --json
is "$(json "$OUT" -n .adapters)" 1 "…finds it"

ok "a snapshot is imported" lora import "$SNAP" --json
is "$(json "$OUT" .bases[0].name)" tiny/talk "…under its hub name"
is "$(json "$OUT" .bases[0].id)" "$ID" "…with the same fingerprint"
ok "a name with a slash" test -f "$LORA_STORE/refs/tiny+talk/latest"
rm -r "$HF_HOME/hub"
exits 1 "a base by reference whose folder is gone" lora inspect tiny/talk
like "$ERR" 'gone.*by reference' "…says so"
exits 1 "…and fsck tells" lora fsck
ok "an adapter of that base can still be looked at" lora inspect upper-lora
ok "…and listed" lora list

ok "the base comes back from elsewhere" lora import "$TINYTALK/base" --name tiny/talk
ok "…and fsck is clean" lora fsck
ok "a copy stands on its own" lora import "$TINYTALK/base" --name tiny/talk --copy --json
is "$(json "$OUT" .bases[0].by_reference)" false "…in the store"
is "$(lora inspect tiny/talk --json | jsonq .verified)" digests "…verified by digests"
like "$(lora inspect tiny/talk --json | jsonq .path)" "^$LORA_STORE/cache/objects/" "…found in a folder of links"
rm -r "$LORA_STORE/cache"
ok "the cache is safe to delete" lora inspect tiny/talk -q
ok "…also for adapters" lora inspect upper-lora -q

# Whose store?
ok "--store wins" lora import "$TINYTALK/adapters/title-lora" --store "$TMP/flag" -q
ok "…over LORA_STORE" test -d "$TMP/flag/blobs"
unset LORA_STORE
ok "without both, the data folder" lora import "$TINYTALK/adapters/title-lora" -q
ok "…is used" test -d "$XDG_DATA_HOME/lora/blobs"
cd "$TMP" || exit 1
ok "a relative store" lora import "$TINYTALK/adapters/title-lora" --store ./here -q
ok "…is read from elsewhere" sh -c "cd / && lora inspect title-lora -q --store '$TMP/here'"
# A path that is not there: every command says where the next look should go.
mkdir -p "$TMP/there"
printf '{}' >"$TMP/context.json"
while read -r command; do
    not_ok "$command" lora ${command//PATH/$TMP/there/nope}
    like "$ERR" "hint: .ls $TMP/there. shows what is there" "…points to the folder that is there"
done <<'COMMANDS'
import PATH
import PATH/deeper/x.tar
import --recursive PATH
inspect PATH
diff PATH PATH
merge PATH --base PATH --output PATH/out
merge --apply PATH.json --output PATH/out
extract --base PATH --tuned PATH --rank 4 --name x
resize PATH --rank 2 --name x
run PATH hello
prompt PATH --context PATH.json
tokenize PATH hello
serve --model PATH --port 0
pack PATH --overlay-of PATH --output PATH.tar
COMMANDS
not_ok "a name without a folder" lora import nope.safetensors
like "$ERR" 'hint: it was looked for in .*lora list' "…says where was looked"
not_ok "several" lora import "$TMP/there/a" "$TMP/there/b"
like "$ERR" "hint: .ls $TMP/there. shows" "…too"
done_testing
