#!/usr/bin/env bash
# sign and verify: keys, bundles of the model-signing tools, signatures in the store, in exports, packs and layouts; imports
# that must be signed. The Python package itself: tests/clients/test_model_signing.py.
. tests/lib/tap.sh

KEYS=$ROOT/tests/keys
MATH=$TINYTALK/adapters/math-lora
lora import "$TINYTALK/base" --name tinytalk -q >/dev/null
lora import "$MATH" -q >/dev/null
ID=$(lora inspect math-lora --json | jsonq .id)

# ---- the store

exits 4 "what is not signed is not verified" lora verify math-lora --key "$KEYS/team.pub"
like "$ERR" 'math-lora: is not signed' "…says so"
like "$ERR" 'hint: `lora sign math-lora' "…and what to do"
ok "an adapter is signed" lora sign math-lora --key "$KEYS/team.pem" --json
is "$(json "$OUT" .state)" signed "…as --json says"
is "$(json "$OUT" .id)" "$ID" "…by its id"
KEY=$(json "$OUT" .key)
SIGNATURE=$(json "$OUT" .signature)
ok "…and verified" lora verify math-lora --key "$KEYS/team.pub" --json
is "$(json "$OUT" .key)" "$KEY" "…by that key"
is "$(json "$OUT" .signature)" "$SIGNATURE" "…by that signature"
is "$(json "$OUT" .files)" 2 "…every file"
ok "signed again by the same key" lora sign math-lora --key "$KEYS/team.pem" --json
is "$(json "$OUT" .state)" same "…nothing is done"
is "$(json "$OUT" .signatures)" 1 "…it has one signature"
exits 4 "another key" lora verify math-lora --key "$KEYS/other.pub"
like "$ERR" "is signed by key ${KEY:0:12}, wanted" "…says whose the signature is"
ok "a second signer" lora sign math-lora --key "$KEYS/other.pem"
ok "…holds" lora verify math-lora --key "$KEYS/other.pub"
ok "…and the first" lora verify math-lora --key "$KEYS/team.pub"
is "$(lora inspect math-lora --json | jsonq -n .signatures)" 2 "inspect --json lists both"
like "$(lora inspect math-lora)" "signature .* by key ${KEY:0:12}" "inspect prints them"
is "$(lora list --json | jsonq .adapters[0].signed)" true "list --json says signed"
ok "the store is sound" lora fsck
is "$(lora gc --json | jsonq .blobs)" 0 "gc leaves signatures alone"
exits 2 "without a key it is not said whose" lora verify math-lora
ok "the setting says whose" env LORA_REQUIRE_SIGNATURE="$KEYS/team.pub" lora verify math-lora
exits 4 "a base of the store is not signed" lora sign tinytalk --key "$KEYS/team.pem"
exits 2 "sign without a key" lora sign math-lora
exits 1 "sign what is not there" lora sign nothing --key "$KEYS/team.pem"

# The index knows signatures from the manifests.
mv "$LORA_STORE/index.db" "$TMP/index.old"
rm -f "$LORA_STORE"/index.db-*
lora fsck --repair >/dev/null
ok "…after the index was made anew" lora verify math-lora --key "$KEYS/other.pub"
is "$(lora list --json | jsonq .adapters[0].signed)" true "…list too"

# ---- keys

sign_with() { lora sign math-lora --key "$1"; }
exits 1 "no such key" sign_with "$TMP/none.pem"
like "$ERR" 'hint: .openssl ecparam' "…and how to make one"
exits 4 "an encrypted key" sign_with "$KEYS/encrypted.pem"
like "$ERR" 'is encrypted' "…says so"
like "$ERR" 'hint: .openssl ec -in .*encrypted.pem -out' "…and how to open it"
exits 4 "a key on another curve" sign_with "$KEYS/p384.pem"
like "$ERR" 'secp384r1, wanted EC P-256' "…names both"
exits 4 "an RSA key" sign_with "$KEYS/rsa.pem"
like "$ERR" 'type RSA' "…is named"
exits 4 "a public key does not sign" sign_with "$KEYS/team.pub"
exits 4 "a private key is not wanted to verify" lora verify math-lora --key "$KEYS/team.pem"
like "$ERR" 'openssl ec -in .*team.pem -pubout' "…how to get the public one"
exits 4 "nor a certificate" lora verify math-lora --key "$KEYS/certificate.pem"
exits 5 "nor something else" lora verify math-lora --key "$MATH/adapter_config.json"
exits 5 "an empty file" sign_with /dev/null

