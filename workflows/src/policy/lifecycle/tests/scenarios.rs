//! What a cell's life does in the cases that have a name.

use super::*;

/// The world after `n` actions.
fn lived(host: bool, n: usize) -> World {
    let mut world = World::new(host, false);
    (0..n).for_each(|_| world.act());
    world
}

/// A check of an open cell by the builder that is known.
fn check(patience_ms: u64) -> Action {
    Action::Check { patience_ms, open: true, in_doubt: false }
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
        assert_eq!(world.life.next(), check(48_000));
        world.act();
    }
    assert_eq!(states(&world.life), [CellState::Ready]);
}

#[test]
fn a_lost_cell_tells_its_builds_is_restarted_twice_and_taken_out() {
    let mut world = lived(true, 1);
    world.builder = Builder::Frozen;
    world.act();
    assert_eq!(world.life.next(), check(12_000));
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
    assert_eq!(world.life.next(), check(48_000));
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
    let since = world.now;
    for _ in 0..2 {
        assert_eq!(world.life.next(), Action::Check { patience_ms: 12_000, open: true, in_doubt: true });
        world.act();
    }
    assert_eq!(world.now - since, 2 * 5_000 + 2, "a heartbeat's time each");
    assert_eq!((world.dead_polls, world.life.status.state), (0, CellState::Ready));
    world.act();
    assert_eq!((world.life.next(), world.starts), (Action::Watch, 0));
}

/// Who was in doubt too often is wrong: the last check gives a slow builder all its time.
#[test]
fn a_doubt_ends() {
    let mut world = lived(true, 1);
    world.life.watched(Watched::Ended(PresenceEnd::Restarted), world.now);
    for _ in 0..3 {
        assert!(matches!(world.life.next(), Action::Check { in_doubt: true, .. }));
        world.life.checked(Checked::Unanswered, world.now);
    }
    assert_eq!(world.life.next(), check(12_000));
    world.life.checked(Checked::Unanswered, world.now);
    assert_eq!(world.life.status.state, CellState::Unhealthy);
}

/// Its next self says so: it is checked again at once, but not for ever.
#[test]
fn a_check_that_a_restarted_builder_had_taken_is_made_again() {
    let mut world = lived(true, 1);
    world.life.watched(Watched::Lost { late: false }, world.now);
    for _ in 0..3 {
        world.life.checked(Checked::Restarted, world.now);
        assert!(matches!(world.life.next(), Action::Check { .. }));
    }
    world.life.checked(Checked::Restarted, world.now);
    assert_eq!(world.life.status.state, CellState::Unhealthy);
}

/// One that hangs is not given the time of one that was started anew.
#[test]
fn a_builder_that_takes_a_check_and_hangs_is_restarted_at_once() {
    let mut world = lived(true, 1);
    world.life.watched(Watched::Lost { late: false }, world.now);
    world.life.checked(Checked::Unanswered, world.now);
    assert_eq!(world.life.status.state, CellState::Unhealthy);
}

/// Its builder obeys an order that was given before the server's clock was set back: no order is older than that one again.
#[test]
fn a_clock_that_is_set_back_leaves_no_ready_cell_closed() {
    let mut world = lived(false, 1);
    world.signal(Signal::Drain(None));
    world.act();
    assert!(!world.intake.is_open());
    world.now -= 3_600_000;
    world.signal(Signal::Undrain);
    world.act();
    assert_eq!((world.life.status.state, world.intake.is_open()), (CellState::Ready, true));
    // A Cell that knows of nothing, because another one ended, orders again when it has heard of the order.
    world.happen(Event::Signal(Signal::Drain(None)));
    world.act();
    world.happen(Event::ClockSetBack(3_600_000));
    world.life = Life::new(birth(false, false), world.now);
    world.act();
    let why = "its builder takes no builds although it was ordered to";
    assert_eq!((world.life.status.state, world.life.status.why.as_deref()), (CellState::Starting, Some(why)));
    assert_eq!(world.life.next(), Action::Pause { until_ms: world.now - 1 + 30_000 });
    (0..2).for_each(|_| world.act());
    assert_eq!((world.life.status.state, world.intake.is_open()), (CellState::Ready, true));
    assert_eq!(world.life.status.why, None);
}

#[test]
fn a_clock_that_is_set_back_leaves_no_drained_cell_open() {
    let mut world = lived(false, 1);
    world.happen(Event::ClockSetBack(3_600_000));
    world.signal(Signal::Drain(None));
    world.act();
    assert!(world.life.status.drain.as_ref().is_some_and(|drain| !drain.closed), "{:#?}", world.life.status);
    (0..2).for_each(|_| world.act());
    assert!(world.life.status.drain.as_ref().is_some_and(|drain| drain.closed) && !world.intake.is_open());
}

