//! Settings as the parts that the `activities` crate asks for.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use activities::clock::ClockSettings;
use activities::dns::DnsSettings;
use activities::egress::{Egress, EgressError, Policy};
use activities::logs::Receiver;
use activities::objects::{ObjectError, ObjectSettings, ObjectStore, Patience, Problem};
use activities::snapshots::Caps;
use activities::temporal::{ClientConfig, Frontend};
use activities::trust::{Trust, TrustError};
use url::Url;

use super::{Registry, Settings, Temporal};
use crate::cell::NetworkAsked;

impl Temporal {
    /// Temporal's own client configuration, as these settings have it read.
    pub fn client_config(&self) -> ClientConfig {
        let file = Some(&self.config_file).filter(|file| !file.as_os_str().is_empty()).cloned();
        let profile = Some(&self.profile).filter(|profile| !profile.is_empty()).cloned();
        if self.client_config { ClientConfig::Used { file, profile } } else { ClientConfig::Unused }
    }
}

impl Settings {
    /// Temporal's frontend, and where its client configuration is.
    pub fn frontend(&self) -> Frontend {
        let Temporal { address, namespace, .. } = &self.temporal;
        Frontend { address: address.clone(), namespace: namespace.clone(), config: self.temporal.client_config() }
    }

    /// The log receiver, as a builder reaches it.
    ///
    /// # Errors
    /// When `tls.ca` cannot be used.
    pub fn log_receiver(&self) -> Result<Receiver, TrustError> {
        match self.logs.tls {
            true => Ok(Receiver::tls(&self.logs.address, self.trust()?.client()?)),
            false => Ok(Receiver::plain(&self.logs.address)),
        }
    }

    /// Whom this process trusts beside the system's authorities.
    ///
    /// # Errors
    /// When `tls.ca` cannot be read or holds no certificate.
    pub fn trust(&self) -> Result<Trust, TrustError> {
        match self.tls.ca.as_os_str().is_empty() {
            true => Ok(Trust::default()),
            false => Trust::with_file(&self.tls.ca),
        }
    }

    /// A client for requests of a role to the api.
    ///
    /// # Errors
    /// When `tls.ca` cannot be used.
    pub fn http_client(&self) -> Result<reqwest::Client, TrustError> {
        Ok(self.trust()?.http(activities::objects::http_builder())?.build()?)
    }

    /// The installation's bucket.
    pub fn objects(&self) -> Result<ObjectStore, ObjectError> {
        let unusable = |error: TrustError| {
            let why = activities::failure::with_source(&error);
            ObjectError::new(&self.s3.bucket, Problem::Settings(why))
        };
        let settings = ObjectSettings {
            endpoint: self.s3.endpoint.clone(),
            region: self.s3.region.clone(),
            bucket: self.s3.bucket.clone(),
            access_key: self.s3.access_key.clone(),
            secret_key: self.s3.secret_key.reveal().to_owned(),
            patience: Patience::default(),
        };
        ObjectStore::trusting(settings, &self.trust().map_err(unusable)?)
    }

    /// The client for URLs that builds and registries choose; `agent` is its `User-Agent`.
    pub fn egress(&self, agent: &str) -> Result<Egress, EgressError> {
        let Registry { address, plain_http, mirror, .. } = &self.registry;
        let own = [address, mirror].into_iter().chain(plain_http).filter(|host| !host.is_empty());
        // What is listed has passed the rules; a registry's host that is none is not reached either.
        let listed = own.chain(&self.egress.allow).filter_map(|entry| entry.parse().ok()).collect();
        Egress::new(Policy { listed, loopback_registries: self.egress.loopback_registries }, agent)
    }

    /// The loopback addresses at which a cell's builder and buildkitd expect services.
    pub fn loopback_services(&self) -> BTreeSet<SocketAddr> {
        let urls = [&self.api.url, &self.s3.endpoint, &self.telemetry.otlp_endpoint];
        let url = |text: &&String| {
            let url = Url::parse(text).ok()?;
            Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
        };
        let addresses = [&self.temporal.address, &self.logs.address, &self.registry.address, &self.guest.mirror];
        let all = urls.iter().filter_map(url).chain(addresses.map(String::clone));
        let parsed = all.filter_map(|address| address.replace("localhost:", "127.0.0.1:").parse::<SocketAddr>().ok());
        parsed.filter(|address| address.ip().is_loopback()).collect()
    }

