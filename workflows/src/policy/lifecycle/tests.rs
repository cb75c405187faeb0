//! Long random schedules of signals, losses and answers against a model of the cell's world, whose intake is the builder's own code.

mod scenarios;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::answers::RESTARTS;
use super::*;
use crate::contract::{AttemptId, CloneRequest, DrainRequest, HostCell, SignalOutcome, UpdateRequest};
use crate::policy::{Intake, Order};

const SLOTS: u32 = 3;

fn clocks() -> CellClocks {
    CellClocks::default()
}

fn birth(host: bool, provision: bool) -> Birth {
    let host = host.then(|| "h1".parse().unwrap());
    let (cell, pool) = ("c1".parse().unwrap(), "p".parse().unwrap());
    Birth { cell, pool, slots: SLOTS, host, provision, clone_of: None, clocks: clocks() }
}

fn at(now_ms: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(now_ms).unwrap()
}

fn clone_of(life: &Life, name: &str) -> Order {
    let by = life.status.cell.to_string();
    Order::Clone(CloneRequest { name: name.parse().unwrap(), reason: None, by: Some(by) })
}

fn drain(deadline: Option<i64>) -> DrainRequest {
    DrainRequest { reason: Some("disk".into()), by: Some("ops".into()), deadline: deadline.map(at) }
}

/// What happens next in the world.
#[derive(Debug, Clone)]
enum Event {
    Signal(Signal),
    /// The life's next action is done.
    Act,
    /// … and if the host does it, an order comes meanwhile.
    ActUnder(Signal),
    /// The host answers for the clone that it makes.
    Copied,
    /// It is begun at the builder, and then dropped: its effect comes late.
    ActLate,
    LateOrders,
    Time(u32),
    /// A build is sent to the cell's line, whatever placement knows.
    Arrive,
    /// The builder takes builds from the line.
    PickUp,
    /// A build ends by itself.
    Finish,
    Freeze,
    Thaw,
    Unplug,
    Crash,
    /// … and the server gives it a build in that moment.
    CrashAsItIsGiven,
    DaemonSick,
    DaemonWell,
    HostAway,
    HostBack,
    /// The next order to the host fails.
    HostFails,
    ServerOutage,
    /// The server's clock is set back by so much, or another Cell of a clock ahead has given the last order.
    ClockSetBack(u32),
}

