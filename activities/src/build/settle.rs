//! What became of the attempts of a builder that did not live to see their end.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use buildkit::{Client, ClientError, Settled};
use futures::TryStreamExt as _;
use workflows::contract::{AttemptId, AttemptResult, BuildError, CacheStats, Digest, FailureClass, LogEvent, Timings};

use super::Builder;
use super::events::Recorder;
use super::progress::Meter;
use crate::attempts::{Entry, LedgerError, Outcome, is_awaited, report};
use crate::failure::with_source;

impl Builder {
    /// Answers for what this builder's former self ran, so that a build is tried again at once instead of after the heartbeat timeout.
    /// To be called before the first attempt is taken.
    pub async fn answer_for_former_self(&self, buildkit: &Client) -> Result<(), LedgerError> {
        for entry in self.ledger.former()? {
            let token = STANDARD.decode(&entry.task_token).unwrap_or_default();
            // What it built counts no more, and its output would only stand in the way of that of the attempt that does.
            if !is_awaited(&self.temporal, &token).await {
                self.ledger.forget(&entry.attempt)?;
                continue;
            }
            let outcome = self.settled(buildkit, &entry).await;
            tracing::info!(workflow = entry.attempt.workflow_id, attempt = entry.attempt.number, ?outcome, "settled");
            match report(&self.temporal, &token, &outcome).await {
                Ok(()) => self.ledger.forget(&entry.attempt)?,
                Err(error) => tracing::warn!(%error, "a former attempt's end could not be told"),
            }
        }
        self.logs.end_former();
        Ok(())
    }

    /// By BuildKit's history. A solve that had come to its end counts, with its digest. Of any other the session died with the
    /// builder, and with the session the solve: it is lost and is tried again.
    async fn settled(&self, buildkit: &Client, entry: &Entry) -> Outcome {
        let lost = |how: String| {
            let message = format!("the builder was restarted while it built ({how})");
            Outcome::Failed(Box::new(BuildError::new(FailureClass::CellFault, message)))
        };
        match buildkit.settle(&entry.attempt.buildkit_ref()).await {
            Ok(Settled::Completed { digest: Some(digest) }) => match digest.parse() {
                Ok(digest) => Outcome::Built(Box::new(self.completed(buildkit, &entry.attempt, digest).await)),
                Err(error) => lost(format!("its history names a malformed digest: {error}")),
            },
            Ok(Settled::Completed { digest: None }) => lost("its history names no image".to_owned()),
            Ok(Settled::Failed(error)) => lost(format!("its history says: {error}")),
            Ok(Settled::Running | Settled::Unknown) => lost("it was not done".to_owned()),
            Err(error) => lost(format!("its history cannot be read: {}", with_source(&error))),
        }
    }

    async fn completed(&self, buildkit: &Client, attempt: &AttemptId, digest: Digest) -> AttemptResult {
        let cache = match self.tell_again(buildkit, attempt).await {
            Ok(cache) => cache,
            // The image stands; its log ends with a note that something is missing.
            Err(error) => {
                tracing::warn!(error = with_source(&error), "a former attempt's output could not be read again");
                CacheStats::default()
            }
        };
        AttemptResult { digest, media_type: String::new(), size: 0, timings: Timings::default(), cache }
    }

    /// Brings the log of an attempt that counts to its end: with all that BuildKit has kept of it, as nobody knows how much of what was
    /// on its way to the log went with the builder.
    async fn tell_again(&self, buildkit: &Client, attempt: &AttemptId) -> Result<CacheStats, ClientError> {
        let mut updates = buildkit.status(&attempt.buildkit_ref()).await?;
        let Some(log) = self.logs.former(attempt, self.settings.log_cap) else { return Ok(CacheStats::default()) };
        let text = "the builder was restarted when this attempt was done; its output again, from the beginning".into();
        log.append(LogEvent::Note { text });
        let (mut recorder, meter) = (Recorder::default(), Meter::new());
        loop {
            match updates.try_next().await {
                Ok(Some(update)) => recorder.record(update, &log, &meter),
                Ok(None) => return Ok(recorder.cache_stats()),
                Err(error) => {
                    let text = format!("the rest is missing, BuildKit does not tell it: {}", with_source(&error));
                    log.append(LogEvent::Note { text });
                    return Err(error);
                }
            }
        }
    }
}
