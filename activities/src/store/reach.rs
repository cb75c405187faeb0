//! How far away the database is, and whether what goes there is protected.

use std::net::IpAddr;
use std::str::FromStr as _;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// How a database URL is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A file, a Unix socket or the loopback.
    Local,
    /// TLS to a server whose certificate is checked.
    Verified,
    /// In plaintext, or over TLS to whatever answers.
    Open,
}

/// How `url` is reached, by itself and PostgreSQL's variables (`PGSSLMODE` …). What is no URL of a database is local:
/// opening it says what is wrong.
pub fn reach(url: &str) -> Reach {
    if !url.starts_with("postgres") {
        return Reach::Local;
    }
    let Ok(options) = PgConnectOptions::from_str(url) else { return Reach::Local };
    let host = options.get_host();
    let on_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match options.get_ssl_mode() {
        _ if on_loopback || options.get_socket().is_some() || host.starts_with('/') => Reach::Local,
        PgSslMode::VerifyCa | PgSslMode::VerifyFull => Reach::Verified,
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer | PgSslMode::Require => Reach::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_checked_certificate_protects_a_database_elsewhere() {
        for (url, expected) in [
            ("sqlite:///var/lib/kiln/kiln.db", Reach::Local),
            ("postgres://kiln@localhost/kiln", Reach::Local),
            ("postgres://kiln@127.0.0.1:5433/kiln?sslmode=disable", Reach::Local),
            ("postgres://kiln@localhost/kiln?host=/run/postgresql", Reach::Local),
            ("postgres://kiln@db.internal/kiln?sslmode=verify-full", Reach::Verified),
            ("postgres://kiln@db.internal/kiln?sslmode=verify-ca", Reach::Verified),
            ("postgres://kiln@db.internal/kiln", Reach::Open),
            ("postgres://kiln@db.internal/kiln?sslmode=require", Reach::Open),
            ("postgres://kiln@127.evil.example/kiln?sslmode=prefer", Reach::Open),
        ] {
            assert_eq!(reach(url), expected, "{url}");
        }
    }
}
