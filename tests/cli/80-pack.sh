#!/usr/bin/env bash
# pack, and import of packs: the same bytes again, other people's tools, other people's packs.
. tests/lib/tap.sh

ALL="count-lora first-lora last-lora math-lora reverse-lora sort-lora title-lora upper-lora"
lora import "$TINYTALK/base" --name tinytalk -q >/dev/null
lora import --recursive "$TINYTALK/adapters" -q >/dev/null

# pack -> import on a fresh store -> pack: the same bytes and ids, for one and for eight.
for format in tar tar.zst tar.gz zip; do
    ok "one adapter as $format" lora pack math-lora --output "$TMP/one.$format" --json
    is "$(json "$OUT" .format)" "$format" "…the name's end says the format"
    ok "…imports into a fresh store" lora import "$TMP/one.$format" --store "$TMP/one-$format" --json
    is "$(json "$OUT" .adapters[0].name)" math-lora "…under its name"
    is "$(json "$OUT" .adapters[0].id)" "$(lora inspect math-lora --json | jsonq .id)" "…with its content id"
    ok "…is packed again" lora pack math-lora --output "$TMP/again.$format" --store "$TMP/one-$format"
    ok "…with the same bytes" cmp "$TMP/one.$format" "$TMP/again.$format"

    ok "eight adapters as $format" lora pack $ALL --output "$TMP/all.$format"
    ok "…import into a fresh store" lora import "$TMP/all.$format" --store "$TMP/all-$format"
    is "$(lora list --store "$TMP/all-$format" --json | jsonq -n .adapters)" 8 "…all of them"
    ok "…are packed again" lora pack $ALL --output "$TMP/all2.$format" --store "$TMP/all-$format"
    ok "…with the same bytes" cmp "$TMP/all.$format" "$TMP/all2.$format"
    ok "…the store is sound" lora fsck --store "$TMP/all-$format"
    is "$(ls "$TMP/all-$format/tmp")" "" "…nothing is left in its tmp"
    rm "$TMP/again.$format" "$TMP/all2.$format"
done
ok "the order of the references does not matter" lora pack upper-lora math-lora --output "$TMP/ab.tar"
lora pack math-lora upper-lora math-lora --output "$TMP/ba.tar" -q >/dev/null
ok "…nor that one is named twice" cmp "$TMP/ab.tar" "$TMP/ba.tar"

# Many: as many adapters as LORA_PACK_MANY says (500 were tried), one value of each its own.
MANY=${LORA_PACK_MANY:-40}
python3 - "$TINYTALK/adapters/upper-lora" "$TMP/many" "$MANY" <<'PY'
import os, struct, sys
src, out, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
weights, config = (open(f"{src}/{f}", "rb").read() for f in ("adapter_model.safetensors", "adapter_config.json"))
start = 8 + struct.unpack("<Q", weights[:8])[0]
for i in range(n):
    os.makedirs(f"{out}/a{i:04d}")
    own = bytearray(weights)
    own[start + 4:start + 6] = struct.pack("<H", i + 1)
    open(f"{out}/a{i:04d}/adapter_model.safetensors", "wb").write(own)
    open(f"{out}/a{i:04d}/adapter_config.json", "wb").write(config)
PY
lora import --recursive "$TMP/many" --store "$TMP/many-one" -q >"$TMP/ids1"
ok "$MANY adapters in one pack" lora pack $(ls "$TMP/many") --output "$TMP/many.tar" --store "$TMP/many-one"
lora import "$TMP/many.tar" --store "$TMP/many-two" -q >"$TMP/ids2"
ok "…come back with the same ids" cmp <(sort "$TMP/ids1") <(sort "$TMP/ids2")
is "$(sort -u "$TMP/ids2" | wc -l)" "$MANY" "…all of them"
ok "…are packed again" lora pack $(ls "$TMP/many") --output "$TMP/many2.tar" --store "$TMP/many-two"
ok "…with the same bytes" cmp "$TMP/many.tar" "$TMP/many2.tar"

# Names and tags travel.
lora tag math-lora team/maths:v2 >/dev/null
ok "a name with a slash and a tag is packed" lora pack team/maths:v2 --output "$TMP/named.tar"
ok "…and imported" lora import "$TMP/named.tar" --store "$TMP/named" --json
is "$(json "$OUT" .adapters[0].name):$(json "$OUT" .adapters[0].tag)" team/maths:v2 "…under both"
ok "--name takes another" lora import "$TMP/named.tar" --name other --store "$TMP/named" --json
is "$(json "$OUT" .adapters[0].name):$(json "$OUT" .adapters[0].tag)" other:latest "…and the tag latest"
BASE=$(lora inspect tinytalk --json | jsonq .id)
is "$(lora list --store "$TMP/named" --json | jsonq .adapters[0].base_id)" "$BASE" "the base's fingerprint travels"
exits 2 "--name for a pack of several" lora import "$TMP/all.tar" --name x --store "$TMP/named2"
ok "a base travels thin" lora pack math-lora tinytalk --output "$TMP/base.tar"
ok "…is told of" lora import "$TMP/base.tar" --store "$TMP/thin"
like "$ERR" 'base tinytalk .* without its weights' "…in words"
unlike "$(tar -tf "$TMP/base.tar")" 'model-0|base/' "…none of its files is in the pack"

