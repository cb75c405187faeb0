//! Resolves names for the connector and hands on only the addresses that may be connected to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::policy::{Policy, Refused, Why};

/// Resolves names.
pub trait Lookup: Send + Sync + 'static {
    /// All addresses of a name.
    fn lookup(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The resolver of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let name = name.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// The connector's resolver.
pub(super) struct Guarded {
    policy: Arc<Policy>,
    lookup: Box<dyn Lookup>,
}

impl Guarded {
    pub(super) fn new(policy: Arc<Policy>, lookup: impl Lookup) -> Self {
        Self { policy, lookup: Box::new(lookup) }
    }
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, found) = (Arc::clone(&self.policy), self.lookup.lookup(name.as_str()));
        Box::pin(async move {
            let found = found.await?;
            let accepted: Vec<_> =
                found.iter().copied().filter(|address| policy.accepts(name.as_str(), *address)).collect();
            match (accepted.is_empty(), found.first()) {
                (true, Some(address)) => {
                    Err(Refused { host: name.as_str().to_owned(), why: Why::Address(*address) }.into())
                }
                // Port 0 stands for the URL's own.
                _ => Ok(Box::new(accepted.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs),
            }
        })
    }
}
