//! Cells for people: the table of all, the details of one.

use workflows::contract::{CellState, CellStatus};

use crate::cli::client::{CellInfo, CellView};
use crate::cli::table::{ago, now_ms, table, time};

/// A hint older than this says nothing about now, milliseconds.
const STALE_MS: i64 = 30_000;

pub fn list(cells: &[CellInfo]) -> String {
    let heading =
        ["CELL", "POOL", "STATE", "SLOTS", "LINE", "IMAGE", "UP", "CACHE", "HITS", "HEALTH"].map(str::to_owned);
    let now = now_ms();
    table(&std::iter::once(heading).chain(cells.iter().map(|cell| row(cell, now))).collect::<Vec<_>>())
}

fn row(cell: &CellInfo, now: i64) -> [String; 10] {
    let hint = &cell.hint;
    [
        hint.cell.to_string(),
        hint.pool.to_string(),
        hint.state.as_str().to_owned(),
        if is_silent(cell, now) { format!("-/{}", hint.slots) } else { format!("{}/{}", hint.busy, hint.slots) },
        cell.line.to_string(),
        image(cell),
        if cell.facts.started_ms == 0 { "-".to_owned() } else { ago(cell.facts.started_ms, now) },
        cell.facts.cache_bytes.map_or_else(|| "-".to_owned(), bytes),
        hits(cell),
        health(cell, now),
    ]
}

/// What its host started, else its builder's version.
fn image(cell: &CellInfo) -> String {
    let version = Some(&cell.facts.version).filter(|version| !version.is_empty());
    cell.detail.image.clone().or_else(|| version.map(|version| format!("kiln {version}"))).unwrap_or_else(|| "-".into())
}

/// Steps that came from the cache.
fn hits(cell: &CellInfo) -> String {
    match cell.facts.steps {
        0 => "-".to_owned(),
        steps => format!("{}%", cell.facts.cached_steps.saturating_mul(100) / steps),
    }
}

fn reported_ms(cell: &CellInfo) -> i64 {
    i64::try_from(cell.hint.reported_ms).unwrap_or(i64::MAX)
}

/// Then what it said last, of its slots too, is of no use.
fn is_silent(cell: &CellInfo, now: i64) -> bool {
    now.saturating_sub(reported_ms(cell)) > STALE_MS
}

fn health(cell: &CellInfo, now: i64) -> String {
    match (&cell.detail.why, cell.hint.state) {
        (Some(why), _) => why.clone(),
        (None, CellState::Unhealthy) => "unhealthy".to_owned(),
        (None, _) if is_silent(cell, now) => format!("silent for {}", ago(reported_ms(cell), now)),
        (None, _) => "ok".to_owned(),
    }
}

fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{value:.0}{unit}") } else { format!("{value:.1}{unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1}TB")
}

pub fn details(view: &CellView) -> String {
    let (cell, now) = (&view.info, now_ms());
    let hint = &cell.hint;
    let mut rows = vec![
        ["cell".to_owned(), hint.cell.to_string()],
        ["pool".to_owned(), format!("{}, {}", hint.pool, hint.platform)],
        ["state".to_owned(), hint.state.as_str().to_owned()],
        ["health".to_owned(), health(cell, now)],
        ["slots".to_owned(), format!("{} of {} taken, {} waiting", hint.busy, hint.slots, cell.line)],
        ["image".to_owned(), image(cell)],
        ["host".to_owned(), cell.detail.host.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)],
        ["epoch".to_owned(), hint.epoch.to_string()],
    ];
    if !cell.facts.unlimited.is_empty() {
        rows.push(["steps".to_owned(), format!("this machine cannot limit their {}", cell.facts.unlimited.join(", "))]);
    }
    rows.extend(cell.detail.clone_of.as_ref().map(|main| ["clone of".to_owned(), main.to_string()]));
    rows.extend(
        view.builds.iter().map(|build| ["build".to_owned(), format!("{} {}", build.build_id, build.status.as_str())]),
    );
    match &view.status {
        Some(status) => rows.extend(life(status)),
        None => rows.push(["life".to_owned(), "its Cell does not answer".to_owned()]),
    }
    table(&rows)
}

/// What its Cell says: the drain in force, what became of orders, what happened.
fn life(status: &CellStatus) -> Vec<[String; 2]> {
    let mut rows = Vec::new();
    if let Some(drain) = &status.drain {
        let request = &drain.request;
        let by = request.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        let reason = request.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let deadline = request.deadline.map(|at| format!(", until {at}")).unwrap_or_default();
        let stands = match (drain.closed, drain.idle) {
            (true, true) => "nothing runs",
            (true, false) => "builds finish",
            (false, _) => "begins",
        };
        rows.push(["drain".to_owned(), format!("{stands}{by}{deadline}{reason}")]);
    }
    for record in &status.signals {
        let note = if record.note.is_empty() { String::new() } else { format!(": {}", record.note) };
        let outcome = serde_json::json!(record.outcome);
        let outcome = outcome.as_str().unwrap_or_default();
        rows.push(["order".to_owned(), format!("{} {} {outcome}{note}", time(record.at_ms), record.signal)]);
    }
    for transition in &status.transitions {
        let at = time(transition.at_ms);
        rows.push(["event".to_owned(), format!("{at} {}: {}", transition.state.as_str(), transition.what)]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(more: serde_json::Value) -> CellInfo {
        let mut value = serde_json::json!({ "cell": "c1", "pool": "default", "platform": "linux/amd64", "state": "ready",
            "slots": 4, "busy": 2, "epoch": 3, "reported_ms": 1_000_000, "line": 1 });
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_table_has_what_an_operator_looks_for() {
        let facts = serde_json::json!({ "facts": { "version": "1.0", "started_ms": 1, "steps": 8, "cached_steps": 6,
            "cache_bytes": 12_345_678_901_u64 } });
        let row = row(&cell(facts), 1_010_000);
        assert_eq!(row, ["c1", "default", "ready", "2/4", "1", "kiln 1.0", "16m", "12.3GB", "75%", "ok"]);
        let row = super::row(&cell(serde_json::json!({})), 1_090_000);
        assert_eq!((row[3].as_str(), row[9].as_str()), ("-/4", "silent for 90s"), "nobody knows what a dead cell runs");
    }

    #[test]
    fn health_says_why() {
        let of = |more, now| health(&cell(more), now);
        assert_eq!(of(serde_json::json!({}), 1_090_000), "silent for 90s");
        assert_eq!(of(serde_json::json!({ "detail": { "why": "taken out" } }), 1_000_000), "taken out");
        assert_eq!(of(serde_json::json!({ "state": "unhealthy" }), 1_000_000), "unhealthy");
    }
}
