//! What Kiln says of itself: spans over OTLP, where that is set.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http;
use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::Grpc;

use crate::harness::dev::{Dev, eventually};
use crate::harness::roles::Role;
use crate::harness::spine::{Ran, kiln, tree};

/// Takes exports and keeps them as they came.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Bytes>>>);

/// Messages as bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

impl Collector {
    /// Serves gRPC over plain HTTP/2 and gives its URL.
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/opentelemetry.proto.collector.trace.v1.TraceService/Export", axum::routing::post(export))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }

    /// Whether some export is of this service and has a span of this name.
    fn has(&self, service: &str, span: &str) -> bool {
        let names = |export: &Bytes, text: &str| export.windows(text.len()).any(|window| window == text.as_bytes());
        self.0.lock().unwrap().iter().any(|export| names(export, service) && names(export, span))
    }
}

async fn export(State(collector): State<Collector>, request: Request) -> http::Response<Body> {
    let take = tower::service_fn(move |request: tonic::Request<Bytes>| {
        collector.0.lock().unwrap().push(request.into_inner());
        // An empty ExportTraceServiceResponse: all was taken.
        async { Ok::<_, Status>(tonic::Response::new(Bytes::new())) }
    });
    Grpc::new(Raw).unary(take, request).await.map(Body::new)
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_exported_where_that_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(&dir.path().join("data"), &["--cells", "1", "--seed", "busybox"]);
    let collector = Collector::default();
    let url = collector.serve().await;
    for role in [Role::Api, Role::Control, Role::Builder("dev-1")] {
        dev.reconfigure(role, &[("telemetry", "otlp_endpoint", url.clone().into())]);
    }
    let context = tree(&[("Dockerfile", "FROM busybox\nRUN echo traced\n")]);
    let args = ["up", context.path().to_str().unwrap(), "--project", "traced"];
    Ran::of(&mut kiln(&dev.data, &args)).ok();
    for (service, span) in [("kiln-api", "request"), ("kiln-control", "publish"), ("kiln-builder", "solve")] {
        eventually(service, Duration::from_secs(30), || collector.has(service, span).then_some(()));
    }
}
