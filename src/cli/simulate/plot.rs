//! The figures as a picture: warm share and queued share over utilisation, a line a strategy. Plain SVG, written by hand.

use std::fmt::Write as _;

use super::report::{Report, Row};
use super::strategy::Strategy;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
const MARGIN: f64 = 50.0;

/// A picture of two panels.
pub fn svg(report: &Report) -> String {
    let (whole, tall) = (2.0 * (WIDTH + MARGIN) + 170.0, HEIGHT + 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {whole} {tall}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    panel(&mut svg, report, 0.0, "builds that start warm", |row| row.warm);
    panel(&mut svg, report, WIDTH + MARGIN, "builds that wait", |row| row.queued);
    for (n, strategy) in strategies(report).into_iter().enumerate() {
        let (x, y) = (2.0 * (WIDTH + MARGIN) + 20.0, MARGIN + 20.0 * n as f64);
        let color = color(strategy);
        let _ = writeln!(
            svg,
            "<path d=\"M{x} {y}h22\" stroke=\"{color}\" stroke-width=\"2\"/><text x=\"{}\" y=\"{}\">{}</text>",
            x + 30.0,
            y + 4.0,
            strategy.name()
        );
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, report: &Report, left: f64, title: &str, of: fn(&Row) -> f64) {
    let x = |utilisation: f64| left + MARGIN + utilisation.min(1.0) * WIDTH * 0.95;
    let y = |share: f64| MARGIN + (1.0 - share) * HEIGHT;
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{title}</text>", x(0.0), MARGIN - 18.0);
    for tick in 0..=5 {
        let share = f64::from(tick) / 5.0;
        let (at, along) = (y(share), x(share));
        let _ = writeln!(svg, "<path d=\"M{} {at}H{}\" stroke=\"#ddd\"/>", x(0.0), x(1.0));
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{share:.1}</text>", x(0.0) - 6.0, at + 4.0);
        let _ = writeln!(svg, "<text x=\"{along}\" y=\"{}\" text-anchor=\"middle\">{share:.1}</text>", y(0.0) + 18.0);
    }
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">utilisation</text>", x(0.5), y(0.0) + 36.0);
    for strategy in strategies(report) {
        let points: Vec<(f64, f64)> = report
            .rows
            .iter()
            .filter(|row| row.strategy == strategy)
            .map(|row| (x(row.utilisation), y(of(row).clamp(0.0, 1.0))))
            .collect();
        line(svg, &points, color(strategy));
    }
}

fn line(svg: &mut String, points: &[(f64, f64)], color: &str) {
    let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    let _ = writeln!(svg, "<path d=\"M{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>", path.join("L"));
    for (x, y) in points {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>");
    }
}

fn strategies(report: &Report) -> Vec<Strategy> {
    let shown = |strategy: &Strategy| report.rows.iter().any(|row| row.strategy == *strategy);
    Strategy::ALL.into_iter().filter(shown).collect()
}

fn color(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Kiln => "#c1440e",
        Strategy::Random => "#888888",
        Strategy::LeastOfThree => "#1b6ca8",
        Strategy::Sticky => "#6a3d9a",
        Strategy::RingWalk => "#2e8b57",
    }
}
