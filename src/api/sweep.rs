//! Deletes sealed credentials that no build needs any more: after success, and a day after anything else, also when no build started
//! with them. While a run that uses them is open they stay.

use std::time::Duration;

use activities::objects::ObjectStore;
use activities::store::Store;
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
    for row in store.sealed_to_delete(now_ms, KEEP_MS).await? {
        objects.delete(&object_key(&row.project_id, &row.secrets_ref)).await?;
        store.forget_sealed(&row).await?;
        tracing::debug!(project_id = %row.project_id, secrets_ref = %row.secrets_ref, "deleted sealed credentials");
    }
    Ok(())
}