#[derive(Debug, Clone)]
enum Signal {
    Drain(Option<u32>),
    DrainInThePast,
    Undrain,
    Restart,
    Update(u8),
    Clone(u8),
    /// Of a cell that is no clone, so that it is refused.
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Builder {
    Up,
    Frozen,
    Down,
}

struct World {
    life: Life,
    now: i64,
    intake: Intake,
    builder: Builder,
    daemon_well: bool,
    host_answers: bool,
    host_fails: bool,
    outage: bool,
    /// Only the way to the cell is broken.
    unplugged: bool,
    /// Builds in the cell's line.
    line: Vec<AttemptId>,
    /// Builds that were given to a builder which died before it knew.
    adrift: Vec<AttemptId>,
    /// The builder answers for the presence of its former self.
    anew: bool,
    /// Connections of a builder that is no more, on which the server waits to give something away.
    dead_polls: u32,
    late: Vec<(bool, i64)>,
    arrived: u32,
    epoch: u64,
    /// How often the host started the cell, and with which image.
    starts: u32,
    image: Option<String>,
    /// An order that comes while the host does something.
    meanwhile: Option<Signal>,
    /// Restarts and updates that were accepted, by their time: the starts before them, and the image they want.
    restarts: BTreeMap<i64, (u32, Option<String>)>,
    /// Builds that ran on the builder when it was told that nothing may start any more, and everything that started since.
    started: BTreeMap<String, i64>,
}

impl World {
    fn new(host: bool, provision: bool) -> Self {
        Self {
            life: Life::new(birth(host, provision), 1_000_000),
            now: 1_000_000,
            intake: Intake::new(SLOTS, true, 0),
            builder: if provision { Builder::Down } else { Builder::Up },
            daemon_well: true,
            host_answers: true,
            host_fails: false,
            outage: false,
            unplugged: false,
            line: Vec::new(),
            adrift: Vec::new(),
            anew: false,
            dead_polls: 0,
            late: Vec::new(),
            arrived: 0,
            epoch: 1,
            starts: 0,
            image: None,
            meanwhile: None,
            restarts: BTreeMap::new(),
            started: BTreeMap::new(),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Signal(signal) => self.signal(signal),
            Event::Act => self.act(),
            Event::ActUnder(signal) => {
                self.meanwhile = Some(signal);
                self.act();
                self.meanwhile = None;
            }
            Event::Copied => self.copied(),
            Event::ActLate => self.act_late(),
            Event::LateOrders => self.late_orders(),
            Event::Time(ms) => self.now += i64::from(ms),
            Event::Arrive => self.arrive(),
            Event::PickUp => self.pick_up(),
            Event::Finish => self.finish(),
            Event::Freeze if self.builder == Builder::Up => self.builder = Builder::Frozen,
            Event::Thaw if self.builder == Builder::Frozen => self.builder = Builder::Up,
            Event::Unplug if self.builder == Builder::Up => self.unplug(),
            Event::Crash if self.builder == Builder::Up => self.restart_builder(),
            Event::CrashAsItIsGiven if self.builder == Builder::Up && self.life.next() == Action::Watch => {
                self.adrift.extend(self.line.pop());
                self.restart_builder();
                (self.anew, self.dead_polls) = (true, 2);
            }
            Event::DaemonSick => self.daemon_well = false,
            Event::DaemonWell => self.daemon_well = true,
            Event::HostAway => self.host_answers = false,
            Event::HostBack => self.host_answers = true,
            Event::HostFails => self.host_fails = true,
            Event::ServerOutage => self.outage = true,
            Event::ClockSetBack(ms) => {
                let last = self.now.max(self.intake.ordered_ms());
                self.intake.order(self.intake.is_open(), last + 1 + i64::from(ms));
            }
            Event::Freeze | Event::Thaw | Event::Unplug | Event::Crash | Event::CrashAsItIsGiven => {}
        }
        self.check();
    }

    fn signal(&mut self, signal: Signal) {
        let order = match signal {
            Signal::Drain(deadline) => Order::Drain(drain(deadline.map(|ms| self.now + 1 + i64::from(ms)))),
            Signal::DrainInThePast => Order::Drain(drain(Some(self.now))),
            Signal::Undrain => Order::Undrain,
            Signal::Restart => Order::Restart(drain(None)),
            Signal::Update(n) => Order::Update(UpdateRequest { image: format!("i{n}"), drain: drain(None) }),
            Signal::Clone(n) => clone_of(&self.life, &format!("k{n}")),
            Signal::Delete => Order::Delete(drain(None)),
        };
        let (was, refuses) =
            (self.life.clone(), matches!(&order, Order::Drain(request) if request.deadline == Some(at(self.now))));
        self.life.order(order.clone(), self.now);
        let accepted = self.life.status.signals.last().is_some_and(|record| record.outcome == SignalOutcome::Accepted);
        let wants = match &order {
            Order::Restart(_) => Some(None),
            Order::Update(update) => Some(Some(update.image.clone())),
            _ => None,
        };
        if let (true, Some(image)) = (accepted, wants) {
            self.restarts.insert(self.now, (self.starts, image));
        }
        if refuses {
            assert_eq!((self.life.next(), &self.life.status.drain), (was.next(), &was.status.drain));
        }
        // Twice is once.
        let once = self.life.clone();
        self.life.order(order, self.now);
        assert_eq!(self.life.next(), once.next());
        assert_eq!(self.life.status.drain, once.status.drain);
    }

    fn arrive(&mut self) {
        self.arrived += 1;
        let platform = "linux/amd64".parse().unwrap();
        let workflow_id = format!("build/p/{}", self.arrived);
        self.line.push(AttemptId { workflow_id, run_id: "r".into(), platform, number: 1 });
    }

    /// What the builder's worker does: at most so many tasks as it has slots; a closed intake sends them back.
    fn pick_up(&mut self) {
        while self.builder == Builder::Up && self.intake.busy() < SLOTS && !self.line.is_empty() {
            let attempt = self.line.remove(0);
            if self.intake.take(&attempt).is_ok() {
                self.started.insert(attempt.buildkit_ref(), self.now);
            }
        }
    }

