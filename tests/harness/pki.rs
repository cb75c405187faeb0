//! Certificates of a test's own, made with the program of OpenSSL.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A certificate authority in a directory of its own.
pub struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    pub fn new() -> Self {
        let pki = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(pki.path("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        let authority = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"];
        pki.request("ca", &authority);
        pki
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Certificate and key, for `localhost` and the loopback, of a server or a client.
    pub fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        self.issue_for(name, "DNS:localhost,IP:127.0.0.1")
    }

    /// Certificate and key for other names, as OpenSSL writes them: `DNS:…,IP:…`.
    pub fn issue_for(&self, name: &str, names: &str) -> (PathBuf, PathBuf) {
        let (ca, key) = (self.ca(), self.path("ca.key"));
        let names = format!("subjectAltName={names}");
        self.request(
            name,
            &[
                "-CA",
                ca.to_str().unwrap(),
                "-CAkey",
                key.to_str().unwrap(),
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-addext",
                "extendedKeyUsage=serverAuth,clientAuth",
                "-addext",
                &names,
            ],
        );
        (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")))
    }

    fn request(&self, name: &str, more: &[&str]) {
        let file = |ending: &str| self.path(&format!("{name}.{ending}"));
        let mut command = openssl(&self.path("openssl.cnf"));
        command.args(["-keyout"]).arg(file("key")).arg("-out").arg(file("pem"));
        let output = command.args(["-subj", &format!("/CN={name}")]).args(more).output();
        let output = output.expect("openssl is not installed: run `deploy/setup test`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn openssl(config: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-days", "2", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    command.arg("-config").arg(config).stdin(Stdio::null());
    command
}
