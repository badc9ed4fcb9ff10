# Roots put together: base + modules + our static files, then the binaries,
# then EROFS.
# shellcheck shell=bash

# What the packages need at install time and a read-only root never again.
# Python comes with reporting scripts of ZFS and NFS that nothing calls.
DROP=(
    usr/lib/apt usr/bin/apt usr/bin/apt-\* usr/lib/x86_64-linux-gnu/libapt-\* usr/share/python3
    usr/lib/udev/hwdb.bin usr/lib/udev/hwdb.d usr/lib/systemd/catalog usr/share/zoneinfo/right
    usr/share/zoneinfo/posix usr/share/bug usr/share/perl5 usr/share/common-licenses/none
    usr/share/initramfs-tools usr/lib/dracut etc/apt etc/cron.\* etc/machine-id etc/hostname
)
# udev's rules for what an appliance or an initiator has no use for: each is
# tried on each event. 69-lvm activates volume groups by itself, which is the
# daemon's to do.
DROP_RULES=(
    60-autosuspend 60-cdrom_id 60-drm 60-evdev 60-fido-id 60-input-id 60-persistent-alsa
    60-persistent-input 60-persistent-hidraw 60-persistent-storage-mtd 60-persistent-storage-tape
    60-persistent-v4l 60-sensor 60-serial 69-lvm 70-camera 70-joystick 70-memory 70-mouse
    70-touchpad 70-uaccess 71-seat 73-seat-late 75-probe_mtd 78-sound-card 90-iocost 96-e2scrub
)
# The same for tmpfiles: homes, shells, X11, and a ban on logins that is lifted
# by a service that does not exist here.
DROP_TMPFILES=(
    20-systemd-shell-extra 20-systemd-ssh-generator 20-systemd-stub debian home libselinux1 passwd
    provision static-nodes-permissions systemd-nologin x11 journal-nocow
)
DROP_APPLIANCE=(usr/lib/systemd/system/multi-user.target.wants/systemd-logind.service etc/systemd/network usr/lib/python3 usr/lib/python3.\* usr/bin/python3\* usr/lib/x86_64-linux-gnu/libpython3\*)

# What the appliance keeps on its state disk, or what the system makes as it runs. Here, and not in the
# overlay, so that a checkout is the same whatever carries it: some tools turn links into files.
APPLIANCE_LINKS=(
    etc/exports.d:../run/orlop/exports.d
    etc/hostid:../var/lib/orlop-system/hostid
    etc/idmapd.conf.d/orlop.conf:../../run/orlop/idmapd.conf
    etc/krb5.keytab:../var/lib/orlop/krb5.keytab
    etc/mtab:../proc/self/mounts
    etc/nfs.conf.d/orlop.conf:../../run/orlop/nfs.conf
    etc/orlop/orlopd.toml.d:../../var/lib/orlop/orlopd.toml.d
    etc/resolv.conf:../run/systemd/resolve/resolv.conf
    etc/systemd/network:../../var/lib/orlop-system/network
    # The clients' half of Kerberos, which nfs-utils start where there is a keytab.
    etc/systemd/system/rpc-gssd.service:/dev/null
)

