#!/usr/bin/env bash
# Kill -9 at the file calls of every command that writes to the store. A sample of the calls in `make check`, all of
# them with CRASH_STEP=1 (`make crash`).
CRASH_STEP=${CRASH_STEP:-13}
. tests/crash/memory_lib.sh
. tests/lib/tap.sh
. tests/crash/crash_lib.sh

A=$TINYTALK/adapters
nothing() { :; }
one() { lora import "$A/upper-lora" --store "$TMP/before" >/dev/null; }
several() {
    lora import "$TINYTALK/base" --name tinytalk --store "$TMP/before" >/dev/null &&
        lora import "$A/upper-lora" "$A/title-lora" "$A/count-lora" --store "$TMP/before" >/dev/null &&
        lora tag upper-lora upper-lora:v1 --store "$TMP/before" >/dev/null
}
baseless() { lora import "$A/upper-lora" "$A/title-lora" --store "$TMP/before" >/dev/null; }
# A folder that its owner signed, one whose content the store has, and one with the same content in other files.
K=$ROOT/tests/keys
SIGNED=$TMP/signed
cp -r "$A/math-lora" "$SIGNED" && lora sign "$SIGNED" --key "$K/team.pem" -q >/dev/null
cp -r "$A/upper-lora" "$SIGNED-upper" && lora sign "$SIGNED-upper" --key "$K/team.pem" -q >/dev/null
cp -r "$A/upper-lora" "$SIGNED-other" && echo "# A card" >"$SIGNED-other/README.md" && lora sign "$SIGNED-other" --key "$K/team.pem" -q >/dev/null
both() { several && lora sign upper-lora --key "$K/other.pem" --store "$TMP/before" >/dev/null; }
garbage() { several && lora rm title-lora --store "$TMP/before" >/dev/null && lora rm tinytalk --store "$TMP/before" >/dev/null; }
no_index() { several && rm -f "$TMP/before"/index.db*; }

crash_case "first import" nothing -- lora import "$A/upper-lora"
ABOUT=math-lora crash_case "import beside others" several -- lora import "$A/math-lora"
crash_case "the same content again" several -- lora import "$A/upper-lora"
ABOUT=upper-lora crash_case "import with --force" several -- lora import "$A/math-lora" --name upper-lora --force
ABOUT=tinytalk crash_case "base by reference" one -- lora import "$TINYTALK/base" --name tinytalk
ABOUT=tinytalk crash_case "base as a copy" one -- lora import "$TINYTALK/base" --name tinytalk --copy
crash_case "a copy in place of a reference" several -- lora import "$TINYTALK/base" --name tinytalk --copy
ABOUT=shout crash_case "tag" several -- lora tag upper-lora shout:loud
ABOUT=upper-lora crash_case "tag with --force" several -- lora tag title-lora upper-lora --force
ABOUT=upper-lora MAY_BE_DONE=1 crash_case "rm" several -- lora rm upper-lora
crash_case "a base that becomes known" baseless -- lora import "$A/upper-lora" --base "$TINYTALK/base"
crash_case "sign" several -- lora sign upper-lora --key "$K/team.pem"
crash_case "sign beside another signature" both -- lora sign upper-lora --key "$K/team.pem"
ABOUT=math crash_case "import with a signature" several -- lora import "$SIGNED" --name math
crash_case "a signature for content that is there" both -- lora import "$SIGNED-upper" --name upper-lora
crash_case "signed files in the place of others" several -- lora import "$SIGNED-other" --name upper-lora
# Packs: two adapters, and a merged base as an overlay of the one in the store.
lora import "$TINYTALK/base" "$A/math-lora" "$A/sort-lora" --store "$TMP/maker" -q >/dev/null
lora pack math-lora sort-lora --output "$TMP/two.tar" --store "$TMP/maker" -q >/dev/null
lora merge math-lora --base "$TINYTALK/base" --output "$TMP/merged" --store "$TMP/maker" >/dev/null
lora pack "$TMP/merged" --overlay-of "$TINYTALK/base" --output "$TMP/overlay.tar" --store "$TMP/maker" -q >/dev/null
ABOUT='\(math\|sort\)-lora' crash_case "import of a pack" several -- lora import "$TMP/two.tar" --force
ABOUT=merged crash_case "import of an overlay" several -- lora import "$TMP/overlay.tar"
crash_case "gc" garbage -- lora gc --grace 0
crash_case "fsck of a sound store" several -- lora fsck --repair
BROKEN_BEFORE=1 crash_case "fsck that rebuilds the index" no_index -- lora fsck --repair
done_testing
