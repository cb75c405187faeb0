//! Which cell a build goes to.
//!
//! Each project has a fixed order of the pool's cells, the ring order; its first [`HOME_CELLS`] are home, where its cache is warm.
//!
//! | preference | cells | picked up in time, or moved on |
//! |---|---|---|
//! | 1 | home cells with a free slot, in ring order | yes |
//! | 2 | other cells with a free slot, in ring order | yes |
//! | 3 | cells whose hint is too old to believe, in ring order | yes |
//! | 4 | the home cell with the shortest line | no: it stays in that line |
//!
//! Draining, stopped and unhealthy cells are never chosen, and cells the build has tried in vain only when no other is left.

use crate::contract::{CellHint, CellId, CellState, Platform, ProjectName};

/// How many cells of the ring are a project's home.
pub const HOME_CELLS: usize = 3;
/// A hint older than this counts as unknown, milliseconds.
pub const STALE_MS: u64 = 30_000;
/// Points of each cell on the ring; more points spread the projects more evenly.
const POINTS: u32 = 64;

/// A cell's hint as the policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HintView {
    pub cell: CellId,
    pub slots: u32,
    pub busy: u32,
    pub known: bool,
}

impl HintView {
    fn free(&self) -> bool {
        self.known && self.busy < self.slots
    }
}

/// The chosen cell and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub cell: CellId,
    /// Whether a slot is believed free, so that the build may move on when it is not picked up.
    pub free: bool,
    pub reason: String,
}

/// Chooses a cell for `project` on `platform`, or `None` when the pool has no usable one.
pub fn choose(
    project: &ProjectName,
    platform: &Platform,
    hints: &[CellHint],
    now_ms: u64,
    exclude: &[CellId],
) -> Option<Choice> {
    let usable: Vec<HintView> = hints.iter().filter(|h| usable(h, platform)).map(|h| view(h, now_ms)).collect();
    let fresh: Vec<HintView> = usable.iter().filter(|v| !exclude.contains(&v.cell)).cloned().collect();
    let ring = ring_order(project, platform, if fresh.is_empty() { usable } else { fresh });
    free_home(&ring).or_else(|| free_elsewhere(&ring)).or_else(|| unknown(&ring)).or_else(|| shortest_line(&ring))
}

fn usable(hint: &CellHint, platform: &Platform) -> bool {
    hint.state == CellState::Ready && hint.platform == *platform
}

fn view(hint: &CellHint, now_ms: u64) -> HintView {
    let known = now_ms.saturating_sub(hint.reported_ms) <= STALE_MS;
    HintView { cell: hint.cell.clone(), slots: hint.slots, busy: hint.busy, known }
}

/// The cells in the project's ring order: walk the ring from the project's point, each cell at its first point met.
pub fn ring_order(project: &ProjectName, platform: &Platform, cells: Vec<HintView>) -> Vec<HintView> {
    let start = point(&format!("{project}\n{platform}"));
    let mut order: Vec<(u64, HintView)> = cells
        .into_iter()
        .map(|view| {
            let distance = (0..POINTS).map(|n| point(&format!("{}\n{n}", view.cell)).wrapping_sub(start)).min();
            (distance.unwrap_or(u64::MAX), view)
        })
        .collect();
    order.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.cell.cmp(&y.cell)));
    order.into_iter().map(|(_, view)| view).collect()
}

