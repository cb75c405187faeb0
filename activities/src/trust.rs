//! Whom the clients of this process trust: the system's certificate authorities, and those of a PEM file beside them.
//!
//! The system's are those that OpenSSL would use; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_smithy_http_client::HttpClientError;
use aws_smithy_http_client::tls::{TlsContext, TrustStore};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("cannot read certificates from {}", path.display())]
    Read { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("there is no certificate in {}", path.display())]
    Empty { path: PathBuf },
    #[error("a certificate authority of {} cannot be used", path.display())]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("the system has no certificate authorities: install ca-certificates, or set tls.ca or SSL_CERT_FILE")]
    NoAuthorities,
    #[error("no HTTP client can be made")]
    Http(#[from] reqwest::Error),
    #[error("no TLS for object storage can be set up")]
    Aws(#[source] HttpClientError),
}

/// Certificate authorities beside the system's.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    extra: Vec<CertificateDer<'static>>,
    path: PathBuf,
}

impl Trust {
    /// With those of a PEM file.
    ///
    /// # Errors
    /// When the file cannot be read or holds no certificate.
    pub fn with_file(path: &Path) -> Result<Self, TrustError> {
        let read = |source| TrustError::Read { path: path.to_owned(), source };
        let found = CertificateDer::pem_file_iter(path).map_err(read)?;
        let extra: Vec<_> = found.collect::<Result<_, _>>().map_err(read)?;
        match extra.is_empty() {
            true => Err(TrustError::Empty { path: path.to_owned() }),
            false => Ok(Self { extra, path: path.to_owned() }),
        }
    }

    /// For TLS over a connection of one's own.
    ///
    /// # Errors
    /// When an authority of the file is unusable, or there is none at all.
    pub fn client(&self) -> Result<Arc<ClientConfig>, TrustError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for authority in &self.extra {
            let added = roots.add(authority.clone());
            added.map_err(|source| TrustError::Authority { path: self.path.clone(), source })?;
        }
        if roots.is_empty() {
            return Err(TrustError::NoAuthorities);
        }
        Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
    }

    /// For requests over HTTP: adds the file's authorities.
    ///
    /// # Errors
    /// When one of them is unusable.
    pub fn http(&self, client: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, TrustError> {
        let extra = self.extra.iter().map(|authority| reqwest::Certificate::from_der(authority));
        Ok(client.tls_certs_merge(extra.collect::<Result<Vec<_>, _>>()?))
    }
}

impl Trust {
    /// For the connections of AWS's SDK, which takes authorities as PEM.
    ///
    /// # Errors
    /// When one of them is unusable.
    pub fn aws(&self) -> Result<TlsContext, TrustError> {
        let mut checked = RootCertStore::empty();
        let mut store = TrustStore::default();
        for authority in &self.extra {
            let added = checked.add(authority.clone());
            added.map_err(|source| TrustError::Authority { path: self.path.clone(), source })?;
            store.add_pem_certificate(pem(authority));
        }
        TlsContext::builder().with_trust_store(store).build().map_err(TrustError::Aws)
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect::<Vec<_>>();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// The end of a TLS handshake that failed, in the words of whoever refused the other.
pub fn handshake_problem(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    cause.map_or_else(|| error.to_string(), ToString::to_string)
}
