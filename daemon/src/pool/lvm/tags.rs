//! Labels as LVM tags: what a logical volume says of itself.
//!
//! Called by the pool. A tag holds at most 1,024 characters of few kinds (lvm(8)), so a label's JSON is
//! spelled in base64 and cut into parts. Each set of parts has a number, and the whole set of the highest
//! number counts: whatever a crash leaves of a change, one label is whole.

use std::collections::BTreeMap;

/// Characters of a label in one tag; the rest is room for the prefix.
const PART: usize = 900;

/// Parts of one label: some 55 KiB of JSON, far more than a hundred hosts take.
const MOST: usize = 80;

/// Before the number of the set.
const PREFIX: &str = "orlop.label.";

/// On what is being made and not whole yet.
pub(super) const NEW: &str = "orlop.new";

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The tags of a label, as set number `set`. `None`: it is too long.
pub(super) fn spell(label: &str, set: u32) -> Option<Vec<String>> {
    let text = encode(label.as_bytes());
    let parts: Vec<&[u8]> = text.as_bytes().chunks(PART).collect();
    let count = parts.len();
    (count <= MOST).then(|| {
        let tag = |(i, part): (usize, &&[u8])| {
            format!("{PREFIX}{set}.{i}.{count}.{}", String::from_utf8_lossy(part))
        };
        parts.iter().enumerate().map(tag).collect()
    })
}

/// What tags say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The label, if there is a whole one.
    pub label: Option<String>,
    /// The number of its set; the next one is larger.
    pub set: u32,
    /// All tags that are parts of labels.
    pub parts: Vec<String>,
    /// Whether it is not whole yet.
    pub new: bool,
}

impl Told {
    /// Whether any of it is from us.
    pub fn is_ours(&self) -> bool {
        self.new || !self.parts.is_empty()
    }
}

/// Reads the tags of a logical volume.
pub(super) fn read(tags: &[String]) -> Told {
    let mut told = Told::default();
    let mut sets: BTreeMap<u32, (usize, BTreeMap<usize, &str>)> = BTreeMap::new();
    for tag in tags {
        if tag == NEW {
            told.new = true;
        }
        let Some(rest) = tag.strip_prefix(PREFIX) else { continue };
        told.parts.push(tag.to_string());
        let mut fields = rest.splitn(4, '.');
        let mut number = || fields.next().and_then(|f| f.parse::<u32>().ok());
        let (Some(set), Some(i), Some(count)) = (number(), number(), number()) else { continue };
        let Some(part) = fields.next() else { continue };
        let entry = sets.entry(set).or_insert((count as usize, BTreeMap::new()));
        entry.1.insert(i as usize, part);
    }
    for (set, (count, parts)) in sets.into_iter().rev() {
        told.set = told.set.max(set);
        if told.label.is_none() && parts.len() == count && parts.keys().copied().eq(0..count) {
            let text: String = parts.into_values().collect();
            told.label = decode(&text).and_then(|bytes| String::from_utf8(bytes).ok());
        }
    }
    told
}

/// base64 of RFC 4648, section 5, without padding: all its characters are good in a tag.
fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..=three.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]));
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for four in text.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for (i, digit) in four.iter().enumerate() {
            let value = DIGITS.iter().position(|d| d == digit)?;
            bits |= u32::try_from(value).ok()? << (18 - 6 * i);
        }
        let all = bits.to_be_bytes();
        bytes.extend_from_slice(&all[1..four.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn labels_come_back_and_tags_are_tags(label in ".{0,3000}", set in 0u32..9) {
            let tags = spell(&label, set).unwrap();
            for tag in &tags {
                prop_assert!(tag.len() <= 1024);
                prop_assert!(tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
            }
            if !label.is_empty() {
                prop_assert_eq!(read(&tags), Told { label: Some(label), set, parts: tags, new: false });
            }
        }
    }

    #[test]
    fn the_newest_whole_set_counts() {
        let long = "x".repeat(2000);
        let (old, new) = (spell("old", 1).unwrap(), spell(&long, 2).unwrap());
        let all = [old.clone(), new.clone()].concat();
        assert_eq!(read(&all).label.as_deref(), Some(long.as_str()));
        let torn = [old, new[1..].to_vec()].concat();
        let told = read(&torn);
        assert_eq!((told.label.as_deref(), told.set), (Some("old"), 2));
        assert!(read(&["mine".into(), NEW.into()]).new && read(&[]).label.is_none());
        assert!(spell(&"x".repeat(100_000), 1).is_none());
    }
}
