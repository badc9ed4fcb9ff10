# Base roots and package versions, by mmdebstrap.
# shellcheck shell=bash

SUITE=trixie

# Documentation never enters a root; licences stay, they have to travel along.
MM_COMMON=(
    --variant=apt "--components=main,contrib" --architectures=amd64
    --dpkgopt='path-exclude=/usr/share/doc/*'
    --dpkgopt='path-include=/usr/share/doc/*/copyright'
    --dpkgopt='path-exclude=/usr/share/man/*'
    --dpkgopt='path-exclude=/usr/share/info/*'
    --dpkgopt='path-exclude=/usr/share/locale/*'
    --dpkgopt='path-exclude=/usr/share/i18n/locales/*'
    --dpkgopt='path-exclude=/usr/share/lintian/*'
    --dpkgopt='path-exclude=/usr/share/bash-completion/*'
)

debootstrap() {
    local target=$1
    shift
    # An empty mirror argument would mean "read sources from stdin".
    nice -n "${ORLOP_NICE:-0}" mmdebstrap "${MM_COMMON[@]}" "$@" "$SUITE" "$target" \
        ${ORLOP_MIRROR:+"$ORLOP_MIRROR"}
}

# Names and versions of what apt would install now, one a line. This is what
# the cache entries are keyed by: a security update makes new ones, anything
# else does not.
simulate() {
    debootstrap /dev/null --simulate --verbose --include="$(package_list "$1")" 2>&1 |
        sed -n 's/^Inst \([^ ]*\) .*(\([^ ]*\) .*/\1 \2/p' | LC_ALL=C sort -u
}

# Asking costs seconds and a network, so the answer is kept for some days.
# Without a network the old answer is used, however old.
resolve() {
    local name=$1 list
    list=$CACHE/versions/$1-$(package_list "$1" | key).txt
    RESOLVED=$list
    if [ -s "$list" ] && [ "$REFRESH" = 0 ] &&
        [ -n "$(find "$list" -mtime "-${ORLOP_VERSIONS_DAYS:-7}")" ]; then
        return 0
    fi
    mkdir -p "$CACHE/versions"
    if simulate "$name" >"$list.new" && [ -s "$list.new" ]; then
        mv "$list.new" "$list"
        say "versions for $name: asked"
    elif [ -s "$list" ]; then
        say "versions for $name: could not ask, using those of $(date -r "$list" +%F)"
    else
        die "could not resolve the packages of $name; is the package mirror reachable?"
    fi
}

# The root with its packages and nothing of ours, as a tar: mmdebstrap can
# make one with and without root, and it keeps every owner and mode. Further
# arguments are mmdebstrap's.
base_root() {
    local role=$1
    shift
    resolve "$role"
    BASE_KEY=$({
        cat "$RESOLVED"
        declare -p SUITE MM_COMMON
    } | key)
    BASE_TAR=$CACHE/base/$role-$BASE_KEY.tar
    if [ -s "$BASE_TAR" ]; then
        touch "$BASE_TAR"
        say "base root for $role: cached"
        return 0
    fi
    say "base root for $role: building"
    mkdir -p "$CACHE/base" "$CACHE/log"
    logged "$CACHE/log/base-$role.log" \
        debootstrap "$BASE_TAR.partial.tar" --format=tar "$@" --include="$(package_list "$role")"
    mv "$BASE_TAR.partial.tar" "$BASE_TAR"
    say "base root for $role: done, $(du -h "$BASE_TAR" | cut -f1)"
}
