//! Cuts long files where their content says so, so that an edit moves no cut but those near it.

use fastcdc::v2020::FastCDC;

use crate::snapshots::entry::LONGEST_BLOB;

const SHORTEST: usize = 256 << 10;
const AVERAGE: usize = 1 << 20;
/// How much must be at hand to find the next cut, unless the file ends before.
pub const WINDOW: usize = LONGEST_BLOB as usize;

/// The length of the first chunk of `content`, which is [`WINDOW`] bytes long or all that is left of the file.
pub fn first_chunk(content: &[u8]) -> usize {
    let cutter = FastCDC::new(content, SHORTEST, AVERAGE, WINDOW);
    let (_, end) = cutter.cut(0, content.len());
    if end == 0 { content.len() } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(mut content: &[u8]) -> Vec<&[u8]> {
        let mut chunks = Vec::new();
        while !content.is_empty() {
            let (chunk, rest) = content.split_at(first_chunk(&content[..content.len().min(WINDOW)]));
            chunks.push(chunk);
            content = rest;
        }
        chunks
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn cuts_within_bounds_and_loses_nothing() {
        for content in [noise(20 << 20), vec![0; 20 << 20], noise(5 << 20)] {
            let cut = chunks(&content);
            assert_eq!(cut.concat(), content);
            let (last, others) = cut.split_last().unwrap();
            assert!(others.iter().all(|chunk| (SHORTEST..=WINDOW).contains(&chunk.len())));
            assert!(last.len() <= WINDOW);
        }
    }

    #[test]
    fn an_edit_changes_few_chunks() {
        let before = noise(32 << 20);
        let mut after = before.clone();
        after.splice(10 << 20..10 << 20, *b"some bytes in the middle");
        let known: std::collections::HashSet<_> = chunks(&before).into_iter().collect();
        let new = chunks(&after).into_iter().filter(|chunk| !known.contains(chunk)).count();
        assert!((1..=3).contains(&new), "{new}");
    }
}
