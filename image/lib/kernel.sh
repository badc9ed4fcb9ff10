# Kernel image, modules with ZFS, initrd.
# shellcheck shell=bash

# Directories of modules that neither an appliance nor an initiator has a use
# for. Network, storage, crypto, sensors and USB stay: the image also boots on
# hardware.
MODULES_DROP=(
    arch/x86/kvm drivers/cpufreq     sound drivers/gpu drivers/media drivers/staging drivers/iio drivers/bluetooth
    drivers/net/wireless drivers/net/can drivers/net/hamradio drivers/net/wwan drivers/net/ieee802154
    drivers/isdn drivers/gnss drivers/nfc drivers/comedi drivers/accel drivers/leds drivers/video
    drivers/input/joystick drivers/input/tablet drivers/input/touchscreen drivers/input/misc
    drivers/input/gameport drivers/parport drivers/pcmcia drivers/w1 drivers/mtd drivers/memstick
    drivers/mmc drivers/platform drivers/soundwire drivers/rtc drivers/greybus drivers/uwb
    drivers/usb/gadget drivers/usb/misc drivers/usb/serial drivers/usb/atm drivers/thunderbolt
    drivers/firewire drivers/power/supply drivers/extcon drivers/regulator drivers/counter
    drivers/mcb drivers/bcma drivers/ssb drivers/rapidio drivers/ntb drivers/hsi drivers/most
    net/bluetooth net/mac80211 net/wireless net/nfc net/can net/ax25 net/netrom net/rose
    net/ieee802154 net/mac802154 net/6lowpan net/batman-adv net/tipc net/atm net/appletalk
    net/sctp net/smc net/rxrpc net/phonet net/caif net/x25 net/lapb net/9p net/ceph net/l2tp
    fs/ceph fs/afs fs/gfs2 fs/ocfs2 fs/dlm fs/smb fs/cifs fs/jfs fs/reiserfs fs/ufs fs/hfs
    fs/hfsplus fs/befs fs/coda fs/orangefs fs/ubifs fs/jffs2 fs/nilfs2 fs/f2fs fs/bcachefs
    fs/minix fs/sysv fs/qnx4 fs/qnx6 fs/affs fs/adfs fs/omfs fs/hpfs fs/ntfs3 fs/9p fs/udf
    fs/zonefs fs/gfs2 fs/romfs fs/freevxfs fs/efs fs/bfs fs/vboxsf fs/ecryptfs
)

# In the initrd: what a root and a state disk may hang on. Loaded in order at
# boot if the device is there; see initrd/init for which are loaded always.
INITRD_MODULES=(
    virtio_pci virtio_blk virtio_scsi virtio_console erofs ext4 overlay
    nvme ahci ata_piix sd_mod usb_storage uas xhci_pci ehci_pci vmd
    megaraid_sas mpt3sas crc32c_generic crc32c_intel nls_ascii
)

# Runs as a hook of mmdebstrap, by sh, with the builder root as its argument.
# The package's own hook may have compiled the modules already; "install" is
# idempotent, and being explicit does not depend on what it chose to do.
kernel_harvest() {
    root=$1
    out=$1/harvest
    kver=$(ls "$root/usr/lib/modules")
    zver=$(chroot "$root" dpkg-query --show --showformat="\${Version}" zfs-dkms)
    zver=${zver%%-*}
    chroot "$root" dkms install "zfs/$zver" -k "$kver"
    find "$root/usr/lib/modules/$kver" -name "zfs.ko*" | grep -q .
    mkdir "$out"
    cp "$root/boot/vmlinuz-$kver" "$out/vmlinuz"
    cp "$root/boot/config-$kver" "$out/config"
    cp -r "$root/usr/lib/modules/$kver" "$out/modules"
    cp "$root/usr/lib/systemd/boot/efi/systemd-bootx64.efi" "$out/"
    rm -f "$out/modules/build" "$out/modules/source"
    echo "$zver" >"$out/zver"
    echo "$kver" >"$out/kver"
}

