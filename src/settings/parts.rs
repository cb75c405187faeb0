//! Settings as the parts that the `activities` crate asks for.

use activities::objects::{ObjectError, ObjectSettings, ObjectStore, Patience};
use activities::snapshots::Caps;

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
