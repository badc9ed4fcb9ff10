//! Hosts that come by TLS (NVMe over TCP with pre-shared keys), with the kernel's own initiator and tlshd on both sides.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{Attachment, ErrorKind, HostName, Nqn, Tls, TlsPut, VolumeRef};
use orlop_tests::{Initiator, Path, nvme, wait_for};

use crate::world::{World, ZFS, refused};

/// The hosts, which no other scenario plays: the one that is tested, and one with a key of its own.
const HOST: u8 = 8;
const OTHER: u8 = 9;
/// Where the appliance begins with TLS, and where it does not.
const SECURE: u16 = 4421;
const PLAIN: u16 = 4420;
const ADDRESS: &str = "10.77.1.1";

/// A key of nvme-cli's own making.
fn new_key(w: &mut World) -> Result<String> {
    let text = w.lab.initiator.run("nvme gen-tls-key --hmac=1 2>/dev/null")?;
    let line = text.lines().find(|l| l.starts_with("NVMeTLSkey-1:")).context("no key")?;
    Ok(line.trim().to_string())
}

fn ask(key: &str, compat: bool) -> Result<TlsPut> {
    Ok(TlsPut { key: key.parse()?, compat })
}

/// Gives the initiator's kernel what a host derives of its key for a volume, and nothing else.
fn insert(w: &mut World, subsystem: &Nqn, host: u8, key: &str, version: u8) -> Result<()> {
    let hostnqn = Initiator::nqn(host)?;
    w.lab.initiator.run(&format!(
        "keyctl clear %keyring:.nvme && nvme check-tls-key --subsysnqn={subsystem} --hostnqn={hostnqn} \
         --identity={version} --insert --keydata={key}"
    ))?;
    Ok(())
}

fn connect(w: &mut World, a: &Attachment, host: u8, port: u16, more: &str) -> Result<Path> {
    w.lab.initiator.connect_with(nvme(a)?.nqn.as_str(), ADDRESS, port, host, more)?;
    let device = w.lab.initiator.device(nvme(a)?.uuid, Duration::from_secs(20))?;
    Ok(Path { device })
}

/// Whether a host gets in so, and reads. It is out again afterwards.
fn gets_in(w: &mut World, a: &Attachment, host: u8, port: u16, more: &str) -> Result<bool> {
    let Ok(path) = connect(w, a, host, port, more) else { return Ok(false) };
    w.lab
        .initiator
        .run(&format!("dd if={} of=/dev/null bs=4k count=1 iflag=direct status=none", path.device))?;
    w.lab.initiator.disconnect(a)?;
    Ok(true)
}

pub fn host_comes_by_tls(w: &mut World) -> Result<()> {
    let volume = w.volume("tls", ZFS, 256)?;
    let host = w.host(HOST)?;
    let (first, second) = (new_key(w)?, new_key(w)?);
    #[allow(clippy::result_large_err, reason = "a test's")]
    let give = |w: &World, ask: TlsPut| w.api(w.lab.api.tls_host(&host, &ask));

    // Whether it comes by TLS can't be changed under its feet.
    let a = w.attach(&volume, HOST)?;
    ensure!(nvme(&a)?.portals.iter().all(|p| !p.tls && p.port == PLAIN), "{a:?}");
    refused(give(w, ask(&first, false)?), ErrorKind::Precondition)?;
    w.detach(&volume, HOST)?;
    let shown = give(w, ask(&first, false)?)?;
    ensure!(shown.tls == Some(Tls::Required { compat: false }), "{shown:?}");
    let a = w.attach(&volume, HOST)?;
    let nqn = nvme(&a)?.nqn.clone();
    ensure!(nvme(&a)?.portals.iter().all(|p| p.tls && p.port == SECURE), "{a:?}");
    ensure!(!nvme(&a)?.portals.is_empty(), "{a:?}");

    // Without TLS at neither of the two, and with it with its own key alone.
    ensure!(!gets_in(w, &a, HOST, PLAIN, "")?, "without TLS where others are served");
    ensure!(!gets_in(w, &a, HOST, SECURE, "")?, "without TLS where it is asked");
    insert(w, &nqn, HOST, &second, 1)?;
    ensure!(!gets_in(w, &a, HOST, SECURE, " --tls")?, "with a wrong key");
    insert(w, &nqn, HOST, &first, 1)?;
    ensure!(!gets_in(w, &a, HOST, PLAIN, " --tls")?, "by TLS where it is not spoken");
    ensure!(gets_in(w, &a, HOST, SECURE, " --tls")?, "not with its key");
    // What nvme-cli 2.13 derives for an identity of version 0.
    insert(w, &nqn, HOST, &first, 0)?;
    ensure!(!gets_in(w, &a, HOST, SECURE, " --tls")?, "this host's tools derive as the specification has it");
    give(w, ask(&first, true)?)?;
    ensure!(gets_in(w, &a, HOST, SECURE, " --tls")?, "not with what old tools derive");

    // Who has no key is not attached beside it, and comes by no other door.
    w.host(2)?;
    let alone = refused(
        w.api(w.lab.api.attach(&VolumeRef::Id(volume.id), &"worker-2".parse()?)),
        ErrorKind::Precondition,
    )?;
    ensure!(alone.dependants == [host.to_string()], "{alone:?}");

    is_one_host_alone(w, &a, &first)?;
    another_key_while_it_writes(w, &a, &host, &first, &second)?;
    stays(w, &a, &second)?;
    shown_to_nobody(w, &[&first, &second])?;
    is_cut_off(w, &a, &second)?;

    w.api(w.lab.api.no_tls_host(&host))?;
    let a = w.attach(&volume, HOST)?;
    ensure!(gets_in(w, &a, HOST, PLAIN, "")?, "not without TLS, where it is not asked any more");
    w.remove(&volume)
}

