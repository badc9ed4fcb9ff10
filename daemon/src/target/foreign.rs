//! What a target has of others: counted, and listed up to a bound.

use std::collections::BTreeSet;

use orlop_api::{Foreign, ForeignKind};

use super::{Result, TargetError};
use crate::kernel::Deadline;

/// How many things of others are listed of a target: enough for a person to see whose they are.
pub const MOST_LISTED: usize = 100;

/// How many devices are listed of one of them.
pub const MOST_DEVICES: usize = 16;

/// What is not ours, by kind and name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Those that are listed.
    pub listed: Vec<Foreign>,
    /// How many more there are.
    pub more: u64,
}

impl Others {
    /// From all of their names. Devices are asked for of those alone that are listed, so that a target with a great many
    /// things of others does not hold up its lane; what can't be read of one of them is not known of it.
    pub(super) fn list(
        names: BTreeSet<(ForeignKind, String)>,
        deadline: &Deadline,
        mut devices: impl FnMut(ForeignKind, &str) -> Result<BTreeSet<String>>,
    ) -> Result<Self> {
        let more = u64::try_from(names.len().saturating_sub(MOST_LISTED)).unwrap_or(u64::MAX);
        let mut listed = Vec::new();
        for (kind, name) in names.into_iter().take(MOST_LISTED) {
            deadline.check().map_err(|o| TargetError::Deadline("listing what is foreign".into(), o))?;
            let mut found: Vec<String> = match devices(kind, &name) {
                Ok(found) => found.into_iter().collect(),
                Err(error) => {
                    tracing::debug!(name, error = %error, "what it serves can't be read");
                    Vec::new()
                }
            };
            let more_devices = u64::try_from(found.len().saturating_sub(MOST_DEVICES)).unwrap_or(u64::MAX);
            found.truncate(MOST_DEVICES);
            listed.push(Foreign { kind, name, devices: found, more_devices });
        }
        Ok(Self { listed, more })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_beyond_the_bounds_is_counted_and_not_asked() {
        let names = (0..MOST_LISTED + 7).map(|n| (ForeignKind::Export, format!("/{n:03}"))).collect();
        let soon = Deadline::after(Duration::from_secs(20));
        let mut asked = 0;
        let others = Others::list(names, &soon, |_, name| {
            asked += 1;
            match name {
                "/001" => Err(TargetError::Unsupported("this".into())),
                _ => Ok((0..MOST_DEVICES + 2).map(|n| format!("/dev/{n:02}")).collect()),
            }
        });
        let others = others.unwrap();
        assert_eq!((others.listed.len(), others.more, asked), (MOST_LISTED, 7, MOST_LISTED));
        assert_eq!((others.listed[0].devices.len(), others.listed[0].more_devices), (MOST_DEVICES, 2));
        assert!(others.listed[1].devices.is_empty() && others.listed[1].name == "/001");
        let late = Deadline::after(Duration::ZERO);
        late.abandon();
        let names = [(ForeignKind::Export, "/x".to_string())].into();
        let error = Others::list(names, &late, |_, _| Ok(BTreeSet::new())).unwrap_err();
        assert!(matches!(error, TargetError::Deadline(..)));
    }
}
