//! The channel to a guest's PID 1: lines over a unix socket, which leads to a virtio-serial port or to a vsock port of the guest. Its
//! other end, and the list of requests, are in the crate `kiln-init` (`init/src/control`).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Where PID 1 listens in a guest that has vsock; `init/src/control/vsock.rs` has the same.
pub const VSOCK_PORT: u32 = 5000;
/// How long the host's end of vsock may take to say whether the guest listens. It gives up by itself after 2 s.
const VSOCK_ANSWER: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot connect to the guest's control channel {}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    /// Nobody listens in the guest, or not yet.
    #[error("nobody in the guest takes connections to its control channel {}", socket.display())]
    Absent { socket: PathBuf },
    #[error("the guest's control channel broke during {request}")]
    Broken { request: String, source: io::Error },
    #[error("the guest did not answer {request} within {deadline:?}")]
    Silent { request: String, deadline: Duration },
    #[error("the guest refused {request}: {why}")]
    Refused { request: String, why: String },
    #[error("the guest's answer to {request} makes no sense: {answer}")]
    Garbled { request: String, answer: String },
}

/// Where a guest's PID 1 stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Checking,
    Mounting,
    /// There is no cache disk to work with; [`Hello::fault`] and [`Hello::why`] say more. Only a stop leads on.
    Failed,
    Starting,
    /// buildkitd answers.
    Running,
    Draining,
    Stopping,
}

impl Phase {
    /// Whether it leads to another one by itself, on the way up.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Checking | Self::Mounting | Self::Starting)
    }

    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "checking" => Self::Checking,
            "mounting" => Self::Mounting,
            "failed" => Self::Failed,
            "starting" => Self::Starting,
            "running" => Self::Running,
            "draining" => Self::Draining,
            "stopping" => Self::Stopping,
            _ => return None,
        })
    }
}

/// What has failed where a guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// What is on the cache disk: it stays of no use.
    Disk,
    /// Anything else; another start may come through.
    Other,
}

/// Who and how a guest is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub phase: Phase,
    pub id: String,
    /// kiln-init's.
    pub version: String,
    /// Whether the cache disk held a cache when it was mounted.
    pub warm: bool,
    /// Whether the disk had to be checked because it was not unmounted in order.
    pub checked: bool,
    pub buildkitd: Option<u32>,
    pub builder: Option<u32>,
    pub uptime: Duration,
    /// The guest's wall clock, nanoseconds since 1970.
    pub clock_ns: i64,
    /// What was done when, milliseconds since the kernel's start, in order.
    pub timeline: Vec<(String, u64)>,
    /// With [`Phase::Failed`].
    pub fault: Option<Fault>,
    pub why: Option<String>,
}

/// Numbers of a guest by name, see `init/src/stats.rs`.
pub type Stats = BTreeMap<String, f64>;

/// The host's end of a guest's channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The unix socket of a virtio-serial port. QEMU takes one connection at a time, also before the guest listens.
    Port(PathBuf),
    /// The unix socket of all vsock ports: its first line names one (as Firecracker and vhost-device-vsock have it).
    Vsock { socket: PathBuf, port: u32 },
}

/// A connection.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
    /// What has arrived of a line; kept here so that a wait that was given up loses nothing.
    line: Vec<u8>,
    last: u64,
    broken: bool,
}

impl Control {
    /// # Errors
    /// When nothing listens there; [`ControlError::Absent`] when only the guest does not.
    pub async fn connect(line: &Line) -> Result<Self, ControlError> {
        let (Line::Port(socket) | Line::Vsock { socket, .. }) = line;
        let failed = |source| ControlError::Connect { socket: socket.clone(), source };
        let mut stream = BufReader::new(UnixStream::connect(socket).await.map_err(failed)?);
        if let Line::Vsock { port, .. } = line
            && !timeout(VSOCK_ANSWER, open_port(&mut stream, *port)).await.is_ok_and(|opened| opened.is_ok())
        {
            return Err(ControlError::Absent { socket: socket.clone() });
        }
        // Ids go on from connection to connection: answers to a former one's requests may still be on their way.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let last = u64::try_from(since.as_micros()).unwrap_or_default();
        Ok(Self { stream, line: Vec::new(), last, broken: false })
    }