/// What the kernel does about a host that has a key of its own and calls itself by another's name: it lets it in, so long
/// as the other needs no secret. With one, it does not.
fn is_one_host_alone(w: &mut World, a: &Attachment, key: &str) -> Result<()> {
    let volume = w.volume("tls-other", ZFS, 64)?;
    let (other, theirs) = (w.host(OTHER)?, new_key(w)?);
    w.api(w.lab.api.tls_host(&other, &ask(&theirs, false)?))?;
    let b = w.attach(&volume, OTHER)?;
    // Its own key, for its own volume, to the first host's volume under the first host's name.
    insert(w, &nvme(&b)?.nqn, OTHER, &theirs, 1)?;
    let serial = w
        .lab
        .initiator
        .run("keyctl list %keyring:.nvme | sed -n 's/^ *\\([0-9]*\\): .*/\\1/p' | head -n1")?;
    let with = format!(" --tls --tls_key={}", serial.trim());
    let believed = gets_in(w, a, HOST, SECURE, &with)?;
    println!("     a host with another's TLS key is believed its name: {believed}");
    let secret = w.lab.initiator.run("nvme gen-dhchap-key --hmac=1 2>/dev/null")?;
    let secret = secret.lines().find(|l| l.starts_with("DHHC-1:")).context("no secret")?.trim().to_string();
    let ask = orlop_api::AuthenticationPut {
        key: secret.parse()?,
        controller_key: None,
        hash: Default::default(),
        dh_group: Default::default(),
    };
    let host = w.host(HOST)?;
    w.api(w.lab.api.authenticate_host(&host, &ask))?;
    ensure!(!gets_in(w, a, HOST, SECURE, &with)?, "another host came in with the name of this one");
    insert(w, &nvme(a)?.nqn, HOST, key, 1)?;
    ensure!(!gets_in(w, a, HOST, SECURE, " --tls")?, "with a key and without the secret");
    ensure!(gets_in(w, a, HOST, SECURE, &format!(" --tls --dhchap-secret={secret}"))?, "not with both");
    w.api(w.lab.api.trust_host(&host))?;
    w.remove(&volume)?;
    w.api(w.lab.api.no_tls_host(&other))?;
    Ok(())
}

