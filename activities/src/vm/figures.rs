//! What the host's agent tells Prometheus of its guests, who cannot be reached from outside: asked for over their control channel. And what
//! it tells them: the time, when their clock is off. A guest runs for months, and nobody else may ever set its clock.

use std::convert::Infallible;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use ::vm::control::{Line, Stats};
use ::vm::{Control, ControlError, Guest};
use prometheus::{GaugeVec, opts};

use crate::metrics::register;

/// Between two looks at a guest.
const EVERY: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(10);
/// A guest's clock may be off by so much, and by what asking takes: it is set at once, not by and by, so not without need.
const CLOCK_LIMIT: Duration = Duration::from_millis(500);

static PRESSURE: LazyLock<GaugeVec> = LazyLock::new(|| {
    let help = "Part of the last 10 s in which all processes of a guest's slice waited for a resource.";
    register(GaugeVec::new(opts!("kiln_guest_pressure", help), &["cell", "slice", "resource"]))
});
static MEMORY: LazyLock<GaugeVec> = LazyLock::new(|| {
    let help = "Memory of a guest that is free or can be freed.";
    register(GaugeVec::new(opts!("kiln_guest_memory_available_bytes", help), &["cell"]))
});
static KILLS: LazyLock<GaugeVec> = LazyLock::new(|| {
    let help = "Processes of a guest's slice that were killed for memory since its start.";
    register(GaugeVec::new(opts!("kiln_guest_oom_kills", help), &["cell", "slice"]))
});
static CLOCK: LazyLock<GaugeVec> = LazyLock::new(|| {
    let help = "By how much a guest's clock was found ahead of its host's, seconds; negative when it was behind.";
    register(GaugeVec::new(opts!("kiln_guest_clock_offset_seconds", help), &["cell"]))
});

/// Follows a guest for as long as it is asked, and keeps its logs short; one that does not answer keeps its last figures. Each look has a
/// connection of its own: a guest serves one at a time, and who wants it stopped must not wait.
pub(super) async fn follow(cell: &str, guest: &Guest, clock: Clock) -> Infallible {
    let control = guest.control_line();
    loop {
        tokio::time::sleep(EVERY).await;
        guest.shorten_logs().await;
        if let Err(error) = look(cell, &control, clock).await {
            tracing::debug!(%error, cell, "the guest says nothing of itself");
            match guest.retry_writes().await {
                Ok(true) => {
                    tracing::error!(cell, "the guest stood still: no space on the host for its disks; make some")
                }
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, cell, "nor does its program"),
            }
        }
    }
}

/// Who sets a guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// This host, by its own.
    Hosts,
    /// The guest's builder, by time servers: two that set it would never agree.
    Servers,
}

async fn look(cell: &str, control: &Line, clock: Clock) -> Result<(), ControlError> {
    let mut control = Control::connect(control).await?;
    tell(cell, &control.stats(ANSWER).await?);
    let asked = now_ns();
    let guests = i128::from(control.hello(ANSWER).await?.clock_ns);
    let off = off_by(asked, guests, now_ns());
    CLOCK.with_label_values(&[cell]).set(off as f64 / 1e9);
    if clock == Clock::Hosts && off.unsigned_abs() > CLOCK_LIMIT.as_nanos() {
        let behind_ms = control.set_time(ANSWER).await?;
        tracing::warn!(cell, behind_ms, "the guest's clock was off (negative: ahead) and has been set");
    }
    Ok(())
}

/// By how much a clock is certainly ahead (negative: behind) that was read at some time between two moments, all in nanoseconds.
fn off_by(from: i128, clock: i128, to: i128) -> i128 {
    clock - clock.clamp(from, to.max(from))
}

fn now_ns() -> i128 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}