fn point(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

fn free_home(ring: &[HintView]) -> Option<Choice> {
    let homes = ring.len().min(HOME_CELLS);
    let (n, view) = ring.iter().take(homes).enumerate().find(|(_, v)| v.free())?;
    Some(Choice { cell: view.cell.clone(), free: true, reason: format!("home cell {} of {homes}, free", n + 1) })
}

fn free_elsewhere(ring: &[HintView]) -> Option<Choice> {
    let (n, view) = ring.iter().enumerate().skip(HOME_CELLS).find(|(_, v)| v.free())?;
    let reason = format!("home cells are busy; cell {} of {} along the ring is free", n + 1, ring.len());
    Some(Choice { cell: view.cell.clone(), free: true, reason })
}

fn unknown(ring: &[HintView]) -> Option<Choice> {
    let view = ring.iter().find(|v| !v.known)?;
    let reason = "no cell is known to be free; this one has not reported lately".to_owned();
    Some(Choice { cell: view.cell.clone(), free: true, reason })
}

fn shortest_line(ring: &[HintView]) -> Option<Choice> {
    let view = ring.iter().take(HOME_CELLS).min_by_key(|v| v.busy.saturating_sub(v.slots))?;
    let waiting = view.busy.saturating_sub(view.slots);
    let reason = format!("no cell is free; this home cell has the shortest line ({waiting} waiting)");
    Some(Choice { cell: view.cell.clone(), free: false, reason })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_000_000;

    fn hint(n: usize, slots: u32, busy: u32, age_ms: u64, state: CellState) -> CellHint {
        CellHint {
            cell: format!("c{n}").parse().unwrap(),
            pool: "default".parse().unwrap(),
            platform: "linux/amd64".parse().unwrap(),
            state,
            slots,
            busy,
            epoch: 1,
            reported_ms: NOW - age_ms,
        }
    }

    fn project(n: u32) -> ProjectName {
        format!("p{n}").parse().unwrap()
    }

    fn amd64() -> Platform {
        "linux/amd64".parse().unwrap()
    }

    fn hints() -> impl Strategy<Value = Vec<CellHint>> {
        let state =
            prop_oneof![4 => Just(CellState::Ready), 1 => Just(CellState::Draining), 1 => Just(CellState::Unhealthy)];
        prop::collection::vec((1u32..5, 0u32..6, 0u64..60_000, state), 0..12).prop_map(|cells| {
            cells
                .into_iter()
                .enumerate()
                .map(|(n, (slots, busy, age, state))| hint(n, slots, busy, age, state))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_draining_or_unhealthy_cell_is_never_chosen(hints in hints(), p in 0u32..50) {
            if let Some(choice) = choose(&project(p), &amd64(), &hints, NOW, &[]) {
                let chosen = hints.iter().find(|h| h.cell == choice.cell).unwrap();
                prop_assert_eq!(chosen.state, CellState::Ready);
            }
        }

        #[test]
        fn a_usable_cell_is_always_found(hints in hints(), p in 0u32..50) {
            let any = hints.iter().any(|h| h.state == CellState::Ready);
            prop_assert_eq!(choose(&project(p), &amd64(), &hints, NOW, &[]).is_some(), any);
        }

        #[test]
        fn a_build_queues_only_when_no_cell_may_be_free(hints in hints(), p in 0u32..50) {
            if let Some(choice) = choose(&project(p), &amd64(), &hints, NOW, &[]) {
                let maybe_free = hints.iter().any(|h| {
                    h.state == CellState::Ready && (NOW - h.reported_ms > STALE_MS || h.busy < h.slots)
                });
                prop_assert_eq!(choice.free, maybe_free);
            }
        }

        #[test]
        fn an_excluded_cell_is_chosen_only_when_no_other_is_left(hints in hints(), p in 0u32..50, n in 0usize..12) {
            let excluded: CellId = format!("c{n}").parse().unwrap();
            let Some(choice) = choose(&project(p), &amd64(), &hints, NOW, std::slice::from_ref(&excluded)) else {
                return Ok(());
            };
            let others = hints.iter().any(|h| h.state == CellState::Ready && h.cell != excluded);
            prop_assert!(choice.cell != excluded || !others);
        }

        #[test]
        fn the_order_of_hints_does_not_matter(hints in hints(), p in 0u32..50) {
            let mut reversed = hints.clone();
            reversed.reverse();
            prop_assert_eq!(
                choose(&project(p), &amd64(), &hints, NOW, &[]),
                choose(&project(p), &amd64(), &reversed, NOW, &[])
            );
        }
    }

    /// Losing one of n cells moves the projects of that cell and no others.
    #[test]
    fn losing_a_cell_moves_only_its_own_projects() {
        let cells: Vec<CellHint> = (0..16).map(|n| hint(n, 4, 0, 0, CellState::Ready)).collect();
        let mut moved = 0;
        for p in 0..500 {
            let before = choose(&project(p), &amd64(), &cells, NOW, &[]).unwrap().cell;
            let after = choose(&project(p), &amd64(), &cells[1..], NOW, &[]).unwrap().cell;
            if before.as_str() == "c0" {
                moved += 1;
            } else {
                assert_eq!(before, after, "project {p} moved although its cell stayed");
            }
        }
        assert!((10..70).contains(&moved), "{moved} of 500 projects lived on one of 16 cells");
    }

    #[test]
    fn the_reason_names_the_home_cell() {
        let cells: Vec<CellHint> = (0..4).map(|n| hint(n, 1, 0, 0, CellState::Ready)).collect();
        let choice = choose(&project(1), &amd64(), &cells, NOW, &[]).unwrap();
        assert_eq!(choice.reason, "home cell 1 of 3, free");
    }
}
