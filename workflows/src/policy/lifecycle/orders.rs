//! What operators order by signal. Each order is valid or refused, and repeating it changes nothing; `status` says what became of it.

use super::{DRAIN_LIMIT_MS, Life, Stage, cut, drain_of, push};
use crate::contract::{
    CellId, CellState, CloneRequest, DrainEnd, DrainRequest, DrainStatus, SignalOutcome, SignalRecord, UpdateRequest,
};

/// The longest name of an image, characters.
const IMAGE: usize = 512;

/// An operator's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    Drain(DrainRequest),
    Undrain,
    Restart(DrainRequest),
    Update(UpdateRequest),
    Retire(DrainRequest),
    Delete(DrainRequest),
    Clone(CloneRequest),
}

/// The only order that is not about the cell's own life.
pub(super) const CLONE: &str = "clone";

impl Order {
    fn name(&self) -> &'static str {
        match self {
            Self::Drain(_) => "drain",
            Self::Undrain => "undrain",
            Self::Restart(_) => "restart",
            Self::Update(_) => "update",
            Self::Retire(_) => "retire",
            Self::Delete(_) => "delete",
            Self::Clone(_) => CLONE,
        }
    }

    fn request(&self) -> Option<&DrainRequest> {
        match self {
            Self::Drain(request) | Self::Restart(request) | Self::Retire(request) | Self::Delete(request) => {
                Some(request)
            }
            Self::Update(update) => Some(&update.drain),
            Self::Undrain | Self::Clone(_) => None,
        }
    }

    /// Who gave it, and why.
    fn by_whom(&self) -> (Option<String>, Option<String>) {
        match (self, self.request()) {
            (Self::Clone(clone), _) => (clone.by.clone(), clone.reason.clone()),
            (_, Some(request)) => (request.by.clone(), request.reason.clone()),
            _ => (None, None),
        }
    }
}

/// What an order came to: an outcome and a word about it.
type Verdict = (SignalOutcome, String);

fn accepted() -> Verdict {
    (SignalOutcome::Accepted, String::new())
}

fn nothing(why: &str) -> Verdict {
    (SignalOutcome::Nothing, why.to_owned())
}

fn refused(why: impl Into<String>) -> Verdict {
    (SignalOutcome::Refused, why.into())
}

impl Life {
    /// Takes an order.
    pub fn order(&mut self, order: Order, now_ms: i64) {
        let (name, (by, reason)) = (order.name(), order.by_whom());
        let verdict = match late(&order, now_ms) {
            Some(deadline) => refused(format!("the deadline {deadline} is in the past")),
            None if self.status.state == CellState::Deleted => refused("the cell is deleted"),
            None => self.obey(order, now_ms),
        };
        if verdict.0 == SignalOutcome::Accepted {
            self.note(&format!("{name}: {}", reason.as_deref().unwrap_or("no reason given")), now_ms);
        }
        self.record(name, by, verdict, now_ms);
        if self.is_drained() {
            self.close_records(SignalOutcome::Done);
        }
    }

    /// What was asked for is so already: a drain with another deadline, say.
    fn is_drained(&self) -> bool {
        let drained = |drain: &DrainStatus| drain.closed && drain.idle && drain.then == DrainEnd::Stay;
        self.stage == Stage::Watch && self.status.drain.as_ref().is_some_and(drained)
    }

    /// Takes a signal that could not be read.
    pub fn order_refused(&mut self, signal: &str, why: &str, now_ms: i64) {
        self.record(signal, None, refused(why), now_ms);
    }

    fn record(&mut self, signal: &str, by: Option<String>, (outcome, note): Verdict, at_ms: i64) {
        if outcome == SignalOutcome::Refused {
            self.note(&format!("{signal} refused: {note}"), at_ms);
        }
        let (signal, by) = (signal.to_owned(), by.map(|by| cut(&by)));
        let record = SignalRecord { at_ms, signal, by, outcome, note: cut(&note) };
        push(&mut self.unaudited, record.clone());
        push(&mut self.status.signals, record);
    }