# ---- folders

cp -r "$MATH" "$TMP/made"
printf '# A card\n' >"$TMP/made/README.md"
mkdir "$TMP/made/runs"
printf 'log\n' >"$TMP/made/runs/events.log"
ok "a bundle that the Python package made" lora verify "$TMP/made" --signature "$KEYS/made-by-model-signing.sig" --key "$KEYS/team.pub"
cp "$KEYS/made-by-model-signing.sig" "$TMP/made/model.sig"
ok "…as the folder's model.sig" lora verify "$TMP/made" --key "$KEYS/team.pub" --json
is "$(json "$OUT" .files)" 4 "…every file"
ok "…one in shards" lora verify "$TMP/made" --signature "$KEYS/made-in-shards.sig" --key "$KEYS/team.pub"
exits 4 "…another key" lora verify "$TMP/made" --key "$KEYS/other.pub"
printf 'log!' >"$TMP/made/runs/events.log"
exits 5 "a changed file" lora verify "$TMP/made" --key "$KEYS/team.pub"
like "$ERR" 'runs/events.log is not what was signed' "…is named"
exits 5 "…in shards, too" lora verify "$TMP/made" --signature "$KEYS/made-in-shards.sig" --key "$KEYS/team.pub"
like "$ERR" 'runs/events.log is not what was signed' "…by its name"
printf 'log\nmore' >"$TMP/made/runs/events.log"
exits 5 "a longer file, in shards" lora verify "$TMP/made" --signature "$KEYS/made-in-shards.sig" --key "$KEYS/team.pub"
like "$ERR" 'has 8 bytes, 4 are signed' "…says how much is signed"
rm "$TMP/made/runs/events.log"
exits 5 "a missing file" lora verify "$TMP/made" --key "$KEYS/team.pub"
like "$ERR" 'runs/events.log is signed and not there' "…is named"
printf 'log\n' >"$TMP/made/runs/events.log"
printf 'x' >"$TMP/made/extra.bin"
exits 4 "a file that is not signed" lora verify "$TMP/made" --key "$KEYS/team.pub"
like "$ERR" 'extra.bin is not signed' "…is named"
ok "…unless that is no matter" lora verify "$TMP/made" --key "$KEYS/team.pub" --ignore-unsigned-files
rm "$TMP/made/extra.bin"
mkdir "$TMP/made/.git" && printf x >"$TMP/made/.git/HEAD"
ok "git's files do not count" lora verify "$TMP/made" --key "$KEYS/team.pub"
ln -s adapter_config.json "$TMP/made/link.json"
exits 4 "a link is a file" lora verify "$TMP/made" --key "$KEYS/team.pub"
rm "$TMP/made/link.json"
exits 1 "a folder is not signed over" lora sign "$TMP/none" --key "$KEYS/team.pem"
exits 4 "a model.sig is not overwritten" lora sign "$TMP/made" --key "$KEYS/other.pem"
ok "…unless told to" lora sign "$TMP/made" --key "$KEYS/other.pem" --force
ok "…and verifies" lora verify "$TMP/made" --key "$KEYS/other.pub"
exits 2 "a single file's signature must be named" lora sign "$MATH/adapter_config.json" --key "$KEYS/team.pem"
ok "…then it is signed" lora sign "$MATH/adapter_config.json" --key "$KEYS/team.pem" --signature "$TMP/file.sig"
ok "…and verified" lora verify "$MATH/adapter_config.json" --key "$KEYS/team.pub" --signature "$TMP/file.sig"
exits 5 "…as no other" lora verify "$MATH/adapter_model.safetensors" --key "$KEYS/team.pub" --signature "$TMP/file.sig"

# ---- broken bundles

