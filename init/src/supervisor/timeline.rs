//! When what was done, in milliseconds since the kernel's start.

use std::fmt;

use crate::sys;

pub struct Timeline {
    marks: Vec<(&'static str, u64)>,
    ended: bool,
}

impl Timeline {
    /// `stage1`: when PID 1 began.
    pub fn new(stage1: u64) -> Self {
        Self { marks: vec![("init", stage1)], ended: false }
    }

    pub fn mark(&mut self, what: &'static str) {
        if !self.ended {
            self.marks.push((what, sys::uptime_ms()));
        }
    }

    /// The last mark; whether this was the first call.
    pub fn end(&mut self, what: &'static str) -> bool {
        self.mark(what);
        !std::mem::replace(&mut self.ended, true)
    }
}

/// `init=1520,stage2=1980,…`: one word, for the control channel too.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marks: Vec<_> = self.marks.iter().map(|(what, ms)| format!("{}={ms}", what.replace(' ', "_"))).collect();
        f.write_str(&marks.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_once() {
        let mut timeline = Timeline::new(5);
        assert!(timeline.end("a b"));
        assert!(!timeline.end("again"));
        let text = timeline.to_string();
        assert!(text.starts_with("init=5,a_b=") && !text.contains("again"), "{text}");
    }
}
