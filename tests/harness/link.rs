//! A TCP link between somebody and a service, which can be stalled and cut.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Passes,
    /// Connections stay and nothing comes through: as a network that loses every packet.
    Stalls,
    /// Connections are closed, new ones at once: as a service that is not there.
    Cut,
}

/// Dropping it closes every connection.
pub struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    _runtime: Runtime,
}

impl Link {
    /// To the service at `host:port`, which need not be there yet.
    pub fn to(service: &str) -> Self {
        let service: SocketAddr = service.parse().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let (state, seen) = watch::channel(State::Passes);
        runtime.spawn(serve(listener, service, seen));
        Self { address, state, _runtime: runtime }
    }

    /// Its near end, `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

async fn serve(listener: TcpListener, service: SocketAddr, state: watch::Receiver<State>) {
    while let Ok((near, _)) = listener.accept().await {
        tokio::spawn(connection(near, service, state.clone()));
    }
}

async fn connection(near: TcpStream, service: SocketAddr, state: watch::Receiver<State>) {
    let mut cut = state.clone();
    tokio::select! {
        _ = cut.wait_for(|state| *state == State::Cut) => {}
        _ = pass(near, service, state) => {}
    }
}

async fn pass(near: TcpStream, service: SocketAddr, mut state: watch::Receiver<State>) -> std::io::Result<()> {
    // The sender lives as long as the link.
    let _ = state.wait_for(|state| *state != State::Stalls).await;
    let (near_reads, near_writes) = near.into_split();
    let (far_reads, far_writes) = TcpStream::connect(service).await?.into_split();
    tokio::try_join!(copy(near_reads, far_writes, state.clone()), copy(far_reads, near_writes, state.clone()))?;
    Ok(())
}

/// One direction. What was read when the link stalls is on its way when it passes again.
async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        let _ = state.wait_for(|state| *state != State::Stalls).await;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
