# Shared by build.sh's parts: progress lines, cache keys, privileges.
# shellcheck shell=bash

# Milliseconds since an arbitrary start; EPOCHREALTIME costs no process.
now_ms() { local t=${EPOCHREALTIME/[.,]/}; echo $((t / 1000)); }

BUILD_STARTED=$(now_ms)

# One line a step, with the time since the start, so that a slow step is seen.
say() {
    local ms=$(($(now_ms) - BUILD_STARTED))
    printf '[%5d.%ds] %s\n' $((ms / 1000)) $((ms % 1000 / 100)) "$*"
}

die() {
    echo "build.sh: $*" >&2
    exit 1
}

# Runs a noisy step with its output in a log; shows the end of it if it fails.
logged() {
    local log=$1
    shift
    if ! "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        die "failed: $1 (whole log: $log)"
    fi
}

# File ownership in a root image needs root. Without it a user namespace with
# a range of subordinate ids does the same.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        nice -n "${ORLOP_NICE:-0}" "$@"
    else
        nice -n "${ORLOP_NICE:-0}" \
            unshare --user --map-root-user --map-auto --mount --pid --fork --kill-child -- "$@"
    fi
}

# A short hash of everything on standard input: the name of a cache entry.
key() { sha256sum | cut -c1-16; }

# A hash of files and trees by path, mode and content, independent of where
# the checkout lies and of time stamps.
hash_tree() {
    local path
    for path in "$@"; do
        [ -e "$path" ] || continue
        (
            cd "$(dirname "$path")" || exit
            find "$(basename "$path")" \( -type f -o -type l \) -printf '%m %p %l\n' | LC_ALL=C sort
            find "$(basename "$path")" -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
        )
    done | key
}

# Package names of a list file, separated by commas.
package_list() {
    sed 's/#.*//' "$HERE/packages/$1.txt" | tr -s '[:space:]' ',' | sed 's/^,//; s/,$//'
}

# Moves a finished directory to its final name. Readers never see half a
# cache entry: an interrupted build leaves only a *.partial, removed next time.
publish() {
    as_root rm -rf "$2"
    mv -T "$1" "$2"
}

# An empty directory to build a cache entry in.
fresh_partial() {
    as_root rm -rf "$1"
    mkdir -p "$1"
}

# Cache entries that no build used for a month.
prune() {
    find "$CACHE/base" "$CACHE/kernel" "$CACHE/emulator" -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} + 2>/dev/null || true
}
