//! Nodes that prove a secret of Kubernetes.

use anyhow::{Context, Result, bail, ensure};
use orlop_api::client::VolumeFilter;
use orlop_api::{AuthenticationPut, ChapCredentials, ChapPut, HostName, TlsPut};
use orlop_csi::csi::volume_capability::access_mode::Mode;
use orlop_tests::Initiator;
use orlop_tests::cluster::{Claim, Cluster, Kubelet, STATE, initiator, named};
use orlop_tests::csi::{map, mount};
use tonic::Code;

use super::refused;
use crate::world::{World, ZFS};

/// Nodes that prove a secret: by DH-HMAC-CHAP and by CHAP, one way and mutual, and by TLS. Without it, and with another one, a
/// pod waits and hears why; of what was given nothing stays.
pub fn claims_prove_secrets(w: &mut World) -> Result<()> {
    let cluster = Cluster::start(&w.lab)?;
    let node = Kubelet::start(&mut w.lab, 0)?;
    let host: HostName = named(0).parse()?;
    let capability = mount("ext4", Mode::SingleNodeWriter);
    let asks = |protocol| [("pool", ZFS), ("protocol", protocol), ("authentication", "required")];

    let key = |w: &mut World| -> Result<String> {
        let text = initiator(&mut w.lab, 0)?.run("nvme gen-dhchap-key --hmac=1 2>/dev/null")?;
        let line = text.lines().find(|l| l.starts_with("DHHC-1:")).context("no secret")?;
        Ok(line.trim().to_string())
    };
    let (own, theirs, other) = (key(w)?, key(w)?, key(w)?);
    let mut claim = cluster.claim(&w.lab, "dhchap", &asks("nvme"), capability.clone(), None)?;
    let message = refused(cluster.attach(&w.lab, &claim, &node), Code::FailedPrecondition)?;
    ensure!(message.contains("has no secret on appliance"), "{message}");
    let ask = AuthenticationPut {
        key: own.parse()?,
        controller_key: Some(theirs.parse()?),
        hash: Default::default(),
        dh_group: Default::default(),
    };
    w.api(w.lab.api.authenticate_host(&host, &ask))?;
    let wrong = [("dhchapSecret", other.as_str())];
    let one_way = [("dhchapSecret", own.as_str())];
    let impostor = [("dhchapSecret", own.as_str()), ("dhchapControllerSecret", other.as_str())];
    let mutual = [("dhchapSecret", own.as_str()), ("dhchapControllerSecret", theirs.as_str())];
    proves(w, &cluster, &node, &mut claim, &[&wrong, &impostor], &[&one_way, &mutual])?;
    cluster.delete(&w.lab, claim)?;
    w.api(w.lab.api.trust_host(&host))?;

    let [own, theirs, other] = ["secret-of-node-0", "what-orlop-says", "not-what-is-said"];
    let mut claim = cluster.claim(&w.lab, "chap", &asks("iscsi"), capability.clone(), None)?;
    let message = refused(cluster.attach(&w.lab, &claim, &node), Code::FailedPrecondition)?;
    ensure!(message.contains("has no secret on appliance"), "{message}");
    let credentials = |user: &str, secret: &str| -> Result<ChapCredentials> {
        Ok(ChapCredentials { user: user.parse()?, secret: secret.parse()? })
    };
    let ask = ChapPut { host: credentials("node", own)?, target: Some(credentials("orlop", theirs)?) };
    w.api(w.lab.api.chap_host(&host, &ask))?;
    let wrong = [("chapUser", "node"), ("chapSecret", other)];
    let one_way = [("chapUser", "node"), ("chapSecret", own)];
    let both = |theirs| {
        [("chapUser", "node"), ("chapSecret", own), ("chapTargetUser", "orlop"), ("chapTargetSecret", theirs)]
    };
    proves(w, &cluster, &node, &mut claim, &[&wrong, &both(other)], &[&one_way, &both(theirs)])?;
    cluster.delete(&w.lab, claim)?;
    w.api(w.lab.api.no_chap_host(&host))?;

    // By TLS the secret is the kernel's, and the driver never has it.
    let text = initiator(&mut w.lab, 0)?.run("nvme gen-tls-key --hmac=1 2>/dev/null")?;
    let key = text.lines().find(|l| l.starts_with("NVMeTLSkey-1:")).context("no key")?.trim().to_string();
    w.api(w.lab.api.tls_host(&host, &TlsPut { key: key.parse()?, compat: false }))?;
    let claim = cluster.claim(&w.lab, "tls", &[("pool", ZFS)], capability, None)?;
    let context = cluster.attach(&w.lab, &claim, &node)?;
    initiator(&mut w.lab, 0)?.run("keyctl clear %keyring:.nvme")?;
    let without = node.stage_once(&mut w.lab, &claim, &context);
    ensure!(without.is_err(), "it was connected without a key");
    let id = w.api(w.lab.api.volumes(&VolumeFilter::default()))?;
    let volume = id.items.iter().find(|v| claim.volume.volume_id.ends_with(&v.id.to_string()));
    let nqn = volume.and_then(|v| v.nqn.clone()).context("the volume's NQN")?;
    let hostnqn = Initiator::nqn(31)?;
    initiator(&mut w.lab, 0)?.run(&format!(
        "nvme check-tls-key --subsysnqn={nqn} --hostnqn={hostnqn} --identity=1 --insert --keydata={key}"
    ))?;
    node.stage(&mut w.lab, &claim, &context)?;
    node.publish(&mut w.lab, &claim, &context)?;
    let at = initiator(&mut w.lab, 0)?.run("cat /sys/class/nvme/nvme*/address")?;
    ensure!(at.contains("trsvcid=4421") && !at.contains("trsvcid=4420"), "{at}");
    let written = node.write(&mut w.lab, &claim)?;
    ensure!(node.sum(&mut w.lab, &claim)? == written, "other bytes");
    cluster.unmount(&mut w.lab, &claim, &node)?;
    node.has_nothing(&mut w.lab)?;
    cluster.delete(&w.lab, claim)?;
    w.api(w.lab.api.no_tls_host(&host))?;
    initiator(&mut w.lab, 0)?.run("keyctl clear %keyring:.nvme")?;
    node.stop(&mut w.lab)
}