    fn finish(&mut self) {
        let first = self.intake.running().next().map(AttemptId::buildkit_ref);
        if let (Builder::Up, Some(reference)) = (self.builder, first) {
            self.intake.leave(&reference);
        }
    }

    /// What ran is answered for by its new self; the intake is as it was left.
    fn restart_builder(&mut self) {
        self.intake = Intake::new(SLOTS, self.intake.is_open(), self.intake.ordered_ms());
        self.epoch += 1;
        self.builder = Builder::Up;
    }

    fn report(&self) -> CellReport {
        CellReport {
            epoch: self.epoch,
            slots: SLOTS,
            open: self.intake.is_open(),
            ordered_ms: self.intake.ordered_ms(),
            running: self.intake.running().cloned().collect(),
            host: None,
            version: "1".into(),
            clocks: clocks(),
        }
    }

    fn tell(&mut self) {
        self.life.take_announcement();
        if let Some(order) = self.life.take_untold() {
            assert!(order.reason.chars().count() <= TEXT + 1);
            self.line.retain(|attempt| !order.lost && order.except.contains(attempt));
            if order.lost {
                // They are gone for their workflows; a builder that still runs them hears so at its next heartbeat.
                self.intake = Intake::new(SLOTS, self.intake.is_open(), self.intake.ordered_ms());
                self.adrift.clear();
            }
        }
        if let Some(order) = self.life.take_forgotten() {
            assert!(order.lost && order.unknown_to.is_some());
            self.adrift.clear();
        }
    }

    fn late_orders(&mut self) {
        for (open, at_ms) in std::mem::take(&mut self.late) {
            if self.builder == Builder::Up {
                self.intake.order(open, at_ms);
            }
        }
    }

    fn act_late(&mut self) {
        match self.life.next() {
            Action::Check { open, .. } => self.late.push((open, self.life.order_time(self.now))),
            Action::Close { .. } => self.late.push((false, self.life.order_time(self.now))),
            _ => {}
        }
        self.now += 1;
    }

    /// Does the next action as the world is, and tells the answer.
    fn act(&mut self) {
        self.tell();
        let up = self.builder == Builder::Up;
        match self.life.next() {
            Action::Check { patience_ms, open, in_doubt } => {
                let answer = self.check_builder(up, open, patience_ms, in_doubt);
                self.life.checked(answer, self.now);
            }
            Action::Watch => self.watch(up),
            Action::Close { .. } => {
                let at_ms = self.life.order_time(self.now);
                let answer = up.then(|| {
                    self.intake.order(false, at_ms);
                    self.report()
                });
                self.now += if up { 1 } else { 12_000 };
                self.life.closed(answer, self.now);
            }
            Action::Settle { deadline_ms, .. } => self.settle(up, deadline_ms),
            Action::Pause { until_ms } => {
                self.now = self.now.max(until_ms);
                self.life.paused();
            }
            Action::Inspect => {
                let answer = self.host(|_| {});
                self.life.inspected(answer, self.now);
            }
            Action::Start { image } => {
                let answer = self.host(|world| {
                    world.restart_builder();
                    world.starts += 1;
                    world.image = image.or(world.image.take());
                });
                self.life.started(answer, self.now);
            }
            Action::Stop { .. } => {
                let answer = self.host(|world| {
                    world.builder = Builder::Down;
                    world.intake = Intake::new(SLOTS, world.intake.is_open(), world.intake.ordered_ms());
                });
                self.life.stopped(answer, self.now);
            }
            Action::Replug => {
                let answer = self.host(|_| {});
                let mended = answer.is_ok() && std::mem::take(&mut self.unplugged);
                if mended {
                    self.builder = Builder::Up;
                }
                let said = mended.then(|| "its tap was down".to_owned());
                self.life.replugged(answer.map(|_| said.into_iter().collect()), self.now);
            }
            Action::Delete { .. } => {
                let answer = self.host(|world| world.builder = Builder::Down);
                self.life.erased(answer, self.now);
            }
            Action::Rest | Action::End => {}
        }
        self.now += 1;
        self.check();
    }