# Kernel package and the ZFS modules compiled for exactly it. Headers and
# compiler exist only in the builder root, which is thrown away: what is kept
# is a directory of files.
kernel_raw() {
    resolve builder
    RAW_KEY=$(grep -E '^(linux-image|zfs-dkms|systemd-boot-efi|gcc-[0-9])' "$RESOLVED" | key)
    RAW=$CACHE/kernel/raw-$RAW_KEY
    if [ -s "$RAW/kver" ]; then
        touch "$RAW"
        say "kernel and ZFS modules: cached, $(cat "$RAW/kver") with ZFS $(cat "$RAW/zver")"
        return 0
    fi
    say "kernel and ZFS modules: compiling, some minutes"
    mkdir -p "$CACHE/log"
    fresh_partial "$RAW.partial"
    # Copied out by mmdebstrap itself, because without root the hook may not
    # write to the cache.
    logged "$CACHE/log/kernel.log" debootstrap /dev/null --format=null \
        --include="$(package_list builder)" \
        --customize-hook="set -eu; $(declare -f kernel_harvest); kernel_harvest \"\$1\"" \
        --customize-hook="copy-out /harvest $RAW.partial"
    publish "$RAW.partial/harvest" "$RAW"
    rm -rf "$RAW.partial"
    say "kernel and ZFS modules: done, $(cat "$RAW/kver") with ZFS $(cat "$RAW/zver")"
}

# Trimmed and unpacked modules. Unpacked, because xz at every boot costs more
# than the space: under emulation zfs alone takes seconds to decompress.
kernel_trim() {
    local out=$1 kver dir mods
    kver=$(cat "$RAW/kver")
    mods=$out/root/usr/lib/modules/$kver
    mkdir -p "$(dirname "$mods")"
    # kmod looks in /lib or in /usr/lib, depending on the host's release.
    ln -s usr/lib "$out/root/lib"
    cp -a "$RAW/modules" "$mods"
    for dir in "${MODULES_DROP[@]}"; do rm -rf "$mods/kernel/$dir"; done
    find "$mods" -name '*.ko.xz' -print0 | xargs -0r -P "$(nproc)" -n 64 xz -dq
    depmod -b "$out/root" "$kver"
    cp "$RAW/vmlinuz" "$out/vmlinuz"
    cp "$RAW/systemd-bootx64.efi" "$out/"
    echo "$kver" >"$out/kver"
}

# The initrd: busybox, a few modules and one script. No udev and no systemd in
# it, which makes it several times faster than a distribution's.
initrd() {
    local out=$1 kver=$2 tree=$1/initrd.d mods file module
    mods=$tree/usr/lib/modules/$kver
    mkdir -p "$tree"/{bin,dev,proc,sys,run,sysroot} "$mods"
    ln -s usr/lib "$tree/lib"
    tar -xf "$BASE_TAR" -C "$tree/bin" --strip-components=3 --wildcards './usr/bin/busybox'
    install -m 0755 "$HERE/initrd/init" "$tree/init"
    for module in "${INITRD_MODULES[@]}"; do
        modprobe -d "$out/root" -S "$kver" --show-depends "$module" 2>/dev/null || true
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u | while read -r file; do
        install -D -m 0644 "$file" "$mods/${file##*/}"
    done
    cp "$out/root/usr/lib/modules/$kver"/modules.{order,builtin,builtin.modinfo} "$mods/"
    depmod -b "$tree" "$kver"
    rm -f "$mods"/modules.{order,builtin.modinfo} "$mods"/*.bin "$mods/modules.softdep" "$mods/modules.devname"
    (cd "$tree" && find . -print0 | LC_ALL=C sort -z |
        cpio --quiet -0 -o -H newc -R 0:0 --reproducible) | zstd -q -10 >"$out/initrd"
    rm -rf "$tree"
}

kernel() {
    kernel_raw
    KERNEL_KEY=$({ echo "$RAW_KEY $BASE_KEY"; cat "$HERE/lib/kernel.sh" "$HERE/initrd/init"; } | key)
    KERNEL=$CACHE/kernel/$KERNEL_KEY
    if [ -s "$KERNEL/initrd" ]; then
        touch "$KERNEL"
        say "kernel, modules, initrd: cached"
        return 0
    fi
    fresh_partial "$KERNEL.partial"
    kernel_trim "$KERNEL.partial"
    initrd "$KERNEL.partial" "$(cat "$RAW/kver")"
    publish "$KERNEL.partial" "$KERNEL"
    say "kernel, modules, initrd: done, initrd $(du -h "$KERNEL/initrd" | cut -f1)," \
        "modules $(du -sh "$KERNEL/root" | cut -f1)"
}
