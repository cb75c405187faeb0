//! Clones: a second guest on a copy of a running one's disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vm::End;
use vm::disk::{self, DiskError};

use crate::harness::{Cell, Context, STOP, breakdown, eventually, say};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots virtual machines: make test-vm"]
async fn a_clone_starts_with_what_its_main_cell_has_built() {
    let disks = Reflinks::mount();
    let main = Cell::within(&disks.0).await;
    let since = Instant::now();
    let (mut vm, _) = main.boot().await;
    let boot = since.elapsed().as_secs_f64();
    let built = Context::new("RUN echo shared > /shared\n");
    let reference = vm.builds.build(&built).await.reference;
    assert!(vm.builds.client().await.build_record(&reference).await.unwrap().is_some());

    // In the middle of a step, which goes on.
    let running = Context::new("RUN echo begun; for i in $(seq 200); do echo $i > /x$i; done; sleep 2; echo ended\n");
    let going_on = vm.builds.begin(running, "begun").await;
    let mut clone = Cell::within(&disks.0).await;
    clone.config.id = "clone-1".into();
    clone.config.cache_is_copy = true;
    let held = vm.guest.copy_disk(&main.machine.cache_disk, &clone.machine.cache_disk).await.unwrap();
    let held = held.expect("the guest froze its disk");
    say(&format!("a disk is frozen, copied and thawed in {} ms", held.as_millis()));
    let since = Instant::now();
    let (mut second, hello) = clone.boot().await;
    say(&format!(
        "from the copy to a clone whose buildkitd answers {:.1} s, its main cell's boot {boot:.1} s: {}",
        since.elapsed().as_secs_f64(),
        breakdown(&hello)
    ));
    assert!(hello.id == "clone-1" && hello.warm && !hello.checked, "{hello:?}");
    assert!(clone.console().contains("a copy of that of cell-1"), "{}", clone.console());

    let again = second.builds.build(&built).await;
    assert!(again.result.is_ok() && again.ran().is_empty(), "{:?}", again.ran());
    let record = second.builds.client().await.build_record(&reference).await.unwrap();
    assert!(record.is_none(), "the main cell's history is not the clone's: {record:?}");
    let ended = going_on.await.unwrap();
    assert!(ended.result.is_ok() && ended.output().contains("ended"), "{}", ended.output());

    // What one writes the other never sees.
    let own = Context::new("RUN echo the clone was here\n");
    assert!(second.builds.build(&own).await.result.is_ok());
    assert_eq!(second.guest.stop(STOP).await.unwrap(), End::Orderly);
    let ran = vm.builds.build(&own).await;
    assert!(ran.result.is_ok() && ran.ran().iter().any(|step| step.contains("was here")), "{:?}", ran.ran());

    a_guest_that_does_not_answer_is_copied_as_it_is(&mut vm, &main, &disks.0).await;
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly);
}

/// As after a power cut: the journal is replayed, nothing else has to be mended.
async fn a_guest_that_does_not_answer_is_copied_as_it_is(vm: &mut crate::harness::Vm, main: &Cell, disks: &Path) {
    let copy = disks.join("crash.img");
    vm.guest.pause().await.unwrap();
    assert_eq!(vm.guest.copy_disk(&main.machine.cache_disk, &copy).await.unwrap(), None);
    vm.guest.resume().await.unwrap();
    let check = Command::new("/sbin/e2fsck").arg("-p").arg(&copy).output().unwrap();
    assert!(matches!(check.status.code(), Some(0 | 1)), "{check:?}");
    let check = Command::new("/sbin/e2fsck").arg("-fn").arg(&copy).output().unwrap();
    assert_eq!(check.status.code(), Some(0), "{check:?}");
}

#[tokio::test]
#[ignore = "part of the guests' tests: make test-vm"]
async fn where_files_cannot_share_their_content_that_is_said() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (from, to) = (memory.path().join("cache.img"), memory.path().join("copy.img"));
    std::fs::write(&from, "disk").unwrap();
    let refused = disk::copy(&from, &to).await.unwrap_err();
    assert!(matches!(refused, DiskError::NoReflink { .. }) && refused.to_string().contains("XFS"), "{refused}");
    assert_eq!(std::fs::read_dir(memory.path()).unwrap().count(), 1, "nothing is left of it");
}

/// Clones share their content until they write, so a host runs out of space sooner than by its disks' sizes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots virtual machines: make test-vm"]
async fn a_host_without_space_holds_its_guest_until_there_is_some() {
    let disks = Reflinks::mount();
    let cell = Cell::within(&disks.0).await;
    let (mut vm, _) = cell.boot().await;
    let ballast = disks.fill_but(64 << 20);
    let writing = Context::new("RUN echo begun; yes | head -c 200000000 > /big && sync && echo written whole\n");
    let mut building = vm.builds.begin(writing, "begun").await;
    eventually("the guest is held", STOP, async || vm.guest.retry_writes().await.unwrap().then_some(())).await;
    std::fs::remove_file(ballast).unwrap();
    let built = async {
        loop {
            tokio::select! {
                built = &mut building => return built.unwrap(),
                // It may have been held again before there was space.
                () = tokio::time::sleep(Duration::from_secs(1)) => drop(vm.guest.retry_writes().await.unwrap()),
            }
        }
    };
    let built = tokio::time::timeout(STOP, built).await.expect("the guest goes on");
    assert!(built.output().contains("written whole"), "{}", built.output());
    built.result.unwrap_or_else(|error| panic!("{error}"));
    assert!(!vm.guest.retry_writes().await.unwrap(), "there is nothing to wait for");
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly);
}

/// A file system whose files can share their content, in a file of its own.
struct Reflinks(PathBuf);

impl Reflinks {
    fn mount() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap().keep();
        let image = dir.join("xfs.img");
        std::fs::File::create(&image).unwrap().set_len(8 << 30).unwrap();
        let at = dir.join("disks");
        std::fs::create_dir(&at).unwrap();
        run(Command::new("/sbin/mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        Self(at)
    }

    /// A file that takes all but so many bytes of what is free.
    fn fill_but(&self, left: u64) -> PathBuf {
        let free = run(Command::new("df").args(["--output=avail", "-B1"]).arg(&self.0));
        let free: u64 = free.lines().last().unwrap().trim().parse().unwrap();
        let ballast = self.0.join("ballast");
        run(Command::new("fallocate").args(["-l", &(free - left).to_string()]).arg(&ballast));
        ballast
    }
}

impl Drop for Reflinks {
    /// Guests that were killed a moment ago still hold their files.
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
