#!/usr/bin/env bash
# Reads every #include of the tree and says which go against docs/ARCHITECTURE.md, section 1:
#   - cmd -> store, kernels, libcore; store -> libcore; kernels -> libcore; libcore -> nothing of ours; tests and
#     examples -> all; nothing -> tests;
#   - inside libcore: base < tensor < adapter < format < text | model < merge | engine; the two ports (backend.h,
#     adapter_source.h) stand beside model: they use it, and it uses them (loading);
#   - a private header, x_impl.h, belongs to its own folder;
#   - each foreign header has one home; a header that is in neither list below has none yet.
#   tests/check_layers.sh [ROOT]      one line a violation; exit 1 when there is one
set -u
cd "${1:-.}" || exit 2
folders=()
for f in libcore kernels store cmd tests examples; do
    [ ! -d "$f" ] || folders+=("$f")
done
find "${folders[@]}" -type f \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \) -print0 | sort -z |
    xargs -0 -r grep -HnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]' |
    awk '
    BEGIN {
        FS = ":"
        split("base tensor adapter format text model merge engine", names, " ")
        split("0 1 2 3 4 4 6 6", ranks, " ")
        for (i in names) rank[names[i]] = ranks[i]
        allowed["libcore"] = " libcore "
        allowed["kernels"] = " kernels libcore "
        allowed["store"] = " store libcore "
        allowed["cmd"] = " cmd store kernels libcore "
        allowed["tests"] = allowed["examples"] = " tests examples cmd store kernels libcore "

        # Foreign headers: a pattern, and the pattern of the files that may include it.
        home["^sqlite3\\.h$"] = "^store/index[a-z_]*\\.[ch]$"
        home["^archive(_entry)?\\.h$"] = "^store/archive[a-z_]*\\.[ch]$"
        home["^curl/"] = "^store/registry[a-z_]*\\.[ch]$"
        home["^microhttpd\\.h$"] = "^cmd/serve/http[a-z_]*\\.[ch]$"
        home["^(pcre2|utf8proc)\\.h$"] = "^libcore/(text/[a-z_0-9]+|format/peft[a-z_]*)\\.[ch]$"
        home["^openssl/"] = "^(libcore/base/digest|store/sign)\\.c$"
        home["^zlib\\.h$"] = "^store/archive[a-z_]*\\.[ch]$"
        home["^zstd(_errors)?\\.h$"] = "^store/archive[a-z_]*\\.[ch]$"
        home["^(cuda|cublas|nv|mma|cooperative_groups|cub/|cutlass)"] = "^kernels/cuda/"
        home["^atomic$"] = "^kernels/cuda/[a-z_]*\\.cuh?$" # C++, for the host code of kernels
        home["^jansson\\.h$"] = "."
        # The C library and the kernel: anybody.
        n = split("assert complex ctype dirent dlfcn errno fcntl fenv float getopt glob inttypes libgen limits locale " \
                  "math netdb poll pthread pty pwd regex sched semaphore setjmp signal stdalign stdarg stdatomic " \
                  "stdbool stddef stdint stdio stdlib stdnoreturn string strings syslog tgmath time unistd wchar " \
                  "wctype immintrin cpuid execinfo malloc spawn termios ucontext fnmatch ftw grp iconv " \
                  "langinfo search endian byteswap elf link uchar x86intrin arm_neon ifaddrs paths utime mntent", system_names, " ")
        for (i = 1; i <= n; i++) system_header[system_names[i] ".h"] = 1
    }
    function complain(text) { printf "%s:%s: %s\n", file, line, text; bad = 1 }
    # Where a path of libcore stands; the ports lie between model and engine, and model may use them.
    function rank_of(path,   parts) {
        if (path ~ /^libcore\/model\/load\./) return 5 # a model into a back end
        split(path, parts, "/")
        return parts[2] in rank ? rank[parts[2]] : 5
    }
    function check_ours(path,   from, to, a, b) {
        split(file, a, "/"); split(path, b, "/")
        from = a[1]; to = b[1]
        if (!(to in allowed)) { complain("\"" path "\" is not written from the root"); return }
        if (index(allowed[from], " " to " ") == 0) { complain(from " must not include " to ": \"" path "\""); return }
        if (path ~ /_impl\.h$/ && from != "tests") {
            folder = file; owner = path
            sub(/[^\/]*$/, "", folder); sub(/[^\/]*$/, "", owner)
            if (folder != owner) complain("\"" path "\" is private to its folder")
        }
        if (from != "libcore") return
        if (a[2] == "model" && rank_of(path) == 5) return
        if (rank_of(path) > rank_of(file)) complain("libcore/" a[2] " lies below \"" path "\"")
        else if (rank_of(path) == rank_of(file) && a[2] != b[2] && rank_of(file) != 5)
            complain("libcore/" a[2] " and libcore/" b[2] " stand side by side: \"" path "\"")
    }
    function check_foreign(header,   p) {
        if (file ~ /^(tests|examples)\//) return
        for (p in home) {
            if (header !~ p) continue
            if (file !~ home[p]) complain("<" header "> has its home elsewhere (" home[p] ")")
            return
        }
        if (header in system_header || header ~ /^(sys|linux|net|netinet|arpa|bits|asm)\//) return
        complain("<" header "> has no home yet: see tests/check_layers.sh")
    }
    {
        file = $1; line = $2
        text = $0
        sub(/^[^:]*:[0-9]+:[ \t]*#[ \t]*include[ \t]*/, "", text)
        kind = substr(text, 1, 1)
        text = substr(text, 2)
        sub(/[">].*/, "", text)
        if (kind == "\"") check_ours(text); else check_foreign(text)
    }
    END { exit bad }'
