//! Rows for people: columns as wide as they need, times as how long ago.

use console::measure_text_width;
use jiff::Timestamp;

use crate::terminal::one_line;

/// Aligns columns; the first row is the heading. Each cell is one line.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| one_line(cell))).collect();
    let widths: Vec<usize> =
        (0..N).map(|column| rows.iter().map(|row| measure_text_width(&row[column])).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - measure_text_width(cell) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `45s`, `12m`, `3h`, `5d`: how long ago a time in milliseconds since 1970 was.
pub fn ago(then_ms: i64, now_ms: i64) -> String {
    match (now_ms - then_ms).max(0) / 1000 {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// `2026-01-31T10:00:00Z`, to the second.
pub fn time(ms: i64) -> String {
    Timestamp::from_second(ms.div_euclid(1000)).map_or_else(|_| ms.to_string(), |time| time.to_string())
}

pub fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "B", "C"], ["long", "", "x"], ["é", "wide one", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A     B         C\nlong            x\né     wide one\n");
    }

    #[test]
    fn times_are_as_coarse_as_they_are_old() {
        let of = |seconds: i64| ago(0, seconds * 1000);
        assert_eq!(
            [0, 119, 120, 7199, 7200, 172_799, 172_800].map(of),
            ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]
        );
        assert_eq!(ago(5000, 0), "0s");
        assert_eq!(time(1_700_000_000_999), "2023-11-14T22:13:20Z");
    }
}
