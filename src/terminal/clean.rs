//! Removes from text what a terminal would obey.
//!
//! Kept: printable characters, line ends, tabs and, where wanted, SGR sequences (`ESC [ … m`: colours and the like). `\r\n` and a
//! lone `\r` are line ends too, so that text cannot be written over what stands before it. Removed: all other C0 and C1 controls
//! (the latter also as U+0080 to U+009F), all other escape sequences with their content (OSC, DCS, APC, PM, SOS, CSI), and the bidirectional
//! embeddings, overrides and isolates, which make text read otherwise than it is written.
//!
//! A line is clean for itself: its colours end with it, and so does a sequence that is not complete.

use std::fmt::Write as _;

use anstyle_parse::{Params, Parser, Perform};

/// The end of all colours.
const RESET: &str = "\x1b[0m";

/// Cleans text that comes in any pieces.
pub struct Cleaner {
    parser: Parser,
    kept: Kept,
    after_return: bool,
}

/// What stays of the text.
struct Kept {
    text: String,
    colours: bool,
    /// Whether a colour holds where the text ends.
    coloured: bool,
}

impl Cleaner {
    /// `colours`: whether SGR sequences stay.
    pub fn new(colours: bool) -> Self {
        Self {
            parser: <Parser>::new(),
            kept: Kept { text: String::new(), colours, coloured: false },
            after_return: false,
        }
    }

    /// What stays of the next piece.
    pub fn clean(&mut self, piece: &str) -> String {
        for &byte in piece.as_bytes() {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' => self.end_line(),
                b'\r' if !after_return => {}
                b'\r' => self.end_line(),
                _ => {
                    if after_return {
                        self.end_line();
                    }
                    self.parser.advance(&mut self.kept, byte);
                }
            }
        }
        std::mem::take(&mut self.kept.text)
    }

    fn end_line(&mut self) {
        self.parser = <Parser>::new();
        if std::mem::take(&mut self.kept.coloured) {
            self.kept.text.push_str(RESET);
        }
        self.kept.text.push('\n');
    }
}

impl Perform for Kept {
    fn print(&mut self, c: char) {
        if !is_obeyed(c) {
            self.text.push(c);
        }
    }

    fn execute(&mut self, byte: u8) {
        if byte == b'\t' {
            self.text.push('\t');
        }
    }

    fn csi_dispatch(&mut self, parameters: &Params, intermediates: &[u8], cut: bool, end: u8) {
        if !self.colours || end != b'm' || !intermediates.is_empty() || cut {
            return;
        }
        self.text.push_str("\x1b[");
        for (at, parameter) in parameters.iter().enumerate() {
            for (part, number) in parameter.iter().enumerate() {
                let separator = if part > 0 { ":" } else { ";" };
                let _ = write!(self.text, "{}{number}", if at + part > 0 { separator } else { "" });
            }
        }
        self.text.push('m');
        self.coloured = parameters.iter().any(|parameter| parameter != [0]);
    }
}

/// Whether a terminal does something else than show the character.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text as one line without colours: for a row, whose width counts.
pub fn one_line(text: &str) -> String {
    Cleaner::new(false).clean(text.trim_end_matches(['\r', '\n'])).replace(['\n', '\t'], " ")
}

/// JSON with the characters that a terminal would obey as `\u…`: the same data.
pub fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_obeyed(c) {
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text
}
