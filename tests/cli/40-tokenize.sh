#!/usr/bin/env bash
# lora tokenize: ids, texts, files, JSON, refusals, the cache.
. tests/lib/tap.sh
model=$TINYTALK/base

exits 0 "a text" lora tokenize "$model" "upper: a b"
ids=$OUT
like "$ids" '^[0-9]+( [0-9]+)*$' "its ids stand on one line"
exits 0 "the ids" lora tokenize "$model" --decode "$ids"
is "$OUT" "upper: a b" "give the text back"
exits 0 "ids as JSON has them" lora tokenize "$model" --decode "[${ids// /, }]"
is "$OUT" "upper: a b" "may be decoded too"

printf '["upper: a b", "", "<|im_start|>x<|im_end|>", "a\\u0000b\\n"]' >"$TMP/texts.json"
exits 0 "a file" lora tokenize "$model" --file "$TMP/texts.json"
is "$(printf '%s\n' "$OUT" | sed -n 1p)" "$ids" "one line a text"
is "$(printf '%s\n' "$OUT" | sed -n 2p)" "" "an empty one for an empty text"
is "$(printf '%s\n' "$OUT" | sed -n 3p | awk '{print $1, $NF}')" "1 2" "special tokens in a text are found"
exits 0 "as JSON" lora tokenize "$model" --file "$TMP/texts.json" --json
is "$(json "$OUT" .schema)" 1 "schema 1"
is "$(json "$OUT" .ids[0][0])" "${ids%% *}" "ids in the order of the texts"
is "$(json "$OUT" .ids[2][0])" 1 "a list a text"
printf '%s' "$OUT" | sed 's/.*"ids":\(.*\)}$/\1/' >"$TMP/ids.json"
exits 0 "the lists" lora tokenize "$model" --decode --file "$TMP/ids.json" --json
is "$(printf '%s' "$OUT" | tr -d ' ')" '{"schema":1,"texts":["upper:ab","","<|im_start|>x<|im_end|>","a\u0000b\n"]}' \
    "give the texts back, byte for byte"
exits 0 "without special tokens" lora tokenize "$model" --decode --skip-special --file "$TMP/ids.json" --json
like "$OUT" '^[{]"schema": ?1, ?"texts": ?.*, ?"x", ?"a' "they are left out"
exits 0 "special tokens as text" lora tokenize "$model" --special-as-text "<|im_start|>"
isnt "$OUT" 1 "are not found"

exits 2 "neither text nor file" lora tokenize "$model"
like "$ERR" "either TEXT or --file" "it says so"
exits 2 "both" lora tokenize "$model" x --file "$TMP/texts.json"
exits 2 "no id" lora tokenize "$model" --decode "1 x"
like "$ERR" "'x' is no token id" "it is named"
exits 2 "a negative id" lora tokenize "$model" --decode -- "-1"
echo '{"a": 1}' >"$TMP/object.json"
exits 2 "a file that is no list" lora tokenize "$model" --file "$TMP/object.json"
like "$ERR" "object.json: not a list" "the file is named"
exits 1 "a file that is not there" lora tokenize "$model" --file "$TMP/none.json"
exits 1 "a model that is not there" lora tokenize "$TMP/none" x
mkdir "$TMP/empty"
exits 1 "a folder without tokenizer.json" lora tokenize "$TMP/empty" x
like "$ERR" "$TMP/empty: " "it is named"

mkdir "$TMP/m"
mutate() { sed "$1" "$model/tokenizer.json" >"$TMP/m/tokenizer.json"; }
mutate 's/"type": *"BPE"/"type": "Unigram"/'
exits 4 "another model type" lora tokenize "$TMP/m" x
like "$ERR" "model type 'Unigram' is not supported" "is refused by name"
mutate 's/"dropout": *null/"dropout": 0.1/'
exits 4 "dropout" lora tokenize "$TMP/m" x
like "$ERR" "dropout" "is refused by name"
mutate 's/"normalizer": *null/"normalizer": {"type": "Precompiled"}/'
exits 4 "an unknown normalizer" lora tokenize "$TMP/m" x
like "$ERR" "normalizer 'Precompiled' is not supported" "is refused by name"
mutate 's/"type": *"Split"/"type": "UnicodeScripts"/'
exits 4 "an unknown pre-tokenizer" lora tokenize "$TMP/m" x
like "$ERR" "pre-tokenizer 'UnicodeScripts' is not supported" "is refused by name"
head -c 20000 "$model/tokenizer.json" >"$TMP/m/tokenizer.json"
exits 5 "a truncated tokenizer.json" lora tokenize "$TMP/m" x
like "$ERR" "tokenizer.json:[0-9]+: " "with file and place"

mkdir "$TMP/copy"
cp "$model/tokenizer.json" "$model/tokenizer_config.json" "$TMP/copy"
touch -d '2020-01-01' "$TMP/copy/tokenizer.json"
sleep 0.2 # a file that has just changed is not kept
exits 0 "no store, no cache" lora tokenize "$TMP/copy" "upper: a b"
not_ok "none is made" test -e "$LORA_STORE"
mkdir -p "$LORA_STORE"
echo '{"format": 1, "created": 0, "program": "lora"}' >"$LORA_STORE/lora-store.json"
exits 0 "with a store" lora tokenize "$TMP/copy" "upper: a b"
is "$OUT" "$ids" "the same ids"
cached=$(ls "$LORA_STORE"/cache/tokenizer/tokenizer-* 2>/dev/null)
like "$cached" "tokenizer-[0-9a-f]{16}" "the vocabulary is kept in its cache"
exits 0 "from the cache" lora tokenize "$TMP/copy" "upper: a b"
is "$OUT" "$ids" "the same ids"
chmod u+w "$cached"
printf 'x' | dd of="$cached" bs=1 seek=2000 conv=notrunc 2>/dev/null
exits 0 "a damaged cache" lora tokenize "$TMP/copy" "upper: a b"
is "$OUT" "$ids" "is made anew"
: >"$cached"
exits 0 "an empty one too" lora tokenize "$TMP/copy" "upper: a b"
is "$OUT" "$ids" "the same ids"
done_testing
