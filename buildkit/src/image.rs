//! What becomes of a build's result: exporters, and the image that they report.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Where the result of a build goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Export {
    /// An OCI image, in the daemon's own store or pushed to a registry.
    Image(Image),
    /// Any exporter by its type and attributes, as `buildctl --output` takes them.
    Other { kind: String, attrs: BTreeMap<String, String> },
}

/// The image exporter's options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    names: Vec<String>,
    attrs: BTreeMap<String, String>,
}

impl Image {
    /// An image with a name: `registry/repository[:tag]`.
    pub fn named(name: impl Into<String>) -> Self {
        Self { names: vec![name.into()], attrs: BTreeMap::new() }
    }

    /// One more name.
    #[must_use]
    pub fn and_named(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Pushes the image to the registry of each name.
    #[must_use]
    pub fn push(self) -> Self {
        self.attr("push", "true")
    }

    /// Pushes without writing a tag. The names must have none: BuildKit refuses tagged names here.
    #[must_use]
    pub fn push_by_digest(self) -> Self {
        self.push().attr("push-by-digest", "true")
    }

    /// Any further attribute of the exporter, for example `compression`.
    #[must_use]
    pub fn attr(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.attrs.insert(name.into(), value.into());
        self
    }
}

impl Export {
    pub(crate) fn into_parts(self) -> (String, BTreeMap<String, String>) {
        match self {
            Self::Other { kind, attrs } => (kind, attrs),
            Self::Image(Image { names, mut attrs }) => {
                if !names.is_empty() {
                    attrs.insert("name".into(), names.join(","));
                }
                ("image".into(), attrs)
            }
        }
    }
}

/// An OCI content descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    /// Bytes.
    pub size: i64,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Reads the base64 JSON of the exporter response's `containerimage.descriptor`.
    pub(crate) fn from_base64(text: &str) -> Option<Self> {
        serde_json::from_slice(&STANDARD.decode(text).ok()?).ok()
    }
}