# Everything but our binaries. Runs as root, in a namespace or for real.
stage_root() {
    local role=$1 out=$2 pattern
    mkdir -p "$out"
    tar -xpf "$BASE_TAR" -C "$out" --numeric-owner --exclude './dev/*'
    cp -a --no-preserve=ownership "$KERNEL/root/usr/lib/modules" "$out/usr/lib/"
    # What is in the image, for people and for vulnerability scanners.
    mkdir -p "$out/usr/share/orlop"
    sed -n -e 's/^Package: //p' -e 's/^Version: //p' "$out/var/lib/dpkg/status" |
        paste -d' ' - - >"$out/usr/share/orlop/packages.txt"
    for pattern in "${DROP[@]}"; do (cd "$out" && eval "rm -rf $pattern"); done
    for pattern in "${DROP_RULES[@]}"; do rm -f "$out/usr/lib/udev/rules.d/$pattern.rules"; done
    for pattern in "${DROP_TMPFILES[@]}"; do rm -f "$out/usr/lib/tmpfiles.d/$pattern.conf"; done
    find "$out/etc/systemd/system" "$out/etc/systemd/user" -type l -delete
    if [ "$role" = appliance ]; then
        for pattern in "${DROP_APPLIANCE[@]}"; do (cd "$out" && eval "rm -rf $pattern"); done
        cp -a --no-preserve=ownership "$TOP/rootfs-overlay/." "$out/"
        cp -a --no-preserve=ownership "$TOP/daemon/dist/." "$out/"
        for pattern in "${APPLIANCE_LINKS[@]}"; do
            mkdir -p "$(dirname "$out/${pattern%%:*}")"
            ln -sfn "${pattern#*:}" "$out/${pattern%%:*}"
        done
        # /var is the state disk. What packages expect to find in it is made by
        # tmpfiles at boot; see usr/lib/tmpfiles.d/orlop-var.conf.
        rm -rf "${out:?}/var"
        mkdir "$out/var"
        # Where hosts find the volumes that are served by NFS; the daemon mounts at it.
        mkdir "$out/volumes"
    else
        cp -a --no-preserve=ownership "$HERE/initiator-overlay/." "$out/"
        rm -rf "$out"/var/cache/* "$out"/var/lib/{apt,dpkg}/*
    fi
    sed -e 's/#.*//' -e '/^\s*$/d' "$HERE/masked.txt" | while read -r pattern; do
        mkdir -p "$(dirname "$out/etc/$pattern")"
        ln -sf /dev/null "$out/etc/$pattern"
    done
    # An empty file, for the initrd to bind the persistent one over.
    : >"$out/etc/machine-id"
    echo "$role" >"$out/etc/hostname"
    # Which units run is decided by one preset file, not by what packages did
    # when they were installed.
    chroot "$out" systemctl --quiet preset-all
    chroot "$out" systemd-sysusers
    rm -rf "$out"/etc/{passwd-,group-,shadow-,gshadow-,.pwd.lock} "$out"/{run,tmp}/*
}

stage() {
    local role=$1
    STAGE_KEY=$({
        echo "$role $BASE_KEY $KERNEL_KEY"
        if [ "$role" = appliance ]; then
            hash_tree "$TOP/rootfs-overlay" "$TOP/daemon/dist"
        else
            hash_tree "$HERE/initiator-overlay"
        fi
        cat "$HERE/lib/assemble.sh" "$HERE/masked.txt"
    } | key)
    STAGE=$CACHE/stage/$role-$STAGE_KEY
    if [ -e "$STAGE/usr" ]; then
        say "root of $role without binaries: cached"
        return 0
    fi
    # Earlier ones are of no use any more, and big.
    as_root rm -rf "$CACHE/stage/$role"-*
    fresh_partial "$CACHE/stage/$role.partial"
    export -f stage_root
    logged "$CACHE/log/stage-$role.log" \
        as_root env TOP="$TOP" HERE="$HERE" BASE_TAR="$BASE_TAR" KERNEL="$KERNEL" \
        bash -euc "$(declare -p APPLIANCE_LINKS DROP DROP_APPLIANCE DROP_RULES DROP_TMPFILES); stage_root $role '$CACHE/stage/$role.partial'"
    publish "$CACHE/stage/$role.partial" "$STAGE"
    say "root of $role without binaries: done, $(as_root du -sh "$STAGE" | cut -f1)"
}

# The stage directory is shared by builds one after the other, so binaries are
# replaced in it, and only then read into EROFS.
pack() {
    local role=$1 out=$2
    PACK_KEY=$({
        echo "$STAGE_KEY ${EROFS_OPTIONS[*]-}"
        [ "$role" != appliance ] || sha256sum <"$ORLOPD"
        [ "$role" != appliance ] || sha256sum <"$ORLOP"
    } | key)
    if [ -s "$out" ] && [ "$(cat "$out.key" 2>/dev/null)" = "$PACK_KEY" ]; then
        say "root image of $role: unchanged"
        return 0
    fi
    if [ "$role" = appliance ]; then
        as_root install -m 0755 "$ORLOPD" "$STAGE/usr/sbin/orlopd"
        as_root install -m 0755 "$ORLOP" "$STAGE/usr/bin/orlop"
    fi
    rm -f "$out.partial"
    # A fixed time and no UUID of chance: the same input gives the same image.
    as_root mkfs.erofs --quiet -T 1700000000 -U 6f726c6f-7000-4000-8000-000000000000 \
        "${EROFS_OPTIONS[@]}" "$out.partial" "$STAGE" >/dev/null
    mv "$out.partial" "$out"
    echo "$PACK_KEY" >"$out.key"
    say "root image of $role: done, $(du -h "$out" | cut -f1)"
}
