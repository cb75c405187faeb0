//! The memory that requests about manifests share, so that many large or hostile ones at once wait for each other instead of taking all
//! there is. What waits for too long is told that the api is busy.
//!
//! Each purpose has its own room, and a request takes them in the order of the fields: it cannot wait for one that waits for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::manifest::{LONGEST_CHECK, LONGEST_MANIFEST};
use super::service::SnapshotError;

/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(30);
/// Rooms are shared in pieces of this size, bytes.
const PIECE: u64 = 1 << 10;

/// The rooms of one api.
#[derive(Clone)]
pub struct Rooms {
    /// Manifests that are being uploaded.
    pub uploads: Room,
    /// Manifests that were read from storage.
    pub stored: Room,
    /// Manifests that are being sent to clients.
    pub serving: Room,
    /// What checking a manifest takes.
    pub checks: Room,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            uploads: Room::new(LONGEST_MANIFEST, PATIENCE),
            stored: Room::new(LONGEST_MANIFEST, PATIENCE),
            serving: Room::new(LONGEST_MANIFEST, PATIENCE),
            checks: Room::new(LONGEST_CHECK, PATIENCE),
        }
    }
}

/// A number of bytes that may be held at once.
#[derive(Clone)]
pub struct Room {
    pieces: Arc<Semaphore>,
    total: u32,
    patience: Duration,
}

/// Bytes of a room, until it is dropped.
pub struct Held {
    _pieces: OwnedSemaphorePermit,
}

impl Room {
    fn new(bytes: u64, patience: Duration) -> Self {
        let total = u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX);
        Self { pieces: Arc::new(Semaphore::new(total as usize)), total, patience }
    }

    /// Waits until there is room for so many bytes; for more than there ever is, until nothing else is held.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] when there is none for too long.
    pub async fn take(&self, bytes: u64) -> Result<Held, SnapshotError> {
        let pieces = u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX).clamp(1, self.total);
        let taken = tokio::time::timeout(self.patience, self.pieces.clone().acquire_many_owned(pieces)).await;
        match taken {
            Ok(Ok(pieces)) => Ok(Held { _pieces: pieces }),
            _ => Err(SnapshotError::Busy),
        }
    }
}

impl Held {
    /// The bytes, which hold their room until the last of them is dropped.
    pub fn around(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(InRoom { bytes, _held: self })
    }
}

struct InRoom {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for InRoom {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_room_makes_others_wait_and_then_says_so() {
        let room = Room::new(64 << 10, Duration::from_millis(20));
        let first = room.take(u64::MAX).await.unwrap();
        assert!(matches!(room.take(1).await, Err(SnapshotError::Busy)));
        let bytes = first.around(Bytes::from_static(b"manifest"));
        let part = bytes.slice(1..3);
        drop(bytes);
        assert!(room.take(1).await.is_err(), "a part of the bytes is still there");
        drop(part);
        assert!(room.take(64 << 10).await.is_ok());
    }
}
