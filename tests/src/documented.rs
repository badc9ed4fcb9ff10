//! The commands of docs/targets.md, as they are written there, and what a booted appliance and its initiator need so that
//! each can be run. Pure; a scenario of the system tests runs them.
//!
//! Who adds a command to the page adds what is needed here: nothing, if it runs as it is. A command of a program that
//! [`Place::of`] does not know, and a line of a table here that the page no longer has, fail the tests.

const PAGE: &str = include_str!("../../docs/targets.md");

/// Where a command is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the appliance, by root.
    Appliance,
    /// On the host that uses the volume.
    Host,
}

impl Place {
    /// By the program.
    pub fn of(command: &str) -> Option<Self> {
        match command.split_whitespace().next()? {
            "orlop" => Some(Self::Appliance),
            "nvme" | "iscsiadm" | "mount" => Some(Self::Host),
            _ => None,
        }
    }
}

/// What is small or of this lab in place of what the page says. Longer words first: one may begin with another.
pub const SUBSTITUTES: [(&str, &str); 8] = [
    ("HOSTNQN", "nqn.2014-08.org.nvmexpress:uuid:0190c0de-0000-7000-8000-000000000001"),
    ("ADDRESS", "10.77.1.1"),
    ("10.1.0.0/16 --security", "10.77.1.0/24 --security"),
    ("--address 10.0.0.5", "--address 10.77.1.2"),
    ("10G", "64M"),
    ("NQN", "$(orlop volume get data | sed -n 's/^nqn: *//p')"),
    ("IQN", "$(orlop volume get scsi | sed -n 's/^iqn: *//p')"),
    ("/volumes/ID", "/volumes/$(orlop volume get home | sed -n 's/^id: *//p')"),
];

/// What must be done before a command that the page has in another context, and where.
pub const BEFORE: [(&str, Place, &str); 15] = [
    // The exclusive attachment before it has cut it off.
    ("orlop detach data worker-1", Place::Appliance, "orlop attach data worker-1"),
    (
        "nvme connect -t tcp -a ADDRESS -s 4420 -n NQN -q HOSTNQN --dhchap-secret=$(cat host.key) --dhchap-ctrl-secret=$(cat appliance.key)",
        Place::Appliance,
        "orlop attach data worker-1",
    ),
    ("orlop host tls worker-1 --key-file host.psk", Place::Host, "nvme disconnect -n NQN"),
    ("orlop host tls worker-1 --key-file host.psk", Place::Appliance, "orlop detach data worker-1"),
    // Nobody without a key beside one that has one: it was attached above.
    ("orlop host tls worker-1 --key-file host.psk", Place::Appliance, "orlop detach data worker-2"),
    ("orlop host tls worker-1 --none", Place::Host, "nvme disconnect -n NQN"),
    ("orlop host tls worker-1 --none", Place::Appliance, "orlop detach data worker-1"),
    // It may only read, from above.
    ("orlop attach scsi worker-1", Place::Appliance, "orlop detach scsi worker-1"),
    (
        "orlop host chap worker-1 --user worker-1 --secret-file host.secret",
        Place::Appliance,
        "printf a-good-secret >host.secret; printf another-one-99 >appliance.secret",
    ),
    // To NFSv4 hosts of one name are one host, and the initiators are made of one image.
    ("mount -t nfs4 ADDRESS:/volumes/ID /mnt", Place::Host, "hostname share-0"),
    // A realm, and the appliance's key.
    ("orlop system keytab --file storage.keytab", Place::Host, crate::realm::SET_UP),
    ("orlop system keytab --file storage.keytab", Place::Appliance, "base64 -d storage.key >storage.keytab"),
    // By itself it would come by another flavour.
    ("orlop attach home engineers", Place::Host, "umount /mnt"),
    ("orlop attach home engineers", Place::Appliance, "orlop detach home worker-1"),
    (
        "iscsiadm -m node -T IQN -p ADDRESS:3260 -o new",
        Place::Host,
        "echo InitiatorName=iqn.1993-08.org.debian:01:5cc1ae5fd1a4 >/etc/iscsi/initiatorname.iscsi; \
         systemctl restart iscsid",
    ),
];

/// What shows that a command did what it is for, on the host.
pub const AFTER: [(&str, &str); 5] = [
    (
        "nvme connect -t tcp -a ADDRESS -s 4420 -n NQN -q HOSTNQN --dhchap-secret=$(cat host.key) --dhchap-ctrl-secret=$(cat appliance.key)",
        "nvme list-subsys | grep -q NQN",
    ),
    ("nvme connect -t tcp -a ADDRESS -s 4421 -n NQN -q HOSTNQN --tls", "nvme list-subsys | grep -q NQN"),
    ("iscsiadm -m node -T IQN -p ADDRESS:3260 -l", "iscsiadm -m session | grep -q IQN"),
    (
        "mount -t nfs4 -o sec=krb5p storage.example.com:/volumes/ID /mnt",
        "grep -q ' /mnt .*sec=krb5p' /proc/mounts && grep -q mine /mnt/file && umount /mnt",
    ),
    (
        "mount -t nfs4 ADDRESS:/volumes/ID /mnt",
        "echo mine >/mnt/file && sync -f /mnt/file && grep -q mine /mnt/file",
    ),
];

/// The commands in the page's `sh` blocks, in its order: one a line, what goes on in the next line joined, without comments.
pub fn commands() -> Vec<String> {
    let (mut all, mut inside, mut open) = (Vec::new(), false, String::new());
    for line in PAGE.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
            continue;
        }
        let line = line.split_once(" #").map_or(line, |(command, _)| command).trim();
        if !inside || line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.strip_suffix('\\') {
            Some(begun) => open += begun,
            None => all.push(std::mem::take(&mut open) + line),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_of_the_page_can_be_run_somewhere() {
        let all = commands();
        assert!(all.len() > 20, "{all:#?}");
        assert!(
            all.iter().any(|c| c.contains("--dhchap-ctrl-secret")),
            "what goes on in the next line is lost"
        );
        for command in &all {
            assert!(Place::of(command).is_some(), "where is this run? {command}");
            assert!(
                !command.contains('#') && !command.contains("  ") && !command.ends_with('\\'),
                "{command:?}"
            );
        }
    }

    #[test]
    fn what_is_said_of_commands_is_of_the_pages() {
        let all = commands();
        for key in BEFORE.iter().map(|b| b.0).chain(AFTER.map(|a| a.0)) {
            assert!(all.iter().any(|c| c == key), "the page has no command {key:?}");
        }
        for (word, _) in SUBSTITUTES {
            assert!(all.iter().any(|c| c.contains(word)), "the page has no {word:?}");
        }
    }
}
