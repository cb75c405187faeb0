//! Reading whole lines of an append-only file behind its writer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// How much is read at once, bytes; a single longer line is read whole.
pub const READ: usize = 256 << 10;

/// The whole lines from `offset` on, of a file whose first `end` bytes are whole lines: about [`READ`] bytes, at least one line,
/// none when `offset` is `end`.
pub fn read_lines(file: &File, offset: u64, end: u64) -> io::Result<Vec<u8>> {
    let available = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut size = available.min(READ);
    loop {
        let mut lines = vec![0; size];
        file.read_exact_at(&mut lines, offset)?;
        if let Some(last) = lines.iter().rposition(|&byte| byte == b'\n') {
            lines.truncate(last + 1);
            return Ok(lines);
        }
        if size == available {
            return match size {
                0 => Ok(lines),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the log file does not end with a whole line")),
            };
        }
        size = available.min(size * 2);
    }
}

/// How many lines a text has.
pub fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// The lines of a text that ends with a newline, without their newlines.
pub fn split_lines(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines.strip_suffix(b"\n").into_iter().flat_map(|lines| lines.split(|&byte| byte == b'\n'))
}

/// The length of the whole lines at the start of a text: what follows was cut off in the writing.
pub fn whole_length(text: &[u8]) -> usize {
    text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1)
}
