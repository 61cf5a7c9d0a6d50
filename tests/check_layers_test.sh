#!/usr/bin/env bash
# The tree keeps the layers, and check_layers.sh sees each kind of violation.
. tests/lib/tap.sh

ok "the tree keeps its layers" tests/check_layers.sh

# A small tree with one file; the check must (or must not) complain of it.
tree() {
    rm -rf "$TMP/tree"
    mkdir -p "$TMP/tree/$(dirname "$1")"
    printf '%s\n' "$2" >"$TMP/tree/$1"
}
refuses() {
    tree "$1" "$2"
    run tests/check_layers.sh "$TMP/tree"
    if [ "$STATUS" -eq 1 ] && [ "$(printf '%s\n' "$OUT" | grep -c "^$1:1: ")" -eq 1 ]; then
        pass "refused: $1: $2"
    else
        fail "refused: $1: $2"
        show_run
    fi
}
accepts() {
    tree "$1" "$2"
    ok "accepted: $1: $2" tests/check_layers.sh "$TMP/tree"
}

refuses libcore/base/x.c '#include "store/store.h"'
refuses libcore/base/x.c '#include "kernels/kernels.h"'
refuses libcore/engine/x.c '#include "cmd/cmd.h"'
refuses kernels/cpu/x.c '#include "store/store.h"'
refuses store/x.c '#include "kernels/kernels.h"'
refuses store/x.c '#include "cmd/cmd.h"'
refuses cmd/x.c '#include "tests/lib/test.h"'
refuses libcore/base/x.h '#include "libcore/tensor/dtype.h"'
refuses libcore/tensor/x.c '#include "libcore/adapter/adapter.h"'
refuses libcore/adapter/x.c '#include "libcore/format/safetensors.h"'
refuses libcore/format/x.c '#include "libcore/text/tokenizer.h"'
refuses libcore/text/x.c '#include "libcore/model/config.h"'
refuses libcore/model/x.c '#include "libcore/text/tokenizer.h"'
refuses libcore/text/x.c '#include "libcore/backend.h"'
refuses libcore/format/x.c '#include "libcore/adapter_source.h"'
refuses libcore/model/x.c '#include "libcore/engine/engine.h"'
refuses libcore/merge/x.c '#include "libcore/engine/engine.h"'
refuses libcore/engine/x.c '#include "libcore/merge/plan.h"'
refuses libcore/backend.h '#include "libcore/engine/engine.h"'
refuses libcore/base/x.c '  #  include   "store/store.h"'
refuses cmd/x.c '#include "x.h"'
refuses cmd/x.c '#include "../store/store.h"'
refuses cmd/x.c '#include "store/index_impl.h"'
refuses libcore/base/x.c '#include <sqlite3.h>'
refuses store/store.c '#include <sqlite3.h>'
refuses store/blob.c '#include <archive_entry.h>'
refuses store/oci.c '#include <curl/curl.h>'
refuses cmd/serve/router.c '#include <microhttpd.h>'
refuses libcore/adapter/x.c '#include <pcre2.h>'
refuses libcore/model/x.c '#include <utf8proc.h>'
refuses store/blob.c '#include <openssl/evp.h>'
refuses kernels/cpu/x.c '#include <cuda_runtime.h>'
refuses store/x.c '#include <glib.h>'

accepts cmd/x.c '#include "store/store.h"'
accepts store/x.c '#include "libcore/base/err.h"'
accepts libcore/engine/x.c '#include "libcore/backend.h"'
accepts libcore/model/load.c '#include "libcore/backend.h"'
accepts libcore/backend.h '#include "libcore/model/config.h"'
accepts libcore/format/x.c '#include "libcore/adapter/adapter.h"'
accepts store/index.c '#include <sqlite3.h>'
accepts store/index.c '#include "store/index_impl.h"'
accepts libcore/text/bpe.c '#include <utf8proc.h>'
accepts kernels/cuda/x.cu '#include <cuda_runtime.h>'
accepts store/x.c '#include <jansson.h>'
accepts kernels/cpu/x.c '#include <immintrin.h>'
accepts tests/unit/store/test_x.c '#include <sqlite3.h>'
done_testing
