//! Where a project may publish, and what it may read. One rule for the api, admit, the cell and publish.
//!
//! | repository | publish | read |
//! |---|---|---|
//! | `<project>` and `<project>/…` in the installation's registry | pattern `own` | pattern `own` |
//! | a shared namespace of that registry, for example a mirror's | no build | every project |
//! | anything else in that registry | a pattern that names it | a pattern that names it |
//! | another registry | `outside` with the build's own credentials, or a pattern that names it | always: that registry decides |
//!
//! A project's default is `own` and `outside`. The installation's registry by another name (an alias in DNS, its address) is
//! not recognised here; its own access control is what stops that.

use std::net::{IpAddr, SocketAddr};

use crate::contract::{ProjectName, RepositoryPattern};

/// The most patterns that a project may have.
pub const REPOSITORY_PATTERNS: usize = 64;

/// Why a repository is not to be used. Names the repository, the project and what would change it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    #[error(
        "project {project} may not {doing} {repository}; its own repositories are {own} and {own}/…, and `kiln projects set \
         {project} --repositories` allows others"
    )]
    Denied { project: ProjectName, doing: &'static str, repository: String, own: String },
    #[error(
        "the build sends no credentials for {host}, so it may not publish there; log in with `docker login {host}`"
    )]
    NoCredentials { host: String },
}

/// Whether the build sends credentials for a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Yes,
    No,
    /// They are sealed; the cell and publish will see.
    Unknown,
}

/// The installation's registry and the rules around it.
#[derive(Debug, Clone, Default)]
pub struct RegistryPolicy {
    /// `host[:port]`; empty when the installation has none.
    pub address: String,
    /// Paths in it that every project may read and no build may write, for example `library/*`.
    pub shared: Vec<String>,
    /// Other registries (`host[:port]`, with wildcards) that builds may publish to without credentials.
    pub open: Vec<String>,
}

impl RegistryPolicy {
    /// Checks that a project with these patterns (none: the default ones) may publish to `host/path`.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub fn may_publish(
        &self,
        project: &ProjectName,
        patterns: &[RepositoryPattern],
        (host, path): (&str, &str),
        sent: Sent,
    ) -> Result<(), NotAllowed> {
        let is_own_registry = self.is_at(host);
        if is_own_registry && self.is_shared(path) {
            return Err(self.denied(project, "publish to", host, path));
        }
        if names(patterns, host, path) || (is_own_registry && has(patterns, "own") && is_own(project, path)) {
            return Ok(());
        }
        if is_own_registry || !has(patterns, "outside") {
            return Err(self.denied(project, "publish to", host, path));
        }
        let is_open = self.open.iter().any(|open| matches(open, host));
        if sent == Sent::No && !is_open { Err(NotAllowed::NoCredentials { host: host.to_owned() }) } else { Ok(()) }
    }

    /// Checks that a project may read `host/path`, for example as the base of an image.
    ///
    /// # Errors
    /// [`NotAllowed::Denied`].
    pub fn may_read(
        &self,
        project: &ProjectName,
        patterns: &[RepositoryPattern],
        (host, path): (&str, &str),
    ) -> Result<(), NotAllowed> {
        let own = has(patterns, "own") && is_own(project, path);
        if !self.is_at(host) || own || self.is_shared(path) || names(patterns, host, path) {
            return Ok(());
        }
        Err(self.denied(project, "read", host, path))
    }

    /// Whether `host` is the installation's registry.
    pub fn is_at(&self, host: &str) -> bool {
        !self.address.is_empty() && canonical(host) == canonical(&self.address)
    }

    /// Whether a path of the installation's registry is one that all projects read.
    pub fn is_shared(&self, path: &str) -> bool {
        self.shared.iter().any(|shared| matches(shared, path))
    }

    fn denied(&self, project: &ProjectName, doing: &'static str, host: &str, path: &str) -> NotAllowed {
        let own = match self.address.as_str() {
            "" => project.to_string(),
            address => format!("{address}/{project}"),
        };
        NotAllowed::Denied { project: project.clone(), doing, repository: format!("{host}/{path}"), own }
    }
}

/// Whether a host, with or without a port, is `localhost` or a loopback address. Any other name is somebody's domain, whatever
/// it starts with and wherever it resolves to.
pub fn is_loopback(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.is_loopback();
    }
    host.split_once(':').map_or(host, |(name, _)| name) == "localhost"
}

/// One spelling for all of a registry's: lower case, without the default port, and one name for the loopback.
fn canonical(host: &str) -> String {
    let lower = host.to_ascii_lowercase();
    if is_loopback(&lower) {
        let port = match lower.parse::<SocketAddr>() {
            Ok(address) => address.port().to_string(),
            Err(_) => lower.strip_prefix("localhost:").unwrap_or_default().to_owned(),
        };
        return format!("loopback:{port}");
    }
    lower.strip_suffix(":443").unwrap_or(&lower).trim_end_matches('.').to_owned()
}

fn has(patterns: &[RepositoryPattern], word: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.as_str() == word)
}

