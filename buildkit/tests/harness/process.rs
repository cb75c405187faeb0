//! Child processes that end with their owner.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
};

/// A child whose standard error is read; killed when dropped.
pub struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
    lines: mpsc::Receiver<String>,
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe and touches nothing of this process.
        unsafe {
            command.pre_exec(|| {
                // The spawning thread is the test's own: however it ends, so does the child.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, lines) = mpsc::channel();
        read(child.stderr.take().unwrap(), log.clone(), sender);
        Self { child, log, lines }
    }

    /// Waits for a line that has `words` in it.
    pub fn wait_for(&self, words: &str) -> String {
        loop {
            match self.lines.recv() {
                Ok(line) if line.contains(words) => return line,
                Ok(_) => {}
                Err(_) => panic!("ended before it said {words:?}: {}", self.log()),
            }
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Returns when nothing of it is left that could still write to its standard error.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        while self.lines.recv().is_ok() {}
    }
}

fn read(from: impl Read + Send + 'static, log: Arc<Mutex<String>>, lines: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            log.lock().unwrap().push_str(&format!("{line}\n"));
            let _ = lines.send(line);
        }
    });
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
