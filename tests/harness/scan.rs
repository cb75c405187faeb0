//! Looks for texts in everything below a directory: as they are, in base64 (alone or inside something longer), and in what is compressed
//! by gzip or zstd. What is encrypted cannot be seen, which is the point of it; nor can what is compressed twice.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// Texts to look for, each in all its forms.
pub struct Needles(regex::bytes::Regex);

impl Needles {
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let forms: Vec<String> = texts.into_iter().flat_map(forms).map(|form| regex::escape(&form)).collect();
        Self(regex::bytes::Regex::new(&forms.join("|")).unwrap())
    }

    /// Whether any of them is in these bytes.
    pub fn are_in(&self, bytes: &[u8]) -> bool {
        self.0.is_match(bytes)
    }

    /// Every file below `root` that has one, and how many files were looked into.
    pub fn found_below(&self, root: &Path) -> (Vec<PathBuf>, usize) {
        let (mut found, mut seen) = (Vec::new(), 0);
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            // What runs meanwhile may remove it.
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if kind.is_file()
                    && let Ok(bytes) = fs::read(entry.path())
                {
                    seen += 1;
                    let inside = decompressed(&bytes);
                    if self.are_in(&bytes) || inside.is_some_and(|inside| self.are_in(&inside)) {
                        found.push(entry.path());
                    }
                }
            }
        }
        found.sort();
        (found, seen)
    }
}

/// A text, and what base64 makes of it at each of the three places it can have in something longer, without the ends that depend on
/// what is around it.
fn forms(text: &str) -> Vec<String> {
    let encoded = (0..3).map(|before| {
        let mut bytes = vec![0; before];
        bytes.extend_from_slice(text.as_bytes());
        let encoded = STANDARD_NO_PAD.encode(bytes);
        encoded[before * 2..encoded.len() - 2].to_owned()
    });
    std::iter::once(text.to_owned()).chain(encoded).collect()
}

fn decompressed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut inside = Vec::new();
    match bytes {
        [0x1f, 0x8b, ..] => flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut inside).ok(),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::Decoder::new(bytes).ok()?.read_to_end(&mut inside).ok(),
        _ => None,
    };
    (!inside.is_empty()).then_some(inside)
}

#[test]
fn needles_are_seen_in_all_their_forms() {
    let needles = Needles::of(["pw0123456789abcdef"]);
    for padding in ["", "a", "ab", "abc"] {
        let text = format!("{padding}pw0123456789abcdef tail");
        assert!(needles.are_in(text.as_bytes()));
        assert!(needles.are_in(STANDARD_NO_PAD.encode(&text).as_bytes()), "{padding:?}");
    }
    assert!(!needles.are_in(b"pw0123456789abcde"));
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("z"), zstd::encode_all(&b"xx pw0123456789abcdef"[..], 1).unwrap()).unwrap();
    fs::write(directory.path().join("other"), b"nothing").unwrap();
    assert_eq!(needles.found_below(directory.path()), (vec![directory.path().join("z")], 2));
}
