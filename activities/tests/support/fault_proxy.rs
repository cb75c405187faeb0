//! A TCP proxy that spoils HTTP/1.1 exchanges on demand. Included by path where it is needed.
//!
//! Each request gets a connection of its own (the proxy adds `Connection: close`), so a fault meets just one exchange. Faults are
//! queued; the first one whose `part` is in the request line is taken.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What to do to one exchange. Positions count bytes of the body.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answered by the proxy itself; the request does not get through.
    Status { code: u16, retry_after: Option<u32> },
    /// The connection is cut after so many bytes of the request.
    CutRequest { after: usize },
    /// The connection is cut after so many bytes of the answer.
    CutResponse { after: usize },
    /// One byte is altered on its way to the server.
    CorruptRequest { at: usize },
    /// One byte is altered on its way to the client.
    CorruptResponse { at: usize },
    /// The request gets through, its answer never comes.
    Stall,
}

pub struct FaultProxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    faults: Vec<(String, Fault)>,
    requests: Vec<String>,
}

impl FaultProxy {
    pub async fn start(upstream: SocketAddr) -> Self {
        Self::start_at(upstream, 0).await
    }

    /// At this port of the loopback.
    pub async fn start_at(upstream: SocketAddr, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let server = tokio::spawn(serve(listener, upstream, Arc::clone(&state)));
        Self { address, state, server }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Spoils the next `times` requests whose request line (`PUT /bucket/key?… HTTP/1.1`) contains `part`.
    pub fn fail(&self, times: usize, part: &str, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        state.faults.extend(std::iter::repeat_n((part.to_owned(), fault), times));
    }

    /// Faults that have not met their request yet.
    pub fn pending(&self) -> usize {
        self.state.lock().unwrap().faults.len()
    }

    /// The method and path of every request so far, without queries.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, upstream: SocketAddr, state: Arc<Mutex<State>>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(exchange(client, upstream, Arc::clone(&state)));
    }
}

async fn exchange(mut client: TcpStream, upstream: SocketAddr, state: Arc<Mutex<State>>) -> std::io::Result<()> {
    let Some((head, body)) = read_head(&mut client).await? else { return Ok(()) };
    let fault = take_fault(&state, &head);
    if let Some(Fault::Status { code, retry_after }) = fault {
        return answer(client, code, retry_after).await;
    }
    let mut server = TcpStream::connect(upstream).await?;
    server.write_all(&with_connection_close(&head)).await?;
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let up = Spoiler::request(&fault);
    let down = Spoiler::response(&fault);
    tokio::select! {
        () = pump(body, client_reads, server_writes, up) => {}
        () = respond(server_reads, client_writes, down) => {}
    }
    Ok(())
}

fn take_fault(state: &Mutex<State>, head: &[u8]) -> Option<Fault> {
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let mut state = state.lock().unwrap();
    state.requests.push(line.split(['?', ' ']).take(2).collect::<Vec<_>>().join(" "));
    let at = state.faults.iter().position(|(part, _)| line.contains(part.as_str()))?;
    Some(state.faults.remove(at).1)
}

async fn answer(mut client: TcpStream, code: u16, retry_after: Option<u32>) -> std::io::Result<()> {
    let retry = retry_after.map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
    let head = format!("HTTP/1.1 {code} Fault\r\n{retry}content-length: 0\r\nconnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).await?;
    client.shutdown().await?;
    // Closing with unread bytes would reset the connection before the client has read the answer.
    let mut rest = vec![0; 64 << 10];
    while client.read(&mut rest).await? > 0 {}
    Ok(())
}

/// The head of a message with its empty line, and what came after it.
async fn read_head(stream: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut head = Vec::new();
    loop {
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = head.split_off(end + 4);
            return Ok(Some((head, body)));
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
}

fn with_connection_close(head: &[u8]) -> Vec<u8> {
    let end = head.len() - 2;
    [&head[..end], b"connection: close\r\n\r\n"].concat()
}

/// Alters one direction of an exchange.
struct Spoiler {
    position: usize,
    cut: Option<usize>,
    corrupt: Option<usize>,
}

impl Spoiler {
    fn request(fault: &Option<Fault>) -> Self {
        let cut = if let Some(Fault::CutRequest { after }) = fault { Some(*after) } else { None };
        let corrupt = if let Some(Fault::CorruptRequest { at }) = fault { Some(*at) } else { None };
        Self { position: 0, cut, corrupt }
    }

    fn response(fault: &Option<Fault>) -> Self {
        let cut = match fault {
            Some(Fault::CutResponse { after }) => Some(*after),
            Some(Fault::Stall) => Some(usize::MAX),
            _ => None,
        };
        let corrupt = if let Some(Fault::CorruptResponse { at }) = fault { Some(*at) } else { None };
        Self { position: 0, cut, corrupt }
    }

    fn stalls(&self) -> bool {
        self.cut == Some(usize::MAX)
    }

    /// Alters `bytes`; whether the connection is to be cut after them.
    fn pass(&mut self, bytes: &mut Vec<u8>) -> bool {
        let start = self.position;
        self.position += bytes.len();
        if let Some(at) = self.corrupt
            && (start..self.position).contains(&at)
        {
            bytes[at - start] ^= 0x55;
        }
        match self.cut {
            Some(after) if after <= self.position => {
                bytes.truncate(after - start);
                true
            }
            _ => false,
        }
    }
}

/// Copies the request's body and ends only when it is to be cut: else the answer ends the exchange.
async fn pump(mut bytes: Vec<u8>, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut spoiler: Spoiler) {
    loop {
        let cut = spoiler.pass(&mut bytes);
        let written = to.write_all(&bytes).await.is_ok();
        if cut {
            return;
        }
        bytes.clear();
        if !written || !matches!(from.read_buf(&mut bytes).await, Ok(read) if read > 0) {
            std::future::pending::<()>().await;
        }
    }
}

async fn respond(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, spoiler: Spoiler) {
    if spoiler.stalls() {
        std::future::pending::<()>().await;
    }
    let Ok(Some((head, body))) = read_head(&mut from).await else { return };
    if to.write_all(&head).await.is_ok() {
        pump_response(body, from, to, spoiler).await;
    }
}

async fn pump_response(mut bytes: Vec<u8>, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut spoiler: Spoiler) {
    loop {
        let cut = spoiler.pass(&mut bytes);
        if to.write_all(&bytes).await.is_err() || cut {
            return;
        }
        bytes.clear();
        if !matches!(from.read_buf(&mut bytes).await, Ok(read) if read > 0) {
            return;
        }
    }
}