    fn check_builder(&mut self, up: bool, open: bool, patience_ms: u64, in_doubt: bool) -> Checked {
        let at_ms = self.life.order_time(self.now);
        if self.dead_polls > 0 {
            self.dead_polls -= 1;
            self.now += if in_doubt { 5_000 } else { 15_000 };
            return Checked::Unanswered;
        }
        match (up, self.daemon_well) {
            (false, _) => {
                self.now += i64::try_from(patience_ms).unwrap();
                Checked::Missing
            }
            (true, false) => Checked::Sick("silence".into()),
            (true, true) => {
                self.intake.order(open, at_ms);
                Checked::Passed(self.report())
            }
        }
    }

    /// Presence, until it has something to say; nothing is to be told while all is well.
    fn watch(&mut self, up: bool) {
        self.now += 15_000;
        if std::mem::take(&mut self.anew) {
            return self.life.watched(Watched::Ended(PresenceEnd::Restarted), self.now);
        }
        if std::mem::take(&mut self.outage) {
            self.now += 60_000;
            return self.life.watched(Watched::Lost { late: true }, self.now);
        }
        match (up, self.daemon_well) {
            (true, true) => {}
            (true, false) => {
                self.life.watched(Watched::Ended(PresenceEnd::Sick { why: "silence".into() }), self.now);
            }
            (false, _) => self.life.watched(Watched::Lost { late: false }, self.now),
        }
    }

    fn settle(&mut self, up: bool, deadline_ms: i64) {
        if !up {
            self.now += 12_000;
            return self.life.settled(None, self.now);
        }
        self.now += 5_000;
        let over = self.now >= deadline_ms;
        if over {
            self.intake = Intake::new(SLOTS, self.intake.is_open(), self.intake.ordered_ms());
        }
        if over || self.intake.busy() == 0 {
            let report = self.report();
            self.life.settled(Some(report), self.now);
        }
    }

    fn host(&mut self, does: impl FnOnce(&mut Self)) -> Result<HostCell, HostTrouble> {
        if let Some(signal) = self.meanwhile.take() {
            self.signal(signal);
        }
        if !self.host_answers {
            self.now += 60_000;
            return Err(HostTrouble::Silent);
        }
        if std::mem::take(&mut self.host_fails) {
            return Err(HostTrouble::Failed("no disk".into()));
        }
        does(self);
        Ok(HostCell {
            cell: "c1".parse().unwrap(),
            running: self.builder != Builder::Down,
            pid: None,
            started_ms: None,
            image: self.image.clone(),
            generation: 0,
        })
    }

    /// What holds at every moment.
    fn check(&mut self) {
        self.no_order_is_done_that_did_not_happen();
        assert!(self.intake.busy() <= SLOTS);
        let status = &self.life.status;
        if let Some(drain) = &status.drain
            && drain.closed
        {
            assert!(!self.intake.is_open(), "the drain was acknowledged, yet the intake is open: {status:#?}");
        }
        if status.drain.is_none() && self.life.next() == Action::Watch {
            assert!(self.intake.is_open(), "it is ready and takes no builds: {status:#?}");
        }
        assert!(status.signals.len() <= MEMORY && status.transitions.len() <= MEMORY);
        assert!(status.failures <= RESTARTS + 1);
    }

    fn no_order_is_done_that_did_not_happen(&mut self) {
        for record in &self.life.status.signals {
            let restarts = ["restart", "update"].contains(&record.signal.as_str());
            if !restarts || record.outcome != SignalOutcome::Done {
                continue;
            }
            let Some((before, image)) = self.restarts.remove(&record.at_ms) else { continue };
            assert!(self.starts > before, "done without a start: {:#?}", self.life.status);
            assert!(image.is_none() || image == self.image, "done without its image: {:#?}", self.life.status);
        }
    }

    /// The clone's own branch.
    fn copied(&mut self) {
        let Some(clone) = self.life.clone_to_make().cloned() else { return };
        let (outcome, note) = match self.host(|_| {}) {
            Ok(_) => (SignalOutcome::Done, "made".to_owned()),
            Err(trouble) => (SignalOutcome::Failed, format!("{trouble:?}")),
        };
        self.life.cloned(&clone, outcome, &note, self.now);
    }

