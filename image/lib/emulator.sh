# QEMU itself: one version wherever guests run.
# shellcheck shell=bash

# QEMU 7.2, which Debian 12 and its like have, at times clobbers the flags
# register of an emulated guest, whose kernel then dies in the middle of its
# network stack. So the host's QEMU is not used: the one of the appliance's own
# release is unpacked beside the other results, with the libraries that it
# needs, and started by its own loader. Nothing of it is installed.
emulator() {
    base_root emulator --variant=extract
    EMULATOR=$CACHE/emulator/$BASE_KEY
    if [ ! -x "$EMULATOR/qemu-system-x86_64" ]; then
        local partial=$EMULATOR.partial
        fresh_partial "$partial"
        tar -xf "$BASE_TAR" -C "$partial" --no-same-owner --exclude './dev/*'
        cat >"$partial/qemu-system-x86_64" <<'EOF'
#!/bin/sh
# QEMU with its own loader and libraries. Written by image/lib/emulator.sh.
root=$(dirname "$(readlink -f "$0")")
libraries=$root/usr/lib/x86_64-linux-gnu
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$root/usr/bin/qemu-system-x86_64" \
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
EOF
        chmod +x "$partial/qemu-system-x86_64"
        publish "$partial" "$EMULATOR"
        say "emulator: $("$EMULATOR/qemu-system-x86_64" --version | head -n 1)"
    fi
    touch "$EMULATOR"
    ln -sfn "$EMULATOR" "$OUT/emulator"
}
