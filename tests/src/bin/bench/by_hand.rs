//! What a careful administrator types for the same result: loops over a table of volumes, in the shell, and targetcli.
//!
//! A loop makes exactly what the target makes, each attribute included; `target-bench settled` finds nothing left to do
//! after it. As few processes as that takes: a volume's directories are made by one `mkdir`, and an `echo` is no process.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_tests::Lab;

/// A protocol of the kernel's target for disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// nvmet.
    Nvme,
    /// LIO.
    Iscsi,
}

impl Protocol {
    /// As `target-bench` and people call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nvme => "nvme",
            Self::Iscsi => "iscsi",
        }
    }
}

/// `$1`: make or remove. `$2`: the table. `$3`: the port's id (NVMe) or the adapter (iSCSI). `$4`: the TCP port.
const NVME: &str = r#"set -e
cd /sys/kernel/config/nvmet
do_make() {
    if [ ! -d ports/$3 ]; then
        mkdir ports/$3
        echo tcp >ports/$3/addr_trtype
        echo ipv4 >ports/$3/addr_adrfam
        echo 0.0.0.0 >ports/$3/addr_traddr
        echo $4 >ports/$3/addr_trsvcid
    fi
    while read -r name id serial uuid nguid host device; do
        s=subsystems/$name
        mkdir $s $s/namespaces/1
        echo 0 >$s/attr_allow_any_host
        echo $serial >$s/attr_serial
        echo Orlop >$s/attr_model
        echo $device >$s/namespaces/1/device_path
        echo $uuid >$s/namespaces/1/device_uuid
        echo $nguid >$s/namespaces/1/device_nguid
        echo 1 >$s/namespaces/1/enable
        [ -d hosts/$host ] || mkdir hosts/$host
        ln -s $PWD/hosts/$host $s/allowed_hosts/$host
        ln -s $PWD/$s ports/$3/subsystems/$name
    done <$2
}
do_remove() {
    while read -r name id serial uuid nguid host device; do
        s=subsystems/$name
        rm ports/$3/subsystems/$name $s/allowed_hosts/$host
        rmdir $s/namespaces/1 $s
    done <$2
}
start=$EPOCHREALTIME
do_$1 "$@"
echo $start $EPOCHREALTIME
"#;

/// See [`NVME`].
const ISCSI: &str = r#"set -e
cd /sys/kernel/config/target
do_make() {
    [ -d iscsi ] || mkdir iscsi
    [ -d core/$3 ] || mkdir core/$3
    while read -r name id serial uuid nguid host device; do
        b=core/$3/$id g=iscsi/$name/tpgt_1
        a=$g/acls/$host
        mkdir $b iscsi/$name $g $g/lun/lun_0 $a $a/lun_0 $g/np/0.0.0.0:$4
        echo $serial >$b/wwn/vpd_unit_serial
        echo Orlop >$b/wwn/product_id
        echo $device >$b/udev_path
        echo udev_path=$device >$b/control
        echo 1 >$b/enable
        # Refused where the device can't.
        echo 1 >$b/attrib/emulate_tpu || :
        echo 1 >$b/attrib/emulate_tpws || :
        echo 1 >$b/alua/default_tg_pt_gp/alua_access_type
        echo 0 >$g/attrib/generate_node_acls
        echo 0 >$g/attrib/cache_dynamic_acls
        echo 1 >$g/attrib/demo_mode_write_protect
        echo 0 >$g/attrib/demo_mode_discovery
        echo 1 >$g/attrib/prod_mode_write_protect
        echo 1 >$g/attrib/authentication
        ln -s $PWD/$b $g/lun/lun_0/$id
        ln -s $PWD/$g/lun/lun_0 $a/lun_0/$id
        echo 0 >$a/lun_0/write_protect
        echo 0 >$a/attrib/authentication
        echo 1 >$g/enable
    done <$2 2>/dev/null
}
do_remove() {
    while read -r name id serial uuid nguid host device; do
        b=core/$3/$id g=iscsi/$name/tpgt_1
        a=$g/acls/$host
        echo 0 >$g/enable
        rm $a/lun_0/$id $g/lun/lun_0/$id
        rmdir $g/np/0.0.0.0:$4 $a/lun_0 $a $g/lun/lun_0 $g iscsi/$name $b
    done <$2
}
start=$EPOCHREALTIME
do_$1 "$@"
echo $start $EPOCHREALTIME
"#;