    /// What a run hands to the next is small, and all there is.
    fn is_carried_over(&self) {
        let bytes = serde_json::to_vec(&self.life).unwrap();
        assert!(bytes.len() < 32 << 10, "{} bytes", bytes.len());
        assert_eq!(serde_json::from_slice::<Life>(&bytes).unwrap(), self.life, "continue-as-new loses nothing");
    }

    /// The way to the builder breaks.
    fn unplug(&mut self) {
        (self.builder, self.unplugged) = (Builder::Frozen, true);
    }

    /// Everything works again; the life comes to rest, and whatever was ordered has ended.
    fn heals(&mut self) {
        self.is_carried_over();
        (self.daemon_well, self.host_answers, self.host_fails, self.outage) = (true, true, false, false);
        match (self.builder, &self.life.status.host) {
            (Builder::Frozen, _) => self.builder = Builder::Up,
            (Builder::Down, None) => self.restart_builder(),
            _ => {}
        }
        self.late_orders();
        for _ in 0..200 {
            self.act();
            self.copied();
            let quiet = matches!(self.life.next(), Action::Watch | Action::Rest | Action::End);
            if quiet && !self.life.has_news() {
                break;
            }
            if let Action::Settle { deadline_ms, .. } = self.life.next() {
                // Nobody waits a day: builds have their own limits.
                self.now = self.now.max(deadline_ms - 10_000);
            }
        }
        self.is_carried_over();
        let status = &self.life.status;
        let drained = status.drain.as_ref().is_some_and(|d| d.closed && d.idle && d.then == DrainEnd::Stay);
        match status.state {
            CellState::Ready => assert!(status.drain.is_none() && self.intake.is_open(), "{status:#?}"),
            CellState::Draining => assert!(drained, "a drain that does not end: {status:#?}"),
            CellState::Unhealthy => assert!(status.taken_out && status.host.is_some(), "{status:#?}"),
            other => panic!("{other:?} is no rest: {status:#?}"),
        }
        assert!(self.adrift.is_empty(), "nobody tells {:?}", self.adrift);
        let open = status.signals.iter().filter(|record| record.outcome == SignalOutcome::Accepted);
        assert!(status.taken_out || open.count() == 0, "{:#?}", status.signals);
    }
}

fn order() -> impl Strategy<Value = Signal> {
    prop_oneof![
        4 => prop::option::of(0u32..200_000).prop_map(Signal::Drain),
        1 => Just(Signal::DrainInThePast),
        3 => Just(Signal::Undrain),
        2 => Just(Signal::Restart),
        2 => (0u8..3).prop_map(Signal::Update),
        1 => (0u8..3).prop_map(Signal::Clone),
        1 => Just(Signal::Delete),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => order().prop_map(Event::Signal),
        30 => Just(Event::Act),
        3 => order().prop_map(Event::ActUnder),
        2 => Just(Event::Copied),
        4 => Just(Event::ActLate),
        3 => Just(Event::LateOrders),
        4 => (0u32..100_000).prop_map(Event::Time),
        10 => Just(Event::Arrive),
        12 => Just(Event::PickUp),
        6 => Just(Event::Finish),
        2 => Just(Event::Freeze),
        3 => Just(Event::Thaw),
        2 => Just(Event::Unplug),
        2 => Just(Event::Crash),
        2 => Just(Event::CrashAsItIsGiven),
        1 => Just(Event::DaemonSick),
        2 => Just(Event::DaemonWell),
        1 => Just(Event::HostAway),
        2 => Just(Event::HostBack),
        1 => Just(Event::HostFails),
        1 => Just(Event::ServerOutage),
        1 => (0u32..100_000).prop_map(Event::ClockSetBack),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_slots_hold_closed_stays_closed_and_drains_end(
        host in any::<bool>(),
        provision in any::<bool>(),
        events in prop::collection::vec(event(), 0..300),
    ) {
        let mut world = World::new(host, host && provision);
        for event in events {
            world.happen(event);
        }
        world.heals();
    }
}