    /// What a cell of processes is to have of a network. Registries at private addresses are reached by buildkitd, those on the loopback
    /// as services of the host.
    pub fn network_asked(&self) -> NetworkAsked {
        let named = [&self.registry.address, &self.registry.mirror, &self.guest.mirror];
        let registries = self.registry.plain_http.iter().chain(named);
        let local = registries.clone().map(|address| address.replace("localhost:", "127.0.0.1:"));
        let private = registries.filter_map(|address| {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            host.parse::<std::net::Ipv4Addr>().ok().filter(|host| !host.is_loopback()).map(|host| format!("{host}/32"))
        });
        NetworkAsked {
            upstreams: self.upstreams(),
            services: local
                .filter_map(|address| address.parse::<SocketAddr>().ok())
                .filter(|address| address.ip().is_loopback())
                .collect(),
            steps_reach: self.cell.steps_reach.clone(),
            daemon_reach: self.cell.daemon_reach.iter().cloned().chain(private).collect(),
        }
    }

    /// The cell's forwarder of names, where it has one; the addresses have passed the rules. Its upstreams may be left to the machine.
    pub fn forwarder(&self) -> Option<DnsSettings> {
        let dns = &self.dns;
        Some(DnsSettings {
            listen: dns.listen.parse().ok()?,
            upstreams: self.upstreams(),
            timeout: Duration::from_millis(dns.timeout_ms),
            stale: Duration::from_secs(dns.stale_s),
        })
    }

    /// The resolvers that a forwarder is told to ask; none: those of its machine.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        self.dns.upstreams.iter().filter_map(|server| resolver(server)).collect()
    }

    /// How the machine's clock is checked, where it is.
    pub fn clock_checks(&self) -> Option<ClockSettings> {
        let clock = &self.clock;
        (!clock.servers.is_empty()).then(|| ClockSettings {
            servers: clock.servers.clone(),
            every: Duration::from_secs(clock.check_every_s),
            limit: Duration::from_millis(clock.limit_ms),
            step: Duration::from_millis(clock.step_ms),
            adjust: clock.adjust,
        })
    }

    /// What a build is for that names no platform.
    pub fn default_platform(&self) -> &str {
        if self.cell.platform.is_empty() { "linux/amd64" } else { &self.cell.platform }
    }

    /// What a snapshot may be.
    pub fn caps(&self) -> Caps {
        Caps {
            entries: self.snapshots.max_entries,
            bytes: self.snapshots.max_bytes,
            path: self.snapshots.max_path,
            depth: self.snapshots.max_depth,
        }
    }
}

/// An address, by default with the port of DNS.
pub fn resolver(text: &str) -> Option<SocketAddr> {
    let address = text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53));
    address.or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_have_a_port_of_their_own_or_the_usual_one() {
        let mut settings = Settings::default();
        assert_eq!(settings.forwarder(), None);
        settings.dns.listen = "10.64.3.2:53".into();
        settings.dns.upstreams =
            ["10.0.0.2", "10.0.0.3:5353", "2001:db8::1", "[2001:db8::1]:54"].map(String::from).into();
        let upstreams = settings.forwarder().unwrap().upstreams;
        let upstreams: Vec<_> = upstreams.iter().map(ToString::to_string).collect();
        assert_eq!(upstreams, ["10.0.0.2:53", "10.0.0.3:5353", "[2001:db8::1]:53", "[2001:db8::1]:54"]);
        assert!(settings.clock_checks().is_none());
    }

    #[test]
    fn services_on_the_loopback_are_told_from_others() {
        let mut settings = Settings::default();
        settings.temporal.address = "localhost:7233".into();
        settings.api.url = "http://127.0.0.1:7080/".into();
        settings.logs.address = "logs.example.com:7081".into();
        settings.s3.endpoint = "https://s3.example.com".into();
        settings.registry.address = "127.0.0.1:5000".into();
        settings.guest.mirror = "127.0.0.1:5000".into();
        let ports: Vec<_> = settings.loopback_services().iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [5000, 7080, 7233]);
    }

    #[test]
    fn buildkitd_reaches_the_registries_of_the_settings_and_no_other_service() {
        let mut settings = Settings::default();
        settings.registry.address = "127.0.0.1:5000".into();
        settings.registry.plain_http = vec!["localhost:5001".into(), "10.0.0.5:5000".into(), "registry.example".into()];
        settings.cell.daemon_reach = vec!["10.9.0.0/16".into()];
        let asked = settings.network_asked();
        let services: Vec<_> = asked.services.iter().map(ToString::to_string).collect();
        assert_eq!(services, ["127.0.0.1:5000", "127.0.0.1:5001"], "Temporal, api and storage are on the loopback too");
        assert_eq!(asked.daemon_reach, ["10.9.0.0/16", "10.0.0.5/32"]);
        assert!(asked.steps_reach.is_empty());
    }
}
