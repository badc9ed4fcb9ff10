//! Properties: what a volume's pool does with its data beyond keeping it. Each is parsed once, at the
//! edge, into a type of its own; what is unset is the pool's default.
//!
//! The words are those of zfsprops(7), save for `block_size`, which is its `volblocksize`. Values that
//! would give up what every volume promises (whole data, durable once acknowledged) have no type here, so
//! nothing further in can meet them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::name::ParseError;
use crate::size::ByteSize;

/// Declares how a type travels: as its text.
macro_rules! travels_as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = ParseError;
            fn try_from(s: String) -> Result<Self, ParseError> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

/// Declares an enum of words, each with one spelling.
macro_rules! word_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, {
        $($(#[$about:meta])* $variant:ident = $text:literal,)+
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $name {
            $($(#[$about])* $variant,)+
        }

        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(s: &str) -> Result<Self, ParseError> {
                match s {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(ParseError::new($what, s, $rule)),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)+
                })
            }
        }

        travels_as_text!($name);
    };
}

word_type!(
    /// Whether blocks that are the same are kept once.
    Dedup, "dedup", "must be off, on, verify or sha256", {
        /// Each block is kept.
        Off = "off",
        /// Kept once, told apart by ZFS's default checksum for this.
        On = "on",
        /// As `on`, and compared byte by byte.
        Verify = "verify",
        /// Kept once, told apart by SHA-256.
        Sha256 = "sha256",
    }
);
word_type!(
    /// What blocks are checked by when they are read. There is no `off`.
    Checksum, "checksum",
    "must be on, fletcher4, sha256, sha512, skein, blake3 or edonr: data without a checksum can rot unseen, so none of the others is taken",
    {
        /// The pool's own choice.
        On = "on",
        /// Fletcher's, of fourth order.
        Fletcher4 = "fletcher4",
        /// SHA-256.
        Sha256 = "sha256",
        /// SHA-512/256.
        Sha512 = "sha512",
        /// Skein.
        Skein = "skein",
        /// BLAKE3.
        Blake3 = "blake3",
        /// Edon-R.
        Edonr = "edonr",
    }
);
word_type!(
    /// What synchronous writes are tuned for. Both are durable once they are acknowledged.
    Logbias, "logbias", "must be latency or throughput", {
        /// Written to the log device, if there is one, and answered.
        Latency = "latency",
        /// Written to where they stay.
        Throughput = "throughput",
    }
);
word_type!(
    /// When a write is acknowledged: when it is durable, and never before. An initiator that lost its
    /// target does not learn that the target's cache went with it, so `standard` and `disabled` would
    /// lose data that it believes to be safe.
    SyncWrites, "sync",
    "must be always: a write is acknowledged when it is durable, and an initiator could not know that it no longer is",
    {
        /// When it is durable.
        Always = "always",
    }
);

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Compression {
    /// Not at all.
    Off,
    /// ZFS's own choice.
    On,
    /// LZ4.
    Lz4,
    /// Zstandard at ZFS's own choice of level.
    Zstd,
    /// Zstandard at a level, 1 to 19.
    ZstdLevel(u8),
    /// Zstandard's fast levels: 1 to 10, tens up to 100, 500 and 1000.
    ZstdFast(u16),
    /// gzip at a level, 1 to 9.
    Gzip(u8),
    /// LZJB.
    Lzjb,
    /// Runs of zeros only.
    Zle,
}

