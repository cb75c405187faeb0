//! Path patterns as in `.dockerignore`: a port of moby's `patternmatcher` and `ignorefile` to byte paths.
//!
//! The last pattern that matches a path decides; `!` takes back; `**` crosses directories; a pattern that matches a
//! directory matches everything below it. Where moby translates a pattern to a Go regular expression, this does the
//! same with `regex`, and decodes names that are not UTF-8 as Go does (one replacement character for each wrong
//! byte). What differs: a `*`, `?` or `[:name:]` inside brackets stands for itself here, and a pattern that cannot be
//! translated is refused by [`Patterns::new`], not at the first match.

mod glob;
mod ignore_file;
#[cfg(test)]
mod tests;

pub(crate) use glob::{base, clean, glob_match, has_wildcards, parent};
pub use ignore_file::parse_ignore_file;

use regex::Regex;

/// A pattern that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed pattern {pattern:?}")]
pub struct BadPattern {
    /// The pattern as given; bytes that are not UTF-8 are replaced.
    pub pattern: String,
}

/// An ordered list of patterns, ready to match paths.
#[derive(Debug, Clone)]
pub struct Patterns {
    patterns: Vec<Pattern>,
    exceptions: bool,
}

/// What [`Patterns::matches_below`] found for a directory, to be handed on to the entries in it.
#[derive(Debug, Clone, Default)]
pub struct ParentMatch(Vec<bool>);

impl Patterns {
    /// Compiles patterns in their order. Empty ones are left out.
    ///
    /// # Errors
    /// The first malformed pattern.
    pub fn new<P: AsRef<[u8]>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, BadPattern> {
        let patterns: Vec<_> = patterns
            .into_iter()
            .filter_map(|pattern| Pattern::new(pattern.as_ref()).transpose())
            .collect::<Result<_, _>>()?;
        let exceptions = patterns.iter().any(|pattern| pattern.exception);
        Ok(Self { patterns, exceptions })
    }

    /// Whether any pattern starts with `!`.
    pub fn has_exceptions(&self) -> bool {
        self.exceptions
    }

    /// Whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.patterns.iter()
    }

    /// Whether `path` (relative, `/`-separated) or one of the directories above it is matched.
    pub fn matches(&self, path: &[u8]) -> bool {
        let mut matched = false;
        for pattern in &self.patterns {
            // Only a pattern that could change the answer has to be looked at.
            if pattern.exception == matched && pattern.matches_or_parent(path) {
                matched = !pattern.exception;
            }
        }
        matched
    }

    /// As [`Patterns::matches`] for a walk from the root down: takes what was found for the directory that holds
    /// `path` (`None` for an entry of the root) and returns what to hand on to the entries in `path`.
    pub fn matches_below(&self, path: &[u8], parent: Option<&ParentMatch>) -> (bool, ParentMatch) {
        let mut matched = false;
        let mut info = vec![false; self.patterns.len()];
        for (index, pattern) in self.patterns.iter().enumerate() {
            let mut hit = parent.and_then(|parent| parent.0.get(index)).copied().unwrap_or(false);
            if !hit {
                if pattern.exception != matched {
                    continue;
                }
                hit = if parent.is_some() { pattern.matches(path) } else { pattern.matches_or_parent(path) };
            }
            info[index] = hit;
            if hit {
                matched = !pattern.exception;
            }
        }
        (matched, ParentMatch(info))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    /// Without `!`, shortest form.
    text: Vec<u8>,
    exception: bool,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Exact,
    /// `dir/**`: begins with what is before the stars.
    Prefix,
    /// `**/name`: ends with what is after the stars.
    Suffix,
    Regex(Regex),
}

impl Pattern {
    /// `None` for an empty pattern.
    fn new(given: &[u8]) -> Result<Option<Self>, BadPattern> {
        let bad = || BadPattern { pattern: String::from_utf8_lossy(given).into_owned() };
        let trimmed = trim(given);
        if trimmed.is_empty() {
            return Ok(None);
        }
        let mut text = clean(trimmed);
        let exception = text.first() == Some(&b'!');
        if exception {
            text.remove(0);
        }
        // Matching against anything checks the syntax of the whole pattern.
        if (exception && text.is_empty()) || glob_match(&text, b".").is_none() {
            return Err(bad());
        }
        let kind = compile(&text).ok_or_else(bad)?;
        Ok(Some(Self { text, exception, kind }))
    }

    pub(crate) fn is_exception(&self) -> bool {
        self.exception
    }

    /// The pattern without a `/**` or `/*` at its end.
    pub(crate) fn without_trailing_glob(&self) -> &[u8] {
        let text = self.text.strip_suffix(b"/**").unwrap_or(&self.text);
        text.strip_suffix(b"/*").unwrap_or(text)
    }