/// Both are in one task of the workflow.
#[test]
fn an_undrain_that_comes_with_the_answer_to_its_check_opens_the_cell() {
    let mut world = lived(false, 1);
    world.signal(Signal::Drain(None));
    world.act();
    world.life.watched(Watched::Lost { late: false }, world.now);
    let at_ms = world.life.order_time(world.now);
    world.intake.order(false, at_ms);
    let answer = world.report();
    world.signal(Signal::Undrain);
    world.life.checked(Checked::Passed(answer), world.now);
    assert_eq!((world.life.status.state, world.life.next()), (CellState::Draining, check(12_000)));
    world.act();
    assert_eq!((world.life.status.state, world.intake.is_open()), (CellState::Ready, true));
}

/// So are these: the cell is not stopped.
#[test]
fn an_undrain_that_comes_as_a_pause_ends_is_obeyed() {
    let mut world = lived(true, 1);
    world.host_answers = false;
    world.signal(Signal::Restart);
    (0..2).for_each(|_| world.act());
    assert!(matches!(world.life.next(), Action::Pause { .. }), "{:?}", world.life.next());
    world.signal(Signal::Undrain);
    world.life.paused();
    assert_eq!(world.life.next(), check(12_000));
}

/// An outage of the host's network: its agent is as silent as the builder, and back later.
#[test]
fn a_cell_that_answers_before_its_silent_host_is_not_restarted() {
    let mut world = lived(true, 1);
    (world.builder, world.host_answers) = (Builder::Frozen, false);
    (0..3).for_each(|_| world.act());
    assert_eq!((world.life.status.state, world.life.next()), (CellState::Unhealthy, check(30_000)));
    (0..2).for_each(|_| world.act());
    assert_eq!(world.life.next(), check(60_000), "with growing patience");
    world.builder = Builder::Up;
    world.act();
    assert_eq!((world.life.status.state, world.life.status.why.as_ref()), (CellState::Ready, None));
    world.host_answers = true;
    world.signal(Signal::Restart);
    world.act();
    assert!(matches!(world.life.next(), Action::Stop { .. }), "nothing is to be mended: {:?}", world.life.next());
}

#[test]
fn a_cell_that_solves_again_after_its_hosts_silence_is_not_restarted() {
    let mut world = lived(true, 1);
    (world.daemon_well, world.host_answers) = (false, false);
    (0..2).for_each(|_| world.act());
    assert!(matches!(world.life.next(), Action::Pause { .. }), "{:?}", world.life.next());
    (world.daemon_well, world.host_answers) = (true, true);
    world.act();
    assert_eq!(world.life.next(), check(12_000));
    world.act();
    assert_eq!((world.life.status.state, world.starts), (CellState::Ready, 0));
}

#[test]
fn what_is_ordered_in_a_hosts_silence_is_done_though_the_cell_is_well() {
    let mut world = lived(true, 1);
    (world.builder, world.host_answers) = (Builder::Frozen, false);
    (0..3).for_each(|_| world.act());
    world.signal(Signal::Update(1));
    assert!(matches!(world.life.next(), Action::Stop { .. }), "{:?}", world.life.next());
    world.act();
    (world.builder, world.host_answers) = (Builder::Up, true);
    world.heals();
    assert_eq!((world.life.status.image.as_deref(), world.starts), (Some("i1"), 1));
}

/// A full disk: no host looks for a wire that is broken, and without a host there is a pause before each look.
#[test]
fn a_builder_that_cannot_do_as_ordered_is_sick_and_not_silent() {
    let failed = || Checked::Failed("no space left".into());
    let mut alone = lived(false, 1);
    alone.life.watched(Watched::Lost { late: false }, alone.now);
    for _ in 0..3 {
        assert!(matches!(alone.life.next(), Action::Check { .. }), "{:?}", alone.life.next());
        alone.life.checked(failed(), alone.now);
        let status = &alone.life.status;
        let why = "its builder cannot take orders: no space left";
        assert_eq!((status.state, status.why.as_deref()), (CellState::Unhealthy, Some(why)));
        assert!(matches!(alone.life.next(), Action::Pause { .. }), "{:?}", alone.life.next());
        alone.act();
    }
    let mut hosted = lived(true, 1);
    hosted.life.watched(Watched::Lost { late: false }, hosted.now);
    hosted.life.checked(failed(), hosted.now);
    assert!(matches!(hosted.life.next(), Action::Stop { .. }), "{:?}", hosted.life.next());
}
