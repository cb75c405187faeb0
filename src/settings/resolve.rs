//! Defaults, a running `kiln dev` or a login, file, environment, flags; then the token's file and the rules. In this order, once.

use std::env;
use std::path::{Path, PathBuf};

use activities::temporal::ClientConfig;
use serde::Deserialize;

use super::{Layers, Logins, Origin, Settings, SettingsError, rules};

/// The settings of this process and where they came from.
pub struct Resolved {
    pub settings: Settings,
    pub layers: Layers,
    /// The settings file that was read, if any.
    pub file: Option<PathBuf>,
}

/// What the command line says about settings.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`; it must exist.
    pub file: Option<PathBuf>,
    /// Flag as written, key, value.
    pub flags: Vec<(String, String, String)>,
    /// Where the ready file of a `kiln dev` on this machine would be; looked at by client commands only.
    pub dev_ready: Option<PathBuf>,
    /// Where the file of `kiln login` would be; looked at by client commands only.
    pub logins: Option<PathBuf>,
}

/// The part of a `kiln dev` ready file that clients use.
#[derive(Debug, Deserialize)]
struct DevReady {
    api: String,
    api_token: String,
}

impl DevReady {
    /// Reads a ready file; `None` when there is none that can be used.
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
}

/// Resolves the settings of this process: its environment and the usual places of `kiln.toml`.
pub fn resolve(overrides: &Overrides) -> Result<Resolved, SettingsError> {
    resolve_from(overrides, &usual_files(), |name| env::var(name).ok(), frontend_of)
}

/// The settings that a file has for another process: no variables of this one's, no flags, and no file that it names is
/// read.
///
/// # Errors
/// When the file cannot be read or breaks a rule.
pub fn of_file(file: &Path) -> Result<Settings, SettingsError> {
    let mut layers = Layers::defaults()?;
    layers.add_file(file, read_file(file)?);
    add_temporal(&mut layers, frontend_of);
    Ok(finish(layers, None)?.settings)
}

/// Address and namespace of Temporal's own client configuration. One that cannot be read has none here: the roles that
/// use it say what is wrong with it.
fn frontend_of(config: &ClientConfig) -> (Option<String>, Option<String>) {
    let profile = config.profile().unwrap_or_default();
    let bare = |address: String| {
        let bare = address.trim_start_matches("https://").trim_start_matches("http://");
        bare.trim_end_matches('/').to_owned()
    };
    (profile.address.map(bare), profile.namespace)
}

/// Where `kiln.toml` is looked for without `--config`; the first one that exists counts, alone.
fn usual_files() -> Vec<PathBuf> {
    let user = user_config().map(|dir| dir.join("kiln/kiln.toml"));
    [Some(PathBuf::from("kiln.toml")), user, Some(PathBuf::from("/etc/kiln/kiln.toml"))].into_iter().flatten().collect()
}

/// The user's directory of settings.
pub(super) fn user_config() -> Option<PathBuf> {
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from).or(home)
}

pub(super) fn resolve_from(
    overrides: &Overrides,
    usual: &[PathBuf],
    lookup: impl Fn(&str) -> Option<String>,
    frontend: impl Fn(&ClientConfig) -> (Option<String>, Option<String>),
) -> Result<Resolved, SettingsError> {
    let mut layers = Layers::defaults()?;
    let file = overrides.file.clone().or_else(|| usual.iter().find(|path| path.is_file()).cloned());
    if let Some(path) = &file {
        layers.add_file(path, read_file(path)?);
    }
    layers.add_variables(lookup);
    for (flag, key, value) in &overrides.flags {
        layers.add_text(key, value, Origin::Flag(flag.clone()));
    }
    add_dev(&mut layers, overrides.dev_ready.as_deref());
    add_login(&mut layers, overrides.logins.as_deref());
    read_token(&mut layers)?;
    add_temporal(&mut layers, frontend);
    finish(layers, file)
}

/// The keys that say which token is sent.
const TOKEN_KEYS: [&str; 2] = ["api.token", "api.token_file"];

