//! What became of an attempt whose builder did not live to see its end.

use buildkit::{Client, Settled};
use workflows::contract::{AttemptResult, BuildError, CacheStats, FailureClass, Timings};

use crate::attempts::{Entry, Outcome};
use crate::failure::with_source;

/// Settles an attempt of a former builder by BuildKit's history. A solve that had come to its end counts, with its digest. Of any
/// other the session died with the builder, and with the session the solve: it is lost and is tried again.
pub async fn lost_attempt(buildkit: &Client, entry: &Entry) -> Outcome {
    let lost = |how: String| {
        let message = format!("the builder was restarted while it built ({how})");
        Outcome::Failed(Box::new(BuildError::new(FailureClass::CellFault, message)))
    };
    match buildkit.settle(&entry.attempt.buildkit_ref()).await {
        Ok(Settled::Completed { digest: Some(digest) }) => match digest.parse() {
            Ok(digest) => Outcome::Built(Box::new(AttemptResult {
                digest,
                media_type: String::new(),
                size: 0,
                timings: Timings::default(),
                cache: CacheStats::default(),
            })),
            Err(error) => lost(format!("its history names a malformed digest: {error}")),
        },
        Ok(Settled::Completed { digest: None }) => lost("its history names no image".to_owned()),
        Ok(Settled::Failed(error)) => lost(format!("its history says: {error}")),
        Ok(Settled::Running | Settled::Unknown) => lost("it was not done".to_owned()),
        Err(error) => lost(format!("its history cannot be read: {}", with_source(&error))),
    }
}
