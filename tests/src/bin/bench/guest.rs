//! The appliance in a guest, beside the bare tools in the same guest.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use orlop_api::{HostPut, PoolCreate, PoolKind};
use orlop_tests::{Initiator, Lab, LabOptions, instrumented};

use crate::results::Results;

/// How many volumes a round makes and attaches.
const ROUND: usize = 8;
const ROUNDS: usize = 5;

pub fn run(root: &Path, results: &mut Results) -> Result<()> {
    let mut options = LabOptions::new(root.join("bench/guests"));
    options.disks = vec![("disk0".into(), 8 << 30), ("disk1".into(), 8 << 30)];
    options.payload.push(instrumented("pool-contract")?);
    options.links = 1;
    let mut lab = Lab::start(&options, |_| {})?;
    let mut boots = vec![lab.boot.as_secs_f64()];
    // Pages that the host has to read for the first time are not the appliance's doing; the first boot is
    // kept in the spread all the same.
    for _ in 0..2 {
        lab.power_cycle(|_| {})?;
        boots.push(lab.boot.as_secs_f64());
    }
    results.add("guest: QEMU start to ready", &boots, "s", true, Some(25.0));

    let plain = PoolCreate::new("tank".parse()?, PoolKind::Zfs);
    let pool = PoolCreate { disks: vec!["/dev/disk/by-id/virtio-disk0".into()], ..plain };
    lab.wait(lab.api.create_pool(&pool))?;
    lab.wait(lab.api.put_host(&"worker-1".parse()?, &HostPut::nvme(Initiator::nqn(1)?)))?;
    prepare_bare_loop(&mut lab)?;

    let (mut one, mut many, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let shell = bare_loop(&mut lab, round, ROUND)?;
        let single = ours(&mut lab, &format!("s{round}"), 1)?;
        let parallel = ours(&mut lab, &format!("p{round}"), ROUND)?;
        bare.push(shell / ROUND as f64);
        one.push(single / shell);
        many.push(parallel / shell);
    }
    results.add("guest: bare shell loop, a volume", &bare, "s", true, None);
    results.add("guest: POST to attached / bare, in turn", &one, "ratio", true, Some(1.3));
    results.add("guest: POST to attached / bare, 8 at once", &many, "ratio", true, Some(0.7));
    pool_verbs(&mut lab, results)?;
    listing_of(&mut lab, 1000, 5, results)?;
    lab.appliance.shutdown(Duration::from_secs(60))
}

/// A listing of ten thousand volumes, twice: under emulation making them takes ten minutes and each listing some, so
/// this is by name only.
pub fn long_listing(root: &Path, results: &mut Results) -> Result<()> {
    let mut options = LabOptions::new(root.join("bench/guests"));
    options.disks = vec![("disk1".into(), 16 << 30)];
    options.payload.push(instrumented("pool-contract")?);
    options.links = 1;
    let mut lab = Lab::start(&options, |_| {})?;
    listing_of(&mut lab, 10_000, 2, results)?;
    lab.appliance.shutdown(Duration::from_secs(60))
}

/// A listing of many volumes with their labels, as at a start, beside one `zfs list` of the same columns.
fn listing_of(lab: &mut Lab, count: usize, rounds: usize, results: &mut Results) -> Result<()> {
    let payload = lab.appliance.mount_payload()?.to_string();
    let command =
        format!("{payload}/pool-contract --listing {count} {rounds} zfs /dev/disk/by-id/virtio-disk1");
    let out = lab.appliance.shell_ok(&command, Duration::from_secs(3600))?;
    let pair = |line: &str| -> Option<(f64, f64)> {
        let (ours, bare) = line.split_once(' ')?;
        Some((ours.parse().ok()?, bare.trim().parse().ok()?))
    };
    let pairs: Option<Vec<_>> = out.lines().map(pair).collect();
    let pairs = pairs.with_context(|| format!("not understood: {out}"))?;
    let ratios: Vec<f64> = pairs.iter().map(|(ours, bare)| ours / bare).collect();
    let bare: Vec<f64> = pairs.iter().map(|(_, bare)| *bare).collect();
    results.add(&format!("guest: zfs list of {count} labelled volumes"), &bare, "s", true, None);
    results.add(&format!("guest: listing of {count} volumes / zfs list"), &ratios, "ratio", true, Some(1.2));
    Ok(())
}

