//! Which appliances there are. A file in TOML, mounted from a ConfigMap; it holds no secret.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::handle::ApplianceName;

/// What the controller is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// At least one.
    pub appliances: Vec<ApplianceConfig>,
}

/// One appliance.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplianceConfig {
    /// What handles of volumes call it, for ever.
    pub name: ApplianceName,
    /// `https://<address>:8443`.
    pub url: String,
    /// The file that holds its token. It is read again when it changes, as are the others.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// In its place: a client certificate that is a token there, in PEM.
    #[serde(default)]
    pub certificate_file: Option<PathBuf>,
    /// The certificate's key.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// Its certificate, or that of an authority, in PEM. Unless given, the machine's authorities count. Read again when it
    /// changes.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Which nodes reach it: those that have all of these labels. All of them unless given.
    #[serde(default)]
    pub segments: BTreeMap<String, String>,
}

/// On which appliances pods of a node may have inline volumes. A pod brings its own token: but where an appliance is must not be
/// its word, because what a node is told to connect to it connects to.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InlineConfig {
    /// None: there are no inline volumes on this node.
    pub appliances: Vec<InlineAppliance>,
}

/// One of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InlineAppliance {
    /// What pods call it.
    pub name: ApplianceName,
    /// See [`ApplianceConfig::url`].
    pub url: String,
    /// See [`ApplianceConfig::ca_file`].
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

fn load<T>(file: &Path, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, String> {
    let at = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let text = std::fs::read_to_string(file).map_err(|e| at(&e))?;
    parse(&text).map_err(|e| at(&e))
}

fn told_apart<'a>(all: impl Iterator<Item = (&'a ApplianceName, &'a str)>) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for (name, url) in all {
        if !names.insert(name) {
            return Err(format!("appliances: {name} is there twice"));
        }
        if !url.starts_with("https://") {
            return Err(format!("appliances: {name}: url must start with https://"));
        }
    }
    match names.is_empty() {
        true => Err("appliances: there is none".into()),
        false => Ok(()),
    }
}

impl InlineConfig {
    /// Reads it, and says what is wrong with it.
    pub fn load(file: &Path) -> Result<Self, String> {
        load(file, Self::parse)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        told_apart(config.appliances.iter().map(|a| (&a.name, a.url.as_str())))?;
        Ok(config)
    }
}

impl Config {
    /// Reads it, and says what is wrong with it.
    pub fn load(file: &Path) -> Result<Self, String> {
        load(file, Self::parse)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        told_apart(config.appliances.iter().map(|a| (&a.name, a.url.as_str())))?;
        for a in &config.appliances {
            let given = (a.token_file.is_some(), a.certificate_file.is_some(), a.key_file.is_some());
            if !matches!(given, (true, false, false) | (false, true, true)) {
                return Err(format!(
                    "appliances: {}: either token_file, or certificate_file and key_file",
                    a.name
                ));
            }
        }
        // Nodes that have a label at all must tell all appliances apart by it: else one would be reached from everywhere.
        let keys: BTreeSet<_> =
            config.appliances.iter().map(|a| a.segments.keys().collect::<Vec<_>>()).collect();
        if keys.len() > 1 {
            return Err("appliances: either all have segments of the same keys, or none has any".into());
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ONE: &str = "[[appliances]]\nname = \"attic\"\nurl = \"https://nas:8443\"\ntoken_file = \"/t\"\n";

    #[test]
    fn appliances_are_read_and_told_apart() {
        let two = format!(
            "{ONE}segments = {{ zone = \"a\" }}\n{}segments = {{ zone = \"b\" }}\n",
            ONE.replace("attic", "cellar")
        );
        let config = Config::parse(&two).unwrap();
        assert_eq!(config.appliances.len(), 2);
        assert_eq!(config.appliances[1].segments["zone"], "b");
        for (bad, says) in [
            (String::new(), "appliances"),
            ("appliances = []".into(), "there is none"),
            (format!("{ONE}{ONE}"), "twice"),
            (ONE.replace("https", "http"), "https://"),
            (ONE.replace("attic", "Attic"), "no appliance's name"),
            (format!("{ONE}token = \"x\"\n"), "token"),
            (ONE.replace("token_file = \"/t\"", ""), "either token_file"),
            (ONE.replace("token_file", "certificate_file"), "either token_file"),
            (format!("{ONE}key_file = \"/k\"\n"), "either token_file"),
            (format!("{ONE}segments = {{ zone = \"a\" }}\n{}", ONE.replace("attic", "cellar")), "same keys"),
        ] {
            let error = Config::parse(&bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn inline_volumes_need_no_credential_here() {
        let one = ONE.replace("token_file = \"/t\"\n", "");
        let config = InlineConfig::parse(&format!("{one}ca_file = \"/c\"\n")).unwrap();
        assert_eq!(config.appliances[0].name.as_str(), "attic");
        for (bad, says) in [
            ("appliances = []".into(), "there is none"),
            (format!("{one}{one}"), "twice"),
            (one.replace("https", "http"), "https://"),
            (ONE.into(), "token_file"),
        ] {
            let error = InlineConfig::parse(&bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
