//! What shipper and receiver say to each other over TCP.
//!
//! A frame is its length (4 bytes, big endian), a JSON header on one line, and for `records` the records themselves, one JSON
//! [`LogRecord`](workflows::contract::LogRecord) a line. One connection carries all attempts of a builder:
//!
//! ```text
//! shipper  → hello{version, token}                        receiver → welcome | refused{reason}
//! shipper  → open{attempt, first}                         receiver → resume{reference, after}
//! shipper  → records{reference, first, count} + lines     receiver → ack{reference, seq}, once they are written
//!                                                         receiver → rejected{reference, reason} | busy{reference}
//! ```
//!
//! `resume` says where the shipper goes on: after an `open`, and again whenever records arrive that do not follow the last
//! one. Records the receiver has already are dropped, so sending too much is harmless. `rejected` and `busy` are about one
//! attempt: whatever is wrong with it, the logs of the others go on.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio_util::codec::LengthDelimitedCodec;
use workflows::contract::AttemptId;

/// The version of this conversation.
pub const VERSION: u32 = 1;
/// The largest frame either side accepts, bytes.
pub const MAX_FRAME: usize = 4 << 20;
/// The most records in a frame.
pub const MAX_RECORDS: u64 = 1 << 16;
/// The highest number of a record.
pub const MAX_NUMBER: u64 = 1 << 32;

/// A shipper's frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToReceiver {
    Hello {
        version: u32,
        token: String,
    },
    /// `first` is the lowest number the shipper still has; what came before is acknowledged.
    Open {
        attempt: AttemptId,
        first: u64,
    },
    /// `count` lines follow, numbered from `first`.
    Records {
        reference: String,
        first: u64,
        count: u64,
    },
}

/// A receiver's frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToShipper {
    Welcome,
    /// The connection is closed after this.
    Refused {
        reason: String,
    },
    /// Send what follows `after` next.
    Resume {
        reference: String,
        after: u64,
    },
    /// All records up to `seq` are written.
    Ack {
        reference: String,
        seq: u64,
    },
    /// This attempt's log is never taken from this builder, for one because it was not placed there; others go on.
    Rejected {
        reference: String,
        reason: String,
    },
    /// This attempt's log cannot be written now: open it again in a second.
    Busy {
        reference: String,
    },
}

/// A frame that is not of this conversation.
#[derive(Debug, thiserror::Error)]
#[error("a frame of the log connection cannot be read")]
pub struct BadFrame(#[from] serde_json::Error);

/// Cuts a byte stream into frames.
pub fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_codec()
}

/// A frame's body: the header, then `lines`, each ending in a newline.
pub fn encode(header: &impl Serialize, lines: &[u8]) -> Result<Bytes, BadFrame> {
    let header = serde_json::to_vec(header)?;
    let mut body = BytesMut::with_capacity(header.len() + 1 + lines.len());
    body.put_slice(&header);
    body.put_u8(b'\n');
    body.put_slice(lines);
    Ok(body.freeze())
}

/// The header of a frame's body, and the lines after it.
pub fn decode<T: serde::de::DeserializeOwned>(mut body: Bytes) -> Result<(T, Bytes), BadFrame> {
    let end = body.iter().position(|&byte| byte == b'\n').unwrap_or(body.len());
    let header = body.split_to(end);
    let lines = if body.is_empty() { body } else { body.slice(1..) };
    Ok((serde_json::from_slice(&header)?, lines))
}