    /// The signals that are not in the audit log yet, the oldest first; the last ones, where the store was away for very long.
    pub fn unaudited(&self) -> &[SignalRecord] {
        &self.unaudited
    }

    /// These signals are in the audit log.
    pub fn audited(&mut self, written: &[SignalRecord]) {
        self.unaudited.retain(|record| !written.contains(record));
    }

    /// Says of the orders under way how they ended; whether there were any. A clone that is being made has an end of its own.
    pub(super) fn close_records(&mut self, outcome: SignalOutcome) -> bool {
        let mut any = false;
        for record in self.status.signals.iter_mut().filter(|record| is_open(record) && record.signal != CLONE) {
            record.outcome = outcome;
            any = true;
        }
        any
    }

    /// A clone was made, or was not.
    pub fn cloned(&mut self, clone: &CellId, outcome: SignalOutcome, note: &str, now_ms: i64) {
        if self.cloning.take_if(|cloning| cloning == clone).is_none() {
            return;
        }
        let note = cut(&format!("{clone}: {note}"));
        self.note(&note, now_ms);
        for record in self.status.signals.iter_mut().filter(|record| is_open(record) && record.signal == CLONE) {
            (record.outcome, record.note) = (outcome, note.clone());
        }
    }

    /// The clone that was still to be made will not be.
    pub(super) fn give_up_clone(&mut self, why: &str, now_ms: i64) {
        if let Some(clone) = self.cloning.clone() {
            self.cloned(&clone, SignalOutcome::Failed, why, now_ms);
        }
    }

    fn obey(&mut self, order: Order, now_ms: i64) -> Verdict {
        match order {
            Order::Drain(request) => self.drain(request, now_ms),
            Order::Undrain => self.undrain(),
            Order::Restart(request) => self.restart(request, DrainEnd::Restart, now_ms),
            Order::Retire(request) => self.retire(request, false, now_ms),
            Order::Delete(_) if self.status.clone_of.is_none() => {
                refused("it is no clone: only clones are deleted with their disks")
            }
            Order::Delete(request) => self.retire(request, true, now_ms),
            Order::Clone(request) => self.clone_as(request.name),
            Order::Update(update) if update.image.is_empty() || update.image.chars().count() > IMAGE => {
                refused(format!("the image's name must have 1 to {IMAGE} characters"))
            }
            Order::Update(update) if is_path(&update.image) => {
                refused("an image is named name@sha256:…, as its host lists it: no path is taken")
            }
            Order::Update(update) => self.update(update, now_ms),
        }
    }

    fn drain(&mut self, request: DrainRequest, now_ms: i64) -> Verdict {
        if let Some(drain) = &self.status.drain
            && drain.then == DrainEnd::Stay
            && drain.request.deadline == request.deadline
        {
            return nothing("it is draining already");
        }
        self.begin(request, DrainEnd::Stay, now_ms);
        accepted()
    }

    fn undrain(&mut self) -> Verdict {
        let drained = self.status.drain.take().is_some();
        if drained {
            self.close_records(SignalOutcome::Superseded);
            if self.status.state == CellState::Draining && self.stage != Stage::Stop {
                // The check opens the intake.
                self.stage = self.check_soon(false);
            }
        }
        if self.status.taken_out {
            self.try_again();
        } else if !drained {
            return nothing("it is not draining");
        }
        accepted()
    }

    fn update(&mut self, UpdateRequest { image, drain }: UpdateRequest, now_ms: i64) -> Verdict {
        let settled =
            self.work.is_none() && self.status.drain.as_ref().is_none_or(|drain| drain.then == DrainEnd::Stay);
        if settled && self.status.state == CellState::Ready && self.status.image.as_deref() == Some(&image) {
            return nothing("it runs this image already");
        }
        self.restart(drain, DrainEnd::Update { image }, now_ms)
    }

    /// `erase`: with its disk. A retirement under way becomes one.
    fn retire(&mut self, request: DrainRequest, erase: bool, now_ms: i64) -> Verdict {
        let verdict = self.restart(request, DrainEnd::Retire, now_ms);
        match verdict.0 {
            SignalOutcome::Accepted => self.erase = erase,
            SignalOutcome::Nothing if erase && !self.erase => {
                self.erase = true;
                return accepted();
            }
            _ => {}
        }
        verdict
    }