/// The initiator's root, in which targetcli is, with this machine's kernel and devices in it. What it has compiled is
/// kept, and it is run once before it is measured: the image's files have a time of their own, by which Python takes
/// what the package has compiled for stale.
const TOOLS: &str = r#"set -e
mkdir -p /run/tools /run/tools-etc/{upper,work}
mount -t erofs -o ro /dev/disk/by-id/virtio-tools /run/tools
modprobe overlay
mount -t overlay -o lowerdir=/run/tools/etc,upperdir=/run/tools-etc/upper,workdir=/run/tools-etc/work overlay /run/tools/etc
for dir in proc sys dev; do mount --rbind /$dir /run/tools/$dir; done
for dir in run tmp root var; do mount -t tmpfs tmpfs /run/tools/$dir; done
mkdir -p /run/tools/etc/target/backup /run/tools/var/lib /run/tools/run/{lock,dbus}
# It asks there for handlers of its user-space backstores.
mount --bind /run/dbus /run/tools/run/dbus
[ -e /run/tools/var/run ] || ln -s ../run /run/tools/var/run
cat >/run/targetcli <<'END'
#!/bin/bash
exec chroot /run/tools /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM=dumb \
    PYTHONPYCACHEPREFIX=/tmp/compiled targetcli "$@"
END
chmod +x /run/targetcli
for n in 1 2; do
    /run/targetcli set global auto_save_on_exit=false auto_add_default_portal=true auto_add_mapped_luns=true
done
"#;

/// `$1`: make or remove. `$2`: the table. `$3`: `once`, one process a volume that reads its commands, or `each`, one
/// process a command.
const TARGETCLI: &str = r#"set -e
commands() {
    if [ $1 = make ]; then
        echo /backstores/block create name=$id dev=$device
        echo /iscsi create $name
        echo /iscsi/$name/tpg1/luns create /backstores/block/$id
        echo /iscsi/$name/tpg1/acls create $host
    else
        echo /iscsi delete $name
        echo /backstores/block delete $id
    fi
}
run() {
    if [ $2 = once ]; then
        { commands $1; echo exit; } | /run/targetcli
    else
        commands $1 | while read -r line; do /run/targetcli $line </dev/null; done
    fi
}
while read -r name id serial uuid nguid host device; do
    start=$EPOCHREALTIME
    run $1 $3 >>/run/targetcli.log 2>&1
    echo $start $EPOCHREALTIME
    at=/sys/kernel/config/target/iscsi/$name/tpgt_1
    if [ $1 = make ]; then
        [ -d $at/acls/$host/lun_0 -a -d $at/np/0.0.0.0:3260 ]
    else
        [ ! -d $at ]
    fi || { cat /run/targetcli.log; exit 1; }
done <$2
"#;

/// Puts the scripts where they are run, after each boot.
pub fn prepare(lab: &mut Lab) -> Result<()> {
    lab.appliance.mount_payload()?;
    for (name, text) in [("nvme", NVME), ("iscsi", ISCSI), ("tools", TOOLS), ("cli", TARGETCLI)] {
        lab.on_appliance(&format!("cat >/run/{name}.sh <<'SCRIPT'\n{text}SCRIPT"))?;
    }
    Ok(())
}

/// Makes targetcli ready.
pub fn prepare_targetcli(lab: &mut Lab) -> Result<()> {
    lab.on_appliance("bash /run/tools.sh 2>&1").map(drop)
}

/// What objects are called beside those of a table.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The port's id or the adapter.
    pub parent: &'static str,
    /// The TCP port.
    pub port: u16,
}

impl Place {
    /// Where the daemon has them.
    pub fn ours(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Nvme => Self { parent: "28416", port: 4420 },
            Protocol::Iscsi => Self { parent: "iblock_28416", port: 3260 },
        }
    }

    /// Somewhere else. iSCSI targets share what listens in any case.
    pub fn theirs(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Nvme => Self { parent: "7", port: 4500 },
            Protocol::Iscsi => Self { parent: "iblock_7", port: 3260 },
        }
    }
}

/// Seconds that the shell takes to `make` or `remove` what a table has.
pub fn shell(lab: &mut Lab, protocol: Protocol, verb: &str, table: &str, place: Place) -> Result<f64> {
    let Place { parent, port } = place;
    let command = format!("bash /run/{}.sh {verb} {table} {parent} {port}", protocol.word());
    // A thousand take minutes where a process is slow to start.
    let out = lab.appliance.shell_ok(&command, Duration::from_secs(900))?;
    let times = spans(&out)?;
    ensure!(times.len() == 1, "not understood: {out}");
    Ok(times[0])
}

/// Seconds that targetcli takes for each line of a table.
pub fn targetcli(lab: &mut Lab, verb: &str, table: &str, how: &str) -> Result<Vec<f64>> {
    spans(&lab.on_appliance(&format!("bash /run/cli.sh {verb} {table} {how}"))?)
}

/// The differences of lines of two numbers.
pub fn spans(out: &str) -> Result<Vec<f64>> {
    let span = |line: &str| {
        let (start, end) = line.trim().split_once(' ')?;
        Some(end.parse::<f64>().ok()? - start.parse::<f64>().ok()?)
    };
    out.lines().map(|line| span(line).with_context(|| format!("not understood: {out}"))).collect()
}
