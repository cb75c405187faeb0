//! Build secrets (`RUN --mount=type=secret`).

use crate::proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse, secrets_server};
use std::{collections::BTreeMap, io, sync::Arc};
use tonic::{Request, Response, Status};

/// Who knows the secrets of a build. Called on a thread that may block, each time a step needs one.
pub trait Secrets: Send + Sync + 'static {
    /// The secret's value; `None` when there is none by that id, which fails the step unless it can do without.
    ///
    /// # Errors
    /// When it cannot be told: the build fails.
    fn secret(&self, id: &str) -> io::Result<Option<Vec<u8>>>;
}

/// No secrets at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn secret(&self, _id: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

impl Secrets for BTreeMap<String, Vec<u8>> {
    fn secret(&self, id: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.get(id).cloned())
    }
}

pub(super) struct SecretsService(Arc<dyn Secrets>);

impl SecretsService {
    pub(super) fn new(secrets: Arc<dyn Secrets>) -> Self {
        Self(secrets)
    }
}

#[tonic::async_trait]
impl secrets_server::Secrets for SecretsService {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let secrets = self.0.clone();
        let asked = id.clone();
        let found = super::blocking(move || secrets.secret(&asked)).await?;
        let found = found.map_err(|error| Status::internal(format!("secret {id}: {error}")))?;
        let data = found.ok_or_else(|| Status::not_found(format!("secret {id}: not found")))?;
        Ok(Response::new(GetSecretResponse { data }))
    }
}
