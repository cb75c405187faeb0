//! Which images a Dockerfile takes things from, as far as that can be told without running it.
//!
//! A help, not a fence: an image whose name is not known before the build (an argument without a value) is left out, as is what
//! `ONBUILD` of a base adds, and images of stages that the build does not need are in.

use regex::Regex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

// Once: a generated Dockerfile may have thousands of instructions, and making one takes a millisecond.
#[expect(clippy::expect_used, reason = "constant expressions, each used by a test")]
static VARIABLE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\$(?:(\w+)|\{(\w+)(?:(:?[-+])([^}]*))?\})").expect("constant"));
#[expect(clippy::expect_used, reason = "constant expressions, each used by a test")]
static HEREDOC: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"<<-?(?:"(\w+)"|'(\w+)'|(\w+))"#).expect("constant"));

/// The images named in `FROM`, `COPY --from=` and `RUN --mount=from=`, with their arguments filled in. Stages of the file are none.
pub fn base_images(dockerfile: &str, build_args: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut known = Known::new(build_args);
    for instruction in instructions(dockerfile) {
        let (word, rest) = instruction.split_once(char::is_whitespace).unwrap_or((&instruction, ""));
        match word.to_ascii_uppercase().as_str() {
            "ARG" if known.stages == 0 => known.argument(rest),
            "FROM" => known.stage(rest),
            "COPY" | "ADD" => {
                flags(rest).filter_map(|flag| flag.strip_prefix("--from=")).for_each(|name| known.take(name))
            }
            "RUN" => {
                let mounts = flags(rest).filter_map(|flag| flag.strip_prefix("--mount="));
                let from = mounts.flat_map(|mount| mount.split(',')).filter_map(|field| field.strip_prefix("from="));
                from.for_each(|name| known.take(name));
            }
            _ => {}
        }
    }
    known.images
}

struct Known<'a> {
    build_args: &'a BTreeMap<String, String>,
    /// `ARG`s before the first stage: the ones `FROM` sees.
    global: BTreeMap<String, String>,
    stages: usize,
    /// Names of the stages so far, in lower case.
    names: BTreeSet<String>,
    images: BTreeSet<String>,
}

impl<'a> Known<'a> {
    fn new(build_args: &'a BTreeMap<String, String>) -> Self {
        Self { build_args, global: BTreeMap::new(), stages: 0, names: BTreeSet::new(), images: BTreeSet::new() }
    }

    /// `ARG NAME`, `ARG NAME=default`, several of them.
    fn argument(&mut self, rest: &str) {
        for word in rest.split_whitespace() {
            let (name, default) = word.split_once('=').map_or((word, None), |(name, default)| (name, Some(default)));
            let default = default.and_then(|text| self.filled(unquoted(text)));
            if let Some(value) = self.build_args.get(name).cloned().or(default) {
                self.global.insert(name.to_owned(), value);
            }
        }
    }

    /// `FROM [--platform=…] image [AS name]`
    fn stage(&mut self, rest: &str) {
        let words: Vec<&str> = rest.split_whitespace().filter(|word| !word.starts_with("--")).collect();
        if let Some(image) = words.first() {
            self.take(image);
        }
        if let [_, keyword, name, ..] = words[..]
            && keyword.eq_ignore_ascii_case("as")
        {
            self.names.insert(name.to_ascii_lowercase());
        }
        self.stages += 1;
    }

    /// Notes an image, unless the name means a stage or nothing.
    fn take(&mut self, name: &str) {
        let Some(image) = self.filled(unquoted(name)) else { return };
        let is_stage = self.names.contains(&image.to_ascii_lowercase()) || image.parse::<usize>().is_ok();
        if !image.is_empty() && image != "scratch" && !is_stage {
            self.images.insert(image);
        }
    }

    /// The text with `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+other}` filled in; `None` when one has no value.
    fn filled(&self, text: &str) -> Option<String> {
        let mut filled = String::new();
        let mut end = 0;
        for found in VARIABLE.captures_iter(text) {
            let whole = found.get(0)?;
            let name = found.get(1).or(found.get(2))?.as_str();
            let value = self.global.get(name).filter(|value| !value.is_empty());
            let word = found.get(4).map_or("", |word| word.as_str());
            filled.push_str(&text[end..whole.start()]);
            filled.push_str(match (found.get(3).map(|operator| operator.as_str()), value) {
                (Some(":+" | "+"), value) => value.map_or("", |_| word),
                (_, Some(value)) => value,
                (Some(_), None) => word,
                (None, None) => return None,
            });
            end = whole.end();
        }
        filled.push_str(&text[end..]);
        Some(filled)
    }
}

