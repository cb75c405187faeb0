//! A listener's certificate and key, read again when the files change.
//!
//! They are looked at when a connection comes in, at most once a second, so that nothing runs beside the listener
//! and no signal is needed. Files that cannot be used are reported, and the former certificate is kept.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, crypto};

/// How often to look whether the files have changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("a certificate without a key, or a key without a certificate, is of no use: set both")]
    Half,
    #[error("cannot read a certificate from {}", path.display())]
    Certificate { path: PathBuf, source: pem::Error },
    #[error("cannot read a private key from {}", path.display())]
    Key { path: PathBuf, source: pem::Error },
    #[error("the certificate {} and the key {} cannot be used together", cert.display(), key.display())]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
}

/// Certificate and key of a listener.
#[derive(Debug)]
pub struct Identity {
    cert: PathBuf,
    key: PathBuf,
    look_every: Duration,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    certified: Arc<CertifiedKey>,
    /// The files as they were when they were last read, whether or not they could be used.
    seen: [Option<Version>; 2],
    looked: Instant,
}

/// Device, inode, size and time of the last change of content or owner; the latter in seconds and nanoseconds.
type Version = (u64, u64, u64, i64, i64);

impl Identity {
    /// Of these PEM files; `None` when neither is set.
    ///
    /// # Errors
    /// When only one is set, or they cannot be used.
    pub fn of(cert: &Path, key: &Path) -> Result<Option<Self>, IdentityError> {
        match (cert.as_os_str().is_empty(), key.as_os_str().is_empty()) {
            (true, true) => return Ok(None),
            (false, false) => {}
            _ => return Err(IdentityError::Half),
        }
        let seen = [version(cert), version(key)];
        let current = Current { certified: Arc::new(read(cert, key)?), seen, looked: Instant::now() };
        let (cert, key) = (cert.to_owned(), key.to_owned());
        Ok(Some(Self { cert, key, look_every: LOOK_EVERY, current: Mutex::new(current) }))
    }

    /// Looks at the files for each connection.
    #[cfg(test)]
    pub fn eager(mut self) -> Self {
        self.look_every = Duration::ZERO;
        self
    }

    /// How a server with this identity ends TLS; `protocols` are offered in this order (ALPN).
    pub fn config(self, protocols: &[&str]) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(self));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// The certificate of now.
    fn current(&self) -> Arc<CertifiedKey> {
        // A panic between two consistent states leaves nothing half-done.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() < self.look_every {
            return current.certified.clone();
        }
        current.looked = Instant::now();
        let seen = [version(&self.cert), version(&self.key)];
        if current.seen != seen {
            current.seen = seen;
            match read(&self.cert, &self.key) {
                Ok(certified) => {
                    tracing::info!(cert = %self.cert.display(), "the certificate has changed and is used from now on");
                    current.certified = Arc::new(certified);
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(error, "the new certificate cannot be used; the former one stays in use");
                }
            }
        }
        current.certified.clone()
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn version(file: &Path) -> Option<Version> {
    let found = fs::metadata(file).ok()?;
    Some((found.dev(), found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
}

fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, IdentityError> {
    let unreadable = |source| IdentityError::Certificate { path: cert.to_owned(), source };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(cert).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    let private = PrivateKeyDer::from_pem_file(key);
    let private = private.map_err(|source| IdentityError::Key { path: key.to_owned(), source })?;
    let pair = |source| IdentityError::Pair { cert: cert.to_owned(), key: key.to_owned(), source };
    if chain.is_empty() {
        return Err(unreadable(pem::Error::NoItemsFound));
    }
    CertifiedKey::from_der(chain, private, &crypto::ring::default_provider()).map_err(pair)
}
