//! The kernel's calls that `std` lacks, as functions that return errors. Nothing in here decides anything.

use std::ffi::{CString, c_int, c_ulong};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;
use std::time::Duration;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exit(i32),
    Signal(i32),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => write!(f, "signal {number}"),
        }
    }
}

fn check(returned: c_int) -> io::Result<c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

fn text(text: &str) -> io::Result<CString> {
    Ok(CString::new(text)?)
}

/// Mounts; makes the mount point where it can.
pub fn mount(source: &str, target: &str, kind: &str, flags: c_ulong, data: &str) -> io::Result<()> {
    // Fails on a read-only root, where all mount points are there already.
    let _ = std::fs::create_dir_all(target);
    let (source, target, kind, data) = (text(source)?, text(target)?, text(kind)?, text(data)?);
    // SAFETY: four NUL-terminated strings that outlive the call.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) })?;
    Ok(())
}

pub fn unmount(target: &str, flags: c_int) -> io::Result<()> {
    let target = text(target)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), flags) })?;
    Ok(())
}

/// Makes the working directory the root of this process.
pub fn chroot_here() -> io::Result<()> {
    // SAFETY: a literal.
    check(unsafe { libc::chroot(c".".as_ptr()) })?;
    Ok(())
}

/// Milliseconds since the kernel started.
pub fn uptime_ms() -> u64 {
    let now = clock(libc::CLOCK_BOOTTIME);
    u64::try_from(now / 1_000_000).unwrap_or_default()
}

/// The wall clock, nanoseconds since 1970.
pub fn wall_ns() -> i64 {
    clock(libc::CLOCK_REALTIME)
}

fn clock(which: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills in the struct; with a clock that exists it cannot fail.
    unsafe { libc::clock_gettime(which, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

pub fn set_wall_ns(now: i64) -> io::Result<()> {
    let time = libc::timespec { tv_sec: now.div_euclid(1_000_000_000), tv_nsec: now.rem_euclid(1_000_000_000) };
    // SAFETY: reads the struct.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) })?;
    Ok(())
}

/// Loads a kernel module; one that is loaded already is fine.
pub fn load_module(file: &Path) -> io::Result<()> {
    let module = File::open(file)?;
    // SAFETY: an open file and an empty parameter string.
    let returned = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
    match io::Error::last_os_error() {
        _ if returned == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}

/// Makes the network namespace this process's own.
pub fn enter_network(namespace: &File) -> io::Result<()> {
    // SAFETY: an open descriptor and a number.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(())
}

pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length of one slice.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}

pub fn swap_on(device: &str, flags: c_int) -> io::Result<()> {
    let device = text(device)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    check(unsafe { libc::swapon(device.as_ptr(), flags) })?;
    Ok(())
}

/// Writes out what is not yet on the disk that an open file lies on.
pub fn sync_disk(file: &File) -> io::Result<()> {
    // SAFETY: an open descriptor.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

pub fn sync() {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::sync() };
}

/// Ends the machine. Returns only when the kernel refuses.
pub fn power_off() {
    // SAFETY: ends everything, which is what the caller wants.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

/// Starts the machine anew, or ends it where it is run for one start only. Returns only when the kernel refuses.
pub fn reset() {
    // SAFETY: as for the power.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}

/// Listens on a vsock port of this machine, without blocking.
pub fn listen_on_vsock(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only; the descriptor is new and nobody else's.
    let socket = unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, kind, 0))?)
    };
    // SAFETY: all zeroes is a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (libc::VMADDR_CID_ANY, port);
    // SAFETY: an open descriptor, and pointer and size of one struct.
    unsafe {
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t))?;
        check(libc::listen(socket.as_raw_fd(), 8))?;
    }
    Ok(socket)
}

/// The next connection of this machine's host, `None` when there is none waiting. Anybody else's is closed.
pub fn accept_from_host(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    while let Some(connection) = accept(listener)? {
        // SAFETY: all zeroes is a valid address.
        let mut peer: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        let mut size = size_of_val(&peer) as libc::socklen_t;
        // SAFETY: an open descriptor, and pointer and size of one struct.
        check(unsafe { libc::getpeername(connection.as_raw_fd(), (&raw mut peer).cast(), &raw mut size) })?;
        if peer.svm_cid == libc::VMADDR_CID_HOST {
            return Ok(Some(connection));
        }
    }
    Ok(None)
}

