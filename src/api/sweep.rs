//! Deletes sealed credentials that no build needs any more: at once after success, a day after anything else.
//!
//! Publishing deletes them itself on success; this finds what was left, also what was sealed for a build that never started.

use std::time::Duration;

use activities::objects::ObjectStore;
use activities::store::{SealedRow, Store};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::secrets::object_key;

const PAUSE: Duration = Duration::from_secs(30);
const KEEP_MS: i64 = 24 * 3600 * 1000;

/// Sweeps until `stop`.
pub async fn run(store: Store, objects: ObjectStore, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_some() {
        let now = jiff::Timestamp::now().as_millisecond();
        // What went wrong is logged where it becomes an error; the next round tries again.
        let _: Result<(), ApiError> = sweep(&store, &objects, now).await;
    }
}

/// One round.
pub async fn sweep(store: &Store, objects: &ObjectStore, now_ms: i64) -> Result<(), ApiError> {
    for SealedRow { secrets_ref, project_id } in store.sealed_to_delete(now_ms, KEEP_MS).await? {
        objects.delete(&object_key(&project_id, &secrets_ref)).await?;
        store.forget_sealed(&secrets_ref).await?;
        tracing::debug!(%secrets_ref, "deleted sealed credentials");
    }
    Ok(())
}
