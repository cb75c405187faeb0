//! The wires of a role, and which of them would carry plaintext beyond this machine.
//!
//! What is on the loopback stays on the machine, and so does what a guest sends to its host: the tap between them is
//! no network that anybody else is on (`cell.services_at`). Everything else is TLS, or `tls.allow_plaintext` is set.
//! Registries are no part of this: the hosts of `registry.plain_http` are listed one by one.

use std::net::{IpAddr, Ipv4Addr};

use activities::store::{Reach, reach};
use url::Url;

use super::{Resolved, Settings, SettingsError};

/// What every rule ends with.
const PERMIT: &str = "tls.allow_plaintext = true permits plaintext";

/// A connection that a role makes or takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Temporal,
    Store,
    Storage,
    Api,
    Logs,
    ApiListener,
    LogListener,
    /// The host that a guest passes connections to its loopback on to.
    Services,
}

impl Wire {
    /// The setting that breaks a rule, and the rule, where this wire is plaintext beyond the loopback.
    fn plaintext(self, settings: &Settings) -> Option<(&'static str, String)> {
        let open = |beyond: bool, key, rule: &str| beyond.then(|| (key, format!("{rule}; {PERMIT}")));
        let (api, logs) = (&settings.api, &settings.logs);
        match self {
            Self::Temporal => temporal(settings),
            Self::Store => open(
                reach(settings.store.url.reveal()) == Reach::Open,
                "store.url",
                "must have sslmode=verify-full, as the database is on another machine",
            ),
            Self::Storage => {
                open(is_open_url(&settings.s3.endpoint), "s3.endpoint", "must be https://… beyond the loopback")
            }
            Self::Api => open(is_open_url(&api.url), "api.url", "must be https://… beyond the loopback"),
            Self::Logs => open(
                !logs.tls && is_beyond(&logs.address),
                "logs.address",
                "must be spoken to over TLS beyond the loopback: set logs.tls = true",
            ),
            Self::ApiListener => open(
                is_beyond(&api.listen) && api.tls_cert.as_os_str().is_empty(),
                "api.listen",
                "must have api.tls_cert and api.tls_key, or be on the loopback behind a proxy that ends TLS",
            ),
            Self::LogListener => open(
                is_beyond(&logs.listen) && logs.tls_cert.as_os_str().is_empty(),
                "logs.listen",
                "must have logs.tls_cert and logs.tls_key, or be on the loopback behind a proxy that ends TLS",
            ),
            Self::Services => {
                let far: Option<Ipv4Addr> = settings.cell.services_at.parse().ok();
                let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
                let beyond = far.is_some_and(|far| !far.is_loopback() && !is_gateway(far, &routes));
                open(beyond, "cell.services_at", "must be this guest's gateway, which is its host")
            }
        }
    }
}

fn temporal(settings: &Settings) -> Option<(&'static str, String)> {
    match settings.frontend().is_tls() {
        Err(error) => Some(("temporal.client_config", error.to_string())),
        Ok(true) => None,
        Ok(false) => is_beyond(&settings.temporal.address).then(|| {
            let how = "TEMPORAL_TLS, TEMPORAL_API_KEY or a profile of temporal.toml";
            ("temporal.address", format!("must be spoken to over TLS beyond the loopback ({how}); {PERMIT}"))
        }),
    }
}

impl Resolved {
    /// Checks that none of these wires carries plaintext beyond the loopback, unless that is permitted.
    ///
    /// # Errors
    /// Names each setting that is to blame.
    pub fn check_wires(&mut self, wires: &[Wire]) -> Result<(), SettingsError> {
        for (key, rule) in self.settings.open_wires(wires) {
            self.layers.broken(key, rule);
        }
        match std::mem::take(&mut self.layers.problems) {
            none if none.is_empty() => Ok(()),
            problems => Err(SettingsError::Invalid(problems)),
        }
    }
}

impl Settings {
    /// Those of `wires` that carry plaintext beyond the loopback without permission: the setting and the rule it breaks.
    pub fn open_wires(&self, wires: &[Wire]) -> Vec<(&'static str, String)> {
        let found = wires.iter().filter_map(|wire| wire.plaintext(self));
        // A configuration that cannot be read is no plaintext to permit.
        found.filter(|(key, _)| !self.tls.allow_plaintext || *key == "temporal.client_config").collect()
    }
}

