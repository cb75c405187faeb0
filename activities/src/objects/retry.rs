//! One operation, tried until it is answered for good.
//!
//! Tried again: broken connections and time-outs, 429, 5xx, and the client errors that mean that the bytes did not arrive as they were
//! sent (`IncompleteBody`, `ClientDisconnect`, `RequestTimeout`, `BadDigest`) or that another writer was at work. Whoever sends a
//! request through here must not mind if it was carried out twice.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, Response};
use tokio::time::{Instant, sleep, timeout_at};

use super::{BoxError, ObjectError, Patience, Problem};

/// The longest wait that doubling leads to. A `Retry-After` may ask for more.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Storage's final answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// How many tries it took. The last answer is final even when another try could have changed it.
    pub attempts: u32,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// S3's code in the body of an error, for example `NoSuchKey`; empty when there is none.
    pub fn code(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
        code.unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).take(64).collect()
    }

    /// As an error: storage was busy for too long, or trying again does not change the answer.
    pub fn refused(&self, key: &str) -> ObjectError {
        let (status, code, attempts) = (self.status, self.code(), self.attempts);
        let busy = Problem::Busy { status, code: code.clone(), attempts };
        ObjectError::new(key, if self.is_transient() { busy } else { Problem::Refused { status, code } })
    }

    /// Whether another try may be answered otherwise.
    pub fn is_transient(&self) -> bool {
        match self.status {
            429 => true,
            501 => false,
            500..=599 => true,
            400 | 408 | 409 => matches!(
                self.code().as_str(),
                "IncompleteBody"
                    | "ClientDisconnect"
                    | "RequestTimeout"
                    | "BadDigest"
                    | "XAmzContentChecksumMismatch"
                    | "OperationAborted"
                    | "ConditionalRequestConflict"
            ),
            _ => false,
        }
    }
}

/// How one try ended without being done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Storage answered, and not with success.
    Answered(Answer),
    /// The connection broke or took too long.
    Broken(Option<BoxError>),
    /// There are no credentials to sign with.
    NoCredentials(BoxError),
    /// No other try changes it.
    Final(ObjectError),
}

/// How an operation ended that was not done.
#[derive(Debug)]
pub(crate) enum Undone {
    /// Storage's last answer; another try could change it when the answer is transient and patience ran out.
    Answered(Answer),
    Failed(ObjectError),
}

impl Undone {
    pub fn into_error(self, key: &str) -> ObjectError {
        match self {
            Self::Answered(answer) => answer.refused(key),
            Self::Failed(error) => error,
        }
    }

    /// The status of storage's answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Answered(answer) => Some(answer.status),
            Self::Failed(_) => None,
        }
    }
}

impl Failure {
    fn is_transient(&self) -> bool {
        match self {
            Self::Answered(answer) => answer.is_transient(),
            Self::Broken(_) | Self::NoCredentials(_) => true,
            Self::Final(_) => false,
        }
    }

    /// How long storage asks to wait.
    fn wait(&self) -> Option<Duration> {
        match self {
            Self::Answered(answer) => retry_after(&answer.headers),
            _ => None,
        }
    }

    fn ended(self, key: &str, attempts: u32) -> Undone {
        let failed = |problem, source| Undone::Failed(ObjectError { source, ..ObjectError::new(key, problem) });
        match self {
            Self::Answered(answer) => Undone::Answered(Answer { attempts, ..answer }),
            Self::Broken(source) => failed(Problem::Unreachable { attempts }, source),
            Self::NoCredentials(source) => failed(Problem::NoCredentials, Some(source)),
            Self::Final(error) => Undone::Failed(error),
        }
    }
}

/// Makes tries until one is done or another one would change nothing, or patience runs out.
pub(crate) async fn persist<T, Try>(patience: &Patience, key: &str, attempt: impl Fn() -> Try) -> Result<T, Undone>
where
    Try: Future<Output = Result<T, Failure>>,
{
    let deadline = Instant::now() + patience.deadline;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let until = deadline.min(Instant::now() + patience.request_timeout);
        let failure = match timeout_at(until, attempt()).await.unwrap_or(Err(Failure::Broken(None))) {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        let wait = backoff(patience.backoff, attempts).max(failure.wait().unwrap_or_default());
        let is_late = Instant::now().checked_add(wait).is_none_or(|next| next >= deadline);
        if !failure.is_transient() || attempts >= patience.attempts || is_late {
            return Err(failure.ended(key, attempts));
        }
        tracing::debug!(key, attempts, wait_ms = wait.as_millis(), outcome = %describe(&failure), "trying again");
        sleep(wait).await;
    }
}