impl FromStr for Compression {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Self, ParseError> {
        const RULE: &str = "must be off, on, lz4, zstd, zstd-1 to zstd-19, zstd-fast-N, gzip-1 to gzip-9, \
                            lzjb or zle";
        // One level, one spelling: no sign, no leading zero.
        fn level<T: FromStr>(text: &str) -> Option<T> {
            (text.as_bytes().first()?.is_ascii_digit() && !text.starts_with('0')).then_some(())?;
            text.parse().ok()
        }
        let parsed = match s {
            "off" => Some(Self::Off),
            "on" => Some(Self::On),
            "lz4" => Some(Self::Lz4),
            "zstd" => Some(Self::Zstd),
            "lzjb" => Some(Self::Lzjb),
            "zle" => Some(Self::Zle),
            // What ZFS calls these two levels, and reads them back as.
            "gzip" => Some(Self::Gzip(6)),
            "zstd-fast" => Some(Self::ZstdFast(1)),
            _ => match (s.strip_prefix("zstd-fast-"), s.strip_prefix("zstd-"), s.strip_prefix("gzip-")) {
                (Some(n), ..) => level(n)
                    .filter(|n| {
                        matches!(n, 1..=10 | 20 | 30 | 40 | 50 | 60 | 70 | 80 | 90 | 100 | 500 | 1000)
                    })
                    .map(Self::ZstdFast),
                (_, Some(n), _) => level(n).filter(|n| matches!(n, 1..=19)).map(Self::ZstdLevel),
                (.., Some(n)) => level(n).filter(|n| matches!(n, 1..=9)).map(Self::Gzip),
                _ => None,
            },
        };
        parsed.ok_or_else(|| ParseError::new("compression", s, RULE))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On => f.write_str("on"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd => f.write_str("zstd"),
            Self::ZstdLevel(n) => write!(f, "zstd-{n}"),
            Self::ZstdFast(n) => write!(f, "zstd-fast-{n}"),
            Self::Gzip(n) => write!(f, "gzip-{n}"),
            Self::Lzjb => f.write_str("lzjb"),
            Self::Zle => f.write_str("zle"),
        }
    }
}

travels_as_text!(Compression);

/// The size of a volume's blocks in its pool: a power of two from 4 KiB to 128 KiB. A number of bytes on
/// the wire, as all sizes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "ByteSize", into = "ByteSize")]
pub struct BlockSize(ByteSize);

impl BlockSize {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0.bytes()
    }
}

impl TryFrom<ByteSize> for BlockSize {
    type Error = ParseError;
    fn try_from(size: ByteSize) -> Result<Self, ParseError> {
        if size.bytes().is_power_of_two() && (4 << 10..=128 << 10).contains(&size.bytes()) {
            return Ok(Self(size));
        }
        let rule = "must be a power of two from 4 KiB (4096) to 128 KiB (131072)";
        Err(ParseError::new("block size", &size.bytes().to_string(), rule))
    }
}

impl From<BlockSize> for ByteSize {
    fn from(size: BlockSize) -> ByteSize {
        size.0
    }
}

impl FromStr for BlockSize {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Self, ParseError> {
        s.parse::<ByteSize>()?.try_into()
    }
}

impl fmt::Display for BlockSize {
    /// As it can be parsed again: `16K`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}K", self.bytes() >> 10)
    }
}

