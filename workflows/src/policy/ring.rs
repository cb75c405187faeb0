//! Consistent hashing: a pool's cells on a circle, each at many points, so that every project has an order of all cells that
//! changes little when cells come and go.
//!
//! Made once for each version of a pool's view: hashing 64 points for each of 1,000 cells takes milliseconds, a walk microseconds.

use std::iter::Chain;

use crate::contract::{CellId, Platform, ProjectName};

/// The cells' points in order. A cell is named by its place in the list the ring was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring {
    points: Vec<(u64, u32)>,
    cells: usize,
}

impl Ring {
    /// Puts each cell at so many points. The order of `cells` names them and does not move them.
    pub fn new<'a>(cells: impl Iterator<Item = &'a CellId>, points: u32) -> Self {
        let mut ring = Self::default();
        for (cell, at) in cells.zip(0..) {
            ring.points.extend((0..points).map(|n| (point(&format!("{cell}\n{n}")), at)));
            ring.cells += 1;
        }
        ring.points.sort_unstable();
        ring
    }

    /// Each cell once, in the order in which `start` meets them.
    pub fn walk(&self, start: u64) -> Walk<'_> {
        let from = self.points.partition_point(|(point, _)| *point < start);
        let (before, after) = self.points.split_at(from);
        Walk { points: after.iter().chain(before), seen: vec![0; self.cells.div_ceil(64)], left: self.cells }
    }
}

/// Where a project's walk starts.
pub fn start_of(project: &ProjectName, platform: &Platform) -> u64 {
    point(&format!("{project}\n{platform}"))
}

fn point(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

type Points<'a> = std::slice::Iter<'a, (u64, u32)>;

/// See [`Ring::walk`]. Ends at the last cell, not at the last point.
pub struct Walk<'a> {
    points: Chain<Points<'a>, Points<'a>>,
    /// A bit a cell.
    seen: Vec<u64>,
    left: usize,
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        let seen = &mut self.seen;
        let at = self.points.by_ref().map(|(_, at)| *at as usize).find(|at| seen[at / 64] & (1 << (at % 64)) == 0)?;
        seen[at / 64] |= 1 << (at % 64);
        self.left -= 1;
        Some(at)
    }
}
