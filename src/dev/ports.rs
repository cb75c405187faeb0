//! Which ports the parts listen on: as asked for, else those of the last start while they are free, else free ones.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::files;

/// Below the range from which Linux takes the ports of outgoing connections, so that a kept port is likely to be free again.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Ports asked for on the command line.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Wanted {
    /// Port of Temporal's frontend [default: a free one, kept across starts; so are the others]
    #[arg(long, value_name = "PORT")]
    pub temporal_port: Option<u16>,
    /// Port of Temporal's web console
    #[arg(long, value_name = "PORT")]
    pub temporal_ui_port: Option<u16>,
    /// Port of the api
    #[arg(long, value_name = "PORT")]
    pub api_port: Option<u16>,
    /// Port of the registry
    #[arg(long, value_name = "PORT")]
    pub registry_port: Option<u16>,
    /// Port of the S3 store
    #[arg(long, value_name = "PORT")]
    pub s3_port: Option<u16>,
}

/// The ports of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    pub temporal: u16,
    pub temporal_ui: u16,
    pub api: u16,
    pub registry: u16,
    pub s3: u16,
    /// Log receiver.
    pub logs: u16,
    /// Metrics of control, of the host's agent, then of each cell's builder.
    pub control_metrics: u16,
    pub host_metrics: u16,
    pub cell_metrics: Vec<u16>,
}

/// `state.json`: what was chosen, by name.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    ports: BTreeMap<String, u16>,
}

impl Ports {
    /// Chooses all of them and keeps the choice in the directory's `state.json`.
    ///
    /// # Errors
    /// When a port that was asked for is taken, or none is free.
    pub fn choose(data: &Path, wanted: &Wanted, cells: u32) -> anyhow::Result<Self> {
        let file = data.join("state.json");
        let kept: Kept = files::read_json(&file).ok().flatten().unwrap_or_default();
        let mut chooser = Chooser { kept, held: Vec::new() };
        let ports = Self {
            temporal: chooser.choose("temporal", wanted.temporal_port)?,
            temporal_ui: chooser.choose("temporal_ui", wanted.temporal_ui_port)?,
            api: chooser.choose("api", wanted.api_port)?,
            registry: chooser.choose("registry", wanted.registry_port)?,
            s3: chooser.choose("s3", wanted.s3_port)?,
            logs: chooser.choose("logs", None)?,
            control_metrics: chooser.choose("control_metrics", None)?,
            host_metrics: chooser.choose("host_metrics", None)?,
            cell_metrics: (1..=cells)
                .map(|n| chooser.choose(&format!("cell_metrics_{n}"), None))
                .collect::<Result<_, _>>()?,
        };
        files::write_json(&file, &chooser.kept)?;
        Ok(ports)
    }
}

/// Holds what it chose until all ports are chosen, so that no two get the same.
struct Chooser {
    kept: Kept,
    held: Vec<TcpListener>,
}

impl Chooser {
    fn choose(&mut self, name: &str, wanted: Option<u16>) -> anyhow::Result<u16> {
        let port = match wanted {
            Some(port) => {
                let taken = || format!("port {port}, asked for as --{}-port, cannot be had", name.replace('_', "-"));
                self.hold(port).with_context(taken)?;
                port
            }
            None => self.kept_or_free(name)?,
        };
        self.kept.ports.insert(name.to_owned(), port);
        Ok(port)
    }

    fn kept_or_free(&mut self, name: &str) -> anyhow::Result<u16> {
        let kept = self.kept.ports.get(name).copied();
        let random = std::iter::repeat_with(|| RANGE.start + rand::random::<u16>() % (RANGE.end - RANGE.start));
        let mut candidates = kept.into_iter().chain(random.take(1000));
        candidates.find(|port| self.hold(*port).is_ok()).context("no free port on 127.0.0.1")
    }

    fn hold(&mut self, port: u16) -> std::io::Result<()> {
        self.held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_kept_while_they_are_free() {
        let dir = tempfile::tempdir().unwrap();
        let choose = |wanted: &Wanted| Ports::choose(dir.path(), wanted, 2);
        let first = choose(&Wanted::default()).unwrap();
        assert_eq!(choose(&Wanted::default()).unwrap(), first);

        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, first.api)).unwrap();
        let moved = choose(&Wanted::default()).unwrap();
        assert_ne!(moved.api, first.api);
        assert_eq!(moved.temporal, first.temporal);

        let refused = choose(&Wanted { s3_port: Some(first.api), ..Wanted::default() }).unwrap_err();
        assert!(refused.to_string().contains("--s3-port"), "{refused}");
        drop(taken);
    }
}