fn is_own(project: &ProjectName, path: &str) -> bool {
    path.strip_prefix(project.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn names(patterns: &[RepositoryPattern], host: &str, path: &str) -> bool {
    let repository = format!("{}/{path}", host.to_ascii_lowercase());
    let mut of_names = patterns.iter().map(RepositoryPattern::as_str).filter(|text| !["own", "outside"].contains(text));
    of_names.any(|pattern| matches(pattern, &repository))
}

/// Whether the pattern stands for the whole text: `*` for anything without `/`, `**` for anything. Takes time by the product of
/// their lengths, whatever the pattern.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    // Which beginnings of the text the pattern so far stands for, by their lengths.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let is_wild = pattern[at] == b'*';
        let is_any = is_wild && pattern.get(at + 1) == Some(&b'*');
        for end in 1..=text.len() {
            let end = if is_wild { end } else { text.len() + 1 - end };
            reached[end] = match is_wild {
                true => reached[end] || (reached[end - 1] && (is_any || text[end - 1] != b'/')),
                false => reached[end - 1] && text[end - 1] == pattern[at],
            };
        }
        reached[0] &= is_wild;
        at += if is_any { 2 } else { 1 };
    }
    reached[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "127.0.0.1:5000";

    fn registry() -> RegistryPolicy {
        RegistryPolicy { address: HOST.into(), shared: vec!["library/*".into()], open: vec!["127.0.0.1:7*".into()] }
    }

    fn patterns(texts: &[&str]) -> Vec<RepositoryPattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn publishes(project: &str, allowed: &[&str], repository: (&str, &str), sent: Sent) -> bool {
        registry().may_publish(&project.parse().unwrap(), &patterns(allowed), repository, sent).is_ok()
    }

    fn reads(project: &str, allowed: &[&str], repository: (&str, &str)) -> bool {
        registry().may_read(&project.parse().unwrap(), &patterns(allowed), repository).is_ok()
    }

    #[test]
    fn in_the_installations_registry_a_project_has_its_own_namespace() {
        for path in ["red", "red/app", "red/app/debug"] {
            assert!(publishes("red", &[], (HOST, path), Sent::No) && reads("red", &[], (HOST, path)), "{path}");
        }
        for path in ["blue", "blue/app", "redder", "redder/app", "library/busybox", "re", "app/red"] {
            assert!(!publishes("red", &[], (HOST, path), Sent::Yes), "{path}");
        }
        for path in ["blue/app", "redder/app", "library/a/b"] {
            assert!(!reads("red", &[], (HOST, path)), "{path}");
        }
        assert!(reads("red", &[], (HOST, "library/busybox")));
    }

    #[test]
    fn another_spelling_of_the_registry_is_no_way_around() {
        for host in ["localhost:5000", "127.9.9.9:5000", "[::1]:5000", "LOCALHOST:5000"] {
            assert!(!publishes("red", &[], (host, "blue/app"), Sent::Yes), "{host}");
            assert!(!reads("red", &[], (host, "blue/app")), "{host}");
        }
        let registry = RegistryPolicy { address: "reg.example".into(), ..RegistryPolicy::default() };
        for host in ["reg.example", "REG.example", "reg.example:443", "reg.example."] {
            assert!(registry.is_at(host), "{host}");
        }
        assert!(!registry.is_at("reg.example:5000") && !RegistryPolicy::default().is_at(""));
    }

    #[test]
    fn outside_a_build_publishes_with_its_own_credentials() {
        let outside = ("ghcr.io", "acme/shop");
        assert!(publishes("red", &[], outside, Sent::Yes) && publishes("red", &[], outside, Sent::Unknown));
        assert!(!publishes("red", &[], outside, Sent::No));
        assert!(publishes("red", &[], ("127.0.0.1:7001", "x/y"), Sent::No), "a registry that is open to all");
        assert!(!publishes("red", &[], ("127.0.0.1:8001", "x/y"), Sent::No));
        assert!(reads("red", &[], outside) && reads("red", &["own"], outside));
        assert!(!publishes("red", &["own"], outside, Sent::Yes));
    }

    #[test]
    fn patterns_replace_the_default() {
        let allowed = ["ghcr.io/acme/*", "127.0.0.1:5000/blue/**"];
        assert!(publishes("red", &allowed, ("ghcr.io", "acme/shop"), Sent::No));
        assert!(!publishes("red", &allowed, ("ghcr.io", "acme/shop/debug"), Sent::Yes));
        assert!(!publishes("red", &allowed, ("ghcr.io", "other/shop"), Sent::Yes));
        assert!(publishes("red", &allowed, (HOST, "blue/a/b"), Sent::No) && reads("red", &allowed, (HOST, "blue/a")));
        assert!(!publishes("red", &allowed, (HOST, "red/app"), Sent::Yes), "own is not listed");
        assert!(!publishes("red", &["**"], (HOST, "library/busybox"), Sent::Yes), "a mirror's namespace is nobody's");
    }

    #[test]
    fn wildcards() {
        for (pattern, text, expected) in [
            ("a/*", "a/b", true),
            ("a/*", "a/", true),
            ("a/*", "a/b/c", false),
            ("a/**", "a/b/c", true),
            ("**", "", true),
            ("a*c", "abbc", true),
            ("a*c", "ac", true),
            ("a*c", "ab", false),
            ("a", "ab", false),
            ("ab", "a", false),
            ("", "", true),
            ("", "a", false),
            ("*b*", "abc", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        assert!(!matches(&"**a".repeat(80), &"ab".repeat(300)), "and this comes to an end");
    }

    #[test]
    fn only_localhost_and_loopback_addresses_are_loopback() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.8.9.1:5000", "[::1]", "[::1]:5000", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "127.evil.example",
            "127.evil.example:5000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "localhost2:80",
            "10.0.0.1:5000",
            "[fe80::1]:5000",
            "127.1",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
