//! The commands of docs/targets.md, run one after another as the page has them.

use anyhow::{Context, Result, ensure};
use orlop_tests::documented::{AFTER, BEFORE, Place, SUBSTITUTES, commands};

use crate::world::World;

/// Runs a command of the page in a directory of its own. Names of volumes are the appliance's to tell: what is in `$( )`
/// for `orlop` is asked there, whoever runs the command.
fn run(w: &mut World, place: Place, command: &str) -> Result<String> {
    let mut command = command.to_string();
    for (word, instead) in SUBSTITUTES {
        if !command.contains(word) {
            continue;
        }
        let value =
            match instead.split_once("$(").and_then(|(start, rest)| Some((start, rest.strip_suffix(')')?))) {
                Some((start, ask)) => format!("{start}{}", w.lab.on_appliance(ask)?.trim()),
                None => instead.to_string(),
            };
        command = command.replace(word, &value);
    }
    let command = format!("mkdir -p /run/page && cd /run/page && {command}");
    match place {
        Place::Appliance => w.lab.on_appliance(&command),
        Place::Host => w.lab.initiator.run(&command),
    }
}

/// What a command wrote on the host, for those on the appliance.
fn carry_keys(w: &mut World) -> Result<()> {
    let keys = w.lab.initiator.run(
        "cd /run/page && for f in *.key *.psk; do [ -e $f ] || continue; echo $f $(tail -n 1 $f); done",
    )?;
    for (name, key) in keys.lines().filter_map(|l| l.split_once(' ')) {
        w.lab.on_appliance(&format!("mkdir -p /run/page && echo '{key}' >/run/page/{name}"))?;
    }
    Ok(())
}

pub fn commands_of_the_page_run(w: &mut World) -> Result<()> {
    w.host(2)?;
    let all = commands();
    for command in &all {
        let place = Place::of(command).with_context(|| format!("where is this run? {command}"))?;
        for (_, place, first) in BEFORE.iter().filter(|(key, ..)| key == command) {
            run(w, *place, first).with_context(|| format!("before {command}"))?;
            if first.contains(".key") && *place == Place::Host {
                carry_keys(w)?;
            }
        }
        run(w, place, command).with_context(|| format!("the page's command: {command}"))?;
        if (command.contains(".key") || command.contains(".psk")) && place == Place::Host {
            carry_keys(w)?;
        }
        for (_, shows) in AFTER.iter().filter(|(key, _)| key == command) {
            run(w, Place::Host, shows).with_context(|| format!("it did nothing: {command}"))?;
        }
    }
    println!("     {} commands of docs/targets.md were run", all.len());
    run(
        w,
        Place::Host,
        "systemctl stop rpc-gssd krb5-kdc; rm -f /etc/krb5.keytab; nvme disconnect -n NQN; iscsiadm -m node -T IQN -u; iscsiadm -m node -T IQN -o delete",
    )?;
    for name in ["data", "scsi", "home"] {
        let volume = w.api(w.lab.api.volume(&orlop_api::VolumeRef::Name(name.parse()?)))?;
        w.remove(&volume)?;
    }
    for zone in w.api(w.lab.api.all_zones())? {
        w.api(w.lab.api.delete_zone(&zone.name))?;
    }
    // Other scenarios know it by its NQN alone.
    let host = w.api(w.lab.api.host(&w.host(1)?))?;
    ensure!(host.iqn.is_none() && host.addresses.is_empty(), "{host:?}");
    ensure!(host.authentication.is_none() && host.tls.is_none(), "{host:?}");
    Ok(())
}
