//! Text from a step's output, which arrives in pieces that may end within a character.

/// Decodes one stream of bytes. A character that is cut off at the end of a piece waits for the next one; each sequence
/// of bytes that is no UTF-8 becomes one replacement character, wherever the stream was cut.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The beginning of a character: three bytes at most.
    unfinished: Vec<u8>,
}

impl Decoder {
    pub(super) fn decode(&mut self, piece: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.unfinished);
        bytes.extend_from_slice(piece);
        self.unfinished = bytes.split_off(bytes.len() - unfinished(&bytes));
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    /// What is left when the stream has ended: a replacement character if it ended within a character.
    pub(super) fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.unfinished);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

/// How many bytes at the end are the beginning of a character that more bytes could complete.
fn unfinished(bytes: &[u8]) -> usize {
    let is_beginning = |length: &usize| {
        let tail = &bytes[bytes.len() - length..];
        std::str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=bytes.len().min(3)).find(is_beginning).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_in_two_pieces_is_whole() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"h\xc3"), "h");
        assert_eq!(decoder.decode(b"\xa9\n"), "é\n");
        assert_eq!(decoder.finish(), None);
    }

    #[test]
    fn a_stream_that_ends_within_a_character_ends_with_a_replacement() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"x\xe2\x82"), "x");
        assert_eq!(decoder.finish().as_deref(), Some("\u{fffd}"));
        assert_eq!(decoder.finish(), None);
    }

    proptest! {
        #[test]
        fn where_a_stream_is_cut_makes_no_difference(
            parts in proptest::collection::vec(
                prop_oneof![
                    any::<char>().prop_map(|symbol| symbol.to_string().into_bytes()),
                    proptest::collection::vec(any::<u8>(), 1..4),
                ],
                0..30,
            ),
            size in 1..7usize,
        ) {
            let bytes = parts.concat();
            let mut decoder = Decoder::default();
            let mut text: String = bytes.chunks(size).map(|piece| decoder.decode(piece)).collect();
            text.extend(decoder.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
