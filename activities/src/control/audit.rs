//! Signals of Cells and Pools in the audit log. Who sent one is what it says itself: Temporal tells a workflow nothing else. One that came
//! through the api names the api's principal, and the api has recorded the request as well.

use workflows::activities::SignalAudit;
use workflows::contract::{SignalOutcome, SignalRecord};

use crate::store::{AuditRow, Store, StoreError};

/// The sender of a signal that names none.
const UNKNOWN: &str = "a client of Temporal";

pub(super) async fn signals(store: &Store, order: &SignalAudit) -> Result<(), StoreError> {
    for signal in &order.signals {
        let row = row(&order.workflow_id, signal);
        let AuditRow { principal, action, subject, result, note, .. } = &row;
        tracing::info!(target: "kiln::audit", principal, action, subject, result, note, "audit");
        store.record_audit(&row).await?;
    }
    Ok(())
}

/// Its id is made of what it says, so that it is one entry however often it is written.
fn row(workflow_id: &str, signal: &SignalRecord) -> AuditRow {
    let SignalRecord { at_ms, signal, by, outcome, note } = signal.clone();
    let result = name_of(outcome);
    let identity = format!("{workflow_id}\n{at_ms}\n{signal}\n{by:?}\n{result}\n{note}");
    AuditRow {
        id: blake3::hash(identity.as_bytes()).to_hex()[..32].to_owned(),
        at_ms,
        principal: by.unwrap_or_else(|| UNKNOWN.to_owned()),
        token: String::new(),
        action: format!("signal {signal}"),
        subject: workflow_id.to_owned(),
        project: None,
        result: result.to_owned(),
        note,
    }
}

fn name_of(outcome: SignalOutcome) -> &'static str {
    match outcome {
        SignalOutcome::Accepted | SignalOutcome::Done => "ok",
        SignalOutcome::Refused => "refused",
        SignalOutcome::Nothing => "nothing to do",
        SignalOutcome::Superseded => "superseded",
        SignalOutcome::Failed => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_one_entry_however_often_it_is_written() {
        let signal = SignalRecord {
            at_ms: 7,
            signal: "drain".into(),
            by: Some("ann, operator (settings)".into()),
            outcome: SignalOutcome::Accepted,
            note: String::new(),
        };
        let first = row("cell/default/c-1", &signal);
        assert_eq!(row("cell/default/c-1", &signal), first);
        assert_eq!((first.action.as_str(), first.result.as_str()), ("signal drain", "ok"));
        assert_ne!(row("cell/default/c-2", &signal).id, first.id);
        assert_eq!(row("cell/default/c-1", &SignalRecord { by: None, ..signal }).principal, UNKNOWN);
    }
}
