//! Bounds of what becomes a record. A step's name is a whole instruction and its output comes in pieces of any size: nothing of that may
//! make a record that does not fit a frame of the connection, which other builds use too.

use workflows::contract::LogEvent;

/// The most bytes of output in one record. Longer output becomes several.
pub const OUTPUT: usize = 64 << 10;
/// The most bytes of any other text: a step's name, an error, a note.
const TEXT: usize = 16 << 10;
/// The most bytes of an id.
const ID: usize = 1 << 10;

/// The longest line of a record, bytes: JSON writes a byte as six at the most.
pub const LONGEST_LINE: usize = 6 * OUTPUT + (16 << 10) + 6 * ID;

/// The events that stand for one: with their texts cut to what a record may have, each cut with a marker, and output in pieces.
pub fn bounded(event: LogEvent) -> Vec<LogEvent> {
    match event {
        LogEvent::Output { mut vertex, stream, text } => {
            cut(&mut vertex, ID);
            pieces(text).map(|text| LogEvent::Output { vertex: vertex.clone(), stream, text }).collect()
        }
        mut event => {
            bound_texts(&mut event);
            vec![event]
        }
    }
}

fn bound_texts(event: &mut LogEvent) {
    match event {
        LogEvent::Vertex { vertex, name, error, .. } => {
            cut(vertex, ID);
            cut(name, TEXT);
            error.iter_mut().for_each(|error| cut(error, TEXT));
        }
        LogEvent::Progress { vertex, id, name, .. } => [vertex, id, name].into_iter().for_each(|text| cut(text, ID)),
        LogEvent::Warning { vertex, text } => {
            cut(vertex, ID);
            cut(text, TEXT);
        }
        LogEvent::Output { vertex, .. } => cut(vertex, ID),
        LogEvent::Note { text } | LogEvent::Cut { reason: text, .. } => cut(text, TEXT),
        LogEvent::End => {}
    }
}

/// Shortens a text to `most` bytes and a marker that says how much is missing.
fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let end = text.floor_char_boundary(most);
        let missing = text.len() - end;
        text.truncate(end);
        text.push_str(&format!(" … [{missing} bytes cut]"));
    }
}

fn pieces(text: String) -> Box<dyn Iterator<Item = String>> {
    if text.len() <= OUTPUT {
        return Box::new(std::iter::once(text));
    }
    let mut rest = text;
    Box::new(std::iter::from_fn(move || {
        let tail = rest.split_off(rest.floor_char_boundary(OUTPUT));
        let piece = std::mem::replace(&mut rest, tail);
        (!piece.is_empty()).then_some(piece)
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use workflows::contract::LogRecord;

    use super::*;

    fn line(event: &LogEvent) -> usize {
        let record = LogRecord { seq: u64::MAX, at_ms: u64::MAX, event: event.clone() };
        serde_json::to_vec(&record).unwrap().len()
    }

    #[test]
    fn a_step_of_megabytes_becomes_a_record_that_says_what_is_cut() {
        let name = format!("RUN {}", "echo '\"\"\"' && \\\n".repeat(200_000));
        let event = LogEvent::Vertex {
            vertex: "sha256:1".into(),
            name: name.clone(),
            started_ms: None,
            completed_ms: None,
            cached: false,
            error: Some("\u{1}".repeat(1 << 20)),
        };
        let [LogEvent::Vertex { name: shown, error: Some(error), .. }] = &bounded(event.clone())[..] else { panic!() };
        assert!(name.starts_with(&shown[..TEXT]) && shown.ends_with("bytes cut]"), "{}", &shown[TEXT..]);
        assert!(error.ends_with("bytes cut]") && bounded(event).iter().all(|event| line(event) <= LONGEST_LINE));
    }

    proptest! {
        #[test]
        fn output_comes_in_pieces_that_fit_and_nothing_of_it_is_lost(
            text in prop::collection::vec(prop::sample::select(vec!["\u{0}", "\"", "a", "é", "\n", "😀"]), 0..9)
                .prop_map(|some| some.concat().repeat(12_000)),
        ) {
            let made = bounded(LogEvent::Output { vertex: "v".repeat(5000), stream: 1, text: text.clone() });
            prop_assert!(made.iter().all(|event| line(event) <= LONGEST_LINE));
            let whole: String = made.iter().map(|event| match event {
                LogEvent::Output { text, .. } => text.as_str(),
                _ => "",
            }).collect();
            prop_assert_eq!(whole, text);
        }
    }
}