/// What is done to volumes in a pool, in the order in which it can be done.
const VERBS: [[&str; 3]; 4] = [
    ["guest: zfs create", "guest: zvol create / zfs, in turn", "guest: zvol create / zfs, 8 at once"],
    ["guest: zfs snapshot", "guest: zvol snapshot / zfs, in turn", "guest: zvol snapshot / zfs, 8 at once"],
    ["guest: zfs clone", "guest: zvol clone / zfs, in turn", "guest: zvol clone / zfs, 8 at once"],
    ["guest: zfs destroy", "guest: zvol delete / zfs, in turn", "guest: zvol delete / zfs, 8 at once"],
];

/// Each verb beside the zfs command that does the same: one after another, and eight at once.
fn pool_verbs(lab: &mut Lab, results: &mut Results) -> Result<()> {
    let (mut one, mut many, mut alone) = (vec![Vec::new(); 4], vec![Vec::new(); 4], vec![Vec::new(); 4]);
    for round in 0..3 {
        let bare = bare_verbs(lab, round)?;
        alone.iter_mut().zip(&bare).for_each(|(all, took)| all.push(took / ROUND as f64));
        for (at_once, into) in [(1, &mut one), (ROUND, &mut many)] {
            for (verb, bare) in bare.iter().enumerate() {
                into[verb].push(our_verb(lab, verb, &format!("v{round}-{at_once}"), at_once)? / bare);
            }
            // What is left of the round, unmeasured.
            clear(lab, &format!("v{round}-{at_once}"))?;
        }
    }
    for (verb, [bare, in_turn, at_once]) in VERBS.into_iter().enumerate() {
        results.add(bare, &alone[verb], "s", true, None);
        results.add(in_turn, &one[verb], "ratio", true, Some(1.2));
        results.add(at_once, &many[verb], "ratio", true, Some(0.6));
    }
    Ok(())
}

/// Seconds that the commands take for a round of each verb, timed in the guest.
fn bare_verbs(lab: &mut Lab, round: usize) -> Result<Vec<f64>> {
    let out = lab.on_appliance(&format!(
        r#"cat >/run/verbs.sh <<'END'
set -e
d=tank/bare/v{round}
zfs create $d
phase() {{
    start=$(date +%s.%N)
    for n in $(seq {ROUND}); do eval "$1"; done
    echo "$start $(date +%s.%N)"
}}
phase 'zfs create -s -V 1G $d/$n'
phase 'zfs snapshot $d/$n@s'
phase 'zfs clone $d/$n@s $d/c$n'
phase 'until zfs destroy $d/c$n 2>/dev/null; do sleep 0.05; done'
until zfs destroy -r $d 2>/dev/null; do sleep 0.2; done
END
bash /run/verbs.sh"#
    ))?;
    out.lines()
        .map(|line| {
            let mut times = line.split_whitespace().map(str::parse::<f64>);
            let (start, end) = (times.next().context("no start")??, times.next().context("no end")??);
            Ok(end - start)
        })
        .collect()
}

/// The same asked of the daemon: seconds for a round.
fn our_verb(lab: &mut Lab, verb: usize, name: &str, at_once: usize) -> Result<f64> {
    let started = Instant::now();
    let calls = (0..ROUND).map(|n| {
        let (api, name) = (lab.api.clone(), format!("{name}-{n}"));
        async move {
            let volume = |name: &str, source: Option<serde_json::Value>| {
                let mut ask = serde_json::json!({ "name": name, "pool": "tank", "size": 1u64 << 30 });
                if let Some(source) = source {
                    ask["source"] = source;
                }
                serde_json::from_value(ask)
            };
            match verb {
                0 => drop(api.create_volume(&volume(&name, None)?).await?),
                1 => {
                    let ask = serde_json::json!({ "name": name, "volume": name });
                    drop(api.create_snapshot(&serde_json::from_value(ask)?).await?);
                }
                2 => {
                    let source = serde_json::json!({ "snapshot": name });
                    drop(api.create_volume(&volume(&format!("c-{name}"), Some(source))?).await?);
                }
                _ => api.delete_volume(&format!("c-{name}").parse()?).await?,
            }
            anyhow::Ok(())
        }
    });
    lab.wait(async {
        use futures_util::{StreamExt, TryStreamExt};
        futures_util::stream::iter(calls).buffer_unordered(at_once).try_collect::<Vec<()>>().await
    })?;
    Ok(started.elapsed().as_secs_f64())
}

