//! What reaches a terminal.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::clean::{Cleaner, escaped, one_line};
use super::*;

fn cleaned(text: &str, colours: bool) -> String {
    Cleaner::new(colours).clean(text)
}

#[test]
fn control_sequences_are_removed_with_their_content() {
    for (what, text, expected) in [
        ("OSC 52, which sets the clipboard", "a\x1b]52;c;Y3VybA==\x07b", "ab"),
        ("a title, ended by ST", "a\x1b]0;title\x1b\\b", "ab"),
        ("a hyperlink", "\x1b]8;;http://a.example\x1b\\a\x1b]8;;\x1b\\", "a"),
        ("cursor, erasure, scrolling", "a\x1b[2A\x1b[2K\x1b[1;1H\x1b[3Jb", "ab"),
        ("DCS, APC, PM and SOS", "\x1bPq#0\x1b\\a\x1b_G\x1b\\b\x1b^p\x1b\\c\x1bXs\x1b\\d", "abcd"),
        ("keyboard modes that end as colours do", "\x1b[>4;2mq\x1b[?4ma", "qa"),
        ("device queries", "\x1b[6n\x1b[c\x1bZ\x05a", "a"),
        ("C0 but tab and line end", "\x07a\x08b\x0b\x0c\x0e\tc\x7f\0\n", "ab\tc\n"),
        ("C1 as UTF-8", "a\u{9b}31mb\u{9d}0;t\u{9c}c\u{85}d", "a31mb0;tcd"),
        ("bidirectional overrides and isolates", "a\u{202e}b\u{2066}c\u{2069}\u{202c}", "abc"),
        ("a sequence that does not end, and the next line", "a\x1b]0;title\nb\x1b[3\nc\x1b", "a\nb\nc"),
        ("words of all scripts", "é 日本 עברית 👩‍🚀", "é 日本 עברית 👩‍🚀"),
    ] {
        assert_eq!(cleaned(text, false), expected, "{what}");
        assert_eq!(cleaned(text, true), expected, "{what}, on a terminal");
    }
}

#[test]
fn colours_stay_on_a_terminal_and_end_with_their_line() {
    let text = "\x1b[1;31mred\x1b[m plain\n\x1b[38:5:9mbright\x1b[48;2;1;2;3m\r\nplain\n";
    assert_eq!(cleaned(text, false), "red plain\nbright\nplain\n");
    assert_eq!(cleaned(text, true), "\x1b[1;31mred\x1b[0m plain\n\x1b[38:5:9mbright\x1b[48;2;1;2;3m\x1b[0m\nplain\n");
}

#[test]
fn a_return_never_leads_back_over_what_was_written() {
    assert_eq!(cleaned("10%\r20%\r\r\nend\r\n", true), "10%\n20%\n\nend\n");
    let mut cleaner = Cleaner::new(false);
    assert_eq!([cleaner.clean("a\r"), cleaner.clean("\nb\r"), cleaner.clean("c")], ["a", "\nb", "\nc"]);
}

#[test]
fn a_row_is_one_line() {
    assert_eq!(one_line("\x1b[31mRUN a\n\tb\x1b[0m\n"), "RUN a  b");
}

#[test]
fn json_keeps_the_data_and_no_terminal_obeys_it() {
    let value = serde_json::json!({"a": "\u{1b}]52;c;x\u{7}\u{9b}31m\u{7f}\u{202e}é"});
    let text = escaped(&value.to_string());
    assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
}

/// Pieces of control sequences and of text, in any order.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[ -~]{0,6}",
        "[\u{0}-\u{1f}]",
        "[\u{7f}-\u{9f}]",
        "\u{1b}[\\[\\]P_^X>?0-9;:mAHJK\\\\]{0,5}",
        Just("\u{202e}\u{2066}".to_owned()),
        "\\PC",
        any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// The text without well-formed SGR sequences.
fn without_colours(text: &str) -> String {
    regex::Regex::new("\x1b\\[[0-9;:]*m").unwrap().replace_all(text, "").into_owned()
}

proptest! {
    #[test]
    fn nothing_but_colours_is_obeyed_however_the_text_is_cut(text in hostile(), cuts in prop::collection::vec(0_usize..400, 0..6)) {
        for colours in [false, true] {
            let whole = cleaned(&text, colours);
            let rest = if colours { without_colours(&whole) } else { whole.clone() };
            let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
            prop_assert!(!rest.contains(obeyed), "{text:?} became {whole:?}");
            let reordered = rest.contains(['\u{202e}', '\u{2066}']);
            prop_assert!(!reordered, "bidirectional controls are left");

            let mut cuts: Vec<usize> = cuts.iter().copied().filter(|cut| text.is_char_boundary(*cut)).collect();
            cuts.sort_unstable();
            let mut cleaner = Cleaner::new(colours);
            let (mut pieces, mut from) = (String::new(), 0);
            for cut in cuts.into_iter().chain([text.len()]) {
                pieces.push_str(&cleaner.clean(&text[from..cut]));
                from = cut;
            }
            prop_assert_eq!(pieces, whole);
        }
    }
}

/// A stream that takes so many bytes, then fails.
#[derive(Clone)]
struct Failing {
    taken: Arc<Mutex<Vec<u8>>>,
    room: usize,
    kind: io::ErrorKind,
}

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = self.taken.lock().unwrap();
        let room = self.room - taken.len();
        if room == 0 {
            return Err(self.kind.into());
        }
        let count = bytes.len().min(room);
        taken.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one() {
    let stream = |kind| Failing { taken: Arc::default(), room: 6, kind };
    let pipe = stream(io::ErrorKind::BrokenPipe);
    let mut writer = Writer::new(pipe.clone(), false);
    writer.text("one\n").unwrap();
    assert!(!writer.is_closed());
    writer.text("two\n").unwrap();
    assert!(writer.is_closed());
    writer.text("three\n").unwrap();
    assert_eq!(*pipe.taken.lock().unwrap(), b"one\ntw");

    let mut writer = Writer::new(stream(io::ErrorKind::StorageFull), false);
    writer.text("one\n").unwrap();
    let error = writer.text("two\n").unwrap_err();
    assert_eq!((error.0.kind(), writer.is_closed()), (io::ErrorKind::StorageFull, false));
}
