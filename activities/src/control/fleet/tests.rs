//! What the fleet makes of news, and that builds which come together are spread.

use super::*;
use crate::store::ProjectRuns;

fn hint(n: usize, seq: i64, state: CellState) -> (i64, CellHint) {
    let hint = CellHint {
        cell: cell(n),
        pool: "p".parse().unwrap(),
        platform: "linux/amd64".parse().unwrap(),
        state,
        slots: 1,
        busy: 0,
        epoch: 1,
        generation: 0,
        sequence: 0,
        reported_ms: 1000,
    };
    (seq, hint)
}

fn cell(n: usize) -> CellId {
    format!("c{n}").parse().unwrap()
}

fn of(news: News) -> Facts {
    Facts { news, ..Facts::default() }
}

/// Decides for project `shop` of pool `pool` and leaves the placement to the caller.
fn ask<'a>(fleet: &'a Fleet, facts: &Facts, pool: &str, cap: Option<u32>) -> (Decision, Option<Placement<'a>>) {
    let (pool, project, platform) = (pool.parse().unwrap(), "shop".parse().unwrap(), "linux/amd64".parse().unwrap());
    let ask = Ask { pool: &pool, project: &project, platform: &platform, now_ms: 1500, exclude: &[], cap };
    fleet.begin().decide(facts, &ask)
}

fn chosen(decision: &Decision) -> &Choice {
    match decision {
        Decision::Chosen(choice) => choice,
        other => panic!("{other:?}"),
    }
}

#[test]
fn builds_that_come_together_take_different_slots() {
    let fleet = Fleet::default();
    let facts = of(News { hints: (0..4).map(|n| hint(n, 1, CellState::Ready)).collect(), ..News::default() });
    let quiet = Facts::default();
    let mut held = vec![ask(&fleet, &facts, "p", None)];
    held.extend((0..3).map(|_| ask(&fleet, &quiet, "p", None)));
    let cells: BTreeSet<&CellId> = held.iter().map(|(decision, _)| &chosen(decision).cell).collect();
    assert_eq!(cells.len(), 4, "{cells:?}");
    assert!(!chosen(&ask(&fleet, &quiet, "p", None).0).free, "the fifth finds none free");
    held.clear();
    assert!(chosen(&ask(&fleet, &quiet, "p", None).0).free, "those that were recorded are the store's to count");
}

/// A placement recorded after a reading began is not in what that reading saw: it counts there, and not in later ones.
#[test]
fn a_placement_counts_for_readings_that_began_before_it_was_recorded() {
    let fleet = Fleet::default();
    let (_, first) = ask(&fleet, &of(News { hints: vec![hint(0, 1, CellState::Ready)], ..News::default() }), "p", None);
    let early = fleet.begin();
    drop(first);
    let (pool, project, platform) = ("p".parse().unwrap(), "shop".parse().unwrap(), "linux/amd64".parse().unwrap());
    let asked = Ask { pool: &pool, project: &project, platform: &platform, now_ms: 1500, exclude: &[], cap: Some(1) };
    let late = fleet.begin();
    assert!(matches!(early.decide(&Facts::default(), &asked).0, Decision::OverCap { running: 1, .. }));
    let (decision, placement) = late.decide(&Facts::default(), &asked);
    assert!(chosen(&decision).free);
    drop(placement);
    assert!(fleet.state().placements.is_empty(), "nothing is kept that nobody can have missed");
}

#[test]
fn the_newest_news_stand_whatever_their_order_and_orders_overrule_hints() {
    let fleet = Fleet::default();
    let newer =
        of(News { hints: vec![hint(0, 5, CellState::Draining), hint(1, 6, CellState::Ready)], ..News::default() });
    ask(&fleet, &newer, "p", None);
    let older = of(News { hints: vec![hint(0, 4, CellState::Ready)], ..News::default() });
    for _ in 0..5 {
        assert_eq!(chosen(&ask(&fleet, &older, "p", None).0).cell, cell(1));
    }
    let ordered = of(News { orders: vec![(1, cell(1), CellState::Draining)], ..News::default() });
    let Decision::NoCell(why) = ask(&fleet, &ordered, "p", None).0 else { panic!("both drain") };
    assert_eq!(why, "none of the 2 cells of pool p takes builds for linux/amd64: 2 draining");
    let undrained = of(News { orders: vec![(2, cell(1), CellState::Ready)], ..News::default() });
    assert_eq!(chosen(&ask(&fleet, &undrained, "p", None).0).cell, cell(1));
}

