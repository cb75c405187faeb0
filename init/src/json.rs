//! As much JSON as changing a few members of runc's `config.json` takes. Numbers, texts and words stay as they were written.

use std::fmt;

/// Deeper documents are refused: nothing may overflow the stack.
const DEEPEST: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number, a text with its quotes, `true`, `false` or `null`.
    Scalar(String),
    Array(Vec<Value>),
    Object(Vec<(String, Value)>),
}

/// Where a document stops being JSON, in bytes.
#[derive(Debug, PartialEq)]
pub struct Malformed(pub usize);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no JSON at byte {}", self.0)
    }
}

impl Value {
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
        let value = reader.value(0)?;
        reader.space();
        if reader.at == text.len() { Ok(value) } else { Err(Malformed(reader.at)) }
    }

    /// A text that needs no escapes.
    pub fn text(text: &str) -> Self {
        Self::Scalar(format!("\"{text}\""))
    }

    pub fn number(number: impl fmt::Display) -> Self {
        Self::Scalar(number.to_string())
    }

    /// The member of that name, made (as an object) where there is none or `null`. `None` when this is no object.
    pub fn member(&mut self, name: &str) -> Option<&mut Value> {
        let Self::Object(members) = self else { return None };
        let at = members.iter().position(|(found, _)| found == name).unwrap_or_else(|| {
            members.push((name.to_owned(), Self::Object(Vec::new())));
            members.len() - 1
        });
        let value = &mut members[at].1;
        if matches!(value, Self::Scalar(word) if word == "null") {
            *value = Self::Object(Vec::new());
        }
        Some(value)
    }

    pub fn as_number(&self) -> Option<i64> {
        match self {
            Self::Scalar(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// A text's content; `None` where it has escapes.
    pub fn as_plain_text(&self) -> Option<&str> {
        match self {
            Self::Scalar(text) => text.strip_prefix('"')?.strip_suffix('"').filter(|text| !text.contains('\\')),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scalar(text) => f.write_str(text),
            Self::Array(items) => separated(f, ('[', ']'), items, |f, item| write!(f, "{item}")),
            Self::Object(members) => {
                separated(f, ('{', '}'), members, |f, (name, value)| write!(f, "\"{name}\":{value}"))
            }
        }
    }
}

fn separated<T>(
    f: &mut fmt::Formatter<'_>,
    (open, close): (char, char),
    items: &[T],
    write: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    fmt::Write::write_char(f, open)?;
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            f.write_str(",")?;
        }
        write(f, item)?;
    }
    fmt::Write::write_char(f, close)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: u8) -> bool {
        self.space();
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, wanted: u8) -> Result<(), Malformed> {
        if self.take(wanted) { Ok(()) } else { Err(Malformed(self.at)) }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Malformed> {
        if depth > DEEPEST {
            return Err(Malformed(self.at));
        }
        if self.take(b'{') {
            return self.list(b'}', |reader| reader.pair(depth)).map(Value::Object);
        }
        if self.take(b'[') {
            return self.list(b']', |reader| reader.value(depth + 1)).map(Value::Array);
        }
        if self.peek() == Some(b'"') {
            return self.string().map(|text| Value::Scalar(format!("\"{text}\"")));
        }
        self.word()
    }

    fn pair(&mut self, depth: usize) -> Result<(String, Value), Malformed> {
        self.space();
        let name = self.string()?;
        self.expect(b':')?;
        Ok((name, self.value(depth + 1)?))
    }

    fn list<T>(&mut self, close: u8, item: impl Fn(&mut Self) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        let mut items = Vec::new();
        if self.take(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.take(close) {
                return Ok(items);
            }
            self.expect(b',')?;
        }
    }

    /// What stands between the quotes, escapes as they are.
    fn string(&mut self) -> Result<String, Malformed> {
        self.expect(b'"')?;
        let from = self.at;
        loop {
            match self.peek().ok_or(Malformed(self.at))? {
                b'"' => break,
                b'\\' => self.at += 2,
                byte if byte < b' ' => return Err(Malformed(self.at)),
                _ => self.at += 1,
            }
        }
        let text = self.slice(from)?;
        self.at += 1;
        Ok(text)
    }

    /// A number or one of the three words.
    fn word(&mut self) -> Result<Value, Malformed> {
        let from = self.at;
        let part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        while self.peek().is_some_and(part) {
            self.at += 1;
        }
        let text = self.slice(from)?;
        let known = matches!(text.as_str(), "true" | "false" | "null") || text.parse::<f64>().is_ok_and(f64::is_finite);
        if known { Ok(Value::Scalar(text)) } else { Err(Malformed(from)) }
    }

    fn slice(&self, from: usize) -> Result<String, Malformed> {
        let bytes = self.bytes.get(from..self.at).ok_or(Malformed(from))?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_touched_stays_as_it_was() {
        let text = r#"{"a":[1,-2.5e3,true,null,"x\"\\ü"],"b":{},"c":[],"d":{"e":{"f":"g"}}}"#;
        assert_eq!(Value::parse(text).unwrap().to_string(), text);
        assert_eq!(Value::parse(" { \"a\" : [ 1 , 2 ] } ").unwrap().to_string(), r#"{"a":[1,2]}"#);
    }

    #[test]
    fn members_are_found_or_made() {
        let mut value = Value::parse(r#"{"a":null,"b":7,"t":"x"}"#).unwrap();
        *value.member("a").unwrap().member("x").unwrap() = Value::number(1);
        *value.member("n").unwrap() = Value::text("new");
        assert_eq!(value.to_string(), r#"{"a":{"x":1},"b":7,"t":"x","n":"new"}"#);
        assert_eq!(value.member("b").unwrap().as_number(), Some(7));
        assert_eq!(value.member("t").unwrap().as_plain_text(), Some("x"));
        assert!(value.member("b").unwrap().member("x").is_none());
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", "{", "[1,]", "{\"a\"}", "{\"a\":}", "tru", "1 2", "\"", "\"\\", "{\"a\":1,}", "nan", "\"\n\""]
        {
            assert!(Value::parse(text).is_err(), "{text}");
        }
        assert!(Value::parse(&"[".repeat(100_000)).is_err());
    }
}
