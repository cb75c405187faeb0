//! A registry with its storage in a temporary directory.

use super::{process::Process, temp_dir};
use std::{fs, process::Command};

pub struct Registry {
    _process: Process,
    _directory: tempfile::TempDir,
    address: String,
}

impl Registry {
    pub fn start() -> Self {
        let directory = temp_dir();
        let storage = directory.path().join("storage");
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0', relativeurls: true}}\n",
            storage.display()
        );
        let file = directory.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file);
        let process = Process::start(command);
        let line = process.wait_for("listening on ");
        let address = line.split("listening on ").nth(1).unwrap().split(['"', ' ']).next().unwrap().to_owned();
        Self { _process: process, _directory: directory, address }
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The digest that a tag points at.
    pub async fn digest(&self, repository: &str, tag: &str) -> Option<String> {
        super::install_crypto();
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
        let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
        let response = reqwest::Client::new().head(url).header("accept", accept).send().await.unwrap();
        Some(response.headers().get("docker-content-digest")?.to_str().unwrap().to_owned())
    }
}