/// A claim that is attached is staged with none of the wrong secrets, and with each of the right ones.
fn proves(
    w: &mut World,
    cluster: &Cluster,
    node: &Kubelet,
    claim: &mut Claim,
    wrong: &[&[(&str, &str)]],
    right: &[&[(&str, &str)]],
) -> Result<()> {
    let name = claim.name.clone();
    let context = cluster.attach(&w.lab, claim, node)?;
    claim.secrets.clear();
    let message = refused(node.stage_once(&mut w.lab, claim, &context), Code::FailedPrecondition)?;
    ensure!(message.contains("asks for a secret"), "{name}: {message}");
    for (n, secrets) in wrong.iter().enumerate() {
        claim.secrets = map(secrets);
        let Err(status) = node.stage_once(&mut w.lab, claim, &context) else {
            bail!("{name}: wrong secrets {n} let it in")
        };
        println!("     {name}, wrong secrets {n}: {:?} {}", status.code(), status.message());
        let told =
            secrets.iter().find(|(key, value)| key.ends_with("Secret") && status.message().contains(value));
        ensure!(told.is_none(), "{name}: the error tells {told:?}");
        node.unstage(&w.lab, claim)?;
        node.has_nothing(&mut w.lab).with_context(|| format!("{name}, wrong secrets {n}"))?;
    }
    for (n, secrets) in right.iter().enumerate() {
        claim.secrets = map(secrets);
        cluster.mount(&mut w.lab, claim, node).with_context(|| format!("{name}, secrets {n}"))?;
        let written = node.write(&mut w.lab, claim)?;
        ensure!(node.sum(&mut w.lab, claim)? == written, "{name}: other bytes");
        cluster.unmount(&mut w.lab, claim, node)?;
        node.has_nothing(&mut w.lab).with_context(|| format!("{name}, secrets {n}"))?;
        cluster.attach(&w.lab, claim, node)?;
    }
    cluster.detach(&w.lab, claim, node)?;
    // Nobody can read them afterwards.
    let all: Vec<&str> = (wrong.iter().chain(right).copied().flatten())
        .filter_map(|(key, value)| key.ends_with("Secret").then_some(*value))
        .collect();
    let places = format!("{STATE} /etc/iscsi /var/lib/iscsi /run/orlop-csi");
    for value in all {
        let found = initiator(&mut w.lab, node.n)?.run(&format!(
            "grep -rlF -e '{value}' {places} 2>/dev/null; journalctl -b --no-pager -o cat | grep -cF -e '{value}'; true"
        ))?;
        ensure!(found.trim() == "0", "{name}: a secret is left: {found}");
    }
    Ok(())
}
