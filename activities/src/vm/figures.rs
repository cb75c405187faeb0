//! What the host's agent tells Prometheus of its guests, who cannot be reached from outside: asked for over their control channel.

use std::convert::Infallible;
use std::sync::LazyLock;
use std::time::Duration;

use ::vm::Control;
use ::vm::control::{Line, Stats};
use prometheus::{GaugeVec, opts};

use crate::metrics::register;

/// Between two looks at a guest.
const EVERY: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(10);

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

/// Follows a guest for as long as it is asked; one that does not answer keeps its last figures. Each look has a connection of its own: a guest
/// serves one at a time, and who wants it stopped must not wait.
pub(super) async fn follow(cell: &str, control: &Line) -> Infallible {
    loop {
        tokio::time::sleep(EVERY).await;
        let stats = async { Control::connect(control).await?.stats(ANSWER).await };
        match stats.await {
            Ok(stats) => tell(cell, &stats),
            Err(error) => tracing::debug!(%error, cell, "the guest says nothing of itself"),
        }
    }
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
}
