//! Messages on their way out: packed into frames as they are made, copied nowhere.
//!
//! ```text
//!  buffer  │ STAT STAT STAT … │ DATA ─────────────── │ DATA ── END DATA ── END │
//!          └ frame            └ frame                └ frame
//! ```
//!
//! A frame is what travels in one HTTP/2 frame. No message crosses from one to the next: a message that came in several
//! frames the daemon first copies together, in a buffer that it clears whole before. Its buffers are of 32 KiB and
//! of 1 MiB, so that a message of 64 KiB costs it sixteen times as much memory to clear.

use super::wire;
use crate::{
    pool::{Buffer, Pool},
    proto::fsutil::types::Packet,
    tunnel::CONTENT as FRAME,
};
use bytes::Bytes;
use http_body::{Body, Frame};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    vec,
};
use tokio::sync::mpsc;
use tonic::{
    Status,
    codegen::http::{HeaderMap, HeaderValue},
};

/// Frames in a buffer, which is what one wake-up of the connection's thread sends of a large file.
const FRAMES: usize = 8;
/// Buffers that are kept to be used again: those of the queue, of each reader, and some that the connection holds.
const KEEP: usize = 16;

/// The daemon takes no more.
#[derive(Debug)]
pub(super) struct Gone;

pub(super) type Batches = mpsc::Sender<Vec<Bytes>>;

/// Where messages are made; full frames of them go to the connection, several at a time.
pub(super) struct Outgoing<'t> {
    batches: &'t Batches,
    pool: &'t Arc<Pool>,
    /// What is in the making, and where it ends.
    buffer: Buffer,
    end: usize,
    /// Where the frames in the buffer begin; the last one is open.
    begins: Vec<usize>,
}

/// What a session's transfers share.
pub(super) fn pool() -> Arc<Pool> {
    Pool::new(FRAMES * FRAME, KEEP)
}

impl<'t> Outgoing<'t> {
    pub(super) fn new(batches: &'t Batches, pool: &'t Arc<Pool>) -> Self {
        Self { batches, pool, buffer: pool.take(), end: 0, begins: vec![0] }
    }

    pub(super) fn push(&mut self, packet: &Packet) -> Result<(), Gone> {
        let size = wire::size(packet);
        if size > FRAME {
            // Of more frames than one, which only a name or an error of many pages can be.
            self.flush()?;
            let mut message = vec![0; size];
            wire::write(packet, &mut message);
            return self.send(vec![message.into()]);
        }
        wire::write(packet, self.room(size)?);
        self.commit(size);
        Ok(())
    }

    /// Room for a message of up to this many bytes, at most [`FRAME`]. It becomes part of what is sent by
    /// [`Outgoing::commit`].
    pub(super) fn room(&mut self, size: usize) -> Result<&mut [u8], Gone> {
        let open = self.begins.last().copied().unwrap_or_default();
        if self.end + size > self.buffer.len() {
            self.flush()?;
        } else if self.end + size > open + FRAME {
            self.begins.push(self.end);
        }
        Ok(&mut self.buffer[self.end..self.end + size])
    }

    pub(super) fn commit(&mut self, size: usize) {
        self.end += size;
    }

    /// Sends what there is.
    pub(super) fn flush(&mut self) -> Result<(), Gone> {
        if self.end == 0 {
            return Ok(());
        }
        let mut rest = Bytes::from_owner(std::mem::replace(&mut self.buffer, self.pool.take()));
        rest.truncate(self.end);
        let mut frames: Vec<_> = self.begins.iter().rev().map(|begin| rest.split_off(*begin)).collect();
        frames.reverse();
        self.begins.truncate(1);
        self.end = 0;
        self.send(frames)
    }

    fn send(&self, frames: Vec<Bytes>) -> Result<(), Gone> {
        self.batches.blocking_send(frames).map_err(|_| Gone)
    }
}

/// A message by itself, for whoever must not block.
pub(super) fn single(packet: &Packet) -> Vec<Bytes> {
    let mut message = vec![0; wire::size(packet)];
    wire::write(packet, &mut message);
    vec![message.into()]
}

/// The frames of all batches, one after the other, and gRPC's word that all went well.
pub(super) struct Frames {
    batches: Option<mpsc::Receiver<Vec<Bytes>>>,
    current: vec::IntoIter<Bytes>,
}

