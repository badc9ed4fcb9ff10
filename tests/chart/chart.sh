#!/usr/bin/env bash
# The Helm chart of the driver: `chart.sh check` renders it with each set of values and holds what comes of it against
# Kubernetes' published schemas; `chart.sh write` makes the plain manifests of it again.
set -euo pipefail
cd "$(dirname "$0")"
CHART=../../shim/chart
MANIFESTS=../../shim/manifests/orlop-csi.yaml
KUBERNETES=1.37.0
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/orlop/chart
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tools() {
    local missing=()
    for package in golang-go golang-github-masterminds-sprig-dev golang-gopkg-yaml.v3-dev python3-venv; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    if [ ${#missing[@]} != 0 ]; then
        echo "installing ${missing[*]}" >&2
        local sudo=()
        [ "$(id -u)" = 0 ] || sudo=(sudo)
        "${sudo[@]}" apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2
    fi
    mkdir -p "$CACHE"
    GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$CACHE/go go build -o "$CACHE/render" render.go
    if ! "$CACHE/python/bin/python" -c 'import kubernetes_validate, jsonschema, yaml' 2>/dev/null; then
        rm -rf "$CACHE/python"
        /usr/bin/python3 -m venv "$CACHE/python"
        "$CACHE/python/bin/pip" install --quiet "kubernetes-validate==$KUBERNETES" jsonschema pyyaml >&2
    fi
}

# The manifests of a set of values.
render() { "$CACHE/render" "$CHART" orlop-csi orlop-csi "$1"; }

plain() {
    echo "# Made of the chart in shim/chart by \`just chart\`: change that, and what is rendered here follows."
    render values/plain.yaml
}

validate() { "$CACHE/python/bin/python" validate.py "$CHART" "$@"; }

check() {
    for values in values/*.yaml; do
        validate values "$values"
        render "$values" >"$work/$(basename "$values")"
        validate "$KUBERNETES" "$work/$(basename "$values")"
        echo "ok: $values"
    done
    for values in bad/*.yaml; do
        if validate values "$values" 2>/dev/null; then
            echo "$values: it was taken"
            exit 1
        fi
        echo "refused: $values"
    done
    plain | diff -u "$MANIFESTS" - || {
        echo "$MANIFESTS is not what the chart makes: just chart"
        exit 1
    }
}

tools
case ${1:-} in
check) check ;;
write) mkdir -p "$(dirname "$MANIFESTS")" && plain >"$work/plain" && mv "$work/plain" "$MANIFESTS" ;;
*) echo "usage: chart.sh check|write" >&2 && exit 2 ;;
esac