bad() { # bad STATUS NAME PATTERN, the bundle on standard input
    cat >"$TMP/bad.sig"
    exits "$1" "$2" lora verify "$TMP/made" --signature "$TMP/bad.sig" --key "$KEYS/team.pub"
    like "$ERR" "$3" "…says what"
}
GOOD=$(cat "$KEYS/made-by-model-signing.sig")
PAYLOAD=$(json "$GOOD" .dsseEnvelope.payload)
printf '%s' "$PAYLOAD" | base64 -d >"$TMP/payload"
with_payload() { printf '%s' "${GOOD/"$PAYLOAD"/$(base64 -w0)}"; }
bad 5 "a bundle that is no JSON" 'bad.sig: is no Sigstore bundle' < <(printf 'nonsense')
bad 5 "an empty object" '"mediaType" is missing' < <(printf '{}')
bad 4 "a newer form" 'v9.9' < <(printf '%s' "${GOOD/v0.3/v9.9}")
bad 5 "no envelope" '"dsseEnvelope" is missing' < <(printf '%s' "${GOOD/dsseEnvelope/messageSignature}")
bad 5 "a payload that is no base64" 'is no base64' < <(printf '%s' "${GOOD/"$PAYLOAD"/%%%%}")
bad 5 "no payload" 'its statement' < <(printf '%s' "${GOOD/\"payload\"/\"payloads\"}")
bad 5 "a changed statement" 'not of its statement' < <(sed 's/"name": "README.md"/"name": "LIESME.md"/' "$TMP/payload" | with_payload)
bad 5 "a changed digest" 'root digest' < <(sed 's/\("digest": "\)\(.\)\(.\)/\1\3\2/' "$TMP/payload" | with_payload)
bad 5 "a name that leads outside" 'etc/passwd" is off' < <(sed 's#"name": "README.md"#"name": "../../etc/passwd"#' "$TMP/payload" | with_payload)
bad 5 "a file twice" 'twice' < <(sed 's#runs/events.log#README.md#' "$TMP/payload" | with_payload)
bad 4 "another hash" 'blake3, wanted sha256' < <(sed 's/"algorithm": "sha256"/"algorithm": "blake3"/' "$TMP/payload" | with_payload)
bad 4 "another method" 'tensors' < <(sed 's/"files"/"tensors"/' "$TMP/payload" | with_payload)
bad 4 "another statement" 'slsa.dev' < <(sed 's#model_signing/signature/v1.0#slsa.dev/provenance/v1#' "$TMP/payload" | with_payload)
SIG=$(json "$GOOD" .dsseEnvelope.signatures[0].sig)
bad 5 "a signature that is none" 'not of its statement' < <(printf '%s' "${GOOD/"$SIG"/AAAA}")
printf '%s' "${GOOD/publicKey/certificate}" >"$TMP/bad.sig"
exits 4 "a certificate's" lora verify "$TMP/made" --signature "$TMP/bad.sig" --key "$KEYS/other.pub"
like "$ERR" 'with a certificate, which is not checked here' "…says so"

# ---- exports, packs, layouts

ok "export writes model.sig" lora export math-lora --output "$TMP/out" --signer "$KEYS/team.pub" --json
like "$OUT" 'model.sig' "…and says so"
ok "…which verifies" lora verify "$TMP/out" --key "$KEYS/team.pub"
exits 4 "…as the signer's that was asked for" lora verify "$TMP/out" --key "$KEYS/other.pub"
exits 4 "in another form it is not what was signed" lora export math-lora --output "$TMP/mlx" --format mlx --signer "$KEYS/team.pub"
ok "…nor is a signature written" lora export math-lora --output "$TMP/mlx" --format mlx
not_ok "…there is none" test -e "$TMP/mlx/model.sig"
ok "an export is imported with its signature" lora import "$TMP/out" --store "$TMP/again" --require-signature "$KEYS/team.pub" --json
is "$(json "$OUT" .adapters[0].signatures)" 1 "…as --json says"
ok "…which holds there" lora verify out --store "$TMP/again" --key "$KEYS/team.pub"
# Of one key's signatures those of the folder that it was trained in list more than the store keeps.
cp -r "$MATH" "$TMP/trained"
mkdir "$TMP/trained/runs"
for i in 1 2 3 4 5 6; do
    echo "$i" >"$TMP/trained/runs/log"
    lora sign "$TMP/trained" --key "$KEYS/team.pem" --force -q >/dev/null
    lora import "$TMP/trained" --store "$TMP/several" --require-signature "$KEYS/team.pub" -q >/dev/null