/// The next connection, `None` when there is none waiting.
pub fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: an open descriptor; nobody asks for the address.
    match check(unsafe { libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) }) {
        // SAFETY: it was just made and is nobody else's.
        Ok(connection) => Ok(Some(unsafe { OwnedFd::from_raw_fd(connection) })),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn kill(pid: i32, signal: c_int) -> io::Result<()> {
    // SAFETY: no memory involved.
    check(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// The next dead child, without waiting for one.
pub fn reap() -> Option<(i32, Ended)> {
    let mut status = 0;
    // SAFETY: the call writes the status.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let ended = if libc::WIFEXITED(status) {
        Ended::Exit(libc::WEXITSTATUS(status))
    } else {
        Ended::Signal(libc::WTERMSIG(status))
    };
    Some((pid, ended))
}

/// Runs `work` in a forked child, which ends with 0 or the error's number. Only for a process with one thread.
pub fn fork(work: impl FnOnce() -> io::Result<()>) -> io::Result<i32> {
    // SAFETY: this process has one thread, so the child may do what the parent may.
    let pid = check(unsafe { libc::fork() })?;
    if pid > 0 {
        return Ok(pid);
    }
    let code = match work() {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    // SAFETY: ends the child without running what the parent registered for its own end.
    unsafe { libc::_exit(code) }
}

/// Blocks signals and makes a descriptor from which they are read.
pub fn signals(cared_for: &[c_int]) -> io::Result<OwnedFd> {
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before it is read; the descriptor is new and nobody else's.
    unsafe {
        libc::sigemptyset(mask.as_mut_ptr());
        for signal in cared_for {
            libc::sigaddset(mask.as_mut_ptr(), *signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, mask.as_ptr(), ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, mask.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The next signal that arrived, if there is one.
pub fn next_signal(signals: &OwnedFd) -> Option<c_int> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: reads at most the struct's size into it; all zeroes is a valid value of it.
    let info = unsafe {
        let read = libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size);
        if usize::try_from(read) != Ok(size) {
            return None;
        }
        info.assume_init()
    };
    c_int::try_from(info.ssi_signo).ok()
}

/// Waits until one of the descriptors can be read, or for as long as `patience`.
pub fn wait_readable(fds: &[RawFd], patience: Duration) {
    let mut polled: Vec<_> = fds.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    // Rounded up: waking a millisecond early would spin through the remainder.
    let timeout = c_int::try_from(patience.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX);
    // SAFETY: pointer and length of one vector. An interrupted wait is as good as one that ended.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
}

/// An ioctl whose argument is a number or nothing.
pub fn ioctl_number(file: &File, request: c_ulong, argument: c_ulong) -> io::Result<()> {
    // SAFETY: the caller's request takes a number, so the kernel follows no pointer.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, argument) })?;
    Ok(())
}

/// An ioctl that reads or writes one `T`.
///
/// # Safety
/// The request must be one whose argument is a `T`.
pub unsafe fn ioctl<T>(fd: RawFd, request: c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: by the caller's word the kernel reads and writes no more than a T.
    check(unsafe { libc::ioctl(fd, request, ptr::from_mut(argument)) })?;
    Ok(())
}

/// In a child before it becomes another program: it is killed when its parent ends.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    Ok(())
}

/// In a child before it becomes another program: a session of its own, as many open files as a daemon needs, and no signal blocked.
pub fn detach() -> io::Result<()> {
    let files = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: setsid takes nothing, setrlimit reads the struct.
    unsafe {
        check(libc::setsid())?;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files))?;
    }
    unblock_signals()
}

/// Who reads signals from a descriptor has them blocked, and children inherit that: a daemon would never hear that it is to end, and
/// neither would the steps below it.
pub fn unblock_signals() -> io::Result<()> {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before it is read.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        check(libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_daemon_hears_the_signals_that_pid_1_has_blocked() {
        // Of this test's thread only.
        let _signals = signals(&[libc::SIGTERM, libc::SIGCHLD]).unwrap();
        let blocked = |command: &mut Command| {
            let output = command.args(["SigBlk", "/proc/self/status"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().split_whitespace().last().unwrap().to_owned()
        };
        assert_eq!(blocked(&mut Command::new("grep")), format!("{:016x}", 1 << 14 | 1 << 16), "what is inherited");
        let mut daemon = Command::new("grep");
        // SAFETY: system calls only.
        unsafe { daemon.pre_exec(unblock_signals) };
        assert_eq!(blocked(&mut daemon), format!("{:016x}", 0));
    }
}
