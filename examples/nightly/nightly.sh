#!/usr/bin/env bash
# A nightly job: take the team's adapters from the registry, check whose they are, give them to the server that runs, tidy up.
#   nightly.sh REGISTRY/REPO[:TAG] PUBKEY [SERVER_PID]
# PUBKEY: the file of the team's public key; the trainer signs with the private one (sign-and-push.sh).
# LORA_STORE says which store (else the default one); LORA_PULL_FLAGS adds flags to `lora pull`, as --plain-http for a
# registry on this machine.
# Safe to run twice, to interrupt, and beside a server: nothing is published before all of it was checked.
set -euo pipefail
LORA_PULL_FLAGS=${LORA_PULL_FLAGS:-}
image=${1:?usage: nightly.sh REGISTRY/REPO[:TAG] PUBKEY [SERVER_PID]}
key=${2:?usage: nightly.sh REGISTRY/REPO[:TAG] PUBKEY [SERVER_PID]}
server=${3:-}
today=$(date -u +%Y-%m-%d)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ids() { python3 -c 'import json, sys; [print(a["name"], a["id"]) for a in json.load(open(sys.argv[1]))["adapters"]]' "$1"; }

# 1. Pull, verify, import: under a tag of its own, so that names that serve are not touched yet. All of the image must be
#    signed by the team's key, or none of it is taken. Status 1 is the network or the registry (come back tomorrow), 5 is
#    damage (somebody should look), 4 a refusal: not signed, or by somebody else.
lora pull $LORA_PULL_FLAGS "$image" --require-signature "$key" --tag "$today" --json >"$work/pulled.json"

# 2. What the store has now, byte by byte: every file of every adapter that came against its signature, then every file and
#    every name of the store against its digest.
ids "$work/pulled.json" | while read -r name id; do
    lora verify "$id" --key "$key" --json >>"$work/verified.json"
done
lora fsck --json >"$work/fsck.json"

# 3. Tag: `latest` is what the server offers. The old one stays in the name's history (`lora tag --undo NAME`).
ids "$work/pulled.json" | while read -r name id; do
    lora tag "$id" "$name:latest" --force
done

# 4. The server reads the names again; requests that run keep the adapter with which they began. Started with
#    --require-signature it looks at the signatures, too.
if [ -n "$server" ]; then
    kill -HUP "$server"
fi

# 5. What no name and no running server holds goes.
lora gc --json >"$work/gc.json"
echo "nightly: $(ids "$work/pulled.json" | wc -l) adapters of $image are latest, tagged $today"