# Nothing is overwritten; nothing is left of what fails.
exits 4 "an output that is there" lora pack math-lora --output "$TMP/one.tar"
like "$ERR" 'hint: .*--force' "…is left alone"
ok "--force replaces it" lora pack math-lora --output "$TMP/one.tar" --force
exits 1 "an adapter that is not there" lora pack nobody --output "$TMP/nobody.tar"
exits 2 "a name that says no format" lora pack math-lora --output "$TMP/pack"
ok "--format says it then" lora pack math-lora --output "$TMP/pack" --format tar.zst
exits 2 "a layout is no zip" lora pack math-lora --output "$TMP/x.zip" --format oci
like "$(ls "$TMP" | grep -c '\.tmp$')" '^0$' "no temporary file is left"

# A blob that was spoiled in the store is not passed on.
cp -r "$LORA_STORE" "$TMP/spoiled"
SUM=$(openssl dgst -sha256 -r "$TINYTALK/adapters/math-lora/adapter_model.safetensors" | cut -d' ' -f1)
chmod u+w "$TMP/spoiled/blobs/sha256/${SUM:0:2}/$SUM"
printf X | dd of="$TMP/spoiled/blobs/sha256/${SUM:0:2}/$SUM" bs=1 seek=100000 conv=notrunc 2>/dev/null
exits 5 "a spoiled blob is not packed" lora pack math-lora --output "$TMP/spoiled.tar" --store "$TMP/spoiled"
not_ok "…and leaves no file" test -e "$TMP/spoiled.tar"

# Other people's tools read them.
ok "GNU tar lists" tar -tf "$TMP/all.tar"
mkdir "$TMP/gnu" "$TMP/zip"
ok "GNU tar extracts" tar -C "$TMP/gnu" -xf "$TMP/all.tar"
ok "…the files as they were" diff -r "$TMP/gnu/adapters/math-lora" "$TINYTALK/adapters/math-lora"
is "$(tar -tf "$TMP/all.tar" | LC_ALL=C sort -c 2>&1)" "" "entries are sorted"
is "$(tar --numeric-owner --utc -tvf "$TMP/all.tar" | awk '{print $1, $2, $4, $5}' | sort -u)" \
    "-rw-r--r-- 0/0 1970-01-01 00:00" "owner, mode and time are constant"
if command -v bsdtar >/dev/null; then
    mkdir "$TMP/bsd"
    ok "bsdtar extracts" bsdtar -C "$TMP/bsd" -xf "$TMP/all.tar.zst"
    ok "…the files as they were" diff -r "$TMP/bsd/adapters" "$TMP/gnu/adapters"
else
    skip "bsdtar extracts" "bsdtar is not installed"
fi
if command -v unzip >/dev/null; then
    ok "unzip tests and extracts" unzip -q "$TMP/all.zip" -d "$TMP/zip"
    ok "…the files as they were" diff -r "$TMP/zip/adapters" "$TMP/gnu/adapters"
else
    skip "unzip tests and extracts" "unzip is not installed"
fi
ok "Python's zipfile and tarfile read them; weights in a plain tar are aligned" python3 - "$TMP" <<'PY'
import sys, tarfile, zipfile
z = zipfile.ZipFile(sys.argv[1] + "/all.zip")
assert z.testzip() is None and len(z.namelist()) == 17, z.namelist()
n = 0
for m in tarfile.open(sys.argv[1] + "/all.tar"):
    if m.name.endswith(".safetensors"):
        assert m.offset_data % 4096 == 0, m.name
        n += 1
assert n == 8
PY

# Standard input, pipes.
ok "a pack comes through a pipe" bash -c 'lora import - --store "$0/pipe" <"$0/all.tar.zst"' "$TMP"
is "$(lora list --store "$TMP/pipe" --json | jsonq -n .adapters)" 8 "…all of it"
exits 5 "a zip does not" bash -c 'lora import - --store "$0/pipe" <"$0/all.zip"' "$TMP"
like "$ERR" 'zip cannot be read from standard input' "…and says so"
ok "a dry run needs no store" lora import "$TMP/all.tar" --dry-run --store "$TMP/none" --json
is "$(json "$OUT" -n .adapters)" 8 "…and says what would be done"
not_ok "…and makes none" test -e "$TMP/none"

# Packs that lora did not make.
cp -r "$TINYTALK/adapters/math-lora" "$TMP/bot"
(cd "$TMP" && tar czf bot.tar.gz ./bot && tar cf flat.tar -C bot . && mkdir -p deep/run-3 && cp -r bot deep/run-3/checkpoint-7 &&
    echo junk >deep/optimizer.pt && tar cf deep.tar deep &&
    python3 -c 'import shutil; shutil.make_archive("bot", "zip", ".", "bot")')
for f in bot.tar.gz bot.zip flat.tar deep.tar; do
    ok "a PEFT folder in somebody's $f" lora import "$TMP/$f" --store "$TMP/foreign-$f" --json
    is "$(json "$OUT" .adapters[0].id)" "$(lora inspect math-lora --json | jsonq .id)" "…is the same content"
    case $f in
    bot.*) is "$(json "$OUT" .adapters[0].name)" bot "…named after its folder" ;;
    flat.tar) is "$(json "$OUT" .adapters[0].name)" flat "…named after the pack" ;;
    deep.tar) is "$(json "$OUT" .adapters[0].name)" run-3 "…named after the folder that says something" ;;
    esac
done
like "$(lora import "$TMP/deep.tar" --store "$TMP/foreign-deep.tar" 2>&1)" '1 files of it are no part' "what is left out is told"

done_testing
