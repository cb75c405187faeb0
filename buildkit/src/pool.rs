//! Buffers that are used again and again.
//!
//! Files pass through here at the speed of memory. A buffer that is fresh from the system costs a page fault for every
//! 4 KiB written to it, and clearing the page costs more than the copy; one that was used a moment ago is in the cache.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

/// Hands out buffers of one size and takes them back. Never waits: how many are in use at once is bounded by whoever
/// uses them, how many are kept idle by the pool.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Bytes in a buffer.
    size: usize,
    /// Idle buffers at most; more are given back to the system.
    keep: usize,
    idle: Mutex<Vec<Box<[u8]>>>,
}

impl Pool {
    pub(crate) fn new(size: usize, keep: usize) -> Arc<Self> {
        Arc::new(Self { size, keep, idle: Mutex::default() })
    }

    /// A buffer with anything in it.
    pub(crate) fn take(self: &Arc<Self>) -> Buffer {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = idle.unwrap_or_else(|| vec![0; self.size].into_boxed_slice());
        Buffer { bytes, pool: self.clone() }
    }
}

/// A buffer that goes back to its pool when it is dropped, also as the owner of a `Bytes`.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    pool: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.pool.keep {
            idle.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_buffer_comes_back_with_the_last_part_of_it() {
        let pool = Pool::new(8, 1);
        let mut buffer = pool.take();
        buffer.copy_from_slice(b"abcdefgh");
        let mut first = Bytes::from_owner(buffer);
        let second = first.split_off(4);
        drop(first);
        assert_eq!(pool.take().as_ref(), [0; 8], "another one while a part is in use");
        assert_eq!(second, b"efgh".as_slice());
    }

    #[test]
    fn idle_buffers_are_kept_up_to_a_number() {
        let pool = Pool::new(8, 1);
        let (first, second) = (pool.take(), pool.take());
        drop((first, second));
        assert_eq!(pool.idle.lock().unwrap().len(), 1);
    }
}
