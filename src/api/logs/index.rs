//! Where in a run's log a position is: a mark for about each quarter of a megabyte, so that a follower that comes back does not make the
//! api read the log from its beginning.

/// A place between two lines of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mark {
    /// The position of the line before it.
    pub position: u64,
    /// In the file, bytes.
    pub offset: u64,
    /// Whose records follow, as JSON; `None` at the start of a file, whose first line says it.
    pub attempt: Option<String>,
}

/// Between two marks at the least, bytes.
const STEP: u64 = 256 << 10;

/// The marks of a file, in order.
#[derive(Debug, Default)]
pub struct Marks(Vec<Mark>);

impl Marks {
    /// Notes a place that the file has grown to, unless one shortly before is noted.
    pub fn grown_to(&mut self, position: u64, offset: u64, attempt: Option<&String>) {
        if offset >= self.0.last().map_or(0, |mark| mark.offset) + STEP {
            self.0.push(Mark { position, offset, attempt: attempt.cloned() });
        }
    }

    /// The last place before everything that follows `position`; `base` is the position before the file.
    pub fn before(&self, position: u64, base: u64) -> Mark {
        let found = self.0.partition_point(|mark| mark.position <= position);
        match found.checked_sub(1) {
            Some(at) => self.0[at].clone(),
            None => Mark { position: base, ..Mark::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_starts_at_the_last_mark_before_what_it_wants() {
        let mut marks = Marks::default();
        for n in 1..=100 {
            marks.grown_to(1000 + n * 10, n * (100 << 10), Some(&format!("attempt {n}")));
        }
        assert!(marks.0.len() < 40 && marks.0.windows(2).all(|two| two[1].offset - two[0].offset >= STEP));
        assert_eq!(marks.before(1000, 1000), Mark { position: 1000, offset: 0, attempt: None });
        for wanted in 1030..2100 {
            let mark = marks.before(wanted, 1000);
            assert!(mark.position <= wanted && mark.position + 30 >= wanted.min(2000), "{wanted}: {mark:?}");
        }
    }
}
