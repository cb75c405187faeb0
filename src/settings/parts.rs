//! Settings as the parts that the `activities` crate asks for.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use activities::objects::{ObjectError, ObjectSettings, ObjectStore, Patience};
use activities::snapshots::Caps;
use url::Url;

use super::Settings;

impl Settings {
    /// The installation's bucket.
    pub fn objects(&self) -> Result<ObjectStore, ObjectError> {
        ObjectStore::new(ObjectSettings {
            endpoint: self.s3.endpoint.clone(),
            region: self.s3.region.clone(),
            bucket: self.s3.bucket.clone(),
            access_key: self.s3.access_key.clone(),
            secret_key: self.s3.secret_key.reveal().to_owned(),
            patience: Patience::default(),
        })
    }

    /// The loopback addresses at which a cell's builder and buildkitd expect services.
    pub fn loopback_services(&self) -> BTreeSet<SocketAddr> {
        let urls = [&self.api.url, &self.s3.endpoint, &self.telemetry.otlp_endpoint];
        let url = |text: &&String| {
            let url = Url::parse(text).ok()?;
            Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
        };
        let addresses = [&self.temporal.address, &self.logs.address, &self.registry.address, &self.guest.mirror];
        let all = urls.iter().filter_map(url).chain(addresses.map(String::clone));
        let parsed = all.filter_map(|address| address.replace("localhost:", "127.0.0.1:").parse::<SocketAddr>().ok());
        parsed.filter(|address| address.ip().is_loopback()).collect()
    }

    /// What a snapshot may be.
    pub fn caps(&self) -> Caps {
        Caps {
            entries: self.snapshots.max_entries,
            bytes: self.snapshots.max_bytes,
            path: self.snapshots.max_path,
            depth: self.snapshots.max_depth,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_on_the_loopback_are_told_from_others() {
        let mut settings = Settings::default();
        settings.temporal.address = "localhost:7233".into();
        settings.api.url = "http://127.0.0.1:7080/".into();
        settings.logs.address = "logs.example.com:7081".into();
        settings.s3.endpoint = "https://s3.example.com".into();
        settings.registry.address = "127.0.0.1:5000".into();
        settings.guest.mirror = "127.0.0.1:5000".into();
        let ports: Vec<_> = settings.loopback_services().iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [5000, 7080, 7233]);
    }
}