    /// Whether there is nobody at the other end any more, as far as one can tell.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    pub async fn hello(&mut self, deadline: Duration) -> Result<Hello, ControlError> {
        let answer = self.request("hello", deadline).await?;
        hello(&answer).ok_or_else(|| ControlError::Garbled { request: "hello".into(), answer })
    }

    pub async fn stats(&mut self, deadline: Duration) -> Result<Stats, ControlError> {
        let answer = self.request("stats", deadline).await?;
        Ok(words(&answer).filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// The guest begins to stop; its end is its process's.
    pub async fn stop(&mut self, deadline: Duration) -> Result<(), ControlError> {
        self.request("stop", deadline).await.map(drop)
    }

    /// Returns when the cache disk holds still. The guest thaws it by itself after `span` (1 to 60 s, counted from the request).
    pub async fn freeze(&mut self, span: Duration, deadline: Duration) -> Result<(), ControlError> {
        self.request(&format!("freeze {}", span.as_secs()), deadline).await.map(drop)
    }

    pub async fn thaw(&mut self, deadline: Duration) -> Result<(), ControlError> {
        self.request("thaw", deadline).await.map(drop)
    }

    /// Sets the guest's clock to this machine's; by how many milliseconds it was behind.
    pub async fn set_time(&mut self, deadline: Duration) -> Result<i64, ControlError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let request = format!("time {}", now.as_nanos());
        let answer = self.request(&request, deadline).await?;
        let behind = words(&answer).find_map(|(name, value)| value.parse().ok().filter(|_| name == "behind_ms"));
        behind.ok_or(ControlError::Garbled { request, answer })
    }

    /// Grows the file system on the cache disk to the disk's size.
    pub async fn resize(&mut self, deadline: Duration) -> Result<(), ControlError> {
        self.request("resize", deadline).await.map(drop)
    }

    /// Asks, and waits for the answer to just that.
    async fn request(&mut self, request: &str, deadline: Duration) -> Result<String, ControlError> {
        self.last += 1;
        let id = self.last.to_string();
        let asked = async {
            // The empty line ends what a former connection may have left unfinished.
            self.stream.get_mut().write_all(format!("\n{id} {request}\n").as_bytes()).await?;
            loop {
                let line = self.next_line().await?;
                if let Some(answer) = line.strip_prefix(id.as_str()).and_then(|rest| rest.strip_prefix(' ')) {
                    return Ok::<_, io::Error>(answer.to_owned());
                }
            }
        };
        let request = || request.to_owned();
        let answer = match timeout(deadline, asked).await {
            Err(_) => {
                // Another connection may be heard where this one is not.
                self.broken = true;
                return Err(ControlError::Silent { request: request(), deadline });
            }
            Ok(Ok(answer)) => answer,
            Ok(Err(source)) => {
                self.broken = true;
                return Err(ControlError::Broken { request: request(), source });
            }
        };
        match answer.split_once(' ').unwrap_or((&answer, "")) {
            ("ok", words) => Ok(words.to_owned()),
            ("error", why) => Err(ControlError::Refused { request: request(), why: why.to_owned() }),
            _ => Err(ControlError::Garbled { request: request(), answer }),
        }
    }

    async fn next_line(&mut self) -> io::Result<String> {
        let count = self.stream.read_until(b'\n', &mut self.line).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        Ok(line)
    }
}

