//! Writes progress: the only part that knows a terminal and a clock.

use std::io::{self, IsTerminal as _};
use std::time::Instant;

use workflows::contract::{AttemptId, LogRecord};

use super::Progress;
use super::frame::{Canvas, frame};
use super::plain::Plain;
use super::steps::{Change, Steps};
use crate::terminal::{OutputError, Writer, shows_colours};

/// Draws one build.
pub struct Display {
    steps: Steps,
    style: Style,
    /// When the newest record came, for the time since.
    fresh: Instant,
    out: Writer,
    /// The first write that failed, since [`Display::written`] was called last.
    failed: Option<OutputError>,
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
            Progress::Auto | Progress::Tty => {
                Style::Tty(Tty { colours: shows_colours(&io::stderr()), size: terminal_size, drawn: 0, dirty: false })
            }
        };
        Self::to(Writer::stderr(), style)
    }

    /// Writes plain lines to `out`.
    pub fn log(out: Writer) -> Self {
        Self::to(out, Style::Plain(Plain::default()))
    }

    fn to(out: Writer, style: Style) -> Self {
        Self { steps: Steps::default(), style, fresh: Instant::now(), out, failed: None }
    }

    /// Whether all that was drawn since the last call could be written. A build does not end because its progress cannot be
    /// shown: who shows it on standard error need not ask.
    ///
    /// # Errors
    /// The first error.
    pub fn written(&mut self) -> Result<(), OutputError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Whether the reader of what is drawn has gone.
    pub fn is_closed(&self) -> bool {
        self.out.is_closed()
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
        if let Style::Tty(tty) = &self.style {
            let width = (tty.size)().0.saturating_sub(1);
            self.draw(&[console::truncate_str(text, width, "…").into_owned()]);
        }
    }

    /// A question that is answered on the same line, below what is drawn.
    pub fn ask(&mut self, question: &str) {
        self.finish();
        self.print(question);
    }

    /// To be called several times a second: time passes also without records.
    pub fn tick(&mut self) {
        let now_ms = self.now_ms();
        match &mut self.style {
            Style::Quiet => {}
            Style::Plain(plain) => {
                plain.tick(&self.steps, now_ms);
                self.print_plain();
            }
            Style::Tty(tty) => {
                let running = self.steps.iter().any(|step| step.is_running());
                if std::mem::take(&mut tty.dirty) || running {
                    self.picture(false);
                }
            }
        }
    }

    /// Draws what there is for the last time; what is printed after that stands below it.
    pub fn finish(&mut self) {
        match &mut self.style {
            Style::Quiet => {}
            Style::Plain(plain) => {
                plain.finish(&self.steps);
                self.print_plain();
            }
            Style::Tty(_) => {
                self.picture(true);
                self.leave();
            }
        }
    }

    fn show(&mut self, changes: Vec<Change>) {
        for change in changes {
            match &mut self.style {
                Style::Quiet => {}
                Style::Plain(plain) => plain.add(&self.steps, change),
                Style::Tty(_) => self.show_on_tty(change),
            }
        }
        self.print_plain();
    }

    fn show_on_tty(&mut self, change: Change) {
        if let Style::Tty(tty) = &mut self.style {
            tty.dirty = true;
        }
        let text = match change {
            Change::Note(text) => text,
            Change::Warning(_, text) => format!("WARN: {text}"),
            // What was drawn of the former attempt stays.
            Change::Attempt => return self.leave(),
            _ => return,
        };
        self.draw(&[format!("kiln: {text}")]);
        self.leave();
    }

    /// Draws the steps in place of what was drawn before; nothing while there are none.
    fn picture(&mut self, whole: bool) {
        let Style::Tty(tty) = &self.style else { return };
        let (width, height) = (tty.size)();
        let canvas = Canvas { width, height: Some(height).filter(|_| !whole), colours: tty.colours };
        let known = self.steps.counts().1 > 0;
        let lines = if known { frame(&self.steps, self.now_ms(), canvas) } else { Vec::new() };
        self.draw(&lines);
    }

    /// Replaces what was drawn.
    fn draw(&mut self, lines: &[String]) {
        let Style::Tty(tty) = &mut self.style else { return };
        let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        let drawn = std::mem::replace(&mut tty.drawn, lines.len());
        let written = self.out.replace(drawn, &text);
        self.note_failure(written);
    }

    /// Leaves what was drawn on the terminal.
    fn leave(&mut self) {
        if let Style::Tty(tty) = &mut self.style {
            tty.drawn = 0;
        }
    }

    fn print_plain(&mut self) {
        if let Style::Plain(plain) = &mut self.style {
            let text = plain.take();
            self.print(&text);
        }
    }

    fn print(&mut self, text: &str) {
        let written = self.out.text(text);
        self.note_failure(written);
    }

    fn note_failure(&mut self, written: Result<(), OutputError>) {
        if let Err(error) = written {
            self.failed.get_or_insert(error);
        }
    }

    fn now_ms(&self) -> u64 {
        self.steps.clock_ms + u64::try_from(self.fresh.elapsed().as_millis()).unwrap_or(0)
    }
}

fn terminal_size() -> (usize, usize) {
    let (height, width) = console::Term::stderr().size_checked().unwrap_or((24, 80));
    (usize::from(width), usize::from(height))
}