done
ok "signed with what an import leaves out, it is exported" lora export trained --store "$TMP/several" --output "$TMP/part"
exits 5 "…as less than what was signed" lora verify "$TMP/part" --key "$KEYS/team.pub"
lora import "$TMP/out" --store "$TMP/several" --require-signature "$KEYS/team.pub" -q >/dev/null
is "$(lora inspect trained --store "$TMP/several" --json | jsonq -n .signatures)" 7 "of many signatures by one key"
ok "…an export" lora export trained --store "$TMP/several" --output "$TMP/whole"
ok "…gets the one of its own files" lora verify "$TMP/whole" --key "$KEYS/team.pub"
exits 1 "…and no other signer's" lora export trained --store "$TMP/several" --output "$TMP/none" --signer "$KEYS/other.pub"
like "$ERR" 'has no signature by .*other.pub' "…says so"
like "$ERR" 'hint: .*lora sign' "…and what to do"
not_ok "…and writes nothing" test -e "$TMP/none"

for form in tar tar.zst tar.gz zip oci oci.tar; do
    flags=$([ "${form#oci}" = "$form" ] || echo --format oci)
    ok "packed: $form" lora pack math-lora --output "$TMP/p.$form" $flags
    ok "…imported" lora import "$TMP/p.$form" --store "$TMP/s.$form" --require-signature "$KEYS/other.pub"
    ok "…the one signature" lora verify math-lora --store "$TMP/s.$form" --key "$KEYS/team.pub"
    ok "…the other" lora verify math-lora --store "$TMP/s.$form" --key "$KEYS/other.pub"
    lora pack math-lora --output "$TMP/q.$form" $flags --store "$TMP/s.$form" -q >/dev/null
    ok "…packed again: the same bytes" diff -r "$TMP/p.$form" "$TMP/q.$form"
    ok "…the store is sound" lora fsck --store "$TMP/s.$form"
done
lora import "$TINYTALK/base" --name tinytalk --store "$TMP/plain" -q >/dev/null
lora import "$MATH" --store "$TMP/plain" -q >/dev/null
lora pack math-lora --format oci --output "$TMP/plain.oci" --store "$TMP/plain" -q >"$TMP/.plain"
is "$(lora pack math-lora --format oci --output "$TMP/signed.oci" -q)" "$(cat "$TMP/.plain")" "a signature does not change an image's digest"
mkdir "$TMP/unpacked"
tar -xf "$TMP/p.tar" -C "$TMP/unpacked"
ok "tar gives folder and signature" lora verify "$TMP/unpacked/adapters/math-lora" --key "$KEYS/team.pub" \
    --signature "$TMP/unpacked/signatures/math-lora/$SIGNATURE.sig"
(cd "$TMP/unpacked" && printf x >>"signatures/math-lora/$SIGNATURE.sig" && tar -cf "$TMP/spoiled.tar" LORA-PACK.json adapters signatures)
exits 5 "a spoiled signature in a pack" lora import "$TMP/spoiled.tar" --store "$TMP/spoiled"
like "$ERR" "signatures/math-lora/$SIGNATURE.sig: " "…is named"
(cd "$TMP/unpacked" && rm "signatures/math-lora/$SIGNATURE.sig" && tar -cf "$TMP/spoiled.tar" LORA-PACK.json adapters signatures)
exits 5 "a missing one" lora import "$TMP/spoiled.tar" --store "$TMP/spoiled"
# A signature of somebody else's files in the place of the adapter's own, digests and all.
if command -v python3 >/dev/null; then
    rm -rf "$TMP/unpacked" && mkdir "$TMP/unpacked" && tar -xf "$TMP/p.tar" -C "$TMP/unpacked"
    lora sign "$TINYTALK/adapters/upper-lora" --key "$KEYS/team.pem" --signature "$TMP/upper.sig" -q >/dev/null
    python3 - "$TMP/unpacked" "$TMP/upper.sig" <<'PY'
