//! QEMU's command line for a cell, from what the cell is made of. Pure.
//!
//! The `microvm` machine: virtio devices only, found through ACPI (Debian's kernel takes no device list on its command line). Disks appear
//! in the guest in the order given here: root image, config, cache, swap.

use std::ffi::OsString;
use std::path::Path;

use crate::machine::{Accel, Files, HostNetwork, Machine};

/// All arguments. `tsc_khz` is needed under tcg only.
pub fn arguments(machine: &Machine, accel: Accel, tsc_khz: Option<u64>) -> Vec<OsString> {
    let files = Files::new(&machine.dir);
    let mut line = Line::default();
    line.add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // What QEMU itself needs to do is known now: nothing in it may start another program or gain rights later.
    line.add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    processor(&mut line, machine, accel);
    memory(&mut line, machine);
    line.add(&["-kernel"]).path("", &machine.image.kernel, "");
    line.add(&["-initrd"]).path("", &machine.image.initrd, "");
    line.add(&["-append", &kernel_command_line(accel, tsc_khz)]);
    line.add(&["-global", "virtio-mmio.force-legacy=false"]);
    line.disk("root", &machine.image.root, "readonly=on,cache=writeback");
    line.disk("config", &files.config_disk(), "readonly=on");
    line.disk("cache", &machine.cache_disk, DISK_OPTIONS);
    if let Some(swap) = &machine.swap_disk {
        line.disk("swap", swap, DISK_OPTIONS);
    }
    network(&mut line, &machine.network);
    line.add(&["-device", "virtio-serial-device"]);
    line.port("control", "kiln.control", "socket", &files.control(), ",server=on,wait=off");
    line.port("log", "kiln.log", "file", &files.log(), ",append=on");
    line.add(&["-device", "virtio-rng-device", "-device", "virtio-balloon-device,free-page-reporting=on"]);
    line.add(&["-chardev"]).path("file,id=console,path=", &files.console(), ",append=on");
    line.add(&["-serial", "chardev:console"]);
    line.add(&["-qmp"]).path("unix:", &files.qmp(), ",server=on,wait=off");
    line.add(&["-pidfile"]).path("", &files.pid(), "");
    line.0
}

/// Freed blocks are given back to the host; its page cache would only be a second one.
const DISK_OPTIONS: &str = "cache=none,aio=threads,discard=unmap,detect-zeroes=unmap";

/// What the kernel is told under tcg only. It has no clock there to measure its time stamp counter by, and must be told; `lpj` spares it another
/// measurement, and `notests` its trials of its own ciphers. The last two switch off what guards a guest that runs on the processor
/// itself: code that QEMU translates speculates as the host's does, whatever the guest's kernel puts between, and tcg is for
/// machines of one's own. A quarter of the kernel's time until the builder is up went there.
const TCG: &str = "lpj=4000000 tsc=reliable no_timer_check cryptomgr.notests mitigations=off init_on_alloc=0";

fn kernel_command_line(accel: Accel, tsc_khz: Option<u64>) -> String {
    let mut words = "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic reboot=t rdinit=/init".to_owned();
    if accel == Accel::Tcg {
        let khz = tsc_khz.map(|khz| format!(" tsc_early_khz={khz}")).unwrap_or_default();
        words.push_str(&format!("{khz} {TCG}"));
    }
    words
}

fn processor(line: &mut Line, machine: &Machine, accel: Accel) {
    match accel {
        Accel::Kvm => line.add(&["-accel", "kvm", "-cpu", "host"]),
        Accel::Tcg => line.add(&["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"]),
    };
    line.add(&["-smp", &machine.vcpus.to_string()]);
}

/// What a guest has in memory, its credentials too, is in no core dump of QEMU.
const MACHINE: &str = "microvm,dump-guest-core=off";

fn memory(line: &mut Line, machine: &Machine) {
    let size = machine.memory_mib.to_string();
    line.add(&["-m", &size]);
    if machine.huge_pages {
        let backend = format!("memory-backend-memfd,id=memory,size={size}M,hugetlb=on,share=on,prealloc=on");
        line.add(&["-M", &format!("{MACHINE},memory-backend=memory"), "-object", &backend]);
    } else {
        line.add(&["-M", MACHINE]);
    }
}

fn network(line: &mut Line, network: &HostNetwork) {
    let backend = match network {
        HostNetwork::Tap { name } => format!("tap,id=net,ifname={name},script=no,downscript=no"),
        HostNetwork::User { forwards, restricted } => {
            let forwards = forwards.iter().map(|(host, guest)| format!(",hostfwd=tcp:{host}-:{guest}"));
            let restrict = if *restricted { ",restrict=on" } else { "" };
            format!("user,id=net{restrict}{}", forwards.collect::<String>())
        }
    };
    line.add(&["-netdev", &backend, "-device", "virtio-net-device,netdev=net"]);
}

