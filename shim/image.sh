#!/usr/bin/env bash
# An OCI image of the driver, from nothing and without a container engine: one static program, and the places where
# things are mounted. The same sources give the same bytes.
#
#   shim/image.sh [OUT]        target/orlop-csi.oci.tar unless given
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-target/orlop-csi.oci.tar}")
target=x86_64-unknown-linux-gnu
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# glibc resolves names by itself, without loading anything, since 2.34.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --package orlop-csi --bin orlop-csi --target "$target"
program=${CARGO_TARGET_DIR:-target}/$target/release/orlop-csi
if readelf -l "$program" | grep -q INTERP; then
    echo "$program is not static" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What has one content has one digest: nothing of when or where it was made.
pack() { tar --create --sort=name --format=ustar --mtime=@0 --owner=0 --group=0 --numeric-owner --directory="$1" "${@:2}"; }

mkdir -p "$work"/root/{csi,config,tokens,host,registration} "$work/layout/blobs/sha256"
install -m 0755 "$program" "$work/root/orlop-csi"
printf 'root:x:0:0::/:\nnobody:x:65534:65534::/:\n' | install -D -m 0644 /dev/stdin "$work/root/etc/passwd"
pack "$work/root" . >"$work/layer.tar"
gzip -n -9 <"$work/layer.tar" >"$work/layer.tar.gz"

# Adds a file to the layout, and says what it is there: its digest and size.
blob() {
    local digest
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    cp "$1" "$work/layout/blobs/sha256/$digest"
    echo "\"digest\":\"sha256:$digest\",\"size\":$(stat -c %s "$1")"
}

cat >"$work/config" <<END
{"architecture":"amd64","os":"linux","config":{"User":"65534:65534","Entrypoint":["/orlop-csi"],"WorkingDir":"/","Labels":{"org.opencontainers.image.title":"orlop-csi","org.opencontainers.image.version":"$version"}},"rootfs":{"type":"layers","diff_ids":["sha256:$(sha256sum "$work/layer.tar" | cut -d' ' -f1)"]},"history":[{"created_by":"shim/image.sh"}]}
END
config=$(blob "$work/config")
layer=$(blob "$work/layer.tar.gz")
cat >"$work/manifest" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",$config},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",$layer}]}
END
manifest=$(blob "$work/manifest")
cat >"$work/layout/index.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",$manifest,"platform":{"architecture":"amd64","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"orlop-csi:$version","io.containerd.image.name":"docker.io/library/orlop-csi:$version"}}]}
END
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/layout/oci-layout"
pack "$work/layout" . >"$work/out.tar"
mkdir -p "$(dirname "$out")"
mv "$work/out.tar" "$out"
echo "$out: $(stat -c %s "$out" | awk '{printf "%.1f MB", $1 / 1e6}'), orlop-csi:$version"
