//! What the answers of a cell's builder and of its host change. One that no longer fits the state (a signal came in between) is dropped
//! by the workflow and never told here.

use super::{Checked, HostTrouble, Life, Stage, Watched, cut};
use crate::activities::{PresenceEnd, TellOrder};
use crate::contract::{AttemptId, CellReport, CellState, DrainEnd, HostCell, SignalOutcome};

/// Restarts in vain before a cell is taken out.
pub(super) const RESTARTS: u32 = 2;
/// A builder that takes longer than its deadline to let go gets so many times to do so.
const SETTLES: u32 = 3;
/// A build that was placed in the moment the cell was lost is in no list yet: its builds are told once more after this.
const SECOND_TELL_MS: i64 = 3_000;
/// A machine whose power was cut closes no connection: so many checks may go to a builder that is no more before the next one gets one.
const UNANSWERED: u32 = 3;
/// The longest pause between two tries is the first one so many times doubled.
const DOUBLINGS: u32 = 5;
/// After a server outage builders take up to 12 s to poll again, so a check has this many times its patience.
const LATE: u64 = 4;
/// Presence that ended so often in a row soon after it began: the builder does not stay up.
const FLAPS: u32 = 5;
/// How long a check waits for a builder that nobody restarts, in looks (`retry_ms`).
const LONG: u64 = 20;

impl Life {
    /// A check ended.
    pub fn checked(&mut self, answer: Checked, now_ms: i64) {
        self.anew |= answer == Checked::Restarted;
        match answer {
            Checked::Passed(report) => self.check_passed(report, now_ms),
            Checked::Sick(why) => self.check_failed(cut(&format!("buildkitd does not solve: {why}")), now_ms),
            Checked::Failed(why) => self.check_failed(cut(&format!("its builder cannot take orders: {why}")), now_ms),
            Checked::Unanswered | Checked::Restarted if self.is_in_doubt() => self.unanswered += 1,
            Checked::Unanswered | Checked::Restarted | Checked::Missing => match self.status.state {
                CellState::Provisioning => self.stage = Stage::Inspect,
                CellState::Unhealthy => self.stage = self.look(),
                _ => {
                    self.check_failed("its builder does not answer".to_owned(), now_ms);
                    // Where it is to be stopped anyway there is nothing to be spared.
                    self.wedged = self.stage == Stage::Stop && self.work.is_none();
                }
            },
        }
    }