/// The command line as it grows.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn add(&mut self, arguments: &[&str]) -> &mut Self {
        self.0.extend(arguments.iter().map(OsString::from));
        self
    }

    /// One argument with a path in it. QEMU reads a comma as the option's end unless it is doubled.
    fn path(&mut self, before: &str, path: &Path, after: &str) -> &mut Self {
        let path = path.display().to_string();
        let path = if before.is_empty() { path } else { path.replace(',', ",,") };
        self.0.push(format!("{before}{path}{after}").into());
        self
    }

    fn disk(&mut self, id: &str, path: &Path, options: &str) {
        self.add(&["-drive"]).path(&format!("id={id},format=raw,if=none,{options},file="), path, "");
        self.add(&["-device", &format!("virtio-blk-device,drive={id},serial=kiln-{id}")]);
    }

    /// A virtio-serial port by a name that the guest looks for.
    fn port(&mut self, id: &str, name: &str, kind: &str, path: &Path, options: &str) {
        self.add(&["-chardev"]).path(&format!("{kind},id={id},path="), path, options);
        self.add(&["-device", &format!("virtserialport,chardev={id},name={name}")]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Image;
    use crate::machine::Vmm;

    fn machine() -> Machine {
        Machine {
            dir: "/run/kiln/c1".into(),
            image: Image {
                version: "1".into(),
                digest: "sha256:1".into(),
                kernel: "/image/vmlinux".into(),
                initrd: "/image/initrd.zst".into(),
                root: "/image/root.erofs".into(),
                bytes: 1,
            },
            cache_disk: "/disks/a,b.img".into(),
            swap_disk: None,
            vcpus: 2,
            memory_mib: 1536,
            huge_pages: false,
            pinned_to: vec![],
            network: HostNetwork::User { forwards: vec![("127.0.0.1:4000".parse().unwrap(), 1234)], restricted: false },
            vmm: Vmm::Qemu(Accel::Tcg),
            supervisor: None,
        }
    }

    fn text(machine: &Machine, tsc_khz: Option<u64>) -> String {
        text_by(Accel::Tcg, machine, tsc_khz)
    }

    fn text_by(accel: Accel, machine: &Machine, tsc_khz: Option<u64>) -> String {
        arguments(machine, accel, tsc_khz).iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn disks_stand_in_the_order_the_guest_expects() {
        let machine = Machine { swap_disk: Some("/disks/swap.img".into()), ..machine() };
        let line = text(&machine, None);
        let at = |words: &str| line.find(words).unwrap_or_else(|| panic!("{words} is not in {line}"));
        let places = ["drive=root", "drive=config", "drive=cache", "drive=swap"].map(at);
        assert!(places.is_sorted(), "{line}");
        assert!(line.contains("file=/disks/a,,b.img"), "{line}");
    }

    #[test]
    fn tcg_needs_to_be_told_of_its_clock_and_kvm_does_not() {
        let tcg = text(&machine(), Some(2_500_000));
        assert!(tcg.contains("-cpu max") && tcg.contains("tsc_early_khz=2500000 lpj=4000000 tsc=reliable"), "{tcg}");
        let kvm = text_by(Accel::Kvm, &machine(), Some(2_500_000));
        assert!(kvm.contains("-accel kvm -cpu host") && !kvm.contains("tsc"), "{kvm}");
    }

    #[test]
    fn networks() {
        assert!(text(&machine(), None).contains("user,id=net,hostfwd=tcp:127.0.0.1:4000-:1234"));
        let tap = Machine { network: HostNetwork::Tap { name: "kiln-c1".into() }, ..machine() };
        assert!(text(&tap, None).contains("tap,id=net,ifname=kiln-c1,script=no,downscript=no"));
        let none = Machine { network: HostNetwork::User { forwards: vec![], restricted: true }, ..machine() };
        assert!(text(&none, None).contains("-netdev user,id=net,restrict=on -device"));
    }

    #[test]
    fn nothing_secret_or_of_the_cell_is_on_the_kernels_command_line() {
        let line = kernel_command_line(Accel::Kvm, None);
        assert_eq!(line, "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic reboot=t rdinit=/init");
    }

    #[test]
    fn huge_pages_back_the_machines_memory() {
        let line = text(&Machine { huge_pages: true, ..machine() }, None);
        assert!(
            line.contains(
                "-M microvm,dump-guest-core=off,memory-backend=memory -object memory-backend-memfd,id=memory,size=1536M,hugetlb=on"
            )
        );
    }
}
