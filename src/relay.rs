//! In a guest: the services that the settings name by loopback addresses are its host's (`cell.services_at`).
//!
//! The same names then mean the same services in a cell of processes and in a guest, image names with the address of `kiln dev`'s
//! registry in them too. The host lets exactly these ports through.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};

use crate::settings::Settings;

/// The wait after a connection could not be taken: out of file descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens on each of the addresses; what it has begun goes on for as long as the process lives.
///
/// # Errors
/// When an address is taken.
pub async fn start(settings: &Settings) -> anyhow::Result<()> {
    if settings.cell.services_at.is_empty() {
        return Ok(());
    }
    let far: Ipv4Addr = settings.cell.services_at.parse()?;
    for near in settings.loopback_services() {
        let listener = TcpListener::bind(near).await.with_context(|| format!("cannot listen on {near}"))?;
        tokio::spawn(relay(listener, SocketAddr::new(IpAddr::V4(far), near.port())));
    }
    Ok(())
}

async fn relay(listener: TcpListener, far: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((near, _)) => drop(tokio::spawn(pass(near, far))),
            Err(error) => {
                tracing::warn!(%error, %far, "a connection was not taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// An end on one side is passed on to the other one; a service that is away looks like one that closes at once.
async fn pass(mut near: TcpStream, far: SocketAddr) {
    let passed = async {
        let mut far = TcpStream::connect(far).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        tokio::io::copy_bidirectional(&mut near, &mut far).await
    };
    if let Err(error) = passed.await {
        tracing::debug!(%error, %far, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_connection_is_passed_on_both_ways() {
        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = service.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = service.accept().await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            stream.write_all(format!("{said} back").as_bytes()).await.unwrap();
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = listener.local_addr().unwrap();
        tokio::spawn(relay(listener, far));
        let mut stream = TcpStream::connect(near).await.unwrap();
        stream.write_all(b"there and").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "there and back");
    }
}
