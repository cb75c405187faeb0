//! The file: `auths`, `credHelpers`, `credsStore`. Everything else in it is not for us.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use activities::sealed::{Credential, Hidden};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::host_of;

/// As docker decodes: with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConfigFile {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    pub creds_store: Option<String>,
}

/// What the file holds for one registry. Empty when a helper has it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Base64 of `user:password`.
    auth: Option<Hidden>,
    username: Option<String>,
    password: Option<Hidden>,
    identitytoken: Option<Hidden>,
    registrytoken: Option<Hidden>,
}

impl ConfigFile {
    /// # Errors
    /// A sentence that names the file and never quotes it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("{} is no docker configuration: line {line}, column {column}", path.display())
        })
    }

    pub fn helper_for(&self, host: &str) -> Option<&str> {
        self.cred_helpers.iter().find(|(key, _)| host_of(key) == host).map(|(_, name)| name.as_str())
    }

    pub fn entry_for(&self, host: &str) -> Option<&Entry> {
        self.auths.get(host).or_else(|| self.auths.iter().find(|(key, _)| host_of(key) == host).map(|(_, entry)| entry))
    }
}

impl Entry {
    /// What to log in with; `None` for an empty entry.
    pub fn credential(&self) -> Result<Option<Credential>, String> {
        if let Some(token) = some(&self.registrytoken) {
            return Ok(Some(Credential::RegistryToken { registry_token: token.clone() }));
        }
        if let Some(token) = some(&self.identitytoken) {
            return Ok(Some(Credential::IdentityToken { identity_token: token.clone() }));
        }
        if let Some(auth) = some(&self.auth) {
            return decode(auth)
                .map(Some)
                .ok_or_else(|| "its \"auth\" in config.json is not base64 of user:password".into());
        }
        match (&self.username, &self.password) {
            (Some(username), Some(password)) if !username.is_empty() => {
                Ok(Some(Credential::Password { username: username.clone(), password: password.clone() }))
            }
            _ => Ok(None),
        }
    }
}

fn some(text: &Option<Hidden>) -> Option<&Hidden> {
    text.as_ref().filter(|text| !text.reveal().is_empty())
}

fn decode(auth: &Hidden) -> Option<Credential> {
    let bytes = BASE64.decode(auth.reveal().trim()).ok()?;
    let text = String::from_utf8(bytes).ok().map(Hidden::new)?;
    let (username, password) = text.reveal().split_once(':')?;
    // Docker itself has written a trailing zero byte in the past.
    let password = Hidden::new(password.trim_end_matches('\0'));
    Some(Credential::Password { username: username.to_owned(), password })
}
