//! Security of NFS: by what a caller must prove who it is (RFC 2203), and the keys by which the appliance proves itself.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::name::ParseError;

/// A security flavour of NFS. In order: each protects what the one before does, and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Flavour {
    /// A host is believed what users it has.
    Sys,
    /// Who calls is proved by Kerberos.
    Krb5,
    /// And nobody can change what is said.
    Krb5i,
    /// And nobody can read it.
    Krb5p,
}

impl Flavour {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sys, Self::Krb5, Self::Krb5i, Self::Krb5p];

    /// As it is spelled on the wire, and after `sec=`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sys => "sys",
            Self::Krb5 => "krb5",
            Self::Krb5i => "krb5i",
            Self::Krb5p => "krb5p",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The flavours that are let in, each once, the one that a host should take first. Never none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Flavour>", into = "Vec<Flavour>")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = Vec<Flavour>))]
pub struct Security([Option<Flavour>; Flavour::ALL.len()]);

impl Security {
    /// `sys` alone: what there was before there was a choice.
    pub const SYS: Self = Self([Some(Flavour::Sys), None, None, None]);

    /// These, in their order.
    pub fn new(flavours: impl IntoIterator<Item = Flavour>) -> Result<Self, ParseError> {
        let wrong = |reason| Err(ParseError::new("security", "", reason));
        let mut all = [None; Flavour::ALL.len()];
        let mut free = all.iter_mut();
        let mut seen = Vec::new();
        for flavour in flavours {
            match free.next() {
                Some(place) if !seen.contains(&flavour) => *place = Some(flavour),
                _ => return wrong("names a flavour twice"),
            }
            seen.push(flavour);
        }
        if seen.is_empty() { wrong("must name a flavour") } else { Ok(Self(all)) }
    }

    /// Each, in order.
    pub fn flavours(&self) -> impl Iterator<Item = Flavour> {
        self.0.into_iter().flatten()
    }

    /// Whether it lets in who comes by a flavour.
    pub fn lets_in(&self, flavour: Flavour) -> bool {
        self.0.contains(&Some(flavour))
    }

    /// Whether it lets in by every flavour that another does.
    pub fn covers(&self, other: &Self) -> bool {
        other.flavours().all(|flavour| self.lets_in(flavour))
    }

    /// Whether any of it takes Kerberos.
    pub fn is_kerberos(&self) -> bool {
        self.flavours().any(|flavour| flavour != Flavour::Sys)
    }

    /// Whether that is what there was before there was a choice.
    pub fn is_sys(&self) -> bool {
        *self == Self::SYS
    }

    /// What two who must both agree let in: of the flavours of either, those that protect no less than the weakest of
    /// each. Never none.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let least = self.flavours().min().max(other.flavours().min());
        let mut both = [None; Flavour::ALL.len()];
        let mut all: Vec<Flavour> = self.flavours().collect();
        all.extend(other.flavours().filter(|f| !self.lets_in(*f)));
        all.retain(|f| Some(*f) >= least);
        both.iter_mut().zip(all).for_each(|(place, flavour)| *place = Some(flavour));
        Self(both)
    }
}

impl Default for Security {
    fn default() -> Self {
        Self::SYS
    }
}

impl fmt::Display for Security {
    /// As `sec=` has it: `krb5p:krb5i`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<&str> = self.flavours().map(Flavour::as_str).collect();
        f.write_str(&all.join(":"))
    }
}

impl FromStr for Security {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || {
            ParseError::new(
                "security",
                text,
                "must be flavours with : between them, of sys, krb5, krb5i, krb5p",
            )
        };
        let one = |word: &str| Flavour::ALL.into_iter().find(|f| f.as_str() == word).ok_or_else(wrong);
        Self::new(text.split(':').map(one).collect::<Result<Vec<_>, _>>()?)
    }
}

impl TryFrom<Vec<Flavour>> for Security {
    type Error = ParseError;
    fn try_from(flavours: Vec<Flavour>) -> Result<Self, ParseError> {
        Self::new(flavours)
    }
}

impl From<Security> for Vec<Flavour> {
    fn from(security: Security) -> Self {
        security.flavours().collect()
    }
}

