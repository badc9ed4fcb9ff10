# One disk image for hardware: UEFI boot, two roots for updates, state.
# shellcheck shell=bash

# Sizes in MiB. A root may grow to four times today's before the layout has to
# change, and a layout can't be changed on machines in the field.
DISK_ESP=256
DISK_ROOT=1536
DISK_STATE=1024

# The EFI system partition, made without mounting anything.
disk_esp() {
    local esp=$1 cmdline
    cmdline=$(cat "$HERE/cmdline.txt")
    truncate -s "${DISK_ESP}M" "$esp"
    mkfs.vfat -F 32 -n ORLOP-ESP -i 6f726c6f "$esp" >/dev/null
    mmd -i "$esp" ::/EFI ::/EFI/BOOT ::/EFI/systemd ::/loader ::/loader/entries ::/orlop-a
    mcopy -i "$esp" "$KERNEL/systemd-bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
    mcopy -i "$esp" "$KERNEL/systemd-bootx64.efi" ::/EFI/systemd/systemd-bootx64.efi
    mcopy -i "$esp" "$KERNEL/vmlinuz" "$KERNEL/initrd" ::/orlop-a/
    printf 'timeout 0\nconsole-mode keep\neditor no\ndefault orlop-*\n' |
        mcopy -i "$esp" - ::/loader/loader.conf
    mcopy -i "$esp" - ::/loader/entries/orlop-a.conf <<EOF
title      Orlop
sort-key   orlop
version    a
linux      /orlop-a/vmlinuz
initrd     /orlop-a/initrd
options    root=PARTLABEL=orlop-root-a orlop.state=PARTLABEL=orlop-state $cmdline
EOF
}

# Copies a file into the image at an offset in MiB, holes staying holes.
disk_put() {
    dd if="$1" of="$2" bs=1M seek="$3" conv=notrunc,sparse status=none
}

disk_image() {
    local out=$OUT/orlop.img work=$OUT/disk.partial root_a state total want
    want=$({
        echo "$DISK_ESP $DISK_ROOT $DISK_STATE"
        cat "$HERE/lib/disk.sh" "$HERE/cmdline.txt"
        cat "$OUT/appliance.erofs.key"
        echo "$KERNEL_KEY"
    } | key)
    if [ -s "$out" ] && [ "$(cat "$OUT/orlop.img.key" 2>/dev/null)" = "$want" ]; then
        say "disk image: unchanged"
        return 0
    fi
    [ "$(stat -c %s "$OUT/appliance.erofs")" -le $((DISK_ROOT << 20)) ] || die "the root does not fit its partition"
    rm -rf "$work"
    mkdir "$work"
    disk_esp "$work/esp"
    root_a=$((1 + DISK_ESP))
    state=$((root_a + 2 * DISK_ROOT))
    total=$((state + DISK_STATE + 1))
    truncate -s "${total}M" "$work/disk"
    # The types are those of the Discoverable Partitions Specification: ESP,
    # x86-64 root twice, variable data. The names are what the initrd looks for.
    sfdisk --quiet "$work/disk" <<EOF
label: gpt
unit: sectors
start=1MiB, size=${DISK_ESP}MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=orlop-esp
start=${root_a}MiB, size=${DISK_ROOT}MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=orlop-root-a
start=$((root_a + DISK_ROOT))MiB, size=${DISK_ROOT}MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=orlop-root-b
start=${state}MiB, size=${DISK_STATE}MiB, type=4D21B016-B534-45C2-A9FB-5C16E091FD2D, name=orlop-state
EOF
    disk_put "$work/esp" "$work/disk" 1
    disk_put "$OUT/appliance.erofs" "$work/disk" "$root_a"
    # The state partition stays blank: the first boot formats it.
    mv "$work/disk" "$out"
    echo "$want" >"$OUT/orlop.img.key"
    rm -rf "$work"
    say "disk image: done, $(du -h "$out" | cut -f1) of $(du -h --apparent-size "$out" | cut -f1)"
}
