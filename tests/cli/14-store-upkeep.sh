#!/usr/bin/env bash
# list, tag, rm, gc and fsck.
. tests/lib/tap.sh

lora import "$TINYTALK/base" --name tinytalk >/dev/null
lora import "$TINYTALK/adapters/"{upper,title,math,count}-lora >/dev/null

ok "list" lora list
like "$OUT" '^upper-lora +[0-9a-f]{12} +tinytalk +8 +LoRA' "…name, id, base, rank, kinds"
ok "ls is list" lora ls -q
is "$(printf '%s\n' "$OUT" | wc -l)" 5 "…ids, one a line"
is "$(lora list -q --kind adapter | wc -l)" 4 "…of adapters"
ok "list as JSON" lora list --json
is "$(json "$OUT" .schema)" 1 "…with its schema"
is "$(json "$OUT" -n .adapters)" 4 "…all of them"
is "$(json "$OUT" .adapters[0].name)" count-lora "…by name"
is "$(json "$OUT" .adapters[0].targets[0])" down_proj "…targets"
is "$(json "$OUT" .bases[0].name)" tinytalk "…and the base"
is "$(lora list --sort bytes --json | jsonq .adapters[0].name)" math-lora "the biggest first"
is "$(lora list --sort rank --json | jsonq .adapters[0].rank)" 16 "the highest rank first"
is "$(lora list --base tinytalk --json | jsonq -n .adapters)" 4 "adapters of a base"
exits 2 "an unknown order" lora list --sort size
exits 1 "an unknown base" lora list --base nobody

ID=$(lora inspect upper-lora -q)
ok "tag" lora tag upper-lora upper-lora:v1
is "$(lora list --tag v1 --json | jsonq .adapters[0].name)" upper-lora "…is listed"
is "$(lora list --json | jsonq .adapters[3].tags)" '["latest","v1"]' "…beside latest, in one row"
ok "tag by a prefix of the id" lora tag "${ID:0:8}" loud --json
is "$(json "$OUT" .id)" "$ID" "…that id"
exits 4 "a name in use" lora tag title-lora loud
ok "…is taken by --force" lora tag title-lora loud --force
ok "…and given back by --undo" lora tag --undo loud --json
is "$(json "$OUT" .id)" "$ID" "…to the old id"
ok "history" lora tag --history loud
is "$(printf '%s\n' "$OUT" | wc -l)" 4 "…heading, import, force, undo"
exits 1 "an unknown REF" lora tag nobody x
exits 2 "a bad name" lora tag upper-lora 'a:b:c'
exits 2 "one argument too few" lora tag upper-lora

# A name that looks like a prefix wins over the prefix.
OTHER=$(lora inspect math-lora -q)
ok "a name of hex digits" lora tag upper-lora "${OTHER:0:8}"
is "$(lora inspect "${OTHER:0:8}" -q)" "$ID" "…wins over the prefix"
is "$(lora inspect "${OTHER:0:9}" -q)" "$OTHER" "…a longer prefix is one"
lora rm "${OTHER:0:8}" >/dev/null
exits 1 "a prefix of five digits is none" lora inspect "${OTHER:0:5}"
is "$(lora inspect "sha256:$OTHER" -q)" "$OTHER" "a whole id"
mkdir "$TMP/ambiguous"
python3 - "$LORA_STORE/index.db" "$OTHER" <<'PY'
import sqlite3, sys
d = sqlite3.connect(sys.argv[1])
twin = sys.argv[2][:20] + ("0" if sys.argv[2][20] != "0" else "1") + sys.argv[2][21:]
row = list(d.execute("SELECT * FROM object WHERE id = ?", (sys.argv[2],)).fetchone())
row[0], row[1] = None, twin
d.execute("INSERT INTO object VALUES(%s)" % ",".join("?" * len(row)), row)
d.commit()
PY
exits 2 "an ambiguous prefix" lora inspect "${OTHER:0:10}"
like "$ERR" "ambiguous.*${OTHER:0:16}.*, " "…lists the candidates"
sqlite3 "$LORA_STORE/index.db" "DELETE FROM object WHERE id LIKE '${OTHER:0:20}%' AND id != '$OTHER'" 2>/dev/null ||
    python3 -c "
import sqlite3; d = sqlite3.connect('$LORA_STORE/index.db')
d.execute('DELETE FROM object WHERE substr(id, 1, 20) = ? AND id != ?', ('${OTHER:0:20}', '$OTHER')); d.commit()"

