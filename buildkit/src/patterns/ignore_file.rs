//! Reading a `.dockerignore` file into patterns.

use super::{clean, trim};

/// The patterns of an ignore file, in order: comments, empty lines and a byte order mark are dropped, paths are
/// brought to their shortest form and a leading `/` means the root as does its absence.
pub fn parse_ignore_file(content: &[u8]) -> Vec<Vec<u8>> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    content.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Vec<u8>> {
    if line.first() == Some(&b'#') {
        return None;
    }
    let line = trim(line);
    let (mut pattern, path) = match line.split_first()? {
        (b'!', path) => (b"!".to_vec(), trim(path)),
        _ => (Vec::new(), line),
    };
    if !path.is_empty() {
        let path = clean(path);
        pattern.extend_from_slice(path.strip_prefix(b"/").filter(|rest| !rest.is_empty()).unwrap_or(&path));
    }
    Some(pattern)
}
