//! The `# syntax=` line of a Dockerfile: which frontend it asks for.

use regex::bytes::Regex;
use std::{collections::BTreeMap, sync::LazyLock};

/// A Dockerfile's wish for a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syntax {
    /// The image reference of the frontend, for example `docker/dockerfile:1`.
    pub image: String,
    /// The whole value of the line: the reference and what follows it.
    pub cmdline: String,
    /// Where it stands, counted from 1; 0 for a JSON document.
    pub line: usize,
}

/// The frontend that a Dockerfile asks for, by the rules of BuildKit's `DetectSyntax`: directives stand at the very
/// top as `# name=value` comments, or else as `// name=value` comments, or else as a member of a JSON object; a first
/// line that starts with `#!` is passed over, and so is a byte order mark.
pub fn syntax_line(dockerfile: &[u8]) -> Option<Syntax> {
    let mut text = dockerfile.strip_prefix(b"\xef\xbb\xbf").unwrap_or(dockerfile);
    let mut skipped = 0;
    if text.starts_with(b"#!") {
        let end = text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| at + 1);
        text = &text[end..];
        skipped = 1;
    }
    comment_directive(text, b"#", skipped)
        .or_else(|| comment_directive(text, b"//", skipped))
        .or_else(|| json_directive(text, skipped))
}

static DIRECTIVE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*(.+?)[\t\n\f\r ]*$").ok());

/// Reads directives from the top until the first line that is none. A directive given twice ends it as well.
fn comment_directive(text: &[u8], comment: &[u8], skipped: usize) -> Option<Syntax> {
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).strip_prefix(comment)?;
        let captures = DIRECTIVE.as_ref()?.captures(trim_start(line))?;
        let name = captures[1].to_ascii_lowercase();
        if !matches!(name.as_slice(), b"syntax" | b"escape" | b"check") || seen.contains(&name) {
            return None;
        }
        if name == b"syntax" {
            return Some(syntax(&String::from_utf8_lossy(&captures[2]), skipped + index + 1));
        }
        seen.push(name);
    }
    None
}

fn trim_start(line: &[u8]) -> &[u8] {
    std::str::from_utf8(line).map_or_else(|_| line.trim_ascii_start(), |line| line.trim_start().as_bytes())
}

fn json_directive(text: &[u8], skipped: usize) -> Option<Syntax> {
    let members: BTreeMap<String, serde_json::Value> = serde_json::from_slice(text).ok()?;
    let value = members.get("syntax")?.as_str()?;
    Some(Syntax { image: value.to_owned(), cmdline: value.to_owned(), line: skipped })
}

fn syntax(value: &str, line: usize) -> Syntax {
    let image = value.split(' ').next().unwrap_or(value);
    Syntax { image: image.to_owned(), cmdline: value.to_owned(), line }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dockerfile: &str) -> Option<(String, usize)> {
        syntax_line(dockerfile.as_bytes()).map(|syntax| (syntax.image, syntax.line))
    }

    #[test]
    fn finds_the_frontend_where_buildkit_does() {
        let found = |name: &str, line| Some((name.to_owned(), line));
        assert_eq!(
            image("# syntax = dockerfile:experimental // opts\nFROM busybox\n"),
            found("dockerfile:experimental", 1)
        );
        assert_eq!(image("#syntax=a/b:1\r\nFROM x\r\n"), found("a/b:1", 1));
        assert_eq!(image("# escape=\\\n# SYNTAX=a\nFROM x"), found("a", 2));
        assert_eq!(image("#!/usr/bin/env build\n# syntax=a\n"), found("a", 2));
        assert_eq!(image("\u{feff}# syntax=a\n"), found("a", 1));
        assert_eq!(image("// syntax=a\n"), found("a", 1));
        assert_eq!(image("#!/bin/x\n//syntax=a\n"), found("a", 2));
        assert_eq!(image("{\"syntax\": \"foo bar\"}"), found("foo bar", 0));
    }

    #[test]
    fn keeps_the_whole_value_as_command_line() {
        assert_eq!(syntax_line(b"# syntax = a:1 --opt x").unwrap().cmdline, "a:1 --opt x");
    }

    #[test]
    fn finds_nothing_where_buildkit_does_not() {
        for dockerfile in [
            "",
            "FROM busybox\n# syntax=a\n",
            "\n# syntax=a\n",
            "# just words\n# syntax=a\n",
            "# syntax=\nFROM x",
            "# key=FOO\n# syntax=a\n",
            "# escape=`\n# escape=`\n# syntax=a\n",
            " # syntax=a\n",
            "{\"syntax\": 1}",
        ] {
            assert_eq!(image(dockerfile), None, "{dockerfile:?}");
        }
    }
}