ok "rm" lora rm math-lora
exits 1 "…the name is gone" lora inspect math-lora
ok "…the content is not, yet" lora inspect "$OTHER" -q
exits 1 "rm twice" lora rm math-lora
exits 1 "rm of an id" lora rm "${OTHER:0:10}"
ok "undo of rm" lora tag --undo math-lora
ok "…the name is back" lora inspect math-lora -q
lora rm math-lora >/dev/null
ok "rm --all-tags" lora rm --all-tags upper-lora --json
is "$(json "$OUT" -n .removed)" 2 "…both of them"

BEFORE=$(find "$LORA_STORE/blobs" -type f | wc -l)
ok "gc --dry-run" lora gc --dry-run --json
is "$(json "$OUT" .objects)" 1 "…one object has no name left (loud still names the other)"
is "$(find "$LORA_STORE/blobs" -type f | wc -l)" "$BEFORE" "…nothing went"
ok "gc" lora gc
is "$(find "$LORA_STORE/blobs" -type f | wc -l)" $((BEFORE - 2)) "…its two blobs went"
exits 1 "…now it is gone" lora inspect "$OTHER"
exits 1 "…and cannot be brought back" lora tag --undo math-lora
ok "what a name holds stayed" lora inspect loud -q

# Left behind by somebody who died.
mkdir -p "$LORA_STORE/tmp/import-1-2-3" "$LORA_STORE/blobs/sha256/00"
echo x >"$LORA_STORE/tmp/import-1-2-3/adapter_config.json"
echo '{"what":"import","pid":1,"ids":[]}' >"$LORA_STORE/leases/import-1-2-3"
ORPHAN=$LORA_STORE/blobs/sha256/00/00$(printf '0%.0s' {1..62})
echo young >"$ORPHAN"
ok "gc takes the folder of a dead import" lora gc
not_ok "…it is gone" test -e "$LORA_STORE/tmp/import-1-2-3"
not_ok "…and its lease" test -e "$LORA_STORE/leases/import-1-2-3"
ok "…but a young blob has its grace" test -e "$ORPHAN"
ok "fsck notes it, no more" lora fsck --json
is "$(json "$OUT" -n .notes)" 1 "…one note"
ok "gc without grace" lora gc --grace 0
not_ok "…takes it" test -e "$ORPHAN"

# What a lease holds stays.
lora rm title-lora >/dev/null
TITLE=$(lora tag --history title-lora --json | jsonq .events[1].id)
echo "{\"schema\":1,\"what\":\"serve\",\"pid\":$$,\"ids\":[\"$TITLE\"]}" >"$LORA_STORE/leases/serve-$$-1-1"
exec 8<"$LORA_STORE/leases/serve-$$-1-1"
flock -x 8
ok "gc beside a lease" lora gc --grace 0 --json
is "$(json "$OUT" .leased)" 1 "…keeps what it holds"
ok "…it is there" lora inspect "$TITLE" -q
exec 8<&-
ok "gc when the lease is gone" lora gc --grace 0
exits 1 "…takes it" lora inspect "$TITLE"

# Repair.
ok "fsck is clean" lora fsck
LIST=$(lora list --json)
rm "$LORA_STORE"/index.db*
exits 5 "a store without its index" lora list
like "$ERR" 'fsck --repair' "…says what to do"
ok "fsck --repair" lora fsck --repair
is "$(lora list --json)" "$LIST" "…gives the same list, names and tags included"
head -c 3000 /dev/urandom >"$LORA_STORE/index.db"; rm -f "$LORA_STORE"/index.db-*
exits 5 "fsck of a spoiled index" lora fsck
ok "…is repaired" lora fsck --repair
is "$(lora list --json)" "$LIST" "…to the same list"
rm "$LORA_STORE/refs/loud/latest"
exits 1 "a lost ref file" lora fsck
ok "…is written again" lora fsck --repair
ok "…and fsck is clean" lora fsck
rm "$LORA_STORE/manifests/$ID.json"
exits 5 "a lost manifest" lora fsck
ok "…comes back with its adapter" lora import "$TINYTALK/adapters/upper-lora" --name loud
ok "…and fsck is clean" lora fsck

python3 -c "
import sqlite3; d = sqlite3.connect('$LORA_STORE/index.db'); d.execute('PRAGMA user_version = 99'); d.commit()"
exits 4 "an index of a later version" lora list
like "$ERR" '99.*newer lora' "…says so"
exits 4 "…which repair leaves alone" lora fsck --repair
echo '{"format": 99}' >"$LORA_STORE/lora-store.json"
exits 4 "a store of a later format" lora list
mkdir "$TMP/full"; echo x >"$TMP/full/letter"
exits 4 "a folder that is no store and not empty" lora import "$TINYTALK/adapters/upper-lora" --store "$TMP/full"
is "$(ls "$TMP/full")" letter "…is left alone"
done_testing