fn clear(lab: &mut Lab, name: &str) -> Result<()> {
    for n in 0..ROUND {
        let api = lab.api.clone();
        let name = format!("{name}-{n}");
        lab.wait(async move {
            api.delete_snapshot(&name.parse()?, orlop_api::When::Now).await?;
            api.delete_volume(&name.parse()?).await?;
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

/// Where [`bare_loop`] makes its volumes, and a port for them.
pub fn prepare_bare_loop(lab: &mut Lab) -> Result<()> {
    let port = "zfs create -o volmode=dev tank/bare && mkdir /sys/kernel/config/nvmet/ports/1 && cd /sys/kernel/config/nvmet/ports/1 && \
        echo tcp >addr_trtype && echo ipv4 >addr_adrfam && echo 10.77.1.1 >addr_traddr && echo 4500 >addr_trsvcid";
    lab.on_appliance(port).map(drop)
}

/// The same work typed as a shell loop: seconds for a round. Timed in the guest, so that the console's own
/// delays don't count against it.
pub fn bare_loop(lab: &mut Lab, round: usize, many: usize) -> Result<f64> {
    let script = format!(
        r#"cat >/run/bare.sh <<'END'
set -e
cd /sys/kernel/config/nvmet
host=nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-00000000ffff
mkdir -p hosts/$host
start=$(date +%s.%N)
for n in $(seq {many}); do
    id=r{round}n$n
    zfs create -s -V 1G tank/bare/$id
    until [ -e /dev/zvol/tank/bare/$id ]; do sleep 0.01; done
    s=subsystems/nqn.2020-01.com.example:$id
    mkdir $s
    echo 0 >$s/attr_allow_any_host
    mkdir $s/namespaces/1
    echo /dev/zvol/tank/bare/$id >$s/namespaces/1/device_path
    echo 1 >$s/namespaces/1/enable
    ln -s $PWD/hosts/$host $s/allowed_hosts/$host
    ln -s $PWD/$s ports/1/subsystems/
done
end=$(date +%s.%N)
echo "$start $end"
END
bash /run/bare.sh"#
    );
    let out = lab.on_appliance(&script)?;
    let mut times = out.split_whitespace().map(str::parse::<f64>);
    let (start, end) = (times.next().context("no start")??, times.next().context("no end")??);
    Ok(end - start)
}

/// The same work asked of the daemon over TLS, `at_once` requests at a time: seconds for a round.
fn ours(lab: &mut Lab, name: &str, at_once: usize) -> Result<f64> {
    let host = "worker-1".parse()?;
    let started = Instant::now();
    let asks = (0..ROUND).map(|n| {
        let api = lab.api.clone();
        let host = &host;
        let ask = format!("{name}-{n}");
        async move {
            let ask = serde_json::from_value(
                serde_json::json!({ "name": ask, "pool": "tank", "size": 1u64 << 30 }),
            )?;
            let volume = api.create_volume(&ask).await?;
            api.attach(&orlop_api::VolumeRef::Id(volume.id), host).await?;
            anyhow::Ok(())
        }
    });
    lab.wait(async {
        use futures_util::{StreamExt, TryStreamExt};
        futures_util::stream::iter(asks).buffer_unordered(at_once).try_collect::<Vec<()>>().await
    })?;
    Ok(started.elapsed().as_secs_f64())
}