fn tell(cell: &str, stats: &Stats) {
    for slice in ["daemons", "builds"] {
        for resource in ["cpu", "memory", "io"] {
            if let Some(percent) = stats.get(&format!("{slice}.{resource}_full")) {
                PRESSURE.with_label_values(&[cell, slice, resource]).set(percent / 100.0);
            }
        }
        if let Some(kills) = stats.get(&format!("{slice}.oom_kills")) {
            KILLS.with_label_values(&[cell, slice]).set(*kills);
        }
    }
    if let Some(kib) = stats.get("mem_available_kb") {
        MEMORY.with_label_values(&[cell]).set(kib * 1024.0);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_guests_words_become_metrics() {
        let words =
            [("builds.memory_full", 43.5), ("builds.oom_kills", 2.0), ("mem_available_kb", 1024.0), ("other", 1.0)];
        tell("figures-1", &words.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
        assert_eq!(PRESSURE.with_label_values(&["figures-1", "builds", "memory"]).get(), 0.435);
        assert_eq!(KILLS.with_label_values(&["figures-1", "builds"]).get(), 2.0);
        assert_eq!(MEMORY.with_label_values(&["figures-1"]).get(), 1_048_576.0);
    }

    #[test]
    fn what_asking_takes_is_no_fault_of_the_clock() {
        assert_eq!(off_by(100, 150, 200), 0);
        assert_eq!((off_by(100, 90, 200), off_by(100, 230, 200)), (-10, 30));
        assert_eq!(off_by(100, 150, 50), 50, "the host's own clock was set back meanwhile");
    }

    /// A guest whose clock goes with the host's, ahead of it by nanoseconds that it can be told to change.
    struct StandIn {
        ahead: Arc<AtomicI64>,
        line: Line,
        _dir: tempfile::TempDir,
    }

    fn guest(ahead: Duration, is_behind: bool) -> StandIn {
        let dir = tempfile::tempdir().unwrap();
        let nanoseconds = i64::try_from(ahead.as_nanos()).unwrap();
        let ahead = Arc::new(AtomicI64::new(if is_behind { -nanoseconds } else { nanoseconds }));
        tokio::spawn(serve(listener(dir.path()), ahead.clone()));
        StandIn { ahead, line: Line::Port(dir.path().join("control")), _dir: dir }
    }

    fn listener(dir: &Path) -> UnixListener {
        UnixListener::bind(dir.join("control")).unwrap()
    }

    async fn serve(listener: UnixListener, ahead: Arc<AtomicI64>) {
        loop {
            let stream = BufReader::new(listener.accept().await.unwrap().0);
            // Whoever asked may be gone.
            let _ = answer(stream, &ahead).await;
        }
    }

    async fn answer(mut stream: BufReader<UnixStream>, ahead: &AtomicI64) -> std::io::Result<()> {
        let mut line = String::new();
        while stream.read_line(&mut line).await? > 0 {
            if let Some((id, request)) = line.trim().split_once(' ') {
                let words = words(request, ahead);
                stream.get_mut().write_all(format!("{id} ok {words}\n").as_bytes()).await?;
            }
            line.clear();
        }
        Ok(())
    }

    fn words(request: &str, ahead: &AtomicI64) -> String {
        let clock = i64::try_from(now_ns()).unwrap() + ahead.load(Ordering::Relaxed);
        match request.split_once(' ') {
            Some(("time", now)) => {
                let behind = now.parse::<i64>().unwrap() - clock;
                ahead.fetch_add(behind, Ordering::Relaxed);
                format!("behind_ms={}", behind / 1_000_000)
            }
            _ if request == "hello" => format!(
                "phase=running id=c1 version=0.1.0 cache=cold checked=false buildkitd=41 builder=- uptime_ms=900 \
                 clock_ns={clock} timeline=init=100"
            ),
            _ => "mem_available_kb=7".into(),
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_clock_that_is_off_is_set_within_one_round() {
        for (name, is_behind) in [("clock-behind", true), ("clock-ahead", false)] {
            let guest = guest(HOUR, is_behind);
            look(name, &guest.line, Clock::Hosts).await.unwrap();
            let left = Duration::from_nanos(guest.ahead.load(Ordering::Relaxed).unsigned_abs());
            assert!(left < HOUR / 60, "{name}: still off by {left:?}");
            let found = CLOCK.with_label_values(&[name]).get();
            assert_eq!((found.abs() / 3600.0).round(), 1.0);
            assert_eq!(found < 0.0, is_behind, "{name}: {found}");
            assert_eq!(MEMORY.with_label_values(&[name]).get(), 7168.0, "its figures are told as well");
        }
    }

    #[tokio::test]
    async fn a_clock_that_is_right_or_another_ones_business_is_left_alone() {
        let right = guest(Duration::from_nanos(17), false);
        look("clock-right", &right.line, Clock::Hosts).await.unwrap();
        assert_eq!(right.ahead.load(Ordering::Relaxed), 17);
        let served = guest(HOUR, false);
        look("clock-served", &served.line, Clock::Servers).await.unwrap();
        assert_eq!(served.ahead.load(Ordering::Relaxed), i64::try_from(HOUR.as_nanos()).unwrap());
    }
}