import hashlib, json, os, sys
root, other = sys.argv[1:]
index = json.load(open(f"{root}/LORA-PACK.json"))
listed = index["adapters"][0]["signatures"][0]
bundle = open(other, "rb").read()
listed["sha256"], listed["size"] = hashlib.sha256(bundle).hexdigest(), len(bundle)
open(f"{root}/{listed['path']}", "wb").write(bundle)
json.dump(index, open(f"{root}/LORA-PACK.json", "w"))
PY
    (cd "$TMP/unpacked" && tar -cf "$TMP/swapped.tar" LORA-PACK.json adapters signatures)
    exits 5 "a signature that is not of the adapter's files" lora import "$TMP/swapped.tar" --store "$TMP/swapped"
    like "$ERR" 'signatures/.*adapter_(config.json|model.safetensors) is not what was signed' "…names it and the file"
    is "$(lora list --store "$TMP/swapped" -q 2>/dev/null)" "" "…and nothing is kept"
else
    skip "a signature that is not of the adapter's files" "python3 is not installed"
fi
cp "$TMP/made/model.sig" "$TMP/out/model.sig.other"
(cd "$TMP" && tar -cf bare.tar out)
ok "somebody's tar with a model.sig in the folder" lora import "$TMP/bare.tar" --store "$TMP/bare" --require-signature "$KEYS/team.pub"

# ---- what must be signed

