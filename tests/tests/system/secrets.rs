//! Hosts that must prove a secret (DH-HMAC-CHAP), with the kernel's own initiator.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orlop_api::{Attachment, Authentication, AuthenticationPut, ErrorKind, HostName, VolumeRef};
use orlop_tests::{nvme, wait_for};

use crate::world::{World, ZFS, refused};

/// The host, which no other scenario plays: what is left of it is this one's.
const HOST: u8 = 7;

/// A secret of nvme-cli's own making.
fn secret(w: &mut World, hmac: u8) -> Result<String> {
    let text = w.lab.initiator.run(&format!("nvme gen-dhchap-key --hmac={hmac} 2>/dev/null"))?;
    let line = text.lines().find(|l| l.starts_with("DHHC-1:")).context("no secret")?;
    Ok(line.trim().to_string())
}

fn ask(key: &str, controller: Option<&str>) -> Result<AuthenticationPut> {
    Ok(AuthenticationPut {
        key: key.parse()?,
        controller_key: controller.map(str::parse).transpose()?,
        hash: Default::default(),
        dh_group: Default::default(),
    })
}

/// Whether a host that brings these gets in. It is out again afterwards.
fn gets_in(w: &mut World, a: &Attachment, host: u8, key: &str, controller: &str) -> Result<bool> {
    let option = |name: &str, key: &str| {
        if key.is_empty() { String::new() } else { format!(" --dhchap-{name}={key}") }
    };
    let more = option("secret", key) + &option("ctrl-secret", controller);
    let portal =
        nvme(a)?.portals.iter().find(|p| p.address.starts_with("10.77.")).context("no portal")?.clone();
    match w.lab.initiator.connect_with(nvme(a)?.nqn.as_str(), &portal.address, portal.port, host, &more) {
        Err(_) => Ok(false),
        Ok(_) => {
            let device = w.lab.initiator.device(nvme(a)?.uuid, Duration::from_secs(20))?;
            w.lab
                .initiator
                .run(&format!("dd if={device} of=/dev/null bs=4k count=1 iflag=direct status=none"))?;
            w.lab.initiator.disconnect(a)?;
            Ok(true)
        }
    }
}

pub fn host_proves_its_secret(w: &mut World) -> Result<()> {
    let volume = w.volume("secret", ZFS, 256)?;
    let (key, other, theirs) = (secret(w, 1)?, secret(w, 3)?, secret(w, 2)?);
    let host = w.host(HOST)?;
    #[allow(clippy::result_large_err, reason = "a test's")]
    let api = |w: &World, ask: AuthenticationPut| w.api(w.lab.api.authenticate_host(&host, &ask));
    let shown = api(w, ask(&key, None)?)?;
    ensure!(
        matches!(shown.authentication, Some(Authentication::Required { mutual: false, .. })),
        "{shown:?}"
    );
    let a = w.attach(&volume, HOST)?;
    ensure!(!gets_in(w, &a, HOST, "", "")?, "without a secret");
    ensure!(!gets_in(w, &a, HOST, &other, "")?, "with a wrong secret");
    ensure!(gets_in(w, &a, HOST, &key, "")?, "not with its secret");

    // Both ways.
    api(w, ask(&key, Some(&theirs))?)?;
    ensure!(!gets_in(w, &a, HOST, &key, &other)?, "the appliance proved a secret that it does not have");
    ensure!(gets_in(w, &a, HOST, &key, &theirs)?, "not with both secrets");

    // Another secret while it and another host write: nobody notices, and the old one is worth nothing.
    let second = w.attach(&volume, 2)?;
    let other_host = w.lab.others.first_mut().context("a second initiator")?;
    let two = other_host.connect(&second, 2, 1)?;
    other_host.start_stream("second", &two, 128 << 20, 20_000)?;
    let portal =
        nvme(&a)?.portals.iter().find(|p| p.address.starts_with("10.77.")).context("no portal")?.clone();
    let more = format!(" --dhchap-secret={key} --dhchap-ctrl-secret={theirs}");
    w.lab.initiator.connect_with(nvme(&a)?.nqn.as_str(), &portal.address, portal.port, HOST, &more)?;
    let one = orlop_tests::Path { device: w.lab.initiator.device(nvme(&a)?.uuid, Duration::from_secs(20))? };
    w.lab.initiator.start_stream("first", &one, 0, 20_000)?;
    api(w, ask(&other, Some(&theirs))?)?;
    let (first, seconds) = {
        let first = w.lab.initiator.acknowledged("first")?;
        (first, w.lab.others.first_mut().context("a second initiator")?.acknowledged("second")?)
    };
    let initiator = &mut w.lab.initiator;
    wait_for("the first host to go on", Duration::from_secs(30), || {
        Ok(initiator.acknowledged("first")? > first + 20)
    })?;
    ensure!(initiator.stream_state("first")? == "running", "the first host had an error");
    initiator.stop_stream("first")?;
    initiator.disconnect(&a)?;
    let other_host = w.lab.others.first_mut().context("a second initiator")?;
    ensure!(other_host.acknowledged("second")? > seconds, "the second host stands still");
    ensure!(other_host.stream_state("second")? == "running", "the second host had an error");
    other_host.stop_stream("second")?;
    other_host.disconnect(&second)?;
    w.detach(&volume, 2)?;
    ensure!(!gets_in(w, &a, HOST, &key, &theirs)?, "with the secret of before");
    ensure!(gets_in(w, &a, HOST, &other, &theirs)?, "not with the new secret");

    shown_to_nobody(w, &host, &[&key, &other, &theirs])?;
    stays(w, &a, &host, &other, &theirs)?;

    w.api(w.lab.api.trust_host(&host))?;
    ensure!(gets_in(w, &a, HOST, "", "")?, "not without a secret, where none is asked any more");
    w.remove(&volume)?;
    let left = w.lab.on_appliance("ls /sys/kernel/config/nvmet/hosts")?;
    ensure!(!left.contains(nvme(&a)?.host_nqn.as_str()), "left in the kernel: {left}");
    Ok(())
}

