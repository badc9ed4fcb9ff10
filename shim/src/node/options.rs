//! Mount options as a claim writes them, and as mount(2) takes them. Pure.

use rustix::mount::MountFlags;

/// What mount(2) is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The mount's own.
    pub flags: MountFlags,
    /// The file system's, in one text.
    pub data: String,
}

/// Words that are flags of the mount, and whether they set it.
const FLAGS: [(&str, MountFlags, bool); 16] = [
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("lazytime", MountFlags::LAZYTIME, true),
];

impl Options {
    /// Of a claim. A mount that takes another's place, or shares with one, is no option of a file system.
    pub fn parse<'a>(given: impl IntoIterator<Item = &'a str>, read_only: bool) -> Result<Self, String> {
        let (mut flags, mut data) = (MountFlags::empty(), Vec::new());
        for word in
            given.into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|word| !word.is_empty())
        {
            if ["bind", "rbind", "remount", "move", "shared", "rshared", "slave", "private", "unbindable"]
                .contains(&word)
            {
                return Err(format!("mount_flags: {word:?} is no option of a file system"));
            }
            if word.chars().any(|c| c.is_control()) {
                return Err("mount_flags: there is a control character".into());
            }
            match FLAGS.iter().find(|(name, _, _)| *name == word) {
                Some((_, flag, set)) => flags.set(*flag, *set),
                None if word != "defaults" => data.push(word),
                None => {}
            }
        }
        if read_only {
            flags |= MountFlags::RDONLY;
        }
        Ok(Self { flags, data: data.join(",") })
    }

    /// The same with another one of the file system's.
    #[must_use]
    pub fn with(mut self, option: &str) -> Self {
        if !self.data.is_empty() {
            self.data.push(',');
        }
        self.data.push_str(option);
        self
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn flags_and_texts_are_told_apart() {
        let parse = |words: &[&str], read_only| Options::parse(words.iter().copied(), read_only);
        let both = parse(&["noatime,discard", "nosuid", "commit=30"], false).unwrap();
        assert_eq!(
            both,
            Options { flags: MountFlags::NOATIME | MountFlags::NOSUID, data: "discard,commit=30".into() }
        );
        assert_eq!(parse(&["defaults", ""], true).unwrap().flags, MountFlags::RDONLY);
        // The last word counts, but for one who may only read.
        assert_eq!(parse(&["ro", "rw"], false).unwrap().flags, MountFlags::empty());
        assert_eq!(parse(&["rw"], true).unwrap().flags, MountFlags::RDONLY);
        assert_eq!(
            parse(&["context=\"system_u:object_r:x\""], false).unwrap().with("nouuid").data,
            "context=\"system_u:object_r:x\",nouuid"
        );
        for bad in ["bind", "remount", "discard,move", "x\ny"] {
            parse(&[bad], false).unwrap_err();
        }
    }
}
