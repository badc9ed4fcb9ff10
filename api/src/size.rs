//! Sizes in bytes. On the wire an integer; on a command line also `10G`, `512MiB`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::ParseError;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = u64))]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// 1024 * 1024 bytes.
    pub const MIB: ByteSize = ByteSize(1 << 20);

    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Whether it is a whole number of `unit`s. False for a `unit` of 0.
    pub fn is_multiple_of(self, unit: ByteSize) -> bool {
        self.0.checked_rem(unit.0) == Some(0)
    }
}

const UNITS: [(&str, u32); 6] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50), ("E", 60)];

impl FromStr for ByteSize {
    type Err = ParseError;

    /// A whole number, with an optional unit `K M G T P E` (`Ki`, `KiB` and so on mean the same):
    /// powers of 1024, as in zfs(8) and lvm(8).
    fn from_str(s: &str) -> Result<Self, ParseError> {
        let err = |reason| ParseError::new("size", s, reason);
        let split = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (digits, unit) = s.split_at(split);
        let n: u64 = digits.parse().map_err(|_| err("must be a whole number with an optional unit"))?;
        let unit = unit.strip_suffix("iB").or_else(|| unit.strip_suffix('i')).unwrap_or(unit);
        let shift = match unit {
            "" | "B" => 0,
            u => UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(u))
                .map(|(_, shift)| *shift)
                .ok_or_else(|| err("has an unknown unit: use K, M, G, T, P or E"))?,
        };
        n.checked_mul(1 << shift).map(ByteSize).ok_or_else(|| err("is larger than 2^64 bytes"))
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit with at most one decimal: `10 GiB`, `1.5 TiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().rev().find(|(_, shift)| self.0 >= 1 << shift);
        match unit {
            None => write!(f, "{} B", self.0),
            Some((name, shift)) => {
                // Tenths in integer arithmetic, rounded down: a size is never shown larger than it is.
                let tenths = ((self.0 as u128) * 10) >> shift;
                match tenths % 10 {
                    0 => write!(f, "{} {name}iB", tenths / 10),
                    t => write!(f, "{}.{t} {name}iB", tenths / 10),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parses_units() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("10G", 10 << 30), ("10GiB", 10 << 30), ("1k", 1024), ("7B", 7)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
        }
        for bad in ["", "-1", "1.5G", "G", "10X", "16E", "18446744073709551616", "1 G", "+1"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shows_sizes_rounded_down() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), ((10 << 30) - 1, "9.9 GiB")]
        {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
