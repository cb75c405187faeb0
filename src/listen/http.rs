//! Serves HTTP/1.1 and HTTP/2 on a [`Listener`], with limits on what a connection may leave undone.
//!
//! A connection is closed when it carries no request for [`Limits::idle`], which is also the time for a request's
//! head to arrive, and when nothing of a request or its answer moves for [`Limits::stall`]. Pings and single bytes of
//! a head do not count.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::Request;
use axum::response::Response;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{Accepted, Listener};

/// The most bytes of a request's head.
const HEAD_LIMIT: u32 = 32 << 10;
/// Requests that one HTTP/2 connection may have at a time.
const STREAMS: u32 = 128;
/// How long a connection that is closed for being idle may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long a connection may leave things undone.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Without a request, the time until its head is complete included.
    pub idle: Duration,
    /// With a request of which, or of whose answer, nothing moves. Longer than any request may take.
    pub stall: Duration,
}

/// Serves `app` until `stop`, and then until open requests have ended. Dropping it closes all connections.
pub async fn serve(listener: Listener, app: Router, limits: Limits, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                connections.spawn(connection(accepted, app.clone(), limits, stop.clone()));
            }
            Some(_) = connections.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(accepted: Accepted, app: Router, limits: Limits, stop: CancellationToken) {
    let peer = accepted.peer;
    let (stream, _room) = match accepted.open().await {
        Ok(opened) => opened,
        Err(error) => return tracing::debug!(%error, %peer, "no TLS with a client"),
    };
    let traffic = Arc::new(Traffic::default());
    let io = TokioIo::new(Watched { stream, traffic: traffic.clone() });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(HEAD_LIMIT as usize);
    builder.http2().max_header_list_size(HEAD_LIMIT).max_concurrent_streams(STREAMS);
    let service = TowerToHyperService::new(Counted { app, traffic: traffic.clone() });
    let mut served = pin!(builder.serve_connection(io, service));
    let mut stopping = false;
    let overdue = loop {
        // Looked at often enough for a request that ends meanwhile.
        let due = traffic.due(limits).min(Instant::now() + limits.idle);
        tokio::select! {
            _ = served.as_mut() => return,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                served.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep_until(due) => {
                if traffic.due(limits) <= Instant::now() {
                    break traffic.open.load(Ordering::Relaxed);
                }
            }
        }
    };
    tracing::debug!(%peer, requests = overdue, "closing a connection on which nothing happens");
    served.as_mut().graceful_shutdown();
    tokio::time::timeout(GOODBYE, served).await.ok();
}

/// What happens on one connection.
struct Traffic {
    /// Requests whose answers have not been sent to their end.
    open: AtomicUsize,
    /// When the last request ended, and when the last byte moved: milliseconds since the connection was made.
    quiet_since: AtomicU64,
    moved: AtomicU64,
    begun: Instant,
}

impl Default for Traffic {
    fn default() -> Self {
        let (quiet_since, moved) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { open: AtomicUsize::new(0), quiet_since, moved, begun: Instant::now() }
    }
}

impl Traffic {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// When the connection is to be closed if nothing happens until then.
    fn due(&self, limits: Limits) -> Instant {
        let (since, patience) = match self.open.load(Ordering::Acquire) {
            0 => (self.quiet_since.load(Ordering::Relaxed), limits.idle),
            _ => (self.moved.load(Ordering::Relaxed), limits.stall),
        };
        self.begun + Duration::from_millis(since) + patience
    }
}

/// Counts a request for as long as it lives.
struct Open(Arc<Traffic>);

impl Open {
    fn new(traffic: &Arc<Traffic>) -> Self {
        traffic.quiet_since.store(traffic.now(), Ordering::Relaxed);
        traffic.open.fetch_add(1, Ordering::AcqRel);
        Self(traffic.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.quiet_since.store(self.0.now(), Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The application, with its open requests counted.
#[derive(Clone)]
struct Counted {
    app: Router,
    traffic: Arc<Traffic>,
}

impl<B> Service<Request<B>> for Counted
where
    B: HttpBody<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<B>>::poll_ready(&mut self.app, cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let open = Open::new(&self.traffic);
        let answer = self.app.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Body::new(Held { body, _open: open }))) })
    }
}

/// An answer's body; its request counts as open until it is gone.
struct Held {
    body: Body,
    _open: Open,
}

impl HttpBody for Held {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Notes when bytes move.
struct Watched<S> {
    stream: S,
    traffic: Arc<Traffic>,
}

impl<S> Watched<S> {
    fn moved(&self) {
        self.traffic.moved.store(self.traffic.now(), Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.moved();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.moved();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.moved();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