/// Whether a host, by name or address, is this machine and nothing else. Names other than `localhost` may be anywhere.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => address.to_canonical().is_loopback(),
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Whether `host:port` is beyond the loopback. What is not set is nowhere.
fn is_beyond(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    !address.is_empty() && !is_loopback(host)
}

fn is_open_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| url.scheme() == "http" && !url.host_str().is_some_and(is_loopback))
}

/// Whether the routing table (`/proc/net/route`) has `address` as the gateway of a default route.
fn is_gateway(address: Ipv4Addr, table: &str) -> bool {
    let default_gateway = |line: &str| {
        let mut columns = line.split_whitespace().skip(1);
        let (destination, gateway) = (columns.next()?, columns.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        // In the order of bytes of the host, which has every supported platform's lowest byte first.
        (destination == "00000000").then(|| Ipv4Addr::from(gateway.swap_bytes()))
    };
    table.lines().filter_map(default_gateway).any(|gateway| gateway == address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;

    const ALL: [Wire; 7] =
        [Wire::Temporal, Wire::Store, Wire::Storage, Wire::Api, Wire::Logs, Wire::ApiListener, Wire::LogListener];

    fn open(settings: &Settings) -> Vec<&'static str> {
        settings.open_wires(&ALL).into_iter().map(|(key, _)| key).collect()
    }

    fn settings() -> Settings {
        let mut settings = Settings::default();
        settings.temporal.client_config = false;
        settings
    }

    #[test]
    fn the_defaults_stay_on_the_loopback() {
        assert_eq!(open(&settings()), Vec::<&str>::new());
    }

    #[test]
    fn each_wire_beyond_the_loopback_is_tls_or_refused() {
        let mut settings = settings();
        settings.temporal.address = "temporal.internal:7233".into();
        settings.store.url = Secret::new("postgres://kiln@db.internal/kiln");
        settings.s3.endpoint = "http://s3.internal:9000".into();
        settings.api.url = "http://kiln.internal".into();
        settings.api.listen = "0.0.0.0:7080".into();
        settings.logs.address = "kiln.internal:7081".into();
        settings.logs.listen = "[::]:7081".into();
        let all =
            ["temporal.address", "store.url", "s3.endpoint", "api.url", "logs.address", "api.listen", "logs.listen"];
        assert_eq!(open(&settings), all);
        settings.tls.allow_plaintext = true;
        assert_eq!(open(&settings), Vec::<&str>::new());
        settings.tls.allow_plaintext = false;
        settings.store.url = Secret::new("postgres://kiln@db.internal/kiln?sslmode=verify-full");
        settings.s3.endpoint = "https://s3.internal:9000".into();
        settings.api.url = "https://kiln.internal".into();
        settings.api.tls_cert = "/etc/kiln/api.pem".into();
        settings.logs.tls = true;
        settings.logs.tls_cert = "/etc/kiln/logs.pem".into();
        assert_eq!(open(&settings), ["temporal.address"]);
    }

    #[test]
    fn a_client_configuration_that_cannot_be_read_is_never_permitted() {
        let mut settings = settings();
        settings.temporal.client_config = true;
        settings.temporal.config_file = "/no/such/temporal.toml".into();
        settings.tls.allow_plaintext = true;
        assert_eq!(open(&settings), ["temporal.client_config"]);
    }

    #[test]
    fn only_addresses_and_localhost_are_the_loopback() {
        for loopback in ["127.0.0.1", "127.8.9.1", "[::1]", "::1", "LOCALHOST", "::ffff:127.0.0.1"] {
            assert!(is_loopback(loopback), "{loopback}");
        }
        for other in ["127.evil.example", "127.0.0.1.example", "localhost.example", "0.0.0.0", "[::]", "10.0.0.1", ""] {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[test]
    fn a_guests_host_is_its_gateway() {
        let table =
            "Iface\tDestination\tGateway\tFlags\neth0\t00000000\t0103400A\t0003\neth0\t0003400A\t00000000\t0001\n";
        assert!(is_gateway(Ipv4Addr::new(10, 64, 3, 1), table));
        assert!(!is_gateway(Ipv4Addr::new(10, 64, 3, 2), table) && !is_gateway(Ipv4Addr::UNSPECIFIED, "x 1 0"));
    }
}
