//! What may be reached: the public internet, and what the settings list beyond it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use url::{Host, Url};

use super::address::{canonical, in_network, is_public};
use super::host_of;

/// What may be reached beyond public addresses.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Networks and hosts of the settings.
    pub listed: Vec<Listed>,
    /// Whether a registry that a build names may be on this machine's loopback (`localhost`, `127.…`, `::1`), as with docker, and with
    /// it the token server on the same host and port. Other ports of the loopback stay closed.
    pub loopback_registries: bool,
}

/// One entry of the list.
///
/// | text | stands for |
/// |---|---|
/// | `10.1.0.0/16`, `fd00::/8`, `10.1.2.3` | these addresses, at any port, also behind a name |
/// | `10.1.2.3:5000`, `[fd00::1]:5000` | this address at this port, named by a URL as it is |
/// | `registry.internal` | the host of this name at any port, whatever its addresses |
/// | `registry.internal:5000` | the host of this name at this port, and at no other |
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    Network { first: IpAddr, prefix: u32, port: Option<u16> },
    Host { name: String, port: Option<u16> },
}

/// A text that is no entry of the list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} must be a network (10.1.0.0/16), an address, or a host, the latter two with or without a port")]
pub struct InvalidEntry(String);

/// A destination that may not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} may not be reached: {why}")]
pub struct Refused {
    /// `host[:port]`.
    pub host: String,
    pub why: Why,
}

/// Why a destination may not be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Its scheme is neither http nor https, or it carries a user name.
    Url,
    /// Its address, or every one of its addresses, is private, local or reserved.
    Address(IpAddr),
    /// Its name stands for this machine, or is listed with another port.
    Name,
    /// A redirect from https to http.
    Downgrade,
    /// Credentials would be sent in the clear.
    ClearText,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LIST: &str = "an operator can list it in egress.allow";
        match self {
            Self::Url => f.write_str("only http and https URLs without a user name are requested"),
            Self::Address(address) => write!(f, "{address} is not a public address ({LIST})"),
            Self::Name => write!(f, "it is local, or listed with another port ({LIST})"),
            Self::Downgrade => f.write_str("a redirect must not lead from https to http"),
            Self::ClearText => write!(f, "credentials are sent to it over https only ({LIST})"),
        }
    }
}

impl FromStr for Listed {
    type Err = InvalidEntry;

    fn from_str(text: &str) -> Result<Self, InvalidEntry> {
        let invalid = || InvalidEntry(text.to_owned());
        if let Some((address, prefix)) = text.split_once('/') {
            let (first, prefix) = address.parse().ok().zip(prefix.parse().ok()).ok_or_else(invalid)?;
            let fits = prefix <= bits(first);
            return if fits { Ok(Self::Network { first, prefix, port: None }) } else { Err(invalid()) };
        }
        if let Ok(first) = text.parse::<IpAddr>() {
            return Ok(Self::Network { first, prefix: bits(first), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| invalid())?)),
            None => (text, None),
        };
        match Host::parse(host).map_err(|_| invalid())? {
            Host::Domain(name) => Ok(Self::Host { name: plain(&name).to_owned(), port }),
            Host::Ipv4(v4) => Ok(Self::Network { first: v4.into(), prefix: 32, port }),
            Host::Ipv6(v6) => Ok(Self::Network { first: v6.into(), prefix: 128, port }),
        }
    }
}

impl Policy {
    /// Whether a URL may be requested, as far as it says where it leads: the addresses of a name are checked when it is resolved.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, url: &Url, registry: Option<&str>) -> Result<(), Refused> {
        let refuse = |why| Err(Refused { host: host_of(url), why });
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else { return refuse(Why::Url) };
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
            return refuse(Why::Url);
        }
        if self.vouches(url, registry) {
            return Ok(());
        }
        match address_of(&host) {
            Some(address) if is_public(address) || self.lists_address(address, Some(port)) => Ok(()),
            Some(address) => refuse(Why::Address(address)),
            None if self.knows_name(&host) => refuse(Why::Name),
            None => Ok(()),
        }
    }

    /// Whether a URL's host and port are there by the installation's own choice, whatever its address.
    pub fn vouches(&self, url: &Url, registry: Option<&str>) -> bool {
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else { return false };
        let listed = match address_of(&host) {
            Some(address) => self.lists_address(address, Some(port)),
            None => self.listed.iter().any(|entry| entry.names(&host) && entry.has_port(port)),
        };
        listed || self.loopback_registries && is_loopback(&host) && registry.is_some_and(|name| is_at(name, url))
    }

    /// Whether a connection to this address may be made for a name. Its port was checked with the URL.
    pub(super) fn accepts(&self, name: &str, address: IpAddr) -> bool {
        let host = Host::Domain(name);
        is_public(address)
            || self.lists_address(address, None)
            || self.listed.iter().any(|entry| entry.names(&host))
            || self.loopback_registries && is_loopback(&host) && address.is_loopback()
    }

    fn lists_address(&self, address: IpAddr, port: Option<u16>) -> bool {
        let address = canonical(address);
        self.listed.iter().any(|entry| match entry {
            Listed::Network { first, prefix, port: None } => in_network(address, *first, *prefix),
            Listed::Network { first, prefix, port: Some(_) } => {
                in_network(address, *first, *prefix) && port.is_some_and(|port| entry.has_port(port))
            }
            Listed::Host { .. } => false,
        })
    }

    /// Names that are resolved without a check of their addresses must have passed with their port.
    fn knows_name(&self, host: &Host<&str>) -> bool {
        is_loopback(host) || self.listed.iter().any(|entry| entry.names(host))
    }
}

impl Listed {
    fn names(&self, host: &Host<&str>) -> bool {
        match (self, host) {
            (Self::Host { name, .. }, Host::Domain(domain)) => plain(domain).eq_ignore_ascii_case(name),
            _ => false,
        }
    }

    fn has_port(&self, wanted: u16) -> bool {
        let (Self::Network { port, .. } | Self::Host { port, .. }) = self;
        port.is_none_or(|port| port == wanted)
    }
}

fn bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn address_of(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Ipv4(v4) => Some((*v4).into()),
        Host::Ipv6(v6) => Some((*v6).into()),
        Host::Domain(_) => None,
    }
}

/// A name without the dot of its root.
fn plain(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Whether a host is this machine by its name or address, without asking the DNS.
pub fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => plain(name).eq_ignore_ascii_case("localhost"),
        Host::Ipv4(v4) => v4.is_loopback(),
        Host::Ipv6(v6) => v6.is_loopback(),
    }
}

/// Whether a URL is on the host and port of a registry's name.
fn is_at(registry: &str, url: &Url) -> bool {
    let named = Url::parse(&format!("{}://{registry}/", url.scheme()));
    named.is_ok_and(|named| named.host() == url.host() && named.port_or_known_default() == url.port_or_known_default())
}