fn unquoted(text: &str) -> &str {
    let stripped = |quote| text.strip_prefix(quote).and_then(|inner| inner.strip_suffix(quote));
    stripped('"').or_else(|| stripped('\'')).unwrap_or(text)
}

/// The `--flag=value` words an instruction starts with.
fn flags(rest: &str) -> impl Iterator<Item = &str> {
    rest.split_whitespace().take_while(|word| word.starts_with("--"))
}

/// The instructions, each on one line: comments and what stands in here-documents left out, continued lines joined.
fn instructions(dockerfile: &str) -> Vec<String> {
    let escape = escape_of(dockerfile);
    let mut found = Vec::new();
    let mut lines = dockerfile.lines();
    let mut current = String::new();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        if let Some(part) = line.strip_suffix(escape) {
            current.push_str(part);
            current.push(' ');
            continue;
        }
        current.push_str(line);
        for end in heredocs(&current) {
            lines.by_ref().find(|line| line.trim_start_matches('\t') == end);
        }
        found.push(std::mem::take(&mut current).trim().to_owned());
    }
    found.extend(Some(current.trim().to_owned()).filter(|rest| !rest.is_empty()));
    found
}

/// The words that end the here-documents of an instruction.
fn heredocs(instruction: &str) -> Vec<String> {
    let word = instruction.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if !["RUN", "COPY", "ADD"].contains(&word.as_str()) {
        return Vec::new();
    }
    let end =
        |found: regex::Captures<'_>| (1..=3).find_map(|group| found.get(group)).map(|end| end.as_str().to_owned());
    HEREDOC.captures_iter(instruction).filter_map(end).collect()
}

/// What continues a line: the backslash, unless a directive at the top says otherwise.
fn escape_of(dockerfile: &str) -> char {
    let directives = dockerfile.lines().map_while(|line| line.trim().strip_prefix('#'));
    let mut pairs = directives.filter_map(|line| line.split_once('='));
    let escape = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("escape"));
    escape.and_then(|(_, value)| value.trim().chars().next()).unwrap_or('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(dockerfile: &str, args: &[(&str, &str)]) -> Vec<String> {
        let args = args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        base_images(dockerfile, &args).into_iter().collect()
    }

    #[test]
    fn stages_scratch_and_numbers_are_no_images() {
        let dockerfile = "\
# syntax=docker/dockerfile:1
FROM --platform=$BUILDPLATFORM golang:1.24 AS Build
RUN --mount=type=cache,target=/root --mount=type=bind,from=ghcr.io/a/tools,target=/t make
from build as test
COPY --from=build /a /a
COPY --chown=1 --from=quay.io/b/c:2 /x /y
COPY --from=0 /a /b
FROM scratch
COPY --link --from=test / /
";
        assert_eq!(images(dockerfile, &[]), ["ghcr.io/a/tools", "golang:1.24", "quay.io/b/c:2"]);
    }

    #[test]
    fn arguments_are_filled_in_and_unknown_ones_are_left_out() {
        let dockerfile = "\
ARG REGISTRY=r.example:5000 TAG
ARG BASE=\"$REGISTRY/base\"
FROM ${BASE}:${TAG:-latest} AS a
ARG REGISTRY=not.seen.example
FROM $REGISTRY/x${TAG:+-tagged}
FROM $UNKNOWN/y
FROM ${UNKNOWN:-z.example/z}
";
        assert_eq!(images(dockerfile, &[]), ["r.example:5000/base:latest", "r.example:5000/x", "z.example/z"]);
        assert_eq!(
            images(dockerfile, &[("TAG", "v1"), ("REGISTRY", "own.example")]),
            ["own.example/base:v1", "own.example/x-tagged", "z.example/z"]
        );
    }

    #[test]
    fn continued_lines_comments_and_here_documents() {
        let dockerfile = "\
FROM \\
  # not part of it
  a.example/one \\

  AS one
RUN <<EOF cat && <<-'END' cat
FROM inside.example/no
EOF
FROM inside.example/neither
\tEND
COPY <<FILE /f
COPY --from=inside.example/never / /
FILE
FROM b.example/two
";
        assert_eq!(images(dockerfile, &[]), ["a.example/one", "b.example/two"]);
    }

    #[test]
    fn another_escape_character() {
        let dockerfile = "# escape=`\nFROM `\n  a.example/win\\dir\nFROM b.example/c\n";
        assert_eq!(images(dockerfile, &[]), ["a.example/win\\dir", "b.example/c"]);
    }
}
