# What the build needs on the host.
# shellcheck shell=bash

# Command and the Debian package that has it. The last three are for the tests of file pools.
HOST_TOOLS='
mmdebstrap:mmdebstrap
mkfs.erofs:erofs-utils
cpio:cpio
zstd:zstd
xz:xz-utils
depmod:kmod
mkfs.vfat:dosfstools
mcopy:mtools
mkfs.ext4:e2fsprogs
sfdisk:fdisk
unshare:util-linux
newuidmap:uidmap
mkfs.btrfs:btrfs-progs
mkfs.xfs:xfsprogs
losetup:mount
'
HOST_FILES='
/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
/usr/share/OVMF/OVMF_CODE_4M.fd:ovmf
'

missing_host_packages() {
    local entry path=$PATH
    # depmod and the mkfs family live in sbin, which a user's PATH may lack.
    PATH=$PATH:/usr/sbin:/sbin
    for entry in $HOST_TOOLS; do
        command -v "${entry%%:*}" >/dev/null || echo "${entry##*:}"
    done
    for entry in $HOST_FILES; do
        [ -e "${entry%%:*}" ] || echo "${entry##*:}"
    done
    PATH=$path
}

# Debian and its children get missing packages installed; elsewhere names
# differ, so the list is printed and the user decides.
host_packages() {
    local missing id_like=""
    missing=$(missing_host_packages | sort -u | tr '\n' ' ')
    export PATH=$PATH:/usr/sbin:/sbin
    [ -n "$missing" ] || return 0
    [ -r /etc/os-release ] && id_like=$(. /etc/os-release && echo "${ID:-} ${ID_LIKE:-}")
    case " $id_like " in
    *" debian "* | *" ubuntu "*) ;;
    *)
        {
            echo "build.sh: these are missing on this host (Debian's package names):"
            echo "  $missing"
            echo "Install them and run again."
        } >&2
        exit 1
        ;;
    esac
    say "host: installing $missing"
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    # Recommends would bring a desktop's worth of display libraries with QEMU.
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq update
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $missing
}
