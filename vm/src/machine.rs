//! What a guest is made of, and where its files are: the same whichever program runs it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Image;

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Where sockets, logs and the config disk of this guest lie; its own, and short: socket paths have at most 107 bytes.
    pub dir: PathBuf,
    pub image: Image,
    pub cache_disk: PathBuf,
    pub swap_disk: Option<PathBuf>,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Backs the guest's memory with huge pages, which the host must have set aside.
    pub huge_pages: bool,
    /// The host's processors the guest may run on; all when empty.
    pub pinned_to: Vec<usize>,
    pub network: HostNetwork,
    pub vmm: Vmm,
    /// None for a guest that ends only by itself or when it is told to.
    pub supervisor: Option<Supervisor>,
}

/// What executes a guest's instructions under QEMU: the processor, or QEMU itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Tcg,
}

/// What runs a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vmm {
    Qemu(Accel),
    /// The path of its program, or its name on the `PATH`. It has KVM only.
    Firecracker(PathBuf),
}

impl Vmm {
    pub fn kind(&self) -> VmmKind {
        match self {
            Self::Qemu(_) => VmmKind::Qemu,
            Self::Firecracker(_) => VmmKind::Firecracker,
        }
    }
}

/// Which program runs a guest: all that whoever adopts it has to know of that program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmKind {
    #[default]
    Qemu,
    Firecracker,
}

impl std::fmt::Display for VmmKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Qemu => "QEMU",
            Self::Firecracker => "Firecracker",
        })
    }
}

/// A program that runs the guest's program and ends it when its own supervisor is gone.
#[derive(Debug, Clone)]
pub struct Supervisor {
    /// The other program's command line is added.
    pub command: Vec<OsString>,
    /// Its standard input.
    pub stdin: Arc<OwnedFd>,
}

/// How a guest's network card is connected on the host.
#[derive(Debug, Clone)]
pub enum HostNetwork {
    /// A tap device that is there already, with the host's rules around it.
    Tap { name: String },
    /// QEMU's own network, for tests: the guest is 10.0.2.15/24, its gateway 10.0.2.2 (which is the host's loopback, unless restricted),
    /// the resolver 10.0.2.3.
    User { forwards: Vec<(SocketAddr, u16)>, restricted: bool },
}

/// The files of a guest in its directory.
#[derive(Debug, Clone)]
pub struct Files(PathBuf);

impl Files {
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    pub fn config_disk(&self) -> PathBuf {
        self.0.join("config.img")
    }

    /// The host's end of the virtio-serial port, under QEMU.
    pub fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// The host's end of all vsock ports, under Firecracker.
    pub fn vsock(&self) -> PathBuf {
        self.0.join("vsock.sock")
    }

    pub fn qmp(&self) -> PathBuf {
        self.0.join("qmp.sock")
    }

    /// Firecracker's.
    pub fn api(&self) -> PathBuf {
        self.0.join("api.sock")
    }

    /// What the kernel and PID 1 say; under Firecracker also the guest's daemons.
    pub fn console(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// What the guest's daemons say, under QEMU.
    pub fn log(&self) -> PathBuf {
        self.0.join("daemons.log")
    }

    /// What the guest's program itself says.
    pub fn vmm_log(&self, vmm: VmmKind) -> PathBuf {
        self.0.join(match vmm {
            VmmKind::Qemu => "qemu.log",
            VmmKind::Firecracker => "firecracker.log",
        })
    }

    /// QEMU's process id, written by QEMU once it has looked at its command line.
    pub fn pid(&self) -> PathBuf {
        self.0.join("qemu.pid")
    }

    /// Who runs the guest, see [`crate::Guest::adopt`].
    pub fn process(&self) -> PathBuf {
        self.0.join("process.json")
    }
}
