//! QEMU's machine protocol: JSON lines over a unix socket, one client at a time.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("cannot connect to QEMU's control socket {}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("QEMU's control socket broke during {command}")]
    Broken { command: String, source: io::Error },
    #[error("QEMU did not answer {command} within {deadline:?}")]
    Silent { command: String, deadline: Duration },
    #[error("QEMU refused {command}: {why}")]
    Refused { command: String, why: String },
}

/// A connection that has agreed on its capabilities.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    last: u64,
}

impl Qmp {
    /// Connects; another client's connection has to end first, so this too has a deadline.
    ///
    /// # Errors
    /// When nothing listens there, or QEMU does not greet.
    pub async fn connect(socket: &Path, deadline: Duration) -> Result<Self, QmpError> {
        let failed = |source| QmpError::Connect { socket: socket.to_owned(), source };
        let stream = UnixStream::connect(socket).await.map_err(failed)?;
        let mut qmp = Self { stream: BufReader::new(stream), last: 0 };
        // The greeting has no id; it is read over while waiting for the answer.
        qmp.execute("qmp_capabilities", json!({}), deadline).await?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returns.
    ///
    /// # Errors
    /// When QEMU refuses it, does not answer in time, or is gone.
    pub async fn execute(&mut self, command: &str, arguments: Value, deadline: Duration) -> Result<Value, QmpError> {
        self.last += 1;
        let request = json!({ "execute": command, "arguments": arguments, "id": self.last });
        let command = || command.to_owned();
        let answer = match timeout(deadline, self.exchange(&request)).await {
            Err(_) => return Err(QmpError::Silent { command: command(), deadline }),
            Ok(answer) => answer.map_err(|source| QmpError::Broken { command: command(), source })?,
        };
        if let Some(error) = answer.get("error") {
            let why = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
            return Err(QmpError::Refused { command: command(), why });
        }
        Ok(answer.get("return").cloned().unwrap_or_default())
    }

    /// Reads over greetings, events and answers to requests that were given up.
    async fn exchange(&mut self, request: &Value) -> io::Result<Value> {
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).await?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let answer: Value = serde_json::from_str(&line)?;
            if answer.get("id") == request.get("id") {
                return Ok(answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn answers_are_told_from_greetings_and_events() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            stream.get_mut().write_all(b"{\"QMP\":{}}\n").await.unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).await.unwrap() > 0 {
                let request: Value = serde_json::from_str(&line).unwrap();
                let mut answer = json!({ "id": request["id"], "return": { "ran": request["execute"] } });
                if request["execute"] == "bad" {
                    answer =
                        json!({ "id": request["id"], "error": { "class": "GenericError", "desc": "no such thing" } });
                }
                let lines = format!("{{\"event\":\"RESUME\"}}\n{answer}\n");
                stream.get_mut().write_all(lines.as_bytes()).await.unwrap();
                line.clear();
            }
        });
        let mut qmp = Qmp::connect(&socket, DEADLINE).await.unwrap();
        assert_eq!(qmp.execute("stop", json!({}), DEADLINE).await.unwrap()["ran"], "stop");
        let refused = qmp.execute("bad", json!({}), DEADLINE).await.unwrap_err();
        assert!(matches!(&refused, QmpError::Refused { why, .. } if why == "no such thing"), "{refused}");
    }
}