/// The token that was stored for the api's address. A token is stored with its address and goes to no other one.
fn add_login(layers: &mut Layers, logins: Option<&Path>) {
    let untouched = TOKEN_KEYS.iter().all(|key| layers.origin(key) == Origin::Default);
    let Some(path) = logins.filter(|_| untouched) else { return };
    if let Some(token) = Logins::read(path).unwrap_or_default().token(layers.text("api.url")) {
        let token = token.reveal().to_owned();
        layers.add_text("api.token", &token, Origin::Login(path.to_owned()));
    }
}

/// Puts what the token's file holds in the place of the token, unless the token itself was set by a later layer.
fn read_token(layers: &mut Layers) -> Result<(), SettingsError> {
    let [token, file] = TOKEN_KEYS.map(|key| layers.is_set(key).then(|| layers.origin(key).rank()));
    if file.is_none() || token > file {
        return Ok(());
    }
    if token == file {
        layers.broken("api.token_file", "set it or api.token, not both".into());
        return Ok(());
    }
    let path = PathBuf::from(layers.text("api.token_file"));
    let text = std::fs::read_to_string(&path).map_err(|source| SettingsError::TokenFile { path, source })?;
    layers.add_text("api.token", text.trim(), layers.origin("api.token_file"));
    Ok(())
}

/// Beside a `kiln dev` no client needs a flag. Its address and token come together or not at all: a token must not go to an
/// address that somebody else chose.
fn add_dev(layers: &mut Layers, ready: Option<&Path>) {
    let untouched = ["api.url"].iter().chain(&TOKEN_KEYS).all(|key| layers.origin(key) == Origin::Default);
    let Some((path, ready)) = ready.filter(|_| untouched).and_then(|path| Some((path, DevReady::read(path)?))) else {
        return;
    };
    layers.add_text("api.url", &ready.api, Origin::Dev(path.to_owned()));
    layers.add_text("api.token", &ready.api_token, Origin::Dev(path.to_owned()));
}

/// What Kiln's own settings leave open, Temporal's client configuration may say.
fn add_temporal(layers: &mut Layers, frontend: impl Fn(&ClientConfig) -> (Option<String>, Option<String>)) {
    if !layers.problems.is_empty() {
        return;
    }
    let Ok(settings) = layers.build() else { return };
    let (address, namespace) = frontend(&settings.temporal.client_config());
    for (key, value) in [("temporal.address", address), ("temporal.namespace", namespace)] {
        if let Some(value) = value.filter(|_| layers.origin(key) == Origin::Default) {
            layers.add_text(key, &value, Origin::Temporal);
        }
    }
}

fn finish(mut layers: Layers, file: Option<PathBuf>) -> Result<Resolved, SettingsError> {
    let settings = if layers.problems.is_empty() { Some(layers.build()?) } else { None };
    if let Some(settings) = &settings {
        for (key, rule) in rules::broken(settings) {
            layers.broken(key, rule);
        }
    }
    match settings {
        Some(settings) if layers.problems.is_empty() => Ok(Resolved { settings, layers, file }),
        _ => Err(SettingsError::Invalid(layers.problems)),
    }
}

fn read_file(path: &Path) -> Result<toml::Table, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    text.parse().map_err(|source| SettingsError::Parse { path: path.to_owned(), source })
}

impl Resolved {
    /// Settings for another process, with what this one was told by flag over them.
    ///
    /// # Errors
    /// When the two together break a rule.
    pub fn flags_over(&self, settings: &Settings) -> Result<Settings, SettingsError> {
        Ok(finish(self.layers.flags_over(settings)?, None)?.settings)
    }

    /// Checks that a role has what it cannot start without.
    pub fn require(&mut self, role: &str, keys: &[&str]) -> Result<(), SettingsError> {
        for key in keys.iter().filter(|key| !self.layers.is_set(key)).copied().collect::<Vec<_>>() {
            let rule = format!("kiln {role} needs it; set it in kiln.toml or {}", super::layers::variable_of(key));
            self.layers.broken(key, rule);
        }
        match std::mem::take(&mut self.layers.problems) {
            none if none.is_empty() => Ok(()),
            problems => Err(SettingsError::Invalid(problems)),
        }
    }
}
