//! A byte stream inside a gRPC stream: the daemon is the client of the session's own gRPC server, through this.

use crate::proto::moby::buildkit::v1::BytesMessage;
use bytes::{Buf, Bytes, BytesMut};
use futures::Stream;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::PollSender;
use tonic::{Status, Streaming, transport::server::Connected};

/// Writes are gathered until a flush or this many bytes: one message each.
const GATHER: usize = 64 << 10;
/// Messages on their way to the connection. Together with [`GATHER`] what a session keeps in memory beyond the
/// flow-control windows.
const QUEUE: usize = 16;

/// The session's end of the byte stream.
pub(super) struct Tunnel {
    inbound: Streaming<BytesMessage>,
    unread: Bytes,
    outbound: PollSender<BytesMessage>,
    unsent: BytesMut,
    /// Told when the daemon's side has ended, with the error if it was one.
    ended: Option<oneshot::Sender<Option<Status>>>,
}

/// The queue that carries what a tunnel writes.
pub(super) fn queue() -> (mpsc::Sender<BytesMessage>, mpsc::Receiver<BytesMessage>) {
    mpsc::channel(QUEUE)
}

impl Tunnel {
    pub(super) fn new(
        inbound: Streaming<BytesMessage>,
        outbound: mpsc::Sender<BytesMessage>,
        ended: oneshot::Sender<Option<Status>>,
    ) -> Self {
        Self {
            inbound,
            unread: Bytes::new(),
            outbound: PollSender::new(outbound),
            unsent: BytesMut::new(),
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
        if self.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let broken = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.outbound.poll_reserve(context)).map_err(broken)?;
        let data = self.unsent.split().freeze();
        Poll::Ready(self.outbound.send_item(BytesMessage { data }).map_err(broken))
    }
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
        if self.unsent.len() >= GATHER {
            ready!(self.poll_send(context))?;
        }
        if self.unsent.capacity() == 0 {
            self.unsent.reserve(GATHER + (16 << 10));
        }
        let before = self.unsent.len();
        slices.iter().for_each(|slice| self.unsent.extend_from_slice(slice));
        Poll::Ready(Ok(self.unsent.len() - before))
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

impl Connected for Tunnel {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