/// Has the connection led to a port of the guest. Where nobody listens there, it is closed.
async fn open_port(stream: &mut BufReader<UnixStream>, port: u32) -> io::Result<()> {
    stream.get_mut().write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    if answer.starts_with("OK ") { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

fn words(answer: &str) -> impl Iterator<Item = (&str, &str)> {
    answer.split(' ').filter_map(|word| word.split_once('='))
}

fn hello(answer: &str) -> Option<Hello> {
    let (answer, why) = match answer.split_once(" why=") {
        Some((answer, why)) => (answer, Some(why.to_owned())),
        None => (answer, None),
    };
    let words: BTreeMap<_, _> = words(answer).collect();
    let mark = |mark: &str| mark.split_once('=').and_then(|(what, ms)| Some((what.to_owned(), ms.parse().ok()?)));
    Some(Hello {
        phase: Phase::parse(words.get("phase")?)?,
        id: (*words.get("id")?).to_owned(),
        version: (*words.get("version")?).to_owned(),
        warm: *words.get("cache")? == "warm",
        checked: *words.get("checked")? == "true",
        buildkitd: words.get("buildkitd")?.parse().ok(),
        builder: words.get("builder")?.parse().ok(),
        uptime: Duration::from_millis(words.get("uptime_ms")?.parse().ok()?),
        clock_ns: words.get("clock_ns")?.parse().ok()?,
        timeline: words.get("timeline")?.split(',').filter_map(mark).collect(),
        fault: words.get("fault").map(|fault| if *fault == "disk" { Fault::Disk } else { Fault::Other }),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[test]
    fn a_hello_is_understood() {
        let answer = "phase=failed id=c1 version=0.1.0 cache=warm checked=true buildkitd=41 builder=- uptime_ms=6100 \
                      clock_ns=17 timeline=init=1500,stage2=2000 fault=disk why=the cache disk failed its check (e2fsck: exit code 4)";
        let hello = hello(answer).unwrap();
        assert_eq!((hello.phase, hello.buildkitd, hello.builder), (Phase::Failed, Some(41), None));
        assert_eq!(hello.timeline, [("init".to_owned(), 1500), ("stage2".to_owned(), 2000)]);
        assert_eq!(hello.why.as_deref(), Some("the cache disk failed its check (e2fsck: exit code 4)"));
        assert_eq!(hello.fault, Some(Fault::Disk));
        assert!(hello.warm && hello.checked);
        assert!(super::hello("phase=dancing id=c1").is_none());
    }

    /// A guest that answers each line by `answers`, given the request's id and words.
    async fn guest(answers: fn(&str, &str) -> String) -> (Control, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let mut line = String::new();
            while stream.read_line(&mut line).await.unwrap() > 0 {
                if let Some((id, request)) = line.trim().split_once(' ') {
                    stream.get_mut().write_all(answers(id, request).as_bytes()).await.unwrap();
                }
                line.clear();
            }
        });
        (Control::connect(&Line::Port(socket)).await.unwrap(), dir)
    }

    #[tokio::test]
    async fn a_vsock_port_is_asked_for_first() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            // Nobody listens in the guest yet, then somebody does.
            for answer in ["", "OK 1073741824\n"] {
                let mut stream = BufReader::new(listener.accept().await.unwrap().0);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                assert_eq!(line, "CONNECT 5000\n");
                stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
                while !answer.is_empty() && stream.read_line(&mut line).await.unwrap() > 0 {
                    let id =
                        line.lines().next_back().and_then(|line| line.split_once(' ')).map(|(id, _)| id.to_owned());
                    if let Some(id) = id.filter(|id| id != "CONNECT") {
                        stream.get_mut().write_all(format!("{id} ok behind_ms=7\n").as_bytes()).await.unwrap();
                    }
                }
            }
        });
        let line = Line::Vsock { socket, port: VSOCK_PORT };
        assert!(matches!(Control::connect(&line).await, Err(ControlError::Absent { .. })));
        assert_eq!(Control::connect(&line).await.unwrap().set_time(DEADLINE).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn only_the_answer_to_the_request_itself_counts() {
        let (mut control, _dir) = guest(|id, _| format!("1 error another's\nrubbish\n{id} ok behind_ms=-3\n")).await;
        assert_eq!(control.set_time(DEADLINE).await.unwrap(), -3);
    }

    #[tokio::test]
    async fn refusals_and_silence_are_told_apart() {
        let (mut control, _dir) = guest(|id, request| match request {
            "thaw" => format!("{id} error not now\n"),
            _ => String::new(),
        })
        .await;
        let refused = control.thaw(DEADLINE).await.unwrap_err();
        assert!(matches!(&refused, ControlError::Refused { why, .. } if why == "not now"), "{refused}");
        let silent = control.stop(Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(silent, ControlError::Silent { .. }), "{silent}");
    }
}
