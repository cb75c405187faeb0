//! Long random schedules of signals, losses and answers against a model of the cell's world, whose intake is the builder's own code.

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
            Action::Check { open, .. } => self.late.push((open, self.now)),
            Action::Close { .. } => self.late.push((false, self.now)),
            _ => {}
        }
        self.now += 1;
    }

    /// Does the next action as the world is, and tells the answer.
    fn act(&mut self) {
        self.tell();
        let up = self.builder == Builder::Up;
        match self.life.next() {
            Action::Check { patience_ms, open } => {
                let answer = self.check_builder(up, open, patience_ms);
                self.life.checked(answer, self.now);
            }
            Action::Watch => self.watch(up),
            Action::Close { .. } => {
                let answer = up.then(|| {
                    self.intake.order(false, self.now);
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

    fn check_builder(&mut self, up: bool, open: bool, patience_ms: u64) -> Checked {
        if self.dead_polls > 0 {
            self.dead_polls -= 1;
            self.now += 15_000;
            return Checked::Unanswered;
        }
        match (up, self.daemon_well) {
            (false, _) => {
                self.now += i64::try_from(patience_ms).unwrap();
                Checked::Missing
            }
            (true, false) => Checked::Sick("silence".into()),
            (true, true) => {
                self.intake.order(open, self.now);
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

/// The world after `n` actions.
fn lived(host: bool, n: usize) -> World {
    let mut world = World::new(host, false);
    (0..n).for_each(|_| world.act());
    world
}

fn states(life: &Life) -> Vec<CellState> {
    life.status.transitions.iter().map(|transition| transition.state).collect()
}

#[test]
fn a_cell_that_runs_already_is_checked_and_is_ready() {
    let world = lived(false, 1);
    assert_eq!(world.life.status.state, CellState::Ready);
    assert_eq!(world.life.next(), Action::Watch);
}

#[test]
fn a_provisioned_cell_is_started_first() {
    let mut world = World::new(true, true);
    assert_eq!(world.life.next(), Action::Start { image: None });
    world.act();
    assert_eq!(world.life.status.state, CellState::Starting);
    world.act();
    assert_eq!(world.life.status.state, CellState::Ready);
}

#[test]
fn a_restart_drains_stops_starts_and_is_done_when_the_canary_is() {
    let mut world = lived(true, 1);
    world.arrive();
    world.pick_up();
    world.signal(Signal::Restart);
    assert!(matches!(world.life.next(), Action::Close { .. }));
    world.act();
    assert!(matches!(world.life.next(), Action::Settle { .. }));
    world.finish();
    (0..4).for_each(|_| world.act());
    use CellState::{Draining, Ready, Starting, Stopped};
    assert_eq!(states(&world.life), [Ready, Draining, Draining, Stopped, Starting, Ready]);
    assert_eq!(world.life.status.signals[0].outcome, SignalOutcome::Done);
    assert_eq!(world.life.status.signals[1].outcome, SignalOutcome::Nothing, "the repeated one");
}

#[test]
fn a_cell_without_a_host_refuses_a_restart_and_says_why() {
    let mut world = lived(false, 1);
    world.signal(Signal::Restart);
    let record = &world.life.status.signals[0];
    assert_eq!(record.outcome, SignalOutcome::Refused);
    assert!(record.note.contains("no host"), "{record:?}");
    assert_eq!(world.life.status.state, CellState::Ready);
}

#[test]
fn a_server_outage_loses_no_cell() {
    let mut world = lived(true, 1);
    for _ in 0..10 {
        world.outage = true;
        world.act();
        assert_eq!(world.life.next(), Action::Check { patience_ms: 48_000, open: true });
        world.act();
    }
    assert_eq!(states(&world.life), [CellState::Ready]);
}

#[test]
fn a_lost_cell_tells_its_builds_is_restarted_twice_and_taken_out() {
    let mut world = lived(true, 1);
    world.builder = Builder::Frozen;
    world.act();
    assert_eq!(world.life.next(), Action::Check { patience_ms: 12_000, open: true });
    world.act();
    assert_eq!(world.life.status.state, CellState::Unhealthy);
    assert!(world.life.untold.as_ref().is_some_and(|order| order.lost));
    world.daemon_well = false;
    for _ in 0..20 {
        world.act();
    }
    assert!(world.life.status.taken_out, "{:#?}", world.life.status);
    assert_eq!(world.epoch, 3, "two restarts");
    assert_eq!(world.life.next(), Action::Rest);
    let why = world.life.status.why.clone().unwrap();
    assert!(why.contains("taken out after 2 restarts in vain: buildkitd does not solve"), "{why}");
    world.daemon_well = true;
    world.signal(Signal::Undrain);
    world.heals();
    assert_eq!(world.life.status.state, CellState::Ready);
}

#[test]
fn a_wedged_way_is_mended_and_the_cell_is_not_restarted() {
    let mut world = lived(true, 1);
    world.unplug();
    (0..2).for_each(|_| world.act());
    assert_eq!((world.life.status.state, world.life.next()), (CellState::Unhealthy, Action::Replug));
    assert!(world.life.untold.as_ref().is_some_and(|order| order.lost), "its builds do not wait for it");
    world.act();
    assert_eq!(world.life.next(), Action::Check { patience_ms: 48_000, open: true });
    world.act();
    assert_eq!((world.life.status.state, world.epoch), (CellState::Ready, 1));
    assert!(world.life.status.transitions.iter().any(|t| t.what == "re-plugged: its tap was down"));
    assert_eq!(world.life.status.failures, 0);
}

#[test]
fn a_way_that_is_not_mended_leaves_the_restart() {
    // Nothing was wrong; or mending it did not help.
    for help in [false, true] {
        let mut world = lived(true, 1);
        world.builder = Builder::Frozen;
        (0..2).for_each(|_| world.act());
        assert_eq!(world.life.next(), Action::Replug);
        if help {
            world.life.replugged(Ok(vec!["its tap was down".into()]), world.now);
        }
        world.act();
        assert!(matches!(world.life.next(), Action::Stop { .. }), "{:?}", world.life.next());
        (0..3).for_each(|_| world.act());
        assert_eq!((world.life.status.state, world.epoch), (CellState::Ready, 2));
    }
    // What is to be restarted anyway is.
    let mut world = lived(true, 1);
    world.signal(Signal::Restart);
    world.builder = Builder::Frozen;
    (0..2).for_each(|_| world.act());
    assert!(matches!(world.life.next(), Action::Stop { .. }), "{:?}", world.life.next());
}

#[test]
fn what_is_ordered_while_a_way_is_mended_is_done_all_the_same() {
    let mut world = lived(true, 1);
    world.unplug();
    (0..2).for_each(|_| world.act());
    assert_eq!(world.life.next(), Action::Replug);
    world.meanwhile = Some(Signal::Update(1));
    world.act();
    assert!(matches!(world.life.next(), Action::Stop { .. }), "{:?}", world.life.next());
    world.heals();
    assert_eq!((world.life.status.image.as_deref(), world.starts), (Some("i1"), 1));
}

#[test]
fn an_update_that_comes_while_an_ill_cell_is_started_comes_after_it() {
    let mut world = lived(true, 1);
    world.daemon_well = false;
    (0..2).for_each(|_| world.act());
    assert_eq!((world.life.status.state, world.life.next()), (CellState::Unhealthy, Action::Start { image: None }));
    (world.daemon_well, world.meanwhile) = (true, Some(Signal::Update(1)));
    world.act();
    world.heals();
    assert_eq!((world.life.status.image.as_deref(), world.starts), (Some("i1"), 2));
}

#[test]
fn an_agent_that_is_silent_spares_the_steps_of_a_wedged_cell() {
    let mut world = lived(true, 1);
    world.unplug();
    world.host_answers = false;
    (0..8).for_each(|_| world.act());
    world.host_answers = true;
    (0..4).for_each(|_| world.act());
    assert_eq!((world.life.status.state, world.starts), (CellState::Ready, 0), "{:#?}", world.life.status);
}

#[test]
fn an_agent_that_is_silent_between_stop_and_start_is_no_restart_in_vain() {
    let mut world = lived(true, 1);
    world.daemon_well = false;
    world.act();
    for _ in 0..5 {
        assert!(matches!(world.life.next(), Action::Stop { .. }), "{:?}", world.life.next());
        world.act();
        world.host_answers = false;
        (0..2).for_each(|_| world.act());
        world.host_answers = true;
    }
    assert_eq!((world.life.status.failures, world.life.status.taken_out), (0, false));
}

#[test]
fn an_unhealthy_cell_without_a_host_comes_back_when_its_builder_does() {
    let mut world = lived(false, 1);
    world.builder = Builder::Frozen;
    (0..6).for_each(|_| world.act());
    assert_eq!(world.life.status.state, CellState::Unhealthy);
    world.builder = Builder::Up;
    world.act();
    assert_eq!(world.life.status.state, CellState::Ready);
}

#[test]
fn a_host_that_does_not_answer_is_asked_with_growing_pauses_and_condemns_nothing() {
    let mut world = lived(true, 1);
    world.host_answers = false;
    world.signal(Signal::Restart);
    world.act();
    let mut pauses = Vec::new();
    for _ in 0..20 {
        if let Action::Pause { until_ms } = world.life.next() {
            pauses.push(until_ms - world.now);
        }
        world.act();
    }
    assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]) && pauses.len() > 5, "{pauses:?}");
    assert_eq!(world.life.status.failures, 0);
    assert!(world.life.status.why.as_ref().unwrap().contains("the agent of host h1 does not answer"));
    world.heals();
    assert_eq!(world.life.status.state, CellState::Ready);
}

#[test]
fn a_drain_holds_through_a_lost_builder() {
    let mut world = lived(true, 1);
    world.signal(Signal::Drain(None));
    (0..2).for_each(|_| world.act());
    world.builder = Builder::Frozen;
    (0..3).for_each(|_| world.act());
    assert_eq!(world.life.status.state, CellState::Unhealthy);
    world.heals();
    assert_eq!(world.life.status.state, CellState::Draining);
    assert!(!world.intake.is_open());
}

#[test]
fn a_builder_that_does_not_stay_up_is_unhealthy() {
    let mut world = lived(true, 1);
    for _ in 0..40 {
        if world.life.next() == Action::Watch {
            world.life.watched(Watched::Ended(PresenceEnd::Restarted), world.now);
        }
        if world.life.status.state == CellState::Unhealthy {
            return;
        }
        world.act();
    }
    panic!("{:#?}", world.life.status);
}

#[test]
fn a_retired_cell_ends() {
    let mut world = lived(true, 1);
    world.life.order(Order::Retire(drain(None)), world.now);
    (0..4).for_each(|_| world.act());
    assert_eq!(world.life.next(), Action::End);
    assert_eq!(world.life.status.state, CellState::Deleted);
}

fn clone_of(life: &Life, name: &str) -> Order {
    let by = life.status.cell.to_string();
    Order::Clone(CloneRequest { name: name.parse().unwrap(), reason: None, by: Some(by) })
}

fn last(world: &World) -> (&str, SignalOutcome, &str) {
    let record = world.life.status.signals.last().unwrap();
    (&record.signal, record.outcome, &record.note)
}

#[test]
fn a_clone_is_made_beside_the_cells_own_life() {
    let mut world = lived(true, 1);
    world.life.order(clone_of(&world.life, "c1-b"), world.now);
    assert_eq!(last(&world), ("clone", SignalOutcome::Accepted, ""));
    world.life.order(clone_of(&world.life, "c1-b"), world.now);
    assert_eq!(last(&world).1, SignalOutcome::Nothing);
    world.life.order(clone_of(&world.life, "c1-c"), world.now);
    assert_eq!(last(&world), ("clone", SignalOutcome::Refused, "c1-b is being made of it: one clone at a time"));
    assert_eq!(world.life.next(), Action::Watch, "nothing stands still meanwhile");
    // A drain that comes first does not end the clone's record, and its end not the drain's.
    world.signal(Signal::Drain(None));
    (0..2).for_each(|_| world.act());
    world.copied();
    let outcomes: Vec<_> = world.life.status.signals.iter().map(|record| record.outcome).collect();
    use SignalOutcome::{Done, Nothing, Refused};
    assert_eq!(outcomes, [Done, Nothing, Refused, Done, Nothing]);
    assert_eq!(world.life.status.signals[0].note, "c1-b: made");
    assert_eq!((world.life.next(), world.life.status.state), (Action::Watch, CellState::Draining));
}

#[test]
fn a_clone_that_cannot_be_made_changes_nothing_else() {
    let mut world = lived(true, 1);
    world.life.order(clone_of(&world.life, "c1-b"), world.now);
    world.host_fails = true;
    world.copied();
    assert_eq!(last(&world).1, SignalOutcome::Failed);
    assert!(last(&world).2.contains("no disk"), "{:?}", last(&world));
    assert_eq!((world.life.next(), world.life.status.state), (Action::Watch, CellState::Ready));
    world.life.order(clone_of(&world.life, "c1"), world.now);
    assert_eq!(last(&world), ("clone", SignalOutcome::Refused, "that is its own id"));
    let mut alone = lived(false, 1);
    alone.life.order(clone_of(&alone.life, "c1-b"), alone.now);
    assert_eq!(last(&alone), ("clone", SignalOutcome::Refused, "no host has this cell's disk"));
}

#[test]
fn only_a_clone_is_deleted_with_its_disk() {
    let mut world = lived(true, 1);
    world.signal(Signal::Delete);
    assert_eq!(
        last(&world),
        ("delete", SignalOutcome::Refused, "it is no clone: only clones are deleted with their disks")
    );
    world.life.status.clone_of = Some("main".parse().unwrap());
    world.life.order(clone_of(&world.life, "c3"), world.now);
    assert_eq!(last(&world), ("clone", SignalOutcome::Refused, "it is a clone itself: clone main"));
    // A retirement under way becomes a deletion.
    world.life.order(Order::Retire(drain(None)), world.now);
    world.life.order(Order::Delete(drain(None)), world.now);
    assert_eq!(last(&world).1, SignalOutcome::Accepted);
    world.act();
    assert!(matches!(world.life.next(), Action::Delete { .. }), "{:?}", world.life.next());
    world.host_fails = true;
    (0..2).for_each(|_| world.act());
    assert_eq!((world.life.next(), world.life.status.state), (Action::End, CellState::Deleted));
    assert_eq!(last(&world), ("delete", SignalOutcome::Done, ""));
}

#[test]
fn a_restart_calls_a_deletion_off() {
    let mut world = lived(true, 1);
    world.life.status.clone_of = Some("main".parse().unwrap());
    world.signal(Signal::Delete);
    world.signal(Signal::Restart);
    (0..6).for_each(|_| world.act());
    assert_eq!((world.life.next(), world.epoch), (Action::Watch, 2));
    world.life.order(Order::Retire(drain(None)), world.now);
    world.act();
    assert!(matches!(world.life.next(), Action::Stop { .. }), "a retired cell keeps its disk");
}

#[test]
fn an_update_to_the_image_it_runs_is_nothing() {
    let mut world = lived(true, 1);
    world.signal(Signal::Update(1));
    (0..8).for_each(|_| world.act());
    assert_eq!(world.life.status.image.as_deref(), Some("i1"));
    assert!(states(&world.life).contains(&CellState::Updating));
    world.signal(Signal::Update(1));
    assert_eq!(world.life.status.signals.last().unwrap().outcome, SignalOutcome::Nothing);
    assert_eq!(world.life.next(), Action::Watch);
}

#[test]
fn one_undrain_frees_a_cell_that_was_drained_and_then_taken_out() {
    let mut world = lived(true, 1);
    world.signal(Signal::Drain(None));
    world.daemon_well = false;
    (0..20).for_each(|_| world.act());
    assert!(world.life.status.taken_out && world.life.status.drain.is_some());
    world.signal(Signal::Undrain);
    world.heals();
    assert_eq!(world.life.status.state, CellState::Ready);
}

#[test]
fn another_deadline_for_a_cell_that_is_drained_is_done_at_once() {
    let mut world = lived(false, 1);
    world.signal(Signal::Drain(None));
    (0..2).for_each(|_| world.act());
    world.signal(Signal::Drain(Some(60_000)));
    let outcomes: Vec<_> = world.life.status.signals.iter().map(|record| record.outcome).collect();
    use SignalOutcome::{Done, Nothing};
    assert_eq!(outcomes, [Done, Nothing, Done, Nothing]);
}

/// Its machine lost its power: two polls of the former builder stay open, and take what the server has.
#[test]
fn a_check_that_a_dead_builder_was_given_costs_no_restart() {
    let mut world = lived(true, 1);
    world.happen(Event::CrashAsItIsGiven);
    world.act();
    let asked = |world: &World| matches!(world.life.next(), Action::Check { .. });
    for _ in 0..2 {
        assert!(asked(&world), "{:?}", world.life.next());
        world.act();
    }
    assert_eq!((world.dead_polls, world.life.status.state), (0, CellState::Ready));
    world.act();
    assert_eq!((world.life.next(), world.starts), (Action::Watch, 0));
}

/// One that hangs is not given the time of one that was started anew.
#[test]
fn a_builder_that_takes_a_check_and_hangs_is_restarted_at_once() {
    let mut world = lived(true, 1);
    world.life.watched(Watched::Lost { late: false }, world.now);
    world.life.checked(Checked::Unanswered, world.now);
    assert_eq!(world.life.status.state, CellState::Unhealthy);
}
