//! What control counts, in the process's Prometheus registry: builds admitted and why not, results published, builds ended.

use std::sync::LazyLock;
use std::time::Instant;

use prometheus::{HistogramVec, IntCounterVec, histogram_opts, opts};
use workflows::activities::{Admission, Publication};
use workflows::contract::BuildResult;

use crate::metrics::register;

const BUCKETS: [f64; 7] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];

static ADMIT_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let help = "Time to admit a build, by the answer; `error`: the store was unavailable.";
    register(HistogramVec::new(histogram_opts!("kiln_admit_seconds", help, BUCKETS.to_vec()), &["answer"]))
});
static PUBLISH_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let help = "Time of an attempt to publish a result, by the answer; `error`: the store was unavailable.";
    register(HistogramVec::new(histogram_opts!("kiln_publish_seconds", help, BUCKETS.to_vec()), &["answer"]))
});
static ENDED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Build runs that ended, by status and by the class of what failed.";
    register(IntCounterVec::new(opts!("kiln_builds_ended_total", help), &["status", "class"]))
});

/// Declares everything, so that a scrape shows it before the first build.
pub fn declare() {
    LazyLock::force(&ADMIT_SECONDS);
    LazyLock::force(&PUBLISH_SECONDS);
    LazyLock::force(&ENDED);
    ADMIT_SECONDS.with_label_values(&["placed"]);
    PUBLISH_SECONDS.with_label_values(&["published"]);
    ENDED.with_label_values(&["succeeded", ""]);
}

pub(super) fn admitted<E>(answer: &Result<Admission, E>, begun: Instant) {
    let label = match answer {
        Ok(Admission::Placed(_)) => "placed",
        Ok(Admission::Recorded { .. }) => "recorded",
        Ok(Admission::OverCap { .. }) => "over_cap",
        Ok(Admission::NoCell { .. }) => "no_cell",
        Ok(Admission::Refused { .. }) => "refused",
        Err(_) => "error",
    };
    ADMIT_SECONDS.with_label_values(&[label]).observe(begun.elapsed().as_secs_f64());
}

pub(super) fn published<E>(answer: &Result<Publication, E>, begun: Instant) {
    let label = match answer {
        Ok(Publication::Published { .. }) => "published",
        Ok(Publication::Slow { .. }) => "slow",
        Ok(Publication::ContentGone { .. }) => "content_gone",
        Ok(Publication::Refused { .. }) => "refused",
        Err(_) => "error",
    };
    PUBLISH_SECONDS.with_label_values(&[label]).observe(begun.elapsed().as_secs_f64());
}

pub(super) fn ended(result: &BuildResult) {
    let class = result.error.as_ref().map_or("", |error| error.class.as_str());
    ENDED.with_label_values(&[result.status.as_str(), class]).inc();
}

#[cfg(test)]
mod tests {
    use super::*;
    use workflows::contract::{BuildError, FailureClass};

    #[test]
    fn each_answer_is_counted_under_its_name() {
        declare();
        let error = BuildError::new(FailureClass::Refused, "no such project");
        admitted::<()>(&Ok(Admission::Refused { error: error.clone() }), Instant::now());
        admitted::<()>(&Err(()), Instant::now());
        published::<()>(&Ok(Publication::Refused { error }), Instant::now());
        let text = prometheus::TextEncoder::new().encode_to_string(&prometheus::gather()).unwrap();
        for line in [
            r#"kiln_admit_seconds_count{answer="error"} 1"#,
            r#"kiln_admit_seconds_count{answer="refused"} 1"#,
            r#"kiln_publish_seconds_count{answer="refused"} 1"#,
            r#"kiln_builds_ended_total{class="",status="succeeded"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