    /// Whether a check may still go to a builder that is no more.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.anew && self.unanswered < UNANSWERED
    }

    fn check_passed(&mut self, report: CellReport, now_ms: i64) {
        let obeyed = self.hear_of_orders(&report);
        self.adopt(&report);
        (self.silent, self.anew, self.unanswered, self.wedged) = (0, false, 0, false);
        self.watched_since_ms = now_ms;
        let came_back = !matches!(self.status.state, CellState::Ready | CellState::Draining);
        if came_back {
            self.work = None;
            self.status.why = None;
        }
        match &self.status.drain {
            None if report.open => self.be_ready(now_ms),
            // What it obeyed was to close: that was called off meanwhile.
            None if obeyed => self.stage = self.check_soon(false),
            None => self.order_again("its builder takes no builds although it was ordered to", now_ms),
            Some(_) => {
                self.enter(CellState::Draining, "draining", now_ms);
                match report.open {
                    true => self.stage = Stage::Close,
                    false => self.closed(Some(report), now_ms),
                }
            }
        }
    }

    /// Whether the last order of this Cell is the one that the builder's intake obeys. One that obeys a later order was given it before
    /// the server's clock was set back, or by a Cell before this one.
    fn hear_of_orders(&mut self, report: &CellReport) -> bool {
        let obeyed = report.ordered_ms == self.ordered_ms;
        self.ordered_ms = self.ordered_ms.max(report.ordered_ms);
        obeyed
    }

    /// Its intake is not as it was ordered. The next order is a later one.
    fn order_again(&mut self, why: &str, now_ms: i64) {
        if self.status.state != CellState::Draining {
            self.enter(CellState::Starting, why, now_ms);
        }
        self.status.why = Some(why.to_owned());
        self.unannounced = true;
        self.stage = Stage::Pause { until_ms: now_ms + self.retry_ms(), check: true };
    }

    /// A builder that was started anew has answered for what its former self knew of. What the server gave that one in the moment of
    /// its death, on a connection that nobody closed, it has never heard of.
    fn tell_forgotten(&mut self, report: &CellReport) {
        let (cell, known) = (&self.status.cell, self.status.epoch);
        if known != 0 && known != report.epoch {
            self.forgotten = Some(TellOrder {
                cell: cell.clone(),
                lost: true,
                except: report.running.clone(),
                unknown_to: Some(report.epoch),
                reason: format!("the builder of cell {cell} ended as the build was given to it"),
            });
        }
        self.status.epoch = report.epoch;
    }

    /// What really runs there.
    fn adopt(&mut self, report: &CellReport) {
        self.tell_forgotten(report);
        let status = &mut self.status;
        status.present = true;
        status.slots = report.slots;
        status.version = cut(&report.version);
        if report.host.is_some() && status.host != report.host {
            status.host.clone_from(&report.host);
            self.unannounced = true;
        }
        self.clocks = report.clocks.clone();
    }

    fn be_ready(&mut self, now_ms: i64) {
        self.stage = Stage::Watch;
        if self.status.state != CellState::Ready {
            self.ready_since_ms = Some(now_ms);
            self.status.why = None;
            self.enter(CellState::Ready, "ready", now_ms);
            self.close_records(SignalOutcome::Done);
        }
    }

    fn check_failed(&mut self, why: String, now_ms: i64) {
        match (self.status.state, &self.status.host) {
            (CellState::Unhealthy, None) => {
                self.status.why = Some(why);
                self.unannounced = true;
                self.stage = Stage::Pause { until_ms: now_ms + self.retry_ms(), check: false };
            }
            _ => self.fall_ill(why, now_ms),
        }
    }

    /// Presence ended, or a wait for the builder was lost.
    pub fn watched(&mut self, how: Watched, now_ms: i64) {
        self.status.present = false;
        let short = now_ms - self.watched_since_ms < i64::try_from(self.clocks.lost_after_ms).unwrap_or(0);
        self.flaps = if short { self.flaps + 1 } else { 0 };
        match how {
            Watched::Ended(PresenceEnd::Sick { why }) => {
                self.fall_ill(cut(&format!("buildkitd does not solve: {why}")), now_ms);
            }
            _ if self.flaps >= FLAPS => self.fall_ill("its builder does not stay up".to_owned(), now_ms),
            Watched::Ended(PresenceEnd::Restarted) => {
                (self.anew, self.unanswered) = (true, 0);
                self.stage = self.check_soon(false);
            }
            Watched::Ended(PresenceEnd::Stopping { running }) => self.builder_ends(running, now_ms),
            Watched::Lost { late } => self.stage = self.check_soon(late),
        }
    }

    pub(super) fn check_soon(&self, late: bool) -> Stage {
        let patience_ms = self.clocks.lost_after_ms;
        Stage::Check { patience_ms: if late { patience_ms * LATE } else { patience_ms } }
    }

    /// In order, and not by this Cell's order: whoever did it starts it again.
    fn builder_ends(&mut self, running: Vec<AttemptId>, now_ms: i64) {
        self.stage = Stage::Check { patience_ms: self.clocks.start_patience_ms };
        if self.status.state == CellState::Ready {
            self.enter(CellState::Stopped, "its builder was told to end", now_ms);
            let reason = format!("the builder of cell {} ends", self.status.cell);
            self.tell(TellOrder {
                cell: self.status.cell.clone(),
                lost: false,
                except: running,
                unknown_to: None,
                reason,
            });
        }
    }

    /// The intake was closed; `None` when nobody answered.
    pub fn closed(&mut self, report: Option<CellReport>, now_ms: i64) {
        let Some(report) = report else {
            self.stage = self.check_soon(false);
            return;
        };
        self.tell_forgotten(&report);
        self.hear_of_orders(&report);
        let reason = self.reason();
        let Some(drain) = &mut self.status.drain else { return };
        if report.open {
            return self.order_again("its builder goes on taking builds although it was ordered not to", now_ms);
        }
        let first = !std::mem::replace(&mut drain.closed, true);
        drain.idle = report.running.is_empty();
        if first {
            let (cell, except) = (self.status.cell.clone(), report.running);
            self.tell(TellOrder { cell, lost: false, except, unknown_to: None, reason });
        }
        self.after_drain_step(now_ms);
    }

    /// A wait for the running builds ended; `None` when it was lost.
    pub fn settled(&mut self, report: Option<CellReport>, now_ms: i64) {
        self.settles += 1;
        let Some(report) = report else {
            self.stage = self.check_soon(false);
            return self.stop_waiting(now_ms);
        };
        self.tell_forgotten(&report);
        if let Some(drain) = &mut self.status.drain {
            drain.idle = report.running.is_empty();
        }
        self.after_drain_step(now_ms);
        self.stop_waiting(now_ms);
    }

    /// A drain always ends: a builder that does not let go counts as ill, and its builds are told.
    fn stop_waiting(&mut self, now_ms: i64) {
        let waits = self.status.drain.as_ref().is_some_and(|drain| !drain.idle);
        if waits && self.settles >= SETTLES && now_ms >= self.drain_until_ms {
            self.fall_ill("its builder does not let go of its builds".to_owned(), now_ms);
        }
    }

    pub(super) fn after_drain_step(&mut self, now_ms: i64) {
        let Some(drain) = &self.status.drain else { return };
        let (closed, idle, then) = (drain.closed, drain.idle, drain.then.clone());
        self.stage = match (closed, idle, then) {
            (false, _, _) => Stage::Close,
            (true, false, _) => Stage::Settle,
            (true, true, DrainEnd::Stay) => {
                if self.close_records(SignalOutcome::Done) {
                    self.note("drained: nothing runs here", now_ms);
                }
                Stage::Watch
            }
            (true, true, _) => Stage::Stop,
        };
    }

    fn delete(&mut self, now_ms: i64) {
        (self.status.drain, self.work) = (None, None);
        self.status.present = false;
        self.give_up_clone("the cell is deleted", now_ms);
        self.enter(CellState::Deleted, if self.erase { "deleted with its disk" } else { "retired" }, now_ms);
        self.close_records(SignalOutcome::Done);
        self.stage = Stage::End;
    }

    /// The host said what runs.
    pub fn inspected(&mut self, answer: Result<HostCell, HostTrouble>, now_ms: i64) {
        match answer {
            Ok(cell) => {
                let running = cell.running;
                self.host_says(cell);
                match running {
                    true => self.await_builder("it runs on its host", now_ms),
                    false => self.stage = Stage::Start,
                }
            }
            Err(trouble) => self.ask_later(trouble, now_ms),
        }
    }

    /// The host stopped the cell.
    pub fn stopped(&mut self, answer: Result<HostCell, HostTrouble>, now_ms: i64) {
        match answer {
            Ok(cell) => {
                self.host_says(cell);
                self.status.present = false;
                self.go_on_stopped(now_ms);
            }
            Err(HostTrouble::Failed(why)) if self.status.state == CellState::Unhealthy => {
                self.status.failures += 1;
                self.fall_ill(cut(&format!("its host cannot stop it: {why}")), now_ms);
            }
            Err(HostTrouble::Failed(why)) => self.fall_ill(cut(&format!("its host cannot stop it: {why}")), now_ms),
            Err(trouble) => self.ask_later(trouble, now_ms),
        }
    }

    /// The host looked at the way to the cell. What was not wrong, or cannot be mended, leaves the restart; so does what was ordered
    /// meanwhile, which stops the cell anyway.
    pub fn replugged(&mut self, answer: Result<Vec<String>, HostTrouble>, now_ms: i64) {
        let wanted = std::mem::take(&mut self.wedged);
        match answer {
            Ok(mended) if !mended.is_empty() => {
                self.note(&format!("re-plugged: {}", mended.join(", ")), now_ms);
                if wanted {
                    // Connections that stood still for so long take their time to go on.
                    self.stage = self.check_soon(true);
                }
            }
            Ok(_) | Err(HostTrouble::Failed(_)) => {}
            Err(trouble) => {
                // What keeps the agent silent may be all that is wrong with the cell.
                self.wedged = wanted;
                self.ask_later(trouble, now_ms);
            }
        }
    }

    /// The host stopped the cell and deleted it.
    pub fn erased(&mut self, answer: Result<HostCell, HostTrouble>, now_ms: i64) {
        match answer {
            Ok(_) => self.delete(now_ms),
            // As long as it is not deleted it may as well not be stopped.
            Err(trouble) => self.stopped(Err(trouble), now_ms),
        }
    }

    fn go_on_stopped(&mut self, now_ms: i64) {
        if self.status.state == CellState::Unhealthy {
            if self.work == Some(DrainEnd::Retire) {
                return self.delete(now_ms);
            }
            self.tell_lost();
            self.stage = Stage::Start;
            return;
        }
        // A drain that is to stay was asked for while the host already stopped the cell: it holds after the start.
        if let Some(drain) = self.status.drain.take_if(|drain| drain.then != DrainEnd::Stay) {
            self.work = Some(drain.then);
        }
        match &self.work {
            Some(DrainEnd::Retire) => return self.delete(now_ms),
            Some(DrainEnd::Update { image }) => {
                let what = format!("updating to {image}");
                self.enter(CellState::Updating, &what, now_ms);
            }
            _ => self.enter(CellState::Stopped, "stopped", now_ms),
        }
        self.stage = Stage::Start;
    }

    /// The host started the cell. A restart counts when the host has answered for all of it.
    pub fn started(&mut self, answer: Result<HostCell, HostTrouble>, now_ms: i64) {
        if self.status.state == CellState::Unhealthy && answer != Err(HostTrouble::Silent) {
            self.status.failures += 1;
        }
        match answer {
            Ok(cell) => {
                self.host_says(cell);
                self.await_builder("started", now_ms);
            }
            Err(HostTrouble::Failed(why)) => self.fall_ill(cut(&format!("its host cannot start it: {why}")), now_ms),
            Err(trouble) => self.ask_later(trouble, now_ms),
        }
    }

    fn host_says(&mut self, cell: HostCell) {
        self.silent = 0;
        if cell.image.is_some() {
            self.status.image = cell.image.map(|image| cut(&image));
        }
    }

    fn await_builder(&mut self, what: &str, now_ms: i64) {
        self.enter(CellState::Starting, what, now_ms);
        (self.anew, self.unanswered) = (true, 0);
        self.stage = Stage::Check { patience_ms: self.clocks.start_patience_ms };
    }

    /// A host that does not answer is no fault of the cell.
    fn ask_later(&mut self, trouble: HostTrouble, now_ms: i64) {
        let host = self.status.host.as_ref().map_or_else(String::new, ToString::to_string);
        self.status.why = Some(match trouble {
            HostTrouble::Silent => format!("the agent of host {host} does not answer"),
            HostTrouble::Failed(why) => cut(&format!("host {host}: {why}")),
        });
        self.unannounced = true;
        let pause = self.retry_ms() << self.silent.min(DOUBLINGS);
        self.silent = self.silent.saturating_add(1);
        let may_be_well = self.status.state == CellState::Unhealthy && self.stage == Stage::Stop && self.work.is_none();
        self.stage = match may_be_well {
            // What kept both silent may be over for the builder first.
            true if self.wedged => Stage::Check { patience_ms: pause.unsigned_abs() },
            check => Stage::Pause { until_ms: now_ms + pause, check },
        };
    }

    fn retry_ms(&self) -> i64 {
        i64::try_from(self.clocks.retry_ms).unwrap_or(i64::MAX / 64).clamp(1, 3_600_000)
    }

    /// A pause is over.
    pub fn paused(&mut self) {
        if std::mem::take(&mut self.second_tell) {
            self.tell_lost();
        }
        // An order came in the same moment: what it asks for is next.
        let Stage::Pause { check, .. } = self.stage else { return };
        self.stage = match self.status.state {
            _ if check => self.check_soon(false),
            CellState::Unhealthy => self.look(),
            CellState::Provisioning | CellState::Starting => Stage::Inspect,
            CellState::Stopped | CellState::Updating => Stage::Start,
            CellState::Draining => Stage::Stop,
            CellState::Ready | CellState::Deleted => self.check_soon(false),
        };
    }

    /// What is done about an unhealthy cell.
    pub(super) fn look(&self) -> Stage {
        match self.status.host {
            Some(_) => Stage::Stop,
            None => Stage::Check { patience_ms: self.clocks.retry_ms * LONG },
        }
    }

    /// The cell is of no use now: its builds go elsewhere, and its host restarts it.
    fn fall_ill(&mut self, why: String, now_ms: i64) {
        let stable = i64::try_from(self.clocks.stable_ms).unwrap_or(i64::MAX);
        if self.ready_since_ms.take().is_some_and(|since| now_ms - since >= stable) {
            self.status.failures = 0;
        }
        if let Some(drain) = self.status.drain.take_if(|drain| drain.then != DrainEnd::Stay) {
            self.work = Some(drain.then);
        }
        if let Some(drain) = &mut self.status.drain {
            (drain.closed, drain.idle) = (false, false);
        }
        (self.settles, self.flaps, self.status.present, self.wedged) = (0, 0, false, false);
        (self.anew, self.unanswered) = (false, 0);
        self.status.why = Some(why.clone());
        self.enter(CellState::Unhealthy, &why, now_ms);
        self.tell_lost();
        match &self.status.host {
            None => {
                self.second_tell = true;
                self.stage = Stage::Pause { until_ms: now_ms + SECOND_TELL_MS, check: false };
            }
            Some(_) if self.status.failures >= RESTARTS => self.take_out(&why, now_ms),
            Some(_) => self.stage = Stage::Stop,
        }
    }

    fn take_out(&mut self, why: &str, now_ms: i64) {
        let what = cut(&format!("taken out after {RESTARTS} restarts in vain: {why}"));
        self.status.taken_out = true;
        self.status.why = Some(what.clone());
        self.note(&what, now_ms);
        self.work = None;
        self.give_up_clone("the cell was taken out", now_ms);
        self.close_records(SignalOutcome::Failed);
        self.stage = Stage::Rest;
    }

    fn tell_lost(&mut self) {
        let why = self.status.why.clone().unwrap_or_default();
        let reason = cut(&format!("cell {} is unhealthy: {why}", self.status.cell));
        self.tell(TellOrder {
            cell: self.status.cell.clone(),
            lost: true,
            except: Vec::new(),
            unknown_to: None,
            reason,
        });
    }
}
