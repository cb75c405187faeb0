//! A byte stream inside a gRPC stream: the daemon is the client of the session's own gRPC server, through this.
//!
//! ```text
//!  session's server ── frames ──► Tunnel ── messages ──► Outbound, the body of the Session call ──► connection
//!                   ◄───────────────────────── messages, decoded as any others ◄───────────────────
//! ```
//!
//! What is written is copied once, to where the message that carries it is made. A message is no longer than a frame of
//! the connection, and a full frame of the session's server fills one: see `filesync::outgoing` for why that matters.

use crate::{
    pool::{Buffer, Pool},
    proto::moby::buildkit::v1::BytesMessage,
};
use bytes::{Buf, BufMut, Bytes};
use futures::Stream;
use http_body::{Body, Frame};
use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::PollSender;
use tonic::{Status, Streaming, transport::server::Connected};

/// What a frame of HTTP/2 holds, unless the receiver allows more, which the daemon does not.
const FRAME: usize = 16 << 10;
/// What comes before the content of a frame.
const FRAME_HEADER: usize = 9;
/// What comes before the bytes in a message, at most: gRPC's prefix, the key and length of the message's only field.
const HEADER: usize = 5 + 1 + 2;
/// Bytes carried by a message at most: with them it fills a frame of the connection.
const MESSAGE: usize = FRAME - HEADER;
/// What a frame of the session's server may hold so that it fits in a message.
pub(crate) const CONTENT: usize = MESSAGE - FRAME_HEADER;
/// The key of the field: number 1, with a length.
const DATA_KEY: u8 = 1 << 3 | 2;

/// Messages on their way to the connection, which itself holds some 64 back until they are written.
const QUEUE: usize = 16;
/// Messages whose memory is kept to be used again.
const KEEP: usize = 96;

/// The session's end of the byte stream.
pub(crate) struct Tunnel {
    inbound: Streaming<BytesMessage>,
    unread: Bytes,
    outbound: PollSender<Bytes>,
    pool: Arc<Pool>,
    /// The message in the making, and how many bytes it carries.
    unsent: Option<(Buffer, usize)>,
    /// Told when the daemon's side has ended, with the error if it was one.
    ended: Option<oneshot::Sender<Option<Status>>>,
}

/// The queue that carries what a tunnel writes, and the body that it becomes.
pub(crate) fn queue() -> (mpsc::Sender<Bytes>, Outbound) {
    let (sender, messages) = mpsc::channel(QUEUE);
    (sender, Outbound(messages))
}

impl Tunnel {
    pub(crate) fn new(
        inbound: Streaming<BytesMessage>,
        outbound: mpsc::Sender<Bytes>,
        ended: oneshot::Sender<Option<Status>>,
    ) -> Self {
        Self {
            inbound,
            unread: Bytes::new(),
            outbound: PollSender::new(outbound),
            pool: Pool::new(HEADER + MESSAGE, KEEP),
            unsent: None,
            ended: Some(ended),
        }
    }

    fn end(&mut self, error: Option<Status>) {
        if let Some(ended) = self.ended.take() {
            // Nobody listens when the session is closing by itself.
            let _ = ended.send(error);
        }
    }

    /// Sends what was gathered.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some((buffer, length)) = self.unsent.take() else { return Poll::Ready(Ok(())) };
        let broken = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        match self.outbound.poll_reserve(context) {
            Poll::Ready(reserved) => reserved.map_err(broken)?,
            Poll::Pending => {
                self.unsent = Some((buffer, length));
                return Poll::Pending;
            }
        }
        Poll::Ready(self.outbound.send_item(seal(buffer, length)).map_err(broken))
    }
}

