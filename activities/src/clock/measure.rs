//! How far the clock is off, by servers that speak SNTP (RFC 5905).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rsntp::{AsyncSntpClient, Config, SynchronizationError};

/// How long one server may take, its name's look-up included.
const PATIENCE: Duration = Duration::from_secs(3);
/// By how much the two clocks that time an exchange may disagree, seconds, before it counts as disturbed.
const SLACK: f64 = 0.05;

/// By how much the clock is behind; negative when it is ahead.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub seconds: f64,
    /// What the exchange took on its way there and back, seconds.
    pub delay: f64,
    /// The server whose answer it is.
    pub by: String,
}

impl Measured {
    /// Whether the clock may be right as well: all of the delay may have been on one of the two ways, so that the truth lies up to half
    /// of it beside what was measured (RFC 5905 counts it into the greatest error).
    pub fn may_be_none(&self) -> bool {
        self.seconds.abs() <= self.delay / 2.0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error("time server {server}")]
    Server { server: String, source: SynchronizationError },
    #[error("time server {server} did not answer within {} s", PATIENCE.as_secs())]
    Silent { server: String },
    #[error("the clock was set while the time server {server} was asked")]
    Disturbed { server: String },
}

/// Asks all servers at once and believes the middle one of their answers: one that is wrong among three does no harm.
///
/// # Errors
/// What was wrong with each, when none gives the time.
pub async fn measure(servers: &[String]) -> Result<Measured, Vec<MeasureError>> {
    let mut answers = Vec::new();
    let mut errors = Vec::new();
    for answer in join_all(servers.iter().map(|server| ask(server))).await {
        match answer {
            Ok(measured) => answers.push(measured),
            Err(error) => errors.push(error),
        }
    }
    middle(answers).ok_or(errors)
}

/// Of the two in the middle of an even number the one that asks for less.
fn middle(mut answers: Vec<Measured>) -> Option<Measured> {
    answers.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let middle = answers.len() / 2;
    let low = middle.saturating_sub(usize::from(answers.len().is_multiple_of(2)));
    answers.drain(..).skip(low).take(middle - low + 1).min_by(|a, b| a.seconds.abs().total_cmp(&b.seconds.abs()))
}

async fn ask(server: &str) -> Result<Measured, MeasureError> {
    let client = AsyncSntpClient::with_config(config(server));
    let begun = Instant::now();
    let asked = tokio::time::timeout(PATIENCE, client.synchronize(server)).await;
    let silent = |_| MeasureError::Silent { server: server.to_owned() };
    let told = asked.map_err(silent)?;
    let told = told.map_err(|source| MeasureError::Server { server: server.to_owned(), source })?;
    // The delay is taken by the wall clock. Somebody who sets it meanwhile makes the answer worthless.
    let delay = told.round_trip_delay().as_secs_f64();
    if !(-SLACK..=begun.elapsed().as_secs_f64() + SLACK).contains(&delay) {
        return Err(MeasureError::Disturbed { server: server.to_owned() });
    }
    Ok(Measured { seconds: told.clock_offset().as_secs_f64(), delay, by: server.to_owned() })
}

/// The library asks from an IPv4 address unless it is told otherwise.
fn config(server: &str) -> Config {
    let v6 = server.parse().is_ok_and(|address: SocketAddr| address.is_ipv6())
        || server.parse().is_ok_and(|address: IpAddr| address.is_ipv6());
    let config = Config::default().timeout(PATIENCE);
    if v6 { config.bind_address((Ipv6Addr::UNSPECIFIED, 0).into()) } else { config }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_delay_is_no_difference() {
        let measured = |seconds, delay| Measured { seconds, delay, by: String::new() };
        assert!(measured(0.9, 1.8).may_be_none() && measured(-0.9, 1.9).may_be_none());
        assert!(!measured(0.9, 1.7).may_be_none() && !measured(-0.9, -0.02).may_be_none());
    }

    #[test]
    fn the_middle_answer_is_believed() {
        let believed = |seconds: &[f64]| {
            let answers = seconds.iter().map(|seconds| Measured { seconds: *seconds, delay: 0.0, by: String::new() });
            middle(answers.collect()).map(|measured| measured.seconds)
        };
        assert_eq!(believed(&[]), None);
        assert_eq!(believed(&[3600.0]), Some(3600.0));
        assert_eq!(believed(&[0.1, -86400.0, 0.2]), Some(0.1));
        assert_eq!(believed(&[86400.0, 0.1]), Some(0.1), "of two, the one that asks for less");
        assert_eq!(believed(&[0.3, 0.2, 86400.0, -86400.0]), Some(0.2));
    }
}