/// Declares the properties: their names, types and some of their values, for completions.
macro_rules! properties {
    ($($(#[$doc:meta])* $variant:ident, $field:ident: $type:ty as $schema:ident, [$($value:literal),+];)+) => {
        /// Properties of a volume. Those that are not given are as the pool's default has them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct Properties {
            $($(#[$doc])*
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "openapi", schema(value_type = $schema, required = false))]
            pub $field: Option<$type>,)+
        }

        /// The properties, by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Property {
            $($(#[$doc])* $variant,)+
        }

        impl Property {
            /// All of them, in the order that they are shown in.
            pub const ALL: &'static [Property] = &[$(Self::$variant,)+];

            /// As it is spelled on the wire and on the command line.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($field),)+ }
            }

            /// The field that it is, in a request for a volume.
            pub const fn field(self) -> &'static str {
                match self { $(Self::$variant => concat!("properties.", stringify!($field)),)+ }
            }

            /// Texts that set it; of levels, some.
            pub const fn settings(self) -> &'static [&'static str] {
                match self {
                    $(Self::$variant => &[$(concat!(stringify!($field), "=", $value),)+],)+
                }
            }
        }

        impl Properties {
            /// The text of one, if it is set.
            pub fn get(&self, property: Property) -> Option<String> {
                match property { $(Property::$variant => self.$field.map(|v| v.to_string()),)+ }
            }

            /// Sets one from its text.
            pub fn set(&mut self, property: Property, text: &str) -> Result<(), ParseError> {
                match property { $(Property::$variant => self.$field = Some(text.parse()?),)+ }
                Ok(())
            }

            /// These, and over them those that `over` sets.
            #[must_use]
            pub fn with(self, over: Self) -> Self {
                Self { $($field: over.$field.or(self.$field),)+ }
            }

            /// Those of these that `of` sets too.
            #[must_use]
            pub fn only(self, of: Self) -> Self {
                Self { $($field: self.$field.filter(|_| of.$field.is_some()),)+ }
            }
        }

        /// How properties are read when they are asked for: what is unknown or empty is refused, where
        /// what is shown or stored may know more than its reader.
        #[derive(Deserialize)]
        #[serde(remote = "Properties", deny_unknown_fields)]
        struct Asked {
            $(#[serde(default, deserialize_with = "given")]
            $field: Option<$type>,)+
        }
    };
}

properties! {
    /// How blocks are compressed: `off`, `on`, `lz4`, `zstd`, `zstd-1` to `zstd-19`, `zstd-fast-1` to
    /// `zstd-fast-1000`, `gzip-1` to `gzip-9`, `lzjb` or `zle`.
    Compression, compression: Compression as String,
        ["off", "on", "lz4", "zstd", "zstd-9", "zstd-19", "zstd-fast-1", "gzip-6", "gzip-9", "lzjb", "zle"];
    /// Whether blocks that are the same are kept once: `off`, `on`, `verify` or `sha256`.
    Dedup, dedup: Dedup as String, ["off", "on", "verify", "sha256"];
    /// The size of its blocks in bytes, a power of two from 4096 to 131072; set when the volume is made
    /// and never changed. Its size is a whole number of these.
    BlockSize, block_size: BlockSize as u64, ["4K", "8K", "16K", "32K", "64K", "128K"];
    /// What blocks are checked by: `on`, `fletcher4`, `sha256`, `sha512`, `skein`, `blake3` or `edonr`.
    Checksum, checksum: Checksum as String,
        ["on", "fletcher4", "sha256", "sha512", "skein", "blake3", "edonr"];
    /// What synchronous writes are tuned for: `latency` or `throughput`.
    Logbias, logbias: Logbias as String, ["latency", "throughput"];
    /// When a write is acknowledged: `always` when it is durable.
    Sync, sync: SyncWrites as String, ["always"];
}

/// For `deserialize_with` of what is asked.
pub(crate) fn asked<'de, D: Deserializer<'de>>(from: D) -> Result<Properties, D::Error> {
    Asked::deserialize(from)
}

