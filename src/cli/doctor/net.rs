//! The steps below every protocol: a name, a port, TLS; and for HTTP an answer and its clock.

use std::io;
use std::time::Duration;

use activities::trust::handshake_problem;
use reqwest::{RequestBuilder, Response};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::Url;

use super::{Kind, Problem};
use crate::cli::failure::io_text;
use crate::settings::Settings;

/// For each step.
const STEP: Duration = Duration::from_secs(8);
/// Signatures and certificates are checked by the clock: storage refuses requests that are off by 15 minutes.
const SKEW: Duration = Duration::from_secs(60);

/// Resolves `host` and connects to it.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, Problem> {
    let host = host.trim_matches(['[', ']']);
    let found = timeout(STEP, tokio::net::lookup_host((host, port))).await;
    let found =
        found.map_err(|_| Problem::new(Kind::Name, format!("{host} was not resolved in {} s", STEP.as_secs())))?;
    let addresses: Vec<_> = found
        .map_err(|error| Problem::new(Kind::Name, format!("{host} does not resolve: {}", io_text(&error))))?
        .collect();
    let connected = timeout(STEP, TcpStream::connect(&addresses[..])).await;
    let connected = connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
    connected.map_err(|error| Problem::new(Kind::Port, format!("{host}:{port}: {}", io_text(&error))))
}

/// Connects to `host:port`.
pub async fn connect_to(address: &str) -> Result<TcpStream, Problem> {
    let split = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = split.ok_or_else(|| Problem::new(Kind::Setting, format!("{address:?} is not host:port")))?;
    connect(host, port).await
}

/// Connects to the host of a URL, with TLS for https.
pub async fn connect_url(url: &Url, settings: &Settings) -> Result<(), Problem> {
    let host = url.host_str().unwrap_or_default();
    let stream = connect(host, url.port_or_known_default().unwrap_or_default()).await?;
    if url.scheme() != "https" {
        return Ok(());
    }
    let trust = settings.trust().and_then(|trust| trust.client());
    let config = trust.map_err(|error| Problem::new(Kind::Setting, crate::cli::failure::chain(&error)))?;
    let name = host.trim_matches(['[', ']']).to_owned().try_into();
    let name = name.map_err(|_| Problem::new(Kind::Tls, format!("{host:?} is no name that a certificate can have")))?;
    let shaken = timeout(STEP, TlsConnector::from(config).connect(name, stream)).await;
    let shaken = shaken.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
    shaken.map(drop).map_err(|error| Problem::new(Kind::Tls, handshake_problem(&error)))
}

/// Sends a request whose host has been reached, and compares the clocks.
pub async fn answer(request: RequestBuilder) -> Result<Response, Problem> {
    let answer = request.timeout(STEP).send().await;
    let answer =
        answer.map_err(|error| Problem::new(Kind::Answer, activities::failure::with_source(&error.without_url())))?;
    let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
    match date.and_then(skew) {
        Some(skew) if skew > SKEW => {
            let message = format!("the clocks differ by {} s; set this machine's by NTP", skew.as_secs());
            Err(Problem::new(Kind::Clock, message))
        }
        _ => Ok(answer),
    }
}

/// How far a `Date` header is from this machine's time; `None` when it is none.
fn skew(date: &str) -> Option<Duration> {
    let theirs = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    Some(theirs.duration_since(jiff::Timestamp::now()).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_header_tells_how_far_clocks_are_apart() {
        let now = jiff::Timestamp::now();
        let header = |at: jiff::Timestamp| at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        assert!(skew(&header(now)).unwrap() <= Duration::from_secs(2));
        let hour = skew(&header(now - jiff::SignedDuration::from_hours(1))).unwrap();
        assert!(hour > SKEW && hour < Duration::from_secs(3700), "{hour:?}");
        assert_eq!(skew("yesterday"), None);
    }
}