impl Frames {
    pub(super) fn new(batches: mpsc::Receiver<Vec<Bytes>>) -> Self {
        Self { batches: Some(batches), current: Vec::new().into_iter() }
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(frame) = self.current.next() {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            let Some(batches) = &mut self.batches else { return Poll::Ready(None) };
            match ready!(batches.poll_recv(context)) {
                Some(batch) => self.current = batch.into_iter(),
                None => {
                    self.batches = None;
                    let mut trailers = HeaderMap::new();
                    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Entry, EntryKind};
    use proptest::prelude::*;
    use prost::Message as _;

    /// What a reader or a walker does with [`Outgoing`].
    #[derive(Debug, Clone)]
    enum Act {
        /// An entry with a name of so many bytes.
        Stat(usize),
        /// Content: its length, and the length that was hoped for beyond it.
        Content(usize, usize),
        End,
        Flush,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let most = FRAME - wire::DATA_HEADER;
        let act = prop_oneof![
            (0..300usize).prop_map(Act::Stat),
            (FRAME - 100..FRAME + 100).prop_map(Act::Stat),
            (1..=most, 0..300usize).prop_map(move |(length, more)| Act::Content(length, more.min(most - length))),
            Just(Act::Content(most, 0)),
            Just(Act::End),
            Just(Act::Flush),
        ];
        proptest::collection::vec(act, 0..60)
    }

    fn stat(length: usize) -> Packet {
        let path = vec![b'x'; length];
        let (kind, link) = (EntryKind::File, Vec::new());
        wire::stat(Entry { path, kind, mode: 0o644, size: length as u64, mtime_ns: 1, link })
    }

    /// Does it, and gives the packets that have to arrive for it.
    fn act(outgoing: &mut Outgoing<'_>, number: u32, act: &Act) -> Option<Packet> {
        let packet = match act {
            Act::Flush => {
                outgoing.flush().unwrap();
                return None;
            }
            Act::Content(length, more) => {
                let at = wire::content_at(number, length + more);
                let message = outgoing.room(at + length + more).unwrap();
                message.fill(0xee);
                message[at..at + length].fill(number as u8);
                let size = wire::write_around(number, message, at, *length);
                outgoing.commit(size);
                return Some(Packet { data: vec![number as u8; *length].into(), ..wire::end_of_file(number) });
            }
            Act::Stat(length) => stat(*length),
            Act::End => wire::end_of_file(number),
        };
        outgoing.push(&packet).unwrap();
        Some(packet)
    }

    /// The packets in a frame, which has to hold whole messages.
    fn packets(mut frame: &[u8]) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some((prefix, rest)) = frame.split_at_checked(5) {
            let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
            packets.push(Packet::decode(&rest[..length]).unwrap());
            frame = &rest[length..];
        }
        assert!(frame.is_empty());
        packets
    }

    proptest! {
        #[test]
        fn frames_hold_whole_messages_in_order(acts in acts()) {
            let (batches, mut received) = mpsc::channel(1000);
            let pool = pool();
            let mut outgoing = Outgoing::new(&batches, &pool);
            let done = |(number, what)| act(&mut outgoing, number, what);
            let sent: Vec<Packet> = (0..).zip(&acts).filter_map(done).collect();
            outgoing.flush().unwrap();
            let frames: Vec<Bytes> = std::iter::from_fn(|| received.try_recv().ok()).flatten().collect();
            for frame in &frames {
                prop_assert!(!frame.is_empty());
                prop_assert!(frame.len() <= FRAME || packets(frame).len() == 1);
            }
            let received: Vec<Packet> = frames.iter().flat_map(|frame| packets(frame)).collect();
            prop_assert_eq!(received, sent);
        }
    }

    #[test]
    fn a_large_file_fills_its_frames() {
        let (batches, mut received) = mpsc::channel(1000);
        let pool = pool();
        let mut outgoing = Outgoing::new(&batches, &pool);
        let most = FRAME - wire::DATA_HEADER;
        (0..20).for_each(|_| drop(act(&mut outgoing, 5, &Act::Content(most, 0))));
        outgoing.flush().unwrap();
        let frames: Vec<Bytes> = std::iter::from_fn(|| received.try_recv().ok()).flatten().collect();
        assert_eq!(frames.len(), 20);
        assert!(frames.iter().all(|frame| frame.len() > FRAME - 8));
    }
}
