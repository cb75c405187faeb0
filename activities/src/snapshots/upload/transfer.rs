//! Brings packs into object storage: asks which are missing, uploads these, several at once.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use reqwest::Client;
use tokio::task::JoinSet;
use workflows::contract::SnapshotId;

use super::api::SnapshotApi;
use super::{Counters, UploadError};
use crate::objects::retry::{Answer, send};
use crate::objects::{ObjectError, Patience, Problem};
use crate::snapshots::pack::ReadyPack;
use crate::snapshots::service::{Begun, PackRef, PackUpload};

/// Uploads at once.
const PARALLEL: usize = 4;
/// How often a pack is presigned: what storage took in altered is removed and uploaded again, an upload that expired is signed anew.
const ROUNDS: u32 = 4;
/// Bytes of storage's answer to an upload.
const ANSWER_LIMIT: u64 = 1 << 20;

/// The uploads of one snapshot. Dropped, it ends them.
pub struct Transfer<A> {
    shared: Arc<Shared<A>>,
    running: JoinSet<Result<(), UploadError>>,
}

struct Shared<A> {
    api: Arc<A>,
    client: Client,
    patience: Patience,
    counters: Arc<Counters>,
    session: OnceLock<String>,
}

impl<A: SnapshotApi> Transfer<A> {
    pub fn new(api: Arc<A>, client: Client, patience: Patience, counters: Arc<Counters>) -> Self {
        let shared = Shared { api, client, patience, counters, session: OnceLock::new() };
        Self { shared: Arc::new(shared), running: JoinSet::new() }
    }

    /// Starts the upload of a pack; waits when enough are under way.
    pub async fn add(&mut self, pack: ReadyPack) -> Result<(), UploadError> {
        while self.running.len() >= PARALLEL {
            self.join_one().await?;
        }
        let shared = Arc::clone(&self.shared);
        self.running.spawn(async move {
            let begun = shared.begin(None, std::slice::from_ref(&pack)).await?;
            shared.upload(pack, begun.uploads.into_iter().next()).await
        });
        Ok(())
    }

    /// Uploads the last packs, now that the snapshot's id is known; waits for all. `None` when the snapshot is stored already, else the
    /// session to commit.
    pub async fn finish(mut self, id: &SnapshotId, last: Vec<ReadyPack>) -> Result<Option<String>, UploadError> {
        let begun = self.shared.begin(Some(id), &last).await?;
        if begun.exists {
            self.running.shutdown().await;
            return Ok(None);
        }
        let mut uploads: HashMap<String, PackUpload> =
            begun.uploads.into_iter().map(|upload| (upload.sha256.clone(), upload)).collect();
        for pack in last {
            let (shared, upload) = (Arc::clone(&self.shared), uploads.remove(&pack.id.to_string()));
            self.running.spawn(async move { shared.upload(pack, upload).await });
        }
        while !self.running.is_empty() {
            self.join_one().await?;
        }
        Ok(Some(self.shared.session.get().cloned().unwrap_or(begun.session)))
    }

    async fn join_one(&mut self) -> Result<(), UploadError> {
        match self.running.join_next().await {
            Some(Ok(uploaded)) => uploaded,
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => Ok(()),
        }
    }
}

impl<A: SnapshotApi> Shared<A> {
    async fn begin(&self, id: Option<&SnapshotId>, packs: &[ReadyPack]) -> Result<Begun, UploadError> {
        let packs: Vec<_> = packs.iter().map(pack_ref).collect();
        let begun = self.api.begin(id, self.session.get().map(String::as_str), &packs).await?;
        let _ = self.session.set(begun.session.clone());
        Ok(begun)
    }

    /// Uploads a pack that is missing; `upload` is `None` when it is stored.
    async fn upload(&self, pack: ReadyPack, mut upload: Option<PackUpload>) -> Result<(), UploadError> {
        for round in 1.. {
            let Some(presigned) = upload else { break };
            let error = match self.put(&pack, &presigned).await {
                Ok(answer) if answer.is_success() => {
                    self.counters.uploaded(pack.bytes.len() as u64);
                    break;
                }
                Ok(answer) => answer.refused(&pack.id.to_string()),
                Err(error) => error,
            };
            // Asking again tells whether the pack is stored after all, and removes what was stored in its place.
            upload = self.begin(None, std::slice::from_ref(&pack)).await?.uploads.into_iter().next();
            if upload.is_some() && (round == ROUNDS || !is_worth_another(&error)) {
                return Err(UploadError::Upload { pack: pack.id.to_string(), error });
            }
        }
        Ok(())
    }

    async fn put(&self, pack: &ReadyPack, presigned: &PackUpload) -> Result<Answer, ObjectError> {
        let request = || {
            let request = self.client.put(&presigned.url).body(Bytes::clone(&pack.bytes));
            presigned.headers.iter().fold(request, |request, (name, value)| request.header(name, value))
        };
        send(&self.patience, &pack.id.to_string(), ANSWER_LIMIT, request).await
    }
}

fn pack_ref(pack: &ReadyPack) -> PackRef {
    PackRef { sha256: pack.id.to_string(), size: pack.bytes.len() as u64 }
}

/// 412: there was something already. 403: signed for too short a time.
fn is_worth_another(error: &ObjectError) -> bool {
    matches!(error.problem, Problem::Refused { status: 403 | 412, .. })
}
