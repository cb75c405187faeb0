//! What runs a guest's instructions: the processor (KVM) or QEMU itself (tcg, some five times slower, for tests and laptops).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::QEMU;
use crate::Image;
use crate::logs::last_line;

/// How long a kernel may take under KVM to reach its first process, which it does within a second where nothing else runs.
const KVM_PATIENCE: Duration = Duration::from_secs(20);
/// What the kernel says then.
const REACHED_INIT: &str = "Run /init as init process";

/// Why guests cannot have KVM here.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    #[error("/dev/kvm cannot be used")]
    Device(#[source] io::Error),
    #[error("/dev/kvm speaks version {0} of its interface, not 12")]
    Version(i32),
    #[error("QEMU does not run the image's kernel under KVM: {said}")]
    Qemu { said: String },
    #[error("the image's kernel does not come up under KVM within {KVM_PATIENCE:?}")]
    Silent,
}

/// Whether the kernel here makes virtual machines for this process.
///
/// # Errors
/// It does not, and why.
pub fn kvm_opens() -> Result<(), KvmError> {
    // <linux/kvm.h>; both take no argument but zero.
    const GET_API_VERSION: libc::c_ulong = 0xae00;
    const CREATE_VM: libc::c_ulong = 0xae01;
    let device = File::options().read(true).write(true).open("/dev/kvm").map_err(KvmError::Device)?;
    // SAFETY: the request takes and writes no memory.
    let version = unsafe { libc::ioctl(device.as_raw_fd(), GET_API_VERSION, 0) };
    if version != 12 {
        return Err(KvmError::Version(version));
    }
    // SAFETY: likewise; what comes back is a new descriptor or negative.
    let machine = unsafe { libc::ioctl(device.as_raw_fd(), CREATE_VM, 0) };
    if machine < 0 {
        return Err(KvmError::Device(io::Error::last_os_error()));
    }
    // SAFETY: it is open, and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(machine) });
    Ok(())
}

/// Whether KVM runs this image's kernel. Where machines are virtual themselves it may well be there and hang: so it is tried.
///
/// # Errors
/// It does not, and why.
pub async fn kvm_runs(image: &Image) -> Result<(), KvmError> {
    kvm_opens()?;
    let mut command = Command::new(QEMU);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.args(["-M", "microvm", "-accel", "kvm", "-cpu", "host", "-m", "256"]);
    command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
    command.args(["-append", "console=ttyS0 panic=-1 reboot=t rdinit=/init"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |error: io::Error| KvmError::Qemu { said: error.to_string() };
    let mut qemu = command.spawn().map_err(failed)?;
    let (Some(console), Some(mut errors)) = (qemu.stdout.take(), qemu.stderr.take()) else {
        return Err(KvmError::Silent);
    };
    let reached = async {
        let mut lines = BufReader::new(console).split(b'\n');
        while let Some(line) = lines.next_segment().await? {
            if String::from_utf8_lossy(&line).contains(REACHED_INIT) {
                return Ok(None);
            }
        }
        let mut said = String::new();
        errors.read_to_string(&mut said).await?;
        Ok(Some(last_line(&said).to_owned()))
    };
    match timeout(KVM_PATIENCE, reached).await {
        Err(_) => Err(KvmError::Silent),
        Ok(Ok(None)) => Ok(()),
        Ok(Ok(Some(said))) => Err(KvmError::Qemu { said }),
        Ok(Err(error)) => Err(failed(error)),
    }
}

/// How fast the time stamp counter runs here, kHz; `None` where there is none. Guests under tcg see the same counter, and have no other
/// clock to measure it against: they hang without being told.
pub async fn tsc_khz() -> Option<u64> {
    const SPAN: Duration = Duration::from_millis(100);
    let (from, since) = (counter()?, Instant::now());
    tokio::time::sleep(SPAN).await;
    let (ticks, span) = (counter()? - from, since.elapsed());
    u64::try_from(u128::from(ticks) * 1_000_000 / span.as_nanos().max(1)).ok()
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}
