//! Registry credentials for the daemon.
//!
//! For a registry that hands out tokens, the daemon asks this side to fetch them (it learns an authority key, by which
//! it knows sessions with the same credentials again, and never the password), each time the last one has expired. A session
//! without a [`TokenTransport`] leaves that to the daemon, which then needs the password.
//! For basic authentication it has to be given user name and password.

use super::{
    credential::{Credential, Credentials},
    token::{self, TokenTransport},
};
use crate::proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse, auth_server::Auth,
};
use ring::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(super) struct AuthService {
    credentials: Arc<dyn Credentials>,
    tokens: Option<Arc<dyn TokenTransport>>,
}

impl AuthService {
    pub(super) fn new(credentials: Arc<dyn Credentials>, tokens: Option<Arc<dyn TokenTransport>>) -> Self {
        Self { credentials, tokens }
    }

    /// Without a transport the daemon is told that this side fetches no tokens; it then gets them itself.
    fn transport(&self) -> Result<&dyn TokenTransport, Status> {
        self.tokens.as_deref().ok_or_else(|| Status::unimplemented("this session fetches no tokens"))
    }

    async fn credential(&self, host: &str) -> Result<Option<Credential>, Status> {
        let (credentials, host) = (self.credentials.clone(), host.to_owned());
        super::blocking(move || {
            let found = credentials.credential(&host);
            found.map_err(|error| Status::internal(format!("credentials for {host}: {error}")))
        })
        .await?
    }

    async fn authority(&self, host: &str, salt: &[u8]) -> Result<Ed25519KeyPair, Status> {
        let credential = self.credential(host).await?;
        authority(host, salt, credential.as_ref()).ok_or_else(|| Status::internal("no authority key"))
    }
}

/// The key pair by which the daemon knows sessions that have the same credentials for a host. The salt is the
/// daemon's own and new at each of its starts.
fn authority(host: &str, salt: &[u8], credential: Option<&Credential>) -> Option<Ed25519KeyPair> {
    let mut seed = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, salt));
    let (username, secret) = credential.map(Credential::parts).unwrap_or_default();
    for part in [host, username, secret] {
        seed.update(&(part.len() as u64).to_le_bytes());
        seed.update(part.as_bytes());
    }
    Ed25519KeyPair::from_seed_unchecked(seed.sign().as_ref()).ok()
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        let found = self.credential(&request.get_ref().host).await?;
        let (username, secret) = found.as_ref().map(Credential::parts).unwrap_or_default();
        Ok(Response::new(CredentialsResponse { username: username.into(), secret: secret.into() }))
    }

    async fn fetch_token(&self, request: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        let (request, transport) = (request.into_inner(), self.transport()?);
        let credential = self.credential(&request.host).await?;
        if let Some(Credential::BearerToken(token)) = credential {
            return Ok(Response::new(FetchTokenResponse { token, expires_in: 0, issued_at: 0 }));
        }
        let token = token::fetch(transport, &request, credential.as_ref()).await.map_err(Status::from)?;
        Ok(Response::new(token))
    }

    async fn get_token_authority(
        &self,
        request: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        self.transport()?;
        let request = request.into_inner();
        let key = self.authority(&request.host, &request.salt).await?;
        Ok(Response::new(GetTokenAuthorityResponse { public_key: key.public_key().as_ref().to_vec() }))
    }

    async fn verify_token_authority(
        &self,
        request: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        let key = self.authority(&request.host, &request.salt).await?;
        // As NaCl's `sign`: the signature, then the message.
        let signed = [key.sign(&request.payload).as_ref(), &request.payload].concat();
        Ok(Response::new(VerifyTokenAuthorityResponse { signed }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(host: &str, credential: Option<Credential>) -> Vec<u8> {
        authority(host, b"salt", credential.as_ref()).unwrap().public_key().as_ref().to_vec()
    }

    #[test]
    fn authority_depends_on_host_and_credential() {
        let basic = |username: &str, password: &str| {
            Some(Credential::Basic { username: username.into(), password: password.into() })
        };
        let ours = key("r:5000", basic("ab", "c"));
        assert_eq!(ours, key("r:5000", basic("ab", "c")));
        for other in [key("r:5001", basic("ab", "c")), key("r:5000", basic("a", "bc")), key("r:5000", None)] {
            assert_ne!(ours, other);
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let shown = format!("{:?}", Credential::Basic { username: "ann".into(), password: "hunter2".into() });
        assert!(!shown.contains("hunter2") && !shown.contains("ann"));
    }
}
