//! Pure path and glob functions with the semantics of Go's `path` and `path.Match`, on bytes.

/// The shortest form of a `/`-separated path, as Go's `path.Clean`: `.` for nothing at all, `..` resolved where it can be.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let rooted = path.first() == Some(&b'/');
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => {
                parts.pop();
            }
            b".." if rooted => {}
            part => parts.push(part),
        }
    }
    let mut out = if rooted { b"/".to_vec() } else { Vec::new() };
    out.extend_from_slice(&parts.join(&b'/'));
    if out.is_empty() { b".".to_vec() } else { out }
}

/// The directory part of a clean relative path; empty for an entry of the root.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

/// The last part of a clean path.
pub(crate) fn base(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(path, |at| &path[at + 1..])
}

/// Whether a name has an unescaped `*`, `?` or `[`.
pub(crate) fn has_wildcards(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Go's `path.Match`: whether the whole of `name` matches; `None` when the pattern is malformed, also when the
/// malformed part was not needed to tell.
pub(crate) fn glob_match(mut pattern: &[u8], mut name: &[u8]) -> Option<bool> {
    'pattern: while !pattern.is_empty() {
        let (star, chunk, rest) = scan_chunk(pattern);
        pattern = rest;
        if star && chunk.is_empty() {
            return Some(!name.contains(&b'/'));
        }
        if let Some(left) = match_chunk(chunk, name)?
            && (left.is_empty() || !pattern.is_empty())
        {
            name = left;
            continue;
        }
        if star {
            for skip in 0..name.len() {
                if name[skip] == b'/' {
                    break;
                }
                match match_chunk(chunk, &name[skip + 1..])? {
                    Some(left) if !pattern.is_empty() || left.is_empty() => {
                        name = left;
                        continue 'pattern;
                    }
                    _ => {}
                }
            }
        }
        // The rest of the pattern is still checked.
        while !pattern.is_empty() {
            let (_, chunk, rest) = scan_chunk(pattern);
            match_chunk(chunk, b"")?;
            pattern = rest;
        }
        return Some(false);
    }
    Some(name.is_empty())
}

/// Splits off leading stars and the part up to the next star.
fn scan_chunk(pattern: &[u8]) -> (bool, &[u8], &[u8]) {
    let stars = pattern.iter().take_while(|byte| **byte == b'*').count();
    let pattern = &pattern[stars..];
    let (mut in_class, mut at) = (false, 0);
    while at < pattern.len() {
        match pattern[at] {
            b'\\' => at += 1,
            b'[' => in_class = true,
            b']' => in_class = false,
            b'*' if !in_class => break,
            _ => {}
        }
        at += 1;
    }
    let (chunk, rest) = pattern.split_at(at.min(pattern.len()));
    (stars > 0, chunk, rest)
}

/// Matches a part without stars at the start of `name`: what is left of the name, `Some(None)` for no match.
fn match_chunk<'n>(mut chunk: &[u8], mut name: &'n [u8]) -> Option<Option<&'n [u8]>> {
    let mut failed = false;
    while let Some((&symbol, mut rest)) = chunk.split_first() {
        failed |= name.is_empty();
        match symbol {
            b'[' => {
                let mut found = '\0';
                if !failed {
                    (found, name) = next_char(name);
                }
                let (hit, after) = match_class(rest, found)?;
                failed |= !hit;
                rest = after;
            }
            b'?' if !failed => {
                failed = name[0] == b'/';
                name = next_char(name).1;
            }
            b'?' => {}
            _ => {
                let mut literal = symbol;
                if symbol == b'\\' {
                    literal = *rest.first()?;
                    rest = &rest[1..];
                }
                if !failed {
                    failed = literal != name[0];
                    name = &name[1..];
                }
            }
        }
        chunk = rest;
    }
    Some((!failed).then_some(name))
}

/// Matches one character against a class whose `[` is consumed already: the answer and what follows the class.
fn match_class(mut class: &[u8], found: char) -> Option<(bool, &[u8])> {
    let negated = class.first() == Some(&b'^');
    if negated {
        class = &class[1..];
    }
    let (mut hit, mut ranges) = (false, 0);
    loop {
        if ranges > 0 && class.first() == Some(&b']') {
            return Some((hit != negated, &class[1..]));
        }
        let (low, rest) = class_char(class)?;
        let mut high = low;
        class = rest;
        if class.first() == Some(&b'-') {
            (high, class) = class_char(&class[1..])?;
        }
        hit |= low <= found && found <= high;
        ranges += 1;
    }
}

/// One possibly escaped character of a class, which must not be the last of the pattern.
fn class_char(mut class: &[u8]) -> Option<(char, &[u8])> {
    match class.first()? {
        b'-' | b']' => return None,
        b'\\' => class = &class[1..],
        _ => {}
    }
    let first = *class.first()?;
    let (symbol, rest) = next_char(class);
    let malformed = symbol == char::REPLACEMENT_CHARACTER && !class.starts_with("\u{fffd}".as_bytes()) && first >= 0x80;
    (!malformed && !rest.is_empty()).then_some((symbol, rest))
}

/// The first character and the rest; a byte that is no UTF-8 is one replacement character.
fn next_char(bytes: &[u8]) -> (char, &[u8]) {
    let head = &bytes[..bytes.len().min(4)];
    match head.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next()) {
        Some(symbol) => (symbol, &bytes[symbol.len_utf8()..]),
        None => (char::REPLACEMENT_CHARACTER, &bytes[bytes.len().min(1)..]),
    }
}
