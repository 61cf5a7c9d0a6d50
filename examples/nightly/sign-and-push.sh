#!/usr/bin/env bash
# The other end of nightly.sh: what the trainer does with an adapter that is done.
#   sign-and-push.sh FOLDER NAME KEY REGISTRY/REPO[:TAG]
# FOLDER: what PEFT saved. KEY: the team's private key, EC P-256, without a password. It is made once, and its public half
# goes to whoever runs nightly.sh:
#   openssl ecparam -name prime256v1 -genkey -noout -out team.pem
#   openssl ec -in team.pem -pubout -out team.pub
# LORA_PUSH_FLAGS adds flags to `lora push`, as --plain-http for a registry on this machine.
set -euo pipefail
LORA_PUSH_FLAGS=${LORA_PUSH_FLAGS:-}
folder=${1:?usage: sign-and-push.sh FOLDER NAME KEY REGISTRY/REPO[:TAG]}
name=${2:?} key=${3:?} image=${4:?}

lora import "$folder" --name "$name" --force # checked: shapes, numbers, configuration
lora sign "$name" --key "$key"               # twice is once
lora push $LORA_PUSH_FLAGS "$name" "$image"  # the image, then its signature, which refers to it