/// Sends what `request` builds (anew for each try) until there is a final answer, at most `limit` bytes of body. When patience runs out,
/// the last answer stands.
pub(crate) async fn send(
    patience: &Patience,
    key: &str,
    limit: u64,
    request: impl Fn() -> RequestBuilder,
) -> Result<Answer, ObjectError> {
    let sent = persist(patience, key, || async {
        let answer = attempt(request(), key, limit).await?;
        if answer.is_transient() { Err(Failure::Answered(answer)) } else { Ok(answer) }
    });
    match sent.await {
        Ok(answer) | Err(Undone::Answered(answer)) => Ok(answer),
        Err(Undone::Failed(error)) => Err(error),
    }
}

async fn attempt(request: RequestBuilder, key: &str, limit: u64) -> Result<Answer, Failure> {
    let response = request.send().await.map_err(broken)?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = read(response, key, limit).await?;
    Ok(Answer { status, headers, body, attempts: 1 })
}

fn broken(error: reqwest::Error) -> Failure {
    Failure::Broken(Some(error.without_url().into()))
}

/// The whole body, or an error as soon as it is longer than `limit`.
async fn read(mut response: Response, key: &str, limit: u64) -> Result<Bytes, Failure> {
    let mut body = BytesMut::with_capacity(response.content_length().unwrap_or(0).min(limit).min(16 << 20) as usize);
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > limit {
            let problem =
                Problem::Size { expected: limit, actual: response.content_length().unwrap_or(body.len() as u64) };
            return Err(Failure::Final(ObjectError::new(key, problem)));
        }
    }
    Ok(body.freeze())
}

fn describe(failure: &Failure) -> String {
    match failure {
        Failure::Answered(answer) => format!("{} {}", answer.status, answer.code()),
        Failure::Broken(Some(error)) | Failure::NoCredentials(error) => error.to_string(),
        Failure::Broken(None) => "deadline".to_owned(),
        Failure::Final(error) => error.to_string(),
    }
}

/// The longest wait that a server can ask for: whatever adds to it has room to.
const LONGEST_ASKED: Duration = Duration::from_secs(30 * 24 * 3600);

/// Doubled with each try, then between half of that and all of it by chance.
fn backoff(base: Duration, attempts: u32) -> Duration {
    let doubled = base.saturating_mul(1 << (attempts - 1).min(16)).min(LONGEST_BACKOFF);
    doubled.mul_f64(rand::random_range(0.5..1.0))
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3); at most [`LONGEST_ASKED`].
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than the type has are a long time too.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)).min(LONGEST_ASKED));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    let wait = date.timestamp().duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(wait).unwrap_or_default().min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit_and_are_never_the_same_for_all() {
        let base = Duration::from_millis(100);
        for attempts in 1..40 {
            let wait = backoff(base, attempts);
            assert!(wait >= (base * (1 << (attempts - 1).min(5))).min(LONGEST_BACKOFF) / 2, "{attempts}: {wait:?}");
            assert!(wait <= LONGEST_BACKOFF, "{attempts}: {wait:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let wait = |text: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]));
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        assert!(wait("Fri, 31 Dec 2100 23:59:59 GMT").unwrap() > Duration::from_secs(1_000_000));
        for endless in ["9223372036854775808", "18446744073709551615", "99999999999999999999999"] {
            assert_eq!(wait(endless), Some(LONGEST_ASKED), "{endless}");
        }
        assert!(wait("Fri, 31 Dec 9999 23:59:59 GMT") <= Some(LONGEST_ASKED));
        assert_eq!([wait("soon"), wait(""), wait("-1"), wait("1e9")], [None; 4]);
    }
}
