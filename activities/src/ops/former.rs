//! What the Cell asked of a former self of this builder, which will never answer: ended at once, so that nobody waits for a heartbeat
//! timeout.
//!
//! Temporal is asked what that was. A file on the cache disk would not say it after a power cut, which takes what was written last.

use std::time::Duration;

use temporalio_client::{ActivityIdentifier, AsyncActivityHandle, Client};
use workflows::activities::RESTARTED;
use workflows::contract::{CellId, PoolName, cell_workflow_id};

use super::pulse::{End, Failed, tell};
use crate::temporal::{Taken, builder_epoch, taken_activities};

/// How often the server is asked, and the pause in between.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Fails what builders of `cell` were given and have not answered: their Cell then looks what runs here. To be called before this builder
/// takes anything itself, and once it is known that the cell is its own. What the server does not say is found by heartbeat timeouts.
pub async fn end_former(client: &Client, pool: &PoolName, cell: &CellId) {
    let workflow_id = cell_workflow_id(pool, cell);
    let Some(Taken { run_id, activities }) = ask(client, &workflow_id).await else { return };
    for activity in activities {
        if builder_epoch(&activity.last_worker_identity, cell).is_none() {
            continue;
        }
        let identifier = ActivityIdentifier::by_id_workflow(&workflow_id, &run_id, activity.activity_id);
        let handle = AsyncActivityHandle::new(client.clone(), identifier);
        let failed = Failed { kind: RESTARTED, why: "the builder was restarted".to_owned() };
        tell::<()>(&handle, End::Failed(failed)).await;
    }
}

async fn ask(client: &Client, workflow_id: &str) -> Option<Taken> {
    let mut tries = 1;
    loop {
        match taken_activities(client, workflow_id, "").await {
            Ok(taken) => return taken,
            Err(why) if tries == TRIES => {
                tracing::warn!(workflow_id, why, "what a former builder left unanswered is not known");
                return None;
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        tries += 1;
    }
}
