//! Whose registry credentials travel with a build: those for the hosts of its bases.

use std::collections::{BTreeMap, BTreeSet};

use buildkit::dockerfile::base_images;
use oci_client::Reference;

/// The registry hosts of the images that a Dockerfile names. Docker Hub is `docker.io`.
pub fn base_hosts(dockerfile: &str, build_args: &BTreeMap<String, String>) -> BTreeSet<String> {
    base_images(dockerfile, build_args)
        .iter()
        .filter_map(|image| image.parse::<Reference>().ok())
        .map(|reference| reference.registry().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_has_one_name() {
        let dockerfile =
            "FROM golang\nCOPY --from=ghcr.io/a/tools /a /\nCOPY --from=docker.io/b/c /b /\nFROM q.example:5000/x\n";
        let hosts = base_hosts(dockerfile, &BTreeMap::new());
        assert_eq!(hosts.into_iter().collect::<Vec<_>>(), ["docker.io", "ghcr.io", "q.example:5000"]);
    }
}
