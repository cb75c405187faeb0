//! The table's shape, and that the policy keeps what it promises.

use super::*;

fn args(more: &[&str]) -> SimulateArgs {
    #[derive(clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: SimulateArgs,
    }
    <Only as clap::Parser>::parse_from(["simulate"].iter().chain(more)).args
}

/// A fleet small enough for a test: the shape of the full one at a quarter of its size.
const SMALL: [&str; 8] = ["--cells", "16", "--projects", "250", "--builds", "10800", "--seeds", "7"];

fn small(more: &[&str]) -> Report {
    let own = SMALL.chunks(2).filter(|pair| !more.contains(&pair[0])).flatten();
    simulate(&args(&own.chain(more).copied().collect::<Vec<_>>())).unwrap()
}

fn row(report: &Report, utilisation: f64, strategy: Strategy) -> &Row {
    report.rows.iter().find(|row| row.utilisation == utilisation && row.strategy == strategy).unwrap()
}

/// Three cells chosen by hash keep caches warm as well, but let builds wait; the others do not keep them warm.
#[test]
fn the_policy_keeps_builds_warm_at_every_load_and_others_do_not_without_waiting() {
    let report = small(&[]);
    for (utilisation, warm, queued) in [(0.3, 0.96, 0.01), (0.6, 0.93, 0.08), (0.85, 0.91, 0.26)] {
        let kiln = row(&report, utilisation, Strategy::Kiln);
        assert!(kiln.warm >= warm && kiln.queued <= queued, "{kiln:?}");
        for other in Strategy::ALL.into_iter().filter(|other| *other != Strategy::Kiln) {
            let other = row(&report, utilisation, other);
            assert!(kiln.warm > other.warm || kiln.wait_s < other.wait_s / 2.0, "{kiln:?} against {other:?}");
        }
    }
    let optimum = report.optima[0].1;
    assert!((0.97..0.985).contains(&optimum), "the load is not the one these figures are for: {optimum}");
}

#[test]
fn the_table_has_a_row_for_each_placement_at_each_utilisation() {
    let table = small(&["--utilisation", "0.5", "--builds", "600"]).table();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "UTILISATION  PLACEMENT          WARM   QUEUED  WAIT  MOVED  BUSIEST");
    let named: Vec<&str> = lines[1..].iter().map(|line| line[13..].split("  ").next().unwrap()).collect();
    assert_eq!(named, ["optimum", "kiln", "random", "least-loaded-of-3", "sticky", "ring walk"]);
}

#[test]
fn a_run_is_the_same_each_time_and_seeds_differ() {
    let of = |seed: &str| small(&["--utilisation", "0.7", "--builds", "2000", "--seeds", seed, "--losses", "3"]).rows;
    assert_eq!(of("3"), of("3"));
    assert_ne!(of("3"), of("4"));
}

/// Lost cells and silent ones move builds; all builds end, and most stay warm.
#[test]
fn losses_and_silence_move_builds_and_lose_none() {
    let calm = small(&["--utilisation", "0.6", "--strategy", "kiln"]);
    let rough = small(&["--utilisation", "0.6", "--strategy", "kiln", "--losses", "40", "--stale", "0.1"]);
    assert_eq!(calm.rows[0].moved, 0.0);
    assert!((0.001..0.2).contains(&rough.rows[0].moved), "{:?}", rough.rows[0]);
    assert!(rough.rows[0].warm > 0.8, "{:?}", rough.rows[0]);
}

/// The builds that an installation lists are a load; times can be stretched to another utilisation.
#[test]
fn recorded_builds_are_a_load() {
    let build = |n: i64| {
        format!(
            r#"{{"build_id":"p{0}/k{n}","project":"p{0}","created_ms":{1},"started_ms":{1},"ended_ms":{2}}}"#,
            n % 3,
            n * 1000,
            n * 1000 + 3000
        )
    };
    let builds: Vec<String> = (0..200).map(build).collect();
    let open = r#"{"project":"p9","created_ms":5}"#;
    let text = format!(r#"{{"builds":[{open},{}]}}"#, builds.join(","));
    let load = Load::recorded(&text).unwrap();
    assert_eq!((load.builds.len(), load.projects.len()), (200, 3));
    assert!((load.utilisation(4.0) - 0.754).abs() < 0.001, "{}", load.utilisation(4.0));
    assert!((load.stretched(0.2, 4.0).utilisation(4.0) - 0.2).abs() < 0.001);
    assert!((load.optimum() - 197.0 / 200.0).abs() < 1e-9);
    assert!(Load::recorded(r#"{"builds":[]}"#).unwrap_err().contains("none of its builds"));

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("load.json");
    std::fs::write(&file, text).unwrap();
    let report = simulate(&args(&["--cells", "2", "--slots", "2", "--seeds", "1", "--load", file.to_str().unwrap()]));
    let report = report.unwrap();
    assert_eq!(report.rows.len(), Strategy::ALL.len());
    assert!((report.rows[0].utilisation - 0.754).abs() < 0.001);
}

#[test]
fn the_picture_has_a_line_for_each_placement_in_both_panels() {
    let report = small(&["--builds", "600"]);
    let svg = plot::svg(&report);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("fill=\"none\"").count(), 2 * Strategy::ALL.len());
    assert_eq!(svg.matches("<circle").count(), 2 * Strategy::ALL.len() * UTILISATION.len());
    assert!(!svg.contains("NaN"));
}

#[test]
fn impossible_fleets_are_refused() {
    for (flags, rule) in [(["--cells", "0"], "--cells"), (["--stale", "1"], "--stale"), (["--homes", "9"], "--homes")] {
        assert!(args(&flags).scenario.check().unwrap_err().contains(rule), "{flags:?}");
    }
    assert!(simulate(&args(&["--utilisation", "0"])).unwrap_err().contains("above 0"));
}
