#!/usr/bin/env bash
# Prints a directory with `prometheus` and `promtool`: the machine's own, or those of Debian's package, which is fetched
# once into the cache and unpacked there. Needs no root and installs nothing.
#
#   ORLOP_CACHE   where to cache (default: ~/.cache/orlop)
set -euo pipefail
export LC_ALL=C

CACHE=${ORLOP_CACHE:-$HOME/.cache/orlop}/prometheus

die() {
    echo "prometheus.sh: $*" >&2
    exit 1
}

if command -v prometheus >/dev/null && own=$(command -v promtool); then
    dirname "$own"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    die "neither prometheus and promtool nor apt-get are here: install Prometheus"

mkdir -p "$CACHE"
# Two at once would unpack over each other.
exec 9>"$CACHE/lock"
flock 9
if [ ! -x "$CACHE/root/usr/bin/promtool" ]; then
    work=$CACHE/partial
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    cd "$work"
    # The machine's lists may be missing or older than what the mirror has; ours are made without root.
    own=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o Debug::NoLocking=1
        -o APT::Sandbox::User= -qq)
    if ! apt-get -qq -o APT::Sandbox::User= download prometheus >log 2>&1; then
        { apt-get "${own[@]}" update && apt-get "${own[@]}" download prometheus; } >>log 2>&1 || {
            cat log >&2
            die "Debian's package prometheus can't be fetched"
        }
    fi
    dpkg-deb -x prometheus_*.deb root
    rm -rf "$CACHE/root"
    mv root "$CACHE/root"
    rm -rf "$work"
fi
echo "$CACHE/root/usr/bin"