/// Completes a message whose `length` bytes begin at [`HEADER`].
fn seal(mut buffer: Buffer, length: usize) -> Bytes {
    let field = 1 + prost::length_delimiter_len(length);
    let begin = HEADER - 5 - field;
    let mut into = &mut buffer[begin..HEADER];
    into.put_u8(0);
    into.put_u32((field + length) as u32);
    into.put_u8(DATA_KEY);
    let written = prost::encode_length_delimiter(length, &mut into);
    debug_assert!(written.is_ok(), "{written:?}");
    Bytes::from_owner(buffer).slice(begin..HEADER + length)
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.inbound).poll_next(context)) {
                Some(Ok(message)) => self.unread = message.data,
                Some(Err(status)) => {
                    self.end(Some(status));
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                None => {
                    self.end(None);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let take = self.unread.len().min(into.remaining());
        into.put_slice(&self.unread[..take]);
        self.unread.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        // What is written at once is not cut, if it is not longer than a message.
        if self.unsent.as_ref().is_some_and(|(_, length)| length + total > MESSAGE) {
            ready!(self.poll_send(context))?;
        }
        let (mut buffer, mut length) = self.unsent.take().unwrap_or_else(|| (self.pool.take(), 0));
        let before = length;
        for slice in slices {
            let take = slice.len().min(MESSAGE - length);
            buffer[HEADER + length..HEADER + length + take].copy_from_slice(&slice[..take]);
            length += take;
        }
        self.unsent = Some((buffer, length));
        Poll::Ready(Ok(length - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        self.outbound.close();
        Poll::Ready(Ok(()))
    }
}

/// What the tunnel sends, as the body of the Session call.
pub(crate) struct Outbound(mpsc::Receiver<Bytes>);

impl Body for Outbound {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}

impl Connected for Tunnel {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use proptest::prelude::*;
    use prost::Message as _;
    use tokio::io::AsyncWriteExt as _;
    use tonic::codec::Codec as _;

    /// Writes and flushes, and gives the messages that come of it.
    fn messages(writes: &[(usize, bool)]) -> (Vec<u8>, Vec<Bytes>) {
        let decoder = tonic_prost::ProstCodec::<BytesMessage, BytesMessage>::default().decoder();
        let inbound = Streaming::new_request(decoder, tonic::body::Body::empty(), None, None);
        let (outbound, mut sent) = mpsc::channel(1000);
        let mut tunnel = Tunnel::new(inbound, outbound, oneshot::channel().0);
        let mut all = Vec::new();
        for (number, (length, flush)) in writes.iter().enumerate() {
            let data = vec![number as u8; *length];
            all.extend_from_slice(&data);
            // There is room for all of it: nothing waits.
            tunnel.write_all(&data).now_or_never().unwrap().unwrap();
            if *flush {
                tunnel.flush().now_or_never().unwrap().unwrap();
            }
        }
        tunnel.flush().now_or_never().unwrap().unwrap();
        (all, std::iter::from_fn(|| sent.try_recv().ok()).collect())
    }

    /// What a message carries.
    fn carried(message: &Bytes) -> Bytes {
        assert_eq!(message[0], 0);
        assert_eq!(message[1..5], u32::to_be_bytes((message.len() - 5) as u32));
        BytesMessage::decode(&message[5..]).unwrap().data
    }

    proptest! {
        #[test]
        fn what_is_written_is_carried_in_short_messages(
            writes in proptest::collection::vec((prop_oneof![0..200usize, 0..50_000usize], any::<bool>()), 0..20),
        ) {
            let (written, messages) = messages(&writes);
            prop_assert!(messages.iter().all(|message| message.len() <= FRAME));
            let carried: Vec<u8> = messages.iter().flat_map(carried).collect();
            prop_assert_eq!(carried, written);
        }
    }

    #[test]
    fn a_full_frame_of_the_session_fills_a_message() {
        let frame = FRAME_HEADER + CONTENT;
        let (_, messages) = messages(&[(100, false), (frame, true), (frame, true)]);
        let lengths: Vec<usize> = messages.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [100 + HEADER - 1, FRAME, FRAME], "whatever else there was is not mixed with it");
    }
}