fn another_key_while_it_writes(
    w: &mut World,
    a: &Attachment,
    host: &HostName,
    first: &str,
    second: &str,
) -> Result<()> {
    insert(w, &nvme(a)?.nqn, HOST, first, 1)?;
    let path = connect(w, a, HOST, SECURE, " --tls")?;
    let sum = w.lab.initiator.write_random(&path, 16)?;
    ensure!(w.lab.initiator.checksum(&path, 16)? == sum, "other bytes came back");
    // Software encryption, in both directions: what is not there is encrypted by nobody.
    let stat = w.lab.on_appliance("grep -E 'TlsCurr(Tx|Rx)Sw' /proc/net/tls_stat")?;
    ensure!(
        stat.lines().all(|l| l.split_whitespace().nth(1).is_some_and(|n| n != "0")),
        "not encrypted: {stat}"
    );
    w.lab.initiator.start_stream("tls", &path, 32 << 20, 20_000)?;
    w.api(w.lab.api.tls_host(host, &ask(second, false)?))?;
    let before = w.lab.initiator.acknowledged("tls")?;
    let initiator = &mut w.lab.initiator;
    wait_for("it to go on", Duration::from_secs(30), || Ok(initiator.acknowledged("tls")? > before + 20))?;
    ensure!(initiator.stream_state("tls")? == "running", "the host had an error");
    initiator.stop_stream("tls")?;
    initiator.disconnect(a)?;
    ensure!(!gets_in(w, a, HOST, SECURE, " --tls")?, "with the key of before");
    insert(w, &nvme(a)?.nqn, HOST, second, 1)?;
    ensure!(gets_in(w, a, HOST, SECURE, " --tls")?, "not with the new key");
    Ok(())
}

/// The same after a restart, which has nothing to do, and after a power cut.
fn stays(w: &mut World, a: &Attachment, key: &str) -> Result<()> {
    w.lab.on_appliance("systemctl restart orlopd")?;
    w.lab.wait_api()?;
    let log = w.lab.on_appliance("journalctl -u orlopd -I --no-pager -o cat")?;
    ensure!(!log.contains("the target was restored"), "a restart had something to do:\n{log}");
    ensure!(gets_in(w, a, HOST, SECURE, " --tls")?, "not with its key after a restart");
    w.lab.power_cycle(|_| {})?;
    ensure!(!gets_in(w, a, HOST, PLAIN, "")?, "without TLS after a power cut");
    insert(w, &nvme(a)?.nqn, HOST, key, 1)?;
    ensure!(gets_in(w, a, HOST, SECURE, " --tls")?, "not with its key after a power cut");
    Ok(())
}

/// No log, no label, no list of processes has a key, and only root sees that there are any.
fn shown_to_nobody(w: &mut World, keys: &[&String]) -> Result<()> {
    let places = w.lab.on_appliance(
        "journalctl -b --no-pager; dmesg; ps auxww; cat /proc/keys; zfs get -H -o value all -r tank/orlop",
    )?;
    for key in keys {
        let body = key.split(':').nth(2).context("a key")?;
        ensure!(!places.contains(body), "a log, a label or a list of processes has a key");
    }
    let seen = w.lab.on_appliance("setpriv --reuid=65534 --regid=65534 --clear-groups cat /proc/keys")?;
    ensure!(!seen.contains("psk"), "somebody else sees: {seen}");
    Ok(())
}

/// A host that writes is fenced, and comes back neither with its old path nor with its key.
fn is_cut_off(w: &mut World, a: &Attachment, key: &str) -> Result<()> {
    let keys = format!("grep -c ' psk .*{}' /proc/keys || true", nvme(a)?.nqn);
    ensure!(w.lab.on_appliance(&keys)?.trim() == "3", "the kernel has not the keys that it should have");
    insert(w, &nvme(a)?.nqn, HOST, key, 1)?;
    let path = connect(w, a, HOST, SECURE, " --tls")?;
    w.lab.initiator.start_stream("tls", &path, 32 << 20, 200_000)?;
    let host = w.host(HOST)?;
    let started = std::time::Instant::now();
    w.api(w.lab.api.detach(&VolumeRef::Id(a.volume), &host))?;
    let took = started.elapsed();
    let written = w.lab.initiator.acknowledged("tls")?;
    println!("     a fence by TLS took {:.2} s", took.as_secs_f64());
    ensure!(w.lab.on_appliance(&keys)?.trim() == "0", "it still has a key");
    ensure!(!gets_in(w, a, HOST, SECURE, " --tls")?, "it came back");
    ensure!(w.lab.initiator.acknowledged("tls")? == written, "it wrote on");
    w.lab.initiator.stop_stream("tls")?;
    w.lab.initiator.forget(a)
}