/// A keytab: the keys by which a server proves to Kerberos who it is, as `ktutil` and `kadmin` write it (version 2 of MIT's
/// format), with one at least for a principal `nfs/NAME@REALM`. On the wire in base64.
///
/// It is shown nowhere but where it is meant to go: formatting it for people gives `KeytabFile(..)`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeytabFile {
    bytes: Vec<u8>,
    principals: Vec<String>,
}

/// The longest keytab in bytes: a hundred keys are much less.
const LONGEST_KEYTAB: usize = 32 << 10;

impl KeytabFile {
    /// Reads the bytes of a file.
    pub fn new(bytes: Vec<u8>) -> Result<Self, ParseError> {
        // What was given is not repeated: an error is shown and logged.
        let wrong = |reason| Err(ParseError::new("keytab", "(not shown)", reason));
        let read = bytes.len() <= LONGEST_KEYTAB;
        let Some(principals) = read.then(|| principals(&bytes)).flatten() else {
            return wrong("is no keytab of MIT's format, version 2");
        };
        let keytab = Self { bytes, principals };
        if keytab.principals.iter().any(|p| p.starts_with("nfs/")) {
            Ok(keytab)
        } else {
            wrong("has no key for a principal nfs/NAME@REALM")
        }
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }

    /// Whose keys it has: `nfs/storage.example.com@EXAMPLE.COM`. In order, each once. No secret.
    pub fn principals(&self) -> &[String] {
        &self.principals
    }

    /// The realms of these.
    pub fn realms(&self) -> impl Iterator<Item = &str> {
        self.principals.iter().filter_map(|p| p.rsplit_once('@')).map(|(_, realm)| realm)
    }
}

impl Drop for KeytabFile {
    fn drop(&mut self) {
        self.bytes.fill(0);
        // So that clearing what nobody reads again is not left out.
        std::hint::black_box(&self.bytes);
    }
}

impl fmt::Debug for KeytabFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeytabFile(..)")
    }
}

impl TryFrom<String> for KeytabFile {
    type Error = ParseError;
    fn try_from(text: String) -> Result<Self, ParseError> {
        let bytes = STANDARD.decode(&text);
        Self::new(bytes.map_err(|_| ParseError::new("keytab", "(not shown)", "is not base64"))?)
    }
}

impl From<KeytabFile> for String {
    fn from(keytab: KeytabFile) -> Self {
        STANDARD.encode(keytab.expose())
    }
}

/// The principals of a keytab. `None`: it is none.
fn principals(bytes: &[u8]) -> Option<Vec<String>> {
    let mut rest = bytes.strip_prefix(&[5, 2])?;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        // A negative length is a hole where a key was removed; zeros may fill the end.
        if length == 0 {
            break;
        }
        let (entry, behind) = behind.split_at_checked(usize::try_from(length.unsigned_abs()).ok()?)?;
        rest = behind;
        if length > 0 {
            all.push(principal(entry)?);
        }
    }
    all.sort();
    all.dedup();
    Some(all)
}

/// The principal of an entry: a count, the realm, and as many parts of the name, each with its length before it.
fn principal(entry: &[u8]) -> Option<String> {
    fn counted<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
        let (length, behind) = rest.split_first_chunk::<2>()?;
        let (text, behind) = behind.split_at_checked(u16::from_be_bytes(*length).into())?;
        *rest = behind;
        // It goes into answers, logs and files of settings.
        let plain = |b: &u8| b.is_ascii_graphic() && !b"@/#,;\"'\\[]=".contains(b);
        std::str::from_utf8(text).ok().filter(|t| !t.is_empty() && t.bytes().all(|b| plain(&b)))
    }
    let (count, mut rest) = entry.split_first_chunk::<2>()?;
    let realm = counted(&mut rest)?;
    let names: Option<Vec<&str>> = (0..u16::from_be_bytes(*count)).map(|_| counted(&mut rest)).collect();
    // The key behind it is of no interest here, but it must be there.
    names
        .filter(|names| !names.is_empty() && rest.len() > 9)
        .map(|names| format!("{}@{realm}", names.join("/")))
}

/// `PUT /v1/system/keytab`: the keys by which the appliance proves to NFS hosts who it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeytabPut {
    /// The file, in base64.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Byte))]
    pub keytab: KeytabFile,
}

