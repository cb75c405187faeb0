//! Server-sent events, as the HTML standard has them: lines of `field: value`, an empty line ends an event.

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// The last id there was, also when this event has none.
    pub id: Option<String>,
    /// `message` when the event does not say.
    pub name: String,
    pub data: String,
}

/// Bytes in, events out. An event that is cut off is no event.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_return: bool,
    id: Option<String>,
    name: String,
    data: String,
}

impl Parser {
    /// Takes what has come and returns the events that are complete now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_return = std::mem::take(&mut self.after_return);
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    events.extend(self.end_line());
                }
                _ => self.line.push(byte),
            }
        }
        events
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return self.end_event();
        }
        let text = String::from_utf8_lossy(&line);
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "id" => self.id = Some(value.to_owned()),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            // Comments start with the colon; other fields mean nothing here.
            _ => {}
        }
        None
    }

    fn end_event(&mut self) -> Option<Event> {
        let name = std::mem::take(&mut self.name);
        let mut data = std::mem::take(&mut self.data);
        // The last line's end; without any there was no data, and so no event.
        data.pop()?;
        let name = if name.is_empty() { "message".to_owned() } else { name };
        Some(Event { id: self.id.clone(), name, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\nevent: log\nid: 1\ndata: {\"a\":\ndata: 1}\n\nid:2\r\ndata: two\r\n\r\ndata\n\nevent: lost\n\n\
                          data: cut off\n";

    fn expected() -> Vec<Event> {
        let event =
            |id: &str, name: &str, data: &str| Event { id: Some(id.into()), name: name.into(), data: data.into() };
        vec![event("1", "log", "{\"a\":\n1}"), event("2", "message", "two"), event("2", "message", "")]
    }

    #[test]
    fn events_come_out_however_the_bytes_are_cut() {
        for size in 1..=STREAM.len() {
            let mut parser = Parser::default();
            let events: Vec<Event> = STREAM.as_bytes().chunks(size).flat_map(|chunk| parser.push(chunk)).collect();
            assert_eq!(events, expected(), "in pieces of {size}");
        }
    }
}
