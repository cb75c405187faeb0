//! Writes progress to standard error: the only part that knows a terminal and a clock.

use std::io::{self, IsTerminal as _, Write};
use std::time::Instant;

use workflows::contract::{AttemptId, LogRecord};

use super::Progress;
use super::frame::{Canvas, frame};
use super::plain::Plain;
use super::steps::{Change, Steps};

/// Draws one build.
pub struct Display {
    steps: Steps,
    style: Style,
    /// When the newest record came, for the time since.
    fresh: Instant,
    out: Box<dyn Write + Send>,
}

enum Style {
    Plain(Plain),
    Tty(Tty),
    Quiet,
}

/// What is on the terminal.
struct Tty {
    colours: bool,
    size: fn() -> (usize, usize),
    /// Lines drawn that the next picture replaces.
    drawn: usize,
    dirty: bool,
}

impl Display {
    /// Draws on standard error.
    pub fn new(progress: Progress) -> Self {
        let terminal = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let style = match progress {
            Progress::Quiet => Style::Quiet,
            Progress::Plain => Style::Plain(Plain::default()),
            Progress::Auto if !terminal => Style::Plain(Plain::default()),
            Progress::Auto | Progress::Tty => Style::Tty(Tty {
                colours: terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
                size: terminal_size,
                drawn: 0,
                dirty: false,
            }),
        };
        Self { steps: Steps::default(), style, fresh: Instant::now(), out: Box::new(io::stderr()) }
    }

    /// Writes plain lines to `out`.
    pub fn log(out: Box<dyn Write + Send>) -> Self {
        Self { steps: Steps::default(), style: Style::Plain(Plain::default()), fresh: Instant::now(), out }
    }

    /// Takes one record in.
    pub fn record(&mut self, record: LogRecord) {
        self.fresh = Instant::now();
        let changes = self.steps.take(record);
        self.show(changes);
    }

    /// What follows belongs to this attempt.
    pub fn attempt(&mut self, attempt: AttemptId) {
        let changes = self.steps.attempt(attempt);
        self.show(changes);
    }

    /// A message of Kiln itself, above the picture.
    pub fn note(&mut self, text: &str) {
        self.show(vec![Change::Note(text.to_owned())]);
    }

    /// A line that the next one replaces; shown on a terminal only.
    pub fn status(&mut self, text: &str) {
        if let Style::Tty(tty) = &mut self.style {
            let line = console::truncate_str(text, (tty.size)().0.saturating_sub(1), "…").into_owned();
            tty.draw(&mut self.out, &[line]);
        }
    }

    /// A question that is answered on the same line, below what is drawn.
    pub fn ask(&mut self, question: &str) {
        self.finish();
        print(&mut self.out, question);
    }

    /// To be called several times a second: time passes also without records.
    pub fn tick(&mut self) {
        let now_ms = self.now_ms();
        match &mut self.style {
            Style::Quiet => {}
            Style::Plain(plain) => {
                plain.tick(&self.steps, now_ms);
                print(&mut self.out, &plain.take());
            }
            Style::Tty(tty) => {
                let running = self.steps.iter().any(|step| step.is_running());
                if std::mem::take(&mut tty.dirty) || running {
                    let (width, height) = (tty.size)();
                    let canvas = Canvas { width, height: Some(height), colours: tty.colours };
                    let lines = frame(&self.steps, now_ms, canvas);
                    tty.draw(&mut self.out, &lines);
                }
            }
        }
    }

    /// Draws what there is for the last time; what is printed after that stands below it.
    pub fn finish(&mut self) {
        let now_ms = self.now_ms();
        match &mut self.style {
            Style::Quiet => {}
            Style::Plain(plain) => {
                plain.finish(&self.steps);
                print(&mut self.out, &plain.take());
            }
            Style::Tty(tty) => {
                let canvas = Canvas { width: (tty.size)().0, height: None, colours: tty.colours };
                let lines = if self.steps.counts().1 > 0 { frame(&self.steps, now_ms, canvas) } else { Vec::new() };
                tty.draw(&mut self.out, &lines);
                tty.drawn = 0;
            }
        }
    }

    fn show(&mut self, changes: Vec<Change>) {
        for change in changes {
            match &mut self.style {
                Style::Quiet => {}
                Style::Plain(plain) => plain.add(&self.steps, change),
                Style::Tty(tty) => tty.add(&mut self.out, change),
            }
        }
        if let Style::Plain(plain) = &mut self.style {
            print(&mut self.out, &plain.take());
        }
    }

    fn now_ms(&self) -> u64 {
        self.steps.clock_ms + u64::try_from(self.fresh.elapsed().as_millis()).unwrap_or(0)
    }
}

impl Tty {
    fn add(&mut self, out: &mut dyn Write, change: Change) {
        self.dirty = true;
        let text = match change {
            Change::Note(text) => text,
            Change::Warning(_, text) => format!("WARN: {text}"),
            // What was drawn of the former attempt stays.
            Change::Attempt => return self.drawn = 0,
            _ => return,
        };
        self.draw(out, &[format!("kiln: {text}")]);
        self.drawn = 0;
    }

    /// Replaces what was drawn.
    fn draw(&mut self, out: &mut dyn Write, lines: &[String]) {
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\r\x1b[{}A\x1b[0J", self.drawn));
        }
        lines.iter().for_each(|line| {
            text.push_str(line);
            text.push('\n');
        });
        self.drawn = lines.len();
        print(out, &text);
    }
}

fn terminal_size() -> (usize, usize) {
    let (height, width) = console::Term::stderr().size_checked().unwrap_or((24, 80));
    (usize::from(width), usize::from(height))
}

/// A terminal that is gone must not end a build.
fn print(out: &mut dyn Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
