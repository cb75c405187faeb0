//! Failures of registries and other servers, recognised in the text of an error: BuildKit gives them no details.

use regex::Regex;
use std::sync::LazyLock;

/// A registry, or another server, that did not do what the build needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryFailure {
    pub status: RegistryStatus,
    /// `host[:port]`, where the message names a URL.
    pub host: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegistryStatus {
    /// 401: no or wrong credentials.
    Unauthorized,
    /// 403, or a token without the needed scope.
    Denied,
    /// 404: no such repository, tag or content.
    NotFound,
    /// 429.
    RateLimited,
    /// 5xx, by its number.
    Server(u16),
    /// Another status that says no, by its number.
    Rejected(u16),
    /// Nobody listens there.
    Refused,
    /// The connection broke.
    Reset,
    /// The host's name cannot be resolved.
    Dns,
    Timeout,
    /// Its token server, or what that answered, is refused by the session's token transport.
    TokenServer,
    /// No TLS connection: a certificate that is not trusted, plain HTTP.
    Tls,
    /// It failed in another way.
    Other,
}

impl RegistryStatus {
    /// Whether it may well work a little later.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::RateLimited | Self::Server(_) | Self::Refused | Self::Reset | Self::Dns | Self::Timeout | Self::Other
        )
    }

    fn of_code(code: u16) -> Self {
        match code {
            401 => Self::Unauthorized,
            403 => Self::Denied,
            404 => Self::NotFound,
            408 => Self::Timeout,
            429 => Self::RateLimited,
            500..=599 => Self::Server(code),
            _ => Self::Rejected(code),
        }
    }
}

/// How Go begins what went wrong with a name, whatever it was: also a resolver that is refused or silent.
const LOOKUP: &str = "dial tcp: lookup ";
/// Words that only errors of talking to a server have.
const MARKERS: [&str; 18] = [
    "failed to push ",
    "failed to resolve source metadata for ",
    "failed to do request: ",
    "failed to authorize",
    "failed to fetch oauth token",
    "failed to fetch anonymous token",
    "pull access denied",
    "push access denied",
    "httpReadSeeker",
    "unexpected status",
    "invalid response status ",
    "registry cache importer",
    "error writing manifest",
    "failed commit on ref",
    "dial tcp ",
    LOOKUP,
    "Could not resolve host",
    "could not fetch content",
];

/// As this crate's own errors say it.
const TOKEN_SERVER: &str = " token: token server refused";

/// Recognised in this order: the first that is found.
const SIGNS: [(&str, RegistryStatus); 28] = [
    (LOOKUP, RegistryStatus::Dns),
    ("could not resolve host", RegistryStatus::Dns),
    ("insufficient_scope", RegistryStatus::Denied),
    ("access denied", RegistryStatus::Denied),
    ("denied: ", RegistryStatus::Denied),
    ("unauthorized", RegistryStatus::Unauthorized),
    ("authentication required", RegistryStatus::Unauthorized),
    ("toomanyrequests", RegistryStatus::RateLimited),
    ("too many requests", RegistryStatus::RateLimited),
    ("connection refused", RegistryStatus::Refused),
    ("connection reset", RegistryStatus::Reset),
    ("broken pipe", RegistryStatus::Reset),
    ("unexpected eof", RegistryStatus::Reset),
    ("server closed", RegistryStatus::Reset),
    ("no such host", RegistryStatus::Dns),
    ("server misbehaving", RegistryStatus::Dns),
    ("name resolution", RegistryStatus::Dns),
    ("dns error", RegistryStatus::Dns),
    ("i/o timeout", RegistryStatus::Timeout),
    ("timed out", RegistryStatus::Timeout),
    ("handshake timeout", RegistryStatus::Timeout),
    ("deadline exceeded", RegistryStatus::Timeout),
    ("x509: ", RegistryStatus::Tls),
    ("tls: ", RegistryStatus::Tls),
    ("certificate", RegistryStatus::Tls),
    ("server gave http response to https client", RegistryStatus::Tls),
    (": eof", RegistryStatus::Reset),
    (": not found", RegistryStatus::NotFound),
];

#[expect(clippy::expect_used, reason = "constant expressions, each used by a test")]
static STATUS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?:unexpected status(?: code)?|response status)[^\n]*?(?:: |\s)([1-5][0-9]{2})\b").expect("constant")
});
#[expect(clippy::expect_used, reason = "constant expressions, each used by a test")]
static HOST: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"https?://([^/\s"?]+)"#).expect("constant"));

/// What a message says about a server; `None` when it is not about one.
pub(super) fn recognise(message: &str) -> Option<RegistryFailure> {
    MARKERS.iter().any(|marker| message.contains(marker)).then(|| RegistryFailure {
        status: status(message),
        host: HOST.captures(message).map(|found| found[1].to_owned()),
    })
}

fn status(message: &str) -> RegistryStatus {
    if message.contains(TOKEN_SERVER) {
        return RegistryStatus::TokenServer;
    }
    let code = STATUS.captures(message).and_then(|found| found[1].parse().ok());
    if let Some(code) = code {
        return RegistryStatus::of_code(code);
    }
    let message = message.to_ascii_lowercase();
    SIGNS.iter().find(|(sign, _)| message.contains(sign)).map_or(RegistryStatus::Other, |(_, status)| *status)
}
