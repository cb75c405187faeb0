//! What reading a manifest may take in memory, counted while it is read.

use super::MAGIC;
use super::decode::FormatError;

/// The most bytes that checking a manifest takes: room for a million files and for the packs of 64 GiB.
pub const LONGEST_CHECK: u64 = 256 << 20;
/// What checking takes for each byte of the body at the most, the body itself included: a legitimate file takes 38 bytes or more there,
/// and 120 in memory.
const PER_BYTE: u64 = 8;
/// What checking takes even for an empty manifest, zstd's window included.
const LEAST: u64 = 1 << 20;

/// What checking a stored manifest takes at the most, bytes: by the length that it declares, which decompression keeps it to.
pub fn memory_of(stored: &[u8]) -> u64 {
    match declared_length(stored) {
        Some(length) => length.saturating_mul(PER_BYTE).saturating_add(LEAST).min(LONGEST_CHECK),
        None => LONGEST_CHECK,
    }
}

/// How long the body is, as the zstd frame declares it. It may lie.
pub fn declared_length(stored: &[u8]) -> Option<u64> {
    zstd::zstd_safe::get_frame_content_size(stored.strip_prefix(MAGIC)?).ok().flatten()
}

/// The bytes that are left of what a manifest may take.
pub struct Budget {
    left: u64,
    total: u64,
}

impl Budget {
    pub fn new(total: u64) -> Self {
        Self { left: total, total }
    }

    pub fn left(&self) -> u64 {
        self.left
    }

    /// Counts `items` that are about to be kept in a vector, which doubles as it grows.
    ///
    /// # Errors
    /// When they take more than is left.
    pub fn take<T>(&mut self, items: u64) -> Result<(), FormatError> {
        self.take_bytes(items.saturating_mul(2 * size_of::<T>() as u64))
    }

    /// # Errors
    /// When more is taken than is left.
    pub fn take_bytes(&mut self, bytes: u64) -> Result<(), FormatError> {
        self.left = self.left.checked_sub(bytes).ok_or(FormatError::Memory(self.total))?;
        Ok(())
    }
}
