#!/usr/bin/env bash
# Archives that an enemy would make (tests/packs/hostile.py): each refused by the entry's name, nothing kept of it.
. tests/lib/tap.sh

command -v python3 >/dev/null || skip_all "python3 is not installed"
python3 tests/packs/hostile.py "$TINYTALK/adapters/upper-lora" "$TMP/hostile" || { fail "the cases are made"; done_testing; exit; }
lora import "$TINYTALK/adapters/math-lora" -q >/dev/null
state() { (cd "$LORA_STORE" && find . ! -name 'index.db*' ! -path './leases*' -printf '%p %y %s\n' | sort); }
outside() { find "$TMP" -path "$TMP/hostile" -prune -o -path "$LORA_STORE" -prune -o -name '.*' -prune -o -print | sort; find /tmp -maxdepth 1 -name 'evil*'; }
BEFORE=$(state)
OUTSIDE=$(outside)
N=0
while IFS=$'\t' read -r name status pattern; do
    N=$((N + 1))
    exits "$status" "$name" lora import "$TMP/hostile/$name"
    like "$ERR" "$pattern" "…says why"
    [ "$(state)" = "$BEFORE" ] || { fail "…leaves the store as it was"; note "$(diff <(echo "$BEFORE") <(state))"; BEFORE=$(state); }
    # A tar through a pipe is the same thing.
    case $name in
    *.tar | *.tar.gz)
        lora import - <"$TMP/hostile/$name" >/dev/null 2>"$TMP/.pipe"
        is "$?" "$status" "…through a pipe too"
        ;;
    esac
done <"$TMP/hostile/cases.tsv"
ok "there are at least 64 of them" test "$N" -ge 64
is "$(state)" "$BEFORE" "the store is as it was before them"
is "$(outside)" "$OUTSIDE" "no file outside of it was made"
ok "fsck finds nothing" lora fsck

# Memory does not grow with the archive: 256 MB in 96.
python3 - "$TMP" <<'PY'
import os, random, struct, json, tarfile, io, sys
size = 256 << 20
header = json.dumps({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight":
                     {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
header += b" " * (-len(header) % 8)
class Stream(io.RawIOBase):
    def __init__(self): self.left, self.head = size, struct.pack("<Q", len(header)) + header
    def read(self, n):
        out, self.head = self.head[:n], self.head[n:]
        k = min(n - len(out), self.left)
        self.left -= k
        return out + random.randbytes(k)
with tarfile.open(sys.argv[1] + "/large.tar", "w") as t:
    c = open("examples/tinytalk/adapters/upper-lora/adapter_config.json", "rb").read()
    i = tarfile.TarInfo("bot/adapter_config.json"); i.size = len(c); t.addfile(i, io.BytesIO(c))
    i = tarfile.TarInfo("bot/adapter_model.safetensors"); i.size = 8 + len(header) + size
    t.addfile(i, Stream())
PY
if [ "$(basename "$LORA_BUILD")" = release ]; then
    exits 4 "a large entry is read with little memory" bash -c "ulimit -d 98304; exec lora import '$TMP/large.tar'"
    like "$ERR" 'U8|weight' "…until its content is refused"
fi
done_testing