    fn matches(&self, path: &[u8]) -> bool {
        match &self.kind {
            Kind::Exact => path == self.text,
            Kind::Prefix => path.starts_with(&self.text[..self.text.len() - 2]),
            Kind::Suffix => {
                let suffix = &self.text[2..];
                path.ends_with(suffix) || suffix.strip_prefix(b"/").is_some_and(|name| path == name)
            }
            Kind::Regex(regex) => match std::str::from_utf8(path) {
                Ok(path) => regex.is_match(path),
                Err(_) => regex.is_match(&decode(path)),
            },
        }
    }

    fn matches_or_parent(&self, path: &[u8]) -> bool {
        self.matches(path)
            || path.iter().enumerate().any(|(at, byte)| *byte == b'/' && at > 0 && self.matches(&path[..at]))
    }
}

fn trim(text: &[u8]) -> &[u8] {
    std::str::from_utf8(text).map_or_else(|_| text.trim_ascii(), |text| text.trim().as_bytes())
}

/// Decodes as Go ranges over a string: each byte that is no part of a valid character is one U+FFFD.
fn decode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

/// Chooses how a pattern is matched; `None` when it is malformed.
fn compile(pattern: &[u8]) -> Option<Kind> {
    let text = decode(pattern);
    let mut translation = Translation::default();
    let mut rest = text.chars().peekable();
    let mut first = true;
    while let Some(symbol) = rest.next() {
        match symbol {
            '*' if rest.next_if_eq(&'*').is_some() => {
                rest.next_if_eq(&'/');
                translation.double_star(first, rest.peek().is_none());
            }
            '*' => translation.push("[^/]*"),
            '?' => translation.push("[^/]"),
            '\\' => match rest.next() {
                Some(symbol) => translation.push(&escaped(symbol)),
                None => translation.literal('\\'),
            },
            '[' => {
                let class = class(&mut rest)?;
                translation.push(&class);
            }
            // As in moby, where it ends up as the regular expression's own anchor.
            '^' => translation.regex.push('^'),
            other => translation.literal(other),
        }
        first = false;
    }
    translation.finish()
}

#[derive(Default)]
struct Translation {
    regex: String,
    kind: Detected,
}

#[derive(Default, PartialEq)]
enum Detected {
    #[default]
    Exact,
    Prefix,
    Suffix,
    Regex,
}

impl Translation {
    fn literal(&mut self, symbol: char) {
        self.regex.push_str(&literal(symbol));
    }

    fn push(&mut self, regex: &str) {
        self.regex.push_str(regex);
        self.kind = Detected::Regex;
    }

    /// `first`: the pattern starts with it; `last`: nothing follows.
    fn double_star(&mut self, first: bool, last: bool) {
        match (last, &self.kind) {
            (true, Detected::Exact) => self.kind = Detected::Prefix,
            (true, _) => self.push(".*"),
            (false, _) => self.push("(.*/)?"),
        }
        if first {
            self.kind = Detected::Suffix;
        }
    }

    fn finish(self) -> Option<Kind> {
        Some(match self.kind {
            Detected::Exact => Kind::Exact,
            Detected::Prefix => Kind::Prefix,
            Detected::Suffix => Kind::Suffix,
            Detected::Regex => Kind::Regex(Regex::new(&format!("^{}$", self.regex)).ok()?),
        })
    }
}

/// Translates what follows a `[`, up to and with the `]`.
fn class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    let mut class = String::from("[");
    if rest.next_if_eq(&'^').is_some() {
        class.push('^');
    }
    loop {
        match rest.next()? {
            ']' => break,
            '\\' => class.push_str(&escaped(rest.next()?)),
            // Between two characters; where it is no range, the syntax check has refused the pattern.
            '-' => class.push('-'),
            other => class.push_str(&literal(other)),
        }
    }
    class.push(']');
    Some(class)
}

/// What a backslash and `symbol` mean: the character itself, except for the letters that Go's regular expressions
/// give a meaning and moby hands through.
fn escaped(symbol: char) -> String {
    match symbol {
        'd' => "[0-9]".into(),
        'D' => "[^0-9]".into(),
        'w' => "[0-9A-Za-z_]".into(),
        'W' => "[^0-9A-Za-z_]".into(),
        's' => r"[\t\n\f\r ]".into(),
        'S' => r"[^\t\n\f\r ]".into(),
        other if other.is_ascii_alphanumeric() => format!(r"\{other}"),
        other => literal(other),
    }
}

fn literal(symbol: char) -> String {
    if symbol.is_ascii_punctuation() { format!(r"\{symbol}") } else { symbol.into() }
}
