//! What runs a guest's instructions: the processor (KVM) or QEMU itself (tcg, some five times slower, for tests and laptops).

use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    /// KVM where this process may use it. It may still refuse to run a guest, as inside some virtual machines: a setting says tcg then.
    pub fn detect() -> Self {
        let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        if kvm.is_ok() { Self::Kvm } else { Self::Tcg }
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
