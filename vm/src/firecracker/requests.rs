//! What Firecracker is told of a guest before it is switched on. Pure.
//!
//! Disks appear in the guest in the order given here, as [`crate::GuestConfig`] expects them: root image, config, cache, swap.

use std::path::Path;

use serde_json::{Value, json};

use crate::machine::{Files, HostNetwork, Machine};

/// The cache disk's name.
pub const CACHE: &str = "cache";
/// The guest's own address for vsock; the least that is allowed. Each guest has a socket of its own on the host, so all have the same.
const GUEST_CID: u32 = 3;

/// Paths and bodies, to be put in this order.
pub fn all(machine: &Machine, files: &Files) -> Vec<(String, Value)> {
    let mut requests = vec![size(machine), boot(machine)];
    requests.push(drive("root", &machine.image.root, true));
    requests.push(drive("config", &files.config_disk(), true));
    requests.push(drive(CACHE, &machine.cache_disk, false));
    requests.extend(machine.swap_disk.as_ref().map(|swap| drive("swap", swap, false)));
    requests.extend(network(machine));
    requests.push(("/vsock".to_owned(), json!({ "guest_cid": GUEST_CID, "uds_path": files.vsock() })));
    requests.push(("/entropy".to_owned(), json!({})));
    requests
}

fn size(machine: &Machine) -> (String, Value) {
    let mut body = json!({ "vcpu_count": machine.vcpus, "mem_size_mib": machine.memory_mib });
    if machine.huge_pages {
        body["huge_pages"] = "2M".into();
    }
    ("/machine-config".to_owned(), body)
}

/// No PCI, and of the keyboard's controller no more than what resets the machine: the rest is not there, and looking for it takes time.
fn boot(machine: &Machine) -> (String, Value) {
    let words = "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic reboot=k pci=off i8042.noaux i8042.nomux i8042.dumbkbd \
         kiln.off=reset kiln.control=vsock rdinit=/init";
    let (kernel, initrd) = (&machine.image.kernel, &machine.image.initrd);
    let body = json!({ "kernel_image_path": kernel, "initrd_path": initrd, "boot_args": words });
    ("/boot-source".to_owned(), body)
}

/// Writeback: what the guest flushes is on the host's disk. By default it would not be.
fn drive(id: &str, path: &Path, is_read_only: bool) -> (String, Value) {
    let mut body =
        json!({ "drive_id": id, "is_root_device": false, "path_on_host": path, "is_read_only": is_read_only });
    if !is_read_only {
        body["cache_type"] = "Writeback".into();
    }
    (format!("/drives/{id}"), body)
}

/// The card of a guest, or why there is none.
pub fn network(machine: &Machine) -> Result<(String, Value), String> {
    match &machine.network {
        HostNetwork::Tap { name } => {
            Ok(("/network-interfaces/eth0".to_owned(), json!({ "iface_id": "eth0", "host_dev_name": name })))
        }
        HostNetwork::User { .. } => {
            Err("Firecracker has no network of its own: a guest of it needs a tap device".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Image, Vmm};

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
            cache_disk: "/disks/cache.img".into(),
            swap_disk: None,
            vcpus: 32,
            memory_mib: 65_536,
            huge_pages: false,
            pinned_to: vec![],
            network: HostNetwork::Tap { name: "kiln-c1".into() },
            vmm: Vmm::Firecracker("firecracker".into()),
            supervisor: None,
        }
    }

    fn requests(machine: &Machine) -> Vec<(String, Value)> {
        all(machine, &Files::new(&machine.dir))
    }

    fn body(machine: &Machine, path: &str) -> Value {
        requests(machine).into_iter().find(|(to, _)| to == path).map(|(_, body)| body).unwrap()
    }

    #[test]
    fn disks_stand_in_the_order_the_guest_expects() {
        let machine = Machine { swap_disk: Some("/disks/swap.img".into()), ..machine() };
        let paths: Vec<_> = requests(&machine).into_iter().map(|(path, _)| path).collect();
        let disks: Vec<_> = paths.iter().filter_map(|path| path.strip_prefix("/drives/")).collect();
        assert_eq!(disks, ["root", "config", "cache", "swap"]);
    }

    #[test]
    fn what_the_guest_flushes_is_on_the_disk_and_images_are_read_only() {
        let cache = json!({
            "drive_id": "cache", "is_root_device": false, "is_read_only": false, "path_on_host": "/disks/cache.img",
            "cache_type": "Writeback"
        });
        assert_eq!(body(&machine(), "/drives/cache"), cache);
        for id in ["root", "config"] {
            assert_eq!(body(&machine(), &format!("/drives/{id}"))["is_read_only"], true);
        }
    }

    #[test]
    fn sizes_huge_pages_and_the_channel() {
        assert_eq!(body(&machine(), "/machine-config"), json!({ "vcpu_count": 32, "mem_size_mib": 65_536 }));
        let huge = Machine { huge_pages: true, ..machine() };
        assert_eq!(body(&huge, "/machine-config")["huge_pages"], "2M");
        assert_eq!(body(&machine(), "/vsock"), json!({ "guest_cid": 3, "uds_path": "/run/kiln/c1/vsock.sock" }));
    }

    #[test]
    fn nothing_secret_or_of_the_cell_is_on_the_kernels_command_line() {
        let line = body(&machine(), "/boot-source")["boot_args"].as_str().unwrap().to_owned();
        assert!(
            line.starts_with("console=ttyS0 quiet") && line.contains(" reboot=k ") && !line.contains("c1"),
            "{line}"
        );
        assert!(line.contains(" kiln.off=reset kiln.control=vsock "), "{line}");
    }

    #[test]
    fn a_tap_is_needed() {
        let none = Machine { network: HostNetwork::User { forwards: vec![], restricted: true }, ..machine() };
        assert!(network(&none).unwrap_err().contains("needs a tap device"));
        let card = json!({ "iface_id": "eth0", "host_dev_name": "kiln-c1" });
        assert_eq!(body(&machine(), "/network-interfaces/eth0"), card);
    }
}