/// No log, no label, no answer, no list of processes has one, and only root may look into the kernel's directory.
fn shown_to_nobody(w: &mut World, host: &HostName, secrets: &[&String]) -> Result<()> {
    let answers = format!(
        "{:?} {:?} {:?}",
        w.api(w.lab.api.host(host))?,
        w.api(w.lab.api.system())?,
        w.api(w.lab.api.all_volumes(Default::default()))?
    );
    let places = w.lab.on_appliance(
        "journalctl -b --no-pager; dmesg; ps auxww; zfs get -H -o value all -r tank/orlop; \
         cat /var/lib/orlop/pools/*/volumes/*.json 2>/dev/null; true",
    )?;
    for secret in secrets {
        let body = secret.split(':').nth(2).context("a secret")?;
        ensure!(!answers.contains(body), "an answer has a secret");
        ensure!(!places.contains(body), "a log, a label or a list of processes has a secret");
    }
    let seen = w.lab.on_appliance(
        "setpriv --reuid=65534 --regid=65534 --clear-groups cat /sys/kernel/config/nvmet/hosts/*/dhchap_key 2>&1; \
         setpriv --reuid=65534 --regid=65534 --clear-groups ls /sys/kernel/config/nvmet/hosts 2>&1; true",
    )?;
    ensure!(!seen.contains("DHHC") && seen.contains("Permission denied"), "somebody else sees: {seen}");
    Ok(())
}

/// It is asked after a restart, after a power cut, and where all but the labels is lost nobody gets in.
fn stays(w: &mut World, a: &Attachment, host: &HostName, key: &str, theirs: &str) -> Result<()> {
    w.lab.on_appliance("systemctl restart orlopd")?;
    w.lab.wait_api()?;
    let log = w.lab.on_appliance("journalctl -u orlopd -I --no-pager -o cat")?;
    ensure!(!log.contains("the target was restored"), "a restart had something to do:\n{log}");
    ensure!(!gets_in(w, a, HOST, "", "")?, "without a secret after a restart");
    w.lab.power_cycle(|_| {})?;
    ensure!(!gets_in(w, a, HOST, "", "")?, "without a secret after a power cut");
    ensure!(gets_in(w, a, HOST, key, theirs)?, "not with its secret after a power cut");

    let label = format!("zfs get -H -o value dev.orlop:label tank/orlop/{}", a.volume);
    wait_for("the label to know its host", Duration::from_secs(20), || {
        Ok(w.lab.on_appliance(&label)?.contains("\"authenticated\":true"))
    })?;
    w.lab.on_appliance("systemctl stop orlopd && rm -rf /var/lib/orlop/journal && systemctl start orlopd")?;
    w.lab.wait_api()?;
    for (key, theirs) in [("", ""), (key, theirs)] {
        ensure!(!gets_in(w, a, HOST, key, theirs)?, "it got in though nobody knows its secret");
    }
    ensure!(w.api(w.lab.api.host(host))?.authentication == Some(Authentication::Lost));
    let alarms = w.api(w.lab.api.system())?.alarms;
    ensure!(alarms.iter().any(|a| a.subject == format!("host/{host}/secret")), "{alarms:?}");
    refused(w.api(w.lab.api.attach(&VolumeRef::Id(a.volume), host)), ErrorKind::Precondition)?;
    w.api(w.lab.api.authenticate_host(host, &ask(key, Some(theirs))?))?;
    wait_for("it to be served again", Duration::from_secs(30), || gets_in(w, a, HOST, key, theirs))?;
    ensure!(!gets_in(w, a, HOST, "", "")?, "without a secret when it was given again");
    Ok(())
}
