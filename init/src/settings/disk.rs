//! The config disk: a raw disk with one document, written by the host for each start.
//!
//! ```text
//! kiln-cell 1 <bytes of the document after this line>
//! name=value                       any number, one a line, in any order
//! file <name> <bytes>              a file's content follows, then a newline
//! ```
//!
//! No quoting and no nesting: a value is everything up to the line's end. What has lines of its own, or is a secret, is a file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};

const MAGIC: &str = "kiln-cell";
const VERSION: &str = "1";
/// The most a document may take, so that a garbled length reads no gigabytes.
const CAP: usize = 4 << 20;

/// Why a config disk cannot be used.
#[derive(Debug)]
pub enum DiskError {
    Read(io::Error),
    /// There is something else on the disk.
    NoDocument,
    Version(String),
    /// The length on the first line is none, or above the cap.
    Length(String),
    /// The disk ends before the document.
    Short,
    /// A line that is neither a value nor a file; its number.
    Line(usize),
    /// A file's name or length on this line makes no sense.
    File(usize),
    Twice(String),
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "cannot be read: {error}"),
            Self::NoDocument => f.write_str("has no document of a cell"),
            Self::Version(version) => write!(f, "version '{version}' is not known, this image reads version {VERSION}"),
            Self::Length(length) => write!(f, "the document's length '{length}' is not one"),
            Self::Short => f.write_str("ends before its document"),
            Self::Line(line) => write!(f, "line {line} is neither name=value nor a file"),
            Self::File(line) => write!(f, "line {line} names no file"),
            Self::Twice(name) => write!(f, "'{name}' is there twice"),
        }
    }
}

/// What the disk holds, not yet looked at.
#[derive(Debug, Default, PartialEq)]
pub struct Document {
    pub fields: BTreeMap<String, String>,
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Document {
    pub fn read(device: &str) -> Result<Self, DiskError> {
        let mut disk = BufReader::new(File::open(device).map_err(DiskError::Read)?);
        let length = read_header(&mut disk)?;
        let mut body = Vec::with_capacity(length);
        disk.take(length as u64).read_to_end(&mut body).map_err(DiskError::Read)?;
        if body.len() < length { Err(DiskError::Short) } else { Self::parse(&body) }
    }

    /// The document after its first line.
    pub fn parse(mut body: &[u8]) -> Result<Self, DiskError> {
        let mut document = Self::default();
        // The first line is the header's.
        let mut line = 1;
        while !body.is_empty() {
            line += 1;
            let text = take_line(&mut body).ok_or(DiskError::Line(line))?;
            if let Some(header) = text.strip_prefix("file ") {
                let (name, content) = take_file(header, &mut body).ok_or(DiskError::File(line))?;
                line += content.iter().filter(|byte| **byte == b'\n').count() + 1;
                insert(&mut document.files, name, content)?;
            } else if let Some((name, value)) = text.split_once('=') {
                insert(&mut document.fields, name, value.to_owned())?;
            } else {
                return Err(DiskError::Line(line));
            }
        }
        Ok(document)
    }
}

fn read_header(disk: &mut impl io::BufRead) -> Result<usize, DiskError> {
    let mut header = Vec::new();
    disk.take(64).read_until(b'\n', &mut header).map_err(DiskError::Read)?;
    let header = std::str::from_utf8(&header).ok().and_then(|line| line.strip_suffix('\n'));
    let mut words = header.ok_or(DiskError::NoDocument)?.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(DiskError::NoDocument);
    }
    let version = words.next().unwrap_or_default();
    if version != VERSION {
        return Err(DiskError::Version(version.to_owned()));
    }
    let length = words.next().unwrap_or_default();
    length.parse().ok().filter(|length| *length <= CAP).ok_or_else(|| DiskError::Length(length.to_owned()))
}

fn take_line<'a>(body: &mut &'a [u8]) -> Option<&'a str> {
    let end = body.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = body.split_at(end);
    *body = rest.get(1..)?;
    std::str::from_utf8(line).ok()
}

/// `<name> <bytes>`, then the content and a newline. A name is one path component.
fn take_file<'a>(header: &'a str, body: &mut &[u8]) -> Option<(&'a str, Vec<u8>)> {
    let (name, length) = header.split_once(' ')?;
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(harmless) {
        return None;
    }
    let (content, rest) = body.split_at_checked(length.parse().ok()?)?;
    *body = rest.strip_prefix(b"\n")?;
    Some((name, content.to_vec()))
}

fn insert<T>(into: &mut BTreeMap<String, T>, name: &str, value: T) -> Result<(), DiskError> {
    match into.insert(name.to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(DiskError::Twice(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Result<usize, DiskError> {
        read_header(&mut text.as_bytes())
    }

    #[test]
    fn fields_and_files_are_read() {
        let document =
            Document::parse(b"id=c1\nfile kiln.toml 8\na = 1\n\n\n\nempty=\nfile none 0\n\nlast=a=b\n").unwrap();
        assert_eq!(document.fields["id"], "c1");
        assert_eq!(document.fields["empty"], "");
        assert_eq!(document.fields["last"], "a=b");
        assert_eq!(document.files["kiln.toml"], b"a = 1\n\n\n");
        assert_eq!(document.files["none"], b"");
    }

    #[test]
    fn headers() {
        assert_eq!(header("kiln-cell 1 42\nrest").unwrap(), 42);
        assert!(matches!(header("\0\0\0"), Err(DiskError::NoDocument)));
        assert!(matches!(header("other 1 2\n"), Err(DiskError::NoDocument)));
        assert!(matches!(header("kiln-cell 2 9\n"), Err(DiskError::Version(v)) if v == "2"));
        assert!(matches!(header("kiln-cell 1 99999999999\n"), Err(DiskError::Length(_))));
    }

    #[test]
    fn what_is_malformed_is_named_by_its_line() {
        assert!(matches!(Document::parse(b"id=c1\nnonsense\n"), Err(DiskError::Line(3))));
        assert!(matches!(Document::parse(b"id=c1"), Err(DiskError::Line(2))));
        assert!(matches!(Document::parse(b"file a 2\nx\n\nrubbish\n"), Err(DiskError::Line(5))));
        for bad in ["file ../a 1\nx\n", "file .a 1\nx\n", "file a 9\nx\n", "file a x\nx\n", "file a 1\nxy\n"] {
            assert!(matches!(Document::parse(bad.as_bytes()), Err(DiskError::File(2))), "{bad}");
        }
        assert!(matches!(Document::parse(b"id=a\nid=b\n"), Err(DiskError::Twice(name)) if name == "id"));
    }
}