    /// The host begins to make it when the cell is watched next; the cell itself goes on.
    fn clone_as(&mut self, clone: CellId) -> Verdict {
        let status = &self.status;
        match (&self.cloning, &status.clone_of, status.state) {
            (Some(other), ..) if *other == clone => nothing("it is under way already"),
            (Some(other), ..) => refused(format!("{other} is being made of it: one clone at a time")),
            _ if status.host.is_none() => refused("no host has this cell's disk"),
            _ if status.cell == clone => refused("that is its own id"),
            (_, Some(main), _) => refused(format!("it is a clone itself: clone {main}")),
            (.., CellState::Ready | CellState::Draining) => {
                self.cloning = Some(clone);
                accepted()
            }
            (.., state) => refused(format!("it is {}: a cell is cloned while it is ready or drained", state.as_str())),
        }
    }

    /// A drain with something after it.
    fn restart(&mut self, request: DrainRequest, then: DrainEnd, now_ms: i64) -> Verdict {
        if self.status.host.is_none() {
            return refused("no host starts and stops this cell: who started its builder has to do it");
        }
        if self.work.as_ref() == Some(&then) {
            return nothing("it is under way already");
        }
        if let Some(drain) = &self.status.drain
            && drain.then == then
            && drain.request.deadline == request.deadline
        {
            return nothing("it is under way already");
        }
        match self.status.state {
            // A start that is under way is not the one that is asked for now: that comes after it, as a drain.
            CellState::Unhealthy if self.stage != Stage::Start => {
                self.close_records(SignalOutcome::Superseded);
                self.status.drain.take_if(|drain| drain.then != DrainEnd::Stay);
                (self.work, self.wedged) = (Some(then), false);
                self.try_again();
            }
            _ => self.begin(request, then, now_ms),
        }
        accepted()
    }

    /// From the start, as if nothing had failed yet.
    fn try_again(&mut self) {
        (self.status.failures, self.status.taken_out, self.silent) = (0, false, 0);
        self.unannounced = true;
        // What the host is doing now is waited for.
        if !matches!(self.stage, Stage::Start | Stage::Stop) {
            self.stage = self.look();
        }
    }

    /// The drain in force from now on. A cell that is not up drains when it is.
    fn begin(&mut self, request: DrainRequest, then: DrainEnd, now_ms: i64) {
        self.close_records(SignalOutcome::Superseded);
        self.settles = 0;
        self.drain_until_ms = request.deadline.map_or(now_ms + DRAIN_LIMIT_MS, |deadline| deadline.as_millisecond());
        let request = DrainRequest {
            reason: request.reason.map(|reason| cut(&reason)),
            by: request.by.map(|by| cut(&by)),
            deadline: request.deadline,
        };
        match (&mut self.status.drain, self.status.state) {
            (Some(drain), CellState::Draining) => {
                (drain.request, drain.then) = (request, then);
                if !matches!(self.stage, Stage::Stop | Stage::Check { .. }) {
                    self.after_drain_step(now_ms);
                }
            }
            (drain, state) => {
                *drain = Some(drain_of(request, then));
                match state {
                    CellState::Ready => {
                        self.enter(CellState::Draining, "draining", now_ms);
                        self.stage = Stage::Close;
                    }
                    // Undrained a moment ago: its intake may be open again.
                    CellState::Draining if self.stage != Stage::Stop => self.stage = Stage::Close,
                    _ => {}
                }
            }
        }
    }
}

/// Whether an image's name would be one of a file. What else is no name of its images the host refuses itself.
fn is_path(image: &str) -> bool {
    image.contains('/') || image.starts_with('.')
}

fn is_open(record: &SignalRecord) -> bool {
    record.outcome == SignalOutcome::Accepted
}

/// The deadline of an order that comes after it.
fn late(order: &Order, now_ms: i64) -> Option<jiff::Timestamp> {
    order.request().and_then(|request| request.deadline).filter(|deadline| deadline.as_millisecond() <= now_ms)
}