/// Whose keys the appliance has. The keys are not shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Keytab {
    /// Their principals.
    pub principals: Vec<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn security(text: &str) -> Security {
        text.parse().unwrap()
    }

    #[test]
    fn flavours_are_a_list_that_is_never_empty() {
        let two: Security = serde_json::from_str(r#"["krb5p","sys"]"#).unwrap();
        assert_eq!((two.to_string().as_str(), security("krb5p:sys")), ("krb5p:sys", two));
        assert_eq!(serde_json::to_string(&two).unwrap(), r#"["krb5p","sys"]"#);
        assert!(two.is_kerberos() && !Security::SYS.is_kerberos() && Security::default().is_sys());
        assert!(two.covers(&Security::SYS) && !Security::SYS.covers(&two));
        for bad in ["[]", r#"["sys","sys"]"#, r#"["none"]"#, r#""sys""#] {
            assert!(serde_json::from_str::<Security>(bad).is_err(), "{bad}");
        }
        for bad in ["", "sys:", "krb5p:krb5p", "sys,krb5", "sys:krb5:krb5i:krb5p:sys"] {
            assert!(bad.parse::<Security>().is_err(), "{bad}");
        }
        assert_eq!(security("sys:krb5p:krb5i:krb5").flavours().count(), 4);
    }

    #[test]
    fn who_asks_for_more_has_it() {
        for (a, b, both) in [
            ("sys", "krb5p", "krb5p"),
            ("sys:krb5p", "krb5p", "krb5p"),
            ("krb5:krb5p", "krb5i", "krb5p:krb5i"),
            ("sys", "sys", "sys"),
            ("sys:krb5", "sys", "sys:krb5"),
        ] {
            assert_eq!(security(a).and(&security(b)), security(both), "{a} {b}");
        }
        for a in Flavour::ALL {
            for b in Flavour::ALL {
                let (a, b) = (Security::new([a]).unwrap(), Security::new([b]).unwrap());
                assert_eq!(a.and(&b).flavours().min(), a.flavours().chain(b.flavours()).max());
            }
        }
    }

    fn entry(realm: &str, names: &[&str]) -> Vec<u8> {
        let counted = |text: &str| [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat();
        let mut bytes = (names.len() as u16).to_be_bytes().to_vec();
        bytes.extend(counted(realm));
        names.iter().for_each(|name| bytes.extend(counted(name)));
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 18, 0, 4, 1, 2, 3, 4]);
        [&(bytes.len() as i32).to_be_bytes()[..], &bytes].concat()
    }

    fn file(entries: &[Vec<u8>]) -> Vec<u8> {
        [&[5, 2][..], &entries.concat()].concat()
    }

    #[test]
    fn keytabs_are_read_and_not_shown() {
        let nfs = entry("A.B", &["nfs", "storage"]);
        let hole = [&(-8i32).to_be_bytes()[..], &[0xff; 8]].concat();
        let bytes = file(&[hole, nfs.clone(), nfs.clone(), entry("A.B", &["host", "storage"]), vec![0; 4]]);
        let keytab = KeytabFile::new(bytes.clone()).unwrap();
        assert_eq!(keytab.principals(), ["host/storage@A.B", "nfs/storage@A.B"]);
        assert!(keytab.realms().all(|r| r == "A.B"));
        assert_eq!(format!("{keytab:?}"), "KeytabFile(..)");
        let ask: KeytabPut =
            serde_json::from_value(serde_json::json!({ "keytab": STANDARD.encode(&bytes) })).unwrap();
        assert_eq!(ask.keytab.expose(), bytes);
        for bad in [
            vec![],
            vec![5, 1],
            file(&[]),
            file(&[entry("A.B", &["host", "storage"])]),
            file(&[entry("A\nB", &["nfs", "storage"])]),
            file(&[entry("A.B", &["nfs", ""])]),
            file(std::slice::from_ref(&nfs))[..20].to_vec(),
            vec![5, 2, 0x7f, 0xff, 0xff, 0xff, 1],
            vec![5, 2, 0x80, 0, 0, 0],
        ] {
            assert!(KeytabFile::new(bad).is_err());
        }
        let error = KeytabFile::new(file(&[entry("A.B", &["host", "storage"])])).unwrap_err();
        assert!(error.to_string().contains("nfs/NAME@REALM") && error.to_string().contains("(not shown)"));
    }
}
