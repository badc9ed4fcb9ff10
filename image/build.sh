#!/usr/bin/env bash
# Builds everything that boots: the appliance's root, the initiator's root,
# kernel, initrd and a disk image for hardware. Run it by `just image`.
#
#   image/build.sh [--refresh] [--no-disk] [--only appliance|initiator]
#
# Slow parts are cached under ${ORLOP_CACHE:-~/.cache/orlop}, each keyed by a
# hash of what determines it; an interrupted build goes on where it stopped.
#
#   ORLOP_CACHE           where to cache
#   ORLOP_MIRROR          package mirror to use instead of the default one
#   ORLOPD, ORLOP         the binaries to put in (default: target/release/)
#   ORLOP_OUT             where results go (default: target/image/)
#   ORLOP_VERSIONS_DAYS   days before package versions are asked again (7)
#   ORLOP_NICE            niceness of the build
set -euo pipefail
export LC_ALL=C

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOP=$(dirname "$HERE")
CACHE=${ORLOP_CACHE:-$HOME/.cache/orlop}
OUT=${ORLOP_OUT:-$TOP/target/image}
ORLOPD=${ORLOPD:-$TOP/target/release/orlopd}
ORLOP=${ORLOP:-$TOP/target/release/orlop}
REFRESH=0
DISK=1
ROLES="appliance initiator"
# Uncompressed: the image is read from the page cache of the host, and both
# packing and booting are faster for it than with lz4.
EROFS_OPTIONS=()

# shellcheck source=lib/common.sh
. "$HERE/lib/common.sh"
# shellcheck source=lib/host.sh
. "$HERE/lib/host.sh"
# shellcheck source=lib/packages.sh
. "$HERE/lib/packages.sh"
# shellcheck source=lib/kernel.sh
. "$HERE/lib/kernel.sh"
# shellcheck source=lib/assemble.sh
. "$HERE/lib/assemble.sh"
# shellcheck source=lib/disk.sh
. "$HERE/lib/disk.sh"
# shellcheck source=lib/emulator.sh
. "$HERE/lib/emulator.sh"

while [ $# -gt 0 ]; do
    case $1 in
    --refresh) REFRESH=1 ;;
    --no-disk) DISK=0 ;;
    --only) ROLES=$2 && shift ;;
    *) die "unknown argument $1" ;;
    esac
    shift
done

# A file of results is replaced only if it changed and never while half
# written: a guest may be running from it.
deliver() {
    cmp -s "$1" "$OUT/$2" && return 0
    cp "$1" "$OUT/$2.partial"
    mv "$OUT/$2.partial" "$OUT/$2"
}

main() {
    host_packages
    mkdir -p "$CACHE" "$OUT"
    # Two builds at once would replace each other's cache entries.
    exec 9>"$CACHE/lock"
    flock -n 9 || { say "another build is running, waiting for it" && flock 9; }
    local binary
    for binary in "$ORLOPD" "$ORLOP"; do
        [ -x "$binary" ] || die "no binary at $binary; run 'just image'"
    done
    emulator
    base_root appliance
    kernel
    deliver "$KERNEL/vmlinuz" vmlinuz
    deliver "$KERNEL/initrd" initrd
    local role
    for role in $ROLES; do
        base_root "$role"
        stage "$role"
        pack "$role" "$OUT/$role.erofs"
    done
    if [ "$DISK" = 1 ]; then disk_image; fi
    prune
    say "ready: $OUT"
}

main