/// A value that is named is one: `null` is none, and would change nothing without a word.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl Properties {
    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those that are set, with their texts.
    pub fn iter(&self) -> impl Iterator<Item = (Property, String)> + use<> {
        let these = *self;
        Property::ALL.iter().filter_map(move |p| Some((*p, these.get(*p)?)))
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Properties {
    /// `compression=zstd block_size=16K`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (property, text)) in self.iter().enumerate() {
            write!(f, "{}{property}={text}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl FromStr for Properties {
    type Err = ParseError;

    /// One of them, as a command line has it: `compression=zstd`.
    fn from_str(s: &str) -> Result<Self, ParseError> {
        let (name, value) =
            s.split_once('=').ok_or_else(|| ParseError::new("property", s, "must be NAME=VALUE"))?;
        let unknown = || {
            let names = "must be compression, dedup, block_size, checksum, logbias or sync";
            ParseError::new("property", name, names)
        };
        let property = Property::ALL.iter().find(|p| p.as_str() == name).ok_or_else(unknown)?;
        let mut one = Self::default();
        one.set(*property, value)?;
        Ok(one)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ALL: &str = r#"{"compression":"zstd-19","dedup":"verify","block_size":65536,"checksum":"blake3","logbias":"throughput","sync":"always"}"#;

    #[test]
    fn all_read_and_write_the_same() {
        let all: Properties = serde_json::from_str(ALL).unwrap();
        assert_eq!(serde_json::to_string(&all).unwrap(), ALL);
        assert_eq!(
            all.to_string(),
            "compression=zstd-19 dedup=verify block_size=64K checksum=blake3 logbias=throughput sync=always"
        );
        let parsed =
            all.to_string().split(' ').fold(Properties::default(), |p, one| p.with(one.parse().unwrap()));
        assert_eq!(parsed, all);
        assert_eq!(serde_json::to_string(&Properties::default()).unwrap(), "{}");
    }

    #[test]
    fn every_value_that_is_offered_is_one() {
        for property in Property::ALL {
            for text in property.settings() {
                let one: Properties = text.parse().unwrap();
                assert_eq!(one.to_string(), *text);
                assert!(one.get(*property).is_some());
            }
        }
    }

    #[test]
    fn a_level_has_one_spelling() {
        for (text, same) in [("gzip", "gzip-6"), ("zstd-fast", "zstd-fast-1"), ("zstd", "zstd")] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), same);
        }
        for text in [
            "zstd-0",
            "zstd-20",
            "zstd-03",
            "zstd-+3",
            "zstd-",
            "gzip-0",
            "gzip-10",
            "zstd-fast-11",
            "zstd-fast-2000",
            "LZ4",
            "lz4 ",
            "",
        ] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }

    #[test]
    fn blocks_are_powers_of_two() {
        for (text, bytes) in [("4K", 4096), ("16384", 16384), ("128KiB", 131_072)] {
            assert_eq!(text.parse::<BlockSize>().unwrap().bytes(), bytes);
        }
        for text in ["0", "512", "2K", "12K", "256K", "16M", "x"] {
            assert!(text.parse::<BlockSize>().is_err(), "{text}");
        }
    }

    /// What gives up a promise is refused, with the reason.
    #[test]
    fn promises_are_kept() {
        let why = |text: &str| text.parse::<Properties>().unwrap_err().to_string();
        assert!(why("checksum=off").contains("can rot unseen"));
        for value in ["standard", "disabled"] {
            assert!(why(&format!("sync={value}")).contains("acknowledged when it is durable"));
        }
        assert!(why("compression").contains("NAME=VALUE"));
        for property in Property::ALL {
            assert!(why("recordsize=1M").contains(property.as_str()), "{property}");
        }
    }

    #[test]
    fn what_is_asked_is_strict_and_what_is_shown_is_not() {
        #[derive(Debug, Deserialize)]
        struct Ask {
            #[serde(default, deserialize_with = "asked")]
            properties: Properties,
        }
        let ask = |text: &str| {
            serde_json::from_str::<Ask>(&format!(r#"{{"properties":{text}}}"#)).map(|a| a.properties)
        };
        assert_eq!(ask(ALL).unwrap(), serde_json::from_str(ALL).unwrap());
        for bad in [r#"{"recordsize":4096}"#, r#"{"compression":null}"#, r#"{"dedup":1}"#, "null"] {
            assert!(ask(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Ask>("{}").unwrap().properties.is_empty());
        assert!(serde_json::from_str::<Properties>(r#"{"later":1}"#).unwrap().is_empty());
    }

    #[test]
    fn one_set_lies_over_another() {
        let p = |text: &str| text.parse::<Properties>().unwrap();
        let both = p("compression=lz4").with(p("logbias=latency")).with(p("compression=off"));
        assert_eq!(both.to_string(), "compression=off logbias=latency");
        assert_eq!(both.only(p("logbias=throughput")).to_string(), "logbias=latency");
    }
}
