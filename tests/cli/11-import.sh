#!/usr/bin/env bash
# import: adapters and bases into the store, their names, and what is said of them.
. tests/lib/tap.sh

exits 10 "a list without a store says so" lora list
like "$ERR" 'no store there' "…in words"
like "$ERR" 'hint: .*lora import' "…and what to do"

ok "a base is imported by reference" lora import "$TINYTALK/base" --name tinytalk --json
is "$(json "$OUT" .bases[0].name)" tinytalk "…under the given name"
is "$(json "$OUT" .bases[0].by_reference)" true "…its bytes stay where they are"
BASE=$(json "$OUT" .bases[0].id)

ok "a PEFT folder is imported" lora import "$TINYTALK/adapters/upper-lora" --json
is "$(json "$OUT" .adapters[0].name)" upper-lora "…its folder gives the name"
is "$(json "$OUT" .adapters[0].state)" added "…it is new"
is "$(json "$OUT" .adapters[0].base_id)" "$BASE" "…the base that it names is recorded"
ID=$(json "$OUT" .adapters[0].id)
like "$ID" '^[0-9a-f]{64}$' "…it has a content id"
is "$(cat "$LORA_STORE/manifests/$ID.json" | jsonq .id)" "$ID" "…and a manifest"
SUM=$(openssl dgst -sha256 -r "$TINYTALK/adapters/upper-lora/adapter_model.safetensors" | cut -d' ' -f1)
ok "the blob's name is the sha256 of the file" test -f "$LORA_STORE/blobs/sha256/${SUM:0:2}/$SUM"
ok "its bytes come back exactly" cmp "$LORA_STORE/blobs/sha256/${SUM:0:2}/$SUM" "$TINYTALK/adapters/upper-lora/adapter_model.safetensors"
is "$(stat -c %a "$LORA_STORE/blobs/sha256/${SUM:0:2}/$SUM")" 444 "…it is read-only"

ok "the same content twice is no error" lora import "$TINYTALK/adapters/upper-lora"
like "$OUT" 'is there already' "…and says so"
is "$(lora list --json | jsonq -n .adapters)" 1 "…and adds nothing"
ok "under another name it is the same content" lora import "$TINYTALK/adapters/upper-lora" --name shouting --json
is "$(json "$OUT" .adapters[0].id)" "$ID" "…with the same id"
is "$(json "$OUT" .adapters[0].state)" named "…and a second name"

# Only the order of the metadata differs: another file, the same content.
mkdir -p "$TMP/same"
cp "$TINYTALK/adapters/upper-lora/adapter_config.json" "$TMP/same/"
python3 - "$TINYTALK/adapters/upper-lora/adapter_model.safetensors" "$TMP/same/adapter_model.safetensors" <<'PY'
import json, struct, sys
data = open(sys.argv[1], "rb").read()
n = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + n])
header["__metadata__"] = {"format": "pt", "zebra": "1", "ant": "2"}
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + data[8 + n:])
PY
ok "a file with other metadata is the same content" lora import "$TMP/same" --name again --json
is "$(json "$OUT" .adapters[0].id)" "$ID" "…by its content id"

# Names.
mkdir -p "$TMP/run-7/checkpoint-500" "$TMP/named"
cp "$TINYTALK/adapters/title-lora/"* "$TMP/run-7/checkpoint-500/"
ok "a checkpoint folder is imported" lora import "$TMP/run-7/checkpoint-500" --json
is "$(json "$OUT" .adapters[0].name)" run-7 "…under its parent's name"
cp "$TINYTALK/adapters/math-lora/"* "$TMP/named/"
sed -i 's/^{/{"name": "by-config",/' "$TMP/named/adapter_config.json"
ok "a name in the configuration wins over the folder's" lora import "$TMP/named" --json
is "$(json "$OUT" .adapters[0].name)" by-config "…it is used"

exits 4 "a name in use for other content is refused" lora import "$TINYTALK/adapters/last-lora" --name upper-lora
like "$ERR" 'upper-lora:latest.*in use' "…by name"
like "$ERR" 'hint: .*--name' "…with the way out"
is "$(lora tag --history upper-lora --json | jsonq -n .events)" 1 "…nothing changed"
ok "--force takes the name" lora import "$TINYTALK/adapters/last-lora" --name upper-lora --force
is "$(lora tag --history upper-lora --json | jsonq .events[1].id)" "$ID" "…the old content is in the history"
ok "--tag gives a tag" lora import "$TINYTALK/adapters/count-lora" --tag v2 --json
is "$(json "$OUT" .adapters[0].tag)" v2 "…other than latest"

# Dry runs.
BEFORE=$(find "$LORA_STORE" -type f ! -name "index.db-*" | sort | sha256sum)
ok "a dry run checks" lora import "$TINYTALK/adapters/sort-lora" --dry-run --json
is "$(json "$OUT" .adapters[0].state)" added "…and says what would be done"
SORT=$(json "$OUT" .adapters[0].id)
is "$(find "$LORA_STORE" -type f ! -name "index.db-*" | sort | sha256sum)" "$BEFORE" "…and writes nothing"
ok "a dry run needs no store" lora import "$TINYTALK/adapters/sort-lora" --dry-run --store "$TMP/nowhere"
not_ok "…and makes none" test -e "$TMP/nowhere"
ok "the real import follows" lora import "$TINYTALK/adapters/sort-lora" --json
is "$(json "$OUT" .adapters[0].id)" "$SORT" "…and gives the id of the plan"

# Hub caches are made of links.
HUB=$TMP/hub/models--team--bot
mkdir -p "$HUB/blobs" "$HUB/snapshots/0123456789abcdef0123456789abcdef01234567"
for f in adapter_config.json adapter_model.safetensors; do
    cp "$TINYTALK/adapters/reverse-lora/$f" "$HUB/blobs/$f.blob"
    ln -s "../../blobs/$f.blob" "$HUB/snapshots/0123456789abcdef0123456789abcdef01234567/$f"
done
ok "a snapshot of links is imported" lora import "$HUB/snapshots/0123456789abcdef0123456789abcdef01234567" --json
unlike "$(json "$OUT" .adapters[0].name)" 0123456789abcdef "…not under its hash"
ok "a lone .safetensors with its configuration is imported" lora import "$TINYTALK/adapters/first-lora/adapter_model.safetensors" --json
is "$(json "$OUT" .adapters[0].name)" first-lora "…its folder gives the name"

# Many at once.
ok "a folder of folders with --recursive" lora import --recursive "$TINYTALK/adapters" --store "$TMP/second" --json
is "$(json "$OUT" -n .adapters)" 8 "…all of them"
exits 1 "a folder of folders without --recursive" lora import "$TINYTALK/adapters" --store "$TMP/second"
like "$ERR" 'hint: .*--recursive' "…is pointed there"
exits 3 "one of two that fails is a partial failure" lora import "$TINYTALK/adapters/upper-lora" "$TMP/missing" --store "$TMP/second" --json
is "$(json "$OUT" -n .adapters)" 1 "…the other is done"
is "$(json "$OUT" .failures[0].code)" not_found "…the failure is listed"

ok "fsck finds all of it whole" lora fsck
done_testing
