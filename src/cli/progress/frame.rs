//! Progress as a picture: one line a step, the running ones with their parts and newest output.

use console::{Style, measure_text_width, truncate_str};

use super::plain::part_text;
use super::steps::{Step, Steps};
use super::units::seconds;
use crate::terminal::one_line;

/// What a picture has to fit in.
#[derive(Debug, Clone, Copy)]
pub struct Canvas {
    pub width: usize,
    /// Lines; `None` for as many as it takes.
    pub height: Option<usize>,
    pub colours: bool,
}

/// The picture at `now_ms`, its lines without line ends.
pub fn frame(steps: &Steps, now_ms: u64, canvas: Canvas) -> Vec<String> {
    let (ended, known) = steps.counts();
    let elapsed = now_ms.saturating_sub(steps.first_ms.unwrap_or(now_ms));
    let mut lines = vec![format!("[+] Building {} ({ended}/{known})", seconds(elapsed))];
    let mut begun: Vec<&Step> = steps.iter().filter(|step| step.number > 0).collect();
    begun.sort_by_key(|step| step.number);
    let blocks = begun.iter().map(|step| (step.is_running(), block(step, now_ms, canvas))).collect();
    let room = canvas.height.map_or(usize::MAX, |height| height.saturating_sub(2));
    lines.extend(fitting(blocks, room));
    lines
}

/// The blocks for which there is room, in their order: running steps before ended ones, newer ones before older ones.
fn fitting(blocks: Vec<(bool, Vec<String>)>, mut room: usize) -> Vec<String> {
    let mut chosen = vec![false; blocks.len()];
    for wanted in [true, false] {
        for (at, (running, lines)) in blocks.iter().enumerate().rev() {
            if *running == wanted && lines.len() <= room {
                chosen[at] = true;
                room -= lines.len();
            }
        }
    }
    blocks.into_iter().zip(chosen).filter(|(_, chosen)| *chosen).flat_map(|((_, lines), _)| lines).collect()
}

fn block(step: &Step, now_ms: u64, canvas: Canvas) -> Vec<String> {
    let style = style_of(step).force_styling(canvas.colours);
    let label = match (&step.error, step.cached) {
        (Some(error), _) if error.ends_with("context canceled") => "CANCELED ",
        (Some(_), _) => "ERROR ",
        (None, true) => "CACHED ",
        (None, false) => "",
    };
    let time = seconds(step.elapsed_ms(now_ms));
    let mut lines = vec![style.apply_to(row(&format!(" => {label}{}", step.name), &time, canvas.width)).to_string()];
    for part in step.parts.iter().filter(|_| step.is_running() || step.parts.len() == 1) {
        let time = seconds(part.until_ms.saturating_sub(part.since_ms));
        let text = format!(" => => {}", part_text(part));
        lines.push(style.apply_to(row(&text, &time, canvas.width)).to_string());
    }
    if step.is_running() {
        let dim = Style::new().dim().force_styling(canvas.colours);
        let output = step.tail.iter().map(|line| row(&format!(" => => # {line}"), "", canvas.width));
        lines.extend(output.map(|line| dim.apply_to(line).to_string()));
    }
    lines
}

fn style_of(step: &Step) -> Style {
    match (&step.error, step.is_running()) {
        (Some(error), _) if error.ends_with("context canceled") => Style::new().yellow(),
        (Some(_), _) => Style::new().red(),
        (None, true) => Style::new(),
        (None, false) => Style::new().blue(),
    }
}

/// Text at the left, without colours of its own, time at the right; exactly as wide as the canvas less one column.
fn row(text: &str, time: &str, width: usize) -> String {
    let width = width.saturating_sub(1);
    let room = width.saturating_sub(time.len() + 1);
    let text = one_line(text);
    let text = truncate_str(&text, room, "…");
    let gap = width.saturating_sub(measure_text_width(&text) + time.len());
    let line = format!("{text}{}{time}", " ".repeat(gap));
    line.trim_end().to_owned()
}
