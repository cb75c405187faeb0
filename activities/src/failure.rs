//! The one conversion between Kiln's typed errors and Temporal's.
//!
//! Temporal's `ActivityError` would convert any error, retryable and without a type; so nothing here uses `?` on it.

use std::time::Duration;

use temporalio_sdk::ApplicationFailure;
use temporalio_sdk::activities::ActivityError;
use workflows::contract::BuildError;

/// The policy's own first interval: a wait of so long is none that was asked for.
const MOMENT: Duration = Duration::from_secs(1);
/// Whoever asks for longer is tried again meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A failure with its class as type and the whole error as details. Never retried by the server: the workflow decides.
pub fn failure(error: BuildError) -> ApplicationFailure {
    ApplicationFailure::builder(error.clone())
        .type_name(error.class.as_str().to_owned())
        .non_retryable(true)
        .details(error)
        .build()
}

/// The same, as an activity's error.
pub fn failed(error: BuildError) -> ActivityError {
    ActivityError::application(failure(error))
}

/// A failure with a type of its own that nobody retries; `why` is its message.
pub fn typed(type_name: &str, why: impl Into<String>) -> ActivityError {
    ActivityError::application(typed_failure(type_name, why))
}

/// The same, to be told by task token.
pub fn typed_failure(type_name: &str, why: impl Into<String>) -> ApplicationFailure {
    let why: String = why.into();
    ApplicationFailure::builder(why).type_name(type_name.to_owned()).non_retryable(true).build()
}

/// A failure that the activity's retry policy may try again; the error stands when the policy gives up.
pub fn retryable(error: BuildError) -> ActivityError {
    let failure =
        ApplicationFailure::builder(error.clone()).type_name(error.class.as_str().to_owned()).details(error).build();
    ActivityError::application(failure)
}

/// As [`retryable`], not before `wait` is over where that is longer than a moment: the server was told to wait so long.
pub fn retryable_after(error: BuildError, wait: Duration) -> ActivityError {
    if wait <= MOMENT {
        return retryable(error);
    }
    let failure = ApplicationFailure::builder(error.clone())
        .type_name(error.class.as_str().to_owned())
        .details(error)
        .next_retry_delay(wait.min(LONGEST_WAIT))
        .build();
    ActivityError::application(failure)
}

/// An error with its sources' words, for messages that travel.
pub fn with_source(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let words = source.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = source.source();
    }
    text
}
