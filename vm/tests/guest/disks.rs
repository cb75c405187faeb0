//! What becomes of a cell whose power is cut, or whose disks are not what they should be.

use std::os::unix::fs::FileExt as _;

use vm::{End, Fault, Phase, VmError, disk};

use crate::harness::{ANSWER, Cell, Context, STOP, say};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots virtual machines: make test-vm"]
async fn a_power_cut_in_mid_build_loses_that_build_only() {
    let cell = Cell::new().await;
    let finished = Context::new("RUN echo kept > /kept\n");
    let (mut vm, _) = cell.boot().await;
    assert!(vm.builds.build(&finished).await.result.is_ok());
    // BuildKit writes its cache's records without waiting for the disk; the kernel does within half a minute, a freeze at once.
    let control = vm.guest.control().await.unwrap();
    control.freeze(ANSWER, ANSWER).await.unwrap();
    control.thaw(ANSWER).await.unwrap();

    let running = Context::new("RUN echo begun && dd if=/dev/urandom of=/x bs=64k count=100 && sleep 600\n");
    let _lost = vm.builds.begin(running, "begun").await;
    vm.guest.kill().await.unwrap();
    drop(vm);

    let (mut vm, hello) = cell.boot().await;
    say(&format!("after a power cut: checked {}, warm {}", hello.checked, hello.warm));
    assert!(hello.warm && hello.checked, "{hello:?}");
    let again = vm.builds.build(&finished).await;
    assert!(again.result.is_ok());
    assert!(!again.ran().iter().any(|step| step.contains("kept")), "{:?}", again.ran());
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots virtual machines: make test-vm"]
async fn a_field_that_is_missing_or_wrong_is_named_and_the_guest_powers_off() {
    let mut cell = Cell::new().await;
    cell.config.id = "Not An Id".into();
    let ended = cell.try_boot().await.map(drop).unwrap_err();
    assert!(
        matches!(&ended, VmError::Ended(End::Fatal(why))
            if why == "config disk: field 'id' = 'Not An Id' must be 1 to 63 of a-z, 0-9 and -"),
        "{ended}; {}",
        cell.console()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots virtual machines: make test-vm"]
async fn a_corrupt_cache_disk_is_set_aside_and_the_cell_starts_cold() {
    let cell = Cell::new().await;
    let file = std::fs::File::options().write(true).open(&cell.machine.cache_disk).unwrap();
    // Superblock and group descriptors.
    file.write_all_at(&[0x5a; 64 << 10], 0).unwrap();
    drop(file);

    let (mut vm, hello) = cell.boot().await;
    assert_eq!((hello.phase, hello.fault), (Phase::Failed, Some(Fault::Disk)));
    let why = hello.why.unwrap();
    assert!(why.starts_with("the cache disk failed its check"), "{why}");
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly);
    drop(vm);

    let aside = disk::set_aside(&cell.machine.cache_disk).await.unwrap();
    assert!(aside.exists());
    disk::create(&cell.machine.cache_disk, 1 << 30).await.unwrap();
    let (mut vm, hello) = cell.boot().await;
    assert_eq!((hello.phase, hello.warm), (Phase::Running, false));
    assert!(cell.console().contains("the cache is cold"), "{}", cell.console());
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly);
}
