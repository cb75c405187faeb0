//! Numbers as people read them, in BuildKit's forms.

/// `32B`, `1.05MB`: powers of 1000.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut scaled = count as f64;
    let mut unit = 0;
    while scaled >= 999.995 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count}B") } else { format!("{scaled:.2}{}", UNITS[unit]) }
}

/// `0.4s`, `145.3s`: how steps count.
pub fn seconds(ms: u64) -> String {
    format!("{:.1}s", ms as f64 / 1000.0)
}

/// `0.4s`, `12.0s`, `3m 20s`: how builds count.
pub fn duration(ms: u64) -> String {
    match ms {
        0..120_000 => seconds(ms),
        _ => format!("{}m {:02}s", ms / 60_000, ms % 60_000 / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_change_where_the_digits_would_not_fit() {
        assert_eq!(
            [0, 32, 999, 1000, 1_048_576, 999_994, 999_995].map(bytes),
            ["0B", "32B", "999B", "1.00kB", "1.05MB", "999.99kB", "1.00MB"]
        );
        assert_eq!(
            [0, 49, 50, 119_999, 120_000, 3_599_999].map(duration),
            ["0.0s", "0.0s", "0.1s", "120.0s", "2m 00s", "59m 59s"]
        );
    }
}