exits 4 "an unsigned import is refused" lora import "$MATH" --store "$TMP/strict" --require-signature "$KEYS/team.pub"
like "$ERR" 'math-lora: is not signed, and unsigned adapters are refused here' "…says so"
like "$ERR" 'hint: .*require-signature' "…and who says so"
exits 4 "…already by a dry run" lora import "$MATH" --dry-run --store "$TMP/strict" --require-signature "$KEYS/team.pub"
exits 4 "…an unsigned pack" lora import "$TMP/plain.oci" --store "$TMP/strict" --require-signature "$KEYS/team.pub"
rm -rf "$TMP/by-other"
cp -r "$MATH" "$TMP/by-other"
lora sign "$TMP/by-other" --key "$KEYS/other.pem" -q >/dev/null
exits 4 "somebody else's" lora import "$TMP/by-other" --store "$TMP/strict" --require-signature "$KEYS/team.pub"
like "$ERR" 'is signed by key' "…says whose"
ok "any of several keys will do" lora import "$TMP/by-other" --store "$TMP/strict" --require-signature "$KEYS/team.pub" --require-signature "$KEYS/other.pub"
printf '{"require-signature": ["%s"]}' "$KEYS/team.pub" >"$TMP/.config.json"
mkdir -p "$XDG_CONFIG_HOME/lora" && mv "$TMP/.config.json" "$XDG_CONFIG_HOME/lora/config.json"
exits 4 "the config file's policy" lora import "$MATH" --name policy
ok "…lets pass what is signed" lora import "$TMP/out" --name policy
ok "…and is verify's key" lora verify policy
printf '{"pull": {"require_signature": "%s"}}' "$KEYS/team.pub" >"$XDG_CONFIG_HOME/lora/config.json"
run lora env --json
is "$(printf '%s' "$OUT" | grep -o '"[a-z]*.require-signature","value":"[^"]*team.pub"' | cut -d'"' -f2)" pull.require-signature "env says which command it is for"
ok "…import is not one of them" lora import "$MATH" --name policy2
rm "$XDG_CONFIG_HOME/lora/config.json"
sed -i 's/"r": 16/"r": 16 /' "$TMP/by-other/adapter_config.json"
exits 5 "changed after it was signed" lora import "$TMP/by-other" --name changed --store "$TMP/strict" --require-signature "$KEYS/other.pub"
like "$ERR" 'adapter_config.json is not what was signed' "…names the file"
ok "…without a policy it is a warning" lora import "$TMP/by-other" --name changed --store "$TMP/lax"
like "$ERR" 'warning: .*a signature was not kept: .*adapter_config.json is not what was signed' "…that says so"
is "$(lora list --json --store "$TMP/lax" | jsonq .adapters[0].signed)" false "…and nothing is kept"

head -c 5000000 /dev/zero >"$TMP/by-other/model.sig"
ok "a model.sig that is none" lora import "$TMP/by-other" --name changed --store "$TMP/lax"
like "$ERR" 'warning: .*model.sig: is larger than any signature' "…is a warning"
exits 1 "…unless one is wanted" lora import "$TMP/by-other" --name changed --store "$TMP/strict" --require-signature "$KEYS/other.pub"
rm "$TMP/by-other/model.sig"

# The same content in other files: those that are signed take the place of those that are not.
ok "signed files of content that is there" lora import "$TMP/out" --name changed2 --store "$TMP/lax"
ok "…are what the store has now" lora verify changed --store "$TMP/lax" --key "$KEYS/team.pub"
ok "…and it is sound" lora fsck --store "$TMP/lax"
lora sign "$TMP/by-other" --key "$KEYS/other.pem" --force -q >/dev/null
ok "signed files beside other signed ones" lora import "$TMP/by-other" --name changed3 --store "$TMP/lax"
like "$ERR" 'they stay, and the signature of these was not kept' "…stay out, with a warning"
ok "…unless their signature is wanted" lora import "$TMP/by-other" --name changed3 --store "$TMP/lax" --require-signature "$KEYS/other.pub"
ok "…then they are in" lora verify changed --store "$TMP/lax" --key "$KEYS/other.pub"
ok "…and it is sound still" lora fsck --store "$TMP/lax"

# ---- bundles made elsewhere

ok "a bundle is attached" lora sign math-lora --attach "$TMP/out/model.sig" --store "$TMP/plain" --json
is "$(json "$OUT" .key)" "$KEY" "…by its key"
ok "…and holds" lora verify math-lora --key "$KEYS/team.pub" --store "$TMP/plain"
exits 4 "not one of other files" lora sign math-lora --attach "$TMP/file.sig" --store "$TMP/plain"
exits 5 "nor what is none" lora sign math-lora --attach "$MATH/adapter_config.json" --store "$TMP/plain"
ok "a copy of the signature is written" lora sign math-lora --key "$KEYS/team.pem" --signature "$TMP/copy.sig"
ok "…that verifies" lora verify math-lora --key "$KEYS/team.pub" --signature "$TMP/copy.sig"

# ---- damage

BLOB=$LORA_STORE/blobs/sha256/${SIGNATURE:0:2}/$SIGNATURE
chmod u+w "$BLOB" && printf x >>"$BLOB"
exits 5 "fsck sees a spoiled signature" lora fsck
like "$OUT" "$SIGNATURE|${SIGNATURE:0:12}" "…by its name"
exits 5 "…and verify" lora verify math-lora --key "$KEYS/team.pub"
ok "…another signature still holds" lora verify math-lora --key "$KEYS/other.pub"
ok "importing it again heals it" lora import "$TMP/out" --name math-lora
ok "…now it holds" lora verify math-lora --key "$KEYS/team.pub"
ok "…and the store is sound" lora fsck
CONFIG=$(lora inspect math-lora --json | jsonq .files[0].sha256)
BLOB=$LORA_STORE/blobs/sha256/${CONFIG:0:2}/$CONFIG
chmod u+w "$BLOB" && sed -i 's/lora_alpha/lora_aplha/' "$BLOB"
exits 5 "a changed file in the store" lora verify math-lora --key "$KEYS/team.pub"
like "$ERR" 'adapter_config.json is not what was signed' "…is named"
exits 5 "…and is not signed anew" lora sign math-lora --key "$KEYS/team.pem" --force
lora rm math-lora policy policy2 -q >/dev/null 2>&1
lora gc -q >/dev/null
not_ok "what nothing names goes with its signatures" test -e "$LORA_STORE/blobs/sha256/${SIGNATURE:0:2}/$SIGNATURE"
done_testing