#[test]
fn a_view_says_who_is_in_a_pool_and_hints_do_where_there_is_none() {
    let fleet = Fleet::default();
    let hints = of(News { hints: (0..3).map(|n| hint(n, 1, CellState::Ready)).collect(), ..News::default() });
    ask(&fleet, &hints, "p", None);
    let members = vec![member_of(&hint(2, 1, CellState::Ready).1)];
    let view = PoolView { pool: "p".parse().unwrap(), version: 1, settings: PoolSettings::default(), members };
    let pools = |seq, view| of(News { pools: vec![(seq, "p".parse().unwrap(), view)], ..News::default() });
    for _ in 0..3 {
        assert_eq!(chosen(&ask(&fleet, &pools(1, Some(view.clone())), "p", None).0).cell, cell(2));
    }
    let empty = PoolView { members: Vec::new(), ..view };
    let Decision::NoCell(why) = ask(&fleet, &pools(2, Some(empty)), "p", None).0 else { panic!("it is empty") };
    assert_eq!(why, "pool p has no cells");
    let Decision::NoPool(there) = ask(&fleet, &pools(2, None), "q", None).0 else { panic!("there is no q") };
    assert_eq!(there, ["p".parse().unwrap()]);
}

#[test]
fn a_platform_is_refused_only_where_no_cell_of_the_pools_has_it() {
    let fleet = Fleet::default();
    let member = |n: usize, platform: &str| PoolMember {
        platform: platform.parse().unwrap(),
        ..member_of(&hint(n, 1, CellState::Draining).1)
    };
    let view = |pool: &str, members, overflow: &[&str]| {
        let overflow = overflow.iter().map(|name| name.parse().unwrap()).collect();
        let settings = PoolSettings { overflow, ..PoolSettings::default() };
        let pool: PoolName = pool.parse().unwrap();
        (1, pool.clone(), Some(PoolView { pool, version: 1, settings, members }))
    };
    let pools = vec![
        view("p", vec![member(0, "linux/amd64")], &["far"]),
        view("far", vec![member(1, "linux/arm64")], &[]),
        view("alone", vec![member(2, "linux/amd64")], &[]),
        view("new", vec![], &[]),
    ];
    let facts = of(News { pools, ..News::default() });
    let decided = |pool: &str, platform: &str| {
        let (pool, project, platform) = (pool.parse().unwrap(), "shop".parse().unwrap(), platform.parse().unwrap());
        let ask = Ask { pool: &pool, project: &project, platform: &platform, now_ms: 1500, exclude: &[], cap: None };
        fleet.begin().decide(&facts, &ask).0
    };
    assert!(
        matches!(decided("p", "linux/arm64"), Decision::NoCell(_)),
        "its cells are only drained, in the overflow pool"
    );
    assert!(matches!(decided("new", "linux/arm64"), Decision::NoCell(_)), "they may be yet to come");
    let Decision::NoPlatform(why) = decided("alone", "linux/arm64") else { panic!("nobody could build it") };
    assert_eq!(why, "platform linux/arm64 is not built here; the cells of pool alone are linux/amd64");
    assert!(matches!(decided("p", "linux/s390x"), Decision::NoPlatform(_)));
}

#[test]
fn the_cap_counts_what_the_store_and_this_process_know() {
    let fleet = Fleet::default();
    let news = News { hints: (0..4).map(|n| hint(n, 1, CellState::Ready)).collect(), ..News::default() };
    let open = [(cell(0), 3)].into();
    let facts = Facts { open, project_runs: ProjectRuns { placed: 1, ahead: 0 }, news, ..Facts::default() };
    let (decision, placement) = ask(&fleet, &facts, "p", Some(2));
    assert_ne!(chosen(&decision).cell, cell(0));
    assert!(matches!(ask(&fleet, &facts, "p", Some(2)).0, Decision::OverCap { running: 2, ahead: 0 }));
    drop(placement);
    assert!(matches!(ask(&fleet, &facts, "p", None).0, Decision::Chosen(_)));
}

#[test]
fn at_a_cap_nobody_overtakes() {
    let fleet = Fleet::default();
    let news = News { hints: (0..4).map(|n| hint(n, 1, CellState::Ready)).collect(), ..News::default() };
    let mut facts = Facts { project_runs: ProjectRuns { placed: 1, ahead: 1 }, news, ..Facts::default() };
    assert!(matches!(ask(&fleet, &facts, "p", Some(2)).0, Decision::OverCap { running: 1, ahead: 1 }));
    assert!(matches!(ask(&fleet, &facts, "p", Some(3)).0, Decision::Chosen(_)), "there is room for both");
    facts.project_runs.ahead = 0;
    assert!(matches!(ask(&fleet, &facts, "p", Some(2)).0, Decision::Chosen(_)));
}
